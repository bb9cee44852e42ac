"""Looking up what a network answered, before it is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.errors import ModelError

__all__ = ["check_shapes", "finite_output", "output"]


def output(outputs: Mapping[str, NDArray[Any]], name: str, card: ModelCard) -> NDArray[Any]:
    """The raw output `name`.

    Raises:
        ModelError: there is none of this name.
    """
    if name not in outputs:
        raise ModelError(f"the model has no output {name!r}, only {', '.join(outputs) or 'none'}", where=card.name)
    return outputs[name]


def finite_output(outputs: Mapping[str, NDArray[Any]], name: str, card: ModelCard) -> NDArray[Any]:
    """The raw output `name`.

    Raises:
        ModelError: there is none of this name, or it holds NaN.
    """
    found = output(outputs, name, card)
    if np.isnan(found).any():
        raise ModelError(f"the network's {name} hold NaN; its weights or its input are broken", where=card.name)
    return found


def check_shapes(
    outputs: Mapping[str, NDArray[Any]], batch: int, expected: Mapping[str, tuple[str | int, ...]], card: ModelCard
) -> None:
    """Every expected output is there with its shape behind the batch axis; a letter stands for one free size wherever it occurs.

    Raises:
        ModelError: an output is missing or has another shape.
    """
    free: dict[str, int] = {}
    for name, wanted in expected.items():
        shape = output(outputs, name, card).shape
        fits = len(shape) == len(wanted) + 1 and shape[0] == batch
        for side, found in zip(wanted, shape[1:], strict=False):
            fits = fits and found == (free.setdefault(side, found) if isinstance(side, str) else side)
        if not fits:
            height, width = card.input_size
            known = "".join(f", {letter} = {size}" for letter, size in free.items() if letter in wanted)
            raise ModelError(
                f"{name!r} has shape {list(shape)}, expected [{', '.join(map(str, (batch, *wanted)))}]{known} for a batch of "
                f"{batch}, {len(card.categories)} classes and an input of {height} x {width}",
                where=card.name,
            )
