"""Tiled equals whole: a predictor without error must find on tiles exactly what it finds on the whole image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.core import oriented as core_oriented
from pelagia.core.types import Instances
from pelagia.errors import OptionError
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.tiles import lay_tiles
from perfect import INPUT, OVERLAP, PerfectRuntime, beside_borders, draw, objects, pictures, rows


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
