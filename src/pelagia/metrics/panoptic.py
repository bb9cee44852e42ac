"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4), counted as its reference evaluation does.

In one image let |.| count pixels and let void be the pixels of truth id 0. A predicted segment p and a true segment g match when
they are of one class, g is no crowd, and IoU(p, g) > 0.5 with

    IoU(p, g) = |p n g| / (|p| + |g| - |p n g| - |p n void|)

Segments of one map do not overlap, so above 0.5 no segment has two matches (theorem 1 of the paper) and nothing is assigned.
A true segment without match is a false negative unless it is a crowd. A predicted segment without match is a false positive
unless more than half of its pixels lie on void or on crowds of its own class. Over all images, for each class,

    PQ = SQ * RQ        SQ = sum of IoU over matches / TP        RQ = TP / (TP + FP / 2 + FN / 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pelagia.core.types import Category, Float, Int, Mask, PanopticMap
from pelagia.errors import EvaluationError
from pelagia.metrics.contingency import Contingency, checked_weights, contingency, per_id, ratio
from pelagia.metrics.result import json_value, mean, notes_dict, number, text_table

__all__ = [
    "PanopticMeans",
    "PanopticResult",
    "PanopticTally",
    "evaluate_panoptic",
]


@dataclass(frozen=True, slots=True)
class PanopticMeans:
    """PQ, SQ and RQ averaged over `classes` classes; NaN if there are none."""

    pq: float
    sq: float
    rq: float
    classes: int


@dataclass(frozen=True, slots=True)
class PanopticResult:
    """Panoptic quality of a data set. NaN says that a class has neither truth nor scored prediction.

    Args:
        images: number of images; in a resample each counts as often as it was drawn.
        categories: C classes.
        iou: [C] sum of IoU over matches.
        tp, fp, fn: [C] matches, false positives, false negatives.
        pq, sq, rq: [C] panoptic, segmentation and recognition quality; SQ is 0 for a class that has truth or predictions but no
            match, as in the reference evaluation.
        all, things, stuff: means over the classes with tp + fp + fn > 0, of all kinds, with `Category.is_thing`, and without.
        notes: what is to be known of how the predictions were made, in sentences.
    """

    images: int
    categories: tuple[Category, ...]
    iou: Float
    tp: Int
    fp: Int
    fn: Int
    pq: Float
    sq: Float
    rq: Float
    all: PanopticMeans
    things: PanopticMeans
    stuff: PanopticMeans
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        classes = [
            {
                "name": category.name,
                "id": category.id,
                "is_thing": category.is_thing,
                **{name: json_value(float(getattr(self, name)[label])) for name in ("pq", "sq", "rq", "iou")},
                **{name: int(getattr(self, name)[label]) for name in ("tp", "fp", "fn")},
            }
            for label, category in enumerate(self.categories)
        ]
        means = {
            group: {**{name: json_value(getattr(values, name)) for name in ("pq", "sq", "rq")}, "classes": values.classes}
            for group, values in (("all", self.all), ("things", self.things), ("stuff", self.stuff))
        }
        return {"images": self.images, **means, "classes": classes, **notes_dict(self.notes)}

    def summary(self) -> list[tuple[str, float]]:
        """(name, value) of the headline numbers, in printing order."""
        groups = (("", self.all), (" things", self.things), (" stuff", self.stuff))
        return [
            (f"{name}{group}", value)
            for group, means in groups
            for name, value in (("PQ", means.pq), ("SQ", means.sq), ("RQ", means.rq))
        ]

    def class_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of classes, as text."""
        header = ["class", "kind", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
        rows = [
            [
                category.name,
                "thing" if category.is_thing else "stuff",
                *(number(float(values[label])) for values in (self.pq, self.sq, self.rq)),
                *(str(values[label]) for values in (self.tp, self.fp, self.fn)),
            ]
            for label, category in enumerate(self.categories)
        ]
        return header, rows

    def lines(self) -> list[str]:
        """The result as text: one line on the data, the headline numbers, and a table of classes."""
        matched = int(self.tp.sum())
        truths, predictions = matched + int(self.fn.sum()), matched + int(self.fp.sum())
        head = f"{self.images} images, {truths} segments, {predictions} predictions (panoptic)"
        numbers = [f"  {name:<14} {number(value)}" for name, value in self.summary()]
        header, rows = self.class_rows()
        return [head, *self.notes, *numbers, "", *text_table([header, *rows])]

    def __str__(self) -> str:
        return "\n".join(self.lines())


@dataclass(slots=True, eq=False)
class PanopticTally:
    """Counts of every image and class, gathered image by image, so that maps need not be held together in memory.

    Args:
        categories: C classes; `Segment.label` is a position in them.
        images: N, how many were added.
    """

    categories: Sequence[Category]
    images: int = field(init=False, default=0)
    _parts: list[Float] = field(init=False, repr=False, default_factory=list)  # each [n, C, 4]; together N images

    def __post_init__(self) -> None:
        self.categories = tuple(self.categories)

    def add(self, truth: PanopticMap, predicted: PanopticMap, *, where: str | None = None) -> None:
        """Count one image; errors name it as `where`, by default as `image` and its position.

        `Segment.crowd` of a prediction has no meaning here, and id 0 of a prediction says that nothing was found.

        Raises:
            EvaluationError: sizes differ, ids are not integers >= 0, an id of a map is not among its segments, a segment is
                listed twice, has id 0 or no pixel, or a label has no category. The image is then not counted.
        """
        where = f"image {self.images}" if where is None else where
        table = contingency(truth.ids, predicted.ids, where=where)
        classes = len(self.categories)
        truth_label, crowd = _segments(truth, table.truth_ids, "truth", classes, where)
        predicted_label, _ = _segments(predicted, table.predicted_ids, "prediction", classes, where)
        self._parts.append(_image_counts(table, truth_label, crowd, predicted_label, classes)[None])
        self.images += 1

    def merge(self, other: PanopticTally) -> None:
        """Append the images of `other`, such as another worker's share.

        Raises:
            EvaluationError: the categories differ.
        """
        if self.categories != other.categories:
            raise EvaluationError("the tallies count different classes; give both the same categories in the same order")
        counts = other.counts
        self._parts.append(counts)
        self.images += len(counts)

    @property
    def counts(self) -> Float:
        """[N, C, 4] of every image and class: sum of IoU, true positives, false positives, false negatives."""
        if len(self._parts) != 1:
            self._parts = [np.concatenate([np.zeros((0, len(self.categories), 4)), *self._parts])]
        return self._parts[0]

    @property
    def iou(self) -> Float:
        """[C] sum of IoU over matches."""
        total: Float = self.counts[:, :, 0].sum(axis=0)
        return total

    @property
    def tp(self) -> Int:
        """[C] true positives."""
        return self._total(1)

    @property
    def fp(self) -> Int:
        """[C] false positives."""
        return self._total(2)

    @property
    def fn(self) -> Int:
        """[C] false negatives."""
        return self._total(3)

    def _total(self, column: int) -> Int:
        total: Int = self.counts[:, :, column].sum(axis=0).astype(np.int64)
        return total

    def result(self, weights: Int | Float | None = None) -> PanopticResult:
        """Panoptic quality of the images, image n counted `weights[n]` times ([N] whole numbers), each once by default.

        Raises:
            OptionError: `weights` is not one whole number >= 0 for each image.
        """
        times = checked_weights(weights, self.images)
        total: Float = np.einsum("n,nck->ck", times, self.counts)
        iou = total[:, 0]
        tp, fp, fn = total[:, 1:].T.astype(np.int64)
        whole = tp + (fp + fn) / 2
        rq = ratio(tp, whole)
        sq = ratio(iou, np.maximum(tp, whole > 0))  # 0 / 1 for a class without match
        pq = ratio(iou, whole)
        things = np.array([category.is_thing for category in self.categories], dtype=np.bool_)
        every, only_things, only_stuff = (_means(pq, sq, rq, group) for group in (things | True, things, ~things))
        return PanopticResult(
            images=int(times.sum()),
            categories=tuple(self.categories),
            iou=iou,
            tp=tp,
            fp=fp,
            fn=fn,
            pq=pq,
            sq=sq,
            rq=rq,
            all=every,
            things=only_things,
            stuff=only_stuff,
        )


def _means(pq: Float, sq: Float, rq: Float, group: Mask) -> PanopticMeans:
    classes = int(np.count_nonzero(~np.isnan(pq[group])))
    return PanopticMeans(mean(pq[group]), mean(sq[group]), mean(rq[group]), classes)


def evaluate_panoptic(
    truths: Sequence[PanopticMap], predictions: Sequence[PanopticMap], categories: Sequence[Category]
) -> PanopticResult:
    """Score predictions against truth, one `PanopticMap` of each per image; `PanopticTally` does so image by image.

    Raises:
        EvaluationError: other numbers of images, or maps that cannot be compared (see `PanopticTally.add`).
    """
    if len(truths) != len(predictions):
        raise EvaluationError(f"{len(predictions)} predictions for {len(truths)} images; give one PanopticMap per image")
    tally = PanopticTally(categories)
    for truth, predicted in zip(truths, predictions, strict=True):
        tally.add(truth, predicted)
    return tally.result()


def _segments(item: PanopticMap, ids: Int, what: str, classes: int, where: str) -> tuple[Int, Mask]:
    """Class (-1 for void) and crowd flag of each of the ids that occur in a map, which are those of its segments."""
    listed = np.array([segment.id for segment in item.segments], dtype=np.int64)
    label = np.array([segment.label for segment in item.segments], dtype=np.int64)
    crowd = np.array([segment.crowd for segment in item.segments], dtype=np.bool_)
    order = np.argsort(listed, kind="stable")
    listed, label, crowd = listed[order], label[order], crowd[order]
    real = ids != 0
    for wrong, problem in (
        (listed[listed <= 0], "is impossible: ids of segments are positive, and 0 is void"),
        (listed[1:][listed[1:] == listed[:-1]], "is listed twice; give each segment an id of its own"),
        (np.setdiff1d(ids[real], listed), "has pixels but is not among the segments; list it, or write 0 for void"),
        (np.setdiff1d(listed, ids[real]), "is listed but has no pixels; leave it out of the segments"),
    ):
        if len(wrong):
            raise EvaluationError(f"segment {wrong[0]} of the {what} {problem}", where=where)
    bad = np.flatnonzero((label < 0) | (label >= classes))
    if len(bad):
        raise EvaluationError(
            f"segment {listed[bad[0]]} of the {what} has label {label[bad[0]]}, but there are {classes} classes", where=where
        )
    labels, crowds = np.full(len(ids), -1, dtype=np.int64), np.zeros(len(ids), dtype=np.bool_)
    labels[real], crowds[real] = label, crowd
    return labels, crowds


def _image_counts(table: Contingency, truth_label: Int, crowd: Mask, predicted_label: Int, classes: int) -> Float:
    """[C, 4] sum of IoU, true positives, false positives, false negatives of one image.

    Args:
        truth_label, crowd: [T] of each id of the truth, label -1 for void.
        predicted_label: [P] of each predicted id, -1 for void.
    """
    row, column, pixels = table.truth, table.predicted, table.pixels
    truth_area, predicted_area = table.truth_area, table.predicted_area
    void = truth_label[row] < 0
    on_void = per_id(column[void], pixels[void], len(predicted_label))
    same = ~void & (truth_label[row] == predicted_label[column])

    pair = np.flatnonzero(same & ~crowd[row])
    union = truth_area[row[pair]] + predicted_area[column[pair]] - pixels[pair] - on_void[column[pair]]
    iou = pixels[pair] / union
    match, iou = pair[iou > 0.5], iou[iou > 0.5]
    missed = (truth_label >= 0) & ~crowd
    missed[row[match]] = False

    swarm = same & crowd[row]
    excused = on_void + per_id(column[swarm], pixels[swarm], len(predicted_label))
    false = (predicted_label >= 0) & (2 * excused <= predicted_area)
    false[column[match]] = False
    label = truth_label[row[match]]
    columns = [
        np.bincount(label, weights=iou, minlength=classes),
        *(np.bincount(kind, minlength=classes) for kind in (label, predicted_label[false], truth_label[missed])),
    ]
    return np.stack(columns, axis=1).astype(np.float64)
