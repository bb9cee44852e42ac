"""Export to OpenVINO's own format: an .xml with the graph and the model's card, and the weights in the .bin beside it.

The graph is the one that goes into an ONNX file, read by OpenVINO; weights stay in float32.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pelagia.core.card import ModelCard
from pelagia.core.files import atomic_path
from pelagia.core.lazy import resolve
from pelagia.errors import ExportError
from pelagia.export.onnx import OPSET, TOLERANCE, ExportReport, check_agreement, check_target, export_onnx
from pelagia.infer.openvino_runtime import OpenVinoRuntime, openvino_core
from pelagia.infer.runtimes import CARD_KEY
from pelagia.models.model import Model

__all__ = ["export_openvino", "write_ir"]


def export_openvino(model: Model, path: str | Path, *, tolerance: float = TOLERANCE) -> ExportReport:
    """Write `model` as `path` (.xml) and the .bin of the same name, run it, and compare it with the model.

    Raises:
        ExportError: the graph cannot be written, or an output differs by more than `check_agreement` allows; what was there
            stays.
        OptionError: `path` does not end with .xml, or a .bin that is no part of an earlier export has its name (`check_target`).
        MissingExtraError: the extra `openvino` is not installed.
    """
    check_target(path, "openvino")
    start = time.perf_counter()
    outputs = {}

    def prove(written: Path) -> None:
        outputs.update(check_agreement(model, OpenVinoRuntime(written, device="cpu"), tolerance, path))

    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "model.onnx"
        report = export_onnx(model, between, tolerance=tolerance)
        try:
            graph = openvino_core().read_model(str(between))
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot read the graph ({str(error).strip().splitlines()[-1]})", where=path) from error
        # The card of the file between: export found out how far a network looks, where the model did not say it.
        card = ModelCard.from_json(str(graph.get_rt_info(["framework", CARD_KEY]).value), where=str(path))
        size = write_ir(graph, path, card, prove)
    return ExportReport(Path(path), OPSET, size, report.inputs, outputs, tolerance, time.perf_counter() - start)


def write_ir(graph: Any, path: str | Path, card: ModelCard, prove: Callable[[Path], None]) -> int:
    """Write an OpenVINO model with its card as .xml and .bin, both or none; returns their size in bytes.

    `prove` is called with the written file before it gets its name, and raises where it is not to be kept.

    Raises:
        ExportError: OpenVINO cannot write it.
        OptionError: as `check_target`.
    """
    target = Path(path)
    check_target(target, "openvino")
    _name_by_place(graph)
    graph.set_rt_info(card.to_json(), [CARD_KEY])
    graph.set_rt_info(card.licence, ["license"])
    openvino = resolve("openvino", purpose="write a model for OpenVINO")
    with atomic_path(target) as temporary:
        weights = temporary.with_suffix(".bin")
        try:
            try:
                openvino.serialize(graph, str(temporary), str(weights))
            except RuntimeError as error:
                raise ExportError(
                    f"OpenVINO cannot write this file ({str(error).strip().splitlines()[-1]})", where=target
                ) from error
            prove(temporary)
            size = temporary.stat().st_size + weights.stat().st_size
            with open(weights, "rb") as stream:
                os.fsync(stream.fileno())
            # Two names cannot change at once: the old graph goes first, so that it never stands beside the new weights.
            target.unlink(missing_ok=True)
            os.replace(weights, target.with_suffix(".bin"))
        finally:
            weights.unlink(missing_ok=True)
    return size


def _name_by_place(graph: Any) -> None:
    """Number what nobody named by its place in the graph; OpenVINO counts all that the process ever made, in names such as
    Reshape_635068, and two exports of one model would differ."""
    for place, node in enumerate(graph.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z]*_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{place}")
