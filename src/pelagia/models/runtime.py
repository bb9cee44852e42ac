"""A torch model as a runtime: what `pelagia.infer` asks for.

On a GPU the images travel as stored bytes and are normalised there, the kernels of networks that can be recorded are replayed
(`models.cuda_graphs`), and of the answers only what decoding can use comes back (`models.selection`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pelagia.core.card import ModelCard
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError, OptionError
from pelagia.infer.runtimes import Precision, Runtime, lane_count
from pelagia.models.cuda_graphs import Replayed
from pelagia.models.model import Model
from pelagia.models.selection import likely
from pelagia.nn.intensities import stack_pixels, to_network
from pelagia.nn.layers import fuse, use_onednn

__all__ = ["TorchRuntime", "float32_products", "round_weights"]

#: Decoders of networks that go from images to raw outputs without asking the processor for anything, by layers that autocast
#: knows: they are recorded on a GPU, and their weights are rounded once. Others suppress between stages, or compute some steps in
#: full precision whatever was asked for.
_STRAIGHT = ("grids", "pixels")


class TorchRuntime:
    """Runs a fused copy of `model` in evaluation mode; later changes of `model` do not reach it.

    Args:
        model: any model.
        device: where to run; None for the device of the model's weights.
        precision: see `Precision`; bfloat16 by autocast.

    Raises:
        OptionError: tf32 on another device than an NVIDIA GPU.
        ModelError: the images do not have three channels or the sides that the model takes.
    """

    #: Images may have any sides that the model takes, not those of its card alone.
    any_size = True

    def __init__(self, model: Model, *, device: torch.device | str | None = None, precision: Precision = "float32") -> None:
        self.device = next(model.parameters()).device if device is None else torch.device(device)
        if precision == "tf32" and self.device.type != "cuda":
            raise OptionError(f"tf32 is a precision of NVIDIA GPUs, not of the device {self.device.type}; take float32")
        self.precision: Precision = precision
        self.model = fuse(model).to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cpu" and precision == "float32":
            use_onednn(self.model)
        if precision == "bfloat16" and model.card.decoder in _STRAIGHT:
            round_weights(self.model)
        recorded = self.device.type == "cuda" and model.card.decoder in _STRAIGHT
        self._replayed = Replayed(self._network) if recorded else None
        self._alone = Lock()  # what is replayed has one memory for its images

    @property
    def card(self) -> ModelCard:
        """What the network is."""
        return self.model.card

    @property
    def name(self) -> str:
        """See `pelagia.infer.runtimes.runtime_name`."""
        return f"torch {torch.__version__} ({self.device.type}, {self.precision})"

    @property
    def takes_pixels(self) -> bool:
        """See `pelagia.infer.runtimes.PixelRuntime`."""
        return self.device.type != "cpu"

    def lanes(self) -> tuple[Runtime, ...]:
        """See `pelagia.infer.runtimes.lanes`: on a CPU threads that share the weights; none on a GPU."""
        if self.device.type != "cpu":
            return ()
        threads = torch.get_num_threads()
        count = lane_count(threads)
        return (_Lane(self, threads // count),) * count

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Raw outputs by name for normalised images [B, 3, H, W]; `valid` [B, 2] as in `Model.forward`."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ModelError(f"images must have shape [B, 3, H, W], got {list(images.shape)}", where=self.card.name)
        with torch.inference_mode(), self._one_by_one():
            batch = torch.from_numpy(_as_network_likes(images)).to(self.device, non_blocking=True)
            return _on_host(self._forward(batch, valid))

    def run_pixels(
        self, images: Sequence[NDArray[Any]], options: DecodeOptions, valid: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `pelagia.infer.runtimes.PixelRuntime`."""
        pixels = stack_pixels(images, pin=self.device.type == "cuda")
        with torch.inference_mode(), self._one_by_one():
            batch = to_network(pixels, self.card.normalisation, self.device)
            return _on_host(likely(self._forward(batch, valid), self.card, options))

    def _one_by_one(self) -> Any:
        return self._alone if self._replayed is not None else ExitStack()

    def _forward(self, images: Tensor, valid: NDArray[np.int64] | None) -> dict[str, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        if valid is not None:
            return self._network(images, torch.from_numpy(valid).to(self.device))
        return self._network(images) if self._replayed is None else self._replayed(images)

    def _network(self, images: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        with ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(float32_products(tf32=self.precision == "tf32"))
            if self.precision == "bfloat16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            return self.model(images, valid)  # type: ignore[no-any-return]  # a module's call returns Any


class _Lane:
    """The model for one of several threads, with its share of the cores."""

    def __init__(self, owner: TorchRuntime, threads: int) -> None:
        self._owner, self._threads, self.beside = owner, threads, threads > 1

    @property
    def card(self) -> ModelCard:
        return self._owner.card

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        # The number holds for the thread that sets it, and for threads that begin later: those are left as they were.
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return self._owner.run(images, valid)
        finally:
            torch.set_num_threads(before)


def _as_network_likes(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images whose channels come last in memory, as `core.image.normalise` leaves them, are not copied."""
    if images.dtype == np.float32 and images.flags.writeable and images.transpose(0, 2, 3, 1).flags.c_contiguous:
        return images
    return np.ascontiguousarray(images, dtype=np.float32)


def _on_host(outputs: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, value in outputs.items():
        found = value.cpu()
        arrays[name] = (found.float() if found.is_floating_point() else found).numpy()
    return arrays


def round_weights(model: nn.Module) -> None:
    """Round the weights of convolutions and linear layers to bfloat16, in place: autocast does the same at every pass."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.to(torch.bfloat16)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Convolutions and matrix products of float32 on an NVIDIA GPU keep 24 bits of each factor, or with `tf32` 11.

    PyTorch by itself computes convolutions in TF32 and matrix products not. The setting is the process's; afterwards it is as
    before.
    """
    newer = hasattr(torch.backends.cudnn, "conv")  # PyTorch 2.9 has a setting for each kind of operator
    cudnn: Any = torch.backends.cudnn
    places: list[Any] = [cudnn.conv if newer else cudnn, torch.backends.cuda.matmul]
    name, wanted = ("fp32_precision", "tf32" if tf32 else "ieee") if newer else ("allow_tf32", tf32)
    before = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, wanted)
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)
