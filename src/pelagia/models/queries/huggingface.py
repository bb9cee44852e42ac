"""Weights of Hugging Face transformers as the models of this wing: `model.safetensors` or `pytorch_model.bin`.

Each model has a module with `recognises(names)` and `load(tensors, path)`. Class names come from `config.json` in the same
folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pelagia.models.model import Model
from pelagia.models.queries import detr_weights, mask2former_weights

__all__ = ["load", "recognises"]


class _Reader(Protocol):
    """A module that knows the tensors of one model."""

    def recognises(self, names: set[str]) -> bool: ...
    def load(self, tensors: Mapping[str, Tensor], path: Path) -> Model: ...


_READERS: tuple[_Reader, ...] = (detr_weights, mask2former_weights)


def recognises(content: Any) -> bool:
    """Whether the content of a file is a state dictionary of a model that is known."""
    return _reader(content) is not None


def load(content: Mapping[Any, Any], path: Path) -> Model:
    """The model in the `content` of a file, in evaluation mode, float32.

    Raises:
        CheckpointError: the weights do not fit the model whose names they have.
    """
    reader = _reader(content)
    assert reader is not None
    return reader.load({str(name): value for name, value in content.items() if isinstance(value, Tensor)}, path)


def _reader(content: Any) -> _Reader | None:
    if not isinstance(content, Mapping):
        return None
    names = {str(name) for name, value in content.items() if isinstance(value, Tensor)}
    return next((reader for reader in _READERS if reader.recognises(names)), None)
