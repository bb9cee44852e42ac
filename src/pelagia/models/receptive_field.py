"""How far a network looks: found by experiment, exact, for any architecture.

A convolution or a pooling passes NaN on to whatever depends on it, whatever the weights are. With NaN beyond a line in the input
the cells of the answer that are NaN are those that look over the line, and the strip of them along it is the halo: a tile cut
there answers as the whole image does, but for its halo. Lines are tried at multiples of the stride only, since tiles begin there.

Zero padding, poolings and resampling of any alignment are covered, and a network that looks everywhere (global pooling,
attention) has no clean cell. The tiles that this promises are then run and compared with the whole, so that what depends on the
size of the image in another way is found out too.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Final

import torch
from torch import Tensor, nn

from pelagia.errors import PelagiaError
from pelagia.models.model import Model

__all__ = ["receptive_field"]

#: Sides of the tiles that are tried, in strides beyond the smallest side that the network takes.
_SIDES: Final = (8, 16, 32)

#: So many sizes, a stride apart, are tried in search of the smallest.
_TRIES: Final = 4

#: What a network raises that does not take a size, or does not answer with a map of logits.
_REFUSALS: Final = (PelagiaError, RuntimeError, ValueError, AssertionError, TypeError)

#: Largest |tile - whole| that counts as equal, as a share of the largest |whole|: float32 sums in another order.
_EQUAL: Final = 1e-4


def receptive_field(model: Model) -> dict[str, Any]:
    """What prediction on tiles needs to know of a network that answers with `logits` [B, K, h, w]:

        local   whether a tile answers as the whole image does, except near the borders at which it was cut
        halo    so many pixels of the input along such a border may differ, counted from where the answer begins, which is
                `ModelCard.margin` pixels from the border
        cell    pixels of the input per cell of the answer

    Without the last two where `local` is false. It takes about as long as a few images of the input's size.
    """
    probe = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    halo, cell, least = 0, 1, _least(probe)
    for axis in (2, 3) if least else ():
        found = _along(probe, axis, least)
        if found is None:
            return {"local": False}
        halo, cell = max(halo, found[0]), max(cell, found[1])
    return {"local": True, "halo": halo, "cell": cell} if least else {"local": False}


def _least(probe: Model) -> list[int]:
    """The smallest height and width that the network takes, empty where it takes none but its own."""
    card = probe.card
    sides = [2 * card.margin + (side - 2 * card.margin - 1) % card.stride + 1 for side in card.input_size]
    for more in range(_TRIES):
        least = [side + more * card.stride for side in sides]
        try:
            _logits(probe, torch.zeros(1, 3, *least))
        except _REFUSALS:
            continue
        return least
    return []


def _along(probe: Model, axis: int, least: list[int]) -> tuple[int, int] | None:
    """Halo and cell along one axis, None where the network is not local along it."""
    card = probe.card
    start = least[axis - 2]
    # A dilated kernel skips pixels; what lies beyond a line must be wider than that to be seen by all who look there.
    dilation = max((_dilation(module) for module in probe.modules()), default=1)
    for steps in sorted({max(steps, 2 * math.ceil(dilation / 2)) for steps in _SIDES}):
        # The whole is longer by an odd number of strides: windows of attention, whose grid is an even number, do not fit by luck.
        tile, beyond = start + steps * card.stride, (steps + 1) * card.stride
        shape = [1, 3, *least]
        shape[axis] = tile + beyond
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        try:
            found = _halo(probe, image, axis, tile, beyond)
        except _REFUSALS:
            return None
        if found is not None and found[0] < (tile - 2 * card.margin) and found[0] <= beyond:
            return found if _agrees(probe, image, axis, tile, found) else None
    return None


def _dilation(module: nn.Module) -> int:
    found = getattr(module, "dilation", 1)
    return max(found) if isinstance(found, tuple) else found if isinstance(found, int) else 1


def _halo(probe: Model, image: Tensor, axis: int, tile: int, beyond: int) -> tuple[int, int] | None:
    """Widest strip of NaN in tiles at the beginning and at the end of `image`, with NaN in what they do not show; the cell."""
    images = image.repeat(2, 1, 1, 1)
    images[0].narrow(axis - 1, tile, beyond).fill_(torch.nan)
    images[1].narrow(axis - 1, 0, beyond).fill_(torch.nan)
    logits = _logits(probe, images)
    inner = image.shape[axis] - 2 * probe.card.margin
    count = logits.shape[axis]
    if logits.ndim != 4 or inner % count or beyond % (inner // count):
        return None
    cell = inner // count
    clean = torch.isfinite(logits).movedim(axis, 1).flatten(2).all(dim=2)  # [2, count]
    length = (tile - 2 * probe.card.margin) // cell  # cells of a tile
    first, second = clean[0, :length].flip(0), clean[1, count - length :]
    strips = [int((~side).nonzero().max()) + 1 if not side.all() else 0 for side in (first, second)]
    return max(strips) * cell, cell


def _agrees(probe: Model, image: Tensor, axis: int, tile: int, found: tuple[int, int]) -> bool:
    """Whether tiles at both ends of `image` answer as the whole does, except in their halo; and at one stride less for both, lest
    what depends on the size does so alike by luck."""
    halo, cell = found[0] // found[1], found[1]
    for less in (0, probe.card.stride):
        side, length = tile - less, image.shape[axis] - less
        whole = _logits(probe, image.narrow(axis, 0, length))
        for offset in (0, length - side):
            part = _logits(probe, image.narrow(axis, offset, side))
            kept = part.shape[axis] - halo
            begin = 0 if offset == 0 else halo
            if kept > 0:
                apart = part.narrow(axis, begin, kept) - whole.narrow(axis, offset // cell + begin, kept)
                if not bool(apart.abs().max() <= _EQUAL * whole.abs().max()):  # NaN too
                    return False
    return True


def _logits(probe: Model, images: Tensor) -> Tensor:
    with torch.inference_mode():
        outputs = probe(images)
    if "logits" not in outputs or outputs["logits"].ndim != 4:
        raise ValueError("no map of logits")
    logits: Tensor = outputs["logits"]
    return logits
