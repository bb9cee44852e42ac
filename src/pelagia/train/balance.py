"""The option `class_weights=balanced` of dense models: numbers counted over the training images.

Weights by the pixels of a batch would make the same mistake cost another amount in each batch, and a class that fills a corner of
one image in a thousand would count for nothing or for everything. They are therefore counted once, before the first step, and
stand in the card as numbers from then on: a run that goes on, and whoever reads the checkpoint, has the same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pelagia.data.dataset import Dataset
from pelagia.data.sample import Sample
from pelagia.losses.pixels import Form, membership
from pelagia.models.model import Model
from pelagia.models.pixels.dense import BALANCED, DenseOptions, dense_truth
from pelagia.train.batch import collate

__all__ = ["balance", "balanced_weights", "count_pixels"]


def balance(model: Model, train: Dataset, known: str | None = None) -> str | None:
    """Replace `balanced` in the options of a dense `model` by the numbers it stands for, or by the `known` ones of a run that
    goes on; returns them, None where nothing asks for them."""
    options = getattr(model, "options", None)
    if not isinstance(options, DenseOptions) or options.class_weights != BALANCED:
        return None
    text = known or ",".join(f"{value:.6g}" for value in balanced_weights(count_pixels(model, options, train)).flatten().tolist())
    model.options = replace(options, class_weights=text)  # type: ignore[assignment]  # of a module: neither tensor nor module
    model.card = replace(model.card, options={**model.card.options, "class_weights": text})
    return text


def count_pixels(model: Model, options: DenseOptions, train: Dataset) -> Tensor:
    """Pixels [C] of each class in the truth that the loss would compare with, for the form `sigmoid` [C, 2] of no and of yes.

    One image after the other at its own size; ignored pixels count nowhere. Images themselves are not read.
    """
    categories = len(train.categories)
    plain = replace(options, border="never")  # weights of pixels are not wanted here
    form: Form = "sigmoid" if options.form == "sigmoid" else "softmax"  # the form binary has two classes too
    classes = categories + 1 if train.task == "instance" and form == "softmax" else categories
    counts = torch.zeros(classes, 2, dtype=torch.float64)
    for index in range(len(train)):
        width, height = map(int, train.sizes[index])
        blank = np.zeros((height, width, 1), dtype=np.uint8)
        semantic = train.semantic(index) if train.task == "semantic" else None
        truth = train.truth(index, masks=train.task == "instance")
        targets = collate([Sample(blank, truth, train.names[index], index, semantic)]).targets
        kept, flags = membership(dense_truth(targets, model.card.task, train.categories, plain).labels, classes, form)
        yes = (flags & kept[:, None]).sum(dim=(0, 2, 3)).double()
        counts += torch.stack((kept.sum() - yes, yes), dim=1)
    return counts if form == "sigmoid" else counts[:, 1]


def balanced_weights(counts: Tensor) -> Tensor:
    """[C] pixels of each class -> [C] weights n / (k n_c), n pixels in all and k classes present: each class present then weighs
    the same in total. An absent class gets 0. Of [C, 2] each row is taken by itself."""
    present = counts > 0
    weights = counts.sum(dim=-1, keepdim=True) / (present.sum(dim=-1, keepdim=True).clamp(min=1) * counts.clamp(min=1))
    return torch.where(present, weights, 0.0)
