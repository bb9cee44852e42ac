"""An exported file run by OpenVINO: the same .onnx that ONNX Runtime takes, or OpenVINO's own .xml with its .bin.

The optional package is imported when the first file is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.lazy import resolve
from pelagia.errors import CheckpointError, ModelError, OptionError
from pelagia.infer.foreign_onnx import foreign_card, foreign_outputs
from pelagia.infer.runtimes import CARD_KEY, VALID, Precision, Runtime, check_images, check_valid, cpu_count, lane_count

__all__ = ["OpenVinoRuntime"]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoRuntime:
    """An exported file run by OpenVINO on a CPU, an Intel GPU or an NPU.

    OpenVINO by itself computes in bfloat16 where the processor can; here the precision is stated, and float32 unless asked.

    Args:
        path: an .onnx or .xml written by `pelagia export`, or an .onnx of Ultralytics (`foreign_onnx`); the weights
            of an .xml lie beside it in the .bin of the same name.
        threads: CPU threads, 0 for all that this process may use.
        device: auto or cpu, or another that OpenVINO knows here, such as gpu or npu.
        precision: see `Precision`; for CPUs. An int8 file keeps its 8-bit layers.

    Raises:
        CheckpointError: the file is missing, cannot be read, carries no card, or its input does not fit the card.
        OptionError: a device that is not there.
        MissingExtraError: the extra `openvino` is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int = 0, device: str = "auto", precision: Precision = "float32") -> None:
        openvino = resolve("openvino", purpose="run a model with OpenVINO")
        files = [Path(path), Path(path).with_suffix(".bin")][: 2 if Path(path).suffix == ".xml" else 1]
        for file in files:
            if not file.is_file():
                raise CheckpointError("there is no such file", where=file)
        self._path = str(path)
        self._threads = threads or cpu_count()
        self._core = openvino.Core()
        self._device = "CPU" if device in ("auto", "cpu") else device.upper()
        if self._device not in self._core.available_devices:
            known = ", ".join(self._core.available_devices).lower()
            raise OptionError(f"OpenVINO has no device {device!r} here; it has {known}")
        self._precision: Precision = precision
        self._version = str(openvino.__version__).split("-")[0]
        try:
            self._model = self._core.read_model(self._path)
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot read this file: {_last_line(error)}", where=path) from error
        metadata = _metadata(self._model)
        foreign = None if CARD_KEY in metadata else foreign_card(metadata, where=path)
        if CARD_KEY not in metadata and foreign is None:
            raise CheckpointError(
                "this file has no Pelagia card in its metadata, so its classes and its decoding are unknown; "
                "export the model with `pelagia export`",
                where=path,
            )
        self._foreign = foreign is not None
        self._card = foreign or ModelCard.from_json(metadata[CARD_KEY], where=self._path)
        self._batch = self._check_input()
        self._outputs = [output.any_name for output in self._model.outputs]
        self._fix_shapes()
        self._alone = self._compile(1)
        self._streams: Any = None
        self._lock = Lock()  # a request takes one image at a time; lanes have their own
        self._requests: tuple[list[Any], list[Any]] = ([self._alone.create_infer_request()], [])

    @property
    def card(self) -> ModelCard:
        """What the file says it is."""
        return self._card

    @property
    def name(self) -> str:
        """See `runtime_name`."""
        return f"openvino {self._version} ({self._device.lower()}, {self._precision})"

    def lanes(self) -> tuple[Runtime, ...]:
        """See `lanes`: one stream of OpenVINO each; the first call compiles the network for them."""
        return tuple(_Lane(self, request) for request in self._new_requests())

    def _new_requests(self) -> list[Any]:
        count = lane_count(self._threads) if self._device == "CPU" else 2
        if self._streams is None:
            self._streams = self._alone if count == 1 else self._compile(count)
        return [self._streams.create_infer_request() for _ in range(count)]

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Raw outputs for images [B, 3, H, W]: one image by all cores, several one on each stream.

        A file exported for a fixed batch is run in pieces of it. `valid` [B, 2], by default all of the images, is for graphs that
        have this input; others look at all.

        Raises:
            ModelError: the images do not have the size of the card, or OpenVINO fails on them.
        """
        one, several = self._requests
        with self._lock:
            if len(images) > 1 and not several:
                several += self._new_requests()
            return self.run_requests(several if len(images) > 1 else one, images, valid)

    def run_requests(
        self, requests: Sequence[Any], images: NDArray[np.float32], valid: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Raw outputs by these inference requests, each given the next piece as soon as it is free."""
        images = check_images(images, self._card, self._path)
        step = self._batch or 1
        sizes = check_valid(valid, images, len(images) + step)
        parts: dict[int, list[NDArray[Any]]] = {}
        free: SimpleQueue[tuple[Any, int]] = SimpleQueue()
        for request in requests:
            free.put((request, -1))
        try:
            for start in range(0, len(images), step):
                request, before = free.get()
                if before >= 0:
                    parts[before] = self._finished(request, len(images) - before)
                piece = images[start : start + step]
                if len(piece) < step:
                    piece = np.concatenate([piece, np.zeros((step - len(piece), *images.shape[1:]), dtype=np.float32)])
                given = {0: piece, **({1: sizes[start : start + step]} if self._padded else {})}
                request.start_async(given, share_inputs=True)
                free.put((request, start))
            while not free.empty():
                request, before = free.get()
                if before >= 0:
                    parts[before] = self._finished(request, len(images) - before)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO failed: {_last_line(error)}", where=self._path) from error
        whole = [parts[start] for start in sorted(parts)]
        joined = whole[0] if len(whole) == 1 else [np.concatenate(column) for column in zip(*whole, strict=True)]
        found = dict(zip(self._outputs, joined, strict=True))
        return foreign_outputs(found, self._card) if self._foreign else found

    def _finished(self, request: Any, most: int) -> list[NDArray[Any]]:
        request.wait()
        # The request's memory is written again by its next image.
        return [np.array(request.get_output_tensor(i).data[:most]) for i in range(len(self._outputs))]

    def _compile(self, streams: int) -> Any:
        settings: dict[str, Any] = {"NUM_STREAMS": streams}
        if self._device == "CPU":
            settings |= {
                "INFERENCE_NUM_THREADS": self._threads,
                "INFERENCE_PRECISION_HINT": _PRECISIONS[self._precision],
                "ENABLE_CPU_PINNING": False,  # several processes on one machine would all be pinned to its first cores
            }
        try:
            return self._core.compile_model(self._model, self._device, settings)
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run this file: {_last_line(error)}", where=self._path) from error

    def _fix_shapes(self) -> None:
        """State the sizes of free inputs: a request takes one image, and OpenVINO is a tenth faster when it knows its memory.

        A graph that needs a free batch for its operations stays as it is.
        """
        if not any(item.partial_shape.is_dynamic for item in self._model.inputs):
            return
        fixed, step, sides = self._model.clone(), self._batch or 1, self._card.input_size
        try:
            fixed.reshape({item: [step, 2] if VALID in item.names else [step, 3, *sides] for item in fixed.inputs})
        except RuntimeError:
            return
        self._model = fixed

    def _check_input(self) -> int:
        """The batch size of the input, 0 for any."""
        inputs = [item for item in self._model.inputs if VALID not in item.names]
        self._padded = len(inputs) < len(self._model.inputs)
        wanted = (3, *self._card.input_size)
        sides = list(inputs[0].partial_shape) if len(inputs) == 1 and inputs[0].partial_shape.rank.is_static else []
        fits = len(sides) == 4 and all(
            side.is_dynamic or side.get_length() == size for side, size in zip(sides[1:], wanted, strict=True)
        )
        if not fits or inputs[0].element_type.get_type_name() != "f32":
            found = ", ".join(f"{item.any_name} {item.element_type} {item.partial_shape}" for item in inputs)
            height, width = self._card.input_size
            raise CheckpointError(
                f"expected one float input [B, 3, {height}, {width}] as its card says, the graph has: {found}", where=self._path
            )
        return 0 if sides[0].is_dynamic else int(sides[0].get_length())


class _Lane:
    """One inference request, for one thread at a time."""

    def __init__(self, owner: OpenVinoRuntime, request: Any) -> None:
        self._owner, self._request = owner, request

    @property
    def card(self) -> ModelCard:
        return self._owner.card

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        return self._owner.run_requests([self._request], images, valid)


def _metadata(model: Any) -> dict[str, str]:
    """What the file says about itself: OpenVINO puts the metadata of an ONNX file under "framework"."""
    found: dict[str, str] = {}
    known = model.get_rt_info()
    if "framework" in known:
        found |= {key: str(model.get_rt_info(["framework", key]).value) for key in known["framework"]}
    if CARD_KEY in known:
        found[CARD_KEY] = str(model.get_rt_info([CARD_KEY]).value)
    return found


def _last_line(error: Exception) -> str:
    """OpenVINO's messages begin with the places in its own source and end with what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return (told or lines or [type(error).__name__])[-1]
