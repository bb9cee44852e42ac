"""What dense models share: options of loss and decoding, the truth of a batch as a label map, the terms of the loss.

The task `semantic` learns the classes of the data. The task `instance` learns the ground and the classes of objects from instance
masks (class 0 is the ground, class c + 1 is category c); where two objects touch, the pixels along their seam count as ground, so
that each object stays a component of its own, and the weights of the U-Net paper stress the ground between neighbours.
`pelagia.decode.pixels` states how objects are found again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from pelagia.core.card import ModelCard
from pelagia.core.types import IGNORE_INDEX, Category, Task, ground_label
from pelagia.errors import ModelError, OptionError
from pelagia.losses.borders import border_weights, components
from pelagia.losses.pixels import ALONE, FORMS, TERMS, Form, Processes, pixel_loss
from pelagia.models.targets import Targets
from pelagia.nn.backbones import TimmBackbone, open_residuals

__all__ = ["BALANCED", "DenseOptions", "DenseTruth", "channels", "dense_card", "dense_loss", "dense_truth", "dilated"]

#: Classes of a label map of 8 bits beside 255.
_MOST_CLASSES: Final = 255
#: The value of `class_weights` that stands for numbers which only training data give.
BALANCED: Final = "balanced"


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """Options that every dense model has.

    Args:
        loss: terms of the loss joined by `+`: ce, dice, focal, lovasz.
        form: softmax (classes exclude each other), binary (one logit for two classes) or sigmoid (each class says yes or no).
        class_weights: of the cross-entropy and focal terms: empty for 1, `balanced` (each class weighs the same in total over
            the training images, which training counts once and replaces by numbers), or one number per class, the ground first
            for the task instance, joined by commas; for the form sigmoid also two per class, of no and of yes.
        gamma: exponent of the focal term.
        border: where the ground between objects weighs more: auto (task instance), always, never. In the task semantic the
            class called background, else class 0, is the ground, and the components of the other classes are the objects.
        border_weight: w0 of `losses.borders`.
        border_sigma: in pixels of the input.
        separate: how the task instance divides what is one class: components, or watershed of the distance to the ground.
        min_area: objects of fewer pixels of the original are left out.
    """

    loss: str = "ce"
    form: str = "softmax"
    class_weights: str = ""
    gamma: float = 2.0
    border: str = "auto"
    border_weight: float = 10.0
    border_sigma: float = 5.0
    separate: str = "components"
    min_area: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("form", FORMS),
            ("border", ("auto", "always", "never")),
            ("separate", ("components", "watershed")),
        ):
            if getattr(self, name) not in allowed:
                raise OptionError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        unknown = [term for term in self.terms if term not in TERMS]
        if unknown or len(set(self.terms)) < len(self.terms):
            raise OptionError(f"loss must be {', '.join(TERMS)} or a sum such as ce+dice, got {self.loss!r}")
        if self.gamma != 0 and self.gamma < 1:
            raise OptionError(f"gamma must be 0 or at least 1 (its gradient is infinite between), got {self.gamma}")
        if self.border_weight < 0 or self.border_sigma <= 0 or self.min_area < 0:
            raise OptionError("border_weight and min_area must be at least 0, border_sigma positive")
        if self.class_weights not in ("", BALANCED):
            try:
                values = [float(value) for value in self.class_weights.split(",")]
            except ValueError as error:
                raise OptionError(
                    f"class_weights must be empty, balanced or numbers joined by commas, got {self.class_weights!r}"
                ) from error
            if not all(0 <= value < float("inf") for value in values):
                raise OptionError(f"class_weights must be finite and at least 0, got {self.class_weights!r}")

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms of the loss."""
        return tuple(self.loss.split("+"))

    def weights(self, classes: int, device: torch.device) -> Tensor | None:
        """What `losses.pixels.pixel_loss` takes.

        Raises:
            OptionError: they are `balanced`, and nobody has counted.
        """
        if self.class_weights == BALANCED:
            raise OptionError("class_weights=balanced must be counted over the training images, as `train.balance` does")
        if not self.class_weights:
            return None
        values = torch.tensor([float(value) for value in self.class_weights.split(",")], device=device)
        return values.view(classes, 2) if self.form == "sigmoid" and len(values) == 2 * classes else values


def channels(name: str, task: Task, categories: tuple[Category, ...], options: DenseOptions) -> int:
    """Number of logits per pixel.

    Raises:
        ModelError: there are too many classes, or too few for the form.
        OptionError: the number of class weights is another.
    """
    count = len(categories)
    if count == 0:
        raise ModelError(f"{name} needs at least one class")
    classes = count + 1 if task == "instance" and options.form != "sigmoid" else count
    if classes > _MOST_CLASSES:
        raise ModelError(f"a label map holds at most {_MOST_CLASSES} classes, got {classes}", where=name)
    if options.form == "softmax" and classes < 2:
        raise ModelError("with a single class there is nothing to tell apart; name a second, such as the ground", where=name)
    if options.form == "binary" and classes != 2:
        raise ModelError(f"the form binary tells two classes apart, got {classes}", where=name)
    given = options.class_weights.split(",") if options.class_weights not in ("", BALANCED) else []
    if given and len(given) != classes and (options.form != "sigmoid" or len(given) != 2 * classes):
        raise OptionError(f"class_weights has {len(given)} numbers for {classes} classes")
    return 1 if options.form == "binary" else classes


def dense_card(
    name: str,
    task: Task,
    categories: tuple[Category, ...],
    input_size: tuple[int, int],
    options: DenseOptions,
    *,
    stride: int = 32,
    margin: int = 0,
) -> ModelCard:
    """The card of a dense model, whose outputs `pelagia.decode.pixels` reads."""
    return ModelCard(
        name=name,
        task=task,
        decoder="pixels",
        categories=categories,
        input_size=input_size,
        stride=stride,
        margin=margin,
        options=asdict(options),
    )


def dilated(name: str) -> TimmBackbone:
    """Stages 3 and 4 of the network `timm:NAME`, dilated to stride 8 in place of 16 and 32.

    Raises:
        OptionError: timm has no such network, or it cannot be dilated.
    """
    backbone = TimmBackbone(name.removeprefix("timm:"), (16, 32), output_stride=8)
    open_residuals(backbone)
    return backbone


@dataclass(frozen=True)
class DenseTruth:
    """Labels [B, H, W] int64 of the pixels that the model answers for, 255 = ignore (or flags [B, C, H, W]), and their weights
    [B, H, W] or None."""

    labels: Tensor
    weights: Tensor | None


def dense_truth(
    targets: Targets, task: Task, categories: Sequence[Category], options: DenseOptions, margin: int = 0
) -> DenseTruth:
    """The truth of a batch for a model whose answers leave out `margin` pixels along each border of the input.

    Weights of borders are computed here, on the CPU, after augmentation: prepared with the data they would have to be warped with
    the image, and every format of labels would have to know one loss. They cost a distance transform of each object's window.

    Raises:
        ModelError: the targets hold no label map (semantic) or no masks (instance).
    """
    if task == "semantic":
        if targets.semantic is None:
            raise ModelError("the task semantic needs a label map in the targets")
        labels, ids = targets.semantic, None
    else:
        labels, ids = _instance_labels(targets)
    weights = None
    if options.border_weight and (options.border == "always" or (options.border == "auto" and task == "instance")):
        maps = (labels if ids is None else torch.where(labels == IGNORE_INDEX, -1, ids)).cpu().numpy()
        numbered = maps if ids is not None else [components(item, ground_label(categories)) for item in maps]
        extra = [border_weights(item, weight=options.border_weight, sigma=options.border_sigma) for item in numbered]
        weights = torch.stack([torch.from_numpy(item) for item in extra]).to(labels.device).add_(1.0)
    if task == "instance" and options.form == "sigmoid":
        # The ground is no class: label c + 1 becomes c, the ground the label of no channel.
        labels = torch.where(labels == IGNORE_INDEX, labels, torch.where(labels == 0, len(categories), labels - 1))
    inner = (..., slice(margin, labels.shape[-2] - margin), slice(margin, labels.shape[-1] - margin))
    return DenseTruth(labels[inner], None if weights is None else weights[inner])


def _instance_labels(targets: Targets) -> tuple[Tensor, Tensor]:
    """Labels [B, H, W] with 0 = ground, c + 1 = category c, 255 = ignore, and the numbers of the objects, 0 where none is."""
    if targets.masks is None:
        raise ModelError("the task instance needs masks in the targets")
    rows = targets.masks.paint(targets.batch, targets.size)
    values = torch.where(targets.ignore, IGNORE_INDEX, targets.labels + 1)
    labels = torch.cat((values.new_zeros(1), values))[rows]
    # Numbers are below 2^24, so float32 holds them.
    numbers = rows.float()
    highest = F.max_pool2d(numbers[:, None], 3, 1, 1)[:, 0]
    lowest = -F.max_pool2d(torch.where(numbers > 0, -numbers, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    seam = (rows > 0) & (highest != lowest) & (labels != IGNORE_INDEX)
    return labels.masked_fill(seam, 0), rows.masked_fill(seam, 0)


def dense_loss(
    outputs: Mapping[str, Tensor],
    truth: DenseTruth,
    options: DenseOptions,
    *,
    aux_weight: float = 0.0,
    across: Processes = ALONE,
) -> dict[str, Tensor]:
    """The terms of `options.loss` on `logits`, and `aux`, their sum on the auxiliary logits times `aux_weight`.

    Logits are resampled to the size of the truth, bilinearly, corners not aligned.
    """
    form = cast(Form, options.form)

    def terms(logits: Tensor) -> dict[str, Tensor]:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.shape[-2:] != truth.labels.shape[-2:]:
            logits = F.interpolate(logits, size=truth.labels.shape[-2:], mode="bilinear", align_corners=False)
        return {
            name: pixel_loss(
                name,
                logits,
                truth.labels,
                form,
                class_weights=options.weights(logits.shape[1], logits.device),
                pixel_weights=truth.weights,
                gamma=options.gamma,
                across=across,
            )
            for name in options.terms
        }

    found = terms(outputs["logits"])
    if "aux" in outputs:
        found["aux"] = aux_weight * torch.stack(list(terms(outputs["aux"]).values())).sum()
    return found
