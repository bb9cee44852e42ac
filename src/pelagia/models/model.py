"""The contract of a model.

A model is a plain `nn.Module` that turns a padded batch of images into raw outputs, scores those outputs against truth, and
turns them into objects. It knows nothing of files, optimisers or devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.types import Prediction
from pelagia.decode import DecodeOptions, decode

__all__ = ["Model", "Targets"]


@dataclass
class Targets:
    """The truth of a batch in network-input pixels, flat: M objects over B images.

    Args:
        batch: [M] int64, which image an object lies in.
        labels: [M] int64, class indices.
        boxes: [M, 4] float, x1, y1, x2, y2.
        oriented: [M, 5] float, cx, cy, w, h, angle, or None.
        masks: [M, H, W] bool at input size or a fraction of it, or None.
        keypoints: [M, K, 3] float, or None.
        semantic: [B, H, W] int64 with 255 = ignore, or None.
        ignore: [M] bool, regions where a model must neither be rewarded nor punished (crowd and ignore regions of the data).
        size: B, the number of images (an image may have no object).
    """

    batch: Tensor
    labels: Tensor
    boxes: Tensor
    size: int
    oriented: Tensor | None = None
    masks: Tensor | None = None
    keypoints: Tensor | None = None
    semantic: Tensor | None = None
    ignore: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        if len(self.ignore) != len(self.labels):
            self.ignore = torch.zeros(len(self.labels), dtype=torch.bool, device=self.labels.device)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Targets:
        """The same truth on another device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=non_blocking)

        return Targets(
            batch=self.batch.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            size=self.size,
            oriented=move(self.oriented),
            masks=move(self.masks),
            keypoints=move(self.keypoints),
            semantic=move(self.semantic),
            ignore=self.ignore.to(device, non_blocking=non_blocking),
        )


def _same(value: Tensor) -> Tensor:
    return value


class Model(nn.Module, ABC):
    """A network with its loss and its decoding; each paper's class is final.

    Attributes:
        card: what the model is: name, task, classes, input size, normalisation, options.
        reduce: maps the normaliser of a loss to its mean over all processes; the identity in a single process. A loss that
            divides by a count passes it through here, so that the mean of the processes' gradients is that of the whole batch.
    """

    card: ModelCard
    reduce: Callable[[Tensor], Tensor] = staticmethod(_same)

    @abstractmethod
    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """Raw outputs for `images` [B, 3, H, W], normalised; the same keys whether training or not.

        `valid` [B, 2] holds unpadded heights and widths; `targets` only feeds what a paper needs inside its forward pass.
        """

    @abstractmethod
    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised. Finite and differentiable for zero objects too."""

    def decode(
        self, outputs: dict[str, Tensor], frames: Sequence[Frame], options: DecodeOptions | None = None
    ) -> list[Prediction]:
        """Objects in pixels of the original images, by the wing's pure function in `pelagia.decode`."""
        arrays = {name: value.detach().float().cpu().numpy() for name, value in outputs.items()}
        return decode(arrays, frames, self.card, options or DecodeOptions())
