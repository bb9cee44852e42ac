"""The single checks of `pelagia doctor`: each looks at one thing and answers with findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from pelagia.core import oriented
from pelagia.core.boxes import iou
from pelagia.core.types import Float, Int, Mask
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding, Severity
from pelagia.data.fingerprint import Fingerprint, duplicate_groups, near_groups
from pelagia.errors import ImageError

__all__ = [
    "check_boxes",
    "check_classes",
    "check_copies",
    "check_duplicate_objects",
    "check_files",
    "check_labelled",
    "check_split_members",
    "is_object",
    "letterbox_scales",
]

#: Boxes may reach this far over the border before it is worth a word: annotation tools round.
_OVER_PX = 1.5
#: Two boxes of one class in one image that overlap by more are one object drawn twice.
_TWICE_IOU = 0.95
#: Images with more objects are only searched for identical boxes.
_PAIRS_LIMIT = 3000
_FEW_OBJECTS = 10


def is_object(dataset: Dataset) -> Mask:
    """[M], whether an annotation is an object to learn, and not a crowd or a region to ignore."""
    flat = dataset.annotations
    result: Mask = ~(flat.crowd | flat.ignore)
    return result


def letterbox_scales(dataset: Dataset, input_size: tuple[int, int]) -> Float:
    """[N], input pixels per original pixel of each image after letterboxing to (height, width); 1 where the size is unknown."""
    sizes = np.maximum(dataset.sizes, 1)
    scale: Float = np.minimum(input_size[1] / sizes[:, 0], input_size[0] / sizes[:, 1])
    return np.where((dataset.sizes > 0).all(axis=1), scale, 1.0)


def _place(dataset: Dataset, row: int, images: Int) -> str:
    return f"{dataset.names[images[row]]}#{dataset.annotations.ids[row]}"


def check_files(dataset: Dataset, prints: Sequence[Fingerprint | ImageError]) -> Iterator[Finding]:
    """Images that are missing, broken, empty of content, or of another size than their annotation says; mixed depths."""
    kinds: Counter[int] = Counter()
    for index, item in enumerate(prints):
        path = str(dataset.image_paths[index])
        if isinstance(item, ImageError):
            missing = not dataset.image_paths[index].exists()
            yield Finding("error", "image.missing" if missing else "image.broken", item.reason, path)
            continue
        kinds[item.depth] += 1
        width, height = (int(value) for value in dataset.sizes[index])
        if item.flat:
            yield Finding("warning", "image.flat", "the image is of one intensity throughout; was the shutter closed?", path)
        if (width, height) in ((0, 0), (item.width, item.height)):
            continue
        text = f"annotated as {width} x {height} pixels, the file has {item.width} x {item.height}"
        if (height, width) == (item.width, item.height):
            text += " after its EXIF orientation; it was annotated without turning it. Annotate the upright image"
        else:
            text += "; was it resized after annotation? Use the images that were annotated"
        yield Finding("error", "image.size", text, path)
    if len(kinds) > 1:
        text = " and ".join(f"{count} of {depth} bit" for depth, count in sorted(kinds.items()))
        yield Finding("warning", "image.depths", f"images of different depths: {text}; one intensity window cannot fit both")


def check_boxes(dataset: Dataset) -> Iterator[Finding]:
    """Boxes that are not finite, have no extent, or leave their image."""
    flat = dataset.annotations
    images, boxes = flat.images, flat.boxes
    finite = np.isfinite(boxes).all(axis=1)
    if flat.oriented is not None:
        finite &= np.isfinite(flat.oriented).all(axis=1)
    for row in np.flatnonzero(~finite).tolist():
        yield Finding(
            "error", "box.not_finite", f"box {boxes[row].tolist()} is not finite; correct it", _place(dataset, row, images)
        )
    empty = finite & ((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
    for row in np.flatnonzero(empty).tolist():
        text = f"box of {boxes[row, 2] - boxes[row, 0]:g} x {boxes[row, 3] - boxes[row, 1]:g} pixels has no extent; correct it"
        yield Finding("warning", "box.degenerate", text, _place(dataset, row, images))
    sizes = dataset.sizes[images].astype(np.float64).reshape(-1, 2)
    known = finite & ~empty & (sizes > 0).all(axis=1)
    off = known & ((boxes[:, :2] >= sizes).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1))
    over = np.maximum(np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes), 0).max(axis=1, initial=0)
    # The corners of an oriented box, and outlines of organisms cut by the border, may lie outside by right.
    partly = known & ~off & (over > _OVER_PX) & (flat.oriented is None)
    for code, rows, text in (("box.outside", off, "lies outside"), ("box.over_border", partly, "reaches over the border of")):
        for row in np.flatnonzero(rows).tolist():
            box = ", ".join(f"{value:g}" for value in boxes[row])
            width, height = dataset.sizes[images[row]]
            yield Finding("warning", code, f"box {box} {text} its image of {width} x {height}", _place(dataset, row, images))


def check_duplicate_objects(dataset: Dataset) -> Iterator[Finding]:
    """Objects that are annotated twice: boxes of one image with an IoU above 0.95, of one class or of two."""
    flat = dataset.annotations
    images, usable = flat.images, is_object(dataset) & np.isfinite(flat.boxes).all(axis=1)
    for image in range(len(dataset)):
        rows = np.arange(flat.starts[image], flat.starts[image + 1])
        rows = rows[usable[rows]]
        if not 1 < len(rows) <= _PAIRS_LIMIT:
            continue
        overlap = iou(flat.boxes[rows], flat.boxes[rows])
        first, second = np.nonzero(np.triu(overlap > _TWICE_IOU, 1))
        if flat.oriented is not None:  # upright bounds of crossing objects may agree
            same = oriented.iou_aligned(flat.oriented[rows[first]], flat.oriented[rows[second]]) > _TWICE_IOU
            first, second = first[same], second[same]
        for a, b in zip(rows[first].tolist(), rows[second].tolist(), strict=True):
            where = _place(dataset, b, images)
            if flat.labels[a] == flat.labels[b]:
                text = f"the object is annotated twice (also #{flat.ids[a]}); remove one"
                yield Finding("warning", "object.twice", text, where)
            else:
                names = dataset.class_names
                text = f"one object has two classes: {names[flat.labels[a]]} (#{flat.ids[a]}) and {names[flat.labels[b]]}"
                yield Finding("warning", "object.two_classes", text, where)


def check_split_members(dataset: Dataset) -> Iterator[Finding]:
    """Images that are in two splits by name, and images in none."""
    if not dataset.splits:
        return
    member: dict[int, list[str]] = {}
    for name, chosen in dataset.splits.items():
        if len(chosen) == 0:
            yield Finding("warning", "split.empty", f"the split {name!r} has no image")
        for index in np.unique(chosen).tolist():
            member.setdefault(index, []).append(name)
    for index, names in sorted(member.items()):
        if len(names) > 1:
            text = f"the image is in the splits {' and '.join(names)}; scores would be flattered. Keep it in one"
            yield Finding("error", "split.leak", text, dataset.names[index])
    if len(dataset) > len(member):
        yield Finding("info", "split.none", "images are in no split", str(dataset.root), len(dataset) - len(member))


def check_copies(dataset: Dataset, prints: Sequence[Fingerprint | ImageError]) -> Iterator[Finding]:
    """Equal and nearly equal images: an error where equal ones stand in two splits, a warning otherwise."""
    splits: dict[int, set[str]] = {index: set() for index in range(len(dataset))}
    for name, chosen in dataset.splits.items():
        for index in chosen.tolist():
            splits[index].add(name)

    def shared(group: Sequence[int]) -> list[str]:
        sides = {frozenset(splits[index]) for index in group if splits[index]}
        return sorted(set().union(*sides)) if len(sides) > 1 else []

    exact = duplicate_groups(prints)
    for group in exact:
        names = ", ".join(dataset.names[index] for index in group[1:6])
        between = shared(group)
        if between:
            text = f"the same image is in the splits {' and '.join(between)}, as {names}; scores would be flattered. Keep one"
            yield Finding("error", "split.same_image", text, dataset.names[group[0]], len(group))
        else:
            yield Finding("warning", "image.duplicate", f"the same image again: {names}", dataset.names[group[0]], len(group) - 1)
    first = {index: group[0] for group in exact for index in group}
    for group in near_groups(prints):
        if len({first.get(index, index) for index in group}) == 1:
            continue
        names = ", ".join(dataset.names[index] for index in group[1:6])
        between = shared(group)
        text = f"looks the same as {names}"
        if between:
            text += f", in the splits {' and '.join(between)}; `pelagia split` keeps such groups together"
        code = "split.near_duplicate" if between else "image.near_duplicate"
        yield Finding("warning" if between else "info", code, text, dataset.names[group[0]], len(group) - 1)


def check_classes(dataset: Dataset) -> Iterator[Finding]:
    """Classes without or with few objects, absent from a split, called almost alike, and a strong imbalance."""
    flat, names = dataset.annotations, dataset.class_names
    objects = is_object(dataset)
    counts = np.bincount(flat.labels[objects], minlength=len(names))
    images = flat.images
    alike: dict[str, str] = {}
    for label, name in enumerate(names):
        twin = alike.setdefault(name.strip().casefold().replace("_", " ").replace("-", " "), name)
        if twin is not name:
            yield Finding(
                "warning", "class.alike", f"two classes are called almost alike: {twin!r} and {name!r}; one or two?", name
            )
        if counts[label] == 0:
            yield Finding("warning", "class.empty", "the class has no object; it cannot be learnt", name)
        elif counts[label] < _FEW_OBJECTS:
            plural = "" if counts[label] == 1 else "s"
            text = f"the class has {counts[label]} object{plural}; expect little of it below some tens"
            yield Finding("warning", "class.few", text, name)
        where = images[objects & (flat.labels == label)]
        present = {split for split, chosen in dataset.splits.items() if np.isin(where, chosen).any()}
        if "train" in dataset.splits and present and "train" not in present:
            text = f"the class occurs in {' and '.join(sorted(present))} but not in train; it cannot be learnt"
            yield Finding("warning", "class.not_in_train", text, name)
        elif "val" in dataset.splits and "train" in present and "val" not in present:
            yield Finding("warning", "class.not_in_val", "the class occurs in train but not in val; it cannot be judged", name)
    seen = counts[counts > 0]
    if len(seen) > 1 and seen.max() > 100 * seen.min():
        most, least = names[int(counts.argmax())], names[int(np.flatnonzero(counts == seen.min())[0])]
        text = f"strong imbalance: {seen.max()} objects of {most!r}, {seen.min()} of {least!r}"
        yield Finding("info", "class.imbalance", text)


def check_labelled(dataset: Dataset) -> Iterator[Finding]:
    """No image, no label at all, or images without any."""
    if len(dataset) == 0:
        yield Finding("error", "data.empty", "the data set has no image", str(dataset.root))
        return
    empty = np.flatnonzero(np.diff(dataset.annotations.starts) == 0)
    if dataset.mask_files is not None:
        return
    if len(empty) == len(dataset):
        yield Finding(
            "error", "data.unlabelled", "no image has a label; are the labels where the format expects them?", str(dataset.root)
        )
    elif len(empty):
        text = f"images without a label serve as background; the first: {', '.join(dataset.names[i] for i in empty[:5])}"
        severity: Severity = "warning" if len(empty) > len(dataset) / 2 else "info"
        yield Finding(severity, "image.unlabelled", text, str(dataset.root), len(empty))
