"""A runtime that reads the class of a pixel from its colour, for tests of class maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.types import Category
from pelagia.errors import ModelError

CATEGORIES = tuple(Category(k + 1, name) for k, name in enumerate(("rock", "sand", "alga")))


class Colours:
    """Logits of three classes are the channels of each pixel of the input without its margin."""

    def __init__(self, side: int = 64, margin: int = 0, *, local: bool = True, breaks_at: int = 0) -> None:
        self.card = ModelCard(
            name="colours",
            task="semantic",
            decoder="pixels",
            categories=CATEGORIES,
            input_size=(side, side),
            stride=4,
            margin=margin,
            manifest={"full_resolution": True, "receptive_field": {"local": local, "halo": 3, "cell": 1}},
        )
        self._calls, self._breaks_at = 0, breaks_at

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self._calls += 1
        if self._calls == self._breaks_at:
            raise ModelError("the network failed", where="colours")
        margin, side = self.card.margin, self.card.input_size[0]
        return {"logits": 4 * images[:, :, margin : side - margin, margin : side - margin]}


def noise_picture(width: int, height: int) -> NDArray[np.uint8]:
    """Every pixel at random."""
    return np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
