"""What would make the processor wait for a device, found without one, and what does with an NVIDIA GPU."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operators whose answer or the size of whose answer has to be known to the processor.
ANSWERS = (
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
)


class Waits(TorchDispatchMode):
    """Lists in `found` the operators that would wait, if what is `marked` and all that is computed from it lay on a device.

    These are operators of `ANSWERS`, indexing by flags, repeating without a known size, and every meeting of a tensor that is
    marked with one that is not: it would be copied first. Numbers of Python do not count, they travel with the call; nor do
    constants such as `torch.arange`, which are made where they are needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._marked: dict[int, Any] = {}
        self._constants: dict[int, Any] = {}

    def mark(self, *values: Any) -> None:
        """Say that these tensors lie on the device."""
        self._remember(self._marked, values)

    def lies_there(self, tensor: Tensor) -> bool:
        """Whether it is marked or computed from what is."""
        return tensor.untyped_storage().data_ptr() in self._marked

    def send(self, values: Tensor, device: torch.device) -> Tensor:
        """In the place of `pelagia.nn.devices.send`."""
        sent = values.to(device, copy=True)
        self.mark(sent)
        return sent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        bound = [tensor for tensor in given if tensor.untyped_storage().data_ptr() not in self._constants]
        result = func(*args, **kwargs)
        if any(self.lies_there(tensor) for tensor in bound):
            name = func.__name__.split(".")[0]
            meets = not all(self.lies_there(tensor) for tensor in bound)
            if name in ANSWERS or meets or self._by_flags(name, args, kwargs):
                self.found.append(f"{func.__name__} {[tuple(tensor.shape) for tensor in given]}")
            self.mark(result)
        elif not bound and (given or kwargs.get("device") is not None):
            self._remember(self._constants, result)
        return result

    @staticmethod
    def _remember(where: dict[int, Any], values: Any) -> None:
        for tensor in _tensors(values):
            storage = tensor.untyped_storage()
            where[storage.data_ptr()] = storage  # kept, or another tensor would get its place

    @staticmethod
    def _by_flags(name: str, args: Any, kwargs: Any) -> bool:
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return name == "repeat_interleave" and kwargs.get("output_size") is None


class _Reads(TorchFunctionMode):
    """What reads the memory of a tensor past the operators."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy) and self.waits.lies_there(args[0]):
            self.waits.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Those that have memory; where nothing is, nothing lies anywhere."""
    return (value for value in tree_leaves(values) if isinstance(value, Tensor) and value.untyped_storage().data_ptr())


def waits_of(work: Callable[[Waits], object]) -> list[str]:
    """The operators of `work` that would wait; it marks what lies on the device."""
    mode = Waits()
    with _Reads(mode), mode:
        work(mode)
    return mode.found


def waits_on_gpu(work: Callable[[], object]) -> list[str]:
    """The places of `work` at which the processor waits for an NVIDIA GPU, each as its innermost frames.

    Waits of a backward pass show the line that began it, since autograd computes in a thread of its own.
    """
    found = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        # Setting the mode itself warns, once a process, that it is a prototype.
        if "called a synchronizing" in str(message):
            frames = [each for each in traceback.extract_stack()[:-1] if Path(each.filename) != Path(warnings.__file__)]
            found.append(" < ".join(f"{Path(each.filename).name}:{each.lineno} {each.line}" for each in frames[:-7:-1]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            torch.cuda.set_sync_debug_mode("warn")
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found
