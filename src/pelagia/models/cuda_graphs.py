"""A network recorded once as a CUDA graph and replayed: a small one spends most of its time on starting its kernels one by one.

A graph is a fixed list of kernels over fixed memory, so there is one for each shape of the input, and what runs must ask nothing
of the processor on its way: no suppression between stages, no size that depends on values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Replayed"]

_Network: TypeAlias = Callable[[Tensor], dict[str, Tensor]]

#: Shapes that are recorded; images of further ones go through the network as usual.
_MOST = 16


@dataclass(frozen=True)
class _Recorded:
    """A graph with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    outputs: dict[str, Tensor]


class Replayed:
    """`network`, from the second time that images of a shape come on by replaying its kernels; the same numbers.

    The outputs are overwritten by the next call: copy what is to stay. One thread at a time may call it. Where recording fails,
    the network runs as usual from then on.
    """

    def __init__(self, network: _Network) -> None:
        self._network = network
        self._recorded: dict[torch.Size, _Recorded | None] = {}
        self._pool: Any = None  # a handle, whose type differs between versions
        self._works = True

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """What the network answers to images [B, 3, H, W] on a CUDA device, always of one type and memory order."""
        shape = images.shape
        if not self._works or (shape not in self._recorded and len(self._recorded) == _MOST):
            return self._network(images)
        if shape not in self._recorded:
            self._recorded[shape] = None  # the first time loads kernels and chooses algorithms, which cannot be recorded
            return self._network(images)
        recorded = self._recorded[shape] or self._record(images)
        if recorded is None:
            return self._network(images)
        self._recorded[shape] = recorded
        recorded.images.copy_(images)
        recorded.graph.replay()
        return recorded.outputs

    def _record(self, images: Tensor) -> _Recorded | None:
        """A graph for images of this shape, in memory that all graphs share; None where the network cannot be recorded."""
        graph, still = torch.cuda.CUDAGraph(), images.clone()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            self._network(still)  # what the libraries set up for each stream cannot be recorded either
        try:
            # Other threads may go on using the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = self._network(still)
        except RuntimeError:
            self._works = False
            _end_recording(images.device)
            return None
        return _Recorded(graph, still, outputs)


def _end_recording(device: torch.device) -> None:
    """Give the device's generator of random numbers a state of its own again: a recording that failed leaves it in one that
    refuses to be used outside of recordings."""
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    generator.graphsafe_set_state(generator.clone_state())
