"""The folder of a run: what went in, what came out, and enough to repeat it.

config.json          the options; `pelagia train --config` repeats the run with them
run.json             content hash of the data, versions, device, the choices that `auto` stood for, weights started from
split.json           names of the training and validation images
skipped.json         what the reader or the loader left out or corrected, if anything
metrics.jsonl        one record per epoch
log.txt              what was said
curves.png, train_batch.png, val_predictions.png
last.safetensors     the whole state; `--resume` goes on from it
best.safetensors     the averaged weights of the epoch with the best AP (mIoU, PQ), with the best score threshold of each class
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import pelagia
from pelagia.core import files
from pelagia.core import image as core_image
from pelagia.core.types import Category, Prediction
from pelagia.data.dataset import Dataset
from pelagia.errors import OptionError
from pelagia.report.plots import training_curves
from pelagia.train.batch import Batch
from pelagia.train.options import CONFIG_NAME, TrainOptions
from pelagia.train.pictures import batch_truths, contact_sheet, picture, stored_images, truth_of

__all__ = ["Run", "RunFolder", "default_folder", "device_name", "versions"]

#: Most pictures of a batch.
_MOST_PICTURES = 16

#: At least so many seconds between two drawings, but for the last.
PAUSE_S = 60.0


@dataclass(frozen=True)
class Run:
    """What a training came to.

    Args:
        folder: of the run.
        best: the checkpoint to use.
        last: the checkpoint to resume from.
        epochs: finished ones.
        stopped: `finished` all epochs, `early` for lack of progress, or `interrupted`.
        metrics: the record of the best epoch.
        history: one record per epoch.
        seconds: spent in training and validation.
    """

    folder: Path
    best: Path
    last: Path
    epochs: int
    stopped: Literal["finished", "early", "interrupted"]
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    seconds: float


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what numbers depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "pelagia": pelagia.__version__}
    found["torch"] = str(torch.__version__)  # with the build, which numbers depend on as well
    for name in ("torchvision", "numpy", "opencv-python-headless", "safetensors", "timm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def default_folder(options: TrainOptions, dataset: Dataset, root: Path = Path("runs")) -> Path:
    """runs/<model>-<data>, with -2, -3, ... while a folder of that name exists."""
    source = Path(options.data) if options.data else dataset.root
    stem = source.stem if source.suffix else source.name
    stem = stem if stem not in ("", ".", "annotations", "data") else source.resolve().parent.name
    base = root / f"{options.model}-{stem}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


class RunFolder:
    """Writes the files of a run. In processes that are not the `first` every method does nothing."""

    def __init__(self, path: Path, *, first: bool = True, quiet: bool = False) -> None:
        self.path, self.first, self.quiet = path, first, quiet
        self._drawn = time.monotonic()
        self._later: dict[str, Callable[[], object]] = {}

    @property
    def last(self) -> Path:
        """The checkpoint that a resumed run starts from."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.path / "best.safetensors"

    def begin(self, options: TrainOptions, *, resumed: bool) -> None:
        """Make the folder and write `config.json`.

        Raises:
            OptionError: the folder holds a run already.
        """
        if not self.first:
            return
        if not resumed and (self.path / CONFIG_NAME).exists():
            raise OptionError(
                f"this folder holds a run already; go on with it by --resume {self.path}, or name another --out", where=self.path
            )
        files.write_json(self.path / CONFIG_NAME, {**options.to_dict(), "resume": ""}, indent=2)

    def say(self, text: str) -> None:
        """One sentence for the user, kept in `log.txt`."""
        if not self.first:
            return
        if not self.quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "log.txt").open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def write(self, name: str, value: Any) -> None:
        """A JSON file of the run."""
        if self.first:
            files.write_json(self.path / name, value, indent=2)

    def metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """All records anew, whole or not at all: after a kill the file never runs ahead of the checkpoint by half a line."""
        if self.first:
            lines = [json.dumps(record, allow_nan=False) + "\n" for record in history]
            files.write_text(self.path / "metrics.jsonl", "".join(lines))

    def curves(self, history: Sequence[Mapping[str, Any]]) -> None:
        """`curves.png` from the records; drawn later if something was drawn a short while ago."""
        if self.first and history:
            self._later["curves"] = lambda: training_curves(history, self.path / "curves.png")
            self.draw(pause_s=PAUSE_S)

    def draw(self, *, pause_s: float = 0.0) -> None:
        """Draw what waits to be drawn, unless something was drawn less than `pause_s` seconds ago.

        A plot takes half a second, on small data as long as an epoch; so pictures are not made anew after every epoch.
        """
        if time.monotonic() - self._drawn >= pause_s:
            for work in self._later.values():
                work()
            self._later.clear()
            self._drawn = time.monotonic()

    def batch_picture(self, batch: Batch, categories: Sequence[Category], name: str = "train_batch.png") -> Path:
        """The images of a batch with their labels, as the network gets them."""
        path = self.path / name
        if self.first:
            shown = zip(stored_images(batch)[:_MOST_PICTURES], batch_truths(batch.targets), strict=False)
            core_image.write(path, contact_sheet([picture(image, truth, categories) for image, truth in shown]))
        return path

    def predictions(self, dataset: Dataset, found: Sequence[Prediction]) -> None:
        """`val_predictions.png`: pairs of truth (left) and prediction (right) of the first images; drawn later as `curves`."""

        def work() -> None:
            pairs = [(index, each) for index, item in enumerate(found) for each in (truth_of(dataset, index), item)]
            pictures = [picture(dataset.image(index), each, dataset.categories) for index, each in pairs]
            core_image.write(self.path / "val_predictions.png", contact_sheet(pictures, columns=4))

        if self.first:
            self._later["predictions"] = work
            self.draw(pause_s=PAUSE_S)

    def save_bad_batch(self, batch: Batch, categories: Sequence[Category], step: int, rank: int) -> Path:
        """The batch whose loss was not finite, as arrays (`.npz`) and as a picture."""
        base = self.path / f"nonfinite_step{step}_rank{rank}"
        targets = batch.targets
        arrays: dict[str, NDArray[Any]] = {
            "images": np.stack(stored_images(batch)),
            "batch": targets.batch.numpy(),
            "labels": targets.labels.numpy(),
            "boxes": targets.boxes.numpy(),
            "names": np.array(batch.names),
        }
        if targets.oriented is not None:
            arrays["oriented"] = targets.oriented.numpy()
        with files.atomic_write(base.with_suffix(".npz")) as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        RunFolder(self.path).batch_picture(batch, categories, base.with_suffix(".png").name)
        return base.with_suffix(".npz")


def device_name(device: torch.device) -> str:
    """What runs the network, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"
