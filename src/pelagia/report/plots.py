"""Plots as PNG files. Figures are made and forgotten here: no window, no global state of matplotlib is touched.

Colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core.files import atomic_write
from pelagia.core.lazy import resolve
from pelagia.errors import OptionError
from pelagia.metrics.confusion import BACKGROUND, ConfusionMatrix
from pelagia.metrics.result import RECALLS, SCORES, DetectionResult

__all__ = ["counts_scatter", "detection_plots", "f1_curve", "plot_confusion", "pr_curve", "training_curves"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F00", "#B2182B", "#4D4D4D")
_GREY = "#9AA5AD"
_INK = "#1F2A33"

#: More classes than this are drawn grey, without a legend of names.
_NAMED_CLASSES = len(_COLOURS)

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
    figure, (axes,) = _figure(1, width=5.8, height=5.2)
    named = len(curves) <= _NAMED_CLASSES
    for index, (name, values) in enumerate(curves):
        style = (
            {"color": _COLOURS[index], "linewidth": 1.6, "label": _plain(name)} if named else {"color": _GREY, "linewidth": 0.6}
        )
        axes.plot(x, values, **style)
    if len(curves) > 1:
        average = np.mean([values for _, values in curves], axis=0)
        text = mean.format(average.mean()) + ("" if named else f"  ({len(curves)} classes)")
        axes.plot(x, average, color=_INK, linewidth=2.6, label=text)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=labels[0], ylabel=labels[1])
    axes.set_title(labels[2], loc="left", fontsize=12, color=_INK)
    if curves:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=9)
    else:
        _say(axes, "no object in the truth")
    return _save(figure, path)


def plot_confusion(matrix: ConfusionMatrix, path: str | Path) -> Path:
    """The confusion matrix: numbers are counts, colour is the share of the row (of the true objects of a class)."""
    counts, share = matrix.counts, matrix.normalised("truth")
    size = len(counts)
    side = min(max(0.46 * size + 1.6, 3.6), 14.0)
    figure, (axes,) = _figure(1, width=side + 1.4, height=side)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [_plain(name) for name in (*matrix.class_names, BACKGROUND)]
    if size <= _NAMED_CELLS:
        font = 9 if size <= _NUMBERED_CELLS else 6
        axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=font)
        axes.set_yticks(range(size), names, fontsize=font)
    if size <= _NUMBERED_CELLS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[row, column] > 0.55 else _INK
            text = _short(int(counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"Confusion at IoU {matrix.iou:.2f}", loc="left", fontsize=12, color=_INK)
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class", fontsize=9)
    bar.outline.set_visible(False)
    return _save(figure, path)


def counts_scatter(truth: Sequence[float], predicted: Sequence[float], path: str | Path, *, names: Sequence[str] = ()) -> Path:
    """Predicted over true numbers, one point per image or per class; the diagonal is a perfect count.

    Args:
        names: written beside the points when there are few.

    Raises:
        OptionError: other numbers of points.
    """
    x, y = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if x.shape != y.shape or (names and len(names) != len(x)):
        raise OptionError(f"{len(x)} true counts, {len(y)} predicted ones and {len(names)} names do not fit together")
    figure, (axes,) = _figure(1, width=5.4, height=5.0)
    most = max(float(x.max(initial=1)), float(y.max(initial=1))) * 1.08
    axes.plot([0, most], [0, most], color=_GREY, linewidth=1, zorder=1)
    axes.scatter(x, y, s=36, color=_COLOURS[0], alpha=0.75, linewidths=0, zorder=2)
    if len(x) <= 20:
        for a, b, name in zip(x, y, names, strict=False):
            axes.annotate(_plain(name), (a, b), xytext=(5, -9), textcoords="offset points", fontsize=8, color=_INK)
    axes.set(xlim=(0, most), ylim=(0, most), xlabel="true number", ylabel="predicted number", aspect="equal")
    error = float(np.abs(y - x).sum() / x.sum()) if x.sum() else math.nan
    title = "Counts" if math.isnan(error) else f"Counts, {error:.1%} absolute error"
    axes.set_title(title, loc="left", fontsize=12, color=_INK)
    return _save(figure, path)


def training_curves(rows: Sequence[Mapping[str, Any]], path: str | Path, *, x: str = "epoch") -> Path:
    """Losses, scores and learning rates of a run over `x`, a panel each.

    Args:
        rows: one mapping per record, as read from the run's metrics file. Nested mappings become names joined by "/". What is
            no number, and what is named neither like a loss, a score (ap, ar, f1, precision, recall) nor a learning rate, is
            left out.
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
    figure, every = _figure(len(used), width=5.2 * len(used), height=3.8)
    for axes, (title, series) in zip(every, used.items(), strict=True):
        for index, (name, points) in enumerate(series.items()):
            marker = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), color=_COLOURS[index % len(_COLOURS)], marker=marker, label=_plain(name))
        axes.set(xlabel=x)
        axes.set_title(title, loc="left", fontsize=12, color=_INK)
        if series:
            axes.legend(frameon=False, fontsize=8)
        else:
            _say(axes, "nothing recorded yet")
        if title == "score" and series:
            axes.set_ylim(0, 1.02)
    return _save(figure, path)


_SCORES = {"ap", "ar", "f1", "precision", "recall", "map", "fitness"}


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


def _figure(panels: int, *, width: float, height: float) -> tuple[Any, list[Any]]:
    module = resolve("matplotlib.figure", purpose="draw plots")
    figure = module.Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    every = figure.subplots(1, panels, squeeze=False)[0].tolist()
    for axes in every:
        axes.grid(visible=True, color="#E3E8EB", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9, colors=_INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_GREY)
    return figure, every


def _save(figure: Any, path: str | Path) -> Path:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})  # no version: equal data give equal files
    return Path(path)


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=_GREY)


def _plain(name: str, longest: int = 28) -> str:
    """A name as matplotlib shows it literally: no mathematics between dollars, a leading underscore kept, not too long."""
    name = " ".join(name.split()) or " "
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    name = name.replace("\\", "\\\\") if "$" in name else name
    return (" " + name if name.startswith("_") else name).replace("$", r"\$")


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"
