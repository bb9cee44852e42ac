"""The contract of a model.

A model is a plain `nn.Module` that turns a padded batch of images into raw outputs, scores those outputs against truth, and
turns them into objects. It knows nothing of files, optimisers or devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.types import Prediction
from pelagia.decode import DecodeOptions, decode
from pelagia.models.targets import MaskCrops, Targets

__all__ = ["MaskCrops", "Model", "Targets"]


def _same(value: Tensor) -> Tensor:
    return value


def _alone(value: Tensor) -> tuple[Tensor, int]:
    return value, 0


class Model(nn.Module, ABC):
    """A network with its loss and its decoding; each paper's class is final.

    Attributes:
        card: what the model is: name, task, classes, input size, normalisation, options.
        reduce: maps the normaliser of a loss to its mean over all processes; the identity in a single process. A loss that
            divides by a count passes it through here, so that the mean of the processes' gradients is that of the whole batch.
        gather: joins values [..., N] of all processes to [..., W N] and tells where this process's begin; for losses that sort.
    """

    card: ModelCard
    reduce: Callable[[Tensor], Tensor] = staticmethod(_same)
    gather: Callable[[Tensor], tuple[Tensor, int]] = staticmethod(_alone)

    @abstractmethod
    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """Raw outputs for `images` [B, 3, H, W], normalised; the same whether training or not, up to batch norm and dropout.

        `valid` [B, 2] holds heights and widths without padding at the right and the bottom, None where all is image. Without
        `targets` the outputs are what `decode` reads, each with B as first axis. With `targets` they are what `loss` reads: a
        model may then sample its proposals by them, add what only the loss needs (auxiliary heads, intermediate layers), and
        leave out what only decoding needs. `docs/decisions/004` tells why.
        """

    @abstractmethod
    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised. Finite and differentiable for zero objects too.

        `outputs` come from a forward pass with the same `targets`.
        """

    def decode(
        self, outputs: dict[str, Tensor], frames: Sequence[Frame], options: DecodeOptions | None = None
    ) -> list[Prediction]:
        """Objects in pixels of the original images, by the wing's pure function in `pelagia.decode`."""
        arrays = {name: value.detach().float().cpu().numpy() for name, value in outputs.items()}
        return decode(arrays, frames, self.card, options or DecodeOptions())
