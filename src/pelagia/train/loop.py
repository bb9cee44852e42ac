"""The training loop.

`train` reads from top to bottom: images, network, batch size, optimiser, then epochs of steps, each epoch followed by validation
of the averaged weights and by a checkpoint. Everything random is a function of (seed, step), so the state of a run is its tensors
and one integer, and a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pelagia.core.card import ModelCard
from pelagia.data.augment import Transform
from pelagia.data.dataset import Dataset
from pelagia.infer.progress import bar
from pelagia.infer.scale import training_scale
from pelagia.models import checkpoint
from pelagia.models.model import Model
from pelagia.models.receptive_field import receptive_field
from pelagia.train.batch import Batch
from pelagia.train.checkpoint import Progress, read_progress, restore, save_last
from pelagia.train.data import CachedDataset, ImageCache, Loader, Maker, Plan
from pelagia.train.distributed import Group, join_group
from pelagia.train.interrupt import Interrupt
from pelagia.train.memory import available_bytes, fitting_batch
from pelagia.train.optim import Schedule, choose_settings
from pelagia.train.options import TrainOptions, resume_options
from pelagia.train.prepare import (
    Folds,
    choose_windows,
    choose_workers,
    describe,
    find_folds,
    machine,
    same_folds,
    start_model,
    too_few_queries,
)
from pelagia.train.run import Run, RunFolder, default_folder, device_name, versions
from pelagia.train.step import Engine, build_engine, choose_precision, take_step
from pelagia.train.trackers import Tracker, open_trackers
from pelagia.train.validate import TITLES, score_names, validate

__all__ = ["train"]

Stopped = Literal["finished", "early", "interrupted"]


def train(
    options: TrainOptions,
    dataset: Dataset,
    val: Dataset | None = None,
    *,
    transform: Transform | None = None,
    on_step: Callable[[int], None] | None = None,
    quiet: bool = False,
    explicit: Collection[str] = (),
) -> Run:
    """Train a model and leave a run folder.

    Args:
        options: of the run; with `options.resume` the run there goes on, see `resume_options`.
        dataset: the labelled images, with or without splits.
        val: other images to validate on.
        transform: takes the place of the built-in augmentation.
        on_step: called with the number of finished steps after each step.
        quiet: no progress bar and no sentences (they still stand in the run's `log.txt`).
        explicit: names of options that a resumed run takes from `options` though they have their default value.

    Raises:
        OptionError, DataError, ModelError, CheckpointError: the run cannot start as asked.
        NonFiniteLossError: the loss became NaN or infinite; the batch was saved.
        TrainingError: not even one image fits into memory, or a resumed run's labels have changed.
    """
    options = resume_options(options, explicit) if options.resume else options
    group = join_group(options.device)
    with machine(options, group) as device:
        folder = RunFolder(_place(options, dataset, group), first=group.first, quiet=quiet)
        setting = _set_up(options, dataset, val, transform, folder)
        options = setting.options
        engine, plan = _build(options, group, device, setting)
        loader, judged = _feed(engine, plan, setting.folds, transform)
        settings, done = engine.progress.settings, engine.progress.step // plan.steps_per_epoch
        folder.say(
            f"{options.epochs} epochs of {plan.steps_per_epoch} steps of {plan.batch} images on {device_name(device)}; "
            f"{settings.optimizer} at rate {settings.lr:.3g}; everything is written to {folder.path}"
        )
        trackers = open_trackers(options.track, folder.path, options.to_dict(), done) if group.first else []
        try:
            stopped = _epochs(engine, loader, judged, folder, trackers, on_step)
        finally:
            for tracker in trackers:
                tracker.close()
        return _finish(engine, plan, folder, stopped)


@dataclass(frozen=True)
class _Setting:
    """The options, where the run lives, the images it learns from and is judged by, and for a run that goes on its state."""

    options: TrainOptions
    folder: RunFolder
    folds: Folds
    saved: tuple[dict[str, Tensor], ModelCard, Progress] | None


def _place(options: TrainOptions, dataset: Dataset, group: Group) -> Path:
    if options.resume:
        given = Path(options.resume)
        return given if given.is_dir() else given.parent
    return Path(group.share(options.out or str(default_folder(options, dataset))))


def _set_up(
    options: TrainOptions, dataset: Dataset, val: Dataset | None, transform: Transform | None, folder: RunFolder
) -> _Setting:
    """Divide the images, or take over the division of the run that goes on; choose whole images or windows; say what was left
    out."""
    saved = None
    if options.resume:
        saved = read_progress(folder.last if Path(options.resume).is_dir() else Path(options.resume))
        folds = same_folds(options, dataset, val, folder.path)
    else:
        folds = find_folds(options, dataset, val)
    told: list[str] = []
    if transform is None and saved is None:  # a run that goes on has chosen
        options, told = choose_windows(options, folds.train)
    folder.begin(options, resumed=saved is not None)
    count = len(folds.val) if folds.val is not None else 0
    objects = f" with {len(folds.train.annotations)} objects" if folds.train.task != "semantic" else ""
    folder.say(f"{len(folds.train)} images{objects} to learn from, {count} images to validate on")
    for line in told:
        folder.say(line)
    folder.write("split.json", folds.names())
    if folds.skipped:
        folder.write("skipped.json", folds.skipped)
        total = sum(int(item["count"]) for item in folds.skipped)
        folder.say(f"{total} items were skipped or corrected, listed in {folder.path / 'skipped.json'}:")
        for item in folds.skipped[:5]:
            folder.say(f"  {item['severity']}: {item['where']}: {item['message']} ({item['count']})")
    return _Setting(options, folder, folds, saved)


def _build(options: TrainOptions, group: Group, device: torch.device, setting: _Setting) -> tuple[Engine, Plan]:
    """The network with its first weights, the batch that fits into memory, optimiser, schedule and average.

    A run that goes on keeps batch, rate and card of its first step, and gets all tensors back from its checkpoint.
    """
    folds, folder, saved, windows = setting.folds, setting.folder, setting.saved, options.windows_per_image or 1
    start = start_model(options, folds.train, device, None if saved is None else saved[1])
    model = start.model
    told = (describe(model, start.frozen), *too_few_queries(model, folds.train))
    for line in (*told, *(start.transfer.lines() if start.transfer else ())):
        folder.say(line)
    if saved is None:
        batch = _choose_batch(options, group, model, len(folds.train) * windows, folder)
        steps = options.epochs * Plan(len(folds.train), batch, options.seed, windows).steps_per_epoch
        progress = Progress(choose_settings(options, batch, steps))
    else:
        progress = saved[2]
    plan = Plan(len(folds.train), progress.settings.batch, options.seed, windows)
    facts = _facts(options, folds, progress, device, start.weights)
    if model.card.task == "semantic":
        facts["receptive_field"] = receptive_field(model)
    folder.write("run.json", facts)
    model.card = replace(model.card, manifest=facts)
    engine = build_engine(options, group, model, progress, Schedule.of(options, plan.steps_per_epoch))
    if saved is not None:
        restore(saved[0], model, engine.average, engine.optimizer, where=folder.last)
        folder.say(f"resumed after step {progress.step} (epoch {progress.step // plan.steps_per_epoch + 1})")
    return engine, plan


def _feed(engine: Engine, plan: Plan, folds: Folds, transform: Transform | None) -> tuple[Loader, Dataset | None]:
    """Batches, prepared ahead, and the images to validate on; both from decoded images kept in memory as far as it reaches."""
    options, group, device = engine.options, engine.group, engine.device
    workers = choose_workers(options, device, group)
    free = available_bytes() // 4 // group.local_world
    # Each worker process keeps images of its own.
    cache = ImageCache((free if options.cache_bytes is None else options.cache_bytes) // max(workers, 1))
    window = engine.model.card.normalisation
    maker = Maker(
        dataset=CachedDataset.wrap(folds.train, cache),
        augment=options.augment,
        input_size=(options.imgsz, options.imgsz),
        seed=options.seed,
        plain_from=options.epochs - min(options.close_mosaic, options.epochs // 3),
        transform=transform,
        masks_padding=engine.model.card.masks_padding,
        levels=(window.low, window.high),
    )
    gpu = device.type != "cpu"
    pin = device.type == "cuda"
    loader = Loader(maker, plan, workers=workers, rank=group.rank, world=group.world, ahead=gpu, pin=pin)
    return loader, None if folds.val is None else CachedDataset.wrap(folds.val, cache)


def _epochs(
    engine: Engine,
    loader: Loader,
    val: Dataset | None,
    folder: RunFolder,
    trackers: list[Tracker],
    on_step: Callable[[int], None] | None,
) -> Stopped:
    """Epochs of steps with validation after each, until the end, no progress, or an interruption."""
    options, progress, per_epoch = engine.options, engine.progress, loader.plan.steps_per_epoch
    folder.metrics(progress.history)
    with Interrupt() as interrupt, closing(loader.batches(progress.step, options.epochs * per_epoch)) as batches:
        for epoch in range(progress.step // per_epoch, options.epochs):
            began, before, waited, first = time.perf_counter(), progress.seconds, 0.0, progress.step
            show = False if folder.quiet or not folder.first else None
            with bar(f"epoch {epoch + 1}/{options.epochs}", per_epoch, show=show) as move:
                move(progress.step - epoch * per_epoch, "")
                while progress.step < (epoch + 1) * per_epoch:
                    waiting = time.perf_counter()
                    batch = next(batches)
                    waited += time.perf_counter() - waiting
                    _look_at(batch, engine, folder)
                    terms = take_step(engine, batch, folder)
                    for name, value in terms.items():
                        progress.sums[name] = progress.sums.get(name, 0.0) + value
                    progress.step += 1
                    progress.seconds = before + time.perf_counter() - began
                    if on_step is not None:
                        on_step(progress.step)
                    move(1, f"loss {terms['loss']:.3f}")
                    # All processes must leave after the same step, or the others would wait for ever.
                    if engine.group.lowest(-int(interrupt.asked)) < 0:
                        _save(engine, folder)
                        return "interrupted"

            trained = time.perf_counter() - began
            record = _record(engine, epoch, per_epoch)
            if val is not None and ((epoch + 1) % options.val_every == 0 or epoch + 1 == options.epochs):
                record |= validate(engine, val, folder, epoch)
            progress.seconds = before + time.perf_counter() - began
            record |= {"seconds": round(progress.seconds, 3), "waiting": round(waited / trained, 4)}
            record |= {"images_per_second": round((progress.step - first) * loader.plan.batch / trained, 2)}
            progress.history.append(record)
            progress.sums = {}
            last = epoch + 1 == options.epochs or _no_progress(engine)
            if (epoch + 1) % options.save_every == 0 or last:
                _save(engine, folder)
            _tell_epoch(engine, folder, trackers, record, last)
            if last and epoch + 1 < options.epochs:
                folder.say(f"no better {_title(engine)} for {options.patience} epochs: stopped early")
                return "early"
    return "finished"


def _choose_batch(options: TrainOptions, group: Group, model: Model, images: int, folder: RunFolder) -> int:
    """The batch over all processes: what was asked for, unless there are fewer images or too little memory."""
    share = max(min(options.batch, images) // group.world, 1)
    if share * group.world < options.batch:
        reason = f"there are {images} images and {group.world} processes"
        folder.say(f"a batch of {share * group.world} instead of {options.batch}: {reason}")
    precision = choose_precision(options, next(model.parameters()).device)
    fitting = group.lowest(fitting_batch(model, options.imgsz, share, precision, sharing=group.local_world))
    if fitting < share:
        folder.say(f"a batch of {fitting * group.world} instead of {share * group.world}: more does not fit into memory")
    return fitting * group.world


def _facts(
    options: TrainOptions, folds: Folds, progress: Progress, device: torch.device, weights: dict[str, Any]
) -> dict[str, Any]:
    """What `run.json` and the card of every checkpoint say about the run."""
    return {
        "data": folds.hashes(),
        "images": {"train": len(folds.train), "val": len(folds.val) if folds.val is not None else 0},
        "seed": options.seed,
        "settings": asdict(progress.settings),
        "weights": weights,
        "device": device_name(device),
        "versions": versions(),
        **training_scale(folds.train, windows=options.augment.crop >= 0.5),
    }


def _look_at(batch: Batch, engine: Engine, folder: RunFolder) -> None:
    """The first batch with its labels as a picture, since most mistakes in data show there; images that could not be read."""
    if engine.progress.step == 0:
        folder.batch_picture(batch, engine.model.card.categories)
    for name, reason in batch.skipped:
        folder.say(f"skipped {name}: {reason}")


def _record(engine: Engine, epoch: int, per_epoch: int) -> dict[str, Any]:
    """The epoch's means of loss terms."""
    means = {name: value / per_epoch for name, value in engine.progress.sums.items()}
    rate = engine.progress.settings.lr * engine.schedule.factor(engine.progress.step - 1)
    total = means.pop("loss")
    return {"epoch": epoch + 1, "step": engine.progress.step, "lr": rate, "loss": total, "losses": means}


def _tell_epoch(engine: Engine, folder: RunFolder, trackers: list[Tracker], record: dict[str, Any], last: bool) -> None:
    progress = engine.progress
    folder.metrics(progress.history)
    folder.curves(progress.history)
    if last:
        folder.draw()
    terms = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
    text = f"epoch {record['epoch']}/{engine.options.epochs}: loss {record['loss']:.3f} ({terms})"
    told = _scores(record, engine)
    if told:
        text += f", {told}" + (", best so far" if progress.best_epoch == record["epoch"] else "")
    folder.say(f"{text}; {record['images_per_second']:.1f} images/s")
    flat = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "epoch"}
    flat |= {f"losses/{name}": value for name, value in record["losses"].items()}
    for tracker in trackers:
        tracker.numbers(record["epoch"], flat)
        for name in ("train_batch", "val_predictions") if last else ():
            if (folder.path / f"{name}.png").is_file():
                tracker.picture(record["epoch"], name, folder.path / f"{name}.png")


def _title(engine: Engine) -> str:
    """What the best epoch is the best in."""
    return TITLES[next(iter(score_names(engine.model.card.task)))]


def _scores(record: Mapping[str, Any], engine: Engine) -> str:
    """The two chief scores of an epoch, or nothing if it has none."""
    chief = list(score_names(engine.model.card.task))[:2]
    return ", ".join(f"{TITLES[name]} {record[name]:.3f}" for name in chief if record.get(name) is not None)


def _no_progress(engine: Engine) -> bool:
    progress, patience = engine.progress, engine.options.patience
    return bool(patience and progress.best is not None and len(progress.history) - progress.best_epoch >= patience)


def _save(engine: Engine, folder: RunFolder) -> None:
    if folder.first:
        engine.progress.scaler = engine.scaler.state_dict()
        save_last(folder.last, engine.model, engine.average, engine.optimizer, engine.progress)


def _finish(engine: Engine, plan: Plan, folder: RunFolder, stopped: Stopped) -> Run:
    """The last sentence, and the run as an object."""
    progress, history = engine.progress, engine.progress.history
    best = next((record for record in history if record["epoch"] == progress.best_epoch), history[-1] if history else {})
    folder.draw()
    if stopped == "interrupted":
        epoch, within = divmod(progress.step, plan.steps_per_epoch)
        where = f"epoch {epoch + 1} after {within} of {plan.steps_per_epoch} steps"
        folder.say(f"stopped in {where}; go on with: pelagia train --resume {folder.path}")
    elif progress.best is None:
        if folder.first:  # nothing was scored: the last weights are all there is
            checkpoint.save(folder.best, engine.average.model, engine.average.model.card)
        folder.say(f"{len(history)} epochs in {progress.seconds:.0f} s, without validation; weights: {folder.best}")
    else:
        scores = f"{_scores(best, engine)} in epoch {progress.best_epoch}"
        folder.say(f"{len(history)} epochs in {progress.seconds:.0f} s; best {scores}; weights: {folder.best}")
    return Run(folder.path, folder.best, folder.last, len(history), stopped, best, history, progress.seconds)
