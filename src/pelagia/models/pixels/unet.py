"""U-Net: a contracting path, an expanding path, and copies from one to the other.

Ronneberger, Fischer & Brox, "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015, arXiv:1505.04597.

    images [B, 3, 572, 572] -> 4 x (two 3 x 3 convolutions, max pooling) -> two 3 x 3 convolutions
        -> 4 x (2 x 2 up-convolution, the cropped copy beside it, two 3 x 3 convolutions) -> 1 x 1 -> logits [B, C, 388, 388]

Convolutions are valid: each sees real pixels only, and the 92 outermost pixels of the input are context without an answer.
`ModelCard.margin` says so, and `core.image.letterbox` fills the margin by mirroring the image (the overlap-tile strategy). The
loss stresses the ground between touching objects (`losses.borders`). No published weights are read.

It departs from the paper in three colour channels where the paper has one, and offers what later work made usual: padded
convolutions (the answer then covers the input) and batch normalisation. `unet_timm` has the expanding path over any encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError
from pelagia.losses.pixels import Processes
from pelagia.models.model import Model, Targets
from pelagia.models.pixels.dense import DenseOptions, channels, dense_card, dense_loss, dense_truth

__all__ = ["Options", "UNet", "margin_of"]


@dataclass(frozen=True, kw_only=True)
class Options(DenseOptions):
    """Options of U-Net, saved in its checkpoint.

    Args:
        depth: number of poolings.
        width: channels of the first level; each level doubles them.
        padding: pad the convolutions, so that the answer covers the input.
        norm: batch normalisation after each 3 x 3 convolution.
        dropout: at the end of the contracting path.
    """

    depth: int = 4
    width: int = 64
    padding: bool = False
    norm: bool = False
    dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 1 or self.width < 1:
            raise OptionError(f"depth and width must be positive, got {self.depth} and {self.width}")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout must lie in 0 to 1, got {self.dropout}")


def margin_of(depth: int) -> int:
    """Pixels along each border of the input that valid convolutions leave without an answer: 6 x 2^depth - 4, for depth 4 the
    paper's 92.

    Two convolutions take 2 pixels of their level from each side. The deepest level does so once, 2^(depth + 1) pixels of the
    input; each other level l twice, on the way down and on the way up, 2^(l + 2).
    """
    return 6 * (1 << depth) - 4


def _double(channels: int, out: int, options: Options) -> nn.Sequential:
    """Two 3 x 3 convolutions with ReLU, valid (4 pixels less a side) or padded."""

    def layers(enter: int) -> Iterator[nn.Module]:
        yield nn.Conv2d(enter, out, 3, padding=int(options.padding), bias=not options.norm)
        if options.norm:
            yield nn.BatchNorm2d(out)
        yield nn.ReLU(inplace=True)

    return nn.Sequential(*layers(channels), *layers(out))


@final
class UNet(Model):
    """U-Net as a `Model`.

    Args:
        name: the registry's name.
        categories: the classes, in label order.
        task: `semantic` or `instance`.
        input_size: height and width in pixels; padded: multiples of 2^depth; valid: such that every pooling gets even sides,
            which the sides 2 margin + 4 + 2^depth k do (572 for depth 4).
        options: of the architecture and the loss.

    Raises:
        ModelError: too few or too many classes, or sides that the poolings cannot halve.
    """

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        super().__init__()
        out = channels(name, task, categories, options)
        self.options = options
        margin = 0 if options.padding else margin_of(options.depth)
        self.card = dense_card(name, task, categories, input_size, options, stride=2**options.depth, margin=margin)
        self._check(input_size)
        widths = [options.width * 2**level for level in range(options.depth + 1)]
        self.down = nn.ModuleList(_double(enter, width, options) for enter, width in zip([3, *widths[:-1]], widths, strict=True))
        self.dropout = nn.Dropout(options.dropout)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # deepest first
        self.grow = nn.ModuleList(nn.ConvTranspose2d(deep, width, 2, stride=2) for deep, width in pairs)
        self.up = nn.ModuleList(_double(2 * width, width, options) for _, width in pairs)
        self.classes = nn.Conv2d(widths[0], out, 1)
        self._start()

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """`logits` [B, C, H - 2 margin, W - 2 margin].

        Raises:
            ModelError: a side of the images cannot be halved as often as there are poolings.
        """
        self._check((images.shape[2], images.shape[3]))
        copies: list[Tensor] = []
        x = images
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            if level >= self.options.depth - 1:
                x = self.dropout(x)
            copies.append(x)
        copies.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = grow(x)
            x = block(torch.cat((_centre(copies.pop(), x), x), dim=1))
        return {"logits": self.classes(x)}

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The terms of `options.loss`."""
        truth = dense_truth(targets, self.card.task, self.card.categories, self.options, self.card.margin)
        return dense_loss(outputs, truth, self.options, across=Processes(self.reduce, self.gather))

    def _check(self, size: tuple[int, int]) -> None:
        step, margin = self.card.stride, self.card.margin
        first = 2 * margin + 4 if margin else step  # the smallest side with an answer
        for side in size:
            if side < first or (side - first) % step:
                nearest = first + max(round((side - first) / step), 0) * step
                raise ModelError(
                    f"sides of the input must be {first} plus multiples of {step} pixels, got {size[0]} x {size[1]}; the nearest "
                    f"to {side} is {nearest}",
                    where=self.card.name,
                )

    def _start(self) -> None:
        """Weights of variance 2 / N, N the inputs of a unit (He et al. 2015, as the paper says), biases of zero."""
        for module in self.modules():
            # Without memory, to be filled from a file, there is nothing to draw; PyTorch would load its compiler to do so.
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
                # A unit of the up-convolution has one input pixel, not four, so its inputs are the channels.
                fan = module.in_channels * (9 if module.kernel_size == (3, 3) else 1)
                nn.init.normal_(module.weight, std=(2 / fan) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _centre(x: Tensor, like: Tensor) -> Tensor:
    """The middle of x at the size of `like`."""
    top, left = ((mine - theirs) // 2 for mine, theirs in zip(x.shape[-2:], like.shape[-2:], strict=True))
    return x[..., top : top + like.shape[-2], left : left + like.shape[-1]]
