"""The state of a training run in one safetensors file, from which it goes on as if nothing had happened.

`last.safetensors` is a checkpoint like any other, with the averaged weights under their plain names. Beside them stand, under
names that begin with `train/`, the weights being trained and the optimiser's moments, and in the JSON state the step and the
history. The learning rate, the order of the images, every sample and every random number of the network are functions of
(options, step), so that one integer holds schedule, sampler position and generators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelagia.core.card import ModelCard
from pelagia.errors import CheckpointError
from pelagia.models import checkpoint
from pelagia.models.model import Model
from pelagia.train.ema import Average
from pelagia.train.optim import Settings

__all__ = ["PREFIX", "Progress", "pack", "read_progress", "restore", "save_last"]

#: Names of tensors that only training needs begin with it.
PREFIX = "train/"
_WEIGHTS, _MOMENTS = PREFIX + "weights/", PREFIX + "moments/"


@dataclass
class Progress:
    """How far a run has come.

    Args:
        settings: what `auto` stood for at the first step.
        step: finished steps, over all epochs.
        sums: of each loss term over the finished steps of the present epoch.
        history: one record per finished epoch.
        best: the best chief score (see `validate.score_names`) so far, None before the first validation.
        best_epoch: the epoch (from 1) that reached it.
        seconds: spent so far.
        scaler: state of the loss scaler of float16.
    """

    settings: Settings
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: Path) -> Progress:
        """Read what `asdict` gave.

        Raises:
            CheckpointError: this is not the state of a run.
        """
        try:
            return cls(**{**values, "settings": Settings(**values["settings"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the training state misses or misstates a field ({error})", where=where) from error


def pack(model: Model, average: Average, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a run, by name."""
    tensors = dict(average.model.state_dict())
    tensors |= {_WEIGHTS + name: value for name, value in model.state_dict().items()}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{_MOMENTS}{key}/{name}"] = value
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def save_last(path: Path, model: Model, average: Average, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the run's state, whole or not at all."""
    checkpoint.save(path, pack(model, average, optimizer), average.model.card, {"progress": asdict(progress)})


def read_progress(path: Path) -> tuple[dict[str, Tensor], ModelCard, Progress]:
    """The tensors, the card and the progress that `save_last` wrote.

    Raises:
        CheckpointError: missing, broken, or without the state of a run (such as `best.safetensors`).
    """
    tensors, card, state = checkpoint.read(path)
    if not state or "progress" not in state:
        raise CheckpointError("holds weights but no training state; resume from last.safetensors, or use --weights", where=path)
    return tensors, card, Progress.from_dict(state["progress"], where=path)


def restore(
    tensors: Mapping[str, Tensor], model: Model, average: Average, optimizer: torch.optim.Optimizer, *, where: Path
) -> None:
    """Put the tensors of `pack` back, bit for bit.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    try:
        for prefix, network in ((_WEIGHTS, model), ("", average.model)):
            network.load_state_dict({name: tensors[prefix + name] for name in network.state_dict()})
        keys = {name.removeprefix(_MOMENTS).split("/", 1)[0] for name in tensors if name.startswith(_MOMENTS)}
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                found = {key: tensors[f"{_MOMENTS}{key}/{name}"] for key in keys if f"{_MOMENTS}{key}/{name}" in tensors}
                if found:
                    optimizer.state[parameter] = {key: _like(value, parameter) for key, value in found.items()}
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"does not hold the state of this model ({error}); was it trained with other options?", where=where
        ) from error


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` on the parameter's device and, for a moment, in its memory order: the fused kernels walk both together."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
