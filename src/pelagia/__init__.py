"""Pelagia: object detection and segmentation for ocean imaging.

    import pelagia
    data = pelagia.open_dataset("annotations.json")
    run = pelagia.train("yolo11n", data, epochs=100)
    found = pelagia.load(run.folder).predict("slide.tif")

The names live in `pelagia.api` and are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelagia.api import Predictor, create_model, evaluate, list_models, load, open_dataset, train

__version__ = "0.1.0.dev0"

__all__ = ["Predictor", "__version__", "create_model", "evaluate", "list_models", "load", "open_dataset", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pelagia' has no attribute {name!r}")
    return getattr(import_module("pelagia.api"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
