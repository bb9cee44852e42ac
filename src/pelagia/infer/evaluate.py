"""Scoring a model on a data set: any runtime, batched, then the exact metrics.

Training validates through the same function, so that a number seen while training is the number that `pelagia evaluate` gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pelagia.core.ahead import side_by_side
from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.image import MAX_PIXELS, image_size
from pelagia.core.nms import nms, nms_oriented
from pelagia.core.scan import open_scan
from pelagia.core.types import IGNORE_INDEX, Category, Instances, Int, PanopticMap, Prediction, SemanticMap, Task
from pelagia.data.dataset import Dataset
from pelagia.data.formats.common import ReadOptions
from pelagia.data.open import open_dataset
from pelagia.decode import DecodeOptions
from pelagia.errors import EvaluationError, OptionError
from pelagia.infer.coco_results import ResultsFile
from pelagia.infer.objects import KINDS, predicted_objects, truth_objects
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_fitted, predict_image
from pelagia.infer.progress import track
from pelagia.infer.read_predictions import read_predictions
from pelagia.infer.runtimes import Runtime, Shared, cpu_count
from pelagia.infer.views import fit, is_tiled, objects_of, overlap_of, tile_size
from pelagia.infer.watching import Watch
from pelagia.metrics.boundary import DEFAULT_BOUNDARY, BoundaryOptions
from pelagia.metrics.detection import Evidence, gather
from pelagia.metrics.objects import Kind, Objects
from pelagia.metrics.panoptic import PanopticResult, PanopticTally
from pelagia.metrics.reliability import CalibrationTally
from pelagia.metrics.result import DetectionResult
from pelagia.metrics.semantic import SemanticTally
from pelagia.metrics.semantic_result import SemanticResult

__all__ = [
    "EvaluateOptions",
    "Scores",
    "choose_thresholds",
    "counting_evidence",
    "evaluate",
    "evaluate_file",
    "gather_evidence",
    "gather_file",
    "match_classes",
    "noted",
    "predict_dataset",
    "predictions",
    "score",
    "tally_maps",
    "tiles_note",
]

Scores: TypeAlias = DetectionResult | SemanticResult | PanopticResult

#: Most predictions per image where nothing crowds: three times COCO's cap per class.
_MOST = 300


@dataclass(frozen=True)
class EvaluateOptions:
    """How predictions for a score are made.

    Raises:
        OptionError: a value cannot be used.
    """

    score: float = field(
        default=0.001,
        metadata={"help": "Predictions below it do not enter the curves; leave it low, AP needs the weak ones too."},
    )
    nms_iou: float = field(default=0.7, metadata={"help": "Of two predictions of a class that overlap more, the weaker goes."})
    most: int | None = field(
        default=None,
        metadata={
            "help": "Most predictions per image, 0 for all; by default 300, or 3 times the most objects that an image holds."
        },
    )
    batch: int = field(default=16, metadata={"help": "Images per step."})
    tiled: bool = field(
        default=True,
        metadata={"help": "Predict large images in overlapping tiles, as `predict` does; --no-tiled shrinks them."},
    )
    max_pixels: int = field(
        default=MAX_PIXELS,
        metadata={
            "help": "Refuse a larger image that must be decoded whole, or a larger piece of one in tiles, strips or chunks."
        },
    )

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"batch must be at least 1, got {self.batch}")
        if self.most is not None and self.most < 0:
            raise OptionError(f"most must be 0 (no limit) or positive, got {self.most}")
        if self.max_pixels < 1:
            raise OptionError(f"max_pixels must be at least 1, got {self.max_pixels}")


def evaluate(runtime: Runtime, dataset: Dataset, options: EvaluateOptions | None = None, *, show: bool | None = None) -> Scores:
    """Predict every image of `dataset` and score the predictions against its truth.

    Classes are matched by name: a class that only the model knows does not count (in a map it counts as no class), a class that
    only the data know is never found. The `notes` of the result say how many images were tiled, and that intensities go beyond
    what the model was made for.

    Args:
        show: a progress bar; None for one where standard error is a terminal.

    Raises:
        EvaluationError: no image, no common class, or truth that the task cannot be compared with.
    """
    options = options or EvaluateOptions()
    notes, watch = noted(runtime.card, dataset, options)
    result: Scores
    if runtime.card.task in KINDS:
        result = score(dataset, predict_dataset(runtime, dataset, options, show=show, watch=watch), runtime.card.task)
    else:
        dataset = dataset.with_task(runtime.card.task)
        tally = tally_maps(runtime, dataset, options, show=show, watch=watch)
        result = tally.result(categories=dataset.categories) if isinstance(tally, SemanticTally) else tally.result()
    return replace(result, notes=tuple(notes))


def noted(
    card: ModelCard, dataset: Dataset, options: EvaluateOptions, tell: Callable[[str], None] | None = None
) -> tuple[list[str], Watch]:
    """The notes that a result of such predictions shall have, and the watch over them, which adds to the notes what it sees, and
    calls `tell` with it.

    Raises:
        ImageError: see `tiles_note`.
    """
    notes = tiles_note(card, dataset, options)

    def add(sentence: str) -> None:
        notes.append(sentence)
        if tell is not None:
            tell(sentence)

    return notes, Watch(lambda steps, note: None, add)


def tiles_note(card: ModelCard, dataset: Dataset, options: EvaluateOptions) -> list[str]:
    """A sentence on how many images are larger than the network sees at once, and how they are tiled; none where no image is.

    Raises:
        ImageError: an image whose size the labels do not state is missing or broken.
    """
    count = sum(is_tiled(_size(dataset, index), card) for index in range(len(dataset))) if options.tiled else 0
    if not count:
        return []
    tile = tile_size(card, PredictOptions())
    # Maps of classes overlap by what the network and the way of blending need.
    overlap = "" if card.task == "semantic" else f" that overlap by {overlap_of(card, tile, PredictOptions())}"
    how = f"in tiles of {tile[0]} x {tile[1]} pixels{overlap}, as `predict` does"
    return [f"{count} of {len(dataset)} images are predicted {how}"]


def tally_maps(
    runtime: Runtime,
    dataset: Dataset,
    options: EvaluateOptions | None = None,
    *,
    show: bool | None = None,
    boundary: BoundaryOptions | None = DEFAULT_BOUNDARY,
    calibration: CalibrationTally | None = None,
    watch: Watch | None = None,
) -> SemanticTally | PanopticTally:
    """The counts of every image behind the scores of a model that answers with maps, so that images can be weighted.

    `dataset` must be of the model's task (`Dataset.with_task`); `boundary` None leaves out the boundary measures of class maps,
    which take most of the time. `calibration` counts the largest probability of each scored pixel, if the model gives any.
    `watch` is told of intensities.

    Raises:
        EvaluationError: see `evaluate`.
    """
    if len(dataset) == 0:
        raise EvaluationError("there is no image to score", where=dataset.root)
    semantic = SemanticTally(len(dataset.categories), boundary=boundary)
    panoptic = PanopticTally(dataset.categories)
    scores = calibration is not None
    for index, found in enumerate(predictions(runtime, dataset, options, show=show, scores=scores, watch=watch)):
        where = dataset.names[index]
        if isinstance(found, SemanticMap):
            truth = dataset.semantic(index).labels
            semantic.add(truth, found.labels, image=index, where=where)
            if calibration is not None and found.scores is not None:
                scored = (truth != IGNORE_INDEX) & (found.labels != IGNORE_INDEX)
                calibration.add(found.scores.max(axis=0)[scored], (found.labels == truth)[scored], image=index)
        elif isinstance(found, PanopticMap):
            panoptic.add(dataset.panoptic(index), found, where=where)
    return panoptic if runtime.card.task == "panoptic" else semantic


def score(dataset: Dataset, predictions: Sequence[Instances], task: Task | None = None) -> DetectionResult:
    """Score `predictions`, one per image with labels of `dataset`, by what `task` (by default the data's) compares.

    Raises:
        EvaluationError: see `evaluate`.
    """
    return gather_evidence(dataset, predictions, task).result()


def gather_evidence(
    dataset: Dataset, predictions: Sequence[Instances] | Objects, task: Task | None = None, **rules: Any
) -> Evidence:
    """Match predictions with the truth of `dataset`, by what `task` (by default the data's) compares.

    Args:
        predictions: one `Instances` per image, or flat objects, which say themselves what is compared.
        rules: `iou_thresholds`, `max_dets`, `sigmas`, `federated` and `per_image` as in `metrics.detection.gather`.

    Raises:
        EvaluationError: see `evaluate`.
    """
    task = task or dataset.task
    if len(dataset) == 0:
        raise EvaluationError("there is no image to score", where=dataset.root)
    if isinstance(predictions, Objects):
        found = predictions
    elif task in KINDS:
        found = predicted_objects(dataset, predictions, KINDS[task])
    else:
        raise EvaluationError(
            f"answers of the task {task!r} cannot be scored as objects, only {', '.join(KINDS)}", where=dataset.root
        )
    return gather(truth_objects(dataset, found.kind), found, dataset.categories, images=len(dataset), **rules)


def evaluate_file(
    predictions: str | Path, truth: str | Path | Dataset, kind: Kind | None = None, **rules: Any
) -> DetectionResult:
    """Score predictions in a file or folder, made by anything, against labels; images are not needed.

    Args:
        kind: what to compare, by default what both sides hold; see `read_predictions`.
        rules: see `gather_evidence`.

    Raises:
        EvaluationError, FormatError: see `read_predictions`.
    """
    return gather_file(predictions, truth, kind, **rules).result()


def gather_file(predictions: str | Path, truth: str | Path | Dataset, kind: Kind | None = None, **rules: Any) -> Evidence:
    """The evidence that `evaluate_file` scores: for intervals, error types and thresholds."""
    path = Path(predictions)
    started = ResultsFile(path) if path.suffix.lower() == ".json" else path  # scanned while the truth is opened
    if not isinstance(truth, Dataset):
        truth = open_dataset(truth, options=ReadOptions(keep_empty=True, find_images=False))
    truth = truth.in_order()
    found = read_predictions(started, truth, kind)
    if found.unknown:
        text = f"left out: predictions for {len(found.unknown)} images that the truth does not have, such as {found.unknown[0]}"
        warnings.warn(text, stacklevel=3)
    return gather_evidence(truth, found.objects, **rules)


def choose_thresholds(
    dataset: Dataset, predictions: Sequence[Instances], task: Task | None = None, *, nms_iou: float = PredictOptions.nms_iou
) -> dict[str, float]:
    """Class name -> score of best F1 at IoU 0.5, for the classes that have one: from where an object should count."""
    return counting_evidence(dataset, predictions, task, nms_iou=nms_iou).result().thresholds


def counting_evidence(
    dataset: Dataset, predictions: Sequence[Instances], task: Task | None = None, *, nms_iou: float = PredictOptions.nms_iou
) -> Evidence:
    """The evidence by which thresholds and calibration are chosen for `predict`: predictions made for AP overlap more than those
    of `predict` do, so they are first thinned as `predict` would."""
    return gather_evidence(dataset, [_thin(item, nms_iou) for item in predictions], task)


def _thin(found: Instances, nms_iou: float) -> Instances:
    assert found.scores is not None
    if found.oriented is not None:
        return found.select(nms_oriented(found.oriented, found.scores, nms_iou, found.labels))
    return found.select(nms(found.box_array, found.scores, nms_iou, found.labels))


def predict_dataset(
    runtime: Runtime,
    dataset: Dataset,
    options: EvaluateOptions | None = None,
    *,
    show: bool | None = None,
    watch: Watch | None = None,
) -> list[Instances]:
    """The objects in every image of `dataset`, in pixels of the originals, with the labels of `dataset`.

    Raises:
        EvaluationError: model and data have no class in common.
        ModelError: the model answers with maps; see `predictions`.
    """
    return [objects_of(found, runtime.card) for found in predictions(runtime, dataset, options, show=show, watch=watch)]


def predictions(
    runtime: Runtime,
    dataset: Dataset,
    options: EvaluateOptions | None = None,
    *,
    show: bool | None = None,
    scores: bool = False,
    watch: Watch | None = None,
) -> Iterator[Prediction]:
    """What the model answers for every image of `dataset` in turn, in pixels of the originals, with the labels of `dataset`;
    with `scores` also the probabilities of a map of classes, where it is not tiled. `watch` is told of intensities.

    Raises:
        EvaluationError: model and data have no class in common.
    """
    options = options or EvaluateOptions()
    labels = match_classes(runtime.card, dataset.categories)
    # Curves want the weak answers too; a map of segments is one answer, made as for use.
    counting = (
        DecodeOptions()
        if runtime.card.task == "panoptic"
        else DecodeOptions(
            score=options.score, nms_iou=options.nms_iou, most=_most(dataset, options), multi_label=True, scores=scores
        )
    )
    starts = range(0, len(dataset), options.batch)
    look = partial(_look, dataset, runtime.card, watch)
    # A GPU is fed by a thread on every core. On a CPU reading takes turns with the network, which needs them all.
    beside = not Shared(runtime).alone
    steps = ((partial(look, index), beside) for index in range(len(dataset)))
    with closing(side_by_side(steps, workers=cpu_count() if beside else 1)) as looked:
        for start in track(starts, "evaluating", show=show):
            views = list(islice(looked, options.batch))
            found = iter(predict_fitted(runtime, [view for view in views if view is not None], counting))
            for index, view in enumerate(views, start):
                path = dataset.image_paths[index]
                item = _scan_answer(runtime, path, options, counting, watch) if view is None else next(found)
                yield _relabel(item, labels, len(dataset.categories))


def _look(dataset: Dataset, card: ModelCard, watch: Watch | None, index: int) -> tuple[NDArray[Any], Frame] | None:
    """An image as the network sees it, None if it is to be tiled."""
    if is_tiled(_size(dataset, index), card):
        return None
    image = dataset.image(index)
    if watch is not None:
        watch.intensities(card, image.dtype, dataset.image_paths[index])
    return fit(card, image)


def _size(dataset: Dataset, index: int) -> tuple[int, int]:
    """Width and height of an image, from the labels or, where they do not say, from the header of the file."""
    width, height = dataset.sizes[index].tolist()
    return (width, height) if width > 0 and height > 0 else image_size(dataset.image_paths[index])


def _scan_answer(
    runtime: Runtime, path: Path, options: EvaluateOptions, decoding: DecodeOptions, watch: Watch | None
) -> Prediction:
    """What the model answers for an image that may be too large to hold."""
    tiling = PredictOptions(batch=options.batch, tiling="auto" if options.tiled else "never")
    # The probabilities of a whole scan would take gigabytes.
    decoding = replace(decoding, scores=decoding.scores and not options.tiled)
    with open_scan(path, max_pixels=options.max_pixels) as scan:
        if watch is not None:
            watch.intensities(runtime.card, scan.dtype, path)
        return predict_image(runtime, scan, tiling, decoding=decoding)


def match_classes(card: ModelCard, categories: Sequence[Category]) -> Int:
    """[C of the model], the label in `categories` of the class of the same name, -1 where there is none.

    Raises:
        EvaluationError: no class has the same name.
    """
    position = {category.name: label for label, category in enumerate(categories)}
    labels = np.array([position.get(name, -1) for name in card.class_names], dtype=np.int64)
    if len(labels) and (labels < 0).all():
        raise EvaluationError(
            f"no class of the model ({_some(card.class_names)}) has the name of a class of the data ({_some(list(position))})",
            where=card.name,
        )
    return labels


def _most(dataset: Dataset, options: EvaluateOptions) -> int:
    if options.most is not None:
        return options.most
    objects = np.diff(dataset.annotations.starts)
    return max(_MOST, 3 * int(objects.max(initial=0)))


def _relabel(found: Prediction, labels: Int, classes: int) -> Prediction:
    """The prediction with labels of the data; objects of other classes go, segments become void, pixels become no class."""
    if isinstance(found, Instances):
        changed = replace(found, labels=labels[found.labels])
        return changed.select(changed.labels >= 0)
    if isinstance(found, SemanticMap):
        table = np.full(max(len(labels), IGNORE_INDEX) + 1, IGNORE_INDEX, dtype=found.labels.dtype)
        table[: len(labels)] = np.where(labels >= 0, labels, IGNORE_INDEX)
        scores = None
        if found.scores is not None:
            scores = np.zeros((classes, *found.labels.shape), dtype=np.float32)
            scores[labels[labels >= 0]] = found.scores[labels >= 0]
        return SemanticMap(table[found.labels], scores)
    segments = tuple(replace(item, label=int(labels[item.label])) for item in found.segments if labels[item.label] >= 0)
    known = np.isin(found.ids, [item.id for item in segments])
    return PanopticMap(np.where(known, found.ids, 0).astype(np.int32), segments)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
