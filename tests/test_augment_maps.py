"""Class maps, masks and points follow the pixels: under every augmentation a picture in class colours decodes to its truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.image import warp
from pelagia.core.types import IGNORE_INDEX, Category, Float, Instances, MaskCrop, SemanticMap, Task
from pelagia.data.augment import AugmentOptions, augment, evaluation_sample, read_sample, transformed_sample
from pelagia.data.crops import crop_placement, rare_point
from pelagia.data.elastic import random_field, settle
from pelagia.data.geometry import IDENTITY, Keep, follow
from pelagia.data.mix import paste_objects
from pelagia.data.sample import Sample
from pelagia.errors import OptionError

#: Grey values of three things, two kinds of stuff, and void: far apart, and none that blending two others gives.
COLOURS = np.array([20, 70, 100, 200, 250], dtype=np.uint8)
VOID = 150
CLASSES = tuple(Category(k + 1, name, is_thing=k < 3) for k, name in enumerate(("a", "b", "c", "sea", "ice")))
STILL = dict.fromkeys(("flip_lr", "flip_ud", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "blur", "noise", "mosaic"), 0.0)


class Maps:
    """Images whose grey is their class, with the class map or with an object for every region of it."""

    categories = CLASSES

    def __init__(self, task: Task, *, count: int = 5, size: tuple[int, int] = (120, 90), dtype: Any = np.uint8) -> None:
        self.task: Task = task
        self.names = [f"{index}.png" for index in range(count)]
        self.labels = [_regions(np.random.default_rng(index), size) for index in range(count)]
        self.dtype = dtype
        pixels = np.concatenate([labels.ravel() for labels in self.labels])
        counts = np.bincount(pixels[pixels != IGNORE_INDEX], minlength=5)
        self.class_frequencies: Float = counts / counts.sum()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, /) -> NDArray[Any]:
        return _drawn(self.labels[index]).astype(self.dtype) * (257 if self.dtype == np.uint16 else 1)

    def semantic(self, index: int, /) -> SemanticMap:
        return SemanticMap(self.labels[index])

    def truth(self, index: int, /, *, masks: bool = False) -> Instances:
        labels = [label for label in range(5) if (self.labels[index] == label).any()]
        crops = tuple(core_masks.crop_from_bitmap(self.labels[index] == label) for label in labels)
        boxes = np.array([core_masks.bounds(crop) for crop in crops]).reshape(-1, 4)
        return Instances(np.array(labels, dtype=np.int64), boxes, masks=crops if masks else None)


def _regions(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Two halves of stuff, blobs of things, a blob that is to be ignored."""
    width, height = size
    labels = np.full((height, width), 3, dtype=np.uint8)
    labels[:, width // 2 :] = 4
    for value in (0, 1, 2, IGNORE_INDEX):
        centre = tuple(int(v) for v in rng.integers(15, (width - 15, height - 15)))
        axes = tuple(int(v) for v in rng.integers(8, 20, 2))
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, value, -1)
    return labels


def _drawn(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table = np.full(256, VOID, dtype=np.uint8)
    table[:5] = COLOURS
    return table[labels][..., None]


def _inner(labels: NDArray[Any], radius: int = 3) -> NDArray[np.bool_]:
    """Pixels whose neighbourhood is inside the canvas and of one class, where no interpolation mixes colours."""
    kernel = np.ones((2 * radius + 1,) * 2, np.uint8)
    plain = np.pad(labels.astype(np.uint8), radius, constant_values=9)
    found: NDArray[np.bool_] = cv2.erode(plain, kernel) == cv2.dilate(plain, kernel)
    return found[radius:-radius, radius:-radius]


def _table(fill: int) -> NDArray[np.uint8]:
    table = np.full(256, fill, dtype=np.uint8)
    table[:5] = COLOURS
    return table


def _seams(changes: dict[str, float]) -> float:
    """The share of pixels on seams between pieces of one class: there the outermost pixels of an image blend with the canvas."""
    return 0.06 if changes["mosaic"] or changes["cutmix"] or changes["copy_paste"] else 0.0


wild = st.fixed_dictionaries(
    {
        "flip_lr": st.sampled_from([0.0, 1.0]),
        "flip_ud": st.sampled_from([0.0, 1.0]),
        "quarter_turn": st.sampled_from([0.0, 1.0]),
        "rotate_deg": st.sampled_from([0.0, 30.0]),
        "shear_deg": st.sampled_from([0.0, 10.0]),
        "scale": st.sampled_from([0.0, 0.4]),
        "translate": st.sampled_from([0.0, 0.2]),
        "elastic_px": st.sampled_from([0.0, 4.0]),
        "mosaic": st.sampled_from([0.0, 1.0]),
        "cutmix": st.sampled_from([0.0, 1.0]),
        "copy_paste": st.sampled_from([0.0, 1.0]),
        "crop": st.sampled_from([0.0, 1.0]),
        "rare": st.sampled_from([0.0, 1.0]),
    }
).map(lambda changes: {**changes, "rare": changes["rare"] * changes["crop"]})


@settings(max_examples=120, deadline=None)
@given(wild, st.integers(0, 10_000), st.sampled_from([(96, 128), (160, 160), (64, 64)]))
def test_a_class_map_stays_on_its_pixels(changes: dict[str, float], seed: int, size: tuple[int, int]) -> None:
    data = Maps("semantic")
    options = AugmentOptions(**{**STILL, **changes})
    sample = augment(data, seed % 5, np.random.default_rng(seed), options, size, masks=True, fill=VOID)
    assert sample.semantic is not None
    labels = sample.semantic.labels
    assert labels.shape == size
    assert set(np.unique(labels).tolist()) <= {0, 1, 2, 3, 4, IGNORE_INDEX}
    inner = _inner(labels)
    assert inner.mean() > 0.2
    expected = _table(VOID)[labels]
    strange = sample.image[inner][:, 0] != expected[inner]
    assert strange.mean() <= _seams(changes)
    if not changes["cutmix"] and not changes["copy_paste"] and not changes["elastic_px"]:
        # What was drawn decodes to the same labels all over: only pixels on borders may differ, on which colours blend.
        nearest = np.abs(sample.image[..., :1].astype(int) - np.append(COLOURS, VOID)).argmin(axis=2)
        decoded = np.append(np.arange(5), IGNORE_INDEX)[nearest]
        assert (decoded != labels)[_inner(labels, 1)].mean() < 0.02


@settings(max_examples=80, deadline=None)
@given(wild, st.integers(0, 10_000))
def test_panoptic_masks_stay_on_their_pixels_and_stuff_is_one_object(changes: dict[str, float], seed: int) -> None:
    data = Maps("panoptic")
    options = AugmentOptions(**{**STILL, **changes}, min_visible=0.0, min_side_px=0.0)
    sample = augment(data, seed % 5, np.random.default_rng(seed), options, (128, 128), masks=True, fill=VOID)
    truth = sample.truth
    assert sample.semantic is None
    assert truth.masks is not None
    stuff = truth.labels[truth.labels >= 3].tolist()
    assert len(stuff) == len(set(stuff))
    covered = np.zeros((128, 128), dtype=int)
    for crop, label, bounds in zip(truth.masks, truth.labels, truth.box_array, strict=True):
        bitmap = core_masks.paste(crop, 128, 128)
        covered += bitmap
        core = cv2.erode(bitmap.astype(np.uint8), np.ones((7, 7), np.uint8), borderValue=0) > 0
        assert (sample.image[core][:, 0] != COLOURS[label]).sum() <= _seams(changes) * 128 * 128
        if label >= 3:
            np.testing.assert_allclose(core_masks.bounds(crop), bounds, atol=1.01)
    assert (covered > 1).mean() < 0.002  # each mask is sampled by itself; a border pixel may round to both
    seen = set(np.unique(sample.image).tolist())
    for label in (3, 4):  # stuff stays however little of it is seen
        block = cv2.erode((sample.image[..., 0] == COLOURS[label]).astype(np.uint8), np.ones((3, 3), np.uint8))
        assert not block.any() or label in stuff, seen


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_without_changes_a_map_is_that_of_prediction(dtype: Any) -> None:
    data = Maps("semantic", dtype=dtype)
    sample = augment(data, 1, np.random.default_rng(0), AugmentOptions(**STILL), (90, 160))
    expected, _ = evaluation_sample(data, 1, (90, 160))
    assert sample.semantic is not None
    assert expected.semantic is not None
    assert sample.image.dtype == dtype
    np.testing.assert_array_equal(sample.semantic.labels, expected.semantic.labels)
    np.testing.assert_array_equal(expected.semantic.labels[:, 20:140], data.labels[1])
    assert (expected.semantic.labels[:, :20] == IGNORE_INDEX).all()


def test_a_margin_mirrors_the_image_and_has_no_class() -> None:
    data = Maps("semantic")
    sample, frame = evaluation_sample(data, 0, (110, 140), margin=10)
    assert sample.semantic is not None
    np.testing.assert_array_equal(sample.semantic.labels[10:100, 10:130], data.labels[0])
    inside = np.zeros((110, 140), dtype=np.bool_)
    inside[10:100, 10:130] = True
    assert (sample.semantic.labels[~inside] == IGNORE_INDEX).all()
    np.testing.assert_array_equal(sample.image[9, 10:130], sample.image[10, 10:130])
    np.testing.assert_allclose(frame.points(np.array([[10.0, 10.0]])), [[0, 0]])


def test_mixup_is_refused_where_a_pixel_has_one_class() -> None:
    for task in ("semantic", "panoptic"):
        with pytest.raises(OptionError, match="mixup must be 0"):
            augment(Maps(task), 0, np.random.default_rng(0), AugmentOptions(mixup=0.1), (64, 64))  # type: ignore[arg-type]


def test_pasted_objects_bring_their_class_and_stuff_is_not_pasted() -> None:
    first, second = (read_sample(Maps("semantic"), index, masks=True) for index in range(2))
    pasted = 0
    for seed in range(10):
        found = paste_objects(first, second, np.random.default_rng(seed), Keep(0.0, 0.0), CLASSES)
        assert found.semantic is not None
        assert second.semantic is not None
        assert first.semantic is not None
        np.testing.assert_array_equal(_drawn(found.semantic.labels), found.image)
        changed = found.semantic.labels != first.semantic.labels
        assert (second.semantic.labels[changed] < 3).all()
        pasted += int(changed.any())
    assert pasted > 3
    np.testing.assert_array_equal(first.semantic.labels, Maps("semantic").labels[0])


def test_a_transform_must_carry_the_map() -> None:
    data = Maps("semantic")

    def mirror(sample: Sample, rng: np.random.Generator) -> Sample:
        assert sample.semantic is not None
        labels = SemanticMap(np.ascontiguousarray(sample.semantic.labels[:, ::-1]))
        return replace(sample, image=np.ascontiguousarray(sample.image[:, ::-1]), semantic=labels)

    found = transformed_sample(data, 0, np.random.default_rng(0), mirror, (90, 120))
    assert found.semantic is not None
    np.testing.assert_array_equal(found.semantic.labels, data.labels[0][:, ::-1])

    def forget(sample: Sample, rng: np.random.Generator) -> Sample:
        return Sample(sample.image, sample.truth, sample.name, sample.index)

    with pytest.raises(OptionError, match=r"0\.png.*`Sample\.semantic`"):
        transformed_sample(data, 0, np.random.default_rng(0), forget, (90, 120))


# Windows


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 200), st.integers(10, 200), st.integers(0, 1000), st.booleans())
def test_a_window_lies_inside_or_holds_the_image(width: int, height: int, seed: int, aimed: bool) -> None:
    rng = np.random.default_rng(seed)
    point = rng.random(2) * (width, height) if aimed else None
    matrix = crop_placement((width, height), (96, 64), rng, point)
    np.testing.assert_array_equal(matrix[:, :2], np.eye(2))
    for shift, side, canvas, k in ((matrix[0, 2], width, 96, 0), (matrix[1, 2], height, 64, 1)):
        assert shift == int(shift)
        if side <= canvas:
            assert 0 <= shift <= canvas - side
        else:
            assert canvas - side <= shift <= 0
            if point is not None:
                assert 0 <= point[k] + shift <= canvas
                if canvas / 2 <= point[k] <= side - canvas / 2:
                    assert abs(point[k] + shift - canvas / 2) <= 0.5


def test_windows_are_spread_evenly_and_copy_the_pixels() -> None:
    data = Maps("semantic", size=(70, 64))
    seen = set()
    for seed in range(200):
        sample = augment(data, 0, np.random.default_rng(seed), AugmentOptions(**STILL, crop=1.0), (64, 64))
        assert sample.semantic is not None
        matches = [x for x in range(7) if (data.labels[0][:, x : x + 64] == sample.semantic.labels).all()]
        np.testing.assert_array_equal(sample.image[..., :1], _drawn(sample.semantic.labels))
        seen.update(matches)
    assert seen == set(range(7))


def test_rare_classes_are_drawn_as_often_as_common_ones() -> None:
    labels = np.zeros((200, 200), dtype=np.uint8)
    labels[150:154, 20:24] = 1
    labels[0:2] = IGNORE_INDEX
    sample = Sample(np.zeros((200, 200, 1), np.uint8), Instances.empty(), "a", 0, SemanticMap(labels))
    shares = np.array([(labels == 0).sum(), 16]) / (labels != IGNORE_INDEX).sum()
    points = [rare_point(sample, shares, np.random.default_rng(seed)) for seed in range(300)]
    hits = np.array([labels[int(point[1]), int(point[0])] for point in points if point is not None])
    weights = 1 / shares / (1 / shares).sum()
    assert np.mean(hits == 1) == pytest.approx(weights[1], abs=0.02)
    even = [rare_point(sample, np.array([0.5, 0.5]), np.random.default_rng(seed)) for seed in range(300)]
    assert np.mean([labels[int(p[1]), int(p[0])] for p in even if p is not None]) == pytest.approx(0.5, abs=0.1)
    nothing = replace(sample, semantic=SemanticMap(np.full((4, 4), IGNORE_INDEX, dtype=np.uint8)))
    assert rare_point(nothing, shares, np.random.default_rng(0)) is None


def test_rare_objects_are_aimed_at_too() -> None:
    crop = MaskCrop(40, 50, np.eye(5, dtype=np.bool_))
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [40, 50, 45, 55]])
    truth = Instances(np.array([0, 0, 1]), boxes, ignore=np.array([True, False, False]))
    sample = Sample(np.zeros((90, 90, 1), np.uint8), truth, "a", 0)
    drawn = [rare_point(sample, np.array([0.75, 0.25]), np.random.default_rng(seed)) for seed in range(400)]
    assert np.mean([point is not None and point.tolist() == [42.5, 52.5] for point in drawn]) == pytest.approx(0.75, abs=0.06)
    masked = replace(sample, truth=truth.replace(masks=(crop, crop, crop)))
    for seed in range(10):
        point = rare_point(masked, np.array([1.0, 1e-9]), np.random.default_rng(seed))
        assert point is not None
        assert point[0] - 40 == point[1] - 50
    assert rare_point(replace(sample, truth=Instances.empty()), np.ones(2), np.random.default_rng(0)) is None


# Elastic


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(64, 48), (200, 160), (512, 512)]), st.sampled_from([2.0, 10.0, 80.0]))
def test_points_settle_where_the_pixels_go(seed: int, canvas: tuple[int, int], std: float) -> None:
    field = random_field(np.random.default_rng(seed), canvas, std)
    assert field.shape == (canvas[1], canvas[0], 2)
    points = np.random.default_rng(seed).random((50, 2)) * canvas
    found = settle(points, field)
    x, y = found[:, 0] - 0.5, found[:, 1] - 0.5
    maps = x.astype(np.float32)[:, None], y.astype(np.float32)[:, None]
    at = np.stack([cv2.remap(field[..., k], *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0] for k in range(2)], 1)
    np.testing.assert_allclose(found + at, points, atol=0.05)  # OpenCV interpolates in steps of 1/32 pixel


def test_the_field_has_the_stated_spread() -> None:
    fields = np.stack([random_field(np.random.default_rng(seed), (600, 600), 10.0) for seed in range(60)])
    assert fields[:, 100::200, 100::200].std() == pytest.approx(10, rel=0.12)


def test_a_displacement_samples_where_it_says() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    shift = np.full((40, 50, 2), (3.0, -2.0), dtype=np.float32)
    expected = warp(image, np.array([[1.0, 0, -3], [0, 1, 2]]), (50, 40), fill=7)
    for interpolation in ("linear", "nearest"):
        found = warp(image, IDENTITY, (50, 40), fill=7, displacement=shift, interpolation=interpolation)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)
    half = np.array([[0.5, 0, 3], [0, 0.5, 1]])
    none = np.zeros((20, 25, 2), dtype=np.float32)
    plain, bent = (warp(image[..., None], half, (25, 20), displacement=value).astype(int) for value in (None, none))
    assert np.abs(plain - bent).max() <= 1
    with pytest.raises(OptionError, match="displacement"):
        warp(image, IDENTITY, (50, 40), displacement=none)


def test_boxes_oriented_boxes_and_points_bend_with_the_pixels() -> None:
    image = np.zeros((200, 200, 1), dtype=np.uint8)
    image[60:120, 50:140] = 200
    crop = MaskCrop(50, 60, np.ones((60, 90), dtype=np.bool_))
    box = np.array([[50.0, 60.0, 140.0, 120.0]])
    points = np.array([[[70.0, 80.0, 2.0], [120.0, 100.0, 2.0]]])
    image[78:82, 68:72], image[98:102, 118:122] = 90, 90
    for seed in range(6):
        field = random_field(np.random.default_rng(seed), (200, 200), 8.0)
        bent = warp(image, IDENTITY, (200, 200), fill=0, displacement=field)
        rows, columns = np.nonzero(bent[..., 0] > 45)
        bounds = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        truth = Instances(np.array([0]), box, np.array([[95.0, 90.0, 90.0, 60.0, 0.0]]), keypoints=points)
        moved = follow(truth.replace(oriented=None), IDENTITY, (200, 200), (0, 0, 200, 200), Keep(), field=field)
        np.testing.assert_allclose(moved.box_array[0], bounds, atol=1.5)
        masked = follow(truth.replace(masks=(crop,)), IDENTITY, (200, 200), (0, 0, 200, 200), Keep(), field=field)
        np.testing.assert_allclose(masked.box_array[0], bounds, atol=1.01)
        assert masked.oriented is not None
        corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * masked.oriented[0, 2:4] / 2 + 1e-6
        cos, sin = np.cos(masked.oriented[0, 4]), np.sin(masked.oriented[0, 4])
        outline = (corners @ np.array([[cos, sin], [-sin, cos]]) + masked.oriented[0, :2]).astype(np.float32)
        hull = cv2.convexHull(outline)
        inside = [cv2.pointPolygonTest(hull, (float(x + 0.5), float(y + 0.5)), True) for x, y in zip(columns, rows, strict=True)]
        assert min(inside) > -1.5
        assert moved.keypoints is not None
        for x, y, v in moved.keypoints[0]:
            assert v == 2
            assert abs(int(bent[int(y), int(x), 0]) - 90) < 40


def test_elastic_options_are_checked() -> None:
    with pytest.raises(OptionError, match="elastic_px"):
        AugmentOptions(elastic_px=-1.0)
