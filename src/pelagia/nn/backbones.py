"""Networks of the timm collection as backbones (Wightman, https://github.com/huggingface/pytorch-image-models, Apache-2.0)."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pelagia.core.lazy import resolve
from pelagia.errors import OptionError

__all__ = ["TimmBackbone", "open_residuals"]


class TimmBackbone(nn.Module):
    """A timm network cut where its stages end: images [B, 3, H, W] -> one map per stride, finest first.

    Built without pretrained weights, so that building never asks the network; `load_pretrained` fetches them.

    Args:
        name: of the network in timm.
        strides: of the maps, among 2, 4, 8, 16, 32; None for all that the network has.
        output_stride: 8 or 16 replaces later strides by dilation, as DeepLab does; the maps are then finer than `strides` say.
        frozen_norm: batch norms become fixed scales and shifts, without parameters and without statistics to update.

    Attributes:
        channels: of the maps.
        strides: of the maps, before `output_stride`.

    Raises:
        OptionError: timm does not know the name, or the network has no feature maps of these strides.
    """

    def __init__(
        self,
        name: str,
        strides: tuple[int, ...] | None = (8, 16, 32),
        *,
        output_stride: int = 32,
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.network, self.strides = _build(name, strides, output_stride)
        if frozen_norm:
            self.network = _timm().layers.freeze_batch_norm_2d(self.network)
        self.channels: tuple[int, ...] = tuple(int(count) for count in self.network.feature_info.channels())  # type: ignore[operator, union-attr]
        if len(self.channels) != len(self.strides):
            raise OptionError(f"timm:{name} gives {len(self.channels)} feature maps instead of {len(self.strides)}")
        self.channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"

    def load_pretrained(self) -> str:
        """Fetch the pretrained weights through timm (network or its cache); returns the licence that timm states."""
        fetched, _ = _build(self.name, self.strides, 32, pretrained=True)
        self.network.load_state_dict(fetched.state_dict(), strict=False)  # a frozen norm does not count its batches
        config = getattr(self.network, "pretrained_cfg", None) or {}
        return str(config.get("license") or "unknown")

    def freeze_stages(self, trainable: int) -> None:
        """Take the gradient from all but the last `trainable` stages; the stem is the first stage, each map ends another.

        Raises:
            OptionError: the parts of the network cannot be told from the names of its parameters.
        """
        ends = [str(name) for name in self.network.feature_info.module_name()]  # type: ignore[operator, union-attr]
        if trainable > len(ends):
            return
        names = [name for name, _ in self.network.named_parameters()]
        prefixes = [(f"{end}.", f"{end.replace('.', '_')}.") for end in ends]
        places = [[i for i, name in enumerate(names) if name.startswith(prefix)] for prefix in prefixes]
        if not all(places):
            raise OptionError(f"the stages of timm:{self.name} cannot be told apart, so all must be trainable")
        bounds = [places[0][0], *(place[-1] + 1 for place in places)]
        fixed = len(bounds) - trainable
        for parameter in list(self.network.parameters())[: bounds[fixed - 1] if fixed > 0 else 0]:
            parameter.requires_grad_(False)

    def set_norm_epsilon(self, epsilon: float) -> None:
        """The epsilon of every batch norm."""
        for module in self.network.modules():
            if hasattr(module, "running_var") and hasattr(module, "eps"):
                module.eps = epsilon  # type: ignore[assignment]  # a number, whatever kind of norm it is

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.network(images)
        return tuple(found.permute(0, 3, 1, 2).contiguous() for found in maps) if self.channels_last else tuple(maps)


def _timm() -> ModuleType:
    """Imported with the first backbone from it: with torchvision, which it imports, it takes a second and much memory."""
    with torch.device("cpu"):  # models are built on the meta device, and a module makes its constants once
        return resolve("timm", purpose="build a backbone")


def _build(
    name: str, strides: tuple[int, ...] | None, output_stride: int, *, pretrained: bool = False
) -> tuple[nn.Module, tuple[int, ...]]:
    timm = _timm()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # timm warns of renamed models; the name still resolves
            info = timm.create_model(name, features_only=True, pretrained=False).feature_info
            known = [int(value) for value in info.reduction()]
            wanted = tuple(known) if strides is None else strides
            indices = [known.index(stride) for stride in wanted]
            dilated: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
            config = timm.get_pretrained_cfg(name)
            if config is not None and config.fixed_input_size:  # windows and position codes made for one size of image
                dilated["dynamic_img_size"] = True
            whole = {"features_only": True, "pretrained": pretrained, "out_indices": indices}
            try:
                network: nn.Module = timm.create_model(name, **whole, **dilated)
            except TypeError:  # some of these take any size as they are, and no such argument
                if dilated.pop("dynamic_img_size", None) is None:
                    raise
                network = timm.create_model(name, **whole, **dilated)
    except (RuntimeError, ValueError, KeyError, AttributeError, NotImplementedError, TypeError) as error:
        *first, last = map(str, strides or ("any",))
        needed = f"strides {', '.join(first)} and {last}" if first else f"stride {last}"
        raise OptionError(
            f"timm:{name} cannot be a backbone ({error}); name a network with feature maps at {needed}, "
            "such as timm:resnet50 or timm:convnext_tiny"
        ) from error
    return network, wanted


def open_residuals(module: nn.Module) -> None:
    """Start every batch norm at a scale of 1, those too that timm starts at 0, the last of each residual block.

    A block then does something from the first step on: from scratch, runs of a few hundred steps come farther so.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)
