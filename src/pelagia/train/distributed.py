"""Several processes, one training: what `torchrun` starts.

Each process takes its share of every batch. Gradients are averaged over processes by DistributedDataParallel; the losses divide
by the mean of their normaliser over processes, so that the average of gradients is the gradient of one process with the whole
batch. Only the first process writes files.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pelagia.errors import OptionError

__all__ = ["Group", "join_group"]

#: How long the others wait while the first process validates and writes.
_PATIENCE = timedelta(hours=3)


@dataclass(frozen=True)
class Group:
    """This process among all: `rank` of `world`, and on its machine `local_rank` of `local_world`."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes, without gradient."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def gather(self, value: Tensor) -> tuple[Tensor, int]:
        """Values [..., N] of all W processes in the order of their ranks, [..., W N], without gradient, and where those of this
        process begin. N must be the same for all."""
        if self.world == 1:
            return value, 0
        found = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(found, value.detach().contiguous())
        return torch.cat(found, dim=-1), self.rank * value.shape[-1]

    def lowest(self, value: int) -> int:
        """The smallest of the processes' integers."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=_wire_device())
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor)

    def share(self, value: Any) -> Any:
        """What the first process passes; the others' argument is ignored."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=_wire_device())
        return box[0]


def _wire_device() -> torch.device:
    """Where tensors must lie for the backend to move them."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def join_group(device: str) -> Group:
    """Join the processes that `torchrun` started (WORLD_SIZE, RANK, LOCAL_RANK in the environment), or stand alone.

    NCCL where each process has a GPU, gloo otherwise.

    Raises:
        OptionError: more processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
        return Group()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", world))
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        if local_world > torch.cuda.device_count():
            raise OptionError(f"{local_world} processes for {torch.cuda.device_count()} GPUs; lower torchrun --nproc-per-node")
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=world, timeout=_PATIENCE)
        # Not at the end of a run: the next one would meet under the same address while this one still leaves it, and hang.
        atexit.register(dist.destroy_process_group)
    return Group(rank, world, local_rank, local_world)
