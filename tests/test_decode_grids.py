"""Decoding of grid outputs: the oracle is a loop written from the definition, without suppression, and the exact inverse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.masks import paste
from pelagia.core.types import Category, Instances
from pelagia.decode import DecodeOptions, decode
from pelagia.decode.grids import CANDIDATES, anchors, candidates, decode_grids
from pelagia.decode.resample import bilinear
from pelagia.errors import ModelError

BINS = 16
TASKS = ["detect", "oriented", "instance", "keypoints"]


def make_card(task: str = "detect", classes: int = 3, size: tuple[int, int] = (64, 96)) -> ModelCard:
    points = ("head", "middle", "tail") if task == "keypoints" else ()
    names = tuple(Category(id=10 + i, name=f"class {i}", keypoints=points) for i in range(classes))
    return ModelCard(name="test", task=task, decoder="grids", categories=names, input_size=size)  # type: ignore[arg-type]


def random_outputs(card: ModelCard, batch: int, seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    cells = len(anchors(card.input_size)[0])
    outputs = {
        "boxes": rng.normal(0, 3, (batch, 4 * BINS, cells)).astype(np.float32),
        "scores": rng.normal(-3, 2, (batch, len(card.categories), cells)).astype(np.float32),
    }
    if card.task == "oriented":
        outputs["angles"] = rng.normal(0, 2, (batch, 1, cells)).astype(np.float32)
    if card.task == "instance":
        height, width = card.input_size
        outputs["coefficients"] = rng.normal(0, 1, (batch, 5, cells)).astype(np.float32)
        outputs["prototypes"] = rng.normal(0, 1, (batch, 5, height // 4, width // 4)).astype(np.float32)
    if card.task == "keypoints":
        outputs["keypoints"] = rng.normal(0, 1, (batch, 9, cells)).astype(np.float32)
    return outputs


def naive(outputs: dict[str, NDArray[Any]], image: int, card: ModelCard, threshold: float) -> list[Any]:
    """All cells of one image in network pixels: (label, score, four or five numbers), from the definition."""
    found = []
    cell = 0
    for stride in (8, 16, 32):
        for row in range(card.input_size[0] // stride):
            for column in range(card.input_size[1] // stride):
                sides = []
                for side in range(4):
                    logits = outputs["boxes"][image, side * BINS : (side + 1) * BINS, cell].astype(float)
                    weights = [math.exp(v) for v in logits]
                    sides.append(stride * sum(k * w for k, w in enumerate(weights)) / sum(weights))
                logits = outputs["scores"][image, :, cell]
                label = int(np.argmax(logits))
                score = 1 / (1 + math.exp(-float(logits[label])))
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                left, top, right, bottom = sides
                values = [x - left, y - top, x + right, y + bottom]
                if card.task == "oriented":
                    angle = (1 / (1 + math.exp(-float(outputs["angles"][image, 0, cell]))) - 0.25) * math.pi
                    dx, dy = (right - left) / 2, (bottom - top) / 2
                    values = [
                        x + dx * math.cos(angle) - dy * math.sin(angle),
                        y + dx * math.sin(angle) + dy * math.cos(angle),
                        left + right,
                        top + bottom,
                        angle,
                    ]
                if score >= threshold:
                    found.append((label, score, values))
                cell += 1
    return found


def corners(box: NDArray[Any]) -> NDArray[Any]:
    cx, cy, w, h, angle = box
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2 @ turn.T + [cx, cy]


@pytest.mark.parametrize("task", TASKS)
def test_equals_the_definition_where_nothing_is_suppressed(task: str) -> None:
    card = make_card(task)
    outputs = random_outputs(card, 2, seed=1)
    # A huge original around the input, so that nothing is cut at its border.
    frame = Frame(np.array([[2.0, 0.0, 1000.0], [0.0, 2.0, 1000.0]]), 3000, 3000)
    found = decode_grids(outputs, [frame, frame], card, DecodeOptions(score=0.1, nms_iou=1.0))
    for image in range(2):
        expected = sorted(naive(outputs, image, card, 0.1), key=lambda item: -item[1])
        got = found[image]
        assert len(expected) > 20
        assert len(got) == len(expected)
        np.testing.assert_array_equal(got.labels, [item[0] for item in expected])
        np.testing.assert_allclose(got.scores, [item[1] for item in expected], rtol=1e-6)
        values = np.array([item[2] for item in expected])
        if task != "oriented":
            np.testing.assert_allclose(got.boxes, values * 2 + 1000, rtol=1e-9)
            continue
        assert got.oriented is not None
        assert (got.oriented[:, 2] >= got.oriented[:, 3]).all()
        assert ((got.oriented[:, 4] >= -np.pi / 2) & (got.oriented[:, 4] < np.pi / 2)).all()
        for box, value in zip(got.oriented, values, strict=True):
            wanted = corners(value) * 2 + 1000
            distance = np.linalg.norm(corners(box)[:, None] - wanted[None], axis=2)
            assert distance.min(axis=1).max() < 1e-6


@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.booleans(), st.booleans(), st.sampled_from(TASKS))
@settings(max_examples=25, deadline=None)
def test_scores_thresholds_order_and_borders(seed: int, threshold: float, multi_label: bool, agnostic: bool, task: str) -> None:
    card = make_card(task)
    outputs = random_outputs(card, 1, seed)
    options = DecodeOptions(score=threshold, multi_label=multi_label, agnostic=agnostic, most=50)
    (found,) = decode_grids(outputs, [Frame.identity(96, 64)], card, options)
    assert found.scores is not None
    assert len(found) <= 50
    assert (found.scores >= threshold - 1e-12).all()
    assert (np.diff(found.scores) <= 0).all()
    x1, y1, x2, y2 = found.box_array.T
    assert ((x1 < 96) & (x2 > 0) & (y1 < 64) & (y2 > 0)).all()
    if task != "oriented":
        assert (x1 >= 0).all()
        assert (y2 <= 64).all()
    if found.masks is not None:
        assert all(mask.x >= 0 and mask.y >= 0 for mask in found.masks)
        assert all(mask.x + mask.bitmap.shape[1] <= 96 and mask.y + mask.bitmap.shape[0] <= 64 for mask in found.masks)


def naive_mask(
    outputs: dict[str, NDArray[Any]], cell: int, box: NDArray[Any], frame: Frame, threshold: float
) -> NDArray[np.bool_]:
    """Pixel by pixel: is its centre in the box and what the network saw, and what do the four cells around it say?"""
    logits = np.tensordot(outputs["coefficients"][0, :, cell].astype(float), outputs["prototypes"][0].astype(float), axes=1)
    rows, columns = logits.shape
    found = np.zeros((frame.height, frame.width), dtype=np.bool_)
    for row in range(frame.height):
        for column in range(frame.width):
            x, y = column + 0.5, row + 0.5
            u, v = frame.inverse @ [x, y, 1.0]
            if not (box[0] <= x < box[2] and box[1] <= y < box[3] and 0 <= u < columns * 4 and 0 <= v < rows * 4):
                continue
            u, v = min(max(u / 4 - 0.5, 0), columns - 1), min(max(v / 4 - 0.5, 0), rows - 1)
            i, j = min(int(v), rows - 2), min(int(u), columns - 2)
            down, right = v - i, u - j
            value = (logits[i, j] * (1 - right) + logits[i, j + 1] * right) * (1 - down)
            value += (logits[i + 1, j] * (1 - right) + logits[i + 1, j + 1] * right) * down
            found[row, column] = 1 / (1 + math.exp(-value)) >= threshold
    return found


# The whole image enlarged; shrunk with a margin; a tile of a larger image, beyond whose border boxes reach.
FRAMES = {
    "enlarged": Frame.letterbox(40, 33, 96, 64),
    "shrunk": Frame.letterbox(250, 90, 96, 64),
    "tile": Frame(np.array([[0.5, 0.0, 11.0], [0.0, 0.5, 7.0]]), 70, 50),
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("threshold", [0.5, 0.8])
@pytest.mark.parametrize("few", [0, 10_000])  # by the compiled loop, by numpy
def test_masks_equal_the_definition_pixel_by_pixel(
    name: str, threshold: float, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pelagia.decode.grids._FEW_MASKS", few)
    card, frame = make_card("instance"), FRAMES[name]
    outputs = random_outputs(card, 1, seed=4)
    options = DecodeOptions(score=0.3, nms_iou=0.3, mask=threshold)
    (found,) = decode_grids(outputs, [frame], card, options)
    assert found.masks is not None
    assert found.scores is not None
    assert len(found) >= 5
    everything = naive(outputs, 0, card, 0.0)
    assert len(everything) == len(anchors(card.input_size)[0])
    scores = np.array([item[1] for item in everything])
    some = 0
    for mask, box, score in zip(found.masks, found.box_array, found.scores, strict=True):
        cell = int(np.abs(scores - score).argmin())
        expected = naive_mask(outputs, cell, box, frame, threshold)
        np.testing.assert_array_equal(paste(mask, frame.height, frame.width), expected)
        some += int(expected.sum())
    assert some > 500


def test_keypoints_equal_the_definition() -> None:
    card = make_card("keypoints", size=(64, 64))
    outputs = random_outputs(card, 1, seed=5)
    outputs["scores"][:] = -9
    # Cells of the three grids: column 3, row 2 of stride 8; column 1, row 3 of stride 16; column 1, row 0 of stride 32.
    places = {2 * 8 + 3: (3, 2, 8), 64 + 3 * 4 + 1: (1, 3, 16), 80 + 1: (1, 0, 32)}
    for rank, cell in enumerate(places):
        outputs["scores"][0, 0, cell] = 4 - rank
    frame = Frame(np.array([[2.0, 0.0, -5.0], [0.0, 2.0, 3.0]]), 200, 200)
    (found,) = decode_grids(outputs, [frame], card, DecodeOptions(nms_iou=1.0))
    assert found.keypoints is not None
    assert len(found) == 3
    for points, (cell, (column, row, stride)) in zip(found.keypoints, places.items(), strict=True):
        for point in range(3):
            a, b, c = outputs["keypoints"][0, 3 * point : 3 * point + 3, cell].astype(float)
            expected = [(2 * a + column) * stride * 2 - 5, (2 * b + row) * stride * 2 + 3, 1 / (1 + math.exp(-c))]
            np.testing.assert_allclose(points[point], expected, rtol=1e-9)


def test_bilinear_is_constant_beyond_the_border_and_exact_at_the_points() -> None:
    grid = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(bilinear(grid, np.arange(4.0), np.arange(5.0)), grid)
    np.testing.assert_array_equal(bilinear(grid, np.array([-3.0, 9.0]), np.array([-0.1, 7.0])), grid[[0, -1]][:, [0, -1]])
    np.testing.assert_allclose(bilinear(grid, np.array([0.25]), np.array([1.0])), 0.75 * grid[0:1, 1:2] + 0.25 * grid[1:2, 1:2])


def test_a_class_threshold_overrides_and_a_cell_answers_with_its_best_class_only() -> None:
    card = make_card(classes=2, size=(32, 32))
    outputs = random_outputs(card, 1, seed=0)
    outputs["scores"][:] = -20
    outputs["scores"][0, 0, 0] = 0.0  # score 0.5
    outputs["scores"][0, 1, 0] = -0.5  # score 0.38, weaker in the same cell
    frame = [Frame.identity(32, 32)]

    def labels(**options: Any) -> list[int]:
        return decode_grids(outputs, frame, card, DecodeOptions(**options))[0].labels.tolist()

    assert labels(score=0.3) == [0]
    assert labels(score=0.3, multi_label=True) == [0, 1]
    assert labels(score=0.3, class_scores={"class 0": 0.6}) == []
    assert labels(score=0.3, class_scores={"class 0": 0.6}, multi_label=True) == [1]
    assert labels(score=0.9, class_scores={"class 0": 0.5}) == [0]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_the_order_of_the_scores_in_memory_does_not_matter(multi_label: bool, classes: int, kind: Any) -> None:
    """Networks leave the classes of a cell side by side; a threshold that is a score exactly counts, its rounding does not."""
    card = make_card(classes=classes)
    scores = random_outputs(card, 1, 0)["scores"][0].astype(kind)
    exact = float(np.sort(scores.ravel())[-20])
    for lowest in (exact, np.nextafter(exact, 1.0), -np.inf, 100.0):
        thresholds = np.full(classes, lowest)
        expected = candidates(scores, thresholds, multi_label, card)
        found = candidates(np.ascontiguousarray(scores.T).T, thresholds, multi_label, card)
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one, other)
        passing = scores.astype(np.float64) >= lowest
        assert len(found[0]) == (passing.sum() if multi_label else passing.any(axis=0).sum())
    assert len(found[0]) == 0


def test_suppression_is_per_class_unless_agnostic() -> None:
    card = make_card(classes=2, size=(32, 32))
    cells = len(anchors((32, 32))[0])
    outputs = {"boxes": np.full((1, 4 * BINS, cells), -50.0), "scores": np.full((1, 2, cells), -20.0)}
    outputs["boxes"][0, 1::BINS] = 50.0  # every side one stride from its cell's centre
    outputs["scores"][0, 0, 5] = 2.0
    outputs["scores"][0, 1, 5] = 1.0
    frame = [Frame.identity(32, 32)]
    both = decode_grids(outputs, frame, card, DecodeOptions(multi_label=True))[0]
    assert both.labels.tolist() == [0, 1]
    np.testing.assert_allclose(both.boxes, [[4, 4, 20, 20]] * 2)
    assert decode_grids(outputs, frame, card, DecodeOptions(multi_label=True, agnostic=True))[0].labels.tolist() == [0]


def test_an_untrained_network_is_bounded() -> None:
    card = make_card(classes=40, size=(256, 256))
    cells = len(anchors(card.input_size)[0])
    outputs = {
        "boxes": np.zeros((1, 4 * BINS, cells), dtype=np.float32),
        "scores": np.zeros((1, 40, cells), dtype=np.float32),
    }
    assert cells * 40 > CANDIDATES
    (found,) = decode_grids(outputs, [Frame.identity(256, 256)], card, DecodeOptions(score=0.001, multi_label=True, nms_iou=1.0))
    assert 0 < len(found) <= CANDIDATES


def test_the_registry_finds_the_decoder() -> None:
    card = make_card()
    outputs = random_outputs(card, 1, seed=3)
    found = decode(outputs, [Frame.identity(96, 64)], card, DecodeOptions())
    assert len(found) == 1
    assert isinstance(found[0], Instances)
    other = ModelCard(name="test", task="detect", decoder="palantir", categories=card.categories, input_size=(64, 96))
    with pytest.raises(ModelError, match="palantir"):
        decode(outputs, [Frame.identity(96, 64)], other, DecodeOptions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs.pop("scores"), "no output 'scores'"),
        (lambda outputs: outputs.update(scores=outputs["scores"][:, :2]), "'scores' has shape"),
        (lambda outputs: outputs.update(boxes=outputs["boxes"][:, :63]), "'boxes' has shape"),
        (lambda outputs: outputs.update(boxes=outputs["boxes"][..., :-1]), "'boxes' has shape"),
        (lambda outputs: outputs.update(angles=outputs["angles"][:, [0, 0]]), "'angles' has shape"),
        (lambda outputs: outputs["scores"].fill(np.nan), "NaN"),
    ],
)
def test_wrong_outputs_are_named(change: Any, message: str) -> None:
    card = make_card("oriented")
    outputs = random_outputs(card, 1, seed=0)
    change(outputs)
    with pytest.raises(ModelError, match=message):
        decode_grids(outputs, [Frame.identity(96, 64)], card, DecodeOptions())


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("instance", lambda outputs: outputs.pop("prototypes"), "no output 'prototypes'"),
        (
            "instance",
            lambda outputs: outputs.update(prototypes=outputs["prototypes"][..., 1:]),
            r"'prototypes' has shape .*16, 24",
        ),
        (
            "instance",
            lambda outputs: outputs.update(coefficients=outputs["coefficients"][:, 1:]),
            r"shape \[1, 5, 16, 24\], .*, K = 4",
        ),
        ("keypoints", lambda outputs: outputs.update(keypoints=outputs["keypoints"][:, :6]), r"'keypoints' has shape .*9, 126"),
    ],
)
def test_wrong_outputs_of_the_tasks_are_named(task: str, change: Any, message: str) -> None:
    card = make_card(task)
    outputs = random_outputs(card, 1, seed=0)
    change(outputs)
    with pytest.raises(ModelError, match=message):
        decode_grids(outputs, [Frame.identity(96, 64)], card, DecodeOptions())


def test_an_input_that_the_strides_do_not_divide_is_refused() -> None:
    with pytest.raises(ModelError, match="multiple of 32"):
        anchors((64, 100))


@pytest.mark.parametrize("task", TASKS)
def test_nothing_found_has_the_shape_of_something_found(task: str) -> None:
    card = make_card(task)
    outputs = random_outputs(card, 1, 0)
    outputs["scores"][:] = -20.0
    found = decode_grids(outputs, [Frame.identity(96, 64)], card, DecodeOptions())[0]
    assert len(found) == 0
    assert (found.masks == ()) == (task == "instance")
    if task == "keypoints":
        assert found.keypoints is not None
        assert found.keypoints.shape == (0, 3, 3)
