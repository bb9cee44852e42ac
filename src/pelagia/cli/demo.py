"""`pelagia demo`: the whole way from labelled images to counted organisms, on a drawn survey whose truth is exact."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from pelagia.api import Predictor, load
from pelagia.cli.common import Json, print_json, say, table
from pelagia.core.draw import draw_instances
from pelagia.core.files import atomic_write
from pelagia.core.image import write
from pelagia.core.lazy import resolve
from pelagia.core.scan import open_scan
from pelagia.core.types import Instances, Int
from pelagia.data.augment import AugmentOptions
from pelagia.data.dataset import Dataset
from pelagia.data.open import open_dataset
from pelagia.data.synthetic import SurveyOptions, categories, draw_image, draw_survey
from pelagia.errors import OptionError
from pelagia.infer.evaluate import EvaluateOptions, predict_dataset, score
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import FileResult, predict_image
from pelagia.infer.results import ResultWriter
from pelagia.infer.views import objects_of
from pelagia.metrics.detection import evaluate_detection
from pelagia.metrics.result import DetectionResult
from pelagia.report.detection import detection_sections
from pelagia.report.html import Gallery, Heading, Numbers, Picture, Section, Table, Text, write_report
from pelagia.report.plots import counts_scatter, detection_plots
from pelagia.train.options import TrainOptions

__all__ = ["DemoOptions", "demo"]

#: Annotated pictures of held-out images, and the side in pixels of the piece of the scan that is shown at full size.
_PICTURES, _PIECE_PX = 6, 1000


@dataclass(frozen=True)
class DemoOptions:
    """Sizes of the demonstration; the defaults take under six minutes on two cores."""

    out: Path = field(default=Path("pelagia-demo"), metadata={"help": "Folder to write; numbered if it exists."})
    model: str = field(default="yolo11n", metadata={"help": "Model to train, see `pelagia models`."})
    images: int = field(default=320, metadata={"help": "Images to learn from; a tenth of them chooses the best epoch."})
    heldout: int = field(default=60, metadata={"help": "Images that training never sees."})
    imgsz: int = field(default=256, metadata={"help": "Side of the drawn images, and of what the network sees, in pixels."})
    epochs: int = field(default=24, metadata={"help": "Passes over the training images."})
    scan: tuple[int, int] = field(default=(6000, 4000), metadata={"help": "Width and height of the scan to count, in pixels."})
    seed: int = field(default=0, metadata={"help": "Seed of drawing and training."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1 or mps."})

    def __post_init__(self) -> None:
        if min(self.images, self.heldout) < 10 or min(self.scan) < self.imgsz:
            raise OptionError("the demo needs at least 10 images and 10 held out, and a scan not smaller than an image")


@dataclass(frozen=True)
class _Counted:
    """The scan: where it lies, what was found, and what is there."""

    path: Path
    found: Instances
    truth: Instances
    result: DetectionResult
    counts: Int
    seconds: float


_OPTIONS = DemoOptions()


def demo(*, options: Annotated[DemoOptions, Parameter(name="*")] = _OPTIONS, json: Json = False) -> int:
    """Draw a plankton survey, train on it, measure on held-out images, count a scan, and write a report.

    Nothing is downloaded. The last line names the report, one HTML file.
    """
    loop = resolve("pelagia.train.loop", purpose="run the demo")
    start = time.perf_counter()
    out = _free(options.out)

    say(f"Drawing {options.images + options.heldout} images of six plankton taxa, with exact labels, into {out}.")
    learn, held = _draw(options, out)

    say(f"Training {options.model} from random weights; this takes most of the time.")
    run = loop.train(_training(options, out), learn, quiet=json)
    if run.stopped == "interrupted":
        return 130
    trained = time.perf_counter() - start
    predictor = load(run.folder, device=options.device)

    say(f"Measuring on {len(held)} images that training never saw.")
    found = predict_dataset(predictor.runtime, held, EvaluateOptions(), show=False if json else None)
    result = score(held, found)
    pictures = _draw_heldout(out / "heldout", held, predictor)

    say(f"Drawing a scan of {options.scan[0]} x {options.scan[1]} pixels and counting it in overlapping tiles.")
    counted = _count_scan(options, out, predictor)
    rows = _count_rows(counted, learn.class_names)
    with atomic_write(out / "counts.csv", "w") as stream:
        csv.writer(stream, lineterminator="\n").writerows([_COLUMNS, *rows])

    say("Writing the report.")
    seconds = time.perf_counter() - start
    sections = _sections(options, out, (result, pictures), counted, rows, (trained, seconds))
    report = write_report(out / "report.html", "Pelagia demo: a drawn plankton survey", sections)
    if json:
        print_json(
            {
                "ap": result.ap,
                "ap50": result.ap50,
                "scan_ap50": counted.result.ap50_all,
                "counts": [dict(zip(_COLUMNS, row, strict=True)) for row in rows],
                "seconds": seconds,
                "report": str(report),
            }
        )
        return 0
    print(f"\nHeld-out images: AP50 {result.ap50:.3f}, AP {result.ap:.3f}.")
    print(f"Scan, counted in {counted.seconds:.0f} s:\n")
    print(table(_COLUMNS, rows))
    print(f"\nDone in {seconds:.0f} s. Open the report:\n{report.resolve()}")
    return 0


def _free(folder: Path) -> Path:
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _draw(options: DemoOptions, out: Path) -> tuple[Dataset, Dataset]:
    side = options.imgsz
    learn = draw_survey(out / "survey", options.images, options.seed, width=side, height=side)
    held = draw_survey(out / "survey-heldout", options.heldout, options.seed + 1, width=side, height=side)
    return open_dataset(learn, task="detect"), open_dataset(held, task="detect")


def _training(options: DemoOptions, out: Path) -> TrainOptions:
    return TrainOptions(
        model=options.model,
        task="detect",
        out=str(out / "run"),
        epochs=options.epochs,
        imgsz=options.imgsz,
        seed=options.seed,
        device=options.device,
        val_fraction=0.1,
        val_every=max(options.epochs // 4, 1),
        # Organisms under a microscope have no upright side.
        augment=AugmentOptions(flip_ud=0.5, quarter_turn=0.5),
    )


def _draw_heldout(folder: Path, held: Dataset, predictor: Predictor) -> list[tuple[Path, str]]:
    pictures = []
    for index in range(min(_PICTURES, len(held))):
        image = held.image(index)
        found = objects_of(predictor.predict(image), predictor.card)
        path = folder / f"{Path(held.names[index]).stem}.png"
        write(path, draw_instances(image, found, predictor.card.class_names))
        pictures.append((path, f"{held.names[index]}: {len(found)} found, {len(held.truth(index))} there"))
    return pictures


def _count_scan(options: DemoOptions, out: Path, predictor: Predictor) -> _Counted:
    width, height = options.scan
    drawing = draw_image(np.random.default_rng([options.seed, 2]), width, height)
    path = out / "scan.tif"
    write(path, drawing.image)
    start = time.perf_counter()
    with open_scan(path) as scan:
        found = objects_of(predict_image(predictor.runtime, scan), predictor.card)
        seconds = time.perf_counter() - start
        # AP needs the weak predictions too; the counts above are those of the thresholds that validation chose.
        weak = objects_of(predict_image(predictor.runtime, scan, PredictOptions(score=0.01)), predictor.card)
    with ResultWriter(out / "scan-results", predictor.card, model="run") as writer:
        writer.add(FileResult(path, width, height, found, seconds=seconds), path.name)
    names = predictor.card.class_names
    write(out / "scan-annotated.jpg", draw_instances(drawing.image, found, names, labels=False))
    write(out / "scan-piece.png", draw_instances(*_piece(drawing.image, found), names))
    truth = replace(drawing.truth, masks=None, oriented=None, keypoints=None)
    result = evaluate_detection([truth], [weak], categories(SurveyOptions()))
    classes = len(names)
    counts = np.stack([np.bincount(item.labels, minlength=classes) for item in (truth, found)])
    return _Counted(path, found, truth, result, counts, seconds)


def _piece(image: np.ndarray[Any, Any], found: Instances) -> tuple[np.ndarray[Any, Any], Instances]:
    """The middle of the scan at full size, with the objects whose centre lies in it."""
    height, width = image.shape[:2]
    x, y = max(width - _PIECE_PX, 0) // 2, max(height - _PIECE_PX, 0) // 2
    centres = (found.box_array[:, :2] + found.box_array[:, 2:]) / 2 - (x, y)
    inside = found.select(((centres > 0) & (centres < _PIECE_PX)).all(axis=1))
    return image[y : y + _PIECE_PX, x : x + _PIECE_PX], inside.replace(boxes=inside.box_array - (x, y, x, y))


_COLUMNS = ["taxon", "true", "counted", "difference", "difference %"]


def _count_rows(counted: _Counted, names: tuple[str, ...]) -> list[list[Any]]:
    totals = [("all", counted.counts.sum(axis=1))]
    rows = []
    for name, (true, found) in [*zip(names, counted.counts.T, strict=True), *totals]:
        share = f"{100 * (found - true) / true:+.1f}" if true else "-"
        rows.append([name, int(true), int(found), int(found - true), share])
    return rows


def _sections(
    options: DemoOptions,
    out: Path,
    heldout: tuple[DetectionResult, list[tuple[Path, str]]],
    counted: _Counted,
    rows: list[list[Any]],
    times: tuple[float, float],
) -> list[Section]:
    result, pictures = heldout
    width, height = options.scan
    plots = detection_plots(result, out / "plots")
    scatter = counts_scatter(
        counted.counts[0].tolist(), counted.counts[1].tolist(), out / "plots" / "counts.png", names=[row[0] for row in rows[:-1]]
    )
    return [
        Text(
            f"{options.images} images of {options.imgsz} x {options.imgsz} pixels were labelled by the program that drew them. "
            f"{options.model} learnt from them for {options.epochs} epochs, starting from random weights ({times[0]:.0f} s), was "
            f"measured on {result.images} other images, and counted a scan of {width} x {height} pixels. Everything together "
            f"took {times[1]:.0f} s."
        ),
        Numbers(
            [
                ("AP50, held out", f"{result.ap50:.3f}"),
                ("AP, held out", f"{result.ap:.3f}"),
                ("organisms on the scan", f"{rows[-1][1]:,}"),
                ("counted", f"{rows[-1][2]:,}"),
                ("AP50 on the scan", f"{counted.result.ap50_all:.3f}"),
            ]
        ),
        Heading("Counts on the scan"),
        Table(_COLUMNS, rows, "Each taxon above the score that gave the best F1 on validation images."),
        Gallery([Picture(scatter, "Counted over true numbers; on the line is a perfect count.")]),
        Gallery(
            [
                Picture(out / "scan-piece.png", f"The middle of the scan, {_PIECE_PX} pixels wide."),
                Picture(
                    out / "scan-annotated.jpg",
                    f"The whole scan, {counted.counts[1].sum():,} objects, in {counted.seconds:.0f} s.",
                ),
            ],
            wide=True,
        ),
        Heading("Held-out images"),
        Gallery([Picture(path, caption) for path, caption in pictures]),
        *detection_sections(result, plots),
        Heading("Training"),
        Gallery(
            [
                Picture(out / "run" / "curves.png", "Loss, score and learning rate over the epochs."),
                Picture(out / "run" / "train_batch.png", "Training images as the network sees them, with their labels."),
            ],
            wide=True,
        ),
    ]
