"""Whether a batch fits into memory, found out before the first step."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import torch
from torch import Tensor

from pelagia.errors import TrainingError
from pelagia.models.model import Model
from pelagia.models.targets import MaskCrops, Targets

__all__ = ["available_bytes", "fitting_batch", "step_bytes"]

#: Share of the free memory that a run may plan with; the rest is for the allocator, decoded images and others.
_USABLE = 0.85


def available_bytes() -> int:
    """Memory that this process can still take: what the system calls available, within the limit of the control group.

    2**62 where the system does not tell.
    """
    candidates = [2**62]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = meminfo.read_text().splitlines()
        candidates += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file():
        text = limit.read_text().strip()
        if text.isdigit():
            candidates.append(max(int(text) - int(used.read_text()), 0))
    return min(candidates)


def _targets(model: Model, size: int, side: int, device: torch.device) -> Targets:
    """Twenty objects an image: more than most samples hold, so that assignment is not the part that was forgotten."""
    card = model.card
    count = 20 * size
    corner = torch.linspace(0, side / 2, count)
    boxes = torch.stack([corner, corner, corner + side / 4, corner + side / 3], dim=1)
    angles = torch.zeros(count, 1)
    rotated = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], angles], dim=1)
    windows = boxes.round().long()
    bits = torch.ones(int((windows[:, 2:] - windows[:, :2]).prod(dim=1).sum()), dtype=torch.bool)
    points = max(len(category.keypoints) for category in card.categories)
    middle = torch.cat([rotated[:, :2], torch.full((count, 1), 2.0)], dim=1)
    return Targets(
        batch=torch.arange(size).repeat_interleave(20),
        labels=torch.zeros(count, dtype=torch.int64),
        boxes=boxes,
        size=size,
        oriented=rotated if card.task == "oriented" else None,
        masks=MaskCrops(bits, windows, side, side) if card.task in ("instance", "panoptic") else None,
        keypoints=middle[:, None].expand(count, points, 3) if card.task == "keypoints" else None,
        semantic=torch.zeros(size, side, side, dtype=torch.int64) if card.task == "semantic" else None,
    ).to(device)


def _try(model: Model, batch: int, side: int, device: torch.device, amp: torch.dtype | None) -> int:
    """One forward and backward pass; the bytes that the pass keeps for backward."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dtype = next(model.parameters()).dtype
    images = torch.zeros(batch, 3, side, side, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    targets = _targets(model, batch, side, device)
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast(device.type, dtype=amp, enabled=amp is not None),
    ):
        total = torch.stack(list(model.loss(model(images, targets=targets), targets).values())).sum()
    torch.autograd.backward(total)
    return sum(kept.values())


def step_bytes(model: Model, side: int) -> tuple[int, int]:
    """(fixed, per image) bytes of a training step on the CPU, estimated from passes over one and over two images.

    What a pass keeps for backward grows by the same amount with each image; half as much again is added for gradients in flight.
    Fixed are the gradient, two moments and the average of each weight.
    """
    probe = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        one, two = (_try(probe, size, side, torch.device("cpu"), None) for size in (1, 2))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return 4 * weights, int(1.5 * max(two - one, one // 2, 1))


def _fits_gpu(model: Model, batch: int, side: int, device: torch.device, amp: torch.dtype | None) -> bool:
    probe = copy.deepcopy(model)
    try:
        with torch.random.fork_rng(devices=[device]):
            _try(probe, batch, side, device, amp)
            weights = [torch.zeros_like(p) for p in probe.parameters() for _ in range(3)]  # moments and average
            del weights
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        del probe
        gc.collect()
        torch.cuda.empty_cache()
    return True


def fitting_batch(
    model: Model, side: int, wanted: int, amp: torch.dtype | None = None, *, free_bytes: int | None = None, sharing: int = 1
) -> int:
    """The largest of `wanted`, wanted / 2, wanted / 4, ... for which a step fits.

    A GPU is asked by trying a step; on a CPU, where the system would rather kill the process than say no, the need is estimated
    and compared with `free_bytes` (by default what is available), of which each of `sharing` processes takes its part.

    Raises:
        TrainingError: not even one image fits.
    """
    device = next(model.parameters()).device
    batch = wanted
    if device.type == "cuda":
        while batch >= 1 and not _fits_gpu(model, batch, side, device, amp):
            batch //= 2
    else:
        fixed, image = step_bytes(model, side)
        free = _USABLE * (available_bytes() if free_bytes is None else free_bytes) / sharing
        while batch >= 1 and fixed + image * batch > free:
            batch //= 2
    if batch >= 1:
        return batch
    raise TrainingError(f"not even one image of {side} pixels fits into memory; lower --imgsz or choose a smaller model")
