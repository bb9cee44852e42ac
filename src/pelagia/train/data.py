"""From a data set to batches, so that nothing depends on who prepares them or when.

The order of an epoch follows from (seed, epoch), and every sample has its own generator from (seed, epoch, position). A batch is
thus a pure function of the step's number: any number of workers, and a run that was killed and resumed, see the same pixels.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from pelagia.core.ahead import ahead
from pelagia.core.card import Normalisation
from pelagia.core.types import Int
from pelagia.data.augment import (
    AugmentOptions,
    Transform,
    WindowError,
    augment,
    corner_sample,
    evaluation_sample,
    read_sample,
    transformed_sample,
)
from pelagia.data.colour import Levels
from pelagia.data.dataset import Dataset
from pelagia.data.sample import Sample
from pelagia.errors import DataError, ImageError, PelagiaError
from pelagia.train.batch import Batch, collate

__all__ = ["CachedDataset", "ImageCache", "Loader", "Maker", "Plan", "Slot", "measure_window"]

#: First word of a seed sequence, so that the order of an epoch and the samples in it draw from different streams.
_ORDER, _SAMPLE = 1, 2

#: Batches that the thread prepares beyond the one at work.
_AHEAD = 2

#: Unreadable images in a row after which the fault is not one of single files.
_MOST_BROKEN = 20


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in the training: image `index` at `position` of epoch `epoch`."""

    epoch: int
    position: int
    index: int


@dataclass(frozen=True)
class Plan:
    """Which images each step sees: a new permutation each epoch, cut into batches of equal size.

    The last batch of an epoch is filled with the first images of the same permutation (with other augmentation), since a batch
    of one or two images would spoil the statistics of batch normalisation.

    Args:
        images: N.
        batch: B, over all processes.
        seed: of the permutations.
        windows: R, how many samples of each image an epoch holds.
    """

    images: int
    batch: int
    seed: int
    windows: int = 1

    @property
    def samples(self) -> int:
        """N R."""
        return self.images * self.windows

    @property
    def steps_per_epoch(self) -> int:
        """ceil(N R / B)."""
        return -(-self.samples // self.batch)

    def step(self, step: int, rank: int = 0, world: int = 1) -> list[Slot]:
        """The B / world slots of process `rank` at global step `step`, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order, share = _order(self.samples, self.seed, epoch), self.batch // world
        first = within * self.batch + rank * share
        chosen = [(position, int(order[position % self.samples])) for position in range(first, first + share)]
        return [Slot(epoch, position, number % self.images) for position, number in chosen]


@lru_cache(maxsize=4)
def _order(images: int, seed: int, epoch: int) -> Int:
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(images)


class ImageCache:
    """Decoded images up to a number of bytes. What is in stays in: with one pass an epoch, replacing would never hit."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget, self._used = budget_bytes, 0
        self._images: dict[Path, NDArray[Any]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int]]:
        return ImageCache, (self._budget,)  # a worker process fills its own

    def get(self, path: Path) -> NDArray[Any] | None:
        """The image, read-only, or None."""
        return self._images.get(path)

    def put(self, path: Path, image: NDArray[Any]) -> None:
        """Keep the image if it still fits."""
        image.flags.writeable = False
        with self._lock:
            if path not in self._images and self._used + image.nbytes <= self._budget:
                self._images[path] = image
                self._used += image.nbytes


@dataclass(frozen=True, eq=False)
class CachedDataset(Dataset):
    """A data set that keeps decoded images in memory; its arrays are read-only."""

    cache: ImageCache = field(default_factory=lambda: ImageCache(0))

    @classmethod
    def wrap(cls, dataset: Dataset, cache: ImageCache) -> CachedDataset:
        """The same data set, reading through `cache`."""
        return cls(**{item.name: getattr(dataset, item.name) for item in fields(Dataset)}, cache=cache)

    def image(self, index: int) -> NDArray[Any]:
        """As `Dataset.image`, from memory where possible."""
        path = self.image_paths[index]
        image = self.cache.get(path)
        if image is None:
            image = super().image(index)
            self.cache.put(path, image)
        return image


@dataclass(frozen=True)
class Maker:
    """Makes the sample of a slot; everything that a worker process needs.

    Args:
        dataset: the training images.
        augment: how they vary.
        input_size: height and width of a sample.
        seed: of the samples' generators.
        plain_from: first epoch without mosaic, mixup, cutmix and copy-paste.
        transform: takes the place of `augment` where given.
        varied: False for letterboxed images without any augmentation.
        masks_padding: lay what shows an image into the upper left corner and say how large it is, as the model's card asks.
        levels: of the model's card, by which augmentation measures the intensities of images of more than 8 bits.
    """

    dataset: Dataset
    augment: AugmentOptions
    input_size: tuple[int, int]
    seed: int
    plain_from: int
    transform: Transform | None = None
    varied: bool = True
    masks_padding: bool = False
    levels: Levels | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.augment.rare and self.augment.crop:
            self.dataset.class_frequencies  # noqa: B018  counted here once, not by every worker

    @property
    def masks(self) -> bool:
        """Whether samples need masks."""
        return self.dataset.task in ("instance", "panoptic") or self.augment.copy_paste > 0

    def __call__(self, slot: Slot) -> Sample:
        sample = self._sample(slot)
        return corner_sample(sample, self.dataset.categories) if self.masks_padding else replace(sample, shown=None)

    def _sample(self, slot: Slot) -> Sample:
        if self.transform is not None:
            index, rng = self._readable(slot.index), self._generator(slot)
            return transformed_sample(self.dataset, index, rng, self.transform, self.input_size, masks=self.masks)
        if not self.varied:
            return evaluation_sample(self.dataset, slot.index, self.input_size, masks=self.masks, fetch=self._fetch)[0]
        options = self.augment
        if slot.epoch >= self.plain_from:
            options = replace(options, mosaic=0.0, mixup=0.0, cutmix=0.0, copy_paste=0.0)
        for offset in range(_MOST_BROKEN):
            index, rng = (slot.index + offset) % len(self.dataset), self._generator(slot)
            try:
                return augment(
                    self.dataset,
                    index,
                    rng,
                    options,
                    self.input_size,
                    masks=self.masks,
                    fetch=self._fetch,
                    look=self.dataset.scan,
                    levels=self.levels,
                )
            except WindowError as error:
                self.skipped[self.dataset.names[error.index]] = error.reason
        raise self._all_broken(slot.index)

    def _generator(self, slot: Slot) -> np.random.Generator:
        return np.random.default_rng([_SAMPLE, self.seed, slot.epoch, slot.position])

    def batch(self, slots: Sequence[Slot]) -> Batch:
        """The samples of `slots`, stacked; names the images that had to be skipped."""
        before = set(self.skipped)
        made = collate([self(slot) for slot in slots])
        return replace(made, skipped=tuple(item for item in self.skipped.items() if item[0] not in before))

    def _fetch(self, index: int) -> Sample:
        return read_sample(self.dataset, self._readable(index), masks=self.masks)

    def _readable(self, index: int) -> int:
        """`index`, or the next image that can be read: which one replaces a broken file depends on nothing but the files."""
        for offset in range(_MOST_BROKEN):
            candidate = (index + offset) % len(self.dataset)
            try:
                self.dataset.image(candidate)
            except ImageError as error:
                self.skipped[self.dataset.names[candidate]] = error.reason
            else:
                return candidate
        raise self._all_broken(index)

    def _all_broken(self, index: int) -> ImageError:
        text = f"{_MOST_BROKEN} images in a row cannot be read; run `pelagia doctor` on the data"
        return ImageError(text, where=self.dataset.names[index])


def measure_window(dataset: Dataset, base: Normalisation, *, most: int = 64) -> Normalisation:
    """`base` for 8-bit images; for 16-bit images `base` with the window that holds all but the outermost thousandth of the
    intensities, at each end, of up to `most` images spread over the set; of scans parts are looked at.

    Raises:
        DataError: the images looked at hold 8 and 16 bit, for which no one window makes sense.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, most).astype(np.int64))
    counts = np.zeros(65536, dtype=np.int64)
    kinds: dict[str, str] = {}
    for index in chosen:
        try:
            parts = _parts(dataset, int(index))
        except ImageError:
            continue
        kinds.setdefault(str(parts[0].dtype), dataset.names[index])
        if kinds.keys() == {"uint8"} and len(kinds) == 1 and index >= chosen[min(3, len(chosen) - 1)]:
            return base  # nearly every set is 8-bit throughout; four images tell
        for part in parts:
            if part.dtype == np.uint16:
                counts += np.bincount(part.ravel(), minlength=65536)
    if len(kinds) > 1:
        places = ", ".join(f"{kind} ({name})" for kind, name in sorted(kinds.items()))
        raise DataError(f"the images mix bit depths: {places}; convert them to one depth", where=dataset.root)
    if kinds.keys() != {"uint16"}:
        return base
    share = np.cumsum(counts) / counts.sum()
    low, high = int(np.searchsorted(share, 0.001)), int(np.searchsorted(share, 0.999))
    return replace(base, low=float(low), high=float(max(high, low + 1)))


def _parts(dataset: Dataset, index: int) -> list[NDArray[Any]]:
    """The whole image, or of a scan windows of 512 pixels in a grid of four by four over it."""
    scan = dataset.scan(index)
    if scan is None:
        return [dataset.image(index)]
    with scan:
        width, height = min(scan.width, 512), min(scan.height, 512)
        places = itertools.product(
            *(np.linspace(0, room, 4, dtype=np.int64).tolist() for room in (scan.height - height, scan.width - width))
        )
        return [scan.read(x, y, width, height) for y, x in places]


class Loader:
    """Batches of a plan.

    With `workers` = 0 they are made in turn with the steps or, `ahead`, by one thread that runs ahead of a GPU: decoding and
    warping release Python's lock. Beside a network on the CPU that thread would take a core from the network's own threads, which
    wait for each other at the end of every layer: measured on two cores, a step then takes two to three times as long. With
    `workers` that many processes prepare. The batches are the same.
    """

    def __init__(
        self,
        maker: Maker,
        plan: Plan,
        *,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        ahead: bool = False,
        pin: bool = False,
    ) -> None:
        self.maker, self.plan = maker, plan
        self._workers, self._rank, self._world = workers, rank, world
        self._ahead, self._pin = ahead, pin

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of steps `start` to `stop` - 1. What runs ahead does so across the end of an epoch too.

        Raises:
            PelagiaError: what making a sample raises.
        """
        steps = (self.plan.step(step, self._rank, self._world) for step in range(start, stop))
        if self._workers:
            return self._by_processes(steps)
        # A user's transform may draw from torch's global generator, which the network uses meanwhile: no thread then.
        return self._by_thread(steps) if self._ahead and self.maker.transform is None else self._in_turn(steps)

    def _in_turn(self, steps: Iterator[list[Slot]]) -> Generator[Batch, None, None]:
        for slots in steps:
            yield self._make(slots)

    def _by_thread(self, steps: Iterator[list[Slot]]) -> Generator[Batch, None, None]:
        return ahead((self._make(slots) for slots in steps), _AHEAD)

    def _make(self, slots: list[Slot]) -> Batch:
        batch = self.maker.batch(slots)
        return batch.pin_memory() if self._pin else batch

    def _by_processes(self, steps: Iterator[list[Slot]]) -> Generator[Batch, None, None]:
        loader: DataLoader[Any] = DataLoader(
            _Steps(self.maker),
            sampler=_Once(steps),
            batch_size=None,  # an item of the sampler is a whole batch already
            num_workers=self._workers,
            worker_init_fn=_start_worker,
            pin_memory=self._pin,
            generator=torch.Generator(),  # else it would draw from the global generator, and workers would change results
        )
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # ends OpenCV's pool: a forked child would wait for its threads, which exist in the parent only
        items = iter(loader)
        cv2.setNumThreads(threads)
        for item in items:
            if isinstance(item, PelagiaError):
                raise item
            yield item


class _Steps(torch.utils.data.Dataset[Any]):
    """What the worker processes of torch call: an item is a whole batch, or the error that making it raised."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker

    def __getitem__(self, slots: list[Slot]) -> Batch | PelagiaError:
        try:
            return self._maker.batch(slots)
        except PelagiaError as error:
            return error  # raised in the main process, where torch would otherwise bury it in a worker's traceback


class _Once(torch.utils.data.Sampler[list[Slot]]):
    """An iterator in the clothes of a sampler."""

    def __init__(self, steps: Iterator[list[Slot]]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[list[Slot]]:
        return self._steps


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(1)  # the parallelism is that of the workers
