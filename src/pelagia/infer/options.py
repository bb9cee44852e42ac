"""What a user may choose about prediction."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pelagia.core.card import ModelCard
from pelagia.core.image import MAX_PIXELS
from pelagia.decode import DecodeOptions
from pelagia.errors import OptionError

__all__ = ["PredictOptions"]


@dataclass(frozen=True)
class PredictOptions:
    """How objects are found in images.

    A field whose metadata say `speed_only` changes no result, one that `refuses_only` changes which images have one; all others
    are part of what a result is known by, see `identity`.

    Raises:
        OptionError: a value cannot be used.
    """

    score: float | None = field(
        default=None,
        metadata={"help": "Objects below it are left out; by default each class's own threshold in the model, else 0.25."},
    )
    # AP gains from keeping overlapping candidates (evaluation uses 0.7); a count does not: measured F1 is higher at 0.5.
    nms_iou: float = field(default=0.5, metadata={"help": "Of two objects of a class that overlap more, the weaker goes."})
    most: int = field(default=0, metadata={"help": "Most objects per image, the strongest; 0 for all."})
    agnostic: bool = field(default=False, metadata={"help": "Of two overlapping objects the weaker goes whatever their classes."})
    tiling: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"help": "Cut large images into tiles; auto: when a side exceeds 1.5 tiles."}
    )
    tile: int = field(
        default=0,
        metadata={"help": "Side of a tile in image pixels; 0 for the size of the images that the model was trained on."},
    )
    overlap: float = field(
        default=0.2,
        metadata={"help": "Least overlap of tiles as a share of their side; widened to 1.5 times the model's typical object."},
    )
    blend: Literal["auto", "exact", "hann", "cut"] = field(
        default="auto",
        metadata={
            "help": "How tiles become one class map: exact (as the whole scan, where the network is local), hann (averaged "
            "where they overlap), cut (the deepest tile answers); auto: exact where it costs at most fourfold, else hann."
        },
    )
    probabilities: bool = field(
        default=False,
        metadata={"help": "Of class maps keep the probability of every class too (probabilities/: a TIFF page a class)."},
    )
    map_format: Literal["tiff", "zarr"] = field(
        default="tiff",
        metadata={"help": "How class maps of tiled images are stored: tiff, or zarr (OME-Zarr, with the probabilities in it)."},
    )
    batch: int = field(default=8, metadata={"help": "Images or tiles per step.", "speed_only": True})
    coarse: bool = field(
        default=False,
        metadata={"help": "Look at a tiled image again, shrunk, for objects longer than the overlap; they replace their pieces."},
    )
    calibrated: bool = field(
        default=False,
        metadata={"help": "Turn scores into probabilities by the map stored in the model; thresholds stay those of raw scores."},
    )
    max_pixels: int = field(
        default=MAX_PIXELS,
        metadata={
            "help": "Refuse a larger image that must be decoded whole, or a larger piece of one in tiles, strips or chunks.",
            "refuses_only": True,
        },
    )

    def __post_init__(self) -> None:
        for name in ("score", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{name} must lie in 0 to 1, got {value}")
        if not 0 <= self.overlap <= 0.8:
            raise OptionError(f"overlap must lie in 0 to 0.8, got {self.overlap}")
        if self.batch < 1 or self.most < 0 or self.tile < 0:
            raise OptionError("batch must be at least 1, most and tile at least 0")
        if self.max_pixels < 1:
            raise OptionError(f"max_pixels must be at least 1, got {self.max_pixels}")
        if self.tiling not in ("auto", "always", "never"):
            raise OptionError(f"tiling must be auto, always or never, got {self.tiling!r}")
        if self.blend not in ("auto", "exact", "hann", "cut"):
            raise OptionError(f"blend must be auto, exact, hann or cut, got {self.blend!r}")
        if self.map_format not in ("tiff", "zarr"):
            raise OptionError(f"map_format must be tiff or zarr, got {self.map_format!r}")

    def decoding(self, card: ModelCard) -> DecodeOptions:
        """What decoding needs; the card's thresholds hold unless `score` is given."""
        return DecodeOptions(
            score=0.25 if self.score is None else self.score,
            class_scores=dict(card.thresholds) if self.score is None else {},
            nms_iou=self.nms_iou,
            most=self.most,
            agnostic=self.agnostic,
            scores=self.probabilities,
        )

    def identity(self) -> dict[str, Any]:
        """The options on which a result depends, those that are not the default: results with equal ones are comparable."""
        kept = [item for item in fields(self) if not item.metadata.keys() & {"speed_only", "refuses_only"}]
        return {item.name: getattr(self, item.name) for item in kept if getattr(self, item.name) != item.default}

    def limits(self) -> dict[str, Any]:
        """The options that decide which images are refused: one that was is tried again with others."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.metadata.get("refuses_only")}
