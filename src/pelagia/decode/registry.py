"""Which decoder turns a model's raw outputs into objects: the name in the model's card -> a pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.types import Prediction
from pelagia.decode.cells import decode_cells
from pelagia.decode.grids import decode_grids
from pelagia.decode.options import DecodeOptions
from pelagia.decode.pixels import decode_pixels
from pelagia.decode.queries import decode_queries
from pelagia.decode.query_masks import decode_masks
from pelagia.decode.regions import decode_regions
from pelagia.errors import ModelError

__all__ = ["DECODERS", "decode"]

_Decoder: TypeAlias = Callable[[Mapping[str, NDArray[Any]], Sequence[Frame], ModelCard, DecodeOptions], Sequence[Prediction]]

#: `ModelCard.decoder` -> the function of that wing.
DECODERS: dict[str, _Decoder] = {
    "cells": decode_cells,
    "grids": decode_grids,
    "masks": decode_masks,
    "pixels": decode_pixels,
    "queries": decode_queries,
    "regions": decode_regions,
}


def decode(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Prediction]:
    """Raw `outputs` of a batch -> one prediction per frame, in pixels of the original images.

    Raises:
        ModelError: the card names a decoder that this version does not have, or the outputs do not have the shape it expects.
    """
    decoder = DECODERS.get(card.decoder)
    if decoder is None:
        known = ", ".join(sorted(DECODERS))
        raise ModelError(f"no decoder is called {card.decoder!r}; this version of Pelagia has: {known}", where=card.name)
    return list(decoder(outputs, frames, card, options))
