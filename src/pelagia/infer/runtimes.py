"""What runs a network: the protocol, and ONNX Runtime.

A runtime turns normalised images into raw outputs and knows the model's card; everything before (reading, letterbox) and after
(decoding) is shared. A torch model is a runtime through `pelagia.models.runtime`; OpenVINO stands in `infer.openvino_runtime`.

On a CPU an image goes through the network alone, one on each core, rather than in a batch: a batch is no faster there, and what
is found would depend in the last digits on the other images in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.image import Pixels, normalise, planes
from pelagia.core.lazy import resolve
from pelagia.decode import DecodeOptions
from pelagia.errors import CheckpointError, ModelError, OptionError
from pelagia.infer.foreign_onnx import foreign_card, foreign_outputs

__all__ = [
    "CARD_KEY",
    "LANES_MOST",
    "PRECISIONS",
    "RUNTIMES",
    "VALID",
    "OnnxRuntime",
    "PaddedRuntime",
    "PixelRuntime",
    "Precision",
    "Runtime",
    "RuntimeKind",
    "Shared",
    "check_images",
    "check_valid",
    "cpu_count",
    "lane_count",
    "lanes",
    "prepared",
    "runtime_name",
]

RuntimeKind: TypeAlias = Literal["auto", "torch", "onnx", "openvino"]
RUNTIMES: tuple[RuntimeKind, ...] = get_args(RuntimeKind)

#: What multiplications are done in. bfloat16 keeps 8 bits of a number and is fast where the processor has instructions for it;
#: tf32 keeps 11, on NVIDIA GPUs, where float32 (24 bits) is several times slower.
Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: Name of the input that tells which part of the images is no padding.
VALID = "valid"

#: Key of the card among an ONNX file's metadata properties.
CARD_KEY = "pelagia"

#: Most images in the network at once; each takes the memory of its intermediate results.
LANES_MOST = 8

#: ONNX Runtime raises these, all direct children of Exception, for files and inputs that it cannot use.
_ERROR_NAMES = (
    "EPFail",
    "EngineError",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)


class Runtime(Protocol):
    """Something that runs a network."""

    @property
    def card(self) -> ModelCard:
        """What the network is."""
        ...

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Raw outputs by name for normalised images [B, 3, H, W], H and W as in the card; the first axis of each is B."""
        ...


class PaddedRuntime(Protocol):
    """A runtime of a model whose card says `masks_padding`, and each of its lanes."""

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """As `Runtime.run`; `valid` [B, 2] are heights and widths without padding at the right and the bottom, by default all."""
        ...


class PixelRuntime(Protocol):
    """A runtime that computes on a device of its own and says so by `takes_pixels`: it gets the stored bytes, and sends back what
    decoding can use."""

    @property
    def takes_pixels(self) -> bool:
        """Whether `run_pixels` is to be preferred to `run`."""
        ...

    def run_pixels(
        self, images: Sequence[NDArray[Any]], options: DecodeOptions, valid: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Raw outputs for stored images [H, W, 1 or 3], in which `decode` with `options` finds what it does in those of `run`."""
        ...


def cpu_count() -> int:
    """Cores that this process may use (a container or a batch system may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lane_count(threads: int) -> int:
    """How many images a CPU works on at once: one for each of `threads` cores, at most `LANES_MOST`."""
    return max(1, min(threads, LANES_MOST))


def runtime_name(runtime: Runtime) -> str:
    """What computes, with version, device and precision, such as "onnxruntime 1.23.0 (cpu, float32)": two runtimes of one name
    give the same numbers for the same file."""
    return str(getattr(runtime, "name", type(runtime).__name__))


def prepared(runtime: Runtime, images: Sequence[Pixels]) -> NDArray[Any]:
    """What `runtime.run` takes for B images [H, W, 1 or 3] of stored intensities, of the network's size: normalised as the card
    says, [B, 3, H, W], the channels last in memory.

    A runtime with a method `prepare` says itself what it takes: the same numbers in another order in memory, or, where its
    network normalises, the intensities. Any number of threads may prepare at a time.

    Raises:
        OptionError: the card's normalisation cannot be used.
    """
    if hasattr(runtime, "prepare"):
        return cast(NDArray[Any], runtime.prepare(images))
    each = [normalise(image, runtime.card.normalisation) for image in images]
    return each[0][None] if len(each) == 1 else np.stack(each)


def lanes(runtime: Runtime) -> tuple[Runtime, ...]:
    """The same network for several threads: each of them may be run by one thread at a time, all of them together use all cores.

    A runtime says so by a method `lanes`; without it, and on a GPU, it is its own only lane. A lane whose network has threads of
    its own, beside the one that calls it, says so by an attribute `beside`; one that waits, so that the others find work when
    they are done, by an attribute `waits`.
    """
    offered: Sequence[Runtime] = runtime.lanes() if hasattr(runtime, "lanes") else ()
    return tuple(offered) or (runtime,)


class Shared:
    """A runtime that any number of threads may call: each call waits for a free lane of `runtime`.

    Attributes:
        count: how many lanes compute at once.
        callers: how many threads keep the lanes busy that read and decode too. Where lanes compute in the threads that call them,
            one for each: a further one would take a core from a thread that holds Python's lock, and all would wait for that.
        alone: whether the runtime offers lanes, even a single one: then it is on a CPU, and an image is to go through it alone.
        takes_pixels: see `PixelRuntime`.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._card, self._runtime = runtime.card, runtime
        self._free: SimpleQueue[Runtime] = SimpleQueue()
        offered = lanes(runtime)
        self.count = sum(not getattr(lane, "waits", False) for lane in offered)
        self.alone = offered[0] is not runtime
        self.callers = len(offered) + bool(getattr(offered[0], "beside", False))
        self.takes_pixels = bool(getattr(offered[0], "takes_pixels", False))
        for lane in offered:
            self._free.put(lane)

    @property
    def card(self) -> ModelCard:
        """What the network is."""
        return self._card

    def prepare(self, images: Sequence[Pixels]) -> NDArray[Any]:
        """See `prepared`."""
        return prepared(self._runtime, images)

    def run(self, images: NDArray[Any], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """As `Runtime.run` or, with `valid`, `PaddedRuntime.run`, on the next free lane."""
        lane = self._free.get()
        try:
            return lane.run(images) if valid is None else cast(PaddedRuntime, lane).run(images, valid)
        finally:
            self._free.put(lane)

    def run_pixels(
        self, images: Sequence[NDArray[Any]], options: DecodeOptions, valid: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """As `PixelRuntime.run_pixels`, on the next free lane."""
        lane = self._free.get()
        try:
            return cast(PixelRuntime, lane).run_pixels(images, options, valid)
        finally:
            self._free.put(lane)


def check_images(images: NDArray[np.float32], card: ModelCard, where: str) -> NDArray[np.float32]:
    """`images` in one piece of memory.

    Raises:
        ModelError: they do not have the size of the card.
    """
    expected = (3, *card.input_size)
    if images.ndim != 4 or len(images) == 0 or images.shape[1:] != expected:
        raise ModelError(f"images have shape {list(images.shape)}, expected [B, {str(list(expected))[1:]}", where=where)
    return np.ascontiguousarray(images, dtype=np.float32)


def check_valid(valid: NDArray[np.int64] | None, card: ModelCard, count: int) -> NDArray[np.int64]:
    """[count, 2] sizes of what is image, all of it where nothing is said; the last one again for images that fill up a batch."""
    sizes = np.tile(np.array(card.input_size), (count, 1)) if valid is None else valid
    return np.concatenate([sizes, sizes[-1:].repeat(count - len(sizes), 0)]).astype(np.int64)


class OnnxRuntime:
    """An exported file run by ONNX Runtime, on a GPU where its GPU package is installed, else on all cores.

    Args:
        path: a file written by `pelagia export`, whose card stands in its metadata, or one of Ultralytics (`foreign_onnx`).
        threads: CPU threads, 0 for all that this process may use.
        device: auto (a GPU if there is one), cpu or cuda.

    Raises:
        CheckpointError: the file is missing, is not ONNX, carries no card, or its input does not fit the card.
        OptionError: an unknown device, or one that is not there.
    """

    def __init__(self, path: str | Path, *, threads: int = 0, device: str = "auto") -> None:
        if not Path(path).is_file():
            raise CheckpointError("there is no such file", where=path)
        self._path = str(path)
        self._threads = threads or cpu_count()
        self._providers = _providers(device)
        self._session = self._open(self._threads)
        self._on_cpu = self._session.get_providers() == ["CPUExecutionProvider"]
        metadata = self._session.get_modelmeta().custom_metadata_map
        foreign = None if CARD_KEY in metadata else foreign_card(metadata, where=path)
        if CARD_KEY not in metadata and foreign is None:
            raise CheckpointError(
                "this ONNX file has no Pelagia card in its metadata, so its classes and its decoding are unknown; "
                "export the model with `pelagia export`",
                where=path,
            )
        self._foreign = foreign is not None
        self._card = foreign or ModelCard.from_json(metadata[CARD_KEY], where=str(path))
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._input, self._batch = self._check_input()
        self._lanes: tuple[_OnnxLane, ...] = ()

    @property
    def card(self) -> ModelCard:
        """What the file says it is."""
        return self._card

    @property
    def name(self) -> str:
        """See `runtime_name`."""
        return f"onnxruntime {_onnxruntime().__version__} ({'cpu' if self._on_cpu else 'cuda'}, float32)"

    def lanes(self) -> tuple[Runtime, ...]:
        """See `lanes`; none on a GPU. The sessions that they need are opened by the first call."""
        if not self._lanes and self._on_cpu:
            count = lane_count(self._threads)
            each = self._threads // count
            # A session of one thread computes in the thread that calls it, so one serves all.
            sessions = [self._open(1)] * count if each == 1 else [self._open(each) for _ in range(count)]
            self._lanes = tuple(_OnnxLane(self, session, beside=each > 1) for session in sessions)
        return self._lanes

    def prepare(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """See `prepared`: the columns last in memory."""
        return planes(images, self._card.normalisation)

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Raw outputs for images [B, 3, H, W]; one image by all cores, several one on each core.

        A file exported for a fixed batch is run in pieces of it. `valid` [B, 2], by default all of the images, is for graphs that
        have this input; others look at all.

        Raises:
            ModelError: the images do not have the size of the card, or ONNX Runtime fails on them.
        """
        if len(images) <= 1 or self._batch or not self._on_cpu or self._threads == 1:
            return self.run_session(self._session, images, valid)
        images = check_images(images, self._card, self._path)
        shared = Shared(self)
        with ThreadPoolExecutor(shared.count) as pool:
            told = [None] * len(images) if valid is None else np.split(valid, len(images))
            parts = list(pool.map(shared.run, np.split(images, len(images)), told))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_session(
        self, session: Any, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Raw outputs by one session: image by image on a CPU, all at once on a GPU."""
        images = check_images(images, self._card, self._path)
        step = self._batch or (1 if self._on_cpu else len(images))
        sizes = check_valid(valid, self._card, len(images))
        parts = [self._run(session, images[at : at + step], sizes[at : at + step], step) for at in range(0, len(images), step)]
        whole = parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]
        found = dict(zip(self._outputs, whole, strict=True))
        return foreign_outputs(found, self._card) if self._foreign else found

    def _open(self, threads: int) -> Any:
        options = _onnxruntime().SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors come back as exceptions; printed too, they would frighten twice
        try:
            return _onnxruntime().InferenceSession(self._path, options, providers=self._providers)
        except _errors() as error:
            raise CheckpointError(f"ONNX Runtime cannot read this file: {_first_line(error)}", where=self._path) from error

    def _run(self, session: Any, images: NDArray[np.float32], valid: NDArray[np.int64], batch: int) -> list[NDArray[Any]]:
        count = len(images)
        if self._batch and count < batch:
            images = np.concatenate([images, np.zeros((batch - count, *images.shape[1:]), dtype=np.float32)])
        given = {self._input: images, **({VALID: check_valid(valid, self._card, len(images))} if self._padded else {})}
        try:
            outputs: list[NDArray[Any]] = session.run(self._outputs, given)
        except _errors() as error:
            raise ModelError(f"ONNX Runtime failed: {_first_line(error)}", where=self._path) from error
        return [output[:count] for output in outputs]

    def _check_input(self) -> tuple[str, int]:
        """The input's name and its batch size, 0 for any."""
        inputs = [item for item in self._session.get_inputs() if item.name != VALID]
        self._padded = len(inputs) < len(self._session.get_inputs())
        shape = inputs[0].shape if len(inputs) == 1 else []
        fits = len(shape) == 4 and all(
            not isinstance(side, int) or side == wanted
            for side, wanted in zip(shape[1:], (3, *self._card.input_size), strict=True)
        )
        if not fits or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
            height, width = self._card.input_size
            raise CheckpointError(
                f"expected one float input [B, 3, {height}, {width}] as its card says, the graph has: {found}", where=self._path
            )
        return inputs[0].name, shape[0] if isinstance(shape[0], int) else 0


class _OnnxLane:
    """One session of a file, for one thread at a time."""

    def __init__(self, owner: OnnxRuntime, session: Any, *, beside: bool) -> None:
        self._owner, self._session, self.beside = owner, session, beside

    @property
    def card(self) -> ModelCard:
        return self._owner.card

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        return self._owner.run_session(self._session, images, valid)


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    """Execution providers of ONNX Runtime, the first that can run an operator runs it."""
    names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    available = _onnxruntime().get_available_providers()
    if device not in ("auto", *names):
        raise OptionError(f"ONNX Runtime runs on auto, cpu or cuda here, got {device!r}")
    if device != "auto" and names[device] not in available:
        raise OptionError(f"this ONNX Runtime has no device {device!r}; --device cpu always works")
    chosen = [names["cpu"]] if device == "cpu" else [names["cuda"], names["cpu"]]
    # ONNX Runtime by itself multiplies float32 in TF32 on NVIDIA GPUs, 11 bits of 24.
    float32 = {"use_tf32": "0"}
    return [(name, float32) if name == names["cuda"] else name for name in chosen if name in available]


def _onnxruntime() -> ModuleType:
    """Imported with the first file: scoring predictions, or a checkpoint, does not need it."""
    return resolve("onnxruntime", purpose="run an .onnx file")


def _errors() -> tuple[type[Exception], ...]:
    state = _onnxruntime().capi.onnxruntime_pybind11_state
    return tuple(getattr(state, name) for name in _ERROR_NAMES)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
