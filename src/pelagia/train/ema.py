"""The exponential moving average of a model's weights (Polyak and Juditsky, 1992), which is what is validated and kept."""

from __future__ import annotations

import copy

import torch

from pelagia.models.model import Model

__all__ = ["Average"]


class Average:
    """m <- d_t m + (1 - d_t) w after step t, for parameters and floating buffers; integer buffers are copied.

    d_t = min(decay, (1 + t) / (10 + t)): the average reaches back over about a ninth of the steps so far, so that a run of 400
    steps is averaged as sensibly as one of 400,000. A decay of 0 makes it a copy of the weights.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """d_t after `step` steps, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        # `keep_vars`: detaching a thousand tensors would take a fifth of the time.
        mine, theirs = (part.state_dict(keep_vars=True).values() for part in (self.model, model))
        pairs = list(zip(mine, theirs, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        # One kernel over all tensors where the device has it; torch.optim.swa_utils does the same.
        torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], 1 - self.decay_at(step))
        for old, new in counts:
            old.copy_(new)
