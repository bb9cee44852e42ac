"""Checkpoints: one safetensors file with the weights, the model's card and, in training, the state of the run.

    metadata "pelagia"   the card (`core.card`), JSON
    metadata "state"     anything else of a training run, JSON, optional
    tensors              the model's, under their own names; names that begin with `train/` belong to the training loop

Nothing in the file is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from pelagia.core.card import ModelCard
from pelagia.core.files import write_bytes
from pelagia.core.lazy import resolve
from pelagia.errors import CheckpointError, OptionError
from pelagia.models.model import Model
from pelagia.models.registry import create, entry

__all__ = ["CARD_KEY", "STATE_KEY", "TRAIN_PREFIX", "build", "load", "read", "save"]

CARD_KEY = "pelagia"
STATE_KEY = "state"
#: Tensors of the training loop; `load` leaves them aside.
TRAIN_PREFIX = "train/"


def save(path: str | Path, model: Model | Mapping[str, Tensor], card: ModelCard, state: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint, whole or not at all.

    Tensors that share memory are written as copies. `state` must consist of JSON values; floats survive to the bit.

    Raises:
        OptionError: the file cannot be written.
        CheckpointError: `state` is not JSON, or a NaN stands in the card.
    """
    tensors = model.state_dict() if isinstance(model, Model) else model
    try:
        metadata = {CARD_KEY: card.to_json()}
        if state is not None:
            metadata[STATE_KEY] = json.dumps(state, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the card or the training state cannot be written as JSON ({error})", where=path) from error
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_bytes(path, _in_order(serialise(plain, metadata=metadata)))


def _in_order(data: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes them in random order, and equal runs should give equal bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read(path: str | Path) -> tuple[dict[str, Tensor], ModelCard, dict[str, Any] | None]:
    """All tensors on the CPU, the card, and the training state if there is one.

    Raises:
        CheckpointError: the file is missing, cut short, or not a checkpoint of Pelagia.
    """
    if not Path(path).is_file():
        raise CheckpointError("there is no such file", where=path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"this is not a safetensors file, or it is cut short ({error}); copy it again from where it came", where=path
        ) from error
    if CARD_KEY not in metadata:
        raise CheckpointError(
            "a safetensors file, but without the card of a Pelagia model; expected one written here", where=path
        )
    card = ModelCard.from_json(metadata[CARD_KEY], where=str(path))
    try:
        state = json.loads(metadata[STATE_KEY]) if STATE_KEY in metadata else None
    except ValueError as error:
        raise CheckpointError(f"the training state is not JSON ({error})", where=path) from error
    return tensors, card, state


def load(path: str | Path) -> Model:
    """The model of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: as `read`, or the weights do not fit the model that the card names.
    """
    tensors, card, _ = read(path)
    return build(tensors, card, where=path)


def build(tensors: Mapping[str, Tensor], card: ModelCard, *, where: str | Path | None = None) -> Model:
    """The model that `card` describes with the weights `tensors`, in evaluation mode.

    Raises:
        CheckpointError: the card names an unknown model or option, or names, shapes or number types do not fit.
    """
    try:
        # First what the model is built on, which makes its constants once, and not on that device.
        resolve(entry(card.name).builder.partition(":")[0], purpose="build a model")
        # On the meta device: the fresh weights would be drawn, and the global generator moved, only to be overwritten.
        with torch.device("meta"):
            model = create(card.name, card.categories, card.task, input_size=card.input_size, options=card.options)
    except OptionError as error:
        raise CheckpointError(f"this version of Pelagia cannot build the model ({error.reason})", where=where) from error
    expected = model.state_dict()
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}  # options freeze some
    found = {name: value for name, value in tensors.items() if not name.startswith(TRAIN_PREFIX)}
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape)
    if missing or surplus or wrong:
        raise CheckpointError(
            f"the weights do not fit {card.name} ({card.task}): {_few('missing', missing)}; {_few('unknown', surplus)}; "
            f"{_few('of another shape', wrong)}",
            where=where,
        )
    values = {name: value.to(expected[name].dtype).clone() for name, value in found.items()}
    if any(buffer.is_meta for name, buffer in model.named_buffers() if name not in expected):
        # Constants that no checkpoint holds, such as the tables of timm's Swin Transformers, are made with the weights only.
        with torch.random.fork_rng(devices=[]):
            model = create(card.name, card.categories, card.task, input_size=card.input_size, options=card.options)
    model.load_state_dict(values, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns[name])
    model.card = card
    return model.eval()


def _few(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
