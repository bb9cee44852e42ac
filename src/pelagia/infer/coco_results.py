"""COCO results files (a list of `{image_id, category_id, score, bbox | segmentation | keypoints}`), read in columns.

A compiled scanner builds no object per prediction; what is unusual is left to the reader that goes one by one and names the
culprit.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pelagia.core.files import JSON_LIMIT_BYTES
from pelagia.core.lazy import resolve
from pelagia.core.masks import rle_from_buffer
from pelagia.core.types import Float, Int
from pelagia.errors import FormatError, LabelError
from pelagia.metrics.objects import Kind, Runs

__all__ = ["Columns", "ResultsFile", "kinds_of"]

#: What stands between two objects of a list.
_GAP = re.compile(rb"\}\s*,\s*\{")

#: Where the objects of an image, or the annotations of all, begin in a results.json or coco.json.
_LISTED = re.compile(r'"(?:objects|annotations)"\s*:\s*\[\s*\{')

#: A part of a file that is worth a thread.
_LEAST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Columns:
    """D predictions in the order of the file.

    Args:
        image_id, category_id, score: [D].
        boxes: [D, 4] x, y, width, height as stated, or None.
        runs: the masks; `widths` [D] of their images.
        keypoints: [D, K, 3].
    """

    image_id: Int
    category_id: Int
    score: Float
    boxes: Float | None = None
    runs: Runs | None = None
    widths: Int | None = None
    keypoints: Float | None = None

    def __len__(self) -> int:
        return len(self.score)


def kinds_of(path: Path) -> set[Kind]:
    """What the first prediction of a file (a list of COCO results, or what `pelagia predict` writes) can be compared by.

    Empty for another kind of file, or one without predictions.
    """
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        with open(path, "rb") as stream:
            head = stream.read(1 << 22).decode("utf-8-sig", "ignore")
        start = head.index("{")
        if head[:start].strip() != "[":
            start = _LISTED.search(head).end() - 1  # type: ignore[union-attr]
        first, _ = json.JSONDecoder().raw_decode(head, start)
        found: set[Kind] = set()
        if first.get("oriented"):  # its outline is that of the oriented box
            return {"boxes", "oriented"}
        if len(first.get("bbox") or ()) == 5:
            found.add("oriented")
        elif first.get("bbox") or first.get("box"):
            found.add("boxes")
        if first.get("segmentation") or first.get("mask"):
            found.add("masks")
        if first.get("keypoints"):
            found.add("keypoints")
        return found
    return set()


class ResultsFile:
    """A results file that threads scan while its maker does something else, such as opening the truth.

    Raises:
        FormatError: missing, or larger than the limit of JSON files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._scans: list[Future[_Part | None]] = []
        try:
            size = self.path.stat().st_size
            if size > JSON_LIMIT_BYTES:
                raise FormatError(f"{size:,} bytes, more than the limit of {JSON_LIMIT_BYTES:,}; split the file", where=path)
            data = np.fromfile(self.path, dtype=np.uint8)
        except OSError as error:
            raise FormatError(f"cannot read this file ({error.strerror or error}); check the path", where=path) from error
        places = _chunks(data)
        if places is not None:
            pool = ThreadPoolExecutor(len(places) - 1)
            self._scans = [pool.submit(_scan, data, *span) for span in pairwise(places)]
            pool.shutdown(wait=False)

    def columns(self, kind: Kind) -> Columns | None:
        """The predictions of a well-formed file; None where something is unusual and must be read one by one."""
        parts = [scan.result() for scan in self._scans]
        found = [part for part in parts if part is not None]
        if not found or kind == "oriented" or len(found) < len(parts) or len({part.fields for part in found}) > 1:
            return None
        try:
            return _join(found, kind)
        except (ValueError, LabelError):
            return None


@dataclass(frozen=True, slots=True)
class _Part:
    """What one thread scanned: see `kernels.scan`."""

    numbers: Float
    lists: Float
    lengths: Int
    text: NDArray[np.uint8]
    text_lengths: Int

    @property
    def fields(self) -> tuple[int, ...]:
        """Numbers in `bbox`, in `keypoints`, and whether there are masks, if all objects agree; else something unique."""
        if len(self.lengths) and (self.lengths != self.lengths[0]).any():
            return (id(self),)
        return (*self.lengths[0].tolist(), int(len(self.text) > 0)) if len(self.lengths) else ()


def _chunks(data: NDArray[np.uint8]) -> list[int] | None:
    """Where the objects of a list begin and end, cut into one part per core; None if this is no list of objects."""
    head = data[:3].tobytes() == b"\xef\xbb\xbf"
    text = data[3 * head : 3 * head + 64].tobytes()
    tail = data[-64:].tobytes()
    begin, end = text.find(b"{"), tail.rfind(b"]")
    if begin < 0 or end < 0 or text[:begin].strip() != b"[" or tail[end + 1 :].strip():
        return None
    first, last = 3 * head + begin, len(data) - len(tail) + end
    parts = max(min(os.cpu_count() or 1, (last - first) // _LEAST_BYTES), 1)
    inner = []
    for k in range(1, parts):
        middle = first + (last - first) * k // parts
        gap = _GAP.search(data[middle : min(middle + _LEAST_BYTES, last)].tobytes())
        inner += [middle + gap.end() - 1] if gap else []
    return sorted({first, *inner, last})


def _scan(data: NDArray[np.uint8], begin: int, end: int) -> _Part | None:
    size = end - begin
    # No object is shorter than 30 characters, no number in a list than 2; memory that is not written is not taken.
    most = size // 30 + 1
    numbers, lengths = np.empty((most, 5)), np.empty((most, 2), dtype=np.int64)
    lists, text, text_lengths = np.empty(size // 2 + 1), np.empty(size, dtype=np.uint8), np.empty(most, dtype=np.int64)
    late = np.empty((size // 20 + 1, 4), dtype=np.int64)
    kernels = resolve("pelagia.infer.kernels", purpose="read predictions")
    count, listed, characters, waiting = kernels.scan(data, begin, end, numbers, lists, lengths, (text, text_lengths), late)
    if count < 0:
        return None
    for first, last, where, place in late[:waiting].tolist():
        (numbers.reshape(-1), lists)[where][place] = float(data[first:last].tobytes())
    return _Part(numbers[:count], lists[:listed], lengths[:count], text[:characters], text_lengths[:count])


def _join(parts: list[_Part], kind: Kind) -> Columns | None:
    numbers, lists = (np.concatenate([getattr(part, name) for part in parts]) for name in ("numbers", "lists"))
    count, (boxed, posed, masked) = len(numbers), parts[0].fields
    image_id, category_id = numbers[:, 0].astype(np.int64), numbers[:, 1].astype(np.int64)
    rows = lists.reshape(count, boxed + posed)
    boxes = np.ascontiguousarray(rows[:, :4]) if boxed == 4 else None
    # As pycocotools: where predictions state boxes, objects are binned by the areas of the boxes.
    columns = Columns(image_id, category_id, np.ascontiguousarray(numbers[:, 2]), boxes)
    if kind == "masks" and masked:
        sizes = numbers[:, 3:].astype(np.int64)
        text, lengths = (np.concatenate([getattr(part, name) for part in parts]) for name in ("text", "text_lengths"))
        counts, starts = rle_from_buffer(text, lengths, sizes.prod(axis=1))
        return replace(columns, runs=Runs(counts, starts, sizes[:, 0]), widths=sizes[:, 1])
    if kind == "keypoints" and posed and posed % 3 == 0:
        return replace(columns, keypoints=np.ascontiguousarray(rows[:, boxed:]).reshape(count, posed // 3, 3))
    return columns if kind == "boxes" and boxes is not None else None
