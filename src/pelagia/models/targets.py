"""The truth of a batch as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pelagia.nn.devices import send

__all__ = ["MaskCrops", "Targets", "neighbours"]

#: Masks that `MaskCrops.shares` holds at full size at a time.
_AT_ONCE = 64
#: Pixels of windows that `MaskCrops.cells` lists at a time.
_PIXELS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class MaskCrops:
    """M binary masks over images of one size, each stored within its own window: a crowded batch would not fit as M bitmaps.

    Args:
        bits: [sum of h w] bool, the windows row by row, one after another.
        windows: [M, 4] int64, x1, y1, x2, y2 in whole pixels of the network's input, inside it; an empty mask has no area.
        height: of the network's input.
        width: of the network's input.
    """

    bits: Tensor
    windows: Tensor
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.windows)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MaskCrops:
        """The same masks on another device."""
        bits, windows = (value.to(device, non_blocking=non_blocking) for value in (self.bits, self.windows))
        return MaskCrops(bits, windows, self.height, self.width)

    @property
    def areas(self) -> Tensor:
        """[M] int64, pixels set."""
        owner, _, _, set_ = self._pixels(torch.arange(len(self), device=self.bits.device))
        return torch.bincount(owner, weights=set_.double(), minlength=len(self)).long()

    def dense(self, rows: Tensor | None = None) -> Tensor:
        """[K, H, W] bool, the masks `rows` [K] (indices, by default all) at the size of the network's input."""
        rows = torch.arange(len(self), device=self.bits.device) if rows is None else rows
        owner, y, x, set_ = self._pixels(rows)
        found = torch.zeros(len(rows), self.height, self.width, dtype=torch.bool, device=self.bits.device)
        found[owner, y, x] = set_
        return found

    def shares(self, stride: int, rows: Tensor | None = None) -> Tensor:
        """[K, H / stride, W / stride] float32, the share of each stride x stride cell that a mask covers.

        `height` and `width` must be multiples of `stride`.
        """
        rows = torch.arange(len(self), device=self.bits.device) if rows is None else rows
        parts = [F.avg_pool2d(self.dense(part)[:, None].float(), stride)[:, 0] for part in torch.split(rows, _AT_ONCE)]
        if not parts or not len(rows):
            return torch.zeros(0, self.height // stride, self.width // stride, device=self.bits.device)
        return torch.cat(parts)

    def cells(self, stride: int, rows: Tensor, known: MaskCrops | None = None) -> tuple[Tensor, Tensor]:
        """As `shares` of the masks `rows` [K], within their windows only: memory for what is there, not for K images.

        Returns shares [Q] float32, window after window, row by row, and the windows [K, 4] x1, y1, x2, y2 in cells, widened to
        whole ones. With `known`, the same masks in the processor's memory, where `rows` and the windows returned lie too, nothing
        waits for the device.
        """
        every = (self if known is None else known).windows
        windows, starts = every[rows], _starts((every[:, 2:] - every[:, :2]).prod(1))[rows]
        low = torch.div(windows[:, :2], stride, rounding_mode="floor")
        high = -torch.div(-windows[:, 2:], stride, rounding_mode="floor")
        across = high[:, 0] - low[:, 0]
        sizes, width = across * (high[:, 1] - low[:, 1]), windows[:, 2] - windows[:, 0]
        pixels = (windows[:, 2:] - windows[:, :2]).prod(1)
        x, y = (windows[:, :2] - low * stride).unbind(1)  # from the first cell
        first = _starts(sizes)
        counts = self.bits.new_zeros(int(sizes.sum()), dtype=torch.int32)
        for part in _portions(pixels):
            within = _starts(pixels[part])
            table = torch.stack(
                (starts[part] - within, within, width[part], x[part], y[part], across[part], first[part], pixels[part])
            )
            start, within, wide, left, top, cells, cell, repeats = send(table, self.bits.device)
            count = int(pixels[part].sum())
            owner = torch.arange(len(repeats), device=repeats.device).repeat_interleave(repeats, output_size=count)
            number = torch.arange(count, device=repeats.device)
            bits = self.bits[start[owner] + number].int()
            number = number - within[owner]
            row = torch.div(number, wide[owner], rounding_mode="floor")
            column = torch.div(number - row * wide[owner] + left[owner], stride, rounding_mode="floor")
            row = torch.div(row + top[owner], stride, rounding_mode="floor")
            counts.index_add_(0, cell[owner] + row * cells[owner] + column, bits)
        return counts.float() / stride**2, torch.cat((low, high), dim=1)

    def at(self, points: Tensor, rows: Tensor) -> Tensor:
        """[K, P] in [0, 1], the masks `rows` [K] at points [K or 1, P, 2]: see `neighbours`; no bitmap is made."""
        x1, y1, x2, y2 = (side[:, None] for side in self.windows[rows].unbind(1))  # [K, 1]
        sizes = (self.windows[:, 2:] - self.windows[:, :2]).prod(1)
        starts = _starts(sizes)[rows, None]
        total = points.new_zeros(len(rows), points.shape[1])
        if not len(self.bits):
            return total
        for x, y, weight, within in neighbours(points, self.height, self.width):
            inside = within & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
            place = torch.where(inside, starts + (y - y1) * (x2 - x1) + x - x1, 0)
            total += weight * (inside & self.bits[place])
        return total

    def paint(self, batch: Tensor, images: int) -> Tensor:
        """[images, H, W] int64, 1 + the row of the mask that covers each pixel, 0 where none does; `batch` [M] tells its image.

        Of several masks the smallest covers, of equal ones the last.
        """
        rows = torch.arange(len(self), device=self.bits.device)
        order = torch.argsort(self.areas, descending=True, stable=True)
        rank = torch.zeros_like(rows)
        rank[order] = rows + 1
        owner, y, x, set_ = self._pixels(rows)
        place = ((batch[owner] * self.height + y) * self.width + x)[set_]
        top = torch.zeros(images * self.height * self.width, dtype=torch.int64, device=self.bits.device)
        top.scatter_reduce_(0, place, rank[owner[set_]], "amax")
        found = torch.cat((order.new_zeros(1), order + 1))[top]
        return found.view(images, self.height, self.width)

    def _pixels(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position in `rows`, row, column and value of every pixel of the windows of `rows`."""
        x1, y1, x2, y2 = self.windows.unbind(1)
        sizes = (x2 - x1) * (y2 - y1)
        starts = _starts(sizes)[rows]
        sizes = sizes[rows]
        owner = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), sizes)
        within = torch.arange(len(owner), device=rows.device) - _starts(sizes)[owner]
        across = (x2 - x1)[rows][owner]
        down = torch.div(within, across, rounding_mode="floor")
        return owner, y1[rows][owner] + down, x1[rows][owner] + within - down * across, self.bits[starts[owner] + within]


def _starts(sizes: Tensor) -> Tensor:
    """Where each of several parts begins that lie one after another."""
    return sizes.cumsum(0) - sizes


def _portions(pixels: Tensor) -> list[slice]:
    """Consecutive parts of masks whose windows, of `pixels` each, have some two million together."""
    portion = torch.div(_starts(pixels), _PIXELS_AT_ONCE, rounding_mode="floor")
    ends = torch.unique_consecutive(portion, return_counts=True)[1].cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


def neighbours(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The four pixels around points [..., 2], for linear interpolation between pixel centres.

    Points are x, y in [0, 1] over an image of `height` x `width`. Yields column and row [...] int64 (moved inside the image), the
    weight [...], and whether the pixel was inside; what lies outside is 0.
    """
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    for right in (0, 1):
        for down in (0, 1):
            column, row = (left + right).long(), (top + down).long()
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            yield column.clamp(0, width - 1), row.clamp(0, height - 1), weight, inside


@dataclass
class Targets:
    """The truth of a batch in network-input pixels, flat: M objects over B images.

    Args:
        batch: [M] int64, which image an object lies in; ascending.
        labels: [M] int64, class indices.
        boxes: [M, 4] float, x1, y1, x2, y2.
        oriented: [M, 5] float, cx, cy, w, h, angle, or None.
        masks: of the M objects, for the tasks `instance` and `panoptic` (there every segment of things and of stuff is an object,
            at most one per stuff class and image), else None.
        keypoints: [M, K, 3] float, x, y and 0 = not labelled, 1 = hidden, 2 = visible, or None.
        semantic: [B, H, W] int64 with 255 = ignore, for the task `semantic`, or None.
        ignore: [M] bool, regions where a model must neither be rewarded nor punished (crowd and ignore regions of the data).
        size: B, the number of images (an image may have no object).
        host: the same truth in the processor's memory, where this one lies on a device and came from there.
    """

    batch: Tensor
    labels: Tensor
    boxes: Tensor
    size: int
    oriented: Tensor | None = None
    masks: MaskCrops | None = None
    keypoints: Tensor | None = None
    semantic: Tensor | None = None
    ignore: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    host: Targets | None = field(default=None, init=False, repr=False, compare=False)  # `replace` must not keep it

    def __post_init__(self) -> None:
        if len(self.ignore) != len(self.labels):
            self.ignore = torch.zeros(len(self.labels), dtype=torch.bool, device=self.labels.device)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Targets:
        """The same truth on another device."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in values.items()
            if isinstance(value, Tensor | MaskCrops)
        }
        found = Targets(**{**values, **moved})
        if found.labels.device.type != "cpu":
            found.host = self if self.labels.device.type == "cpu" else self.host
        return found

    def on_host(self) -> Targets:
        """The same truth in the processor's memory: itself, what it was copied from, or (waiting for the device) a copy."""
        if self.host is None:
            if self.labels.device.type == "cpu":
                return self
            self.host = self.to("cpu")
        return self.host
