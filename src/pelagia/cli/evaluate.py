"""`pelagia evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pelagia.api import Predictor, load
from pelagia.cli.common import Json, print_json, say
from pelagia.cli.datasets import NO_FLAGS, DataFlags
from pelagia.core.files import write_json
from pelagia.core.lazy import resolve
from pelagia.data.dataset import Dataset
from pelagia.errors import OptionError
from pelagia.infer.evaluate import EvaluateOptions, choose_thresholds, predict_dataset, score
from pelagia.infer.read_predictions import read_predictions
from pelagia.metrics.result import DetectionResult
from pelagia.report.detection import detection_sections
from pelagia.report.html import write_report
from pelagia.report.plots import detection_plots

__all__ = ["evaluate"]


@dataclass(frozen=True)
class _Flags:
    split: str = field(
        default="", metadata={"help": "Images of this split; by default val where the data have it, else all. 'all' for all."}
    )
    out: Path | None = field(default=None, metadata={"help": "Folder for evaluation.json, plots and an HTML report."})
    save_thresholds: bool = field(
        default=False, metadata={"help": "Store each class's score of best F1 in the checkpoint; `predict` then uses it."}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1 or mps."})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 for all cores."})


_FLAGS, _OPTIONS = _Flags(), EvaluateOptions()


def evaluate(
    source: str,
    truth: Path,
    /,
    *,
    flags: Annotated[_Flags, Parameter(name="*")] = _FLAGS,
    data: Annotated[DataFlags, Parameter(name="*")] = NO_FLAGS,
    options: Annotated[EvaluateOptions, Parameter(name="*")] = _OPTIONS,
    json: Json = False,
) -> int:
    """Score a model, or predictions in a file, against the truth.

    Prints COCO's twelve numbers, AP without the cut at 100 predictions per image, and for each class AP and the score of best F1.

    Args:
        source: A run folder, a checkpoint, an .onnx, a foreign .pt; or a .json of predictions (COCO results, or from `predict`).
        truth: The labelled images: an annotation file or a folder.
    """
    from_file = source.lower().endswith(".json")
    if flags.save_thresholds and from_file:
        raise OptionError("--save-thresholds needs a checkpoint, not a file of predictions", where=source)
    predictor = None if from_file else load(source, device=flags.device, threads=flags.threads)
    dataset = _choose(data.open(truth, None if predictor is None else predictor.card.task), flags.split)
    for finding in dataset.findings:
        if finding.severity != "info":
            say(f"pelagia: {finding}")
    if predictor is None:
        # Boxes are compared unless the truth is oriented: the files carry no masks.
        dataset = dataset.with_task("oriented" if dataset.task == "oriented" else "detect")
        predictions, others = read_predictions(source, dataset)
        if others:
            say(f"left out: predictions for {len(others)} images that the truth does not have, such as {others[0]}")
        result = score(dataset, predictions)
    else:
        predictions = predict_dataset(predictor.runtime, dataset, options, show=False if json else None)
        result = score(dataset, predictions, predictor.card.task)
    if json:
        print_json(result.to_dict(curves=False))
    else:
        print("\n".join(result.lines()))
    if flags.out is not None:
        path = _write(flags.out, result, f"{source} on {truth}")
        say(f"report: {path}")
    if flags.save_thresholds and predictor is not None:
        thresholds = choose_thresholds(dataset, predictions, predictor.card.task)
        _save_thresholds(predictor, thresholds)
        say(f"thresholds of {len(thresholds)} classes stored in {predictor.path}")
    return 0


def _choose(dataset: Dataset, name: str) -> Dataset:
    if name == "all" or (not name and "val" not in dataset.splits):
        return dataset
    chosen = dataset.split(name or "val")
    say(f"split {name or 'val'}: {len(chosen)} of {len(dataset)} images")
    return chosen


def _write(folder: Path, result: DetectionResult, subtitle: str) -> Path:
    write_json(folder / "evaluation.json", result.to_dict(), indent=2)
    plots = detection_plots(result, folder)
    return write_report(folder / "report.html", "Evaluation", detection_sections(result, plots), subtitle=subtitle)


def _save_thresholds(predictor: Predictor, thresholds: dict[str, float]) -> None:
    path = predictor.path
    if path is None or path.suffix != ".safetensors":
        raise OptionError("thresholds can be stored in a checkpoint (.safetensors) of this package only", where=path)
    checkpoint: Any = resolve("pelagia.models.checkpoint", purpose="store thresholds")
    tensors, card, state = checkpoint.read(path)
    checkpoint.save(path, tensors, replace(card, thresholds=thresholds), state)
