"""Instances, frames, cards and late imports, held to their definitions."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagia.core import masks as core_masks
from pelagia.core.card import CARD_VERSION, ModelCard, Normalisation
from pelagia.core.frame import Frame
from pelagia.core.lazy import resolve
from pelagia.core.oriented import to_corners
from pelagia.core.types import Category, Instances, MaskCrop, PackedCrop, Task
from pelagia.errors import CheckpointError, LabelError, MissingExtraError, ModelError, PelagiaError


def some(count: int) -> Instances:
    boxes = np.arange(4 * count, dtype=np.float64).reshape(count, 4)
    crops = tuple(MaskCrop(index, 0, np.ones((2, index + 1), dtype=np.bool_)) for index in range(count))
    return Instances(np.arange(count), boxes=boxes, scores=np.linspace(0, 1, count), masks=crops)


def test_select_takes_every_field_by_index_and_by_mask() -> None:
    found = some(4).select([2, 0])
    assert found.labels.tolist() == [2, 0]
    assert found.boxes is not None
    assert found.boxes[:, 0].tolist() == [8, 0]
    assert found.masks is not None
    assert [crop.area for crop in found.masks] == [6, 2]
    assert some(4).select(np.array([True, False, False, True])).labels.tolist() == [0, 3]


def test_concatenate_joins_in_order_and_refuses_a_mixture() -> None:
    joined = Instances.concatenate([some(2), some(3)])
    assert joined.labels.tolist() == [0, 1, 0, 1, 2]
    assert joined.masks is not None
    assert len(joined.masks) == 5
    with pytest.raises(LabelError, match="scores is set in some parts only"):
        Instances.concatenate([some(1), some(1).replace(scores=None)])
    with pytest.raises(LabelError, match="zero"):
        Instances.concatenate([])


def test_lengths_and_shapes_must_agree() -> None:
    with pytest.raises(LabelError, match="boxes has 2 entries for 1 labels"):
        Instances(np.zeros(1), boxes=np.zeros((2, 4)))
    with pytest.raises(LabelError, match="needs boxes or oriented"):
        Instances(np.zeros(1))
    with pytest.raises(LabelError, match=r"\[N, K, 3\]"):
        Instances(np.zeros(1), boxes=np.zeros((1, 4)), keypoints=np.zeros((1, 3)))
    assert len(Instances.empty(oriented=True, scores=True)) == 0


@settings(deadline=None, max_examples=50)
@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(0.1, 50), st.floats(0.1, 50), st.floats(-1.57, 1.57))
def test_bounds_of_an_oriented_box_hold_its_corners_tightly(x: float, y: float, w: float, h: float, angle: float) -> None:
    oriented = np.array([[x, y, max(w, h), min(w, h), angle]])
    corners = to_corners(oriented)[0]
    expected = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    np.testing.assert_allclose(Instances(np.zeros(1), oriented=oriented).box_array[0], expected, atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 40), st.integers(1, 40))
def test_letterbox_fits_and_centres(width: int, height: int, columns: int, rows: int) -> None:
    frame = Frame.letterbox(width, height, 32 * columns, 32 * rows)
    inverse = frame.inverse
    low, high = inverse @ [0, 0, 1], inverse @ [width, height, 1]
    size = high - low
    assert (low >= -1e-6).all()
    assert (high <= np.array([32 * columns, 32 * rows]) + 1e-6).all()
    assert np.isclose(size / [32 * columns, 32 * rows], 1).any()  # one side is filled
    assert (np.abs(low - ([32 * columns, 32 * rows] - high)) < 2).all()  # centred, the first margin rounded down
    np.testing.assert_allclose(size[0] / width, size[1] / height, rtol=1e-9)
    np.testing.assert_allclose(frame.points(np.stack([low, high])), [[0, 0], [width, height]], atol=1e-6)


def test_a_frame_carries_boxes_back_and_clips_them() -> None:
    frame = Frame.letterbox(200, 100, 100, 100)  # half size, 25 rows of margin above and below
    boxes = np.array([[10.0, 35, 20, 45], [-10, 0, 110, 100]])
    assert frame.boxes(boxes).tolist() == [[20, 20, 40, 40], [0, 0, 200, 100]]
    assert frame.boxes(boxes, clip=False)[1].tolist() == [-20, -50, 220, 150]
    assert frame.oriented(np.array([[10.0, 35, 8, 4, 0.3]])).tolist() == [[20, 20, 16, 8, 0.3]]
    assert frame.scale == (2, 2)
    small = Frame.letterbox(20, 10, 100, 100, enlarge=False)
    assert small.scale == (1, 1)


CARD = ModelCard(
    name="yolo11n",
    task="keypoints",
    decoder="grids",
    categories=(Category(7, "copépode", "zoo", ("head", "tail"), ((0, 1),), (0, 1)), Category(90, "bubble", is_thing=False)),
    input_size=(320, 640),
    options={"depth": 0.5},
    normalisation=Normalisation(10.0, 60000.0, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    thresholds={"copépode": 0.25},
    licence="Apache-2.0",
    manifest={"seed": 3, "data": {"train": "abc"}},
)


def test_a_card_survives_its_json() -> None:
    assert ModelCard.from_json(CARD.to_json()) == CARD
    assert CARD.class_names == ("copépode", "bubble")
    later = json.loads(CARD.to_json()) | {"added_later": 1}
    assert ModelCard.from_json(json.dumps(later)) == CARD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": CARD_VERSION + 1}, "newer Pelagia"),
        ({"task": "classify"}, "unknown task"),
        ({"input_size": [1]}, "misses or misstates"),
        ({"categories": [{"nom": "x"}]}, "misses or misstates"),
        ({"normalisation": {"middle": 1}}, "misses or misstates"),
    ],
)
def test_a_broken_card_is_named(change: dict[str, object], message: str) -> None:
    text = json.dumps(json.loads(CARD.to_json()) | change)
    with pytest.raises(CheckpointError, match=message) as caught:
        ModelCard.from_json(text, where="best.safetensors")
    assert str(caught.value).startswith("best.safetensors: ")


@pytest.mark.parametrize(("task", "decoder"), [("semantic", "masks"), ("semantic", "pixels"), ("instance", "pixels")])
def test_more_classes_than_a_class_map_holds_are_refused(task: Task, decoder: str) -> None:
    """255 says that a pixel has no class; it cannot be one."""
    most = replace(CARD, task=task, decoder=decoder, categories=tuple(Category(n, f"class {n}") for n in range(255)))
    assert ModelCard.from_json(most.to_json()) == most
    more = (*most.categories, Category(255, "one more"))
    with pytest.raises(ModelError, match="256 classes, but a class map holds 255"):
        replace(most, categories=more)
    values = json.loads(most.to_json())
    values["categories"].append({"id": 255, "name": "one more"})
    with pytest.raises(CheckpointError, match=r"^best.onnx: 256 classes, but a class map holds 255"):
        ModelCard.from_json(json.dumps(values), where="best.onnx")
    assert len(replace(most, task="panoptic", decoder="masks", categories=more).categories) == 256


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"task": "detect"}'])
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        ModelCard.from_json(text)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"wandb is needed to log a run.*pelagia\[track\]"):
        resolve("wandb", purpose="log a run")
    assert resolve("json", purpose="read") is json
    with pytest.raises(ModuleNotFoundError):
        resolve("no_such_module_at_all", purpose="nothing")


def test_an_error_says_where() -> None:
    error = PelagiaError("two columns, expected four", where="labels/a.txt:3")
    assert str(error) == "labels/a.txt:3: two columns, expected four"
    assert (error.where, error.reason) == ("labels/a.txt:3", "two columns, expected four")


@pytest.mark.parametrize("shape", [(7, 13), (1, 1), (0, 0), (0, 5), (64, 200)])
def test_a_packed_crop_is_the_crop(shape: tuple[int, int]) -> None:
    bitmap = np.random.default_rng(0).random((2 * shape[0], shape[1] + 3))[::2, 3:] < 0.4
    plain, packed = MaskCrop(-3, 5, bitmap), PackedCrop(-3, 5, bitmap)
    copied = pickle.loads(pickle.dumps(packed))  # noqa: S301 (made here)
    for crop in (packed, copied, replace(packed, x=-3), copy.copy(packed)):
        assert isinstance(crop, PackedCrop)
        assert (crop.x, crop.y, crop.area, crop.shape) == (plain.x, plain.y, plain.area, plain.shape)
        np.testing.assert_array_equal(crop.bitmap, bitmap)
        assert crop.bitmap.dtype == np.bool_
    found, expected = core_masks.clip(packed, 100, 9), core_masks.clip(plain, 100, 9)
    assert (found.x, found.y) == (expected.x, expected.y)
    np.testing.assert_array_equal(found.bitmap, expected.bitmap)
    united, once = core_masks.unite([packed, MaskCrop(0, 0, np.ones((2, 2), np.bool_))]), core_masks.unite([plain])
    assert united.area == core_masks.unite([plain, MaskCrop(0, 0, np.ones((2, 2), np.bool_))]).area >= once.area
