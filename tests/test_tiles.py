"""Tiled equals whole: a predictor without error, which reads the objects from the pixels it is shown, must find on tiles exactly
what it finds on the whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.frame import Frame
from pelagia.core.types import Category, Instances, MaskCrop
from pelagia.decode import DecodeOptions
from pelagia.decode.registry import DECODERS
from pelagia.errors import OptionError
from pelagia.infer.joining import join
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.tiles import Tile, lay_tiles
from pelagia.infer.view_pairs import meet

INPUT = 128
OVERLAP = 48
CLASSES = 3


class PerfectRuntime:
    """Its network is the identity; the picture holds at each pixel the number of the object there, 0 for none."""

    def __init__(self, task: str = "detect", **manifest: Any) -> None:
        self.card = ModelCard(
            name="perfect",
            task=task,  # type: ignore[arg-type]
            decoder="perfect",
            categories=tuple(Category(i, f"class {i}") for i in range(CLASSES)),
            input_size=(INPUT, INPUT),
            normalisation=Normalisation(0.0, 65535.0),
            manifest=manifest,
        )
        self.sizes: list[int] = []

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self.sizes.append(len(images))
        return {"ids": np.rint(images[:, 0] * 65535).astype(np.int64)}


def objects(ids: NDArray[Any], task: str) -> Instances:
    """Each object's class and score, which follow from its number, and what its visible pixels tell: bounds, least rectangle,
    mask, and as keypoints the topmost, lowest, leftmost and rightmost of them."""
    numbers = [int(number) for number in np.unique(ids) if number not in (0, 114)]
    boxes, oriented = np.zeros((len(numbers), 4)), np.zeros((len(numbers), 5))
    masks, keypoints = [], np.ones((len(numbers), 4, 3))
    for row, number in enumerate(numbers):
        y, x = np.nonzero(ids == number)
        boxes[row] = x.min(), y.min(), x.max() + 1, y.max() + 1
        masks.append(core_masks.crop_from_bitmap(ids == number))
        for point, place in enumerate((y.argmin(), y.argmax(), x.argmin(), x.argmax())):
            keypoints[row, point, :2] = x[place] + 0.5, y[place] + 0.5
        if task == "oriented":
            points = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
            (cx, cy), (w, h), angle = cv2.minAreaRect(points.astype(np.float32))
            oriented[row] = core_oriented.canonical(np.array([[cx, cy, w, h, np.deg2rad(angle)]]))[0]
    scores = np.array([0.3 + 0.6 * (number * 7919 % 1000) / 1000 for number in numbers])
    labels = np.array([number % CLASSES for number in numbers], dtype=np.int64)
    if task == "oriented":
        return Instances(labels=labels, oriented=oriented, scores=scores)
    return Instances(
        labels=labels,
        boxes=boxes,
        scores=scores,
        masks=tuple(masks) if task == "instance" and numbers else None,
        keypoints=keypoints if task == "keypoints" and numbers else None,
    )


def decode_perfect(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Instances]:
    found = []
    for ids, frame in zip(outputs["ids"], frames, strict=True):
        seen = objects(ids, card.task)
        if seen.oriented is not None:
            found.append(seen.replace(oriented=frame.oriented(seen.oriented)))
        else:
            assert seen.boxes is not None
            moved = seen.replace(boxes=frame.boxes(seen.boxes))
            if seen.masks is not None:  # tiles at the scale of the image: whole pixels
                x, y = (round(value) for value in frame.matrix[:, 2])
                moved = moved.replace(masks=tuple(MaskCrop(mask.x + x, mask.y + y, mask.bitmap) for mask in seen.masks))
            if seen.keypoints is not None:
                points = np.concatenate([frame.points(seen.keypoints[..., :2]), seen.keypoints[..., 2:]], axis=2)
                moved = moved.replace(keypoints=points)
            found.append(moved)
    return found


@pytest.fixture(autouse=True)
def _perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "perfect", decode_perfect)


def draw(rng: np.random.Generator, width: int, height: int, count: int, longest: float) -> NDArray[np.uint16]:
    """Rotated ellipses, often touching; none is longer than `longest`, and what one covers of another is not seen."""
    ids = np.zeros((height, width), dtype=np.uint16)
    for number in range(200, 200 + count):
        axes = rng.uniform(2, longest / 2 - 1, 2)
        centre = rng.uniform(0, [width, height])
        cv2.ellipse(ids, (tuple(centre), tuple(2 * axes), float(rng.uniform(0, 180))), int(number), -1)
    # Only the largest connected piece of an object is kept: what another one cuts in two would be two objects.
    for number in range(200, 200 + count):
        parts, labels, stats, _ = cv2.connectedComponentsWithStats((ids == number).astype(np.uint8), connectivity=8)
        if parts > 2:
            keep = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
            ids[(labels > 0) & (labels != keep)] = 0
    return ids


def rows(found: Instances) -> NDArray[Any]:
    shape = found.oriented if found.oriented is not None else found.boxes
    assert shape is not None
    assert found.scores is not None
    table = np.column_stack([found.scores, found.labels, shape])
    return table[np.lexsort(table[:, ::-1].T)]


@given(st.integers(0, 2**32 - 1), st.integers(150, 420), st.integers(60, 400), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_tiled_equals_whole_exactly(seed: int, width: int, height: int, count: int) -> None:
    ids = draw(np.random.default_rng(seed), width, height, count, OVERLAP - 4)
    options = PredictOptions(tiling="always", overlap=OVERLAP / INPUT, batch=4)
    found = predict_image(PerfectRuntime(), ids, options)
    np.testing.assert_array_equal(rows(found), rows(objects(ids, "detect")))
    assert found.scores is not None
    assert (np.diff(found.scores) <= 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(150, 420), st.integers(60, 400), st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_tiled_oriented_equals_whole(seed: int, width: int, height: int, count: int) -> None:
    # The least rectangle of an ellipse is at most sqrt(2) times wider than its bounds, so the ellipses are smaller here.
    ids = draw(np.random.default_rng(seed), width, height, count, 30)
    found = predict_image(PerfectRuntime("oriented"), ids, PredictOptions(tiling="always", overlap=OVERLAP / INPUT))
    np.testing.assert_allclose(rows(found), rows(objects(ids, "oriented")), atol=1e-3)


def pictures(found: Instances, task: str) -> list[tuple[Any, ...]]:
    """Per object its row and its mask or keypoints, in the order of `rows`."""
    assert found.scores is not None
    assert found.boxes is not None
    order = np.lexsort(np.column_stack([found.scores, found.labels, found.boxes])[:, ::-1].T).tolist()
    if task == "keypoints":
        assert found.keypoints is not None or not len(found)
        return [tuple(found.keypoints[index].ravel()) for index in order]  # type: ignore[index]
    assert found.masks is not None or not len(found)
    masks = [core_masks.crop_from_rle(core_masks.crop_to_rle(found.masks[index], 500, 700)) for index in order]  # type: ignore[index]
    return [(mask.x, mask.y, mask.bitmap.shape, mask.bitmap.tobytes()) for mask in masks]


@pytest.mark.parametrize("task", ["instance", "keypoints"])
@given(st.integers(0, 2**32 - 1), st.integers(150, 420), st.integers(60, 400), st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_tiled_masks_and_keypoints_equal_whole_exactly(task: str, seed: int, width: int, height: int, count: int) -> None:
    ids = draw(np.random.default_rng(seed), width, height, count, OVERLAP - 4)
    found = predict_image(PerfectRuntime(task), ids, PredictOptions(tiling="always", overlap=OVERLAP / INPUT, batch=4))
    assert isinstance(found, Instances)
    whole = objects(ids, task)
    np.testing.assert_array_equal(rows(found), rows(whole))
    assert pictures(found, task) == pictures(whole, task)


@pytest.mark.parametrize("vertical", [False, True])
def test_masks_of_pieces_are_united(vertical: bool) -> None:
    ids = np.zeros((260, 600), dtype=np.uint16)
    cv2.polylines(ids, [np.array([[20, 30], [300, 200], [560, 40]])], False, 201, 9)  # a bent chain through all tiles
    cv2.polylines(ids, [np.array([[20, 60], [300, 230], [560, 70]])], False, 204, 9)  # and one along it: their boxes overlap
    ids = np.ascontiguousarray(ids.T) if vertical else ids
    found = predict_image(PerfectRuntime("instance"), ids, PredictOptions(tiling="always", overlap=0.4))
    assert isinstance(found, Instances)
    whole = objects(ids, "instance")
    np.testing.assert_array_equal(rows(found), rows(whole))
    assert pictures(found, "instance") == pictures(whole, "instance")


def test_keypoints_are_those_of_the_piece_that_sees_more() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(60, 0, 100, 100)]
    points = np.array([[[10.0, 10, 0.9], [50, 10, 0.8], [150, 10, 0.1]]])

    def piece(box: list[float], score: float, seen: list[float]) -> Instances:
        own = points.copy()
        own[0, :, 2] = seen
        return Instances(labels=np.array([0]), boxes=np.array([box]), scores=np.array([score]), keypoints=own)

    left, right = piece([5.0, 5, 100, 15], 0.6, [0.9, 0.8, 0.1]), piece([60.0, 5, 155, 15], 0.9, [0.1, 0.2, 0.7])
    found = join([left, right], tiles, (160, 100), margin=1.0)
    np.testing.assert_array_equal(found.boxes, [[5, 5, 155, 15]])
    assert found.scores is not None
    assert found.scores.tolist() == [0.9]
    assert found.keypoints is not None
    assert found.keypoints[0, :, 2].tolist() == [0.9, 0.8, 0.1]


@pytest.mark.parametrize("vertical", [False, True])
def test_an_object_longer_than_the_overlap_is_put_together(vertical: bool) -> None:
    ids = np.zeros((200, 600), dtype=np.uint16)
    ids[60:75, 20:560] = 201  # spans all tiles of a row
    ids[120:135, 80:180] = 204  # two of one class, side by side, cut by one border
    ids[150:165, 80:180] = 207
    ids = np.ascontiguousarray(ids.T) if vertical else ids
    found = predict_image(PerfectRuntime(), ids, PredictOptions(tiling="always", overlap=0.2))
    np.testing.assert_array_equal(rows(found), rows(objects(ids, "detect")))


def test_a_long_oriented_object_is_put_together() -> None:
    ids = np.zeros((300, 300), dtype=np.uint16)
    cv2.line(ids, (30, 40), (270, 250), 201, 9)
    found = predict_image(PerfectRuntime("oriented"), ids, PredictOptions(tiling="always", overlap=0.4))
    assert len(found) == 1
    whole = objects(ids, "oriented")
    assert found.oriented is not None
    assert whole.oriented is not None
    assert core_oriented.iou(found.oriented, whole.oriented)[0, 0] > 0.8


def test_neighbours_inside_one_tile_are_never_touched() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 100, 100)]
    boxes = np.array([[10.0, 10, 50, 50], [11, 11, 51, 51], [10, 10, 50, 50]])
    inner = Instances(labels=np.zeros(3, dtype=np.int64), boxes=boxes, scores=np.array([0.9, 0.8, 0.7]))
    found = join([inner, Instances.empty(scores=True)], tiles, (180, 100), margin=1.0)
    np.testing.assert_array_equal(found.boxes, boxes)


def test_two_views_of_two_overlapping_objects_stay_two() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(50, 0, 100, 100)]
    boxes = np.array([[60.0, 10, 80, 30], [64, 10, 84, 30]])  # IoU 0.67: both would not survive one suppression at 0.5
    first = Instances(labels=np.zeros(2, dtype=np.int64), boxes=boxes, scores=np.array([0.9, 0.6]))
    second = Instances(labels=np.zeros(2, dtype=np.int64), boxes=boxes + 0.5, scores=np.array([0.7, 0.8]))
    found = join([first, second], tiles, (150, 100), margin=1.0)
    np.testing.assert_array_equal(found.boxes, [boxes[0], boxes[1] + 0.5])


def test_a_sliver_of_another_class_goes_and_another_class_beside_it_stays() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(60, 0, 100, 100)]
    sliver = Instances(labels=np.array([1]), boxes=np.array([[62.0, 20, 100, 40]]), scores=np.array([0.9]))
    whole = Instances(labels=np.array([0]), boxes=np.array([[61.5, 19, 110, 41]]), scores=np.array([0.5]))
    assert join([sliver, whole], tiles, (160, 100), margin=1.0).labels.tolist() == [0]
    beside = whole.replace(boxes=np.array([[61.5, 50, 110, 70]]))
    assert join([sliver, beside], tiles, (160, 100), margin=1.0).labels.tolist() == [1, 0]


def test_each_place_has_one_judge() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(60, 0, 100, 100)]  # they are equally far at x = 80

    def view(x: float) -> Instances:
        return Instances(labels=np.array([0]), boxes=np.array([[x - 5, 20, x + 5, 40]]), scores=np.array([0.5]))

    nothing = Instances.empty(scores=True)
    assert len(join([view(90), nothing], tiles, (160, 100), margin=1.0)) == 0
    assert len(join([nothing, view(70)], tiles, (160, 100), margin=1.0)) == 0
    assert len(join([view(81), nothing], tiles, (160, 100), margin=1.0)) == 1
    assert len(join([view(70), view(90)], tiles, (160, 100), margin=1.0)) == 2


@pytest.mark.parametrize(("agnostic", "count"), [(False, 2), (True, 1)])
def test_one_place_of_two_classes(agnostic: bool, count: int) -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(50, 0, 100, 100)]
    views = [
        Instances(labels=np.array([label]), boxes=np.array([[65.0, 10, 85, 30]]), scores=np.array([0.5 + label / 10]))
        for label in range(2)
    ]
    assert len(join(views, tiles, (150, 100), margin=1.0, agnostic=agnostic)) == count


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(64, 700), st.integers(0, 300), st.sampled_from([1, 16, 32]))
@settings(max_examples=100, deadline=None)
def test_tiles_cover_overlap_and_keep_the_grid(width: int, height: int, side: int, overlap: int, multiple: int) -> None:
    if overlap > side - multiple:
        with pytest.raises(OptionError, match="overlap"):
            lay_tiles((width, height), (side, side), overlap, multiple)
        return
    tiles = lay_tiles((width, height), (side, side), overlap, multiple)
    for axis, length in ((0, width), (1, height)):
        offsets = sorted({tile.box[axis] for tile in tiles})
        assert offsets[0] == 0
        assert all(offset % multiple == 0 for offset in offsets)
        assert length <= offsets[-1] + side < max(length, side) + multiple
        gaps = np.diff(offsets)
        assert (gaps > 0).all()
        assert (gaps <= max(side - overlap, multiple)).all()
    assert len(tiles) == len(set(tiles))


def test_when_tiles_are_used() -> None:
    ids = np.zeros((150, 190), dtype=np.uint16)
    ids[20:40, 20:40] = 201
    whole = PerfectRuntime()
    predict_image(whole, ids)
    assert whole.sizes == [1]
    tiled = PerfectRuntime()
    predict_image(tiled, np.pad(ids, ((0, 0), (0, 10))), PredictOptions(batch=3))
    assert sum(tiled.sizes) == 4
    assert max(tiled.sizes) == 3
    never = PerfectRuntime()
    predict_image(never, np.pad(ids, ((0, 0), (0, 10))), PredictOptions(tiling="never"))
    assert never.sizes == [1]


def test_tiles_have_the_scale_of_the_training_images() -> None:
    image = np.zeros((400, 700), dtype=np.uint16)
    image[100:140, 300:360] = 201
    runtime = PerfectRuntime(image_size=[256, 192])
    found = predict_image(runtime, image)
    assert sum(runtime.sizes) == 8  # tiles of 256 x 256 pixels
    np.testing.assert_array_equal(found.boxes, [[300, 100, 360, 140]])
    wider = PerfectRuntime(object_px=70)
    predict_image(wider, image[:, :300])
    narrow = PerfectRuntime()
    predict_image(narrow, image[:, :300])
    assert sum(wider.sizes) > sum(narrow.sizes)


def test_most_keeps_the_strongest_of_all_tiles() -> None:
    ids = draw(np.random.default_rng(5), 500, 400, 40, 30)
    everything = predict_image(PerfectRuntime(), ids)
    five = predict_image(PerfectRuntime(), ids, PredictOptions(most=5))
    np.testing.assert_array_equal(five.scores, everything.scores[:5])  # type: ignore[index]


@pytest.mark.parametrize("image", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(image: NDArray[Any]) -> None:
    with pytest.raises(OptionError, match="an image must be"):
        predict_image(PerfectRuntime(), image)


def beside_borders(rng: np.random.Generator, size: tuple[int, int], overlap: int, longest: int) -> NDArray[np.uint16]:
    """Rectangles that begin, end or lie across borders of tiles to the pixel, as long as the overlap or longer, side by side."""
    tiles = lay_tiles(size, (INPUT, INPUT), overlap)
    lines = [sorted({tile.box[axis] for tile in tiles} | {tile.box[axis + 2] for tile in tiles}) for axis in (0, 1)]
    ids = np.zeros(size[::-1], dtype=np.uint16)
    number = 200
    for kind in range(60):
        start = [int(rng.choice(line)) for line in lines]
        extent = [int(side) for side in rng.integers(1, longest + 1, 2)]
        axis = kind % 2
        if kind % 5 == 0:
            extent[axis] = longest
        start[axis] -= (0, extent[axis], extent[axis] // 2, 1, extent[axis] - 1)[int(rng.integers(5))]
        if kind % 7 == 0:
            start = [value + int(rng.integers(-3, 4)) for value in start]
        place = np.s_[max(start[1], 0) : max(start[1] + extent[1], 0), max(start[0], 0) : max(start[0] + extent[0], 0)]
        if ids[place].size and not ids[place].any():
            ids[place] = number
            number += 3 if kind % 3 else 1  # most are of one class
    return ids


@pytest.mark.parametrize("task", ["detect", "oriented", "instance", "keypoints"])
@pytest.mark.parametrize("larger", [0, 2, 200])
def test_objects_on_the_borders_of_tiles(task: str, larger: int) -> None:
    """No longer than the overlap, or just longer, or larger than a tile, and all side by side."""

    @given(st.integers(0, 2**32 - 1), st.integers(150, 420), st.integers(60, 400), st.integers(8, 80))
    @settings(max_examples=6, deadline=None)
    def check(seed: int, width: int, height: int, overlap: int) -> None:
        ids = beside_borders(np.random.default_rng(seed), (width, height), overlap, overlap + larger)
        found = predict_image(PerfectRuntime(task), ids, PredictOptions(tiling="always", overlap=overlap / INPUT))
        assert isinstance(found, Instances)
        whole = objects(ids, task)
        if task == "oriented":
            assert len(found) == len(whole)
            np.testing.assert_allclose(rows(found), rows(whole), atol=1e-3 if larger < 200 else 2.0)
            return
        np.testing.assert_array_equal(rows(found), rows(whole))
        if task == "instance" or (task == "keypoints" and not larger):
            assert pictures(found, task) == pictures(whole, task)

    check()


def test_hundreds_of_touching_objects_stay_hundreds() -> None:
    ids = np.zeros((300, 400), dtype=np.uint16)
    for row in range(30):
        for column in range(25):
            ids[10 * row : 10 * row + 10, 16 * column : 16 * column + 16] = 201 + 3 * (25 * row + column)  # one class, no gap
    for task in ("detect", "instance"):
        found = predict_image(PerfectRuntime(task), ids, PredictOptions(tiling="always", overlap=0.2))
        assert len(found) == 750
        np.testing.assert_array_equal(rows(found), rows(objects(ids, task)))


@pytest.mark.parametrize("slope", [0.05, 0.4, 1.0, 3.0])
def test_very_long_thin_oriented_objects_side_by_side(slope: float) -> None:
    """Through six tiles and more, four pixels apart, their bounds nearly the same."""
    ids = np.zeros((700, 700), dtype=np.uint16)
    dx, dy = np.array([1.0, slope]) / np.hypot(1, slope)
    reach = 600 / max(dx, dy)
    for k in range(6):
        x, y = 40 - k * 10 * dy + 60 * dy, 40 + k * 10 * dx
        cv2.line(ids, (round(x), round(y)), (round(x + reach * dx), round(y + reach * dy)), 201 + 3 * k, 5)
    found = predict_image(PerfectRuntime("oriented"), ids, PredictOptions(tiling="always", overlap=0.2))
    whole = objects(ids, "oriented")
    assert len(found) == len(whole) == 6
    assert found.oriented is not None
    assert whole.oriented is not None
    assert core_oriented.iou(found.oriented, whole.oriented).max(axis=0).min() > 0.8


@pytest.mark.parametrize("long", [False, True])
def test_two_classes_at_one_place_and_a_long_one_through_a_short_one(long: bool) -> None:
    """A box of class 1 lies in the bounds of one of class 0 that a tile sees whole; it goes on, or is the same."""
    tiles = [Tile(0, 0, 100, 100), Tile(60, 0, 100, 100)]
    short = [[70.0, 20, 100, 60], [70.0, 20, 125, 60]]  # class 0, cut by the first tile
    other = [[30.0, 30, 100, 40], [60.0, 30, 150, 40]] if long else [[70.0, 20, 100, 60], [70.0, 20, 125, 60]]
    parts = [
        Instances(labels=np.array([0, 1]), boxes=np.array([short[k], other[k]]), scores=np.array([0.9, 0.8])) for k in range(2)
    ]
    found = join(parts, tiles, (160, 100), margin=1.0)
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(found.boxes, [[70, 20, 125, 60], [30, 30, 150, 40] if long else [70, 20, 125, 60]])


def test_nested_objects_larger_than_the_overlap_stay_apart() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 100, 100)]
    left, right = [[10.0, 10, 100, 90], [20, 40, 100, 50]], [[80.0, 10, 170, 90], [80, 40, 160, 50]]
    parts = [Instances(labels=np.zeros(2, dtype=np.int64), boxes=np.array(b), scores=np.array([0.9, 0.8])) for b in (left, right)]
    found = join(parts, tiles, (180, 100), margin=1.0)
    np.testing.assert_array_equal(found.boxes, [[10, 10, 170, 90], [20, 40, 160, 50]])


def test_two_neighbours_on_either_side_of_a_seam_stay_two() -> None:
    """Each is counted by one tile only; that their boxes overlap by more than half must not make one of them a double."""
    tiles = [Tile(0, 0, 100, 100), Tile(50, 0, 100, 100)]  # equally far at 75
    boxes = np.array([[54.0, 10, 90, 50], [61, 12, 97, 52]])
    parts = [Instances(labels=np.zeros(2, dtype=np.int64), boxes=boxes, scores=np.array([0.9, 0.8])) for _ in range(2)]
    found = join(parts, tiles, (150, 100), margin=1.0)
    np.testing.assert_array_equal(found.boxes, boxes)


def test_pairs_that_meet_are_those_of_a_naive_search() -> None:
    rng = np.random.default_rng(3)
    tiles = lay_tiles((500, 400), (128, 128), 30)
    owner = rng.integers(0, len(tiles), 400)
    corners = np.array([tiles[k].box[:2] for k in owner]) + rng.uniform(0, 120, (400, 2))
    boxes = np.hstack([corners, corners + rng.uniform(0, 60, (400, 2))])  # some reach out of their tiles
    among = rng.random(400) < 0.8
    found = meet(boxes, owner, tiles, among)
    expected = set()
    for i in np.flatnonzero(among).tolist():
        for j in np.flatnonzero(among).tolist():
            if owner[i] < owner[j]:
                every = [boxes[i], boxes[j], tiles[owner[i]].box, tiles[owner[j]].box]
                low, high = np.max(every, axis=0)[:2], np.min(every, axis=0)[2:]
                if (low < high).all():
                    expected.add((i, j))
    pairs = list(zip(found.a.tolist(), found.b.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    assert len(expected) > 200
