"""Views of tiles become objects: what is joined, what goes, and what stays two."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.types import Instances
from pelagia.infer import joining
from pelagia.infer.joining import join
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.tiles import Tile, lay_tiles
from pelagia.infer.view_pairs import meet
from perfect import PerfectRuntime, objects, rows


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
    sliver = Instances(labels=np.array([1]), boxes=np.array([[60.5, 20, 100, 40]]), scores=np.array([0.9]))
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
    assert len(join([view(80.4), nothing], tiles, (160, 100), margin=1.0)) == 1
    assert len(join([view(70), view(90)], tiles, (160, 100), margin=1.0)) == 2


@pytest.mark.parametrize(("agnostic", "count"), [(False, 2), (True, 1)])
def test_one_place_of_two_classes(agnostic: bool, count: int) -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(50, 0, 100, 100)]
    views = [
        Instances(labels=np.array([label]), boxes=np.array([[65.0, 10, 85, 30]]), scores=np.array([0.5 + label / 10]))
        for label in range(2)
    ]
    assert len(join(views, tiles, (150, 100), margin=1.0, agnostic=agnostic)) == count


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


@pytest.mark.parametrize("task", ["detect", "oriented"])
def test_a_piece_in_the_bounds_of_an_object_that_has_its_own_partner_stays_apart(task: str) -> None:
    """The pieces of the inner one, aslant, hardly agree, and lie in those of the outer one, which are partners."""
    tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 100, 100)]
    left, right = np.array([[10.0, 10, 100, 90], [20, 15, 100, 50]]), np.array([[80.0, 10, 170, 90], [80, 40, 160, 80]])
    parts = []
    for boxes in (left, right):
        part = Instances(labels=np.zeros(2, dtype=np.int64), boxes=boxes, scores=np.array([0.9, 0.8]))
        if task == "oriented":
            middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            part = part.replace(boxes=None, oriented=np.column_stack([middles, sides, np.zeros(2)]))
        parts.append(part)
    found = join(parts, tiles, (180, 100), margin=1.0)
    np.testing.assert_allclose(found.box_array, np.array([[10, 10, 170, 90], left[1], right[1]]))


def test_both_arms_of_a_mask_belong_to_its_bend() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 100, 100)]

    def piece(rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.bool_]:
        bitmap = np.zeros((100, 180), dtype=np.bool_)
        bitmap[slice(*rows), slice(*columns)] = True
        return bitmap

    def part(*bitmaps: NDArray[np.bool_]) -> Instances:
        crops = [core_masks.crop_from_bitmap(bitmap) for bitmap in bitmaps]
        boxes = np.array([core_masks.bounds(crop) for crop in crops])
        scores = np.linspace(0.9, 0.8, len(crops))
        return Instances(labels=np.zeros(len(crops), dtype=np.int64), boxes=boxes, scores=scores, masks=tuple(crops))

    bend = piece((10, 90), (20, 40)) | piece((10, 50), (20, 100)) | piece((80, 90), (20, 100))
    arms = piece((10, 50), (80, 150)), piece((80, 90), (80, 150))
    found = join([part(bend), part(*arms)], tiles, (180, 100), margin=1.0)
    assert found.masks is not None
    assert [mask.area for mask in found.masks] == [np.count_nonzero(bend | arms[0] | arms[1])]


# Long objects aslant, as plain boxes


def lines(*ends: tuple[int, int, int, int], width: int = 5) -> NDArray[np.uint16]:
    """A line for each x1, y1, x2, y2, all of one class; where two cross, the later lies above."""
    ids = np.zeros((700, 700), dtype=np.uint16)
    for number, (x1, y1, x2, y2) in enumerate(ends):
        cv2.line(ids, (x1, y1), (x2, y2), 201 + 3 * number, width)
    return ids


def lies_in(boxes: NDArray[Any], whole: NDArray[Any]) -> bool:
    """Whether each box lies in one of `whole`."""
    low = (whole[:, None, :2] <= boxes[:, :2]).all(axis=2)
    high = (whole[:, None, 2:] >= boxes[:, 2:]).all(axis=2)
    return bool((low & high).any(axis=0).all())


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("end", [(650, 90), (650, 250), (640, 610), (250, 650), (90, 650)])
def test_a_long_object_aslant_is_one_box(end: tuple[int, int], mirrored: bool) -> None:
    """Through several tiles, at any slope; the pieces hardly agree where they meet."""
    ids = lines((40, 60, *end))
    ids = np.ascontiguousarray(ids[:, ::-1]) if mirrored else ids
    found = predict_image(PerfectRuntime(), ids, PredictOptions(tiling="always"))
    np.testing.assert_array_equal(rows(found), rows(objects(ids, "detect")))


@pytest.mark.parametrize("fall", [40, 60, 80])
def test_a_line_inside_a_long_frame_is_not_swallowed(fall: int) -> None:
    """The frame's pieces are partners; those of the line, aslant, lie in their bounds and may stay apart, but not become one."""
    ids = np.zeros((128, 700), dtype=np.uint16)
    cv2.rectangle(ids, (20, 10), (680, 118), 201, 3)
    frame = objects(ids, "detect").box_array[0]
    cv2.line(ids, (60, 25), (390, 25 + fall), 204, 5)
    found = predict_image(PerfectRuntime(), ids, PredictOptions(tiling="always"))
    assert isinstance(found, Instances)
    line = objects(np.where(ids == 204, ids, 0), "detect")
    np.testing.assert_array_equal(found.box_array[0], frame)
    rest = found.select(np.arange(1, len(found)))
    assert len(rest)
    np.testing.assert_array_equal(rest.scores, np.repeat(line.scores, len(rest)))  # type: ignore[arg-type]
    assert lies_in(rest.box_array, line.box_array)


def test_what_crosses_is_only_joined_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lines of one class in any place, crossing or not: every pair that is joined for crossing is of one object, which its
    score tells. (Boxes that lie in each other may be fused by the rule before, whatever this one does.)"""
    joined: list[tuple[float, float]] = []
    real = joining._Agreement._crossing

    def spy(self: joining._Agreement, agreeing: Any) -> Any:
        found = real(self, agreeing)
        scores = self.views.found.scores
        assert scores is not None
        joined.extend(zip(scores[self.pairs.a[found]].tolist(), scores[self.pairs.b[found]].tolist(), strict=True))
        return found

    monkeypatch.setattr(joining._Agreement, "_crossing", spy)
    for seed in range(16):
        rng = np.random.default_rng(seed)
        count, width = int(rng.integers(2, 9)), int(rng.integers(3, 12))
        ends = rng.integers(0, 700, (count, 4)).tolist()
        overlap = (0.1, 0.2, 0.4)[seed % 3]
        predict_image(PerfectRuntime(), lines(*map(tuple, ends), width=width), PredictOptions(tiling="always", overlap=overlap))
    assert len(joined) > 100
    assert all(one == other for one, other in joined)


def test_neighbours_that_each_end_at_the_other_seam_stay_two() -> None:
    """Both are seen by both tiles and reach to within the margin of a border: boxes that agree go first."""
    tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 100, 100)]
    one, other = [40.0, 10, 99.5, 50], [80.5, 30, 140, 80]
    left = Instances(labels=np.zeros(2, dtype=np.int64), boxes=np.array([one, [80.5, 30, 100, 80]]), scores=np.array([0.9, 0.7]))
    right = Instances(
        labels=np.zeros(2, dtype=np.int64), boxes=np.array([[80, 10, 99.5, 50], other]), scores=np.array([0.6, 0.8])
    )
    found = join([left, right], tiles, (180, 100), margin=1.0)
    assert len(found) == 2
    assert found.box_array[:, [0, 2]].tolist() == [[40, 99.5], [80.5, 140]]


def test_two_that_run_side_by_side_stay_in_pieces_rather_than_become_one() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 100, 100)]
    left, right = [[10.0, 0, 100, 50], [10, 20, 100, 70]], [[80.0, 38, 170, 90], [80, 58, 170, 100]]
    parts = [Instances(labels=np.zeros(2, dtype=np.int64), boxes=np.array(b), scores=np.array([0.9, 0.8])) for b in (left, right)]
    found = join(parts, tiles, (180, 100), margin=1.0)
    assert lies_in(found.box_array, np.array([[10.0, 0, 170, 90], [10, 20, 170, 100]]))


@pytest.mark.parametrize("change", ["class", "short", "one"])
def test_what_may_be_one_and_what_not(change: str) -> None:
    """Two pieces of a slanted object in neighbouring tiles; of another class, or one that begins in the overlap."""
    tiles = [Tile(0, 0, 100, 100), Tile(80, 0, 100, 100), Tile(0, 80, 100, 100), Tile(80, 80, 100, 100)]
    nothing = Instances.empty(scores=True)
    left = Instances(labels=np.array([0]), boxes=np.array([[20.0, 5, 100, 60]]), scores=np.array([0.9]))
    right = Instances(labels=np.array([0]), boxes=np.array([[80.0, 45, 160, 78]]), scores=np.array([0.8]))
    parts = [left, right, nothing, nothing]
    if change == "class":
        parts[1] = right.replace(labels=np.array([1]))
    if change == "short":
        parts[0] = left.replace(boxes=np.array([[85.0, 5, 100, 60]]))
    found = join(parts, tiles, (180, 180), margin=1.0)
    if change == "one":
        np.testing.assert_array_equal(found.boxes, [[20, 5, 160, 78]])
    else:
        seen = np.concatenate([part.box_array for part in parts])
        assert len(found)
        assert all((box == seen).all(axis=1).any() for box in found.box_array)  # none is put together
