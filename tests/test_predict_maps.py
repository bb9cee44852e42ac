"""Prediction of whole-image answers on tiles, with a runtime that reads the class from the colour of a pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from colours import Colours
from pelagia.core.image import letterbox
from pelagia.core.scan import Scan
from pelagia.core.types import SemanticMap
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image


def painted(width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = np.random.default_rng([width, height]).integers(0, 3, (height, width))
    return np.eye(3, dtype=np.uint8)[labels] * 200 + 20, labels


@pytest.mark.parametrize("margin", [0, 8])
@pytest.mark.parametrize("blend", ["auto", "cut", "exact"])
@pytest.mark.parametrize("size", [(64, 64), (150, 64), (201, 147), (64, 390)])
def test_a_tiled_map_is_the_whole_map(size: tuple[int, int], margin: int, blend: Any) -> None:
    image, labels = painted(*size)
    runtime = Colours(64 + 2 * margin, margin)
    found = predict_image(runtime, Scan.of(image), PredictOptions(tiling="always", batch=3, blend=blend))
    assert isinstance(found, SemanticMap)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.blend == ("cut" if blend == "cut" else "exact")


def test_an_image_of_the_inputs_size_needs_no_tile() -> None:
    image, labels = painted(64, 64)
    found = predict_image(Colours(80, 8), image)
    assert isinstance(found, SemanticMap)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.blend is None


def test_the_margin_shows_the_mirrored_image() -> None:
    image, _ = painted(40, 30)
    boxed, frame = letterbox(image, (46, 56), margin=8)
    assert boxed.shape == (46, 56, 3)
    np.testing.assert_array_equal(boxed[8:38, 8:48], image)
    np.testing.assert_array_equal(boxed[7, 8:48], image[0])
    np.testing.assert_array_equal(boxed[8:38, 48 + 2], image[:, -3])
    np.testing.assert_allclose(frame.points(np.array([[8.0, 8.0], [48.0, 38.0]])), [[0, 0], [40, 30]])
