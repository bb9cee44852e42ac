"""Looking up what a network answered, before it is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.errors import ModelError

__all__ = ["finite_output"]


def finite_output(outputs: Mapping[str, NDArray[Any]], name: str, card: ModelCard) -> NDArray[Any]:
    """The raw output `name`.

    Raises:
        ModelError: there is none of this name, or it holds NaN.
    """
    if name not in outputs:
        raise ModelError(f"the model has no output {name!r}, only {', '.join(outputs) or 'none'}", where=card.name)
    if np.isnan(outputs[name]).any():
        raise ModelError(f"the network's {name} hold NaN; its weights or its input are broken", where=card.name)
    return outputs[name]
