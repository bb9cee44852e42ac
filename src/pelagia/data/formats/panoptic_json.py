"""COCO panoptic files, true or predicted: a JSON file that lists segments, and a folder of PNG that paint them.

Kirillov et al., "Panoptic Segmentation", CVPR 2019; the format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core.files import read_json
from pelagia.core.types import Category, Float, Int, Mask, PanopticMap, Segment
from pelagia.data.panoptic_png import MOST_ID, read_ids
from pelagia.errors import FormatError

__all__ = ["PanopticFile", "read_panoptic"]


@dataclass(frozen=True, slots=True, eq=False)
class PanopticFile:
    """The segments of N images, listed in a JSON file and each image painted in a PNG: id = R + 256 G + 65536 B, 0 = void.

    Args:
        path: the JSON file.
        folder: where the PNG lie.
        categories: C classes; a label is a position in them.
        names: N image names; those of the PNG where the file does not list its images.
        listed: whether it does.
        image_ids: N ids of the images.
        files: N names of PNG in `folder`.
        starts: [N + 1], image i owns the segments starts[i]:starts[i + 1].
        ids, labels, crowd, scores: [S] of the segments; a score that is not stated is NaN.
        boxes: [S, 4] x1, y1, x2, y2 as stated, NaN where none is.
        sizes: [N, 2] width and height as stated, 0 where they are not.
        splits: N tuples, the splits that an image says it belongs to.
    """

    path: Path
    folder: Path
    categories: tuple[Category, ...]
    names: tuple[str, ...]
    listed: bool
    image_ids: tuple[int | str, ...]
    files: tuple[str, ...]
    starts: Int
    ids: Int
    labels: Int
    crowd: Mask
    scores: Float
    boxes: Float
    sizes: Int
    splits: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.names)

    def map(self, index: int) -> PanopticMap:
        """The segments of image `index`, read from its PNG. `PanopticTally` checks that pixels and list agree.

        Raises:
            ImageError: the PNG is missing or broken.
            FormatError: it is not RGB of 8 bits.
        """
        index = range(len(self))[index]
        rows = range(int(self.starts[index]), int(self.starts[index + 1]))
        segments = tuple(
            Segment(int(self.ids[row]), int(self.labels[row]), _score(float(self.scores[row])), bool(self.crowd[row]))
            for row in rows
        )
        return PanopticMap(read_ids(self.folder / self.files[index]), segments)


def _score(value: float) -> float | None:
    return None if np.isnan(value) else value


def read_panoptic(json_file: str | Path, folder: str | Path | None = None) -> PanopticFile:
    """Open a COCO panoptic file, truth or prediction; the PNG are read later.

    A file without `categories` (some tools leave them out of predictions) gets one of each id in use, called by its number.

    Args:
        folder: where the PNG lie; by default the folder beside the file that is called like it without `.json`.

    Raises:
        FormatError: not such a file, the folder does not exist, a field is missing or of another kind, an image or an id is
            listed twice, an id is not 1 to 16,777,215, or a category is not listed; with the position in `annotations`.
    """
    path = Path(json_file)
    content = read_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise FormatError("expected a COCO panoptic file: a JSON object with `annotations`", where=path)
    place = path.with_suffix("") if folder is None else Path(folder)
    if not place.is_dir():
        raise FormatError("the folder of the panoptic PNG does not exist; name it with folder=", where=place)
    images = _images(content, path)
    image_ids: dict[int | str, None] = {}
    names: list[str] = []
    files: list[str] = []
    counts: list[int] = []
    sizes: list[tuple[int, int]] = []
    splits: list[tuple[str, ...]] = []
    segments: list[tuple[int, int, bool, float, list[float]]] = []
    for position, entry in enumerate(annotations):
        where = f"{path}#{position}"
        image, file = _image_id(entry, "image_id", where), _text(entry, "file_name", where)
        if image in image_ids:
            raise FormatError(f"image {image} has a second entry", where=where)
        image_ids[image] = None
        if images is not None and image not in images:
            raise FormatError(f"image_id {image} is not among the file's images", where=where)
        name, size, members = (file, (0, 0), ()) if images is None else images[image]
        names.append(name)
        sizes.append(size)
        splits.append(members)
        files.append(file)
        before = len(segments)
        segments.extend(_segments(entry, where))
        counts.append(len(segments) - before)
    starts = np.zeros(len(files) + 1, dtype=np.int64)
    np.cumsum(np.array(counts, dtype=np.int64), out=starts[1:])
    category_ids = [segment[1] for segment in segments]
    categories = _categories(content, category_ids, path)
    label_of = {category.id: label for label, category in enumerate(categories)}
    for row, value in enumerate(category_ids):
        if value not in label_of:
            position = int(np.searchsorted(starts, row, side="right")) - 1
            raise FormatError(f"category_id {value} is not among the file's categories", where=f"{path}#{position}")
    return PanopticFile(
        path=path,
        folder=place,
        categories=categories,
        names=tuple(names),
        listed=images is not None,
        image_ids=tuple(image_ids),
        files=tuple(files),
        starts=starts,
        ids=np.array([segment[0] for segment in segments], dtype=np.int64),
        labels=np.array([label_of[value] for value in category_ids], dtype=np.int64),
        crowd=np.array([segment[2] for segment in segments], dtype=np.bool_),
        scores=np.array([segment[3] for segment in segments], dtype=np.float64),
        boxes=np.array([segment[4] for segment in segments], dtype=np.float64).reshape(-1, 4),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        splits=tuple(splits),
    )


def _segments(entry: Any, where: str) -> Iterator[tuple[int, int, bool, float, list[float]]]:
    """Id, category id, crowd, score and box of each segment of an image."""
    listed = _field(entry, "segments_info", where)
    if not isinstance(listed, list):
        raise FormatError("segments_info must be a list", where=where)
    seen = set()
    for item in listed:
        number, category = _whole(item, "id", where), _whole(item, "category_id", where)
        if not 1 <= number <= MOST_ID:
            raise FormatError(f"segment ids must be 1 to {MOST_ID:,}, which three bytes hold, got {number}", where=where)
        if number in seen:
            raise FormatError(f"segment {number} is listed twice", where=where)
        seen.add(number)
        score = item.get("score")
        stated = isinstance(score, int | float) and not isinstance(score, bool)
        yield number, category, bool(item.get("iscrowd", 0)), float(score) if stated else np.nan, _box(item.get("bbox"))


def _box(value: Any) -> list[float]:
    """x, y, w, h -> x1, y1, x2, y2; NaN if it is no such list: the pixels tell."""
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(item, int | float) for item in value):
        return [np.nan] * 4
    x, y, w, h = value
    return [x, y, x + w, y + h]


def _images(content: dict[str, Any], path: Path) -> dict[int | str, tuple[str, tuple[int, int], tuple[str, ...]]] | None:
    """Id -> name, width and height, splits; None if the file lists no images."""
    images = content.get("images")
    if not isinstance(images, list) or not images:
        return None
    where = f"{path}#images"
    return {_image_id(item, "id", where): (_text(item, "file_name", where), _size(item), _splits(item, where)) for item in images}


def _size(item: dict[str, Any]) -> tuple[int, int]:
    width, height = item.get("width"), item.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (0, 0)


def _splits(item: dict[str, Any], where: str) -> tuple[str, ...]:
    value = item.get("split") or []
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise FormatError(f"split must be a name or a list of names, got {str(value)[:40]!r}", where=where)
    return tuple(str(name) for name in value)


def _categories(content: dict[str, Any], used: Sequence[int], path: Path) -> tuple[Category, ...]:
    listed = content.get("categories")
    if listed is None:
        return tuple(Category(value, str(value)) for value in sorted(set(used)))
    where = f"{path}#categories"
    if not isinstance(listed, list):
        raise FormatError("categories must be a list", where=where)
    categories = tuple(
        Category(
            _whole(item, "id", where),
            _text(item, "name", where),
            str(item.get("supercategory", "")),
            is_thing=bool(item.get("isthing", 1)),
        )
        for item in listed
    )
    if len({category.id for category in categories}) < len(categories):
        raise FormatError("two categories have the same id", where=where)
    return categories


def _field(item: Any, name: str, where: str) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise FormatError(f"an entry has no {name!r}", where=where)
    return item[name]


def _whole(item: Any, name: str, where: str) -> int:
    value = _field(item, name, where)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"{name} must be a whole number, got {value!r}", where=where)
    return value


def _image_id(item: Any, name: str, where: str) -> int | str:
    value = _field(item, name, where)
    return value if isinstance(value, str) else _whole(item, name, where)


def _text(item: Any, name: str, where: str) -> str:
    value = _field(item, name, where)
    if not isinstance(value, str) or not value:
        raise FormatError(f"{name} must be a name, got {value!r}", where=where)
    return value
