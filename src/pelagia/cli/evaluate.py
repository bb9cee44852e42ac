"""`pelagia evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pelagia.cli.common import Json, print_json, say
from pelagia.cli.datasets import NO_FLAGS, DataFlags
from pelagia.core.files import read_json, write_json
from pelagia.core.lazy import resolve
from pelagia.core.oriented import OrientedConvention
from pelagia.core.types import Instances, Task
from pelagia.data.dataset import Dataset
from pelagia.errors import OptionError
from pelagia.infer.assess import (
    Assessment,
    AssessOptions,
    assess,
    certainty,
    certainty_dicts,
    certainty_lines,
    fit_calibration,
    rule_thresholds,
)
from pelagia.infer.coco_results import ResultsFile
from pelagia.infer.evaluate import (
    EvaluateOptions,
    counting_evidence,
    gather_evidence,
    noted,
    predict_dataset,
    tiles_note,
)
from pelagia.infer.objects import KINDS, federated_labels, truth_objects
from pelagia.infer.read_predictions import read_predictions
from pelagia.infer.runtimes import Precision, RuntimeKind
from pelagia.infer.sources import MapKind, is_model, is_predictions, map_kind
from pelagia.metrics.detection import Evidence
from pelagia.metrics.objects import Kind
from pelagia.metrics.taxonomy import Taxonomy
from pelagia.metrics.voc import VocEvidence, gather_voc

if TYPE_CHECKING:
    from pelagia.api import Predictor

__all__ = ["evaluate"]


@dataclass(frozen=True)
class _Flags:
    split: str = field(
        default="", metadata={"help": "Images of this split; by default val where the data have it, else all. 'all' for all."}
    )
    out: Path | None = field(default=None, metadata={"help": "Folder for evaluation.json, plots and an HTML report."})
    compare: Literal["auto", "boxes", "oriented", "masks", "keypoints", "label-images", "semantic", "panoptic"] = field(
        default="auto", metadata={"help": "What is compared; by default what predictions and labels both hold."}
    )
    against: str | None = field(
        default=None, metadata={"help": "Another model, or other predictions, for a paired test on the same images."}
    )
    rules: Literal["coco", "voc2007", "voc2010", "dota"] = field(
        default="coco", metadata={"help": "Beside COCO's numbers, AP by the rules of Pascal VOC or DOTA."}
    )
    max_dets: tuple[int, ...] = field(
        default=(), metadata={"help": "Most predictions per image and class, 0 for all; by default 1, 10, 100 and all."}
    )
    iou: tuple[float, ...] = field(default=(), metadata={"help": "IoU thresholds; by default 0.5, 0.55, ... 0.95."})
    lvis: bool = field(
        default=False,
        metadata={
            "help": "The labels say what was looked for (neg_category_ids), as LVIS does; 300 predictions per image count."
        },
    )
    taxonomy: Path | None = field(
        default=None, metadata={"help": "JSON file of {name: parent} for hierarchical scores; 'supercategory' counts by itself."}
    )
    agnostic: bool = field(
        default=False, metadata={"help": "Score once more with one class for everything: what mistaken classes alone cost."}
    )
    save_thresholds: bool = field(
        default=False,
        metadata={"help": "Store each class's threshold (see --threshold) in the checkpoint; `predict` then uses it."},
    )
    save_calibration: Literal["temperature", "platt", "isotonic"] | None = field(
        default=None,
        metadata={"help": "Fit this map of scores to probabilities and store it; `predict --calibrated` applies it."},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1 or mps."})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 for all cores."})
    runtime: RuntimeKind = field(
        default="auto",
        metadata={"help": "What runs the model; auto: torch for a checkpoint, ONNX Runtime for .onnx, OpenVINO for .xml."},
    )
    precision: Precision = field(
        default="float32", metadata={"help": "bfloat16 is faster in torch and OpenVINO on processors that have it."}
    )


_FLAGS, _OPTIONS, _ASSESS = _Flags(), EvaluateOptions(), AssessOptions()


def evaluate(
    source: str,
    truth: Path,
    /,
    *,
    flags: Annotated[_Flags, Parameter(name="*")] = _FLAGS,
    data: Annotated[DataFlags, Parameter(name="*")] = NO_FLAGS,
    options: Annotated[EvaluateOptions, Parameter(name="*")] = _OPTIONS,
    telling: Annotated[AssessOptions, Parameter(name="*")] = _ASSESS,
    json: Json = False,
) -> int:
    """Score a model, or predictions made by anything, against the truth.

    Prints COCO's numbers, AP without the cut at 100 predictions per image, and for each class AP and the score of best F1; what
    errors cost and how far scores can be believed with --errors, and in every report and JSON document.

    Args:
        source: A run folder, a checkpoint, an .onnx, an .xml, a foreign .pt; or predictions: COCO results or the results.json of
            `predict`, a folder of YOLO text files with scores, of DOTA's task files, or of label images; or a COCO panoptic
            .json.
        truth: The labelled images: an annotation file or a folder.
    """
    maps = map_kind(source, flags.compare)
    predictor = None if maps is not None else _load(source, flags)
    if predictor is not None and predictor.card.task in ("semantic", "panoptic"):
        maps = predictor.card.task
        if flags.compare not in ("auto", maps):
            raise OptionError(f"the model answers with {maps} maps, which cannot be compared as {flags.compare}", where=source)
    if maps is not None:
        _refuse_flags(flags, telling, maps, from_file=predictor is None)
        return _evaluate_maps(source, predictor, truth, maps, flags, data, options, telling, json=json)
    if predictor is None and (flags.save_thresholds or flags.save_calibration):
        raise OptionError("thresholds and calibration are stored in a checkpoint, not in predictions", where=source)
    task = None if predictor is None else predictor.card.task
    pictured = predictor is not None or flags.out is not None or flags.against is not None
    # Threads scan the predictions while the truth is opened.
    begun = ResultsFile(source) if predictor is None and Path(source).is_file() else None
    dataset = data.open(truth, task, keep_empty=predictor is None, find_images=pictured)
    dataset = _choose(dataset.in_order(), flags.split)
    for finding in dataset.findings:
        if finding.severity != "info":
            say(f"pelagia: {finding}")
    rules: dict[str, Any] = {}
    if flags.max_dets:
        rules["max_dets"] = flags.max_dets
    if flags.iou:
        rules["iou_thresholds"] = flags.iou
    if flags.lvis:
        rules |= {"federated": federated_labels(truth, dataset), "per_image": 300, "max_dets": flags.max_dets or (300,)}
    asked: Kind | None = None if flags.compare == "auto" else flags.compare  # type: ignore[assignment]  # maps are dealt with
    evidence, found, notes = _evidence(begun or source, predictor, dataset, asked, options, rules, data, quiet=json)
    other = None
    if flags.against is not None:
        kind = evidence.comparison.truth.kind
        other, _, _ = _evidence(flags.against, _load(flags.against, flags), dataset, kind, options, rules, data, quiet=json)
    tree = Taxonomy(_parents(flags.taxonomy)) if flags.taxonomy is not None else Taxonomy.of(dataset.categories)
    # A report and a JSON document tell everything; a table in the terminal what was asked for.
    whole = json or flags.out is not None
    told = replace(telling, errors=True) if whole else telling
    assessment = assess(
        evidence,
        told,
        sizes=dataset.sizes if whole else None,
        taxonomy=tree if flags.taxonomy or flags.agnostic or (tree.parents and whole) else None,
        voc=None if flags.rules == "coco" else partial(_by_voc, dataset, 2010 if flags.rules == "voc2010" else 2007),
        against=other,
    )
    assessment = replace(assessment, result=replace(assessment.result, notes=tuple(notes)))
    if json:
        print_json(assessment.to_dict(curves=False))
    else:
        print("\n".join(assessment.lines()))
    if flags.out is not None:
        say(f"report: {_write(flags.out, evidence, assessment, dataset, f'{source} on {truth}')}")
    if predictor is not None and found is not None:
        _store(predictor, dataset, found, flags, telling)
    return 0


def _by_voc(dataset: Dataset, year: Literal[2007, 2010], evidence: Evidence) -> VocEvidence:
    """The same predictions matched by the rules of VOC or DOTA, with the regions to ignore, which `evidence` has used up."""
    truth = truth_objects(dataset, evidence.comparison.truth.kind)
    return gather_voc(truth, evidence.comparison.predictions, dataset.categories, year=year)


def _refuse_flags(flags: _Flags, telling: AssessOptions, kind: MapKind, *, from_file: bool) -> None:
    """Options that say nothing about maps are not passed over in silence."""
    if kind == "panoptic" and from_file and flags.split and (flags.against is None or not is_model(flags.against)):
        raise OptionError("a panoptic file has no splits; name the file of the split")
    names = ("rules", "max_dets", "iou", "lvis", "taxonomy", "agnostic", "save_thresholds", "save_calibration")
    given = [name for name in names if getattr(flags, name) != getattr(_FLAGS, name)]
    if telling.threshold != _ASSESS.threshold:
        given.append("threshold")
    if given:
        raise OptionError(f"--{given[0].replace('_', '-')} is for scores of objects, not of label, semantic or panoptic maps")


def _load(source: str, flags: _Flags) -> Predictor | None:
    """The model; None for predictions, which need nothing of what runs models."""
    if is_predictions(source):
        return None
    how = {"device": flags.device, "threads": flags.threads, "precision": flags.precision}
    predictor: Predictor = resolve("pelagia.api", purpose="load a model").load(source, runtime=flags.runtime, **how)
    return predictor


def _choose(dataset: Dataset, name: str) -> Dataset:
    if name == "all" or (not name and "val" not in dataset.splits):
        return dataset
    chosen = dataset.split(name or "val")
    say(f"split {name or 'val'}: {len(chosen)} of {len(dataset)} images")
    return chosen


def _evidence(
    source: str | ResultsFile,
    predictor: Predictor | None,
    dataset: Dataset,
    kind: Kind | None,
    options: EvaluateOptions,
    rules: dict[str, Any],
    data: DataFlags,
    *,
    quiet: bool,
) -> tuple[Evidence, list[Instances] | None, list[str]]:
    """The evidence, and, if a model made them, the predictions and what is to be known of how it did."""
    if predictor is not None:
        own = KINDS.get(predictor.card.task)
        if kind is not None and kind != own:
            raise OptionError(f"the model answers with {own}, which cannot be compared as {kind}", where=predictor.card.name)
        notes, watch = noted(predictor.card, dataset, options, say)
        _say_tiles(notes)
        found = predict_dataset(predictor.runtime, dataset, options, show=False if quiet else None, watch=watch)
        return gather_evidence(dataset, found, predictor.card.task, **rules), found, notes
    angle: OrientedConvention | None = data.angle  # type: ignore[assignment]  # the reader of the truth has checked it
    predictions = read_predictions(source, dataset, kind, angle=angle)
    if predictions.unknown:
        count = len(predictions.unknown)
        say(f"left out: predictions for {count} images that the truth does not have, such as {predictions.unknown[0]}")
    if predictions.left_out:
        say(f"left out: {predictions.left_out} predictions of a category that marks regions to ignore")
    return gather_evidence(dataset, predictions.objects, **rules), None, []


def _say_tiles(notes: Sequence[str]) -> None:
    """Before the work begins, so that it can be stopped and begun otherwise."""
    for note in notes:
        say(f"{note}; --no-tiled shrinks them")


def _parents(path: Path) -> dict[str, str]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise OptionError("a taxonomy is a JSON object of name: parent, both text", where=path)
    return content


def _write(folder: Path, evidence: Evidence, assessment: Assessment, dataset: Dataset, subtitle: str) -> Path:
    report = resolve("pelagia.report.assessment", purpose="write a report")
    write_json(folder / "evaluation.json", assessment.to_dict(), indent=2)
    path: Path = report.write_evaluation(folder, evidence, assessment, dataset, subtitle=subtitle)
    return path


def _evaluate_maps(
    source: str,
    predictor: Predictor | None,
    truth: Path,
    kind: MapKind,
    flags: _Flags,
    data: DataFlags,
    options: EvaluateOptions,
    telling: AssessOptions,
    *,
    json: bool,
) -> int:
    """Label images, semantic maps and panoptic maps, from files or of a model."""
    other = _load(flags.against, flags) if flags.against is not None and is_model(flags.against) else None

    def open_truth(task: Task) -> Dataset:
        dataset = data.open(truth, task)
        for finding in dataset.findings:
            if finding.severity != "info":
                say(f"pelagia: {finding}")
        dataset = _choose(dataset, flags.split)
        for model in (predictor, other):
            if model is not None:
                _say_tiles(tiles_note(model.card, dataset, options))
        return dataset

    whole = json or flags.out is not None
    maps = resolve("pelagia.infer.maps", purpose="score maps")
    sources: list[Any] = [Path(source) if predictor is None else predictor.runtime]
    if flags.against is not None:
        sources.append(Path(flags.against) if other is None else other.runtime)
    how = maps.MapOptions(
        options,
        calibration=telling.errors or whole,
        show=False if json else None,
        tell=say,
    )
    scored = maps.evaluate_maps(sources, truth, kind, open_truth, how)
    for item in scored:
        if item.unknown:
            say(f"left out: predictions for {len(item.unknown)} images that the truth does not have, such as {item.unknown[0]}")
    first, second = scored[0], scored[1].statistic if len(scored) > 1 else None
    sure, differences = certainty(first.statistic, second, len(first.images.names), telling)
    document = {**first.to_dict(), **certainty_dicts(sure, differences)}
    if json:
        print_json(document)
    else:
        print("\n".join([*first.lines(), *certainty_lines(sure, differences)]))
    if flags.out is not None:
        write_json(flags.out / "evaluation.json", document, indent=2)
        report = resolve("pelagia.report.maps", purpose="write a report")
        subtitle = f"{source} on {truth}"
        written = report.write_maps(flags.out, first, sure, differences, level=telling.level, subtitle=subtitle)
        say(f"report: {written}")
    return 0


def _store(predictor: Predictor, dataset: Dataset, found: list[Instances], flags: _Flags, telling: AssessOptions) -> None:
    """Write thresholds and calibration into the checkpoint's card, as asked."""
    if not flags.save_thresholds and flags.save_calibration is None:
        return
    path = predictor.path
    if path is None or path.suffix != ".safetensors":
        raise OptionError(
            "thresholds and calibration can be stored in a checkpoint (.safetensors) of this package only", where=path
        )
    counting = counting_evidence(dataset, found, predictor.card.task)
    checkpoint: Any = resolve("pelagia.models.checkpoint", purpose="store thresholds")
    tensors, card, state = checkpoint.read(path)
    if flags.save_thresholds:
        card = replace(card, thresholds=rule_thresholds(counting, telling.threshold))
        say(f"thresholds of {len(card.thresholds)} classes stored in {path}")
    if flags.save_calibration is not None:
        fitted = fit_calibration(counting, flags.save_calibration).for_classes(card.class_names)
        card = replace(card, calibration=fitted.to_dict())
        say(f"{flags.save_calibration} calibration stored in {path}")
    checkpoint.save(path, tensors, card, state)
