"""OpenVINO's own files and 8-bit files: they carry the card, answer like the model, and are refused where they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest

from pelagia.api import Predictor, load, open_dataset
from pelagia.cli import main as cli_main
from pelagia.core.card import ModelCard
from pelagia.core.image import write
from pelagia.core.types import Instances
from pelagia.data.dataset import Dataset
from pelagia.data.synthetic import draw_image
from pelagia.errors import ExportError, OptionError
from pelagia.export import int8 as int8_module
from pelagia.export.int8 import FileKind, calibration_inputs, export_int8
from pelagia.export.onnx import TOLERANCE, export_onnx
from pelagia.export.openvino import export_openvino
from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.models import checkpoint
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from test_export import scrambled


@pytest.fixture(scope="module")
def model() -> Model:
    return scrambled("detect")


@pytest.fixture(scope="module")
def source(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(model, tmp_path_factory.mktemp("int8") / "float.onnx").path


@pytest.fixture(scope="module")
def data(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images whose truth is what the float model finds in them: its AP is near 1, and what 8 bits change lowers it."""
    folder = tmp_path_factory.mktemp("data")
    images, annotations = [], []
    predictor = Predictor(TorchRuntime(model))
    for number in range(4):
        image = draw_image(np.random.default_rng(number), 120, 90).image
        write(folder / f"{number}.png", image)
        images.append({"id": number, "file_name": f"{number}.png", "width": 120, "height": 90})
        found = predictor.predict(image, score=0.001, nms_iou=0.7, most=40)
        assert isinstance(found, Instances)
        for (x1, y1, x2, y2), label in zip(found.box_array.tolist(), found.labels.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, **box})
    assert len(annotations) > 40
    categories = [{"id": index, "name": name} for index, name in enumerate("abc", 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"


@pytest.fixture(scope="module")
def dataset(data: Path) -> Dataset:
    return open_dataset(data, task="detect")


def test_an_ir_answers_like_the_model_and_carries_its_card(model: Model, tmp_path: Path) -> None:
    report = export_openvino(model, tmp_path / "m.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    assert all(item.relative <= TOLERANCE for item in report.outputs.values())
    assert report.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    runtime = load(tmp_path / "m.xml").runtime
    assert isinstance(runtime, OpenVinoRuntime)
    assert runtime.card == model.card
    weights = sum(value.numel() for value in model.parameters())
    assert (tmp_path / "m.bin").stat().st_size >= 3.5 * weights  # float32, not halved
    image = draw_image(np.random.default_rng(0), 300, 200).image
    found = load(tmp_path / "m.xml").predict(image, score=0.001, nms_iou=1.0, tiling="never")
    wanted = Predictor(TorchRuntime(model)).predict(image, score=0.001, nms_iou=1.0, tiling="never")
    assert isinstance(found, Instances)
    assert isinstance(wanted, Instances)
    assert len(found) == len(wanted) > 20
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)  # type: ignore[arg-type]


def test_an_ir_that_differs_is_refused(model: Model, tmp_path: Path) -> None:
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_text("what was there before")
    with pytest.raises(ExportError, match="differs from the model"):
        export_openvino(model, tmp_path / "m.xml", tolerance=1e-12)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"what was there before"}
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(OptionError, match=r"end with .xml"):
        export_openvino(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_8_bit_file_is_scored_and_smaller(kind: FileKind, source: Path, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    report = export_int8(source, path, dataset, kind, max_drop=1.0, show=False)
    assert report.score == "AP"
    assert report.before > 0.5
    assert report.after == pytest.approx(report.before - report.drop)
    assert report.after > 0.2  # far from what another graph would score
    assert not report.float_head
    assert report.calibration == 4
    assert _has_int8_weights(path)
    runtime = OnnxRuntime(path) if kind == "onnx" else OpenVinoRuntime(path)
    again = Predictor(runtime).evaluate(dataset, show=False)
    assert again.ap == pytest.approx(report.after, abs=1e-9)  # type: ignore[union-attr]
    assert runtime.card.manifest["int8"]["float"] == report.before
    assert isinstance(runtime.card, ModelCard)
    json.dumps(report.to_dict())


def _has_int8_weights(path: Path) -> bool:
    if path.suffix == ".xml":
        return 'element_type="i8"' in path.read_text()
    graph = onnx.load(path).graph
    kinds = [weight.data_type for weight in graph.initializer if len(weight.dims) == 4]
    return bool(kinds) and all(kind == onnx.TensorProto.INT8 for kind in kinds)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_too_great_a_loss_is_refused_after_the_last_layers_were_tried_in_float(
    kind: FileKind, source: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    heads: list[bool] = []
    scores = iter([0.9, 0.6, 0.85])
    monkeypatch.setattr(int8_module, "_score", lambda result: ("AP", next(scores)))
    right = int8_module._quantize

    def watched(*args: Any, float_head: bool) -> Any:
        heads.append(float_head)
        return right(*args, float_head=float_head)

    monkeypatch.setattr(int8_module, "_quantize", watched)
    with pytest.raises(ExportError, match=r"falls from 0.9000 to 0.6000 .* and 0.8500 with the last layers in float"):
        export_int8(source, path, dataset, kind, most=2, show=False)
    assert heads == [False, True]
    assert list(tmp_path.iterdir()) == []
    scores = iter([0.9, 0.895])
    assert not export_int8(source, path, dataset, kind, most=2, show=False).float_head


def test_the_last_layers_are_those_before_the_outputs(source: Path) -> None:
    graph = onnx.load(source)
    last = int8_module._last_onnx(graph)
    kinds = {node.name: node.op_type for node in graph.graph.node}
    assert sum(kinds[name] == "Conv" for name in last) == 6  # a box and a class layer for each of three grids
    assert sum(kind == "Conv" for kind in kinds.values()) > 40


def test_silu_is_one_operator_before_quantization(source: Path) -> None:
    core = openvino.Core()
    graph = core.read_model(str(source))
    sigmoids = sum(node.get_type_name() == "Sigmoid" for node in graph.get_ops())
    plain, joined = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), core.read_model(str(source))
    assert int8_module._join_silu(joined, openvino) == sigmoids > 40
    assert not any(node.get_type_name() == "Sigmoid" for node in joined.get_ops())
    images = np.random.default_rng(0).normal(0, 1, (2, 3, 64, 96)).astype(np.float32)
    found = core.compile_model(joined, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)
    for index, value in enumerate(plain(images).values()):
        np.testing.assert_allclose(found[index], value, rtol=1e-3, atol=1e-3)


def test_without_a_score_nothing_is_measured(
    source: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match="max_drop"):
        export_int8(source, tmp_path / "m.onnx", dataset, max_drop=2.0)
    monkeypatch.setattr(int8_module, "_score", lambda result: ("AP", float("nan")))
    with pytest.raises(ExportError, match="has no AP"):
        export_int8(source, tmp_path / "m.onnx", dataset, show=False)


def test_calibration_sees_what_prediction_sees(model: Model, dataset: Dataset, tmp_path: Path) -> None:
    inputs = list(calibration_inputs(dataset, model.card, 4))
    assert len(inputs) == 4
    assert all(item.keys() == {"images"} for item in inputs)
    assert all(item["images"].shape == (1, 3, *model.card.input_size) for item in inputs)
    assert all(item["images"].dtype == np.float32 for item in inputs)
    write(tmp_path / "large.png", draw_image(np.random.default_rng(0), 700, 500).image)
    images = [{"id": 1, "file_name": "large.png", "width": 700, "height": 500}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert len(list(calibration_inputs(open_dataset(tmp_path / "labels.json", task="detect"), model.card, 128))) == 4


def test_the_command_writes_both_kinds(model: Model, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "best.safetensors", model, model.card)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli_main.main(["export", *arguments])
        return int(stop.value.code or 0), capsys.readouterr().out

    code, text = run(str(tmp_path), "--format", "openvino")
    assert code == 0
    assert "best.xml" in text
    assert {"best.xml", "best.bin"} <= {path.name for path in tmp_path.iterdir()}
    code, text = run(str(tmp_path), "--int8", "--data", str(data), "--max-ap-drop", "1", "--json")
    assert code == 0
    told = json.loads(text)  # nothing else on standard output
    assert Path(told["path"]).name == "best.int8.onnx"
    assert told["score"] == "AP"
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, _ = run(str(tmp_path), "--int8", "--data", str(data), "--max-ap-drop", "2", "--format", "openvino")
    assert code == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    code, _ = run(str(tmp_path), "--int8")
    assert code == 1


def test_exporting_imports_openvino_only_when_asked() -> None:
    code = "import sys, pelagia.cli.export, pelagia.export.int8; print({'openvino', 'nncf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
