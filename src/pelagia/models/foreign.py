"""Checkpoints of other projects as models of this one.

Each family of files has a module with two functions: `recognises(content)`, and `load(content, path)` that renames tensors, finds
the model whose names and shapes they fit, and writes its card. A pickled file is read by `models.torchfile`, which executes
nothing in it. Weights keep their licence, which the card records; this package ships none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

from safetensors import SafetensorError, safe_open

from pelagia.core.lazy import resolve
from pelagia.errors import CheckpointError
from pelagia.models import checkpoint
from pelagia.models.model import Model
from pelagia.models.torchfile import read_torch_file

__all__ = ["load_any", "load_foreign"]


class _Family(Protocol):
    """A module that knows one family of files."""

    def recognises(self, content: Any) -> bool: ...
    def load(self, content: Any, path: Path) -> Model: ...


#: Modules, asked in turn; the first that recognises a file loads it. Each is imported when its turn comes: a YOLO11 needs nothing
#: of what the others are built on.
_FAMILIES = (
    "pelagia.models.grids.ultralytics",
    "pelagia.models.queries.huggingface",
    "pelagia.models.queries.detr_release",
    "pelagia.models.pixels.torchvision",
    "pelagia.models.regions.torchvision_files",
)
_KNOWN = (
    "YOLO11 of Ultralytics, DETR of its authors, DETR and Mask2Former of Hugging Face transformers, FCN and DeepLabV3 of "
    "torchvision, Faster, Mask and Keypoint R-CNN of torchvision"
)


def load_any(path: str | Path) -> Model:
    """The model in a checkpoint of this package, or in a file of another project.

    Raises:
        UnsafeCheckpointError: a foreign file asks to call something that rebuilding tensors does not need.
        CheckpointError: missing, broken, or of an unknown kind.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".bin") or (path.suffix == ".safetensors" and not _has_card(path)):
        return load_foreign(path)
    return checkpoint.load(path)


def load_foreign(path: str | Path) -> Model:
    """The model in a file of another project, in evaluation mode, float32: see the families above.

    Raises:
        UnsafeCheckpointError: the file asks to call something that rebuilding tensors does not need.
        CheckpointError: it is of no known family, or its weights fit none of the models.
    """
    path = Path(path)
    content = _safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    for name in _FAMILIES:
        family = cast(_Family, resolve(name, purpose="read a checkpoint of another project"))
        if family.recognises(content):
            return family.load(content, path)
    if not isinstance(content, dict):
        raise CheckpointError(f"expected a dictionary in the file, found a {type(content).__name__}", where=path)
    keys = ", ".join(map(str, list(content)[:5]))
    raise CheckpointError(f"no weights found of a family that is known: {_KNOWN}; the file holds {keys}", where=path)


def _has_card(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="pt") as file:
            return checkpoint.CARD_KEY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return True  # let the reader of checkpoints say what is wrong


def _safetensors(path: Path) -> dict[str, Any]:
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
