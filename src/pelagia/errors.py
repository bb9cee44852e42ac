"""The exceptions of Pelagia.

    PelagiaError
    ├── OptionError              an option or argument has a value that cannot be used
    ├── MissingExtraError        an optional part is not installed; the message names the extra
    ├── DataError                something in the user's data is wrong
    │   ├── FormatError          an annotation file breaks its format, or no format fits
    │   ├── ImageError           an image is missing, broken, too large or of an unknown kind
    │   └── LabelError           an annotation's values are impossible
    ├── ModelError               a model cannot be built or used as asked
    │   ├── CheckpointError      a weights file is missing, broken or of another model
    │   └── UnsafeCheckpointError  a foreign checkpoint asks to call something it must not
    ├── TrainingError            training cannot start or go on
    │   └── NonFiniteLossError   the loss became NaN or infinite
    ├── ExportError              an export failed or did not agree with the model
    └── EvaluationError          predictions and truth do not fit together

Every message says what was wrong, where (file, line, id), what was expected and what to do. `where` holds the place apart
from the sentence so that a table can show it.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CheckpointError",
    "DataError",
    "EvaluationError",
    "ExportError",
    "FormatError",
    "ImageError",
    "LabelError",
    "MissingExtraError",
    "ModelError",
    "NonFiniteLossError",
    "OptionError",
    "PelagiaError",
    "TrainingError",
    "UnsafeCheckpointError",
]


class PelagiaError(Exception):
    """Base of every error that Pelagia raises on purpose.

    `where` is a file, optionally with a line number or an id (`labels/a.txt:3`, `annotations.json#17`); the printed message
    begins with it.
    """

    def __init__(self, message: str, *, where: str | Path | None = None) -> None:
        self.where = None if where is None else str(where)
        self.reason = message
        super().__init__(message if self.where is None else f"{self.where}: {message}")


class OptionError(PelagiaError):
    """An option or argument has a value that cannot be used."""


class MissingExtraError(PelagiaError):
    """An optional part of Pelagia is not installed."""


class DataError(PelagiaError):
    """Something in the user's data is wrong."""


class FormatError(DataError):
    """An annotation file breaks its format, or no known format fits."""


class ImageError(DataError):
    """An image is missing, broken, too large, or of an unknown kind."""


class LabelError(DataError):
    """An annotation's values are impossible."""


class ModelError(PelagiaError):
    """A model cannot be built or used as asked."""


class CheckpointError(ModelError):
    """A weights file is missing, broken, or belongs to another model."""


class UnsafeCheckpointError(CheckpointError):
    """A foreign checkpoint asks to call something that rebuilding tensors does not need."""


class TrainingError(PelagiaError):
    """Training cannot start or cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite; the batch was saved for inspection."""


class ExportError(PelagiaError):
    """An export failed, or its outputs did not agree with the model's."""


class EvaluationError(PelagiaError):
    """Predictions and truth do not fit together."""
