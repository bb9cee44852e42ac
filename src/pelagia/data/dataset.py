"""A labelled data set: a lazy sequence of images with their truth in flat arrays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pelagia.core import files as core_files
from pelagia.core import image as core_image
from pelagia.core.scan import Scan, open_pieces
from pelagia.core.types import IGNORE_INDEX, Category, Float, Instances, Int, PanopticMap, SemanticMap, Task
from pelagia.data import label_maps, object_maps
from pelagia.data.annotation_builder import AnnotationBuilder
from pelagia.data.annotations import Annotations
from pelagia.data.findings import Finding
from pelagia.data.label_pixels import read_label_pixels
from pelagia.data.sample import Sample
from pelagia.data.tasks import retask
from pelagia.errors import DataError, OptionError

__all__ = ["Dataset", "PathList"]

#: Other names of the usual splits.
_SPLIT_NAMES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


class PathList(Sequence[Path]):
    """Paths made on demand from a root and relative file names, so that a data set pickles small."""

    def __init__(self, root: Path, files: tuple[str, ...]) -> None:
        self._root, self._files = root, files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self._root / name for name in self._files[index]]
        return self._root / self._files[index]


@dataclass(frozen=True, eq=False)
class Dataset:
    """N images, their classes and their objects. Images are read when asked for; nothing is changed in place.

    Args:
        categories: the classes; a label is a position in this tuple, the source's ids are in `Category.id`.
        task: which truth `truth` and indexing give.
        format: of the source (`coco`, `yolo`, `voc`, `dota`, `labels`, `memory`).
        root: the folder that `files` are relative to.
        names: N relative image names with forward slashes, as the source states them; unique.
        files: N image files, relative to `root` or absolute.
        image_ids: [N], the source's ids of the images (1 to N where it has none).
        sizes: [N, 2] width, height in pixels after EXIF orientation; 0, 0 where unknown.
        annotations: the objects.
        splits: name -> indices of images.
        findings: what the reader skipped or corrected.
        ignored: categories whose objects are regions to ignore, not a class (such as `DontCare`).
        mask_files: N semantic label images, relative to `root` or absolute, for semantic data.
        mask_values: pixel value of a semantic label image -> label; None if they are the same.
        panoptic_files: N PNG whose pixels are segment ids (`pelagia.data.panoptic_png`), relative to `root` or absolute, for
            panoptic data: the masks of the objects are cut from them, an object's id in `annotations.ids` is its segment's.
        background: the class of pixels that no outline covers, for the tasks `semantic` and `panoptic` of data from outlines.
    """

    categories: tuple[Category, ...]
    task: Task
    format: str
    root: Path
    names: tuple[str, ...]
    files: tuple[str, ...]
    image_ids: Int
    sizes: Int
    annotations: Annotations
    splits: Mapping[str, Int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    ignored: tuple[Category, ...] = ()
    mask_files: tuple[str, ...] | None = None
    mask_values: tuple[tuple[int, int], ...] | None = None
    panoptic_files: tuple[str, ...] | None = None
    background: int | None = None

    @classmethod
    def from_instances(
        cls,
        categories: Sequence[Category | str],
        items: Sequence[tuple[str | Path, tuple[int, int], Instances]],
        *,
        task: Task | None = None,
        root: str | Path | None = None,
        splits: Mapping[str, Sequence[int] | Int] | None = None,
        format: str = "memory",
    ) -> Dataset:
        """A data set from `items` of (image path, (width, height), truth); paths relative to `root` or absolute.

        A category given as a string gets its position plus 1 as id. Without `task` it follows from what the truth holds:
        masks, oriented boxes, keypoints, or plain boxes, in this order. The tasks `semantic` and `panoptic` paint the masks as
        `with_task` says.

        Raises:
            DataError: a label without a category, or truth without masks for a task that needs them.
        """
        classes = tuple(c if isinstance(c, Category) else Category(i + 1, c) for i, c in enumerate(categories))
        paths = [Path(path) for path, _, _ in items]
        if root is None:
            parents = [str(path.parent) for path in paths]
            root = Path(os.path.commonpath(parents)) if parents and all(path.is_absolute() for path in paths) else Path()
        root = Path(root)
        builder = AnnotationBuilder()
        for index, (path, (width, height), truth) in enumerate(items):
            if len(truth) and not 0 <= int(truth.labels.min()) <= int(truth.labels.max()) < len(classes):
                raise DataError(f"labels must be 0 to {len(classes) - 1}, got {truth.labels.tolist()}", where=path)
            builder.add_instances(index, truth, width, height)
        natural = _task_of([truth for _, _, truth in items])
        painted = task in ("semantic", "panoptic")
        files = tuple(_relative(path, root) for path in paths)
        dataset = cls(
            categories=classes,
            task=natural if task is None or painted else task,
            format=format,
            root=root,
            names=files,
            files=files,
            image_ids=np.arange(1, len(items) + 1, dtype=np.int64),
            sizes=np.array([size for _, size, _ in items], dtype=np.int64).reshape(-1, 2),
            annotations=builder.build(len(items)),
            splits={name: np.asarray(chosen, dtype=np.int64).reshape(-1) for name, chosen in (splits or {}).items()},
        )
        return dataset.with_task(task) if task is not None and painted else dataset

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        index = self._index(index)
        semantic = self.semantic(index) if self.task == "semantic" else None
        truth = self.truth(index, masks=self.task in ("instance", "panoptic"))
        return Sample(self.image(index), truth, self.names[index], index, semantic)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order."""
        return tuple(category.name for category in self.categories)

    @property
    def image_paths(self) -> PathList:
        """[N], where the images lie."""
        return PathList(self.root, self.files)

    def image(self, index: int) -> NDArray[Any]:
        """[H, W, C] of uint8 or uint16, C = 1 or 3 (RGB), EXIF orientation applied.

        Raises:
            ImageError: missing or broken.
        """
        return core_image.read(self.image_paths[self._index(index)])

    def scan(self, index: int) -> Scan | None:
        """Image `index` opened to read windows of it, None where it is decoded whole: small, or not stored in pieces.

        Raises:
            ImageError: missing or broken.
        """
        return open_pieces(self.image_paths[self._index(index)])

    def truth(self, index: int, *, masks: bool = False) -> Instances:
        """The objects of image `index` in pixels of the original image, as fresh arrays.

        `boxes` are always set, `oriented` for the task `oriented`, `keypoints` where the source has them, `masks` if asked for:
        an object without an outline then has its box (for oriented data its corners) as mask. For the task `panoptic` the masks
        do not overlap (`pelagia.data.label_maps`), boxes are their bounds, and what is left is an object of the class
        `background` where the data have one.

        Raises:
            DataError, ImageError: as `panoptic`, if masks are cut from a map.
        """
        index = self._index(index)
        flat = self.annotations
        first, last = int(flat.starts[index]), int(flat.starts[index + 1])
        rows = slice(first, last)
        oriented = None
        if self.task == "oriented":
            oriented = np.zeros((last - first, 5)) if flat.oriented is None else flat.oriented[rows].copy()
        truth = Instances(
            labels=flat.labels[rows].copy(),
            boxes=flat.boxes[rows].copy(),
            oriented=oriented,
            keypoints=None if flat.keypoints is None else flat.keypoints[rows].copy(),
            crowd=flat.crowd[rows].copy(),
            difficult=flat.difficult[rows].copy(),
            ignore=flat.ignore[rows].copy(),
            areas=None if flat.areas is None else flat.areas[rows].copy(),
        )
        if not masks:
            return truth
        if self.task != "panoptic" and self.panoptic_files is None:
            width, height = (int(side) for side in self.sizes[index])
            return truth.replace(masks=object_maps.outline_masks(self, index, width, height))
        return object_maps.cut_truth(self, index, truth)

    def semantic(self, index: int) -> SemanticMap:
        """The label of every pixel of image `index`; 255 = ignore.

        From label images as they are; from panoptic images the class of each segment, 255 where there is none; from outlines the
        class of the uppermost object (`pelagia.data.label_maps`: the smaller one), `background` between objects, and 255 for
        crowds, regions to ignore and objects without an outline, where no other object lies above.

        Raises:
            DataError: the labels hold none of these, or a pixel value or segment has no class.
            ImageError: a label image is missing or broken.
        """
        index = self._index(index)
        if self.mask_files is None:
            if len(self.categories) > IGNORE_INDEX:
                raise DataError(f"{len(self.categories)} classes, but a class map holds 255 (255 = ignore)", where=self.root)
            rows = slice(int(self.annotations.starts[index]), int(self.annotations.starts[index + 1]))
            void = object_maps.void_objects(self, index)
            if self.panoptic_files is None:
                void = void | self.annotations.crowd[rows]
            return label_maps.class_map(object_maps.object_map(self, index), self.annotations.labels[rows], void, self.background)
        path = self.root / self.mask_files[index]
        pixels = read_label_pixels(path)
        if self.mask_values is None:
            return SemanticMap(pixels)
        table = np.full(65536, -1, dtype=np.int64)
        for value, label in self.mask_values:
            table[value] = label
        labels = table[pixels]
        if labels.size and labels.min() < 0:
            unknown = np.unique(pixels[labels < 0])[:10].tolist()
            raise DataError(f"pixel values {unknown} stand for no class; name them with classes=", where=path)
        return SemanticMap(labels.astype(np.uint8 if labels.max(initial=0) <= 255 else np.uint16))

    def panoptic(self, index: int) -> PanopticMap:
        """The segment of every pixel of image `index`, 0 = void; see `pelagia.data.label_maps` for how outlines are painted.

        Segment ids are those of panoptic images; for data from outlines they are 1 to n in the order of the objects, and the
        background, where there is one, has an id above. Regions to ignore and objects without an outline are void.

        Raises:
            DataError: the labels hold no outlines, or a pixel has an id that is not listed.
            ImageError, FormatError: a panoptic image is missing, broken, or not RGB of 8 bits.
        """
        index = self._index(index)
        flat = self.annotations
        rows = slice(int(flat.starts[index]), int(flat.starts[index + 1]))
        ids = np.arange(1, rows.stop - rows.start + 1) if self.panoptic_files is None else flat.ids[rows]
        numbers, void = object_maps.object_map(self, index), object_maps.void_objects(self, index)
        return label_maps.panoptic_map(numbers, ids, flat.labels[rows], flat.crowd[rows], void, self.categories, self.background)

    @cached_property
    def class_frequencies(self) -> Float:
        """[C], the share of each class: of all labelled pixels for the task `semantic`, else of all objects. Counted once, for
        which a semantic data set is read through."""
        if self.task == "semantic":
            counts = np.zeros(65536, dtype=np.int64)
            for index in range(len(self)):
                counts += np.bincount(self.semantic(index).labels.reshape(-1), minlength=65536)
            counts[IGNORE_INDEX] = 0
            counts = counts[: len(self.categories)]
        else:
            flat = self.annotations
            counts = np.bincount(flat.labels[~(flat.crowd | flat.ignore)], minlength=len(self.categories))
        shares: Float = counts / max(int(counts.sum()), 1)
        shares.flags.writeable = False
        return shares

    def split(self, name: str) -> Dataset:
        """The images of split `name`.

        Raises:
            OptionError: no such split.
        """
        key = name if name in self.splits else _SPLIT_NAMES.get(name, name)
        if key not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise OptionError(
                f"there is no split {name!r}; this data set has: {known}. Make one with: pelagia split", where=self.root
            )
        return self.subset(self.splits[key])

    def subset(self, indices: Sequence[int] | NDArray[Any]) -> Dataset:
        """The images `indices` (integers, in that order, or a boolean mask [N]); splits keep what remains of them."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64).reshape(-1)
        if len(chosen) and not -len(self) <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise OptionError(f"image indices must be 0 to {len(self) - 1}", where=self.root)
        chosen = chosen % max(len(self), 1)
        position = np.full(len(self), -1, dtype=np.int64)
        position[chosen] = np.arange(len(chosen))
        splits = {name: position[members] for name, members in self.splits.items()}
        splits = {name: members[members >= 0] for name, members in splits.items()}
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            files=tuple(self.files[i] for i in chosen),
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            annotations=self.annotations.select_images(chosen),
            splits={name: members for name, members in splits.items() if len(members)},
            mask_files=None if self.mask_files is None else tuple(self.mask_files[i] for i in chosen),
            panoptic_files=None if self.panoptic_files is None else tuple(self.panoptic_files[i] for i in chosen),
        )

    def in_order(self) -> Dataset:
        """The same images by ascending id: where scores are equal, COCO's order of images decides."""
        order = np.argsort(self.image_ids, kind="stable")
        return self if (np.diff(order) > 0).all() else self.subset(order)

    def with_splits(self, splits: Mapping[str, Sequence[int] | Int]) -> Dataset:
        """The same images with other splits."""
        return replace(self, splits={name: np.asarray(chosen, dtype=np.int64).reshape(-1) for name, chosen in splits.items()})

    def with_task(self, task: Task) -> Dataset:
        """The same images with the truth of another task.

        - `oriented`: from outlines (the rectangle of least area) where the source has none; with boxes alone, each upright box
          serves as oriented box, and a finding says so.
        - `semantic` from outlines: pixels between objects get the class `background`, which is appended as the last category
          unless one of that name exists.
        - `panoptic` from outlines: the same, and the background is a segment of stuff; not where classes of stuff exist.
        - other tasks from panoptic images: stuff and its classes are left out, and a finding says so.

        Raises:
            DataError: the labels do not hold what the task needs.
        """
        return retask(self, task)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over names, sizes, classes and labels, label images included, without splits; the images' pixels are not
        read."""
        digest = hashlib.sha256()
        head = {
            "categories": [asdict(category) for category in self.categories],
            "ignored": [asdict(category) for category in self.ignored],
            "names": self.names,
        }
        digest.update(json.dumps(head, sort_keys=True, ensure_ascii=True).encode())
        flat = self.annotations
        arrays: list[NDArray[Any] | None] = [
            self.sizes,
            flat.starts,
            flat.labels,
            flat.boxes,
            flat.oriented,
            flat.areas,
            flat.keypoints,
        ]
        arrays += [flat.crowd, flat.difficult, flat.ignore, flat.ignored_as]
        if flat.shapes is not None:
            shapes = flat.shapes
            arrays += [shapes.points, shapes.ring_starts, shapes.object_rings, shapes.counts, shapes.count_starts]
        for array in arrays:
            digest.update(
                b"-" if array is None else f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
            )
        for name in (*(self.mask_files or ()), *(self.panoptic_files or ())):
            digest.update(core_files.content_hash(self.root / name).encode())
        if self.mask_values is not None:
            digest.update(repr(sorted(self.mask_values)).encode())
        return digest.hexdigest()

    def _index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a data set of {len(self)}")
        return index % len(self)


def _relative(path: Path, root: Path) -> str:
    """`path` relative to `root` with forward slashes, or as it is if it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _task_of(truths: Sequence[Instances]) -> Task:
    if any(truth.masks is not None for truth in truths):
        return "instance"
    if any(truth.oriented is not None for truth in truths):
        return "oriented"
    if any(truth.keypoints is not None for truth in truths):
        return "keypoints"
    return "detect"
