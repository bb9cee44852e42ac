"""What the tests of scans share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.scan import Scan


def windows(scan: Scan, whole: NDArray[Any], count: int = 20) -> None:
    """Random windows of a scan equal the cuts of the whole image."""
    assert scan.shape == whole.shape
    assert scan.dtype == whole.dtype
    rng = np.random.default_rng(0)
    for _ in range(count):
        x, y = int(rng.integers(scan.width)), int(rng.integers(scan.height))
        width, height = int(rng.integers(1, scan.width - x + 1)), int(rng.integers(1, scan.height - y + 1))
        found = scan.read(x, y, width, height)
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole[y : y + height, x : x + width])
