"""Losses of dense prediction: a class for every pixel.

Logits come in three forms:

    softmax   [B, C, H, W]  C classes that exclude each other
    binary    [B, 1, H, W]  two classes, the logit is that of label 1
    sigmoid   [B, C, H, W]  C classes that each say yes or no (multi-label)

Truth is labels [B, H, W] with 255 = ignore, for the form `sigmoid` also flags [B, C, H, W] where several classes may hold.
Every sum runs over the pixels that are not ignored. What a loss divides by passes through the mean over processes, and the Lovász
losses sort the pixels of all processes, so that the mean of the processes' gradients is the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pelagia.core.types import IGNORE_INDEX
from pelagia.losses.classify import sigmoid_focal, softmax_focal

__all__ = [
    "ALONE",
    "FORMS",
    "TERMS",
    "Form",
    "Processes",
    "dice_loss",
    "jaccard_slopes",
    "lovasz_loss",
    "membership",
    "pixel_loss",
]

Form: TypeAlias = Literal["softmax", "binary", "sigmoid"]
FORMS: Final = ("softmax", "binary", "sigmoid")
#: Names of losses that can be added: `ce+dice`.
TERMS: Final = ("ce", "dice", "focal", "lovasz")


@dataclass(frozen=True)
class Processes:
    """What a loss needs of the other processes that learn from the same batch; `ALONE` if there are none.

    Args:
        mean: a value -> its mean over all processes, without gradient.
        gather: values [..., N], N the same everywhere -> those of all W processes [..., W N], without gradient, and where this
            process's begin.
    """

    mean: Callable[[Tensor], Tensor]
    gather: Callable[[Tensor], tuple[Tensor, int]]


ALONE: Final = Processes(lambda value: value, lambda value: (value, 0))


def pixel_loss(
    name: str,
    logits: Tensor,
    truth: Tensor,
    form: Form,
    *,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    gamma: float = 2.0,
    across: Processes = ALONE,
) -> Tensor:
    """One of `TERMS` as a scalar, for `truth` [B, H, W] labels or (form `sigmoid`) [B, C, H, W] flags.

    `ce` and `focal` are sum w l / sum w over pixels, or over pixels and classes where the classes are independent: l is the
    cross-entropy, or for `focal` the loss of `losses.classify` with exponent `gamma` (class weights do the work of alpha), w the
    product of the pixel's and the class's weight. `dice` and `lovasz` weigh classes alike by their nature.

    Args:
        class_weights: [C] (form `binary`: of both classes), for the form `sigmoid` also [C, 2], of no and of yes.
        pixel_weights: [B, H, W].
    """
    kept, flags = membership(truth, logits.shape[1], form)
    if name == "dice":
        return dice_loss(_probabilities(logits, form), flags, kept, across)
    if name == "lovasz":
        return lovasz_loss(logits, flags, kept, form, across)
    weights = (kept.to(logits.dtype) if pixel_weights is None else pixel_weights * kept)[:, None]
    if class_weights is not None:
        weights = weights * _class_weights(class_weights, flags, form).to(logits.dtype)
    if form == "softmax":
        labels = torch.where(kept, truth, 0)
        focal = name == "focal"
        losses = softmax_focal(logits, labels, gamma=gamma) if focal else F.cross_entropy(logits, labels, reduction="none")
        losses = losses[:, None]
    elif name == "focal":
        losses = sigmoid_focal(logits, flags, alpha=None, gamma=gamma)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, flags.to(logits.dtype), reduction="none")
    weights = weights.expand_as(losses)
    total = across.mean(weights.sum())
    return (losses * weights).sum() / torch.where(total > 0, total, 1.0)


def membership(truth: Tensor, channels: int, form: Form) -> tuple[Tensor, Tensor]:
    """Which pixels count [B, H, W], and which classes hold there [B, channels, H, W], both bool.

    For the form `binary` the one channel is label 1. Flags [B, C, H, W] are returned as they are, and all their pixels count.
    """
    if truth.ndim == 4:
        return torch.ones_like(truth[:, 0], dtype=torch.bool), truth.bool()
    first = 1 if form == "binary" else 0
    labels = torch.arange(first, first + channels, device=truth.device)
    return truth != IGNORE_INDEX, truth[:, None] == labels[:, None, None]


def _class_weights(given: Tensor, flags: Tensor, form: Form) -> Tensor:
    """[B, 1, H, W] for the form `softmax`, one weight a pixel; else [B, C, H, W] or what broadcasts to it."""
    if form == "softmax":
        return torch.einsum("bchw,c->bhw", flags.to(given.dtype), given)[:, None]
    if form == "binary":
        return torch.where(flags, given[1], given[0])
    if given.ndim == 2:
        return torch.where(flags, given[:, 1, None, None], given[:, 0, None, None])
    return given[:, None, None]


def dice_loss(probabilities: Tensor, flags: Tensor, kept: Tensor, across: Processes = ALONE) -> Tensor:
    """1 - 2 sum p t / (sum p + sum t), sums over the pixels of the batch, the mean over the classes that hold somewhere.

    Milletari et al., "V-Net", 3DV 2016, arXiv:1606.04797, with sums instead of squares below.
    """
    p, t = probabilities * kept[:, None], (flags & kept[:, None]).to(probabilities.dtype)
    both, either = 2 * (p * t).sum(dim=(0, 2, 3)), (p + t).sum(dim=(0, 2, 3))  # [C]
    a, b, held = across.mean(torch.stack((both, either, t.sum(dim=(0, 2, 3)))).detach()).unbind()
    b = torch.where(held > 0, b, 1.0)
    # A quotient of sums over all processes: its expansion to first order has the value and, averaged, the gradient of the whole.
    quotient = a / b + (both - a) / b - (either - b) * a / b**2
    return torch.where(held > 0, 1 - quotient, 0.0 * both).sum() / (held > 0).sum().clamp(min=1)


def lovasz_loss(logits: Tensor, flags: Tensor, kept: Tensor, form: Form, across: Processes = ALONE) -> Tensor:
    """The Lovász extension of the Jaccard loss (Berman et al., "The Lovász-Softmax loss", CVPR 2018, arXiv:1705.08790).

    Errors are |t - p| with p = softmax (eq. 8), averaged over the classes present, or for single logits the hinge
    max(0, 1 - x (2 t - 1)) (eq. 7), averaged over all classes; over all pixels of the images of all processes.
    """
    flat = flags.transpose(0, 1).flatten(1)  # [C, B H W]
    counted = kept.flatten().expand_as(flat)
    if form == "softmax":
        errors = (flat.to(logits.dtype) - logits.softmax(dim=1).transpose(0, 1).flatten(1)).abs()
    else:
        errors = F.relu(1 - logits.transpose(0, 1).flatten(1) * (2 * flat.to(logits.dtype) - 1))
    # The slope of an error is its place among all, so the others' errors are needed, though not their gradients.
    every, first = across.gather(errors.detach())
    held, known = (across.gather(item)[0].bool() for item in ((flat & counted).byte(), counted.contiguous().byte()))
    slopes = jaccard_slopes(every, held, known)[:, first : first + errors.shape[1]]
    classes = (held if form == "softmax" else known).any(dim=1)
    losses = torch.where(counted, errors * slopes, 0.0).sum(dim=1) * (every.shape[1] // errors.shape[1])
    return (losses * classes).sum() / classes.sum().clamp(min=1)


@torch.no_grad()
def jaccard_slopes(errors: Tensor, flags: Tensor, counted: Tensor) -> Tensor:
    """[C, N], the gradient of the Lovász extension of the Jaccard loss with respect to the errors (Berman et al., algorithm 1).

    With the counted errors in descending order and D_k the Jaccard loss 1 - (P - tp) / (P + fp) when the first k are mistaken, of
    which tp are of the class and fp are not, P pixels of the class in all, the slope of the k-th is D_k - D_(k-1).
    """
    # What is not counted comes last, where it changes no slope before it. A stable order makes equal errors reproducible.
    order = torch.where(counted, errors, -1.0).argsort(dim=1, descending=True, stable=True)
    held = (flags & counted).gather(1, order).to(errors.dtype)
    # Counts of up to 2^24 are exact in float32; a batch may hold more pixels.
    held = held.double()
    positives = held.sum(dim=1, keepdim=True)
    missed, wrong = held.cumsum(dim=1), (1 - held).cumsum(dim=1)
    loss = 1 - (positives - missed) / (positives + wrong)
    slopes = torch.diff(loss, dim=1, prepend=loss.new_zeros(len(loss), 1)).to(errors.dtype)
    return torch.zeros_like(errors).scatter_(1, order, slopes)


def _probabilities(logits: Tensor, form: Form) -> Tensor:
    return logits.softmax(dim=1) if form == "softmax" else logits.sigmoid()
