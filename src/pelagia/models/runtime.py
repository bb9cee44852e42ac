"""A torch model as a runtime: what `pelagia.infer` asks for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.errors import ModelError
from pelagia.infer.runtimes import Precision, Runtime, lane_count
from pelagia.models.model import Model
from pelagia.nn.layers import fuse, use_onednn

__all__ = ["TorchRuntime"]


class TorchRuntime:
    """Runs a fused copy of `model` in evaluation mode; later changes of `model` do not reach it.

    Args:
        model: any model.
        device: where to run; None for the device of the model's weights.
        precision: see `Precision`; bfloat16 by autocast.

    Raises:
        ModelError: the images do not have three channels or the sides that the model takes.
    """

    #: Images may have any sides that the model takes, not those of its card alone.
    any_size = True

    def __init__(self, model: Model, *, device: torch.device | str | None = None, precision: Precision = "float32") -> None:
        self.device = next(model.parameters()).device if device is None else torch.device(device)
        self.precision: Precision = precision
        self.model = fuse(model).to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cpu" and precision == "float32":
            use_onednn(self.model)

    @property
    def card(self) -> ModelCard:
        """What the network is."""
        return self.model.card

    @property
    def name(self) -> str:
        """See `pelagia.infer.runtimes.runtime_name`."""
        return f"torch {torch.__version__} ({self.device.type}, {self.precision})"

    def lanes(self) -> tuple[Runtime, ...]:
        """See `pelagia.infer.runtimes.lanes`: on a CPU threads that share the weights; none on a GPU."""
        if self.device.type != "cpu":
            return ()
        threads = torch.get_num_threads()
        count = lane_count(threads)
        return (_Lane(self, threads // count),) * count

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Raw outputs by name for normalised images [B, 3, H, W]; `valid` [B, 2] as in `Model.forward`."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ModelError(f"images must have shape [B, 3, H, W], got {list(images.shape)}", where=self.card.name)
        batch = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
        batch = batch.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.precision == "bfloat16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            outputs = self.model(batch, None if valid is None else torch.from_numpy(valid).to(self.device))
        return {name: value.float().cpu().numpy() for name, value in outputs.items()}


class _Lane:
    """The model for one of several threads, with its share of the cores."""

    def __init__(self, owner: TorchRuntime, threads: int) -> None:
        self._owner, self._threads = owner, threads

    @property
    def card(self) -> ModelCard:
        return self._owner.card

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        # The number holds for the thread that sets it, and for threads that begin later: those are left as they were.
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return self._owner.run(images, valid)
        finally:
            torch.set_num_threads(before)
