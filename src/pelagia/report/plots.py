"""Plots as PNG files. Figures are made and forgotten here: no window, no global state of matplotlib is touched.

The first six colours of lines are of Okabe and Ito (2008), which the red-, green- and blue-blind tell apart too. Four more serve
plots of seven to ten classes; to the red-blind some of them look like one of the six.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core.files import atomic_write
from pelagia.core.lazy import resolve
from pelagia.core.types import Float
from pelagia.errors import OptionError
from pelagia.metrics.confusion import BACKGROUND, ConfusionMatrix
from pelagia.metrics.curves import RECALLS
from pelagia.metrics.result import SCORES, DetectionResult

__all__ = [
    "COLOURS",
    "GREY",
    "INK",
    "SOFT_INK",
    "counts_scatter",
    "detection_plots",
    "draw_matrix",
    "f1_curve",
    "new_figure",
    "plain_name",
    "plot_confusion",
    "pr_curve",
    "save_figure",
    "say_instead",
    "training_curves",
    "write_below",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F00", "#B2182B", "#4D4D4D")

#: Of lines that stand back, of text, and of text that says less.
GREY, INK, SOFT_INK = "#9AA5AD", "#1F2A33", "#5A6872"

_DPI = 130

#: How much of the text below a figure surely fits on a line.
_LETTERS_PER_INCH = 13

#: Mean width of a letter, in inches for each point of the font size.
_LETTER = 0.0083

#: Side of the confusion matrix of many classes, in inches: the picture is then embedded in the report without being shrunk.
_MATRIX_SIDE = 8.6

#: Side of the panel of `counts_scatter`, in inches.
_SCATTER_SIDE = 4.2

#: More classes than this are drawn grey, without a legend of names.
_NAMED_CLASSES = len(COLOURS)

#: Up to so many classes the confusion matrix has room for numbers, and for names.
_NUMBERED_CELLS = 24
_NAMED_CELLS = 60


def detection_plots(result: DetectionResult, folder: str | Path) -> dict[str, Path]:
    """Write precision-recall, F1 and confusion plots into `folder`; name -> file."""
    folder = Path(folder)
    return {
        "precision_recall": pr_curve(result, folder / "precision_recall.png"),
        "f1": f1_curve(result, folder / "f1.png"),
        "confusion": plot_confusion(result.confusion, folder / "confusion.png"),
    }


def pr_curve(result: DetectionResult, path: str | Path) -> Path:
    """Precision over recall of every class with truth, and their mean, at `result.curve_iou`, no cut of predictions."""
    curves = [(f"{item.name}  {item.precision.mean():.3f}", item.precision) for item in result.classes if item.truths]
    return _class_curves(
        (RECALLS, curves),
        ("recall", "precision", f"Precision and recall at IoU {result.curve_iou:.2f}"),
        path,
        mean="mean  {:.3f}",
    )


def f1_curve(result: DetectionResult, path: str | Path) -> Path:
    """F1 over the score threshold of every class with truth, and their mean."""
    curves = [(f"{item.name}  {_best(item.best.f1)}", item.f1) for item in result.classes if item.truths]
    return _class_curves((SCORES, curves), ("score threshold", "F1", f"F1 at IoU {result.curve_iou:.2f}"), path, mean="mean")


def _best(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _class_curves(
    data: tuple[np.ndarray, list[tuple[str, np.ndarray]]], labels: tuple[str, str, str], path: str | Path, *, mean: str
) -> Path:
    x, curves = data
    figure, (axes,) = new_figure(1, width=5.8, height=5.2)
    named = len(curves) <= _NAMED_CLASSES
    for index, (name, values) in enumerate(curves):
        style = (
            {"color": COLOURS[index], "linewidth": 1.6, "label": plain_name(name)} if named else {"color": GREY, "linewidth": 0.6}
        )
        axes.plot(x, values, **style)
    if len(curves) > 1:
        average = np.mean([values for _, values in curves], axis=0)
        text = mean.format(average.mean()) + ("" if named else f"  ({len(curves)} classes)")
        axes.plot(x, average, color=INK, linewidth=2.6, label=text)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=labels[0], ylabel=labels[1])
    axes.set_title(labels[2], loc="left", fontsize=12, color=INK)
    if curves:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=9)
    else:
        say_instead(axes, "no object in the truth")
    return save_figure(figure, path)


def plot_confusion(matrix: ConfusionMatrix, path: str | Path) -> Path:
    """The confusion matrix: numbers are counts, colour is the share of the row (of the true objects of a class)."""
    names = [*matrix.class_names, BACKGROUND]
    cells = [[_short(count) if count else "" for count in row] for row in matrix.counts.tolist()]
    return draw_matrix(matrix.normalised("truth"), cells, (names, names), f"Confusion at IoU {matrix.iou:.2f}", path)


def draw_matrix(
    share: Float,
    cells: Sequence[Sequence[str]],
    names: tuple[Sequence[str], Sequence[str]],
    title: str,
    path: str | Path,
    *,
    note: str = "",
) -> Path:
    """Write `share` [R, K] as colours, rows the true and columns the predicted class, with `note` below.

    Args:
        cells: [R][K] text of the cells, drawn when there is room.
        names: of the rows and of the columns, drawn when there is room.
    """
    rows, columns = share.shape
    size = max(rows, columns)
    cell, font = (0.46, 9) if size <= _NUMBERED_CELLS else (_MATRIX_SIDE / size, 7)  # inches, points
    beside, below = ([plain_name(name) for name in some] if size <= _NAMED_CELLS else [] for some in names)
    room, foot = (font * _LETTER * max(map(len, some), default=4) for some in (beside, below))
    width = max(cell * columns + room + 2.0, 4.2)
    figure, (axes,) = new_figure(1, width=width, height=max(cell * rows + foot / math.sqrt(2) + 1.1 + 0.4 * bool(note), 3.4))
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if size <= _NAMED_CELLS:
        axes.set_xticks(range(columns), below, rotation=45, ha="right", rotation_mode="anchor", fontsize=font)
        axes.set_yticks(range(rows), beside, fontsize=font)
    if size <= _NUMBERED_CELLS:
        for row, texts in enumerate(cells):
            for column, text in enumerate(texts):
                colour = "white" if share[row, column] > 0.55 else INK
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    slim = max(cell * rows, 2.0) / 0.18
    bar = figure.colorbar(picture, ax=axes, fraction=0.35 / width, pad=0.15 / width, aspect=slim, format="{x:.0%}")
    bar.ax.tick_params(labelsize=9, colors=INK)
    bar.set_label("share of the true class", fontsize=9)
    bar.outline.set_visible(False)
    write_below(figure, note)
    return save_figure(figure, path)


def counts_scatter(truth: Sequence[float], predicted: Sequence[float], path: str | Path, *, names: Sequence[str] = ()) -> Path:
    """Predicted over true numbers, one point per image or per class; the diagonal is a perfect count.

    Args:
        names: written beside the points when there are few, where they cover nothing.

    Raises:
        OptionError: other numbers of points.
    """
    x, y = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if x.shape != y.shape or (names and len(names) != len(x)):
        raise OptionError(f"{len(x)} true counts, {len(y)} predicted ones and {len(names)} names do not fit together")
    figure, (axes,) = new_figure(1, width=5.4, height=5.0)
    most = max(float(x.max(initial=1)), float(y.max(initial=1))) * 1.08
    axes.plot([0, most], [0, most], color=GREY, linewidth=1, zorder=1)
    axes.scatter(x, y, s=36, color=COLOURS[0], alpha=0.75, linewidths=0, zorder=2)
    if len(x) <= 20 and names:
        _name_points(axes, np.stack([x, y], axis=1), [plain_name(name) for name in names], most / _SCATTER_SIDE)
    axes.set(xlim=(0, most), ylim=(0, most), xlabel="true number", ylabel="predicted number", aspect="equal")
    error = float(np.abs(y - x).sum() / x.sum()) if x.sum() else math.nan
    title = "Counts" if math.isnan(error) else f"Counts, {error:.1%} absolute error"
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    return save_figure(figure, path)


def _name_points(axes: Any, points: Float, names: Sequence[str], unit: float) -> None:
    """Names beside points ([N, 2] in units of the axes, `unit` an inch); one that would cover a point or a name is left out."""
    size, inches = 8, points / unit
    taken = np.concatenate([inches - 0.03, inches + 0.03], axis=1)  # x0, y0, x1, y1
    for index, ((x, y), name) in enumerate(zip(inches.tolist(), names, strict=True)):
        long, left = size * _LETTER * len(name), x > _SCATTER_SIDE / 2
        box = np.array(
            [x - 0.07 - long, y + 0.04, x - 0.07, y + 0.17] if left else [x + 0.07, y - 0.17, x + 0.07 + long, y - 0.04]
        )
        others = np.delete(taken, index, axis=0)
        if ((others[:, :2] < box[2:]) & (others[:, 2:] > box[:2])).all(axis=1).any():
            continue
        taken = np.concatenate([taken, box[None]])
        place = {"xytext": (-5, 4), "ha": "right"} if left else {"xytext": (5, -4), "va": "top"}
        axes.annotate(name, tuple(points[index]), textcoords="offset points", fontsize=size, color=INK, **place)


def training_curves(rows: Sequence[Mapping[str, Any]], path: str | Path, *, x: str = "epoch") -> Path:
    """Losses, scores and learning rates of a run over `x`, a panel each.

    Args:
        rows: one mapping per record, as read from the run's metrics file. Nested mappings become names joined by "/". What is
            no number, and what is named neither like a loss, a score (ap, ar, f1, precision, recall, miou, dice, accuracy, pq,
            sq, rq) nor a learning rate, is left out.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}, "score": {}, "learning rate": {}}
    for position, row in enumerate(rows):
        flat = _flat(row)
        place = flat.get(x, float(position))
        for name, value in flat.items():
            panel = _panel(name)
            if panel and name != x:
                panels[panel].setdefault(name, []).append((place, value))
    used = {title: series for title, series in panels.items() if series} or {"loss": {}}
    figure, every = new_figure(len(used), width=5.2 * len(used), height=3.8)
    for axes, (title, series) in zip(every, used.items(), strict=True):
        for index, (name, points) in enumerate(series.items()):
            marker = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], marker=marker, label=plain_name(name))
        axes.set(xlabel=x)
        axes.set_title(title, loc="left", fontsize=12, color=INK)
        if series:
            axes.legend(frameon=False, fontsize=8)
        else:
            say_instead(axes, "nothing recorded yet")
        if title == "score" and series:
            axes.set_ylim(0, 1.02)
    return save_figure(figure, path)


#: Parts of names, before any digits, that say "a score".
_SCORES = {"ap", "ar", "f1", "precision", "recall", "map", "fitness", "miou", "iou", "dice", "accuracy", "pq", "sq", "rq"}


def _panel(name: str) -> str | None:
    parts = [part for piece in name.lower().split("/") for part in piece.split("_")]
    if any("loss" in part for part in parts):
        return "loss"
    if {"lr", "rate"} & set(parts):
        return "learning rate"
    return "score" if any(part.rstrip("0123456789") in _SCORES or part in _SCORES for part in parts) else None


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    values: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            values[f"{prefix}{key}"] = float(value)
    return values


def new_figure(panels: int, *, width: float, height: float, stacked: Sequence[float] | None = None) -> tuple[Any, list[Any]]:
    """A figure of `width` times `height` inches, and its panels: side by side, or below one another with a common x axis, their
    heights in the proportions `stacked`."""
    module = resolve("matplotlib.figure", purpose="draw plots")
    figure = module.Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    if stacked is None:
        every = figure.subplots(1, panels, squeeze=False)[0].tolist()
    else:
        every = figure.subplots(panels, 1, squeeze=False, sharex=True, height_ratios=stacked)[:, 0].tolist()
    for axes in every:
        axes.grid(visible=True, color="#E3E8EB", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9, colors=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(GREY)
    return figure, every


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write the figure as PNG, atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})  # no version: equal data give equal files
    return Path(path)


def say_instead(axes: Any, text: str) -> None:
    """Text in the middle of a panel that has nothing to show."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=SOFT_INK)


def write_below(figure: Any, text: str) -> None:
    """A remark at the lower edge of the figure, broken into lines that fit."""
    if text:
        per_line = max(int(figure.get_figwidth() * _LETTERS_PER_INCH), 20)
        figure.supxlabel("\n".join(textwrap.wrap(text, per_line)), fontsize=8.5, color=SOFT_INK)


def plain_name(name: str, longest: int = 28) -> str:
    """A name as matplotlib shows it literally: no mathematics between dollars, a leading underscore kept, not too long."""
    name = " ".join(name.split()) or " "
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    name = name.replace("\\", "\\\\") if "$" in name else name
    return (" " + name if name.startswith("_") else name).replace("$", r"\$")


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"
