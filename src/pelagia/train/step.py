"""One step of training: forward, loss, backward, clipped gradient, update, average."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pelagia.errors import NonFiniteLossError, OptionError
from pelagia.models.model import Model, Targets
from pelagia.nn.intensities import to_network
from pelagia.train.batch import Batch
from pelagia.train.checkpoint import Progress
from pelagia.train.distributed import Group
from pelagia.train.ema import Average
from pelagia.train.optim import Schedule, build_optimizer, clip_gradients
from pelagia.train.options import TrainOptions
from pelagia.train.run import RunFolder
from pelagia.train.transfer import frozen_norms

__all__ = ["Engine", "TrainStep", "build_engine", "choose_precision", "take_step", "wrap"]


class TrainStep(nn.Module):
    """Forward pass and loss as one call, so that DistributedDataParallel sees the whole graph."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, targets: Targets, valid: Tensor | None = None) -> dict[str, Tensor]:
        """The named terms of the loss."""
        return self.model.loss(self.model(images, valid, targets), targets)


def wrap(model: Model, group: Group) -> nn.Module:
    """`TrainStep`, over several processes with averaged gradients.

    `Model.reduce` then takes the mean of a loss's normaliser over processes, `Model.gather` joins what a loss sorts, and the
    average of their gradients is the gradient of the whole batch.
    """
    step = TrainStep(model)
    if group.world == 1:
        return step
    model.reduce, model.gather = group.mean, group.gather
    device = next(model.parameters()).device
    return DistributedDataParallel(step, device_ids=[device.index] if device.type == "cuda" else None)


def choose_precision(options: TrainOptions, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision, None for full precision.

    bfloat16 where the GPU has it, since it needs no loss scaling, else float16. On a CPU only when asked for: without matrix
    units it is slower than float32.

    Raises:
        OptionError: asked for on a device that has none.
    """
    if options.amp == "off" or (options.amp == "auto" and device.type != "cuda"):
        return None
    if device.type == "mps":
        raise OptionError("--amp on: mixed precision is not used on mps; leave it at auto")
    if device.type == "cpu" or torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float16


@dataclass
class Engine:
    """What the steps work with; `progress` says how far they have come."""

    options: TrainOptions
    group: Group
    device: torch.device
    model: Model
    step: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    precision: torch.dtype | None
    progress: Progress


def build_engine(options: TrainOptions, group: Group, model: Model, progress: Progress, schedule: Schedule) -> Engine:
    """Optimiser, average and the rest around a model that lies on its device."""
    device = next(model.parameters()).device
    precision = choose_precision(options, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    if progress.scaler:
        scaler.load_state_dict(progress.scaler)
    return Engine(
        options=options,
        group=group,
        device=device,
        model=model,
        step=wrap(model, group),
        average=Average(model, options.ema_decay),
        optimizer=build_optimizer(model, progress.settings, options),
        schedule=schedule,
        scaler=scaler,
        precision=precision,
        progress=progress,
    )


def take_step(engine: Engine, batch: Batch, folder: RunFolder) -> dict[str, float]:
    """One step; the terms of the loss and their sum, `loss`, as means over all processes.

    Raises:
        NonFiniteLossError: a term or the gradient is NaN or infinite; the weights are as before the step, the batch is saved.
    """
    options, progress, model = engine.options, engine.progress, engine.model
    # Dropout and the like draw from (seed, step, process): no generator's state has to be kept.
    words = np.random.SeedSequence([options.seed, progress.step, engine.group.rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> 1))
    rate = progress.settings.lr * engine.schedule.factor(progress.step)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    model.train()
    for norm in frozen_norms(model):
        norm.eval()

    images = to_network(batch.images, model.card.normalisation, engine.device, next(model.parameters()).dtype)  # [B, 3, H, W]
    if not options.channels_last:
        images = images.contiguous()
    targets = batch.targets.to(engine.device, non_blocking=True)
    valid = None if batch.valid is None else batch.valid.to(engine.device, non_blocking=True)
    with torch.autocast(engine.device.type, dtype=engine.precision, enabled=engine.precision is not None):
        terms = engine.step(images, targets, valid)
    loss = torch.stack(list(terms.values())).sum()
    torch.autograd.backward(engine.scaler.scale(loss))
    engine.scaler.unscale_(engine.optimizer)
    length = clip_gradients(model.parameters(), options.clip_norm)

    # All numbers in one copy to the host. Under a loss scaler an infinite gradient is normal: the scale falls, the step is left.
    names = ["loss", *terms, "gradient"]
    numbers = engine.group.mean(torch.stack([loss, *terms.values(), length]).detach()).tolist()
    values = dict(zip(names, numbers, strict=True))
    judged = [value for name, value in values.items() if name != "gradient" or not engine.scaler.is_enabled()]
    if not all(math.isfinite(value) for value in judged):
        raise _non_finite(engine, batch, values, folder)
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.average.update(model, progress.step + 1)
    return {name: value for name, value in values.items() if name != "gradient"}


def _non_finite(engine: Engine, batch: Batch, values: dict[str, float], folder: RunFolder) -> NonFiniteLossError:
    """Save the batch and say which images were in it."""
    path = folder.save_bad_batch(batch, engine.model.card.categories, engine.progress.step, engine.group.rank)
    bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
    return NonFiniteLossError(
        f"{bad} became NaN or infinite at step {engine.progress.step}. The batch is saved here and as a picture beside it; its "
        f"images: {', '.join(batch.names)}. Look for impossible labels among them (`pelagia doctor`); if there are none, lower "
        f"the learning rate (--lr, here {engine.progress.settings.lr:.3g}) and start again",
        where=path,
    )
