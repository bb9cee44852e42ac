"""An exported file run by OpenVINO: the same .onnx that ONNX Runtime takes, or OpenVINO's own .xml with its .bin.

The optional package is imported when the first file is opened.

Images of 8 bits go in as they are stored: the graph that is compiled begins with their normalisation and the change from channels
last to channels first. The file's own input of normalised floats is compiled when it is first used (images of 16 bits,
comparisons). Raw outputs are written by OpenVINO into the arrays that are returned; a transposition at the end of the graph is
left out of it and made in the array's strides, where it moves nothing.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.image import Pixels, planes, to_rgb
from pelagia.core.lazy import resolve
from pelagia.errors import CheckpointError, ModelError, OptionError
from pelagia.infer.foreign_onnx import foreign_card, foreign_outputs
from pelagia.infer.runtimes import CARD_KEY, VALID, Precision, Runtime, check_images, check_valid, cpu_count, lane_count

__all__ = ["OpenVinoRuntime", "openvino_core"]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


@cache
def openvino_core() -> Any:
    """OpenVINO's door to files and devices, one for the process, never closed.

    With its first network on a CPU it gives the calling thread another stack for signals, and takes that memory away when it is
    closed; should that happen in another thread, the next signal that Python handles, such as Ctrl-C, ends the process.

    Raises:
        MissingExtraError: the extra `openvino` is not installed.
    """
    return resolve("openvino", purpose="run a model with OpenVINO").Core()


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
        self._core, self._tensor = openvino_core(), openvino.Tensor
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
        self._orders = _cut_transpositions(self._model)
        static = all(output.partial_shape.is_static for output in self._model.outputs)
        self._answers = [(tuple(item.shape), item.element_type.to_dtype()) for item in self._model.outputs] if static else []
        window = self._card.normalisation
        # Nothing is clipped; and no mean is subtracted, which in bfloat16 would be rounded to three digits.
        shifted = any(window.low + (window.high - window.low) * mean != 0 for mean in window.mean)
        clipped = window.low > 0 or window.high < 255 or min(window.std) <= 0
        self._takes_pixels = not clipped and not (shifted and precision == "bfloat16")
        self._compiled: dict[tuple[int, bool], Any] = {}
        self._compiling = Lock()
        self._network(1, self._takes_pixels)
        self._requests: dict[tuple[int, bool], list[Any]] = {}
        self._running = Lock()  # a request takes one image at a time; lanes have their own

    @property
    def card(self) -> ModelCard:
        """What the file says it is."""
        return self._card

    @property
    def name(self) -> str:
        """See `runtime_name`."""
        return f"openvino {self._version} ({self._device.lower()}, {self._precision})"

    def prepare(self, images: Sequence[Pixels]) -> NDArray[Any]:
        """See `prepared`: bytes [B, H, W, 3] as they are, which the network normalises if it can (`_takes_pixels`)."""
        if not self._takes_pixels or any(image.dtype != np.uint8 for image in images):
            return planes(images, self._card.normalisation)
        each = [to_rgb(image) for image in images]
        return each[0][None] if len(each) == 1 else np.stack(each)

    def lanes(self) -> tuple[Runtime, ...]:
        """See `lanes`: the streams of OpenVINO, and one request that waits for the first of them that is free, so that none waits
        for Python; the network is compiled for them when the first of them runs."""
        streams = self._streams()
        return tuple(_Lane(self, waits=place == streams) for place in range(streams + 1))

    def run(self, images: NDArray[Any], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """Raw outputs for normalised images [B, 3, H, W] or bytes [B, H, W, 3] (`prepare`); one image by all cores, several one
        on each stream.

        A file exported for a fixed batch is run in pieces of it. `valid` [B, 2], by default all of the images, is for graphs that
        have this input; others look at all.

        Raises:
            ModelError: the images do not have the size of the card, or OpenVINO fails on them.
        """
        streams, pixels = 1 if len(images) <= 1 else self._streams(), images.dtype == np.uint8
        with self._running:
            if (streams, pixels) not in self._requests:
                self._requests[streams, pixels] = [self.new_request(pixels, streams) for _ in range(streams)]
            return self.run_requests(self._requests[streams, pixels], images, valid)

    def new_request(self, pixels: bool, streams: int = 0) -> Any:
        """An inference request for bytes or for floats, of the network compiled for so many streams, 0 for those of the lanes."""
        return self._network(streams or self._streams(), pixels and self._takes_pixels).create_infer_request()

    def run_requests(
        self, requests: Sequence[Any], images: NDArray[Any], valid: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Raw outputs by these inference requests, each given the next piece when its turn comes."""
        images = self._checked(images)
        count, step = len(images), self._batch or 1
        if missing := -count % step:
            images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), dtype=images.dtype)])
        given = [images, check_valid(valid, self._card, len(images))][: 2 if self._padded else 1]
        found = [np.empty((len(images), *shape[1:]), dtype) for shape, dtype in self._answers]
        copied: list[list[NDArray[Any]]] = []
        waiting: deque[Any] = deque()

        def next_free() -> Any:
            request = waiting.popleft()
            request.wait()
            if not found:  # sizes are known only now, and the request's memory is written again by its next image
                copied.append([np.array(request.get_output_tensor(i).data) for i in range(len(self._outputs))])
            return request

        try:
            for start in range(0, len(images), step):
                request = requests[len(waiting)] if len(waiting) < len(requests) else next_free()
                for place, array in enumerate(given):
                    request.set_input_tensor(place, self._tensor(array[start : start + step], shared_memory=True))
                for place, array in enumerate(found):
                    request.set_output_tensor(place, self._tensor(array[start : start + step], shared_memory=True))
                request.start_async()
                waiting.append(request)
            while waiting:
                next_free()
        except RuntimeError as error:
            raise ModelError(f"OpenVINO failed: {_last_line(error)}", where=self._path) from error
        finally:
            for request in waiting:  # after an error: they still write into arrays that are about to go
                with contextlib.suppress(RuntimeError):
                    request.wait()
        whole = found or [np.concatenate(column) for column in zip(*copied, strict=True)]
        parts = zip(self._outputs, whole, self._orders, strict=True)
        named = {name: (value if order is None else value.transpose(order))[:count] for name, value, order in parts}
        return foreign_outputs(named, self._card) if self._foreign else named

    def _checked(self, images: NDArray[Any]) -> NDArray[Any]:
        """Floats as `check_images` has them, or bytes in one piece of memory."""
        if images.dtype != np.uint8 or not self._takes_pixels:
            return check_images(images, self._card, self._path)
        expected = (*self._card.input_size, 3)
        if images.ndim != 4 or len(images) == 0 or images.shape[1:] != expected:
            raise ModelError(f"images have shape {list(images.shape)}, expected [B, {str(list(expected))[1:]}", where=self._path)
        return np.ascontiguousarray(images)

    def _streams(self) -> int:
        return lane_count(self._threads) if self._device == "CPU" else 2

    def _network(self, streams: int, pixels: bool) -> Any:
        """The network compiled for bytes or for floats, once."""
        with self._compiling:
            if (streams, pixels) not in self._compiled:
                self._compiled[streams, pixels] = self._compile(streams, self._normalising() if pixels else self._model)
            return self._compiled[streams, pixels]

    def _compile(self, streams: int, model: Any) -> Any:
        settings: dict[str, Any] = {"NUM_STREAMS": streams}
        if self._device == "CPU":
            settings |= {
                "INFERENCE_NUM_THREADS": self._threads,
                "INFERENCE_PRECISION_HINT": _PRECISIONS[self._precision],
                "ENABLE_CPU_PINNING": False,  # several processes on one machine would all be pinned to its first cores
            }
        try:
            return self._core.compile_model(model, self._device, settings)
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run this file: {_last_line(error)}", where=self._path) from error

    def _normalising(self) -> Any:
        """The graph behind an input of bytes [B, H, W, 3]: (v - a) / b with a = low + mean (high - low), b = std (high - low)."""
        openvino, window = resolve("openvino", purpose="run a model with OpenVINO"), self._card.normalisation
        ops, span = openvino.opset13, window.high - window.low
        model = self._model.clone()
        known = model.inputs[0].get_node()
        batch, _, height, width = known.get_partial_shape()
        pixels = ops.parameter(openvino.PartialShape([batch, height, width, 3]), openvino.Type.u8)
        # ReLU changes no byte. It keeps the conversion before the transposition, which else would be done in bytes, and which the
        # first convolution, whose channels come last, then would have to undo in floats: a twentieth of YOLO11n's time.
        values = ops.transpose(ops.relu(ops.convert(pixels, "f32")), np.array([0, 3, 1, 2]))
        shifts, factors = _planes(window.low + span * np.array(window.mean)), _planes(1 / (span * np.array(window.std)))
        if shifts.any():
            values = ops.subtract(values, shifts)
        # OpenVINO puts a factor that stands before a convolution into its weights; a divisor it would round in bfloat16.
        known.output(0).replace(ops.multiply(values, factors).output(0))
        model.replace_parameter(0, pixels)
        model.validate_nodes_and_infer_types()
        return model

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
    """Inference requests for one thread at a time."""

    #: A stream has threads of its own.
    beside = True

    def __init__(self, owner: OpenVinoRuntime, *, waits: bool) -> None:
        self._owner, self.waits = owner, waits
        self._requests: dict[bool, Any] = {}

    @property
    def card(self) -> ModelCard:
        return self._owner.card

    def run(self, images: NDArray[Any], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        pixels = images.dtype == np.uint8
        if pixels not in self._requests:
            self._requests[pixels] = self._owner.new_request(pixels)
        return self._owner.run_requests([self._requests[pixels]], images, valid)


def _planes(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32).reshape(1, 3, 1, 1)


def _cut_transpositions(model: Any) -> list[tuple[int, ...] | None]:
    """End every output of the graph before its last transposition, unless that moves the batch; the orders of axes left to do."""
    orders: list[tuple[int, ...] | None] = []
    for result in model.get_results():
        last = result.input_value(0).get_node()
        order = last.input_value(1).get_node() if last.get_type_name() == "Transpose" else None
        known = tuple(order.data.tolist()) if order is not None and order.get_type_name() == "Constant" else ()
        orders.append(known if known and known[0] == 0 else None)
        if orders[-1] is not None:
            result.input(0).replace_source_output(last.input_value(0))
    model.validate_nodes_and_infer_types()
    return orders


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
