"""Optimiser, learning rate and gradient length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pelagia.errors import OptionError
from pelagia.train.options import TrainOptions

__all__ = ["Schedule", "Settings", "build_optimizer", "choose_settings", "clip_gradients", "parameter_groups"]

#: Steps beyond which SGD is chosen: it needs the length, and then generalises a little better.
_LONG_RUN_STEPS = 10_000
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Settings:
    """The choices that `auto` stands for, made once at the first step and kept when a run is resumed."""

    optimizer: Literal["sgd", "adamw"]
    lr: float
    weight_decay: float
    batch: int


def choose_settings(options: TrainOptions, batch: int, total_steps: int) -> Settings:
    """Fill in what the user left open.

    AdamW: lr = 0.002 sqrt(B / 16), at most 0.004, weight decay 0.05; SGD: lr = 0.01 B / 64, at most 0.02, weight decay 0.0005.
    The square root for adaptive methods follows Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms",
    2022; the linear rule Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    kind: Literal["sgd", "adamw"]
    kind = ("adamw" if total_steps < _LONG_RUN_STEPS else "sgd") if options.optimizer == "auto" else options.optimizer
    automatic = min(0.002 * math.sqrt(batch / 16), 0.004) if kind == "adamw" else min(0.01 * batch / 64, 0.02)
    decay = 0.05 if kind == "adamw" else 5e-4
    return Settings(
        optimizer=kind,
        lr=automatic if options.lr is None else options.lr,
        weight_decay=decay if options.weight_decay is None else options.weight_decay,
        batch=batch,
    )


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a pure function of the step, as a fraction of its peak.

    Rises linearly over `warmup` steps, (t + 1) / warmup, then falls as final + (1 - final) (1 + cos(pi u)) / 2 with u from 0 to 1
    over the rest of `total` steps.
    """

    total: int
    warmup: int
    final: float

    @classmethod
    def of(cls, options: TrainOptions, steps_per_epoch: int) -> Schedule:
        """Warm-up of `warmup_epochs`, but at least 100 steps (200 images make 13 steps an epoch, and three epochs of those
        are too few for the moments of AdamW to settle), and at most a tenth of the run."""
        total = options.epochs * steps_per_epoch
        wanted = max(round(options.warmup_epochs * steps_per_epoch), 100) if options.warmup_epochs else 0
        return cls(total, min(wanted, total // 10), options.lr_final)

    def factor(self, step: int) -> float:
        """The fraction of the peak at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min((step - self.warmup) / max(self.total - self.warmup - 1, 1), 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(model: nn.Module, settings: Settings, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters by (decayed or not) x factor on the learning rate.

    `factors` maps the beginning of a parameter's name to its factor; the longest beginning counts, other parameters have 1.
    Biases and the weights of norms are not decayed: decay would only fight the scale that the data give them. A group has
    `names`, by which a checkpoint finds its moments again, and `factor` on the learning rate.

    Raises:
        OptionError: nothing is left to train, or no trainable parameter begins with one of `factors`.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)}
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and id(parameter) not in norms
        prefix = max((prefix for prefix in factors if name.startswith(prefix)), key=len, default="")
        factor = factors.get(prefix, 1.0)
        used.add(prefix)
        group = groups.setdefault(
            (decayed, factor),
            {"params": [], "names": [], "weight_decay": settings.weight_decay if decayed else 0.0, "factor": factor},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise OptionError("no parameter is left to train; --freeze covers the whole model")
    for prefix in factors:
        if prefix not in used:
            raise OptionError(
                f"--lr-factors and --backbone-lr: a rate for {prefix!r} has nothing to act on, no trainable parameter begins so"
            )
    return [groups[key] for key in sorted(groups)]


def build_optimizer(model: nn.Module, settings: Settings, options: TrainOptions) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over `parameter_groups`."""
    groups = parameter_groups(model, settings, options.rate_factors())
    device = next(model.parameters()).device.type
    # One kernel over all tensors: with some 250 small tensors the separate calls cost more than the arithmetic.
    fused = device in ("cpu", "cuda")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=options.momentum, nesterov=options.momentum > 0, fused=fused)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(options.momentum, 0.999), fused=fused)


def clip_gradients(parameters: Iterable[Tensor], longest: float) -> Tensor:
    """The length of the gradient over all parameters (its 2-norm), which is scaled down to `longest` if that is not 0."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    length = torch.nn.utils.get_total_norm(gradients)
    if longest:
        scale = (longest / (length + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)  # one kernel for all where the device has it
    return length
