"""FCN: a fully convolutional network for semantic segmentation.

Long, Shelhamer & Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, arXiv:1411.4038, in the form that
torchvision ships (BSD-3-Clause): a dilated ResNet, one convolution, and a classifier at stride 8.

    images -> backbone at output stride 8 (stages 3 and 4) -> 3 x 3 convolution -> dropout -> 1 x 1 classifier

It departs from the paper as torchvision does: a ResNet with dilation in the place of VGG-16 with skip connections, a quarter of
the channels in the head, a second head on stage 3 that only learns (PSPNet, Zhao et al. 2017), and bilinear resampling of the
logits, which is left to the loss and to `pelagia.decode.pixels`. Published weights: torchvision's, trained on the images of COCO
that hold classes of Pascal VOC (`models.pixels.torchvision` reads them).
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
from pelagia.nn.layers import conv_relu

__all__ = ["FCN", "FCNHead", "Options"]


@dataclass(frozen=True, kw_only=True)
class Options(DenseOptions):
    """Options of FCN, saved in its checkpoint.

    Args:
        backbone: `timm:NAME` of a network that can be dilated.
        aux_weight: of the loss of the auxiliary head on stage 3; 0 for no such head.
        dropout: before the classifiers.
    """

    backbone: str = "timm:resnet50"
    aux_weight: float = 0.5
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbone.startswith("timm:"):
            raise OptionError(f"backbone must be timm:NAME, got {self.backbone!r}")
        if self.aux_weight < 0 or not 0 <= self.dropout < 1:
            raise OptionError("aux_weight must be at least 0 and dropout in 0 to 1")


class FCNHead(nn.Module):
    """[B, C, h, w] -> logits [B, out, h, w] through C / 4 channels."""

    def __init__(self, enter: int, out: int, dropout: float) -> None:
        super().__init__()
        self.mix = conv_relu(enter, enter // 4, norm=True)
        self.dropout = nn.Dropout(dropout)
        self.classes = nn.Conv2d(enter // 4, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.classes(self.dropout(self.mix(x)))
        return found


@final
class FCN(Model):
    """FCN as a `Model`.

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
        self.head = FCNHead(fourth, out, options.dropout)
        self.aux = FCNHead(third, out, options.dropout) if options.aux_weight else None

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """`logits` [B, C, ceil(H / 8), ceil(W / 8)] and, with targets, `aux` of the same shape."""
        third, fourth = self.backbone(images)
        outputs: dict[str, Tensor] = {"logits": self.head(fourth)}
        if targets is not None and self.aux is not None:
            outputs["aux"] = self.aux(third)
        return outputs

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The terms of `options.loss`, and `aux`."""
        truth = dense_truth(targets, self.card.task, self.card.categories, self.options)
        return dense_loss(
            outputs, truth, self.options, aux_weight=self.options.aux_weight, across=Processes(self.reduce, self.gather)
        )
