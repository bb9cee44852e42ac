"""Prediction of whole-image answers on tiles, with a runtime that reads the class from the colour of a pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.image import letterbox
from pelagia.core.scan import Scan
from pelagia.core.types import Category, SemanticMap
from pelagia.decode import registry
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.tiles import lay_tiles, owned

CATEGORIES = tuple(Category(k, str(k)) for k in range(3))


class Colours:
    """Answers for each pixel of the input without its margin: the brightest channel, as logits of three classes."""

    def __init__(self, side: int, margin: int) -> None:
        self.card = ModelCard(
            name="colours",
            task="semantic",
            decoder="colours",
            categories=CATEGORIES,
            input_size=(side, side),
            stride=4,
            margin=margin,
            options={},
        )

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        margin, side = self.card.margin, self.card.input_size[0]
        return {"logits": images[:, :, margin : side - margin, margin : side - margin]}


def decode_colours(outputs: Any, frames: Any, card: ModelCard, options: Any) -> list[SemanticMap]:
    """Nearest resampling is enough here: frames of this test are shifts by whole pixels, or scales by two."""
    found = []
    for logits, frame in zip(outputs["logits"], frames, strict=True):
        labels = logits.argmax(axis=0).astype(np.uint8)
        y, x = np.mgrid[: frame.height, : frame.width] + 0.5
        points = np.stack([x, y], axis=-1) @ frame.inverse[:, :2].T + frame.inverse[:, 2] - card.margin
        column, row = (np.clip(np.floor(points[..., k]).astype(int), 0, labels.shape[0] - 1) for k in (0, 1))
        found.append(SemanticMap(labels[row, column]))
    return found


@pytest.fixture(autouse=True)
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.DECODERS, "colours", decode_colours)


def painted(width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = np.random.default_rng([width, height]).integers(0, 3, (height, width))
    return np.eye(3, dtype=np.uint8)[labels] * 200 + 20, labels


@pytest.mark.parametrize("margin", [0, 8])
@pytest.mark.parametrize("size", [(64, 64), (150, 64), (201, 147), (64, 390)])
def test_a_tiled_map_is_the_whole_map(size: tuple[int, int], margin: int) -> None:
    image, labels = painted(*size)
    runtime = Colours(64 + 2 * margin, margin)
    found = predict_image(runtime, Scan.of(image), PredictOptions(tiling="always", batch=3))
    assert isinstance(found, SemanticMap)
    np.testing.assert_array_equal(found.labels, labels)


def test_an_image_of_the_inputs_size_needs_no_tile() -> None:
    image, labels = painted(64, 64)
    found = predict_image(Colours(80, 8), image)
    assert isinstance(found, SemanticMap)
    np.testing.assert_array_equal(found.labels, labels)


def test_the_margin_shows_the_mirrored_image() -> None:
    image, _ = painted(40, 30)
    boxed, frame = letterbox(image, (46, 56), margin=8)
    assert boxed.shape == (46, 56, 3)
    np.testing.assert_array_equal(boxed[8:38, 8:48], image)
    np.testing.assert_array_equal(boxed[7, 8:48], image[0])
    np.testing.assert_array_equal(boxed[8:38, 48 + 2], image[:, -3])
    np.testing.assert_allclose(frame.points(np.array([[8.0, 8.0], [48.0, 38.0]])), [[0, 0], [40, 30]])


@pytest.mark.parametrize("size", [(100, 70), (64, 64), (333, 64)])
def test_every_pixel_has_one_owner_that_sees_it(size: tuple[int, int]) -> None:
    tiles = lay_tiles(size, (64, 64), 20)
    seen = np.zeros(size[::-1], dtype=int)
    for (x1, y1, x2, y2), tile in owned(tiles, size):
        seen[y1:y2, x1:x2] += 1
        assert tile.x <= x1 < x2 <= tile.x + tile.width
        assert tile.y <= y1 < y2 <= tile.y + tile.height
    assert (seen == 1).all()
