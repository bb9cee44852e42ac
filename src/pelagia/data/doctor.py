"""`pelagia doctor`: what is wrong with a data set, before hours are spent on it.

`examine` reads every image once and every label; the report holds findings (errors, warnings, notes) and tables of classes and
of object sizes at the network's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pelagia.core.types import IGNORE_INDEX, Float
from pelagia.data import checks, checks_maps
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding, summarise
from pelagia.data.fingerprint import fingerprints
from pelagia.errors import OptionError

__all__ = ["SMALL_PX", "Report", "Table", "examine"]

#: A shorter side below this is less than one cell of a detector's finest grid (stride 8).
SMALL_PX = 8.0
#: Share of small objects from which the report warns.
_MANY_SMALL = 0.1
#: Lower bounds of the size table, in input pixels of the shorter side.
_BINS = (0.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True, slots=True)
class Table:
    """A table: a title, the names of its columns, and rows of texts and numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]

    def lines(self) -> list[str]:
        """The table as text, numbers to the right."""
        cells = [self.columns, *(tuple(_text(value) for value in row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        right = [all(not isinstance(row[column], str) for row in self.rows) for column in range(len(self.columns))]

        def line(row: tuple[str, ...]) -> str:
            parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
            return "  ".join(parts).rstrip()

        return [self.title, *(line(row) for row in cells)]


def _text(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return value if isinstance(value, str) else f"{value:,}"


@dataclass(frozen=True, slots=True)
class Report:
    """What `examine` found.

    Args:
        facts: counts of the data set (`images`, `objects`, `classes`, `splits`, ...), JSON values.
        findings: one entry for each thing found, errors first.
        tables: classes, sizes at the input.
    """

    facts: dict[str, Any]
    findings: tuple[Finding, ...]
    tables: tuple[Table, ...]

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error: `pelagia doctor` then ends with exit code 1."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """How many errors, warnings and infos there are, by kind and place."""
        return {name: sum(f.severity == name for f in self.findings) for name in ("error", "warning", "info")}

    def to_dict(self) -> dict[str, Any]:
        """JSON values: `facts`, `counts`, `findings` (all of them), `tables`."""
        return {
            "facts": self.facts,
            "counts": self.counts,
            "findings": [asdict(finding) for finding in self.findings],
            "tables": [
                {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
                for table in self.tables
            ],
        }

    def lines(self, most: int = 3) -> list[str]:
        """The report as text: facts, tables, then findings of one kind together with at most `most` places each."""
        text = [f"{name.replace('_', ' ')}: {_fact(value)}" for name, value in self.facts.items()]
        for table in self.tables:
            text += ["", *table.lines()]
        text.append("")
        if not self.findings:
            return [*text, "nothing wrong was found"]
        for kind in summarise(self.findings):
            same = [f for f in self.findings if (f.severity, f.code) == (kind.severity, kind.code)]
            text.append(f"{kind.severity} [{kind.code}] {kind.count:,}")
            text += [f"    {f.where + ': ' if f.where else ''}{f.message}" for f in same[:most]]
            if len(same) > most:
                text.append(f"    ... and {len(same) - most:,} more places (all of them with --json)")
        counts = self.counts
        kinds = (("error", "error"), ("warning", "warning"), ("info", "note"))
        return [*text, "", ", ".join(f"{counts[key]:,} {word}{'' if counts[key] == 1 else 's'}" for key, word in kinds)]


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(inner)}" for key, inner in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def examine(
    dataset: Dataset,
    input_size: int | tuple[int, int] = 640,
    *,
    images: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Examine a data set for a network of `input_size` pixels (a side, or height and width).

    Looked for: what the reader skipped or corrected; missing and broken images, sizes that disagree with the annotation, equal
    and nearly equal images, the same image in two splits; degenerate boxes, boxes outside, objects annotated twice; class
    balance, objects too small for the input, unlabelled images; class maps, panoptic images and outlines that are missing,
    empty, of another size or off their boxes, pixel values and ids that stand for nothing; keypoints outside or out of number.
    `images=False` leaves image files and label images unread, and outlines undrawn. `progress` is told how many of how many
    images are done.

    Raises:
        OptionError: `input_size` is not positive.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if height < 1 or width < 1:
        raise OptionError(f"the input size must be positive, got {height} x {width}")
    found = list(dataset.findings)
    if images and len(dataset):
        prints = fingerprints([dataset.image_paths[index] for index in range(len(dataset))], progress=progress)
        # Each missing image is named below; the reader's sum of them would count them twice.
        found = [finding for finding in found if finding.code != "image.missing"]
        found += checks.check_files(dataset, prints)
        found += checks.check_copies(dataset, prints)
    maps = None
    if images:
        found += checks_maps.check_panoptic(dataset)
        found += checks_maps.check_outlines(dataset)
        maps = checks_maps.count_pixels(dataset) if dataset.task == "semantic" else None
    if maps is not None:
        found += checks_maps.check_class_maps(dataset, maps)
    found += checks_maps.check_keypoints(dataset)
    found += checks.check_labelled(dataset)
    found += checks.check_split_members(dataset)
    found += checks.check_boxes(dataset)
    if dataset.panoptic_files is None:  # whose segments cannot overlap, though their boxes do
        found += checks.check_duplicate_objects(dataset)
    if dataset.task != "semantic":
        found += checks.check_classes(dataset)
    shorter = _shorter_sides(dataset, (height, width))
    found += _check_sizes(shorter, max(height, width))
    rank = {"error": 0, "warning": 1, "info": 2}
    found.sort(key=lambda finding: rank[finding.severity])
    tables = [] if maps is None else [_pixel_table(dataset, maps)]
    if dataset.mask_files is None:
        tables += [_class_table(dataset, shorter), _size_table(dataset, shorter, f"{width} x {height}")]
    return Report(_facts(dataset), tuple(found), tuple(tables))


def _facts(dataset: Dataset) -> dict[str, Any]:
    flat = dataset.annotations
    sizes = dataset.sizes[(dataset.sizes > 0).all(axis=1)]
    unique = np.unique(sizes, axis=0) if len(sizes) else sizes
    if len(unique) == 1:
        span = f"{unique[0, 0]} x {unique[0, 1]} pixels"
    elif len(unique):
        low, high = sizes.min(axis=0), sizes.max(axis=0)
        span = f"{low[0]} to {high[0]} x {low[1]} to {high[1]} pixels"
    else:
        span = "unknown"
    return {
        "source": str(dataset.root),
        "format": dataset.format,
        "task": dataset.task,
        "images": len(dataset),
        "image_size": span,
        "unlabelled_images": 0 if dataset.mask_files is not None else int(np.count_nonzero(np.diff(flat.starts) == 0)),
        "objects": int(np.count_nonzero(checks.is_object(dataset))),
        "ignored_regions": int(np.count_nonzero(flat.ignore)),
        "crowd_regions": int(np.count_nonzero(flat.crowd)),
        "difficult_objects": int(np.count_nonzero(flat.difficult)),
        "classes": len(dataset.categories),
        "splits": {name: len(chosen) for name, chosen in dataset.splits.items()},
    }


def _shorter_sides(dataset: Dataset, input_size: tuple[int, int]) -> Float:
    """[M], the shorter side of each object in input pixels; NaN for what is no object or has no extent."""
    flat = dataset.annotations
    scale = checks.letterbox_scales(dataset, input_size)[flat.images]
    extent = flat.boxes[:, 2:] - flat.boxes[:, :2] if flat.oriented is None else flat.oriented[:, 2:4]
    shorter: Float = extent.min(axis=1, initial=np.inf) * scale
    return np.where(checks.is_object(dataset) & np.isfinite(shorter) & (shorter > 0), shorter, np.nan)


def _check_sizes(shorter: Float, side: int) -> list[Finding]:
    known = shorter[~np.isnan(shorter)]
    small = int(np.count_nonzero(known < SMALL_PX))
    if small == 0:
        return []
    text = f"{100 * small / len(known):.1f} % of the objects have a shorter side under {SMALL_PX:g} pixels at an input of {side}"
    if small <= _MANY_SMALL * len(known):
        return [Finding("info", "object.small", text, "", small)]
    # The input at which 95 % of the objects reach 8 pixels, to the next multiple of the coarsest stride.
    wanted = side * SMALL_PX / float(np.quantile(known, 0.05))
    advice = int(np.ceil(wanted / 32) * 32)
    remedy = f"an input of {advice} would show 95 % of them" if advice <= 4 * side else "train and predict on tiles"
    return [Finding("warning", "object.small", f"{text}; {remedy}", "", small)]


def _class_table(dataset: Dataset, shorter: Float) -> Table:
    flat = dataset.annotations
    objects, images = checks.is_object(dataset), flat.images
    total = max(int(np.count_nonzero(objects)), 1)
    longer = (flat.boxes[:, 2:] - flat.boxes[:, :2] if flat.oriented is None else flat.oriented[:, 2:4]).max(axis=1, initial=0)
    splits = {name: np.isin(images, chosen) for name, chosen in dataset.splits.items()}
    rows: list[tuple[str | int | float, ...]] = []
    for label, category in enumerate(dataset.categories):
        own = objects & (flat.labels == label)
        count = int(np.count_nonzero(own))
        sizes = shorter[own & ~np.isnan(shorter)]
        rows.append(
            (
                category.name,
                category.id,
                count,
                100.0 * count / total,
                len(np.unique(images[own])),
                *(int(np.count_nonzero(own & member)) for member in splits.values()),
                float(np.median(longer[own])) if count else 0.0,
                100.0 * float(np.mean(sizes < SMALL_PX)) if len(sizes) else 0.0,
            )
        )
    columns = ("class", "id", "objects", "share %", "images", *splits, "median length px", f"under {SMALL_PX:g} px at input %")
    return Table("Classes", columns, tuple(rows))


def _pixel_table(dataset: Dataset, counted: checks_maps.ClassPixels) -> Table:
    total = max(int(counted.pixels.sum()), 1)
    rows: list[tuple[str | int | float, ...]] = [
        (c.name, c.id, int(pixels), 100.0 * int(pixels) / total, int(images), int(specks))
        for c, pixels, images, specks in zip(dataset.categories, counted.pixels, counted.images, counted.specks, strict=True)
    ]
    rows.append(("(ignored)", IGNORE_INDEX, counted.ignored, 100.0 * counted.ignored / (total + counted.ignored), 0, 0))
    columns = ("class", "id", "pixels", "share %", "images", f"regions under {checks_maps.SPECK_PX} px")
    return Table("Classes by pixels", columns, tuple(rows))


def _size_table(dataset: Dataset, shorter: Float, size: str) -> Table:
    known = shorter[~np.isnan(shorter)]
    counts = np.histogram(known, [*_BINS, np.inf])[0]
    rows: list[tuple[str | int | float, ...]] = []
    for low, high, count in zip(_BINS, [*_BINS[1:], None], counts.tolist(), strict=True):
        label = f"{low:g} and more" if high is None else f"{low:g} to {high:g}"
        rows.append((label, count, 100.0 * count / max(len(known), 1)))
    return Table(f"Shorter side of objects at an input of {size}", ("pixels", "objects", "share %"), tuple(rows))
