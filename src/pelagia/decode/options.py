"""Options of decoding, shared by all wings."""

from __future__ import annotations

from dataclasses import dataclass, field

from pelagia.errors import OptionError

__all__ = ["DecodeOptions"]


@dataclass(frozen=True)
class DecodeOptions:
    """What decoding keeps.

    Args:
        score: objects below it are left out.
        class_scores: per class name, overrides `score` (a checkpoint's chosen thresholds).
        nms_iou: of two objects of one class that overlap more than this, the weaker goes.
        most: at most so many objects per image, the strongest first; 0 for no limit.
        mask: a pixel belongs to a mask from this probability on.
        multi_label: let one position answer with several classes (exact metrics want it); otherwise its best class.
        agnostic: suppress across classes.
        scores: also keep the probabilities of all classes of a `SemanticMap`.
    """

    score: float = 0.25
    class_scores: dict[str, float] = field(default_factory=dict)
    nms_iou: float = 0.7
    most: int = 0
    mask: float = 0.5
    multi_label: bool = False
    agnostic: bool = False
    scores: bool = False

    def __post_init__(self) -> None:
        for name in ("score", "nms_iou", "mask"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise OptionError(f"{name} must lie in 0 to 1, got {value}")
        if self.most < 0:
            raise OptionError(f"most must be 0 (no limit) or positive, got {self.most}")
