"""Convolution, batch normalisation, activation: the brick of every network here, and its folding for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BATCH_NORM_EPS",
    "BATCH_NORM_MOMENTUM",
    "ConvNormAct",
    "OneDnnConv2d",
    "OneDnnConvNormAct",
    "conv_relu",
    "fuse",
    "use_onednn",
]

#: Batch normalisation of the YOLO family: epsilon as its published models carry it.
BATCH_NORM_EPS = 1e-3
#: Theirs is 0.03, made for runs of 100,000 steps: in the few hundred steps of a small data set the running statistics then trail
#: the weights by so much that validation sees another network than the one that learns. Inference does not depend on it.
BATCH_NORM_MOMENTUM = 0.1

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ConvNormAct(nn.Module):
    """SiLU(BN(conv(x))), [B, C, H, W] -> [B, out, ceil(H / stride), ceil(W / stride)] for odd kernels.

    `activate=False` leaves the activation out; `groups` = channels makes it depthwise. After `fuse` the normalisation is part of
    the convolution.
    """

    def __init__(
        self, channels: int, out: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if not self.activate:
            return x
        # In place only where nothing is recorded: autograd would first copy the tensor that the derivative needs.
        return F.silu(x, inplace=not torch.is_grad_enabled())


def conv_relu(
    channels: int, out: int, kernel: int = 3, *, norm: bool = False, activate: bool = True, dilation: int = 1
) -> nn.Sequential:
    """ReLU(conv(x)), or with `norm` ReLU(BN(conv(x))), whose convolution has no bias; the size stays for odd kernels."""
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=not norm)
    parts: list[nn.Module] = [conv]
    if norm:
        parts.append(nn.BatchNorm2d(out))
    if activate:
        parts.append(nn.ReLU(inplace=True))
    return nn.Sequential(*parts)


def _fold(block: ConvNormAct) -> None:
    norm = block.norm
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None or norm.running_mean is None:
        return
    conv = block.conv
    # In float64: the quotient of two float32 roundings would cost a digit in every layer.
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    conv.weight, conv.bias = nn.Parameter(weight.to(conv.weight.dtype)), nn.Parameter(bias.to(conv.weight.dtype))
    block.norm = nn.Identity()


@torch.no_grad()
def fuse(model: ModuleT) -> ModuleT:
    """A copy of `model` in evaluation mode, without gradients, each batch normalisation folded into its convolution.

    With y = (conv(x) - mean) / sqrt(var + eps) * gamma + beta, the folded weights are w * gamma / sqrt(var + eps) and the bias is
    beta - mean * gamma / sqrt(var + eps).
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for module in fused.modules():
        if isinstance(module, ConvNormAct):
            _fold(module)
    return fused.requires_grad_(False)


class OneDnnConv2d(nn.Conv2d):
    """A convolution of float32 images on a CPU, for inference, that oneDNN always computes.

    PyTorch itself leaves kernels of one pixel to a slower loop when a single thread works on fewer than 16 images; so does an
    image that has a core for itself, and YOLO11n then takes half as long again. It also brings the weights into oneDNN's order at
    each call, 7 % of YOLO11n's time: here the first call does so for good, and the weights can no longer be changed. Images of
    other sizes may ask for another order, to which oneDNN then brings them.

    The activation stays apart: as a part of the convolution SiLU takes oneDNN twice as long as PyTorch.
    """

    #: All that oneDNN is told beside the image; a module looks its parameters up slowly.
    _told: tuple[Any, ...] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """conv(input); the same numbers as those of PyTorch with several threads."""
        if input.dtype is not torch.float32 or input.ndim != 4 or input.numel() == 0:
            weight = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
            plain: Tensor = self._conv_forward(input, weight, self.bias)
            return plain
        if self._told is None:
            self._told = self._prepare(input)
        found: Tensor = torch.ops.mkldnn._convolution_pointwise.default(input, *self._told)
        return found

    def _prepare(self, input: Tensor) -> tuple[Any, ...]:
        how = (self.padding, self.stride, self.dilation, self.groups)
        weight: Tensor = self.weight
        if not weight.is_mkldnn:
            # Another thread may be doing it too, to the same end.
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(input.shape))
            self.weight = nn.Parameter(weight, requires_grad=False)
        return (weight, self.bias, *how, "none", [], "")


class OneDnnConvNormAct(ConvNormAct):
    """A fused `ConvNormAct` of a model for inference on a CPU, in one call: the calls of its parts were 4 % of YOLO11n's time."""

    convolve: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolve(x)
        return F.silu(x, inplace=True) if self.activate else x


def use_onednn(model: nn.Module) -> None:
    """Turn the convolutions of a model for inference on a CPU into `OneDnnConv2d`, in place, where this PyTorch has oneDNN."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = OneDnnConv2d
    for module in model.modules():
        if type(module) is ConvNormAct and isinstance(module.conv, OneDnnConv2d) and isinstance(module.norm, nn.Identity):
            module.__class__ = OneDnnConvNormAct
            cast(OneDnnConvNormAct, module).convolve = module.conv.forward
