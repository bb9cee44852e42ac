"""Choosing, where the tensors lie, the part of a network's answers that decoding can use, so that the rest need not travel."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pelagia.core.card import ModelCard
from pelagia.decode import DecodeOptions
from pelagia.decode.grids import thresholds

__all__ = ["likely"]


def likely(outputs: dict[str, Tensor], card: ModelCard, options: DecodeOptions) -> dict[str, Tensor]:
    """`outputs` without the cells of a grid that can be no candidate: `decode` finds in them what it finds in `outputs`.

    As many cells of each image stay, n, as have a score that reaches the lowest threshold of a class (or is NaN, which decoding
    reports) in the image that has most of them; they keep their order, and `cells` [B, n] tells which ones they are. Outputs of
    other decoders, and those of which no cell can go, come back as they are. Asks the device for one number.
    """
    if card.decoder != "grids":
        return outputs
    scores = outputs["scores"]  # [B, C, A]
    # The tensors hold float32, in which the threshold may be rounded up: the next number below loses no candidate.
    lowest = float(np.nextafter(np.float32(thresholds(card, options).min()), np.float32(-np.inf)))
    best = scores.amax(dim=1).float()  # [B, A]
    count = int((~(best < lowest)).sum(dim=1).amax())
    if count == best.shape[1]:
        return outputs
    cells = best.topk(count, dim=1, sorted=False).indices.sort(dim=1).values  # [B, n]; NaN counts as the largest number
    chosen = {name: value for name, value in outputs.items() if value.shape[2:] == best.shape[1:]}
    rows = {name: value.gather(2, cells[:, None].expand(-1, value.shape[1], -1)) for name, value in chosen.items()}
    return {**outputs, **rows, "cells": cells}
