"""Cells of the grids of a one-stage detector, as tensors; the array side has the same geometry in `pelagia.decode.grids`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagia.errors import ModelError

__all__ = ["Grid", "cell_centres", "expected_distances", "grids_of", "grids_of_count"]


@dataclass(frozen=True, slots=True)
class Grid:
    """`rows` x `columns` cells of `stride` input pixels; its first cell is number `first` over all grids."""

    rows: int
    columns: int
    stride: int
    first: int


def grids_of(height: int, width: int, strides: Sequence[int]) -> tuple[Grid, ...]:
    """The grids of an input of `height` x `width` pixels, in the order of `strides`.

    Raises:
        ModelError: a side is not a positive multiple of every stride.
    """
    if min(height, width) <= 0 or any(side % stride for side in (height, width) for stride in strides):
        raise ModelError(f"the input is {height} x {width} pixels; both sides must be positive multiples of {max(strides)}")
    found: list[Grid] = []
    first = 0
    for stride in strides:
        found.append(Grid(height // stride, width // stride, stride, first))
        first += found[-1].rows * found[-1].columns
    return tuple(found)


def grids_of_count(cells: int, input_size: tuple[int, int], strides: Sequence[int]) -> tuple[Grid, ...]:
    """The grids that have `cells` cells in all, for an input of the aspect ratio of `input_size` (height, width).

    A loss sees raw outputs only; in training with several scales the input is a multiple of the model's own input size.

    Raises:
        ModelError: no input of that aspect ratio has so many cells.
    """
    height, width = input_size
    per_pixel = sum(1 / stride**2 for stride in strides)
    scale = math.sqrt(cells / per_pixel / (height * width))
    size = (round(height * scale), round(width * scale))
    if not any(side % max(strides) for side in size) and min(size) > 0:
        found = grids_of(*size, strides)
        if found[-1].first + found[-1].rows * found[-1].columns == cells:
            return found
    raise ModelError(f"{cells} cells fit no input with the aspect ratio of {height} x {width}, the input size of this model")


def cell_centres(grids: Sequence[Grid], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Centres x, y in input pixels [A, 2] and strides [A] of all cells, grid by grid, row by row."""
    centres, strides = [], []
    for grid in grids:
        x = (torch.arange(grid.columns, device=device, dtype=dtype) + 0.5) * grid.stride
        y = (torch.arange(grid.rows, device=device, dtype=dtype) + 0.5) * grid.stride
        centres.append(torch.stack((x.expand(grid.rows, -1), y[:, None].expand(-1, grid.columns)), dim=2).flatten(0, 1))
        strides.append(torch.full((len(centres[-1]),), float(grid.stride), device=device, dtype=dtype))
    return torch.cat(centres), torch.cat(strides)


def expected_distances(logits: Tensor) -> Tensor:
    """[..., R] logits over the distances 0 to R - 1 -> [...] their expectation (Li et al. 2020, eq. 5)."""
    bins = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return logits.softmax(dim=-1) @ bins
