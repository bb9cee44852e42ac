"""The second look at a scan, shrunk, for objects larger than the overlap of its tiles."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pelagia.core import masks as core_masks
from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.frame import Frame
from pelagia.core.scan import Scan
from pelagia.core.types import Category, Instances, MaskCrop, PackedCrop, PanopticMap, Segment
from pelagia.data.augment import FILL
from pelagia.decode import DecodeOptions
from pelagia.decode.registry import DECODERS
from pelagia.errors import OptionError
from pelagia.infer.coarse import Enlarged, Shrunk, levels, shrink, take_larger
from pelagia.infer.options import PredictOptions
from pelagia.infer.panoptic_writer import predict_panoptic
from pelagia.infer.predict import predict_image
from pelagia.infer.watching import Watch

SIDE = 64


class Blobs:
    """Finds connected bright regions, of class 0 (grey 100) or 1 (grey 200); those that fill an eighth of the view are not
    recognised where they are cut on two opposite sides, as a network does not know the middle of a large animal."""

    def __init__(self, task: str = "detect", *, blind: bool = False) -> None:
        self.card = ModelCard(
            name="blobs",
            task=task,  # type: ignore[arg-type]
            decoder="blobs",
            categories=(Category(1, "grey"), Category(2, "bright")),
            input_size=(SIDE, SIDE),
            stride=1,
            normalisation=Normalisation(0.0, 255.0),
        )
        self.blind = blind
        self.seen = 0

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self.seen += len(images)
        return {"image": images[:, 0] * 255}

    def decode(
        self, outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
    ) -> list[Instances]:
        return [self.find(image, frame) for image, frame in zip(outputs["image"], frames, strict=True)]

    def find(self, image: NDArray[Any], frame: Frame) -> Instances:
        ends = frame.points(np.stack([np.arange(SIDE), np.arange(SIDE)], axis=1).astype(float) + 1)  # the rest is padding
        shown = (ends[None, :, 0] <= frame.width + 1e-6) & (ends[:, None, 1] <= frame.height + 1e-6)
        number, _ = ndimage.label((image > 60) & shown)
        boxes, labels, scores, masks = [], [], [], []
        for k, (rows, columns) in enumerate(ndimage.find_objects(number), start=1):
            box = [columns.start, rows.start, columns.stop, rows.stop]
            if self.blind and any(box[axis] == 0 and box[axis + 2] == SIDE for axis in (0, 1)):
                continue
            area = np.count_nonzero(number == k)
            boxes.append(box)
            labels.append(int(image[number == k].max() > 150))
            scores.append(0.5 + area / 10 / SIDE**2)
            masks.append(self.enlarged(number == k, box, frame))
        found = frame.boxes(np.array(boxes, dtype=np.float64).reshape(-1, 4))
        return Instances(
            labels=np.array(labels, dtype=np.int64),
            boxes=found,
            scores=np.array(scores),
            masks=tuple(masks) if self.card.task in ("instance", "panoptic") and masks else None,
        )

    def enlarged(self, mask: NDArray[np.bool_], box: list[int], frame: Frame) -> MaskCrop:
        x1, y1, x2, y2 = (round(v) for v in frame.boxes(np.array([box], dtype=np.float64))[0])
        x, y = np.meshgrid(np.arange(x1, x2) + 0.5, np.arange(y1, y2) + 0.5)
        points = np.floor(np.stack([x, y], axis=-1) @ frame.inverse[:, :2].T + frame.inverse[:, 2]).astype(int)
        points = np.clip(points, 0, SIDE - 1)
        return MaskCrop(x1, y1, mask[points[..., 1], points[..., 0]])


def predict(monkeypatch: pytest.MonkeyPatch, runtime: Blobs, image: NDArray[Any], **options: Any) -> Instances:
    monkeypatch.setitem(DECODERS, "blobs", runtime.decode)
    found = predict_image(runtime, image, PredictOptions(tiling="always", **options))
    assert isinstance(found, Instances)
    return found


def scene() -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int]]]:
    """A large animal of 200 x 150 pixels, one of 60 x 20 across a seam, and small ones, some beside and one inside the bounds of
    the large one, which has a hole there."""
    image = np.zeros((300, 420, 1), dtype=np.uint8)
    image[60:210, 100:300] = 200
    image[120:160, 180:220] = 0  # the hole
    image[135:143, 195:203] = 100
    image[240:260, 30:90] = 200
    for x in range(10, 400, 40):
        image[10:18, x : x + 9] = 100
    boxes = [(100, 60, 300, 210), (195, 135, 203, 143), (30, 240, 90, 260)]
    return image, boxes + [(x, 10, x + 9, 18) for x in range(10, 400, 40)]


def of_size(found: Instances, least: float) -> NDArray[Any]:
    sides = found.box_array[:, 2:] - found.box_array[:, :2]
    return found.box_array[(sides >= least).any(axis=1)]


@pytest.mark.parametrize("task", ["detect", "instance"])
def test_an_object_larger_than_a_tile_replaces_its_pieces(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    image, boxes = scene()
    without = predict(monkeypatch, Blobs(task, blind=True), image)
    assert len(of_size(without, 150)) == 0  # pieces only: no tile shows two opposite ends
    assert len(without) != len(boxes)
    found = predict(monkeypatch, Blobs(task, blind=True), image, coarse=True)
    large = of_size(found, 150)
    assert len(large) == 1
    np.testing.assert_allclose(large[0], boxes[0], atol=8)
    assert len(found) == len(boxes)
    order = np.lexsort(np.array(boxes)[:, :2].T)
    mine = found.box_array[np.lexsort(np.round(found.box_array[:, :2] / 20).T)]
    np.testing.assert_allclose(np.sort(mine[:, 0]), np.sort(np.array(boxes)[order][:, 0]), atol=8)
    assert found.scores is not None
    assert (np.diff(found.scores) <= 0).all()
    if task == "instance":
        assert found.masks is not None
        areas = sorted(mask.area for mask in found.masks)
        assert areas[-1] == pytest.approx(200 * 150 - 40 * 40, rel=0.15)


def test_what_tiles_put_together_exactly_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = scene()
    image[120:160, 180:220] = 200
    found = predict(monkeypatch, Blobs("instance"), image, coarse=True, overlap=0.4)
    assert [100, 60, 300, 210] in found.box_array.tolist()
    assert len(found) == 12


@given(st.integers(0, 2**32 - 1), st.integers(100, 300), st.integers(100, 300))
@settings(max_examples=12, deadline=None)
def test_a_second_look_changes_nothing_where_objects_are_small(seed: int, width: int, height: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 1), dtype=np.uint8)
    for _ in range(25):
        x, y = rng.integers(0, [width, height])
        image[y : y + int(rng.integers(2, 11)), x : x + int(rng.integers(2, 11))] = rng.choice([100, 200])
    # What comes so near to each other that it is one from afar is taken out.
    number, _ = ndimage.label(ndimage.maximum_filter(image[..., 0], 17))
    for k, (rows, columns) in enumerate(ndimage.find_objects(number), start=1):
        if max(rows.stop - rows.start, columns.stop - columns.start) > 16 + 20:
            image[number == k] = 0
    with pytest.MonkeyPatch.context() as patch:
        once = predict(patch, Blobs(), image, overlap=0.4)
        twice = predict(patch, Blobs(), image, overlap=0.4, coarse=True)
    np.testing.assert_array_equal(once.box_array, twice.box_array)
    np.testing.assert_array_equal(once.scores, twice.scores)


def test_levels_end_with_the_whole_scan_and_grow_by_four() -> None:
    assert levels((640, 640), (640, 640)) == []
    assert levels((1280, 900), (640, 640)) == [2.0]
    assert levels((12_000, 9_000), (640, 640)) == [4.0, 18.75]
    assert levels((30_000, 20_000), (640, 640)) == [4.0, 16.0, 46.875]
    assert [shrink(factor) for factor in (1.2, 4.0, 18.75)] == [1, 4, 18]


def test_the_pyramid_costs_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((24 * SIDE, 24 * SIDE, 1), dtype=np.uint8)
    counts = []
    for coarse in (False, True):
        runtime = Blobs()
        predict(monkeypatch, runtime, image, coarse=coarse)
        counts.append(runtime.seen)
    assert counts[0] < counts[1] < 1.1 * counts[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(96, 64), (97, 61), (50, 3)])
def test_a_shrunk_scan_is_the_mean_of_blocks(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], dtype: Any, channels: int
) -> None:
    monkeypatch.setattr("pelagia.infer.coarse._BYTES", 2000)  # several strips
    image = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (size[1], size[0], channels), endpoint=True).astype(dtype)
    small = Shrunk(Scan.of(image), 4)
    padded = np.pad(image, ((0, -size[1] % 4), (0, -size[0] % 4), (0, 0)), mode="edge").astype(np.float64)
    rows, columns = padded.shape[0] // 4, padded.shape[1] // 4
    expected = padded.reshape(rows, 4, columns, 4, channels).mean(axis=(1, 3))
    assert (small.width, small.height) == (columns, rows)
    whole = small.read(0, 0, columns, rows)
    assert whole.dtype == dtype
    np.testing.assert_allclose(whole, expected, atol=0.51)
    np.testing.assert_array_equal(small.read(2, 0, columns - 2, rows), whole[:, 2:])
    with pytest.raises(OptionError, match="outside"):
        small.read(0, 0, columns + 1, rows)


def test_what_is_taken_from_the_coarse_look() -> None:
    def several(*rows: tuple[list[float], int, float]) -> Instances:
        boxes, labels, scores = zip(*rows, strict=True)
        return Instances(labels=np.array(labels), boxes=np.array(boxes), scores=np.array(scores))

    piece, whole, small = [0.0, 0, 60, 40], [200.0, 0, 280, 40], [20.0, 10, 30, 20]
    fine = several((piece, 1, 0.9), (whole, 0, 0.8), (small, 0, 0.7))
    large, same, little = [0.0, 0, 150, 40], [202.0, 0, 284, 40], [300.0, 0, 320, 20]
    coarse = several((large, 0, 0.6), (same, 0, 0.95), (little, 0, 0.5))
    cut = np.array([True, False, False])
    found, left, came = take_larger((fine, cut), (coarse, np.zeros(3, dtype=np.bool_)), 64)
    # The piece goes though its class is another; the whole one stays, and the small one inside the large one.
    np.testing.assert_array_equal(found.boxes, [whole, small, large])
    assert not left.any()
    assert came.tolist() == [1, 2, -1]
    # A piece that is almost the object stays.
    found, left, _ = take_larger((several((large, 0, 0.3)), np.array([True])), (coarse, cut), 64)
    np.testing.assert_array_equal(found.boxes, [same, large])
    assert left.tolist() == [False, True]
    # Two that touch are no third one, which holds both.
    pair = several(([0.0, 0, 60, 40], 0, 0.9), ([60.0, 0, 120, 40], 0, 0.8))
    found, *_ = take_larger((pair, np.zeros(2, dtype=np.bool_)), (several(([0.0, 0, 120, 40], 0, 0.99)), np.array([False])), 64)
    np.testing.assert_array_equal(found.boxes, pair.boxes)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_an_enlarged_mask_is_the_mask_enlarged(seed: int, factor: int) -> None:
    """Whole, by the part, in its area; cut where the scan ends."""
    rng = np.random.default_rng(seed)
    small = MaskCrop(*rng.integers(0, 5, 2).tolist(), rng.random(rng.integers(1, 12, 2)) < 0.5)
    rows, columns = small.shape
    ends = [factor * (start + side) - int(rng.integers(factor)) for start, side in ((small.x, columns), (small.y, rows))]
    large = Enlarged(small, factor, (ends[0], ends[1]))
    whole = small.bitmap.repeat(factor, axis=0).repeat(factor, axis=1)[: ends[1] - large.y, : ends[0] - large.x]
    assert (large.x, large.y, large.shape) == (factor * small.x, factor * small.y, whole.shape)
    np.testing.assert_array_equal(large.bitmap, whole)
    assert large.area == np.count_nonzero(whole)
    for crop in (large, copy(large), PackedCrop(large.x, large.y, whole), MaskCrop(large.x, large.y, whole)):
        (top, bottom), (left, right) = (sorted(rng.integers(0, side + 3, 2).tolist()) for side in whole.shape)
        part = crop.part(slice(top, bottom), slice(left, right))
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


def test_a_class_map_has_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="coarse is for objects and the things of panoptic maps"):
        predict(monkeypatch, Blobs("semantic"), np.zeros((100, 100, 1), dtype=np.uint8), coarse=True)


# Panoptic maps


class Segments(Blobs):
    """The same as segments on a ground, stuff; what is not recognised is ground too. A view at full size is exact."""

    def __init__(self, *, blind: bool = True) -> None:
        super().__init__("instance", blind=blind)
        categories = (*self.card.categories, Category(3, "water", is_thing=False))
        self.card = replace(self.card, task="panoptic", categories=categories, manifest={"full_resolution": True})

    def decode(  # type: ignore[override]
        self, outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
    ) -> list[PanopticMap]:
        return [self.segments(image, frame) for image, frame in zip(outputs["image"], frames, strict=True)]

    def segments(self, image: NDArray[Any], frame: Frame) -> PanopticMap:
        scan = np.abs(image - FILL) > 2  # its frame is that of the tile, which may stick out of the scan
        image = image.copy()
        image[:, SIDE - scan.any(axis=0)[::-1].argmax() :] = 0
        image[SIDE - scan.any(axis=1)[::-1].argmax() :] = 0
        found = self.find(image, frame)
        assert found.scores is not None
        ids = np.full((frame.height, frame.width), 1, dtype=np.int32)
        segments = [Segment(1, 2, 0.5)]
        for k, mask in enumerate(found.masks or (), start=2):
            ids[core_masks.paste(mask, frame.height, frame.width)] = k
            segments.append(Segment(k, int(found.labels[k - 2]), float(found.scores[k - 2])))
        return PanopticMap(ids, tuple(segments))


def segments_of(monkeypatch: pytest.MonkeyPatch, runtime: Blobs, image: NDArray[Any], **options: Any) -> PanopticMap:
    monkeypatch.setitem(DECODERS, "blobs", runtime.decode)
    found = predict_image(runtime, image, PredictOptions(tiling="always", **options))
    assert isinstance(found, PanopticMap)
    return found


def test_a_thing_larger_than_a_tile_is_one_segment_below_what_finer_tiles_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes = scene()
    image[135:143, 195:203] = 0
    image[100:108, 240:248] = 0  # a small one on the large one, which is not seen from afar
    image[102:106, 242:246] = 100
    truth = image[..., 0] == 200
    truth[:60] = truth[210:] = False
    without = segments_of(monkeypatch, Segments(), image)
    pieces = [np.count_nonzero((without.ids == item.id) & truth) for item in without.segments if item.label == 1]
    assert max(pieces) < 0.5 * truth.sum()
    found = segments_of(monkeypatch, Segments(), image, coarse=True)
    things = [item for item in found.segments if item.label < 2]
    assert len(things) == len(boxes)
    large = max(things, key=lambda item: np.count_nonzero(found.ids == item.id))
    assert large.label == 1
    pixels = found.ids == large.id
    assert np.count_nonzero(pixels & truth) / np.count_nonzero(pixels | truth) > 0.9
    small = [item.id for item in things if item.label == 0]
    np.testing.assert_array_equal(np.isin(found.ids, small), image[..., 0] == 100)
    middle = next(item.id for item in things if item.label == 1 and item.id != large.id)
    np.testing.assert_allclose(np.argwhere(found.ids == middle)[[0, -1]], [[240, 30], [259, 89]], atol=8)
    assert [item.id for item in found.segments] == list(range(1, len(things) + 2))
    scores = [item.score for item in things]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert (found.ids > 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(100, 300), st.integers(100, 300))
@settings(max_examples=8, deadline=None)
def test_a_second_look_changes_no_map_of_small_things(seed: int, width: int, height: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 1), dtype=np.uint8)
    for y in range(4, height - 16, 40):
        for x in range(4, width - 16, 40):
            image[y : y + int(rng.integers(2, 11)), x : x + int(rng.integers(2, 11))] = rng.choice([100, 200])
    with pytest.MonkeyPatch.context() as patch:
        once = segments_of(patch, Segments(blind=False), image, overlap=0.4)
        twice = segments_of(patch, Segments(blind=False), image, overlap=0.4, coarse=True)
    np.testing.assert_array_equal(once.ids, twice.ids)
    assert once.segments == twice.segments


def test_tiles_of_all_looks_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((300, 420, 1), dtype=np.uint8)
    runtime = Segments()
    monkeypatch.setitem(DECODERS, "blobs", runtime.decode)
    options = PredictOptions(tiling="always", coarse=True)
    notes: list[str] = []
    watched = Watch(lambda steps, note="": notes.append(note), lambda sentence: None).over(runtime, Scan.of(image), options)
    predict_image(watched, image, options)
    assert notes[-1] == f"image: {runtime.seen} of {runtime.seen} tiles"


class Drawn(Scan):
    """A scan that is made while it is read: one bright thing, nine tenths as high as it is."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(None, np.zeros((1, 1, 1), dtype=np.uint8))
        self.width, self.height = width, height

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        rows, columns = np.arange(y, y + height)[:, None], np.arange(x, x + width)
        ends = self.height // 20
        inside = (rows >= ends) & (rows < self.height - ends) & (columns >= 40) & (columns < self.width - 40)
        return np.where(inside, 200, 0).astype(np.uint8)[..., None]


def test_a_second_look_at_a_map_takes_no_memory_for_its_largest_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pelagia.infer.preview.PICTURE_PIXELS", 10_000)
    monkeypatch.setattr("pelagia.infer.coarse._BYTES", 1 << 18)
    runtime = Segments()
    monkeypatch.setitem(DECODERS, "blobs", runtime.decode)
    peaks = []
    for coarse in (False, True):
        tracemalloc.start()
        stored = predict_panoptic(runtime, Drawn(600, 6000), tmp_path / "a.tif", PredictOptions(batch=2, coarse=coarse))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    things = [area for area, segment in zip(stored.areas.tolist(), stored.segments, strict=True) if segment.label == 1]
    assert max(things) == pytest.approx(520 * 5400, rel=0.2)
    assert peaks[1] < peaks[0] + 0.25 * max(things)
