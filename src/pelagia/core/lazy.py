"""The one place where a heavy or optional module is imported late.

Base commands must start fast and must work without the tensor side, so `api`, `cli` and a few hot loops ask here for what
they need at the moment they need it. Nothing else in the package imports inside a function.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from pelagia.errors import MissingExtraError

__all__ = ["EXTRAS", "installed", "resolve"]

#: Top-level module -> the extra of Pelagia that installs it.
EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "timm": "train",
    "safetensors": "train",
    "onnx": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "nncf": "openvino",
    "tensorboard": "track",
    "wandb": "track",
    "mlflow": "track",
    "albumentations": "albumentations",
    "fastapi": "serve",
    "uvicorn": "serve",
    "starlette": "serve",
    "ray": "scale",
    "zarr": "zarr",
}


def resolve(name: str, *, purpose: str) -> ModuleType:
    """Import the module `name` now, or say which extra brings it.

    `purpose` completes the sentence "... is needed to <purpose>".

    Raises:
        MissingExtraError: the module, or one that it imports, belongs to an extra that is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).split(".")[0]
        extra = EXTRAS.get(missing)
        if extra is None:
            raise
        raise MissingExtraError(
            f"{missing} is needed to {purpose}, and it is not installed. Install it with: pip install 'pelagia[{extra}]'"
        ) from error


def installed(name: str) -> bool:
    """Whether there is a top-level module `name`, which is not imported."""
    return importlib.util.find_spec(name) is not None
