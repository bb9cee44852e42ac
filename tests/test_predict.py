"""Prediction of files: order, batches, broken images, scans read in windows, the card's thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pelagia.core.card import Normalisation
from pelagia.core.image import write
from pelagia.errors import OptionError
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_batch, predict_files, predict_image
from pelagia.infer.runtimes import OnnxRuntime
from tiny_onnx import tiny_card, write_tiny


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    return OnnxRuntime(write_tiny(tmp_path_factory.mktemp("model") / "m.onnx"), threads=1)


def cells(height: int, width: int, *places: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An image with bright 8 x 8 cells at (column, row) of the finest grid, of class 0 or 1."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for column, row, label in places:
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, label] = 255
    return image


def test_one_image(runtime: OnnxRuntime) -> None:
    found = predict_image(runtime, cells(64, 64, (3, 1, 0), (0, 5, 1)))
    np.testing.assert_allclose(found.boxes, [[24, 8, 32, 16], [0, 40, 8, 48]])
    assert found.labels.tolist() == [0, 1]
    assert found.scores is not None
    assert (found.scores > 0.99).all()


def test_an_enlarged_image_comes_back_in_its_own_pixels(runtime: OnnxRuntime) -> None:
    image = cells(32, 16)
    image[8:12, 4:8, 0] = 255  # shown twice as large, in the left padded by 16 pixels: column 3, row 2
    found = predict_image(runtime, image)
    np.testing.assert_allclose(found.boxes, [[4, 8, 8, 12]], atol=1e-9)


def test_a_batch_equals_single_images(runtime: OnnxRuntime) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (40 + 8 * i, 64, 3), dtype=np.uint8) // 2 * (1 + (i % 2)) for i in range(4)]
    decoding = PredictOptions(score=0.3).decoding(runtime.card)
    together = predict_batch(runtime, images, decoding)
    for image, found in zip(images, together, strict=True):
        alone = predict_batch(runtime, [image], decoding)[0]
        np.testing.assert_allclose(found.box_array, alone.box_array, atol=1e-6)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)


def test_files_in_order_with_broken_ones_between(tmp_path: Path, runtime: OnnxRuntime) -> None:
    paths = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        write(path, cells(64, 64, (index % 8, 2, 0)))
        paths.append(path)
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    paths[4].write_text("no image")
    paths.insert(5, tmp_path / "absent.png")
    scan = tmp_path / "scan.tif"
    write(scan, cells(400, 200, (1, 1, 0), (20, 40, 1)))
    paths.insert(3, scan)
    results = list(predict_files(runtime, paths, PredictOptions(batch=2)))
    assert [result.path for result in results] == paths
    broken = [result for result in results if result.found is None]
    assert [result.path.name for result in broken] == ["2.png", "4.png", "absent.png"]
    assert all(result.error for result in broken)
    for result in results:
        if result.found is not None and result.path != scan:
            assert result.found.boxes is not None
            assert result.found.boxes[0, 0] == 8 * (int(result.path.stem) % 8)
            assert (result.width, result.height) == (64, 64)
    (tiled,) = [result.found for result in results if result.path == scan]
    assert tiled is not None
    np.testing.assert_allclose(tiled.boxes[np.argsort(tiled.labels)], [[8, 8, 16, 16], [160, 320, 168, 328]])  # type: ignore[index]


def test_a_scan_read_in_windows_equals_the_array(tmp_path: Path, runtime: OnnxRuntime) -> None:
    rng = np.random.default_rng(1)
    places = [
        (int(x), int(y), int(k))
        for x, y, k in zip(rng.integers(0, 300, 80), rng.integers(0, 260, 80), rng.integers(0, 2, 80), strict=True)
    ]
    image = cells(2100, 2400, *places)
    write(tmp_path / "scan.tif", image)
    (result,) = predict_files(runtime, [tmp_path / "scan.tif"])
    found = predict_image(runtime, image)
    assert result.found is not None
    np.testing.assert_array_equal(result.found.boxes, found.boxes)
    assert len(found) == len(set(places))


def test_thresholds_of_the_card_hold_unless_a_score_is_given(tmp_path: Path) -> None:
    # A dim cell has logit (0.51 - 0.5) * 40 = 0.4, score 0.6.
    image = cells(64, 64, (3, 1, 0), (0, 5, 1)) // 255 * 130
    strict = OnnxRuntime(write_tiny(tmp_path / "m.onnx", tiny_card(thresholds={"red": 0.9})), threads=1)
    assert predict_image(strict, image).labels.tolist() == [1]
    assert predict_image(strict, image, PredictOptions(score=0.1)).labels.tolist() == [0, 1]
    assert predict_image(strict, image, PredictOptions(score=0.7)).labels.tolist() == []


def test_grey_and_16_bit_images(tmp_path: Path) -> None:
    card = tiny_card(normalisation=Normalisation(0.0, 4095.0))
    runtime = OnnxRuntime(write_tiny(tmp_path / "m.onnx", card), threads=1)
    grey = np.zeros((64, 64), dtype=np.uint16)
    grey[8:16, 24:32] = 4095
    found = predict_image(runtime, grey)
    np.testing.assert_allclose(found.boxes, [[24, 8, 32, 16]])  # both classes are equally sure: a cell has one


@pytest.mark.parametrize(
    "options", [{"score": 2.0}, {"nms_iou": -0.1}, {"overlap": 0.9}, {"batch": 0}, {"tile": -1}, {"most": -1}, {"tiling": "yes"}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        PredictOptions(**options)


def test_an_overlap_wider_than_the_tile_is_refused(runtime: OnnxRuntime) -> None:
    with pytest.raises(OptionError, match="overlap"):
        predict_image(runtime, cells(200, 200), PredictOptions(tile=32, overlap=0.8, tiling="always"))
