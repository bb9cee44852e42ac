"""The card of a model: everything about it that is not a weight.

The same JSON object stands in a checkpoint and in the metadata of an exported file, so that a model predicts alike whatever
runs it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pelagia.core.types import IGNORE_INDEX, TASKS, Category, Task
from pelagia.errors import CheckpointError, ModelError

__all__ = ["CARD_VERSION", "ModelCard", "Normalisation"]

#: Raised when the meaning of a field changes; a newer card than the package knows is refused.
CARD_VERSION = 1


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How stored intensities become network input: clip((v - low) / (high - low), 0, 1), then (v - mean) / std per channel.

    The window is fixed for a model, never taken from an image or a tile: `high` is 255 for 8-bit data and is measured once on
    the training set for 16-bit data.
    """

    low: float = 0.0
    high: float = 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class ModelCard:
    """What a model is and how to use it.

    Args:
        name: the registry's name, such as `yolo11n`.
        task: what it answers.
        decoder: the wing whose function in `pelagia.decode` turns its raw outputs into objects (`grids`, ...).
        categories: the classes, with the ids of the training data.
        input_size: height and width in pixels that the network sees.
        stride: input sides are multiples of it.
        margin: pixels along each border of the input that are context only and get no answer; an image is fitted inside and
            mirrored outwards (the overlap-tile strategy of the U-Net paper).
        masks_padding: the model is told which part of the input is image (`valid`), which then lies in the upper left corner.
        options: the model's own options, as JSON values.
        normalisation: intensities -> network input.
        thresholds: per class name, the score from which an object counts (best F1 on validation); empty if not chosen.
        calibration: the map that turns scores into probabilities of being right, as `metrics.scaling.ScoreMap.to_dict` writes it,
            fitted on validation; empty if not fitted. `thresholds` hold for scores before it.
        licence: of the weights, an SPDX name or a sentence.
        source: where the weights came from.
        manifest: facts of the training run (data hash, versions, seed, metrics).

    Raises:
        ModelError: more than 255 classes where each pixel gets one: a class map has 8 bits, and 255 is no class.
    """

    name: str
    task: Task
    decoder: str
    categories: tuple[Category, ...]
    input_size: tuple[int, int]
    stride: int = 32
    margin: int = 0
    masks_padding: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    normalisation: Normalisation = field(default_factory=Normalisation)
    thresholds: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    source: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    version: int = CARD_VERSION

    def __post_init__(self) -> None:
        if len(self.categories) > IGNORE_INDEX and (self.task == "semantic" or self.decoder == "pixels"):
            raise ModelError(
                f"{len(self.categories)} classes, but a class map holds {IGNORE_INDEX} at most ({IGNORE_INDEX} = no class); "
                "use a model of fewer classes, or one of segments (panoptic)",
                where=self.name,
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order."""
        return tuple(category.name for category in self.categories)

    def to_json(self) -> str:
        """One JSON object, keys sorted, no line breaks."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, where: str = "model card") -> ModelCard:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: not a card, a newer version, a field missing or of the wrong type, or what `ModelCard` refuses.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"the model card is not JSON ({error})", where=where) from error
        if not isinstance(values, dict) or "name" not in values:
            raise CheckpointError("this is not a model card of Pelagia", where=where)
        if values.get("version", 0) > CARD_VERSION:
            raise CheckpointError(
                f"written by a newer Pelagia (card version {values['version']}, this one reads {CARD_VERSION}); upgrade pelagia",
                where=where,
            )
        known = {item.name for item in fields(cls)}
        try:
            values = {key: value for key, value in values.items() if key in known}
            if values["task"] not in TASKS:
                raise CheckpointError(f"unknown task {values['task']!r}, expected one of {', '.join(TASKS)}", where=where)
            values["categories"] = tuple(
                Category(
                    **{
                        **item,
                        "keypoints": tuple(item.get("keypoints", ())),
                        "skeleton": tuple((int(a), int(b)) for a, b in item.get("skeleton", ())),
                        "flip": tuple(item.get("flip", ())),
                    }
                )
                for item in values["categories"]
            )
            if not isinstance(values.get("calibration", {}), dict):
                raise CheckpointError("the field calibration must be an object, empty if there is no score map", where=where)
            height, width = values["input_size"]
            values["input_size"] = (int(height), int(width))
            window: dict[str, Any] = values.get("normalisation", {})
            window = {key: tuple(value) if isinstance(value, list) else value for key, value in window.items()}
            values["normalisation"] = Normalisation(**window)
            return cls(**values)
        except ModelError as error:
            raise CheckpointError(error.reason, where=where) from error
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the model card misses or misstates a field ({error})", where=where) from error
