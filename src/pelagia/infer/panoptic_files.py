"""Predicted COCO panoptic files beside true ones: which prediction is for which image (`pelagia.data.formats.panoptic_json`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pelagia.core.types import Category, PanopticMap
from pelagia.data.dataset import Dataset
from pelagia.data.formats.panoptic_json import PanopticFile, read_panoptic
from pelagia.errors import EvaluationError
from pelagia.infer.match_images import ImageStems, MapList, refuse_all, refuse_size, stem_of

__all__ = ["PanopticFile", "TrueMaps", "pair_panoptic", "read_panoptic"]


@dataclass(frozen=True, slots=True, eq=False)
class TrueMaps:
    """The true panoptic maps of N images of a data set, as `PanopticFile` has them: `names`, `image_ids` [N], `map(index)`."""

    names: Sequence[str]
    image_ids: Sequence[int | str]
    categories: tuple[Category, ...]
    map: Callable[[int], PanopticMap]
    listed: bool = True

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, dataset: Dataset) -> TrueMaps:
        """Those of a data set of the task `panoptic`."""
        return cls(dataset.names, dataset.image_ids.tolist(), dataset.categories, dataset.panoptic)


def pair_panoptic(
    predicted: PanopticFile, truth: PanopticFile | TrueMaps
) -> tuple[Sequence[tuple[PanopticMap, PanopticMap]], list[str]]:
    """(truth, prediction) of every image of `truth`, in its order, with the labels of `truth`; read when asked for.

    Beside them, the names of predicted images that `truth` does not have: they are left out. A missing prediction is all void.
    Images are matched by name without ending where both files list their images, else by id; and the other way where not a single
    one matches so. Categories are the same where their ids are.

    Raises:
        EvaluationError: no image matches, two predictions are for one image, a name means several images, or a predicted
            category is not in `truth`; when a pair is asked for, also if the sizes differ.
        FormatError, ImageError: when a pair is asked for: see `PanopticFile.map`.
    """
    ways = (_by_name, _by_id) if predicted.listed and truth.listed else (_by_id, _by_name)
    matches = ways[0](predicted, truth)
    if not any(place is not None for place in matches):
        matches = ways[1](predicted, truth)
    partner: dict[int, int] = {}
    unknown = []
    for index, place in enumerate(matches):
        if place is None:
            unknown.append(predicted.names[index])
        elif place in partner:
            both = f"{predicted.files[partner[place]]} and {predicted.files[index]}"
            raise EvaluationError(f"{both} could both be for {truth.names[place]}; keep one of them", where=predicted.path)
        else:
            partner[place] = index
    if unknown and not partner:
        refuse_all(unknown, truth.names, predicted.path)
    label_of = {category.id: label for label, category in enumerate(truth.categories)}
    labels = [label_of.get(category.id, -1) for category in predicted.categories]
    for label in np.unique(predicted.labels).tolist():
        if labels[label] < 0:
            known = ", ".join(f"{category.id} {category.name}" for category in truth.categories[:10])
            text = f"category {predicted.categories[label].id} is not in the truth, which has: {known}"
            raise EvaluationError(text, where=predicted.path)
    return MapList(partial(_pair, predicted, truth, partner, labels), len(truth)), unknown


def _by_name(predicted: PanopticFile, truth: PanopticFile | TrueMaps) -> list[int | None]:
    stems = ImageStems(truth.names, predicted.path)
    return [stems.find(stem_of(name)) for name in predicted.names]


def _by_id(predicted: PanopticFile, truth: PanopticFile | TrueMaps) -> list[int | None]:
    places = {image: place for place, image in enumerate(truth.image_ids)}
    return [places.get(image) for image in predicted.image_ids]


def _pair(
    predicted: PanopticFile, truth: PanopticFile | TrueMaps, partner: Mapping[int, int], labels: Sequence[int], index: int
) -> tuple[PanopticMap, PanopticMap]:
    true = truth.map(index)
    if index not in partner:
        return true, PanopticMap(np.zeros_like(true.ids))
    found = predicted.map(partner[index])
    if found.ids.shape != true.ids.shape:
        where = predicted.folder / predicted.files[partner[index]]
        refuse_size(found.ids.shape, true.ids.shape, truth.names[index], where)
    segments = tuple(replace(segment, label=labels[segment.label]) for segment in found.segments)
    return true, PanopticMap(found.ids, segments)
