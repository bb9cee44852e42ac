"""Drawn scans with organisms on seams, on corners where four tiles meet and in touching pairs of one class: a model that knows
the truth and sees of it what each tile shows must find on tiles what is there, for every task, to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.types import Category, Instances, MaskCrop, PanopticMap, Segment
from pelagia.data.synthetic import SurveyOptions, draw_image, panoptic_categories
from pelagia.decode import DecodeOptions
from pelagia.decode.registry import DECODERS
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.tiles import lay_tiles
from seams import on_seams

SURVEY = SurveyOptions(length_px=(14, 34), detritus=1.0)


class Knowing:
    """A model of input `side` that knows the truth of the one image it is shown: its decoder cuts that to the view."""

    def __init__(self, task: str, side: int, truth: Instances | PanopticMap, categories: tuple[Category, ...]) -> None:
        self.truth = truth
        self.card = ModelCard(
            name="knowing",
            task=task,  # type: ignore[arg-type]
            decoder="knowing",
            categories=categories,
            input_size=(side, side),
            stride=1,
        )

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"views": images[:, :1, :1, :1]}

    def decode(
        self, outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
    ) -> list[Any]:
        return [self.cut(frame) for frame in frames]

    def cut(self, frame: Frame) -> Instances:
        """What of the truth a view shows: masks cut at its border, and what follows from them."""
        assert isinstance(self.truth, Instances)
        x, y = (round(value) for value in frame.matrix[:, 2])
        side = self.card.input_size[0]
        shown = seen_in(self.truth, x, y, side, side)
        return shown.replace(masks=None) if self.card.task in ("detect", "keypoints") else shown


def seen_in(truth: Instances, x: int, y: int, width: int, height: int) -> Instances:
    assert truth.masks is not None
    assert truth.keypoints is not None
    crops, rows = [], []
    for row, mask in enumerate(truth.masks):
        part = core_masks.clip(MaskCrop(mask.x - x, mask.y - y, mask.bitmap), width, height)
        part = MaskCrop(part.x + x, part.y + y, part.bitmap)
        if part.area:
            tight = core_masks.crop_from_bitmap(part.bitmap)
            crops.append(MaskCrop(tight.x + part.x, tight.y + part.y, tight.bitmap))
            rows.append(row)
    if not rows:
        return Instances.empty(scores=True, oriented=truth.boxes is None)
    seen = truth.select(rows)
    assert seen.keypoints is not None
    points = seen.keypoints.copy()
    inside = (points[..., 0] >= x) & (points[..., 0] <= x + width) & (points[..., 1] >= y) & (points[..., 1] <= y + height)
    points[..., 2] *= inside
    if truth.boxes is None:  # a task of oriented boxes
        return seen.replace(oriented=np.array([core_masks.min_area_box(crop) for crop in crops]), masks=None, keypoints=None)
    return seen.replace(boxes=np.array([core_masks.bounds(crop) for crop in crops]), masks=tuple(crops), keypoints=points)


def known(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> Any:
    monkeypatch.setitem(DECODERS, "knowing", runtime.decode)
    return runtime


def drawn(seed: int, size: tuple[int, int], side: int, overlap: int) -> tuple[NDArray[Any], Instances, PanopticMap]:
    rng = np.random.default_rng(seed)
    tiles = lay_tiles(size, (side, side), overlap)
    drawing = draw_image(rng, *size, SURVEY, places=on_seams(rng, tiles, size, 24, len(SURVEY.taxa), 12.0))
    truth = drawing.truth.replace(scores=rng.uniform(0.3, 0.9, len(drawing.truth)))
    return drawing.image, truth, drawing.panoptic(SURVEY)


def table(found: Instances) -> NDArray[Any]:
    """Everything that is known of each object but its mask, one row each, by score."""
    assert found.scores is not None
    columns = [found.scores, found.labels]
    columns += [part for part in (found.boxes, found.oriented) if part is not None]
    if found.keypoints is not None:
        columns.append(found.keypoints.reshape(len(found), -1))
    rows = np.column_stack(columns)
    return rows[np.argsort(-found.scores, kind="stable")]


def bitmaps(found: Instances, size: tuple[int, int]) -> list[tuple[Any, ...]]:
    assert found.masks is not None
    assert found.scores is not None
    crops = [core_masks.crop_from_bitmap(core_masks.paste(found.masks[k], *size[::-1])) for k in np.argsort(-found.scores)]
    return [(crop.x, crop.y, crop.bitmap.shape, crop.bitmap.tobytes()) for crop in crops]


SCANS = given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(90, 420),
    height=st.integers(90, 360),
    side=st.integers(80, 160),
    overlap=st.integers(44, 60),
)


@pytest.mark.parametrize("task", ["detect", "oriented", "instance", "keypoints"])
def test_organisms_on_seams_and_corners_are_found_once_and_exactly(task: str) -> None:
    @SCANS
    @settings(max_examples=12, deadline=None)
    def check(seed: int, width: int, height: int, side: int, overlap: int) -> None:
        image, truth, _ = drawn(seed, (width, height), side, overlap)
        if task == "oriented":
            assert truth.masks is not None
            boxes = np.array([core_masks.min_area_box(mask) for mask in truth.masks]).reshape(-1, 5)
            truth = truth.replace(boxes=None, oriented=boxes)
        else:
            truth = truth.replace(oriented=None)
        with pytest.MonkeyPatch.context() as patch:
            runtime = known(patch, Knowing(task, side, truth, panoptic_categories(SURVEY)[: len(SURVEY.taxa)]))
            found = predict_image(runtime, image, PredictOptions(tiling="always", overlap=overlap / side, batch=4))
        assert isinstance(found, Instances)
        assert len(found) == len(truth)
        if task == "oriented":
            truth = truth.replace(keypoints=None)
        np.testing.assert_array_equal(table(found), table(truth))
        if task == "instance":
            assert bitmaps(found, (width, height)) == bitmaps(truth, (width, height))

    check()


class KnowingSegments(Knowing):
    """The same for panoptic maps; a view names its segments by numbers of its own, and things have scores."""

    def decode(
        self, outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
    ) -> list[Any]:
        return [self.segments(frame) for frame in frames]

    def segments(self, frame: Frame) -> PanopticMap:
        assert isinstance(self.truth, PanopticMap)
        part = np.zeros((frame.height, frame.width), dtype=np.int32)
        x, y = self.places.pop(0)
        inside = self.truth.ids[y : y + frame.height, x : x + frame.width]
        part[: inside.shape[0], : inside.shape[1]] = inside
        present = [number for number in np.unique(part).tolist() if number]
        shuffled = np.random.default_rng(len(self.places)).permutation(len(present)) + 1
        lookup = np.zeros(int(self.truth.ids.max()) + 1, dtype=np.int32)
        lookup[present] = shuffled
        label = {segment.id: segment.label for segment in self.truth.segments}
        return PanopticMap(
            lookup[part],
            tuple(
                Segment(int(new), label[old], 0.3 + old * 7919 % 1000 / 2000) for old, new in zip(present, shuffled, strict=True)
            ),
        )

    places: list[tuple[int, int]]


def agree(found: PanopticMap, truth: PanopticMap) -> None:
    """The same segments under other numbers, which are unique and without gaps."""
    assert [segment.id for segment in found.segments] == list(range(1, len(found.segments) + 1))
    assert sorted(np.unique(found.ids[found.ids > 0]).tolist()) == [segment.id for segment in found.segments]
    pairs = np.unique(np.stack([found.ids.ravel(), truth.ids.ravel()]), axis=1).T.tolist()
    assert len(pairs) == len({new for new, _ in pairs}) == len({old for _, old in pairs})
    label = {segment.id: segment.label for segment in truth.segments}
    for segment in found.segments:
        assert segment.label == label[dict(pairs)[segment.id]]


def tiled_segments(image: NDArray[Any], truth: PanopticMap, side: int, overlap: int, card: Any = None) -> PanopticMap:
    size = (truth.ids.shape[1], truth.ids.shape[0])
    with pytest.MonkeyPatch.context() as patch:
        runtime = known(patch, KnowingSegments("panoptic", side, truth, card or panoptic_categories(SURVEY)))
        runtime.places = [(tile.x, tile.y) for tile in lay_tiles(size, (side, side), overlap)]
        found = predict_image(runtime, image, PredictOptions(tiling="always", overlap=overlap / side, batch=3))
    assert isinstance(found, PanopticMap)
    return found


@SCANS
@settings(max_examples=15, deadline=None)
def test_panoptic_maps_on_tiles_equal_the_whole(seed: int, width: int, height: int, side: int, overlap: int) -> None:
    image, _, truth = drawn(seed, (width, height), side, overlap)
    agree(tiled_segments(image, truth, side, overlap), truth)


THINGS = (Category(1, "thing"), Category(2, "other"), Category(3, "water", is_thing=False))


@pytest.mark.parametrize("vertical", [False, True])
def test_large_things_are_united_and_touching_ones_stay_two(vertical: bool) -> None:
    ids = np.full((200, 500), 9, dtype=np.int32)
    ids[40:60, 10:480] = 1  # through all tiles of a row, and
    ids[60:80, 10:480] = 2  # another along it,
    ids[80:90, 100:300] = 3  # and one of another class
    ids[120:140, 95:115], ids[120:140, 115:130] = 4, 5  # a touching pair on a seam
    ids = np.ascontiguousarray(ids.T) if vertical else ids
    labels = {1: 0, 2: 0, 3: 1, 4: 0, 5: 0, 9: 2}
    truth = PanopticMap(ids, tuple(Segment(number, label) for number, label in labels.items()))
    found = tiled_segments(np.zeros((*ids.shape, 1), dtype=np.uint8), truth, 128, 32, THINGS)
    agree(found, truth)
    assert [segment.label for segment in found.segments][-1] == 2  # stuff comes last
    scores = [segment.score or 0 for segment in found.segments[:-1]]
    assert scores == sorted(scores, reverse=True)


def test_pixels_of_a_dropped_view_go_to_its_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiles see one thing with unlike borders; the right one answers for the right half, but its view is the weaker."""

    class Two(Knowing):
        def decode(self, *args: Any) -> list[Any]:
            maps = []
            for number in range(2):
                ids = np.full((100, 100), 2, dtype=np.int32)
                low, high = ((20, 40), (15, 45))[number]
                ids[low:high, (70, 10)[number] : (90, 30)[number]] = 1
                maps.append(PanopticMap(ids, (Segment(1, 0, (0.9, 0.6)[number]), Segment(2, 2, 0.5))))
            return maps

    blank = PanopticMap(np.zeros((100, 160), dtype=np.int32))
    runtime = known(monkeypatch, Two("panoptic", 100, blank, THINGS))
    found = predict_image(runtime, np.zeros((100, 160, 1), dtype=np.uint8), PredictOptions(tiling="always", overlap=0.4))
    assert isinstance(found, PanopticMap)
    assert [(segment.label, segment.score) for segment in found.segments] == [(0, 0.9), (2, 0.5)]
    expected = np.full((100, 160), 2)
    expected[20:40, 70:90] = 1  # the stronger view, everywhere
    expected[15:45, 80:90] = 1  # and where the right tile answers, what it saw of the thing
    np.testing.assert_array_equal(found.ids, expected)
