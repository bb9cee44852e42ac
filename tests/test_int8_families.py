"""8-bit files of models that pick boxes or cells in the middle: both runtimes round the same layers and answer alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pelagia.api import open_dataset
from pelagia.core.image import write
from pelagia.data.dataset import Dataset
from pelagia.data.synthetic import draw_image, draw_survey, open_survey
from pelagia.errors import ExportError
from pelagia.export import int8, int8_graph
from pelagia.export.int8 import calibration_inputs, export_int8
from pelagia.export.onnx import FileKind
from pelagia.infer.openvino_runtime import openvino_core
from pelagia.infer.runtimes import OnnxRuntime
from small_models import exported_file, label_what_is_found

KINDS: tuple[tuple[FileKind, str], ...] = (("onnx", "m.onnx"), ("openvino", "m.xml"))


@pytest.fixture(scope="module")
def two_stage_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A random two-stage detector, and images labelled with what it finds in them."""
    folder = tmp_path_factory.mktemp("two-stage")
    model, source, _ = exported_file("faster-rcnn", "detect")
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        write(path, draw_image(np.random.default_rng(number), 120, 90).image)
    return source, open_dataset(label_what_is_found(model, folder, paths), task="detect")


@pytest.fixture(scope="module")
def masked_attention_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("masked-attention")
    draw_survey(folder, 2, 0, width=128, height=96)
    return exported_file("mask2former-r50", "panoptic")[1], open_survey(folder, "panoptic")


def weighted_layers(path: Path) -> dict[str, bool]:
    """Name of each weighted layer of a file -> whether both of its inputs come out of 8 bits."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        kinds = {name: node.op_type for node in graph.node for name in node.output}
        weighted = [(node.name, node.input[:2]) for node in graph.node if node.op_type in int8_graph.WEIGHTED]
        return {name: all(kinds.get(given) == "DequantizeLinear" for given in inputs) for name, inputs in weighted}
    nodes = [node for node in openvino_core().read_model(path).get_ops() if node.get_type_name() in int8_graph.WEIGHTED]
    return {
        node.get_friendly_name().removesuffix("/WithoutBiases"): all(_is_rounded(value) for value in node.input_values()[:2])
        for node in nodes
    }


def _is_rounded(value: Any) -> bool:
    """A FakeQuantize, or weights of 8 bits, behind what scales, moves or picks values."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "MaxPool", "Multiply", "Reshape", "Squeeze", "Subtract", "Transpose", "Unsqueeze"):
        node = node.input_value(0).get_node()
    kind = node.get_type_name()
    return bool(kind == "FakeQuantize" or (kind == "Constant" and node.get_element_type().get_type_name() == "i8"))


def test_two_stage_detectors_score_alike_in_both_runtimes(two_stage_source: tuple[Path, Dataset], tmp_path: Path) -> None:
    """What picks boxes stays in float, so that the float file's own answers are mostly found again; measured 0.74 and 0.76."""
    source, data = two_stage_source
    reports = {kind: export_int8(source, tmp_path / name, data, kind, max_drop=1.0, show=False) for kind, name in KINDS}
    assert all(report.before > 0.95 for report in reports.values())
    assert all(0.5 < report.after < 0.95 for report in reports.values())
    assert abs(reports["onnx"].after - reports["openvino"].after) < 0.1
    layers = {kind: weighted_layers(tmp_path / name) for kind, name in KINDS}
    assert layers["onnx"] == layers["openvino"] == dict.fromkeys(weighted_layers(source), True)
    assert len(layers["onnx"]) > 40


def test_masked_attention_answers_alike_in_both_runtimes(masked_attention_source: tuple[Path, Dataset], tmp_path: Path) -> None:
    """Raw outputs: 8 bits move them by some hundredths of their spread, and no further apart from each other."""
    source, data = masked_attention_source
    floats = OnnxRuntime(source, threads=1)
    given = calibration_inputs(data, floats, 2)
    found = {}
    for kind, name in KINDS:
        int8._write(int8._quantize(source, kind, given, floats.card, float_head=False), tmp_path / name, kind, floats.card)
        found[kind] = int8._run(int8._open(tmp_path / name, kind), given[0])
    for key, wanted in floats.run(given[0]["images"]).items():
        spread = np.linalg.norm(wanted - wanted.mean())
        for value in (found["onnx"][key], found["openvino"][key]):
            assert 1e-3 < np.linalg.norm(value - wanted) / spread < 0.3, key
        assert np.linalg.norm(found["onnx"][key] - found["openvino"][key]) / spread < 0.3, key
    layers = {kind: weighted_layers(tmp_path / name) for kind, name in KINDS}
    assert all(layers["onnx"].values())
    # What the first queries go through does not depend on the image: NNCF leaves it, and OpenVINO computes it once.
    assert sum(not rounded for rounded in layers["openvino"].values()) <= 5
    assert set(layers["openvino"]) <= set(layers["onnx"])
    assert len(layers["openvino"]) > 60


def test_the_last_layers_stay_in_float_in_both_files(two_stage_source: tuple[Path, Dataset], tmp_path: Path) -> None:
    """Of a two-stage detector also those that place its proposals: a box is its proposal, moved."""
    source, data = two_stage_source
    floats = OnnxRuntime(source, threads=1)
    given = calibration_inputs(data, floats, 1)
    for kind, name in KINDS:
        int8._write(int8._quantize(source, kind, given, floats.card, float_head=True), tmp_path / name, kind, floats.card)
    last = int8_graph.before_outputs(*int8_graph.layers_of_onnx(onnx.load(source)))
    wanted = {name: name not in last for name in weighted_layers(source)}
    assert 10 < sum(wanted.values()) < len(wanted) - 10
    assert weighted_layers(tmp_path / "m.onnx") == weighted_layers(tmp_path / "m.xml") == wanted


def test_ranges_that_overflow_are_refused(two_stage_source: tuple[Path, Dataset]) -> None:
    source, data = two_stage_source
    floats = OnnxRuntime(source, threads=1)
    given = [{**dict(item), "images": np.full_like(item["images"], 3e38)} for item in calibration_inputs(data, floats, 2)]
    with pytest.raises(ExportError, match="cannot measure the ranges"):
        int8._quantize(source, "openvino", given, floats.card, float_head=False)
