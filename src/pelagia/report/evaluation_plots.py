"""Plots of what AP alone does not tell: calibration, types and sizes of errors, intervals, angles, and the confusion of pixels.

Each function writes one PNG file and returns its path. Where there is nothing to draw the picture says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float
from pelagia.metrics.angles import AngleErrors
from pelagia.metrics.bootstrap import Interval, Key
from pelagia.metrics.curves import AREAS
from pelagia.metrics.error_types import ERROR_TYPES, ErrorBreakdown
from pelagia.metrics.reliability import Reliability
from pelagia.metrics.semantic_result import NONE, SemanticResult
from pelagia.report.plots import (
    COLOURS,
    GREY,
    INK,
    draw_matrix,
    new_figure,
    plain_name,
    save_figure,
    say_instead,
    write_below,
)

__all__ = ["angle_histogram", "error_bars", "interval_plot", "reliability_diagram", "semantic_confusion", "size_bars"]

#: A picture names at most so many classes; what it leaves out is said below it.
_MOST_ROWS = 40

#: Accuracy; and edge, filling and hatching of gaps.
_BAR = COLOURS[5]
_TOO_HIGH, _TOO_LOW = (COLOURS[1], "#F6CFB3", "////"), (COLOURS[2], "#BFE6DA", "\\\\\\\\")

_TOTALS = ("false positive", "false negative")

#: Light to dark as sizes grow, so that the order is seen without colour; and the colour of text on them.
_SIZE_COLOURS = (("#8CCBF0", INK), ("#0072B2", "white"), ("#0B2F4A", "white"))

#: Width of the panel of `size_bars`, and of a digit in it, in inches.
_BAR_ROOM, _DIGIT = 4.4, 0.071

#: Largest angle shown and the width of the bins, in degrees.
_ANGLE_BINS = ((5, 0.125), (10, 0.25), (20, 0.5), (45, 1.0), (90, 2.0))

#: Counts that differ by more than this factor are drawn on a logarithmic axis.
_LINEAR_RATIO = 50


def reliability_diagram(reliability: Reliability, path: str | Path, *, title: str = "Reliability") -> Path:
    """Accuracy in bins of the score with the gap to the mean score, above the number of samples in each bin.

    A calibrated score keeps to the diagonal (Guo et al. 2017, figure 1). A gap above the line of the accuracy says that the
    scores are too high, one below it that they are too low.
    """
    figure, (axes, below) = new_figure(2, width=5.6, height=6.4, stacked=(4, 1))
    used = reliability.weight > 0
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=4, label="calibrated")
    if used.any():
        left = reliability.edges[:-1][used]
        # An adaptive bin may be a single score: it stays visible.
        width = np.maximum(np.diff(reliability.edges)[used], 0.004)
        score, accuracy = reliability.score[used], reliability.accuracy[used]
        thin = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
        axes.bar(left, accuracy, width, color=_BAR, zorder=2, **thin)
        axes.hlines(accuracy, left, left + width, color=INK, linewidth=2, zorder=4, label="accuracy")
        for some, name, (colour, fill, hatch) in (
            (score > accuracy, "gap: score too high", _TOO_HIGH),
            (score < accuracy, "gap: score too low", _TOO_LOW),
        ):
            if not some.any():
                continue
            low, high = np.minimum(score, accuracy)[some], np.maximum(score, accuracy)[some]
            look = {"facecolor": fill, "edgecolor": colour, "hatch": hatch, "linewidth": 0.8, "zorder": 3}
            axes.bar(left[some], high - low, width[some], bottom=low, align="edge", label=name, **look)
        below.bar(left, reliability.count[used], width, color=GREY, **thin)
        _count_axis(below, reliability.count[used])
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    else:
        say_instead(below, "no sample")
        below.set_yticks([])
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    below.set(xlabel="score", ylabel="samples")
    samples = int(reliability.count.sum())
    _title(
        axes, f"{title}: ECE {_three(reliability.ece)} of {samples:,} sample{'' if samples == 1 else 's'}" if samples else title
    )
    return save_figure(figure, path)


def error_bars(breakdown: ErrorBreakdown, path: str | Path) -> Path:
    """AP50 that each type of error costs, and below it what all false positives and all false negatives cost."""
    figure, (axes,) = new_figure(1, width=6.6, height=4.3)
    names = (*ERROR_TYPES, *_TOTALS)
    values = np.array([breakdown.gain[name] for name in names])
    place = np.append(np.arange(len(ERROR_TYPES)), len(ERROR_TYPES) + 0.7 + np.arange(len(_TOTALS)))
    length = np.nan_to_num(values)
    axes.barh(place, length, height=0.68, color=[COLOURS[0]] * len(ERROR_TYPES) + [GREY] * len(_TOTALS))
    for y, value, end in zip(place, values, np.maximum(length, 0), strict=True):
        _beside(axes, (end, y), _three(value))
    axes.axhline((place[len(ERROR_TYPES) - 1] + place[len(ERROR_TYPES)]) / 2, color=GREY, linewidth=0.8)
    axes.set_xlim(min(float(length.min()), 0.0), max(float(length.max()), 0.01) * 1.16)
    _rows(axes, place, names)
    axes.set_xlabel("AP50 gained when these errors alone are mended")
    if np.isnan(values).all():
        say_instead(axes, "no object in the truth")
    _title(axes, "What errors cost" if np.isnan(breakdown.ap) else f"What errors cost, at AP50 {_three(breakdown.ap)}")
    return save_figure(figure, path)


def size_bars(breakdown: ErrorBreakdown, path: str | Path) -> Path:
    """Number of errors of each type, split by the size of the object."""
    figure, (axes,) = new_figure(1, width=6.6, height=3.9)
    sizes = [size for size in AREAS if size != "all"]
    counts = np.array([[breakdown.sizes[name][size] for size in sizes] for name in ERROR_TYPES], dtype=np.int64)
    total = counts.sum(axis=1)
    start = np.cumsum(counts, axis=1) - counts
    place = np.arange(len(ERROR_TYPES))
    limit = max(int(total.max()), 1) * 1.16
    for column, (size, (colour, ink)) in enumerate(zip(sizes, _SIZE_COLOURS, strict=True)):
        ends = "" if size == sizes[-1] else f", up to {AREAS[size][1] ** 0.5:g}² px"
        axes.barh(place, counts[:, column], left=start[:, column], height=0.68, color=colour, label=size + ends)
        columns = (counts[:, column].tolist(), start[:, column].tolist(), total.tolist())
        for y, count, left, whole in zip(place.tolist(), *columns, strict=True):
            text, room = f"{count:,}", count / limit * _BAR_ROOM
            if count < whole and room > len(text) * _DIGIT + 0.08:
                axes.text(left + count / 2, y, text, ha="center", va="center", fontsize=8, color=ink)
    for y, whole in zip(place.tolist(), total.tolist(), strict=True):
        _beside(axes, (whole, y), f"{whole:,}")
    axes.set_xlim(0, limit)
    axes.locator_params(axis="x", nbins=6, integer=True)
    _rows(axes, place, ERROR_TYPES)
    axes.set_xlabel("errors")
    if total.any():
        figure.legend(loc="outside lower center", ncols=len(sizes), frameon=False, fontsize=9)
    else:
        say_instead(axes, "no error")
    _title(axes, "Errors by size of the object")
    return save_figure(figure, path)


def interval_plot(intervals: Mapping[Key, Interval], path: str | Path, number: str = "AP50", *, level: float = 0.95) -> Path:
    """`number` of the whole and of each class with its interval, the largest first. Of many classes the last 40 are drawn.

    Args:
        level: share of resamples that the intervals hold, for the title.
    """
    whole = [("all classes", item) for key, item in intervals.items() if key == ("", number) and not np.isnan(item.value)]
    every = [(name, item) for (name, what), item in intervals.items() if what == number and name]
    known = sorted((row for row in every if not np.isnan(row[1].value)), key=lambda row: -row[1].value)
    left_out, rows = known[:-_MOST_ROWS], [*whole, *known[-_MOST_ROWS:]]
    figure, (axes,) = new_figure(1, width=7.2, height=0.26 * max(len(rows), 3) + 1.6)
    place = np.arange(len(rows)) + (0.6 if whole else 0.0)
    place[: len(whole)] = 0.0
    for index, (y, (_, item)) in enumerate(zip(place, rows, strict=True)):
        _interval(axes, float(y), item, INK if index < len(whole) else COLOURS[0])
    if rows:
        axes.set_xlim(*_limits([value for _, item in rows for value in (item.value, item.low, item.high)]))
    else:
        say_instead(axes, f"no class has {number}")
    for _, item in whole:
        axes.axvline(item.value, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    _rows(axes, place, [plain_name(name) for name, _ in rows])
    axes.set_xlabel(number)
    notes = []
    if any(np.isnan(item.low) for _, item in rows):
        notes.append("Open circles have no interval.")
    if left_out:
        lowest = _three(left_out[-1][1].value)
        notes.append(f"Not drawn: {_classes(len(left_out))} with {number} of {lowest} and more.")
    if len(every) > len(known):
        missing = len(every) - len(known)
        notes.append(f"{_classes(missing)} {'has' if missing == 1 else 'have'} no {number}.")
    write_below(figure, " ".join(notes))
    _title(axes, f"{number} with {100 * level:g}% intervals")
    return save_figure(figure, path)


def angle_histogram(errors: AngleErrors, path: str | Path) -> Path:
    """How many true positives are turned by how many degrees."""
    figure, (axes,) = new_figure(1, width=5.8, height=4.4)
    degrees = np.minimum(errors.degrees, 90.0)
    if len(degrees):
        limit, width = next((last, width) for last, width in _ANGLE_BINS if last >= degrees.max())
        counts, _, _ = axes.hist(degrees, bins=np.linspace(0, limit, round(limit / width) + 1), color=_BAR)
        _count_axis(axes, counts[counts > 0])
        middle, tail = np.quantile(degrees, [0.5, 0.9])
        axes.axvline(middle, color=INK, linewidth=1.6, label=f"median {middle:.1f}°")
        axes.axvline(tail, color=COLOURS[1], linewidth=1.6, linestyle=(0, (4, 2)), label=f"90% up to {tail:.1f}°")
        axes.set_xlim(0, limit)
        if limit == 90:
            axes.set_xticks(range(0, 91, 15))
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=2, frameon=False, fontsize=9)
    else:
        axes.set(xlim=(0, 90), ylim=(0, 1), xticks=range(0, 91, 15), yticks=[])
        say_instead(axes, "no true positive that has an angle")
    axes.set(xlabel="angle between the true and the predicted long side, degrees", ylabel=f"true positives ({len(degrees):,})")
    _title(axes, "Angle errors")
    if errors.skipped:
        write_below(figure, f"{errors.skipped:,} nearly square objects are left out: they have no angle.")
    return save_figure(figure, path)


def semantic_confusion(result: SemanticResult, path: str | Path) -> Path:
    """Which class pixels were taken for: numbers are percent of the true class, and so is colour.

    Of many classes the 40 with most wrong pixels have a row; the others share the column `other classes`.
    """
    counts = np.asarray(result.confusion, dtype=np.float64)
    names = [category.name for category in result.categories]
    columns, note = [*names, NONE], ""
    if len(names) > _MOST_ROWS:
        wrong = result.truth_px + result.predicted_px - 2 * counts.diagonal()
        order = np.argsort(-wrong, kind="stable")
        shown, rest = np.sort(order[:_MOST_ROWS]), order[_MOST_ROWS:]
        counts = np.column_stack([counts[shown][:, shown], counts[shown][:, rest].sum(axis=1), counts[shown, -1]])
        names = [names[label] for label in shown]
        columns = [*names, "other classes", NONE]
        note = f"{_classes(len(rest))} with fewer wrong pixels have no row here and share the column 'other classes'."
    whole = counts.sum(axis=1, keepdims=True)
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    share: Float = counts / np.where(whole > 0, whole, 1)
    cells = [[f"{round(100 * value) or ''}" for value in row] for row in share.tolist()]
    note = note if whole.any() else "There is no pixel to compare."
    return draw_matrix(share, cells, (names, columns), "Confusion of pixels, %", path, note=note)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=12, color=INK)


def _rows(axes: Any, place: NDArray[Any], names: Sequence[str]) -> None:
    """Named rows from top to bottom."""
    axes.set_yticks(place, names)
    axes.set_ylim((float(place[-1]) if len(place) else 0.0) + 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _beside(axes: Any, point: tuple[float, float], text: str) -> None:
    axes.annotate(text, point, xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, color=INK)


def _interval(axes: Any, y: float, item: Interval, colour: str) -> None:
    text, known = _three(item.value), not np.isnan([item.low, item.high]).any()
    if known:
        # No error bar: the value may lie outside a percentile interval.
        axes.plot([item.low, item.high], [y, y], color=colour, linewidth=1.8, marker="|", markersize=7, zorder=2)
        text += f"  [{_three(item.low)}, {_three(item.high)}]"
    axes.plot([item.value], [y], marker="o", markersize=6, color=colour, markerfacecolor=colour if known else "white", zorder=3)
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), ha="left", va="center", fontsize=8.5, color=colour)


def _limits(values: list[float]) -> tuple[float, float]:
    """Of the axis: around all that is not NaN, inside 0 to 1 as far as the values are."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max(0.05 * (high - low), 0.02)
    least, most = low - margin, high + margin
    return (max(least, -0.005) if low >= 0 else least), (min(most, 1.005) if high <= 1 else most)


def _count_axis(axes: Any, counts: NDArray[Any]) -> None:
    """The y axis for counts above 0: logarithmic if small ones would vanish."""
    if counts.max() > _LINEAR_RATIO * counts.min():
        axes.set_yscale("log")
        axes.set_ylim(0.7, float(counts.max()) * 1.6)
    else:
        axes.locator_params(axis="y", nbins=4, integer=True)


def _three(value: float) -> str:
    """Three decimals without a minus sign of nothing, or a dash for NaN."""
    return "-" if np.isnan(value) else f"{round(float(value), 3) + 0.0:.3f}"


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"
