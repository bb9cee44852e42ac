"""Pixels at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def noise(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    """All values of the type, equally often."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
