"""How sure a number is: bootstrap intervals over images, and a paired test between two models on the same images.

Images are drawn with replacement (Efron 1979), not objects: objects of one image share light, focus and crowding. A statistic is
a function of how often each image counts; whatever does not depend on that (who matched whom) is computed once, outside.

Average precision reads the upper envelope of a curve, and the envelope of a noisier curve lies higher: the resamples of AP lie
above AP, most of all for rare classes, and their plain quantiles may not even contain it. So the quantiles are moved by the
bootstrap's estimate of that bias, the median of the resamples minus the value (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 10).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pelagia.core.types import Float
from pelagia.errors import EvaluationError, OptionError

__all__ = [
    "Difference",
    "Interval",
    "Key",
    "Statistic",
    "image_weights",
    "intervals",
    "paired_differences",
]

#: (class, number), such as ("copepod", "AP50"); the class is empty for numbers of the whole.
Key: TypeAlias = tuple[str, str]
#: Every number of an evaluation when image n counts weights[n] times; see `pelagia.metrics.statistics`.
Statistic: TypeAlias = Callable[[Float], Mapping[Key, float]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its percentile interval, less the bias: `value` on the data as they are, `low` and `high` at the chosen
    level, and the standard error. NaN where no resample has the number; resamples without it (a rare class left out) are not
    counted."""

    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much larger a number is for the second model than for the first, on the same images.

    `p` is the two-sided achieved significance level of the paired bootstrap: twice the smaller share of resamples on either side
    of zero, each counted with one more (Davison and Hinkley 1997, section 4.2.5), at most 1.
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    p: float


def image_weights(images: int, seed: int, resample: int) -> Float:
    """[images] how often each image was drawn in resample number `resample`; the sum is `images`."""
    rng = np.random.default_rng((seed, resample))
    return np.bincount(rng.integers(0, images, images), minlength=images).astype(np.float64)


def intervals(
    statistic: Statistic,
    images: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    bounds: Callable[[Key], tuple[float, float]] | None = None,
) -> dict[Key, Interval]:
    """Every number of `statistic` with its interval.

    Args:
        bounds: what a number lies between whatever the images; the interval, being moved, is cut there.

    Raises:
        OptionError: a level outside 0 to 1 or fewer than 2 resamples.
        EvaluationError: fewer than two images, whose spread cannot be told.
    """
    keys, values, table = _table([statistic], images, resamples, level, seed)
    sample = table[0]
    found = {}
    for column, key in enumerate(keys):
        low, high, error = _spread(sample[:, column], values[0][column], level)
        if bounds is not None:
            low, high = (float(np.clip(value, *bounds(key))) for value in (low, high))
        found[key] = Interval(values[0][column], low, high, error)
    return found


def paired_differences(
    first: Statistic, second: Statistic, images: int, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[Key, Difference]:
    """Every number that both models have, with the interval of `second` minus `first` and its significance.

    Raises:
        OptionError, EvaluationError: see `intervals`.
    """
    keys, values, table = _table([first, second], images, resamples, level, seed)
    found = {}
    for column, key in enumerate(keys):
        one, two = values[0][column], values[1][column]
        change = _centred(table[1][:, column] - table[0][:, column], two - one)
        low, high, _ = _spread(change, two - one, level)
        sides = (np.count_nonzero(change <= 0) + 1, np.count_nonzero(change >= 0) + 1)
        p = min(2 * min(sides) / (len(change) + 1), 1.0) if len(change) else float("nan")
        found[key] = Difference(one, two, two - one, low, high, p)
    return found


def _table(
    statistics: list[Statistic], images: int, resamples: int, level: float, seed: int
) -> tuple[list[Key], list[list[float]], list[Float]]:
    """The common keys, the values on the data as they are, and for each statistic [resamples, keys]."""
    if seed < 0:
        raise OptionError(f"seed must be 0 or positive, got {seed}")
    if resamples < 2 or not 0 < level < 1:
        raise OptionError(f"an interval needs at least 2 resamples and a level between 0 and 1, got {resamples} and {level}")
    if images < 2:
        raise EvaluationError(f"an interval over images needs at least 2 of them, got {images}")
    plain = [dict(statistic(np.ones(images))) for statistic in statistics]
    keys = [key for key in plain[0] if all(key in other for other in plain)]
    table = [np.empty((resamples, len(keys))) for _ in statistics]

    def fill(resample: int) -> None:
        weights = image_weights(images, seed, resample)
        for rows, statistic in zip(table, statistics, strict=True):
            numbers = statistic(weights)
            rows[resample] = [numbers[key] for key in keys]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(fill, range(resamples)))
    return keys, [[float(numbers[key]) for key in keys] for numbers in plain], table


def _centred(sample: Float, value: float) -> Float:
    """The resamples that have the number, moved so that their median is `value`."""
    sample = sample[~np.isnan(sample)]
    return sample + (value - np.median(sample)) if len(sample) and not np.isnan(value) else sample


def _spread(sample: Float, value: float, level: float) -> tuple[float, float, float]:
    sample = _centred(sample, value)
    if len(sample) < 2:
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), float(sample.std(ddof=1))
