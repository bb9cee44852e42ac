"""Assignment by overlap: which object an anchor or a proposal learns, and how few of them are learnt at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from pelagia.core import boxes

__all__ = ["BACKGROUND", "NEITHER", "match_by_overlap", "sample_balanced"]

#: In place of an object: overlaps none enough.
BACKGROUND = -1
#: In place of an object: is left out of the loss.
NEITHER = -2

#: Overlaps held in memory at a time.
_AT_ONCE = 1 << 24


def match_by_overlap(
    candidates: Tensor, truth: Tensor, *, low: float, high: float, every_object: bool = False, ignored: Tensor | None = None
) -> Tensor:
    """[N] int64: for each of the `candidates` [N, 4] the object of `truth` [M, 4] that it overlaps most, or a negative number.

    With o the largest IoU: o >= `high` gives the object, o < `low` `BACKGROUND`, `NEITHER` in between (Ren et al., 2016, section
    3.1.2). `every_object`: a candidate that overlaps an object more than any other candidate does, ties included, gets the object
    that it itself overlaps most, whatever o > 0. Background with at least half of its area in one of the boxes `ignored` [I, 4]
    becomes `NEITHER`.
    """
    count = len(candidates)
    value = candidates.new_full((count,), -1.0)
    index = torch.zeros(count, dtype=torch.long, device=candidates.device)
    forced = torch.zeros(count, dtype=torch.bool, device=candidates.device)
    step = max(_AT_ONCE // max(count, 1), 1)
    for start in range(0, len(truth) if count else 0, step):
        overlap = boxes.iou(truth[start : start + step], candidates)  # [m, N]
        best, which = overlap.max(dim=0)
        better = best > value
        value, index = torch.where(better, best, value), torch.where(better, which + start, index)
        if every_object:
            most = overlap.amax(dim=1, keepdim=True)
            forced |= ((overlap == most) & (most > 0)).any(dim=0)
    matched = torch.where(value >= high, index, NEITHER)
    matched = torch.where(value < low, BACKGROUND, matched)
    matched = torch.where(forced, index, matched)
    if ignored is not None and len(ignored):
        covered = boxes.intersection(candidates, ignored).amax(dim=1) >= 0.5 * boxes.area(candidates)
        matched = torch.where((matched == BACKGROUND) & covered, NEITHER, matched)
    return matched


def sample_balanced(matched: Tensor, count: int, fraction: float) -> Tensor:
    """Ascending indices [S] of at most `count` places of `matched` [N], at most `fraction` of them with an object.

    Drawn at random without replacement from torch's global generator; where objects are few, background fills up. `NEITHER` is
    never drawn.
    """
    positive, negative = torch.nonzero(matched >= 0)[:, 0], torch.nonzero(matched == BACKGROUND)[:, 0]
    positive = _draw(positive, int(count * fraction))
    negative = _draw(negative, count - len(positive))
    return torch.cat((positive, negative)).sort().values


def _draw(places: Tensor, most: int) -> Tensor:
    # On the CPU, so that a seed draws alike on every device.
    return places[torch.randperm(len(places))[:most].to(places.device)]
