"""U-Net over any encoder of timm.

The expanding path of Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597, over the stages of a classifier, as
segmentation_models_pytorch made usual (Iakubovskii 2019, MIT). Nothing of it is copied, and none of its weights are read.

    images -> timm encoder, maps at strides 2 (or 4) to 32
        -> per finer map: enlarge x 2, the copy beside it, two 3 x 3 convolutions; widths 256, 128, 64, 32 at strides 16 to 2
        -> 16 channels for every pixel of a cell, beside 16 of the image; two 3 x 3 convolutions -> logits [B, C, H, W]

It departs from that form at the end, where no encoder has a map: there the last step enlarges 32 channels and puts nothing beside
them. Here the finest map of the encoder answers for the 2 x 2 pixels of each of its cells (for the 4 x 4 pixels over encoders
that begin at stride 4), and beside it stands a convolution of the image itself, the copy that the paper has at this level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from torch import Tensor, nn

from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError
from pelagia.losses.pixels import Processes
from pelagia.models.model import Model, Targets
from pelagia.models.pixels.dense import DenseOptions, channels, dense_card, dense_loss, dense_truth
from pelagia.nn.backbones import TimmBackbone, open_residuals
from pelagia.nn.upsample import FullResolutionHead, JoinFiner

__all__ = ["Options", "TimmUNet"]

#: Channels at stride s are this times s, the 256, 128, 64 and 32 of strides 16 to 2.
_WIDTH_PER_STRIDE: Final = 16


@dataclass(frozen=True, kw_only=True)
class Options(DenseOptions):
    """Options of U-Net over a timm encoder, saved in its checkpoint.

    Args:
        loss: as in every dense model; cross-entropy and Dice together by default (nnU-Net, Isensee et al. 2021).
        backbone: `timm:NAME`.
        width: multiple of the channels of the expanding path.
    """

    loss: str = "ce+dice"
    backbone: str = "timm:resnet18"
    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbone.startswith("timm:"):
            raise OptionError(f"backbone must be timm:NAME, got {self.backbone!r}")
        if self.width <= 0:
            raise OptionError(f"width must be positive, got {self.width}")


@final
class TimmUNet(Model):
    """U-Net over a timm encoder as a `Model`.

    Args:
        name: the registry's name.
        categories: the classes, in label order.
        task: `semantic` or `instance`.
        input_size: height and width in pixels, multiples of the encoder's coarsest stride, 32 for most.
        options: of the architecture and the loss.

    Raises:
        ModelError: too few or too many classes, or sides that are no multiples.
        OptionError: the encoder has no feature maps.
    """

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        super().__init__()
        out = channels(name, task, categories, options)
        self.options = options
        self.backbone = TimmBackbone(options.backbone.removeprefix("timm:"), None)
        open_residuals(self.backbone)
        strides = self.backbone.strides
        self.card = dense_card(name, task, categories, input_size, options, stride=strides[-1])
        self._check(input_size)
        widths = [max(round(_WIDTH_PER_STRIDE * stride * options.width), 8) for stride in strides[:-1]]
        deep = [*widths[1:], self.backbone.channels[-1]]
        parts = list(zip(deep, self.backbone.channels[:-1], widths, strict=True))
        self.up = nn.ModuleList(JoinFiner(*part) for part in reversed(parts))
        self.head = FullResolutionHead(widths[0], out, strides[0])
        for module in self.up.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """`logits` [B, C, H, W].

        Raises:
            ModelError: a side of the images is not a multiple of the coarsest stride.
        """
        self._check((images.shape[2], images.shape[3]))
        *copies, x = self.backbone(images)
        for join in self.up:
            x = join(x, copies.pop())
        return {"logits": self.head(x, images)}

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The terms of `options.loss`."""
        truth = dense_truth(targets, self.card.task, self.card.categories, self.options)
        return dense_loss(outputs, truth, self.options, across=Processes(self.reduce, self.gather))

    def _check(self, size: tuple[int, int]) -> None:
        if any(side <= 0 or side % self.card.stride for side in size):
            raise ModelError(
                f"sides of the input must be multiples of {self.card.stride} pixels, got {size[0]} x {size[1]}",
                where=self.card.name,
            )
