"""Small numbers on their way to a device, and what a device makes the processor wait for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["answers_late", "send"]


def answers_late(device: torch.device) -> bool:
    """Whether a shape that depends on values, as of `values[mask]`, keeps the processor waiting: the device works behind it.

    On such a device a mask with weights of zero costs less than a selection; on a CPU the selection does.
    """
    return device.type != "cpu"


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values from the processor's memory on `device`, without waiting until it has them."""
    if device.type == "cuda":
        values = values.pin_memory()  # from other memory the copy would first wait for its turn
    return values.to(device, non_blocking=True)
