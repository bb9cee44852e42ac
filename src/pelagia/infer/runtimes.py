"""What runs a network: the protocol, and ONNX Runtime.

A runtime turns normalised images into raw outputs and knows the model's card; everything before (reading, letterbox) and after
(decoding) is shared. A torch model is a runtime through `pelagia.models.runtime`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.errors import CheckpointError, ModelError

__all__ = ["CARD_KEY", "OnnxRuntime", "Runtime", "cpu_count"]

#: Key of the card among an ONNX file's metadata properties.
CARD_KEY = "pelagia"

#: ONNX Runtime raises these, all direct children of Exception, for files and inputs that it cannot use.
_ERRORS = tuple(
    getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
    for name in (
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


def cpu_count() -> int:
    """Cores that this process may use (a container or a batch system may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxRuntime:
    """An exported file run by ONNX Runtime, on a GPU where its GPU package is installed, else on all cores.

    Args:
        path: a file written by `pelagia export`; its card stands in its metadata.
        threads: CPU threads, 0 for all that this process may use.

    Raises:
        CheckpointError: the file is missing, is not ONNX, carries no card, or its input does not fit the card.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        if not Path(path).is_file():
            raise CheckpointError("there is no such file", where=path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cpu_count()
        options.log_severity_level = 4  # errors come back as exceptions; printed too, they would frighten twice
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except _ERRORS as error:
            raise CheckpointError(f"ONNX Runtime cannot read this file: {_first_line(error)}", where=path) from error
        text = self._session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
        if text is None:
            raise CheckpointError(
                "this ONNX file has no Pelagia card in its metadata, so its classes and its decoding are unknown; "
                "export the model with `pelagia export`",
                where=path,
            )
        self._card = ModelCard.from_json(text, where=str(path))
        self._path = str(path)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._input, self._batch = self._check_input()

    @property
    def card(self) -> ModelCard:
        """What the file says it is."""
        return self._card

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Raw outputs for images [B, 3, H, W]; a file exported for a fixed batch is run in pieces of it.

        Raises:
            ModelError: the images do not have the size of the card, or ONNX Runtime fails on them.
        """
        expected = (3, *self._card.input_size)
        if images.ndim != 4 or len(images) == 0 or images.shape[1:] != expected:
            raise ModelError(f"images have shape {list(images.shape)}, expected [B, {str(list(expected))[1:]}", where=self._path)
        images = np.ascontiguousarray(images, dtype=np.float32)
        step = self._batch or len(images)
        parts = [self._run(images[start : start + step], step) for start in range(0, len(images), step)]
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(self._outputs)}

    def _run(self, images: NDArray[np.float32], batch: int) -> list[NDArray[Any]]:
        count = len(images)
        if self._batch and count < batch:
            images = np.concatenate([images, np.zeros((batch - count, *images.shape[1:]), dtype=np.float32)])
        try:
            outputs: list[NDArray[Any]] = self._session.run(self._outputs, {self._input: images})
        except _ERRORS as error:
            raise ModelError(f"ONNX Runtime failed: {_first_line(error)}", where=self._path) from error
        return [output[:count] for output in outputs]

    def _check_input(self) -> tuple[str, int]:
        """The input's name and its batch size, 0 for any."""
        inputs = self._session.get_inputs()
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
