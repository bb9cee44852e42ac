"""Augmentation against the definition: truth follows the pixels, tested on the warped pixels themselves."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from shapely.geometry import Polygon

from pelagia.core import masks as mask_crops
from pelagia.core import oriented as oriented_boxes
from pelagia.core.types import Category, Float, Instances, MaskCrop, SemanticMap, Task
from pelagia.data import mosaic
from pelagia.data.augment import FILL, AugmentOptions, augment, evaluation_sample, random_affine, read_sample, transformed_sample
from pelagia.data.geometry import IDENTITY, Keep, follow, move_points
from pelagia.data.mix import cut_in, mix, paste_objects
from pelagia.data.sample import Sample
from pelagia.errors import OptionError

FISH = Category(1, "fish", keypoints=("left", "right", "nose"), flip=(1, 0, 2))
STILL = dict.fromkeys(("flip_lr", "flip_ud", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "blur", "noise", "mosaic"), 0.0)


class Pictures:
    """Dark images with bright rectangles, their exact truth, and nothing else."""

    categories = (FISH,)
    task: Task = "instance"
    class_frequencies = np.ones(1)

    def __init__(self, count: int = 6, *, size: tuple[int, int] = (120, 90), channels: int = 3, masks: bool = True) -> None:
        self.names = [f"{index}.png" for index in range(count)]
        self.items = [_picture(np.random.default_rng(index), size, channels, masks) for index in range(count)]

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int, /) -> NDArray[np.uint8]:
        return self.items[index][0]

    def truth(self, index: int, /, *, masks: bool = False) -> Instances:
        truth = self.items[index][1]
        return truth if masks else truth.replace(masks=None)

    def semantic(self, index: int, /) -> SemanticMap:
        raise AssertionError("only asked for the task semantic")


def _picture(rng: np.random.Generator, size: tuple[int, int], channels: int, masks: bool) -> tuple[NDArray[np.uint8], Instances]:
    width, height = size
    image = np.zeros((height, width, channels), dtype=np.uint8)
    boxes, crops = [], []
    for row in range(2):
        for column in range(3):
            cell_x, cell_y = column * width // 3, row * height // 2
            w, h = (int(value) for value in rng.integers(12, (width // 3 - 12, height // 2 - 12)))
            x, y = cell_x + int(rng.integers(5, 8)), cell_y + int(rng.integers(5, 8))
            image[y : y + h, x : x + w] = 200
            boxes.append([x, y, x + w, y + h])
            crops.append(MaskCrop(x, y, np.ones((h, w), dtype=np.bool_)))
    array = np.array(boxes, dtype=np.float64)
    centre, sides = (array[:, :2] + array[:, 2:]) / 2, array[:, 2:] - array[:, :2]
    oriented = oriented_boxes.canonical(np.column_stack([centre, sides, np.zeros(len(array))]))
    points = np.stack([array[:, :2] + 3, array[:, 2:] - 3, centre], axis=1)
    points = np.concatenate([points, np.full((len(array), 3, 1), 2.0)], axis=2)
    labels = np.zeros(len(array), dtype=np.int64)
    return image, Instances(labels, array, oriented, masks=tuple(crops), keypoints=points)


def _bright_bounds(image: NDArray[np.uint8], around: Float, margin: int) -> Float:
    """Bounds of the pixels brighter than half, in the neighbourhood of a box."""
    x1, y1 = np.clip(np.floor(around[:2]) - margin, 0, None).astype(int)
    x2, y2 = (np.ceil(around[2:]) + margin).astype(int)
    rows, columns = np.nonzero(image[y1:y2, x1:x2, 0] > 100)
    return np.array([x1 + columns.min(), y1 + rows.min(), x1 + columns.max() + 1, y1 + rows.max() + 1], dtype=np.float64)


# Samples


@pytest.mark.parametrize("rotate", [0.0, 25.0])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_truth_lies_on_the_pixels(rotate: float, masks: bool, mosaic: float) -> None:
    options = AugmentOptions(
        **{**STILL, "flip_lr": 0.5, "flip_ud": 0.5, "quarter_turn": 0.5, "scale": 0.3, "translate": 0.1, "mosaic": mosaic},
        rotate_deg=rotate,
        shear_deg=rotate / 4,
        min_visible=0.6,
        min_side_px=6,
    )
    data = Pictures()
    checked = 0
    for index in range(12):
        sample = augment(data, index % 6, np.random.default_rng(index), options, (160, 192), masks=masks, fill=0)
        assert sample.image.shape == (160, 192, 3)
        assert sample.truth.masks is None or masks
        truth = sample.truth
        assert truth.oriented is not None
        boxes = truth.box_array
        for row in range(len(truth)):
            x1, y1, x2, y2 = boxes[row]
            assert 0 <= x1 < x2 <= 192
            assert 0 <= y1 < y2 <= 160
            if masks:
                assert truth.masks is not None
                crop = truth.masks[row]
                np.testing.assert_allclose(mask_crops.bounds(crop), boxes[row], atol=1.01)
                inner = cv2.erode(np.pad(crop.bitmap, 1).astype(np.uint8), np.ones((5, 5), np.uint8))[1:-1, 1:-1] > 0
                rows, columns = crop.bitmap.shape
                pixels = sample.image[crop.y : crop.y + rows, crop.x : crop.x + columns, 0]
                assert (pixels[inner] == 200).all()
            touches = x1 < 2 or y1 < 2 or x2 > 190 or y2 > 158
            if not touches and not rotate:
                np.testing.assert_allclose(_bright_bounds(sample.image, boxes[row], 2), boxes[row], atol=1.01)
                checked += 1
    assert rotate or checked > 20


def test_sheared_oriented_boxes_hold_their_pixels() -> None:
    options = AugmentOptions(**STILL, rotate_deg=40, shear_deg=10)
    sample = augment(Pictures(), 0, np.random.default_rng(1), options, (256, 256), masks=True, fill=0)
    truth = sample.truth
    assert truth.oriented is not None
    assert truth.masks is not None
    for row in range(len(truth)):
        outline = Polygon(oriented_boxes.to_corners(truth.oriented[row : row + 1])[0])
        ys, xs = np.nonzero(truth.masks[row].bitmap)
        points = np.column_stack([xs + truth.masks[row].x + 0.5, ys + truth.masks[row].y + 0.5])
        held = sum(outline.buffer(0.1).covers(Polygon(point + np.array([[-0.01, 0], [0.01, 0], [0, 0.01]]))) for point in points)
        assert held == len(points)


def test_a_sample_is_a_pure_function_and_leaves_the_sources_alone() -> None:
    data = Pictures()
    before = [item[0].copy() for item in data.items]
    options = AugmentOptions(mixup=0.5, cutmix=0.5, copy_paste=0.5, blur=0.5, noise=0.5, rotate_deg=10)
    first, second = (augment(data, 2, np.random.default_rng(9), options, (96, 96), masks=True) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.truth.box_array, second.truth.box_array)
    assert (first.name, first.index) == ("2.png", 2)
    other = augment(data, 2, np.random.default_rng(10), options, (96, 96), masks=True)
    assert not np.array_equal(first.image, other.image)
    for image, item in zip(before, data.items, strict=True):
        np.testing.assert_array_equal(image, item[0])


def test_fetch_replaces_reading() -> None:
    data = Pictures(2)
    asked: list[int] = []

    def fetch(index: int) -> Sample:
        asked.append(index)
        return read_sample(data, index)

    augment(data, 1, np.random.default_rng(0), AugmentOptions(), (64, 64), fetch=fetch)
    assert len(asked) == 4
    assert 1 in asked


def test_every_source_is_warped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    real = mosaic.warp

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(args[0])
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(mosaic, "warp", counted)
    for seed in range(5):
        calls.clear()
        augment(Pictures(4), 0, np.random.default_rng(seed), AugmentOptions(rotate_deg=20, shear_deg=5, scale=0.5), (96, 96))
        assert 1 <= len(calls) <= 4


def test_without_changes_a_sample_is_the_letterbox_of_prediction() -> None:
    data = Pictures()
    sample = augment(data, 0, np.random.default_rng(0), AugmentOptions(**STILL), (128, 160), masks=True)
    expected, frame = evaluation_sample(data, 0, (128, 160), masks=True)
    # Weights in 256ths there, in float32 here.
    np.testing.assert_allclose(sample.image[6:-6, 1:-1].astype(int), expected.image[6:-6, 1:-1], atol=1)
    np.testing.assert_allclose(sample.truth.box_array, expected.truth.box_array)
    np.testing.assert_allclose(frame.boxes(expected.truth.box_array), data.truth(0).box_array)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (1, np.uint16), (3, np.uint16)])
def test_grey_and_deep_images_keep_their_type(channels: int, dtype: type) -> None:
    data = Pictures(3, channels=channels)
    data.items = [(image.astype(dtype) * (257 if dtype is np.uint16 else 1), truth) for image, truth in data.items]
    options = AugmentOptions(blur=1.0, noise=1.0, mixup=0.5, cutmix=1.0, copy_paste=1.0)
    sample = augment(data, 0, np.random.default_rng(3), options, (64, 96), masks=True)
    assert sample.image.shape == (64, 96, 3)
    assert sample.image.dtype == dtype
    assert len(np.unique(sample.image)) > 20


def test_images_without_objects_give_samples_without_objects() -> None:
    data = Pictures(3)
    data.items = [(image, Instances.empty()) for image, _ in data.items]
    sample = augment(
        data, 0, np.random.default_rng(0), AugmentOptions(mixup=1.0, cutmix=1.0, copy_paste=1.0), (64, 64), masks=True
    )
    assert len(sample.truth) == 0


def test_the_affine_is_the_identity_without_changes_and_stays_in_its_ranges() -> None:
    np.testing.assert_allclose(random_affine(np.random.default_rng(0), AugmentOptions(**STILL), (64, 48)), IDENTITY, atol=1e-12)
    for seed in range(50):
        matrix = random_affine(np.random.default_rng(seed), AugmentOptions(**{**STILL, "scale": 0.4}, rotate_deg=15), (64, 48))
        zoom = np.sqrt(np.linalg.det(matrix[:, :2]))
        assert 0.6 <= zoom <= 1.4
        assert abs(np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0]))) <= 15
        np.testing.assert_allclose(move_points(np.array([[32.0, 24.0]]), matrix), [[32, 24]])


@pytest.mark.parametrize("values", [{"flip_lr": 1.5}, {"scale": 1.0}, {"rotate_deg": -3.0}, {"noise": float("nan")}])
def test_impossible_options_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(values))):
        AugmentOptions(**values)


def test_rare_windows_need_windows() -> None:
    with pytest.raises(OptionError, match=r"rare=0\.5 places the windows of crop"):
        AugmentOptions(rare=0.5)
    assert AugmentOptions(rare=0.5, crop=0.1).rare == 0.5


def test_a_transform_of_the_user_takes_the_place_of_augment() -> None:
    data = Pictures()

    def halve(sample: Sample, rng: np.random.Generator) -> Sample:
        width, height = sample.image.shape[1] // 2, sample.image.shape[0]
        truth = follow(sample.truth, IDENTITY, (width, height), (0, 0, width, height), Keep())
        return Sample(sample.image[:, :width], truth, sample.name, sample.index)

    sample = transformed_sample(data, 0, np.random.default_rng(0), halve, (180, 120))
    np.testing.assert_allclose(sample.truth.box_array, 2 * halve(data_sample(data), np.random.default_rng(0)).truth.box_array)
    assert sample.image.shape == (180, 120, 3)


def data_sample(data: Pictures) -> Sample:
    return Sample(data.image(0), data.truth(0), "0.png", 0)


# Mixing


def two() -> tuple[Sample, Sample]:
    first, second = (read_sample(Pictures(2), index, masks=True) for index in range(2))
    return first, second


def test_mixup_blends_and_keeps_all_objects() -> None:
    sample, other = two()
    found = mix(sample, other, np.random.default_rng(0))
    assert len(found.truth) == len(sample.truth) + len(other.truth)
    ratio = np.random.default_rng(0).beta(32, 32)
    assert np.abs(found.image - (ratio * sample.image + (1 - ratio) * other.image)).max() <= 0.5 + 1e-9
    with pytest.raises(OptionError, match="no one class"):
        mix(sample, replace(other, semantic=SemanticMap(np.zeros((90, 120), dtype=np.uint8))), np.random.default_rng(0))


def test_cutmix_replaces_the_window() -> None:
    sample, other = two()
    window = (30, 20, 90, 70)
    inner = follow(other.truth, IDENTITY, (120, 90), window, Keep())
    found = cut_in(sample, replace(other, truth=inner), window, Keep())
    expected = sample.image.copy()
    expected[20:70, 30:90] = other.image[20:70, 30:90]
    np.testing.assert_array_equal(found.image, expected)
    assert found.truth.masks is not None
    for crop, bounds in zip(found.truth.masks, found.truth.box_array, strict=True):
        np.testing.assert_allclose(mask_crops.bounds(crop), bounds)
        rows, columns = crop.bitmap.shape
        assert (found.image[crop.y : crop.y + rows, crop.x : crop.x + columns, 0][crop.bitmap] == 200).all()


def test_pasted_objects_carry_their_pixels_and_hide_what_lies_below() -> None:
    sample = read_sample(Pictures(1), 0, masks=True)
    image, truth = sample.image, sample.truth
    square = np.ones((60, 6), dtype=np.bool_)
    assert truth.boxes is not None
    x, y = int(truth.boxes[0, 2]) - 3, int(truth.boxes[0, 1])
    points = np.zeros((1, 3, 3))
    other_truth = Instances(
        np.array([0]),
        np.array([[x, y, x + 6, y + 60]], dtype=np.float64),
        oriented=np.array([[x + 3.0, y + 30.0, 60.0, 6.0, -np.pi / 2]]),
        masks=(MaskCrop(x, y, square),),
        keypoints=points,
    )
    other = replace(sample, image=np.full_like(image, 90), truth=other_truth)
    pasted = 0
    for seed in range(8):
        found = paste_objects(sample, other, np.random.default_rng(seed), Keep())
        if len(found.truth) == len(truth):
            np.testing.assert_array_equal(found.image, image)
            continue
        pasted += 1
        assert (found.image[y : y + 60, x : x + 6] == 90).all()
        assert found.truth.masks is not None
        np.testing.assert_allclose(found.truth.box_array[0], mask_crops.bounds(found.truth.masks[0]))
        assert found.truth.box_array[0, 2] == x
    assert 0 < pasted < 8
    without = replace(other, truth=other_truth.replace(masks=None))
    assert len(paste_objects(sample, without, np.random.default_rng(0), Keep()).truth) == len(truth)


def test_uncovered_canvas_has_the_fill_of_prediction() -> None:
    sample = augment(Pictures(), 0, np.random.default_rng(0), AugmentOptions(**STILL), (120, 240))
    assert (sample.image[:, :30] == FILL).all()


@pytest.mark.parametrize("seed", range(12))
def test_the_affine_is_the_product_of_its_steps(seed: int) -> None:
    options = AugmentOptions(rotate_deg=70, shear_deg=20, quarter_turn=0.5)
    found = random_affine(np.random.default_rng(seed), options, (64, 48))
    rng = np.random.default_rng(seed)
    angle, zoom = np.deg2rad(70 * rng.uniform(-1, 1)), 1 + 0.5 * rng.uniform(-1, 1)
    shear = np.tan(np.deg2rad(20 * rng.uniform(-1, 1, 2)))
    shift = rng.uniform(-1, 1, 2) * 0.1 * np.array([64, 48])
    mirrored, turned = rng.random(3) < 0.5, np.array([[0.0, -1.0], [1.0, 0.0]])
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ (
        zoom * np.array([[1.0, shear[0]], [shear[1], 1.0]])
    )
    linear = np.diag(np.where(mirrored[:2], -1.0, 1.0)) @ (turned if mirrored[2] else np.eye(2)) @ linear
    middle = np.array([32.0, 24.0])
    np.testing.assert_allclose(found, np.column_stack([linear, middle - linear @ middle + shift]), atol=1e-12)
