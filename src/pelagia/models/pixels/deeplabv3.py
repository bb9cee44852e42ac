"""DeepLabV3: atrous convolution at several rates at once.

Chen, Papandreou, Schroff & Adam, "Rethinking atrous convolution for semantic image segmentation", 2017, arXiv:1706.05587, in the
form that torchvision ships (BSD-3-Clause).

    images -> backbone at output stride 8 (stages 3 and 4) -> atrous spatial pyramid -> 3 x 3 convolution -> 1 x 1 classifier

It departs from the paper as torchvision does: a second head on stage 3 that only learns, rates 12, 24, 36 at stride 8, which the
paper trains at stride 16 with half of them, no multi-grid in the last stage, and dropout after the pyramid. Logits stay at stride
8; the loss and `pelagia.decode.pixels` resample them. Published weights: torchvision's, trained on the images of COCO that hold
classes of Pascal VOC (`models.pixels.torchvision` reads them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from pelagia.core.types import Category, Task
from pelagia.errors import OptionError
from pelagia.losses.pixels import Processes
from pelagia.models.model import Model, Targets
from pelagia.models.pixels.dense import DenseOptions, channels, dense_card, dense_loss, dense_truth, dilated
from pelagia.models.pixels.fcn import FCNHead
from pelagia.nn.context import AtrousPyramid
from pelagia.nn.layers import conv_relu

__all__ = ["DeepLabV3", "Options"]


@dataclass(frozen=True, kw_only=True)
class Options(DenseOptions):
    """Options of DeepLabV3, saved in its checkpoint.

    Args:
        backbone: `timm:NAME` of a network that can be dilated.
        rates: dilations of the pyramid, joined by commas.
        width: channels of the pyramid's branches.
        aux_weight: of the loss of the auxiliary head on stage 3; 0 for no such head.
        dropout: after the pyramid.
    """

    backbone: str = "timm:resnet50"
    rates: str = "12,24,36"
    width: int = 256
    aux_weight: float = 0.5
    dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbone.startswith("timm:"):
            raise OptionError(f"backbone must be timm:NAME, got {self.backbone!r}")
        if self.aux_weight < 0 or not 0 <= self.dropout < 1 or self.width < 1:
            raise OptionError("aux_weight must be at least 0, dropout in 0 to 1, and width positive")
        if not all(rate.strip().isdigit() and int(rate) > 0 for rate in self.rates.split(",")):
            raise OptionError(f"rates must be positive whole numbers joined by commas, got {self.rates!r}")


#: Dropout of the auxiliary head, which is that of FCN.
_AUX_DROPOUT = 0.1


@final
class DeepLabV3(Model):
    """DeepLabV3 as a `Model`.

    Args:
        name: the registry's name.
        categories: the classes, in label order.
        task: `semantic`.
        input_size: height and width in pixels, multiples of 32.
        options: of the architecture and the loss.

    Raises:
        ModelError: too few or too many classes.
        OptionError: the backbone cannot be used.
    """

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        super().__init__()
        out = channels(name, task, categories, options)
        self.options = options
        self.card = dense_card(name, task, categories, input_size, options)
        self.backbone = dilated(options.backbone)
        third, fourth = self.backbone.channels
        rates = [int(rate) for rate in options.rates.split(",")]
        self.pyramid = AtrousPyramid(fourth, rates, options.width, options.dropout)
        self.mix = conv_relu(options.width, options.width, norm=True)
        self.classes = nn.Conv2d(options.width, out, 1)
        self.aux = FCNHead(third, out, _AUX_DROPOUT) if options.aux_weight else None

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """`logits` [B, C, ceil(H / 8), ceil(W / 8)] and, with targets, `aux` of the same shape."""
        third, fourth = self.backbone(images)
        outputs: dict[str, Tensor] = {"logits": self.classes(self.mix(self.pyramid(fourth)))}
        if targets is not None and self.aux is not None:
            outputs["aux"] = self.aux(third)
        return outputs

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The terms of `options.loss`, and `aux`."""
        truth = dense_truth(targets, self.card.task, self.card.categories, self.options)
        return dense_loss(
            outputs, truth, self.options, aux_weight=self.options.aux_weight, across=Processes(self.reduce, self.gather)
        )
