"""What happens once before the first step: the machine, the two sets of images, the network and its first weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch

from pelagia.core import image as core_image
from pelagia.core.allocator import keep_freed_memory
from pelagia.core.card import ModelCard
from pelagia.core.files import read_json
from pelagia.core.types import Float
from pelagia.data.dataset import Dataset
from pelagia.data.split import read_splits, split
from pelagia.errors import DataError, ImageError, ModelError, OptionError, TrainingError
from pelagia.infer.runtimes import cpu_count
from pelagia.infer.views import TILE_FACTOR
from pelagia.models.foreign import load_any
from pelagia.models.model import Model
from pelagia.models.registry import create
from pelagia.models.weights import PUBLISHED, fetch
from pelagia.train.balance import balance
from pelagia.train.data import measure_window
from pelagia.train.distributed import Group
from pelagia.train.options import TrainOptions
from pelagia.train.transfer import Transfer, freeze, transfer

__all__ = [
    "Folds",
    "Start",
    "choose_workers",
    "describe",
    "find_folds",
    "machine",
    "same_folds",
    "start_model",
    "too_few_queries",
]

#: Of `split.json` and `run.json`: twenty million images.
_LIST_LIMIT_BYTES = 2_000_000_000

_VAL_NAMES = ("val", "valid", "validation")

#: Pixels of the input that the typical object must have to be learnt from whole images.
_LEARNABLE = 16.0

#: Share of windows around an object where windows are chosen for the user.
_AROUND_OBJECTS = 0.5

#: So many times the pixels of the input make an image a scan; and the most windows of one in an epoch.
_SCAN, _MOST_WINDOWS = 16, 1000


@contextmanager
def machine(options: TrainOptions, group: Group) -> Iterator[torch.device]:
    """Set up this process for the run and give back the device; what is global is as before afterwards.

    Raises:
        OptionError: the device is not there.
    """
    device = _device(options.device, group)
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a module property, unknown to the stub
    # Weights that decay towards zero pass through numbers so small that a CPU computes with them a hundred times slower.
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads or max(cpu_count() // group.local_world, 1))
    if device.type == "cpu":
        keep_freed_memory()
    cv2.setNumThreads(1)  # batches are prepared beside the network; nested pools would fight for the same cores
    if device.type == "cpu" or options.deterministic:
        # On the CPU this costs next to nothing: it makes the sums of scattered gradients run in one order.
        torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        yield device
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _device(name: str, group: Group) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = group.local_rank if group.world > 1 else device.index or 0
        if index >= count:
            raise OptionError(f"--device {name}: this machine has {count} usable GPUs; use --device cpu")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("--device mps: this machine has no Metal device; use --device cpu")
    return device


def choose_workers(options: TrainOptions, device: torch.device, group: Group) -> int:
    """None beside a network on the CPU, which needs every core itself; processes where a GPU has to be fed."""
    if options.workers is not None:
        return options.workers
    cores = cpu_count() // group.local_world
    return 0 if device.type == "cpu" or cores <= 2 else min(8, cores - 1)


@dataclass(frozen=True)
class Folds:
    """The images to learn from and those to judge by (None for no validation), and what had to be left out."""

    train: Dataset
    val: Dataset | None
    skipped: list[dict[str, Any]]

    def names(self) -> dict[str, list[str]]:
        """What `split.json` holds."""
        return {"train": list(self.train.names), "val": list(self.val.names) if self.val is not None else []}

    def hashes(self) -> dict[str, str]:
        """Content hashes of both, by which a run knows its data again."""
        return {"train": self.train.content_hash, "val": self.val.content_hash if self.val is not None else ""}


def find_folds(options: TrainOptions, dataset: Dataset, val: Dataset | None) -> Folds:
    """Training and validation images: `val` if given, else the data's own splits, else a split by fraction and seed.

    Files that cannot be opened are left out and listed.

    Raises:
        DataError: no image or no object is left to learn from.
    """
    dataset = dataset if options.task is None else dataset.with_task(options.task)
    if options.splits:
        dataset = dataset.with_splits(read_splits(dataset, options.splits))
    if val is not None:
        val = val.with_task(dataset.task)
        names = set(dataset.splits)
        train = dataset.split("train") if "train" in names else dataset
    else:
        train, val = _own_folds(options, dataset)
    skipped = [
        {"severity": item.severity, "code": item.code, "message": item.message, "where": item.where, "count": item.count}
        for item in dataset.findings
        if item.severity != "info"
    ]
    train, broken = _readable(train, decode=False)
    skipped += broken
    if val is not None:
        val, broken = _readable(val, decode=True)
        skipped += broken
    if len(train) == 0:
        raise DataError("there is no readable training image; run `pelagia doctor` on the data", where=dataset.root)
    if len(train.annotations) == 0 and train.task != "semantic":
        raise DataError("the training images have no labelled object", where=dataset.root)
    return Folds(train, val if val is not None and len(val) else None, skipped)


def _own_folds(options: TrainOptions, dataset: Dataset) -> tuple[Dataset, Dataset | None]:
    held = next((name for name in _VAL_NAMES if name in dataset.splits), None)
    if held is not None:
        if "train" in dataset.splits:
            return dataset.split("train"), dataset.split(held)
        others = np.concatenate(list(dataset.splits.values()))
        return dataset.subset(np.setdiff1d(np.arange(len(dataset)), others)), dataset.split(held)
    train = dataset.split("train") if "train" in dataset.splits else dataset
    if options.val_fraction == 0 or len(train) < 2:
        return train, None
    parts = split(train, {"train": 1 - options.val_fraction, "val": options.val_fraction}, options.seed)
    return train.subset(parts["train"]), train.subset(parts["val"])


def same_folds(options: TrainOptions, dataset: Dataset, val: Dataset | None, folder: Path) -> Folds:
    """The folds of the run in `folder`, by the names in its `split.json`.

    Raises:
        DataError: an image of the run is gone.
        TrainingError: the labels are others than when the run began.
    """
    names = read_json(folder / "split.json", _LIST_LIMIT_BYTES)
    dataset = dataset if options.task is None else dataset.with_task(options.task)
    held = dataset if val is None else val.with_task(dataset.task)
    folds = Folds(_by_name(dataset, names["train"]), _by_name(held, names["val"]) if names["val"] else None, [])
    if read_json(folder / "run.json", _LIST_LIMIT_BYTES).get("data") != folds.hashes():
        raise TrainingError(
            f"the labels have changed since the run began, so it cannot go on; start anew with --weights {folder}",
            where=folder,
        )
    return folds


def _by_name(dataset: Dataset, names: Sequence[str]) -> Dataset:
    position = {name: index for index, name in enumerate(dataset.names)}
    missing = [name for name in names if name not in position]
    if missing:
        raise DataError(f"{len(missing)} images of the run are no longer in the data, first {missing[0]}", where=dataset.root)
    return dataset.subset([position[name] for name in names])


def _readable(dataset: Dataset, *, decode: bool) -> tuple[Dataset, list[dict[str, Any]]]:
    """The images whose files open (`decode`: whole), and records of the others."""

    def reason(index: int) -> str | None:
        try:
            core_image.read(dataset.image_paths[index]) if decode else core_image.image_size(dataset.image_paths[index])
        except ImageError as error:
            return error.reason
        return None

    with ThreadPoolExecutor(cpu_count()) as pool:
        reasons = list(pool.map(reason, range(len(dataset))))
    broken = [
        {"severity": "error", "code": "image.unreadable", "message": text, "where": dataset.names[index], "count": 1}
        for index, text in enumerate(reasons)
        if text is not None
    ]
    return (dataset.subset([i for i, text in enumerate(reasons) if text is None]) if broken else dataset), broken


@dataclass(frozen=True)
class Start:
    """A network before its first step, with what was said about its weights."""

    model: Model
    transfer: Transfer | None
    weights: dict[str, Any]
    frozen: tuple[str, ...]


def start_model(options: TrainOptions, train: Dataset, device: torch.device, known: ModelCard | None = None) -> Start:
    """Build the network for the classes and the task of `train`, take weights over, freeze.

    `known` is the card of a run that goes on: its weights follow from its checkpoint, so none are taken over.

    Raises:
        ModelError, OptionError, CheckpointError: the network cannot be built, or the weights do not fit.
    """
    torch.manual_seed(options.seed)
    given = options.own_options()
    published = PUBLISHED.get(options.model) if options.pretrained and "backbone" not in given else None
    own = {**(published.options if published is not None else {}), **given}
    try:
        model = create(options.model, train.categories, train.task, input_size=options.imgsz, options=own)
    except ModelError as error:
        raise OptionError(f"{error.reason} (--imgsz {options.imgsz}, --task {train.task})", where=options.model) from error
    balance(model, train, None if known is None else known.options.get("class_weights"))
    report, facts = None, {}
    if known is not None:
        model.card, facts = known, known.manifest.get("weights", {})
    else:
        card = replace(model.card, licence="the trainer's choice (trained from random weights)", source="")
        base = model.card.normalisation
        if published is not None:
            source = load_any(fetch(published))
            report = transfer(model, source.state_dict(), source.card.class_names, where=published.url)
            base = source.card.normalisation
            card = replace(card, licence=published.licence, source=f"{published.source}, {published.file_name}")
            facts = {"file": published.url, "licence": published.licence, **report.to_dict()}
        elif options.pretrained:
            name, licence = _pretrain(model)
            known_as = timm.get_pretrained_cfg(name)
            assert known_as is not None  # its weights were just fetched
            base = replace(base, mean=tuple(known_as.mean), std=tuple(known_as.std))  # what the backbone was trained with
            card = replace(card, licence=licence, source=f"backbone timm:{name}")
            facts = {"file": f"timm:{name}", "licence": licence}
        if options.weights:
            source = _weights(Path(options.weights))
            report = transfer(model, source.state_dict(), source.card.class_names, where=options.weights)
            base = source.card.normalisation
            card = replace(card, licence=source.card.licence, source=f"{source.card.name}, {Path(options.weights).name}")
            facts = {"file": options.weights, "licence": source.card.licence, **report.to_dict()}
        model.card = replace(card, normalisation=measure_window(train, base))
    frozen = freeze(model, options.freeze)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    return Start(model.to(device=device, memory_format=layout), report, facts, frozen)  # type: ignore[call-overload]


def _pretrain(model: Model) -> tuple[str, str]:
    """Fetch the weights of the model's backbone; returns its name in timm and their licence."""
    backbone = getattr(model, "backbone", None)
    if backbone is None or not hasattr(backbone, "load_pretrained"):
        raise OptionError(f"--pretrained: {model.card.name} has no weights of its own to fetch; add --backbone timm:NAME")
    return str(backbone.name), str(backbone.load_pretrained())


def _weights(path: Path) -> Model:
    """The model in a run folder, a checkpoint, or another project's file."""
    if path.is_dir():
        path = next((path / name for name in ("best.safetensors", "last.safetensors") if (path / name).is_file()), path)
    return load_any(path)


def choose_windows(options: TrainOptions, train: Dataset) -> tuple[TrainOptions, list[str]]:
    """The options with `windows` and `windows_per_image` carried out, and a sentence on what was chosen for the user.

    Whole images serve no longer where their median long side is more than 1.5 times the input and the typical object (its median
    long side), shrunk by as much, is under 16 pixels of it, two cells of the finest grid of most detectors. Of images with at
    least 16 times the pixels of the input an epoch then shows as many windows as cover the median image.
    """
    augment, told = options.augment, list[str]()
    if options.windows == "never":
        augment = replace(augment, crop=0.0, rare=0.0)
    elif options.windows == "always" and not augment.crop:
        augment = replace(augment, crop=1.0, rare=_AROUND_OBJECTS)
    elif not augment.crop and (small := _too_small(options, train)) is not None:
        augment = replace(augment, crop=1.0, rare=_AROUND_OBJECTS)
        told.append(
            f"in images shrunk to {options.imgsz} pixels the typical object would be {small:.1f} pixels long: learning from "
            "windows at full resolution, half of them around objects (--windows never for whole images)"
        )
    count = options.windows_per_image or 1
    sizes = _known_sizes(train)
    if augment.crop >= 0.5 and not options.windows_per_image and len(sizes):
        cover = float(np.median(sizes.prod(axis=1))) / options.imgsz**2
        if cover >= _SCAN:
            count = min(round(cover), _MOST_WINDOWS)
            told.append(f"an epoch shows {count} windows of each image (--windows-per-image)")
    return replace(options, augment=augment, windows_per_image=count), told


def _too_small(options: TrainOptions, train: Dataset) -> float | None:
    """The length of the typical object in whole images that are shrunk to the input, if it is too small to be learnt so."""
    sizes, flat = _known_sizes(train), train.annotations
    boxes = flat.boxes[~(flat.crowd | flat.ignore)]
    if not len(sizes) or not len(boxes):
        return None
    shrunk = float(np.median(sizes.max(axis=1))) / options.imgsz
    typical = float(np.median((boxes[:, 2:] - boxes[:, :2]).max(axis=1))) / shrunk
    return typical if shrunk > TILE_FACTOR and typical < _LEARNABLE else None


def _known_sizes(dataset: Dataset) -> Float:
    """[K, 2], widths and heights of the images whose sizes are known."""
    return dataset.sizes[(dataset.sizes > 0).all(axis=1)].astype(np.float64)


def describe(model: Model, frozen: Sequence[str]) -> str:
    """One sentence on the network."""
    card = model.card
    fixed = f", {len(frozen)} tensors fixed" if frozen else ""
    classes = ", ".join(card.class_names[:8]) + (", ..." if len(card.categories) > 8 else "")
    count = sum(parameter.numel() for parameter in model.parameters())
    weights = f"; they weigh {text}" if (text := card.options.get("class_weights")) else ""
    return f"{card.name} for {card.task}, {count:,} parameters{fixed}, {len(card.categories)} classes: {classes}{weights}"


def too_few_queries(model: Model, train: Dataset) -> list[str]:
    """One sentence if an image holds more objects than a predictor of sets has queries, which answer with one each; else none.

    For the task `panoptic` the pieces of a class of stuff are one object; for `semantic` each class of an image is.
    """
    queries = getattr(getattr(model, "options", None), "queries", None)
    if queries is None:
        return []
    counts = np.zeros(len(train), dtype=np.int64)
    if train.task == "semantic":
        counts += len(train.categories)
    else:
        flat = train.annotations
        real = ~(flat.crowd | flat.ignore)
        stuff = np.array([not category.is_thing for category in train.categories], dtype=np.bool_)[flat.labels] & real
        counts += np.bincount(flat.images[real & ~stuff], minlength=len(train))
        pieces = np.unique(np.stack([flat.images[stuff], flat.labels[stuff]], axis=1), axis=0)
        counts += np.bincount(pieces[:, 0], minlength=len(train))
    crowded, worst = int(np.count_nonzero(counts > queries)), int(counts.argmax())
    if not crowded:
        return []
    return [
        f"warning: {crowded} of {len(train)} training images hold more objects than the {queries} queries of {model.card.name}, "
        f"at most {counts[worst]} ({train.names[worst]}): as many stay unlearnt and unfound; raise it with --model-options "
        f"queries={counts[worst]}, or learn from windows (crop)"
    ]
