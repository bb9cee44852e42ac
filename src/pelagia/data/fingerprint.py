"""Images that are the same, or nearly: exact and perceptual fingerprints.

The exact one is a hash of the decoded pixels, so that a copy saved again without loss is found too. The perceptual one is a
difference hash (dHash: is a block brighter than its neighbour?) of 128 bits, confirmed by the correlation of thumbnails; it finds
copies that were compressed, resized or brightened, not crops, turns or neighbouring video frames that show something else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.image import read
from pelagia.core.lazy import resolve
from pelagia.core.types import Int
from pelagia.errors import ImageError

__all__ = ["Fingerprint", "duplicate_groups", "fingerprint", "fingerprints", "near_groups"]

_THUMB = 64
#: Two hashes of one picture differ in at most so many of 128 bits; one less than the number of 16-bit words, see `_close_pairs`.
_MOST_BITS = 7
#: Least correlation of the thumbnails of one picture, after what all images share is taken away.
_LEAST_CORRELATION = 0.95
#: From so many images of a size on, their median is a trustworthy picture of the common background.
_BACKGROUND_IMAGES = 8


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of an image.

    `content` hashes its pixels; `bits` [8] uint16 is the perceptual hash; `thumbnail` [64, 64] float16 has mean 0 and variance 1;
    `flat` says that all pixels are equal up to noise of one level, so that there is no picture to compare.
    """

    width: int
    height: int
    channels: int
    depth: int
    content: bytes
    bits: NDArray[np.uint16]
    thumbnail: NDArray[np.float16]
    flat: bool


def fingerprint(image: NDArray[Any]) -> Fingerprint:
    """The fingerprint of an image [H, W, C]."""
    height, width, channels = image.shape
    pixels = np.ascontiguousarray(image)
    content = hashlib.blake2b(f"{pixels.shape}{pixels.dtype}".encode(), digest_size=16)
    content.update(pixels.data)
    # All channels first shrink, which is cheap, then become grey.
    small = cv2.resize(
        pixels, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA if min(width, height) >= _THUMB else cv2.INTER_LINEAR
    )
    grey = small.astype(np.float32).reshape(_THUMB, _THUMB, channels).mean(axis=2)
    across = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    down = cv2.resize(grey, (8, 9), interpolation=cv2.INTER_AREA)
    flags = np.concatenate([(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])
    spread = float(grey.std())
    flat = int(pixels.max()) - int(pixels.min()) <= 2 or spread < 1e-3
    return Fingerprint(
        width=width,
        height=height,
        channels=channels,
        depth=8 * image.dtype.itemsize,
        content=content.digest(),
        bits=np.packbits(flags).view(np.uint16),
        thumbnail=((grey - grey.mean()) / max(spread, 1e-6)).astype(np.float16),
        flat=flat,
    )


def fingerprints(paths: Sequence[Path], *, progress: Callable[[int, int], None] | None = None) -> list[Fingerprint | ImageError]:
    """The fingerprint of each file, or the error that reading it raised; `progress` is told how many of how many are done."""

    def one(path: Path) -> Fingerprint | ImageError:
        try:
            return fingerprint(read(path))
        except ImageError as error:
            return error

    found: list[Fingerprint | ImageError] = []
    # Decoding and hashing leave the interpreter lock, so threads use all cores.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for item in pool.map(one, paths):
            found.append(item)
            if progress is not None:
                progress(len(found), len(paths))
    return found


def duplicate_groups(prints: Sequence[Fingerprint | ImageError]) -> list[list[int]]:
    """Groups of two and more images with equal pixels, each sorted, ordered by their first image."""
    groups: dict[bytes, list[int]] = {}
    for index, item in enumerate(prints):
        if isinstance(item, Fingerprint):
            groups.setdefault(item.content, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_groups(prints: Sequence[Fingerprint | ImageError]) -> list[list[int]]:
    """Groups of two and more images that show the same picture, equal ones included; joined by chains of pairs.

    A pair is near when its hashes differ in at most 7 of 128 bits, its aspect ratios in at most 2 %, and its thumbnails correlate
    by at least 0.95. From eight images on, the median of all thumbnails is taken away first: it holds the background that every
    image of one instrument shares, and would make them all alike.
    """
    usable = [(index, item) for index, item in enumerate(prints) if isinstance(item, Fingerprint) and not item.flat]
    pairs = [(group[0], other) for group in duplicate_groups(prints) for other in group[1:]]
    if len(usable) > 1:
        index = np.array([i for i, _ in usable], dtype=np.int64)
        first, second = _close_pairs(np.stack([item.bits for _, item in usable]))
        aspect = np.log([item.width / item.height for _, item in usable])
        similar = np.abs(aspect[first] - aspect[second]) < 0.02
        first, second = first[similar], second[similar]
        same = _correlation([item for _, item in usable], first, second) >= _LEAST_CORRELATION
        pairs += zip(index[first[same]].tolist(), index[second[same]].tolist(), strict=True)
    return _components(len(prints), pairs)


def _close_pairs(bits: NDArray[np.uint16]) -> tuple[Int, Int]:
    """Pairs of rows of `bits` [N, 8] at a Hamming distance of at most 7.

    Of eight words, seven differing bits leave one untouched: only rows that share a word are compared.
    """
    unique, inverse = np.unique(bits, axis=0, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(unique)))[:-1])
    firsts = [np.repeat(group[:1], len(group) - 1) for group in members]
    seconds = [group[1:] for group in members]
    heads = np.array([group[0] for group in members])
    for word in range(bits.shape[1]):
        order = np.argsort(unique[:, word], kind="stable")
        bounds = np.flatnonzero(np.diff(unique[order, word])) + 1
        for bucket in np.split(order, bounds):
            for position in range(len(bucket) - 1):
                rest = bucket[position + 1 :]
                distance = np.bitwise_count(unique[bucket[position]] ^ unique[rest]).sum(axis=1, dtype=np.int64)
                close = rest[distance <= _MOST_BITS]
                firsts.append(np.repeat(heads[bucket[position]], len(close)))
                seconds.append(heads[close])
    return np.concatenate(firsts).astype(np.int64), np.concatenate(seconds).astype(np.int64)


def _correlation(prints: Sequence[Fingerprint], first: Int, second: Int) -> NDArray[np.float64]:
    """Pearson correlation of the thumbnails of each pair, without the background that all share."""
    background = np.zeros((_THUMB, _THUMB), dtype=np.float32)
    if len(prints) >= _BACKGROUND_IMAGES:
        # An even sample of at most 256 keeps the median of a large data set cheap.
        sample = prints[:: max(1, len(prints) // 256)]
        background = np.median(np.stack([item.thumbnail for item in sample]).astype(np.float32), axis=0)
    values = np.zeros(len(first))
    for position, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        x = (prints[a].thumbnail - background).astype(np.float64).ravel()
        y = (prints[b].thumbnail - background).astype(np.float64).ravel()
        norm = np.linalg.norm(x) * np.linalg.norm(y)
        values[position] = x @ y / norm if norm > 0 else 1.0
    return values


def _components(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Connected groups of two and more of `count` nodes."""
    if not pairs:
        return []
    rows, columns = np.array(pairs, dtype=np.int64).T
    sparse = resolve("scipy.sparse", purpose="find duplicate images")
    graph = sparse.coo_array((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    _, labels = resolve("scipy.sparse.csgraph", purpose="find duplicate images").connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for node, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(node)
    return [group for group in groups.values() if len(group) > 1]
