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
import torch

from foreign_onnx_files import properties, write_foreign
from pelagia.api import Predictor, load, open_dataset
from pelagia.cli import main as cli_main
from pelagia.core.card import ModelCard
from pelagia.core.image import write
from pelagia.core.types import Instances
from pelagia.data.dataset import Dataset
from pelagia.data.synthetic import draw_image, draw_survey, open_survey
from pelagia.errors import ExportError, OptionError
from pelagia.export import int8 as int8_module
from pelagia.export import int8_graph
from pelagia.export.int8 import Int8Report, calibration_inputs, export_int8
from pelagia.export.onnx import TOLERANCE, Difference, FileKind, export_onnx
from pelagia.export.openvino import export_openvino, write_ir
from pelagia.infer.openvino_runtime import OpenVinoRuntime, openvino_core
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.models import checkpoint, registry
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from small_models import exported_file, label_what_is_found, two_stage


@pytest.fixture(scope="module")
def model() -> Model:
    return exported_file("yolo11n", "detect")[0]


@pytest.fixture(scope="module")
def source() -> Path:
    return exported_file("yolo11n", "detect")[1]


@pytest.fixture(scope="module")
def data(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images whose truth is what the float model finds in them: its AP is near 1, and what 8 bits change lowers it."""
    folder = tmp_path_factory.mktemp("data")
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        write(path, draw_image(np.random.default_rng(number), 120, 90).image)
    return label_what_is_found(model, folder, paths)


@pytest.fixture(scope="module")
def dataset(data: Path) -> Dataset:
    return open_dataset(data, task="detect")


@pytest.fixture(scope="module")
def written(source: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[FileKind, Int8Report]:
    """An 8-bit file of each kind."""
    folder = tmp_path_factory.mktemp("written")
    names: dict[FileKind, str] = {"onnx": "m.onnx", "openvino": "m.xml"}
    return {kind: export_int8(source, folder / name, dataset, kind, max_drop=1.0, show=False) for kind, name in names.items()}


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
    with pytest.raises(OptionError, match=r"ends with .xml"):
        export_openvino(model, tmp_path / "m.onnx")


def test_no_file_is_lost_to_the_weights_of_another(
    model: Model, source: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .bin without an .xml is not ours: PyTorch's checkpoints are called that too. Nothing is computed before that is known."""
    (tmp_path / "m.bin").write_text("another's weights")
    for name in ("pelagia.export.openvino.export_onnx", "pelagia.export.int8.evaluate"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(OptionError, match=r"would replace m\.bin"):
        export_openvino(model, tmp_path / "m.xml")
    with pytest.raises(OptionError, match=r"would replace m\.bin"):
        export_int8(source, tmp_path / "m.xml", dataset, "openvino", show=False)
    graph = openvino_core().read_model(str(source))
    with pytest.raises(OptionError, match=r"would replace m\.bin"):
        write_ir(graph, tmp_path / "m.xml", model.card, lambda _: None)
    with pytest.raises(OptionError, match="would replace the file that the model comes from"):
        export_int8(source, source, dataset, show=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.bin": "another's weights"}


def test_the_command_never_replaces_the_checkpoint(
    model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "pytorch_model.bin"
    weights.write_text("another's weights")
    monkeypatch.setattr("pelagia.models.foreign.load_any", lambda _: model)
    monkeypatch.setattr("pelagia.export.onnx._trace", lambda *_: pytest.fail("work was done"))
    int8 = ["--int8", "--data", str(data), "--max-ap-drop", "1", "--out", str(weights.with_suffix(".xml"))]
    for beside in (False, True):
        if beside:
            weights.with_suffix(".xml").write_text("a graph")
        for words in ([], int8):
            with pytest.raises(SystemExit) as stop:
                cli_main.main(["export", str(weights), "--format", "openvino", *words])
            assert stop.value.code == 1
            assert "would replace the file that the model comes from" in capsys.readouterr().err
    assert weights.read_text() == "another's weights"
    assert weights.with_suffix(".xml").read_text() == "a graph"


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_8_bit_file_is_scored_and_smaller(kind: FileKind, written: dict[FileKind, Int8Report], dataset: Dataset) -> None:
    report = written[kind]
    path = report.path
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
    monkeypatch.setattr(int8_module, "score_of", lambda result: ("AP", next(scores)))

    def watched(source: Path, kind: FileKind, *_: Any, float_head: bool) -> Any:
        """What is quantized is seen in `test_int8_families`."""
        heads.append(float_head)
        return onnx.load(source) if kind == "onnx" else openvino_core().read_model(str(source))

    monkeypatch.setattr(int8_module, "_quantize", watched)
    with pytest.raises(ExportError, match=r"falls from 0.9000 to 0.6000 .* and 0.8500 with the last layers in float"):
        export_int8(source, path, dataset, kind, most=2, show=False)
    assert heads == [False, True]
    assert list(tmp_path.iterdir()) == []
    scores = iter([0.9, 0.895])
    assert not export_int8(source, path, dataset, kind, most=2, show=False).float_head


def test_the_last_layers_are_those_before_the_outputs(source: Path) -> None:
    layers, ends = int8_graph.layers_of_onnx(onnx.load(source))
    last = int8_graph.before_outputs(layers, ends)
    assert sum(layers[name].kind == "Conv" for name in last) == 6  # a box and a class layer for each of three grids
    assert sum(layer.kind == "Conv" for layer in layers.values()) > 40
    layers, ends = int8_graph.layers_of_openvino(openvino_core().read_model(str(source)))
    last = int8_graph.before_outputs(layers, ends)
    assert sum(layers[name].kind == "Convolution" for name in last) == 6
    assert sum(layer.kind in ("Convolution", "GroupConvolution") for layer in layers.values()) > 40


def test_what_picks_boxes_between_two_weighted_layers_stays_in_float() -> None:
    kinds = {
        "first": "Conv",
        "relu": "Relu",
        "second": "Conv",
        "shift": "Add",
        "best": "TopK",
        "pool": "RoiAlign",
        "head": "Gemm",
    }
    inputs = {"relu": ["first"], "second": ["relu"], "shift": ["second", ""], "best": ["shift"], "pool": ["relu", "best"]}
    inputs |= {"head": ["pool"], "first": [""]}
    layers = {name: int8_graph.Layer(kind, tuple(inputs[name])) for name, kind in kinds.items()}
    assert int8_graph.between(layers) == {"relu"}
    assert int8_graph.before_outputs(layers, ["head", "shift"]) == {"head", "shift", "second"}


def test_layers_between_are_those_with_a_way_to_a_weighted_one() -> None:
    """Against the definition: search forward from each operator."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        count = int(rng.integers(2, 16))
        kinds = rng.choice(["Conv", "Relu", "Add", "TopK", "Resize"], count).tolist()
        layers = {
            str(i): int8_graph.Layer(kind, tuple(str(j) if j >= 0 else "" for j in rng.integers(-1, max(i, 1), 2) if j < i))
            for i, kind in enumerate(kinds)
        }

        def leads(name: str, layers: dict[str, int8_graph.Layer] = layers) -> bool:
            for user, layer in layers.items():
                taken = layer.inputs[:1] if layer.kind in ("Relu", "Resize") else layer.inputs
                if name in taken and (layer.kind == "Conv" or (layer.kind != "TopK" and leads(user))):
                    return True
            return False

        expected = {name for name, layer in layers.items() if layer.kind not in ("Conv", "TopK") and leads(name)}
        assert int8_graph.between(layers) == expected


def test_silu_is_one_operator_before_quantization(source: Path) -> None:
    core = openvino_core()
    graph = core.read_model(str(source))
    sigmoids = sum(node.get_type_name() == "Sigmoid" for node in graph.get_ops())
    plain, joined = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), core.read_model(str(source))
    assert int8_graph.join_silu(joined, openvino) == sigmoids > 40
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
    monkeypatch.setattr(int8_module, "score_of", lambda result: ("AP", float("nan")))
    with pytest.raises(ExportError, match="has no AP"):
        export_int8(source, tmp_path / "m.onnx", dataset, show=False)


class _Watched:
    """Notes what a model is given."""

    def __init__(self, model: Model) -> None:
        self._runtime, self.card, self.seen = TorchRuntime(model), model.card, list[tuple[Any, ...]]()

    def run(self, images: Any, *valid: Any) -> dict[str, Any]:
        self.seen.append((images.copy(), *valid))
        return self._runtime.run(images, *valid)


@pytest.mark.parametrize("name", ["yolo11n", "faster-rcnn"])
def test_calibration_sees_what_prediction_sees(name: str, model: Model, dataset: Dataset, tmp_path: Path) -> None:
    """Also which part of the input is image, for the models that are told; a large image is seen in four of its tiles."""
    network = model if name == "yolo11n" else two_stage(name, "detect")
    watched = _Watched(network)
    for path in dataset.image_paths:
        Predictor(watched).predict(path)
    inputs = calibration_inputs(dataset, TorchRuntime(network), 4)
    assert len(inputs) == len(watched.seen) == 4
    for given, seen in zip(inputs, watched.seen, strict=True):
        assert list(given) == (["images", "valid"] if network.card.masks_padding else ["images"])
        for value, wanted in zip(given.values(), seen, strict=True):
            np.testing.assert_array_equal(value, wanted)
    write(tmp_path / "large.png", draw_image(np.random.default_rng(0), 700, 500).image)
    images = [{"id": 1, "file_name": "large.png", "width": 700, "height": 500}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    large = open_dataset(tmp_path / "labels.json", task="detect")
    assert len(calibration_inputs(large, TorchRuntime(network), 128)) == 4
    assert len(calibration_inputs(large, TorchRuntime(network), 3)) == 3


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_8_bit_outputs_stay_near_the_float_ones_and_repeat(
    kind: FileKind, source: Path, written: dict[FileKind, Int8Report], dataset: Dataset, tmp_path: Path
) -> None:
    first = written[kind].path
    export_int8(source, tmp_path / first.name, dataset, kind, max_drop=1.0, show=False)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == first.with_name(path.name).read_bytes(), path.name
    floats, runtime = OnnxRuntime(source), int8_module._open(first, kind)
    for given in calibration_inputs(dataset, floats, 4):
        found = runtime.run(given["images"])
        for name, value in floats.run(given["images"]).items():
            error = np.linalg.norm(found[name] - value) / np.linalg.norm(value - value.mean())
            assert 1e-4 < error < 0.2, (name, error)


def test_depthwise_layers_have_a_scale_a_channel(written: dict[FileKind, Int8Report]) -> None:
    """Or OpenVINO computes them in float."""
    nodes = openvino_core().read_model(written["openvino"].path).get_ops()
    depthwise = [node for node in nodes if node.get_type_name() == "GroupConvolution"]
    assert len(depthwise) == 7  # two for each grid's classes, one in the attention
    for node in depthwise:
        scaled = node.input_value(1).get_node()
        assert scaled.get_type_name() == "Multiply"
        assert scaled.input_value(0).get_node().input_value(0).get_element_type().get_type_name() == "i8"
        groups = node.input_value(1).get_shape()[0]
        assert list(scaled.input_value(1).get_shape()) == [groups, 1, 1, 1, 1]


def test_what_cannot_be_made_8_bit_is_refused(
    source: Path, written: dict[FileKind, Int8Report], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = write_foreign(tmp_path / "foreign.onnx", properties())
    with pytest.raises(ExportError, match="of `pelagia export`"):
        export_int8(foreign, tmp_path / "m.onnx", dataset, show=False)
    with pytest.raises(OptionError, match=r"ends with .xml"):
        export_int8(source, tmp_path / "m.onnx", dataset, "openvino", show=False)
    with pytest.raises(ExportError, match="8-bit layers already"):
        export_int8(written["onnx"].path, tmp_path / "again.onnx", dataset, max_drop=1.0, show=False)
    monkeypatch.setattr(int8_module, "score_of", lambda result: ("AP", 0.01))
    with pytest.raises(ExportError, match=r"the model has AP 0.0100 on these 4 images"):
        export_int8(source, tmp_path / "again.onnx", dataset, show=False)
    assert not (tmp_path / "again.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("yolo11n", "oriented"),
        ("yolo11n", "instance"),
        ("yolo11n", "keypoints"),
        ("faster-rcnn", "detect"),
        ("mask-rcnn", "instance"),
        ("keypoint-rcnn", "keypoints"),
        ("detr-r50", "detect"),
        ("unet-timm", "semantic"),
        ("mask2former-r50", "panoptic"),
    ],
)
def test_every_task_is_written(name: str, task: Any, kind: FileKind, tmp_path: Path) -> None:
    """The networks are random and find nothing; the file opens, says what it is, and answers within reach of the float one."""
    size = registry.entry(name).tiny_input
    draw_survey(tmp_path, 2, 0, width=128, height=96)
    data = open_survey(tmp_path, task)
    torch.manual_seed(0)
    model = registry.create(name, data.categories, task, input_size=size, options=registry.entry(name).tiny).eval()
    source = export_onnx(model, tmp_path / "float.onnx").path
    path = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    report = export_int8(source, path, data, kind, max_drop=1.0, show=False)
    assert report.score == {"semantic": "mIoU", "panoptic": "PQ"}.get(task, "AP")
    runtime = int8_module._open(path, kind)
    assert "int8" in runtime.card.manifest
    given = calibration_inputs(data, runtime, 1)[0]
    wanted = int8_module._run(int8_module._open(source, kind), given)
    for key, value in int8_module._run(runtime, given).items():
        assert value.shape == wanted[key].shape
        assert np.isfinite(value).all()


def test_the_command_writes_both_kinds(model: Model, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "best.safetensors", model, model.card)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli_main.main(["export", *arguments])
        return int(stop.value.code or 0), capsys.readouterr().out

    code, text = run(str(tmp_path), "--format", "openvino")
    assert code == 0
    assert "best.xml" in text
    assert "agrees with the model within 0.001: " in text
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


def test_the_command_prints_both_scores_and_what_8_bits_cost(
    model: Model, source: Path, data: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the scores of both files by themselves."""
    checkpoint.save(tmp_path / "best.safetensors", model, model.card)
    with pytest.raises(SystemExit) as stop:
        cli_main.main(["export", str(tmp_path), "--int8", "--data", str(data), "--max-ap-drop", "1"])
    assert stop.value.code == 0
    scores = [load(path).evaluate(dataset, show=False) for path in (source, tmp_path / "best.int8.onnx")]
    before, after = (score.ap for score in scores)  # type: ignore[union-attr]
    assert before > 0.5
    assert f"{before:.4f}" != f"{after:.4f}"
    lines = capsys.readouterr().out.splitlines()
    head, *rows = (line.split() for line in lines[:3])
    assert head == ["file", "AP", "network", "ms"]
    assert [row[:2] for row in rows] == [["float", f"{before:.4f}"], ["int8", f"{after:.4f}"]]
    assert all(float(row[2]) > 0 for row in rows)
    assert f"AP on 4 images falls by {before - after:.4f} (limit 1), all layers in 8 bits" in lines[4]
    assert f"{tmp_path / 'best.int8.onnx'} (" in lines[4]


def test_the_command_prints_the_limit_that_was_applied(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path / "best.safetensors", model, model.card)
    outputs = {"boxes": Difference(0.2, 2e-4, 1e-3, left_out=2), "masks": Difference(0.5, 0.004, 0.0123, left_out=2)}
    monkeypatch.setattr("pelagia.export.onnx.check_agreement", lambda *_: outputs)
    with pytest.raises(SystemExit) as stop:
        cli_main.main(["export", str(tmp_path)])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["output", "largest", "difference", "relative", "limit"]
    assert [line.split()[-1] for line in lines[1:3]] == ["0.001", "0.0123"]
    assert "the 2 detections of each batch that differ most are left out: rounding decides them in the model too" in lines
    assert "agrees with the model within the limits above, beyond 0.001 where rounding explains it: " in lines[-1]


def test_exporting_imports_openvino_only_when_asked() -> None:
    code = "import sys, pelagia.cli.export, pelagia.export.int8; print({'openvino', 'nncf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
