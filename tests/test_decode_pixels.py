"""From logits to maps and objects, against naive loops and scikit-image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed as reference_watershed

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.image import letterbox
from pelagia.core.masks import paste
from pelagia.core.types import Category, Instances, SemanticMap, Task
from pelagia.decode import DecodeOptions, decode
from pelagia.decode.pixels import resample, watershed
from pelagia.errors import ModelError

CATEGORIES = (Category(1, "a"), Category(2, "b"), Category(5, "c"))


def card(task: Task, size: tuple[int, int], count: int = 3, margin: int = 0, **options: Any) -> ModelCard:
    return ModelCard("unet", task, "pixels", CATEGORIES[:count], size, margin=margin, options=options)


def naive_bilinear(plane: np.ndarray, x: float, y: float) -> float:
    """The value at a place in cells, (0, 0) the outer corner of the first, continued beyond the outermost centres."""
    x, y = (min(max(v - 0.5, 0.0), side - 1.0) for v, side in ((x, plane.shape[1]), (y, plane.shape[0])))
    left, top = int(x), int(y)
    right, bottom = min(left + 1, plane.shape[1] - 1), min(top + 1, plane.shape[0] - 1)
    u, v = x - left, y - top
    above = plane[top, left] * (1 - u) + plane[top, right] * u
    below = plane[bottom, left] * (1 - u) + plane[bottom, right] * u
    return float(above * (1 - v) + below * v)


@given(
    seed=st.integers(0, 1000),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    margin=st.integers(0, 5),
    scale=st.floats(0.2, 5.0),
)
@settings(deadline=None, max_examples=60)
def test_resampling_is_one_bilinear_step(
    seed: int, cells: tuple[int, int], size: tuple[int, int], margin: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=cells).astype(np.float32)
    covered = (cells[0] * 4, cells[1] * 4)
    shift = rng.uniform(-10, 10, 2)
    frame = Frame(np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), size[1], size[0])
    found = resample(plane, covered, margin, frame)
    assert found.shape == size
    for row in range(size[0]):
        for column in range(size[1]):
            # The centre of the pixel in the input, then in cells of 4 x 4 pixels inside the margin.
            x, y = (column + 0.5 - shift[0]) / scale, (row + 0.5 - shift[1]) / scale
            expected = naive_bilinear(plane, (x - margin) / 4, (y - margin) / 4)
            assert found[row, column] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", ["softmax", "sigmoid", "binary"])
@pytest.mark.parametrize("margin", [0, 6])
def test_a_map_takes_the_best_class_and_the_lower_of_equals(form: str, margin: int) -> None:
    rng = np.random.default_rng(0)
    count = 2 if form == "binary" else 3
    logits = np.round(rng.normal(size=(2, 1 if form == "binary" else 3, 7, 9)) * 2).astype(np.float32) / 2
    model = card("semantic", (28 + 2 * margin, 36 + 2 * margin), count, margin, form=form)
    identity = Frame(np.array([[0.25, 0, -margin / 4], [0, 0.25, -margin / 4]]), 9, 7)  # a pixel of the original for each cell
    _, boxed = letterbox(np.zeros((50, 31, 3), dtype=np.uint8), model.input_size, margin=margin)
    for frame in (identity, boxed):
        found = decode({"logits": logits}, [frame, frame], model, DecodeOptions(scores=True))
        for item, raw in zip(found, logits, strict=True):
            assert isinstance(item, SemanticMap)
            assert item.labels.dtype == np.uint8
            assert item.scores is not None
            assert item.scores.shape == (count, frame.height, frame.width)
            planes = np.stack([resample(plane, (28, 36), margin, frame) for plane in raw])
            if form == "softmax":
                expected = np.exp(planes) / np.exp(planes).sum(axis=0)
            else:
                yes = 1 / (1 + np.exp(-planes))
                expected = np.concatenate([1 - yes, yes]) if form == "binary" else yes
            np.testing.assert_allclose(item.scores, expected, atol=1e-5)
            best = (planes[0] > 0) if form == "binary" else planes.argmax(axis=0)  # argmax takes the first of equals
            np.testing.assert_array_equal(item.labels, best)
    plain = decode({"logits": logits}, [identity, identity], model, DecodeOptions())
    assert all(isinstance(item, SemanticMap) and item.scores is None for item in plain)
    np.testing.assert_array_equal(
        plain[0].labels,  # type: ignore[union-attr]
        logits[0, 0] > 0 if form == "binary" else logits[0].argmax(axis=0),
    )


def test_a_scan_of_many_classes_holds_two_planes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes are resampled one after the other."""
    alive: list[int] = []
    logits = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)

    def counting(*args: Any) -> Any:
        alive.append(1)
        return resample(*args)

    monkeypatch.setattr("pelagia.decode.pixels.resample", counting)
    decode({"logits": logits}, [Frame.identity(16, 16)], card("semantic", (16, 16)), DecodeOptions())
    assert len(alive) == 3


def discs(rng: np.random.Generator, size: int = 200) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows of discs that touch their neighbours, and each disc."""
    y, x = np.mgrid[:size, :size] + 0.5
    mask, each = np.zeros((size, size), dtype=bool), []
    top = 22.0
    while top < size - 20:
        left = 20.0
        before = 0.0
        while left < size - 20:
            radius = float(rng.uniform(9, 14))
            left += 0.86 * (before + radius) if before else radius
            if left + radius > size - 2:
                break
            disc = (x - left) ** 2 + (y - top) ** 2 <= radius**2
            each.append(disc)
            mask |= disc
            before = radius
        top += 36
    return mask, each


def matched_iou(a: np.ndarray, b: np.ndarray) -> list[float]:
    """For every object of `a` the IoU with the object of `b` that overlaps it most."""
    found = []
    for number in range(1, int(a.max()) + 1):
        mine = a == number
        other = np.bincount(b[mine]).argmax()
        theirs = b == other if other else np.zeros_like(mine)
        found.append((mine & theirs).sum() / (mine | theirs).sum())
    return found


@pytest.mark.parametrize("seed", range(4))
def test_watershed_divides_touching_discs_as_the_reference_does(seed: int) -> None:
    mask, each = discs(np.random.default_rng(seed))
    assert ndimage.label(mask)[1] < len(each) / 2  # most of them touch
    found = watershed(mask)
    distance = ndimage.distance_transform_edt(mask)
    markers, count = ndimage.label(h_maxima(distance, 1.0), np.ones((3, 3)))
    expected = reference_watershed(-distance, markers, mask=mask)
    assert found.max() == count == len(each)
    assert ((found > 0) == mask).all()
    assert min(matched_iou(found, expected)) >= 0.9
    truth = np.zeros(mask.shape, dtype=np.int64)
    for number, disc in enumerate(each, start=1):
        truth[disc & (truth == 0)] = number
    assert min(matched_iou(truth, found)) >= 0.85


def test_watershed_leaves_single_things_whole() -> None:
    y, x = np.mgrid[:80, :160] + 0.5
    ellipse = ((x - 80) / 70) ** 2 + ((y - 40) / 20) ** 2 <= 1
    assert watershed(ellipse).max() == 1
    rng = np.random.default_rng(0)
    ragged = ellipse & ~((rng.random(ellipse.shape) < 0.3) & ~ndimage.binary_erosion(ellipse))
    parts = watershed(ragged)
    assert np.bincount(parts.ravel())[1:].max() > 0.97 * ragged.sum()
    assert watershed(np.zeros((5, 6), dtype=bool)).max() == 0
    assert (watershed(np.ones((5, 6), dtype=bool)) == 1).all()
    assert watershed(np.eye(3, dtype=bool)).max() == 3  # corners do not join


def peaked(mask: np.ndarray, label: np.ndarray | int, classes: int, confidence: float = 4.0) -> np.ndarray:
    """Logits whose best class is `label` where `mask`, the ground elsewhere."""
    logits = np.zeros((classes, *mask.shape), dtype=np.float32)
    logits[0] = np.where(mask, 0, confidence)
    for c in range(1, classes):
        logits[c] = np.where(mask & (label == c), confidence, 0)
    return logits


@pytest.mark.parametrize("separate", ["components", "watershed"])
def test_a_dense_model_counts(separate: str) -> None:
    mask, each = discs(np.random.default_rng(1))
    half = np.where(np.arange(200)[:, None] < 76, 1, 2)
    model = card("instance", (200, 200), 2, separate=separate)
    found = decode({"logits": peaked(mask, half, 3)[None]}, [Frame.identity(200, 200)], model, DecodeOptions())[0]
    assert isinstance(found, Instances)
    assert found.masks is not None
    assert found.scores is not None
    expected = len(each) if separate == "watershed" else sum(ndimage.label(mask & (half == c))[1] for c in (1, 2))
    cut = ndimage.label(mask)[1] - sum(ndimage.label(mask & (half == c))[1] for c in (1, 2))
    assert cut == 0  # no disc lies on the line between the classes
    assert len(found) == expected
    probability = math.exp(4) / (math.exp(4) + 2)
    np.testing.assert_allclose(found.scores, probability, rtol=1e-5)
    union = np.zeros((200, 200), dtype=int)
    for box, crop, label in zip(found.box_array, found.masks, found.labels, strict=True):
        full = paste(crop, 200, 200)
        rows, columns = np.flatnonzero(full.any(axis=1)), np.flatnonzero(full.any(axis=0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert (half[rows, 0] == label + 1).all()
        union += full
    assert union.max() == 1
    assert ((union > 0) == mask).all()


def test_scores_thresholds_and_small_objects() -> None:
    logits = np.zeros((1, 2, 20, 20), dtype=np.float32)
    logits[0, 0] = 3.0
    logits[0, 1, 2:6, 2:6], logits[0, 0, 2:6, 2:6] = 1.0, 0.0
    logits[0, 1, 10:16, 10:16], logits[0, 0, 10:16, 10:16] = 3.0, 0.0
    logits[0, 1, 18, 18], logits[0, 0, 18, 18] = 9.0, 0.0
    frame = Frame.identity(20, 20)

    def found(options: DecodeOptions, **settings: Any) -> Instances:
        item = decode({"logits": logits}, [frame], card("instance", (20, 20), 1, **settings), options)[0]
        assert isinstance(item, Instances)
        return item

    every = found(DecodeOptions())
    assert every.scores is not None
    assert every.masks is not None
    assert [crop.area for crop in every.masks] == [1, 36, 16]
    np.testing.assert_allclose(every.scores, [1 / (1 + math.exp(-value)) for value in (9, 3, 1)], rtol=1e-5)
    assert len(found(DecodeOptions(score=0.9))) == 2
    assert len(found(DecodeOptions(class_scores={"a": 0.9}))) == 2
    assert len(found(DecodeOptions(most=1))) == 1
    assert len(found(DecodeOptions(), min_area=10)) == 2
    assert len(found(DecodeOptions(), min_area=17)) == 1


@pytest.mark.parametrize("form", ["softmax", "binary", "sigmoid"])
def test_the_three_forms_find_the_same_object(form: str) -> None:
    inside = np.zeros((12, 16), dtype=bool)
    inside[3:8, 4:9] = True
    one = np.where(inside, 2.0, -2.0).astype(np.float32)
    logits = np.stack([-one / 2, one / 2]) if form == "softmax" else one[None]
    model = card("instance", (12, 16), 1, form=form)
    item = decode({"logits": logits[None]}, [Frame.identity(16, 12)], model, DecodeOptions())[0]
    assert isinstance(item, Instances)
    assert item.box_array.tolist() == [[4, 3, 9, 8]]
    assert item.scores is not None
    assert item.scores[0] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-5)


def test_objects_come_back_through_the_frame() -> None:
    """An object of the original, seen small and shifted by the network, returns to its place."""
    model = card("instance", (64, 96), 1, margin=8)
    _, frame = letterbox(np.zeros((100, 300, 3), dtype=np.uint8), (64, 96), margin=8)
    logits = np.full((1, 2, 48, 80), -4.0, dtype=np.float32)
    logits[:, 0] = 4.0
    scale = 80 / 300
    top = 8 + (48 - 100 * scale) // 2
    x1, y1, x2, y2 = (round(v) for v in (60 * scale, 30 * scale + top - 8, 180 * scale, 75 * scale + top - 8))
    logits[0, 1, y1:y2, x1:x2], logits[0, 0, y1:y2, x1:x2] = 4.0, -4.0
    found = decode({"logits": logits}, [frame], model, DecodeOptions())[0]
    assert isinstance(found, Instances)
    np.testing.assert_allclose(found.box_array, [[60, 30, 180, 75]], atol=2.5)


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_the_last_of_255_classes_is_found(task: Task) -> None:
    """A byte holds them: 0 to 254, or 1 to 255 beside the ground."""
    model = replace(card(task, (4, 6)), categories=tuple(Category(n, f"class {n}") for n in range(255)))
    logits = np.zeros((1, 255 + (task == "instance"), 4, 6), dtype=np.float32)
    logits[0, -1] = 9.0
    item = decode({"logits": logits}, [Frame.identity(6, 4)], model, DecodeOptions())[0]
    labels = item.labels if isinstance(item, SemanticMap | Instances) else np.zeros(0)
    assert labels.ravel().tolist() == [254] * (24 if task == "semantic" else 1)


def test_what_is_wrong_is_named() -> None:
    model, frame = card("semantic", (8, 8)), Frame.identity(8, 8)
    good = np.zeros((1, 3, 8, 8), dtype=np.float32)
    with pytest.raises(ModelError, match="no output 'logits', only scores"):
        decode({"scores": good}, [frame], model, DecodeOptions())
    with pytest.raises(ModelError, match=r"expected \[1, 3, h, w\]"):
        decode({"logits": good[:, :2]}, [frame], model, DecodeOptions())
    with pytest.raises(ModelError, match=r"expected \[1, 4, h, w\]"):
        decode({"logits": good}, [frame], replace(model, task="instance"), DecodeOptions())
    with pytest.raises(ModelError, match="NaN"):
        decode({"logits": np.where(np.arange(8) == 3, np.nan, good)}, [frame], model, DecodeOptions())
