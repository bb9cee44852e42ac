"""A torch model as a runtime: what `pelagia.infer` asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.errors import ModelError
from pelagia.models.model import Model
from pelagia.nn.layers import fuse

__all__ = ["TorchRuntime"]


class TorchRuntime:
    """Runs a fused copy of `model` in evaluation mode; later changes of `model` do not reach it.

    Args:
        model: any model.
        device: where to run; None for the device of the model's weights.

    Raises:
        ModelError: the images do not have three channels or the sides that the model takes.
    """

    def __init__(self, model: Model, *, device: torch.device | str | None = None) -> None:
        self.device = next(model.parameters()).device if device is None else torch.device(device)
        self.model = fuse(model).to(self.device).to(memory_format=torch.channels_last)

    @property
    def card(self) -> ModelCard:
        """What the network is."""
        return self.model.card

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Raw outputs by name for normalised images [B, 3, H, W]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ModelError(f"images must have shape [B, 3, H, W], got {list(images.shape)}", where=self.card.name)
        batch = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
        batch = batch.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            outputs = self.model(batch)
        return {name: value.float().cpu().numpy() for name, value in outputs.items()}
