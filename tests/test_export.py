"""The exported file answers like the model, carries its card, and a file that does not agree is never left behind."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pelagia.api import Predictor, load
from pelagia.cli import main as cli_main
from pelagia.core import boxes, masks
from pelagia.core.card import ModelCard
from pelagia.data.synthetic import draw_image
from pelagia.errors import ExportError, OptionError
from pelagia.export import onnx as export_module
from pelagia.export.onnx import TOLERANCE, ExportReport, check_agreement, export_onnx
from pelagia.infer.runtimes import CARD_KEY, OnnxRuntime
from pelagia.models import checkpoint
from pelagia.models.model import Model, Targets
from pelagia.models.runtime import TorchRuntime
from small_models import SIZE, exported_file, scrambled, two_stage


@pytest.fixture(scope="module", params=["detect", "oriented", "instance", "keypoints"])
def exported(request: pytest.FixtureRequest) -> tuple[Model, Path, ExportReport]:
    return exported_file("yolo11n", request.param)


def test_raw_outputs_are_equal_for_every_batch(exported: tuple[Model, Path, ExportReport]) -> None:
    model, path, report = exported
    runtime = OnnxRuntime(path, threads=1)
    extra = {"oriented": {"angles"}, "instance": {"coefficients", "prototypes"}, "keypoints": {"keypoints"}}
    assert set(report.outputs) == {"boxes", "scores"} | extra.get(model.card.task, set())
    assert all(item.relative <= TOLERANCE for item in report.outputs.values())
    for batch in (1, 2, 5):
        images = np.random.default_rng(batch).normal(0, 1, (batch, 3, *SIZE)).astype(np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(images))
        for name, value in runtime.run(images).items():
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-3, atol=1e-3)


def test_the_card_is_in_the_file(exported: tuple[Model, Path, ExportReport]) -> None:
    model, path, report = exported
    assert OnnxRuntime(path, threads=1).card == model.card
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert {item.key for item in graph.metadata_props} >= {CARD_KEY, "license"}
    assert graph.opset_import[0].version == report.opset
    assert report.size_bytes == path.stat().st_size
    json.dumps(report.to_dict())


def test_the_model_is_left_as_it_was(exported: tuple[Model, Path, ExportReport]) -> None:
    model, _, _ = exported
    fresh = scrambled(model.card.task)
    for (name, value), (other, wanted) in zip(model.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, wanted)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_predictions_are_alike(exported: tuple[Model, Path, ExportReport]) -> None:
    model, path, _ = exported
    image = draw_image(np.random.default_rng(0), 300, 200).image
    # Scrambled scores are often equal to the last digit, so which of two suppresses the other is chance: none does.
    from_file = load(path).predict(image, score=0.001, nms_iou=1.0, tiling="never")
    from_model = Predictor(TorchRuntime(model)).predict(image, score=0.001, nms_iou=1.0, tiling="never")
    assert len(from_file) == len(from_model) > 20
    np.testing.assert_allclose(from_file.scores, from_model.scores, atol=1e-4)
    # Objects of nearly equal score may change places, so each is looked for among all.
    same = boxes.iou(from_file.box_array, from_model.box_array) * (from_file.labels[:, None] == from_model.labels)
    assert (same.max(axis=1) > 0.99).all()
    assert (same.max(axis=0) > 0.99).all()
    # Boxes cut at the border of the image may be equal, so what else they answer with is looked for among all of them too.
    if model.card.task == "instance":
        ious = np.where(same > 0.99, masks.iou(from_file.masks, from_model.masks), 0.0).max(axis=1)
        full = np.array([mask.area for mask in from_file.masks]) > 0
        assert full.sum() > 20
        assert (ious[full] > 0.95).all()
    if model.card.task == "keypoints":
        away = np.abs(from_file.keypoints[:, None] - from_model.keypoints[None]).max(axis=(2, 3))
        assert (np.where(same > 0.99, away, np.inf).min(axis=1) < 0.1).all()


def test_a_file_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scrambled("detect")
    target = tmp_path / "m.onnx"
    target.write_text("what was there before")
    right = export_module._trace

    def wrong(*args: Any) -> onnx.ModelProto:
        graph = right(*args)
        for weight in graph.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 4:
                values = onnx.numpy_helper.to_array(weight) * 1.5
                weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
        return graph

    monkeypatch.setattr(export_module, "_trace", wrong)
    with pytest.raises(ExportError, match="differs from the model"):
        export_onnx(model, target)
    assert target.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [target]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = scrambled("detect")
    checkpoint.save(tmp_path / "best.safetensors", model, model.card)
    with pytest.raises(SystemExit) as stop:
        cli_main.main(["export", str(tmp_path), "--json"])
    assert stop.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert Path(report["path"]) == tmp_path / "best.onnx"
    assert OnnxRuntime(tmp_path / "best.onnx").card.thresholds == {"a": 0.5}
    with pytest.raises(ExportError, match="exported file already"):
        load(tmp_path / "best.onnx").export(tmp_path / "again.onnx")


def test_another_ending_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = scrambled("detect")
    checkpoint.save(tmp_path / "best.safetensors", model, model.card)
    for name in (".", "best.safetensors", "m", "m.xml", "m.ONNX"):
        with pytest.raises(OptionError, match=r"a file of ONNX ends with \.onnx"):
            load(tmp_path / "best.safetensors").export(tmp_path / name)
    with pytest.raises(SystemExit) as stop:
        cli_main.main(["export", str(tmp_path), "--out", str(tmp_path / "first.xml")])
    assert stop.value.code == 1
    assert "for OpenVINO take --format openvino" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize(("name", "task"), [("faster-rcnn", "detect"), ("mask-rcnn", "instance"), ("keypoint-rcnn", "keypoints")])
def test_two_stage_graphs_suppress_and_pool(name: str, task: Any) -> None:
    model, path, report = exported_file(name, task)
    extra = {"instance": {"masks"}, "keypoints": {"heatmaps"}}.get(task, set())
    assert set(report.outputs) == {"boxes", "scores", "labels"} | extra
    assert all(item.relative <= TOLERANCE for item in report.outputs.values())
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"NonMaxSuppression", "RoiAlign"} <= kinds
    found = OnnxRuntime(path, threads=1).run(np.zeros((2, 3, *SIZE), dtype=np.float32))
    assert found["boxes"].shape == (2, 20, 4)
    with torch.inference_mode():
        assert int((model(torch.rand(2, 3, *SIZE))["scores"] > 0).sum()) >= 20


def test_of_equal_anchors_the_graph_proposes_those_of_the_model(tmp_path: Path) -> None:
    """Even padding scores alike to the bit, here the whole image does: which anchors are highest must not be chance."""
    model = two_stage("faster-rcnn", "detect", rpn_before=40)
    with torch.no_grad():
        model.rpn.objectness.weight.zero_()
    report = export_onnx(model, tmp_path / "m.onnx")
    assert all(item.relative <= TOLERANCE for item in report.outputs.values())
    with torch.inference_mode():
        assert int((model(torch.rand(2, 3, *SIZE))["scores"] > 0).sum()) >= 20


def test_two_stage_graphs_that_differ_are_refused(tmp_path: Path) -> None:
    """A constant added to one answer of either stage, then taken away."""
    model = two_stage("faster-rcnn", "detect")
    _, path, _ = exported_file("faster-rcnn", "detect")  # of the same weights
    runtime = OnnxRuntime(path, threads=1)
    for part in ("rpn.objectness", "rpn.offsets", "box_head.classes.logits", "box_head.classes.offsets"):
        bias = model.get_parameter(f"{part}.bias")
        kept = bias.detach().clone()
        with torch.no_grad():
            bias[1::4] += 0.1
        with pytest.raises(ExportError, match="differs from the model"):
            check_agreement(model, runtime, TOLERANCE, tmp_path)
        with torch.no_grad():
            bias.copy_(kept)
        check_agreement(model, runtime, TOLERANCE, tmp_path)


class _Drawn(Model):
    """A two-stage detector by its card: 30 detections an image, one of them only where the first intensity is above `edge`."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.card = replace(two_stage("faster-rcnn", "detect").card)
        self.edge = nn.Parameter(torch.tensor(edge, dtype=torch.float64), requires_grad=False)

    def float(self) -> Self:
        return self  # the edge is told exactly

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(0)
        boxes = torch.rand(len(images), 30, 4, generator=rng) * 50
        scores = torch.rand(len(images), 30, generator=rng)
        scores[0, 4] += 0.5 * (images[0, 0, 0, 0].double() > self.edge)
        return {"boxes": boxes, "scores": scores, "labels": torch.ones(len(images), 30, dtype=torch.int64)}

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        raise AssertionError


@dataclass
class _Other:
    """Answers of a model as those of a file, `moved` of each image's detections elsewhere."""

    model: _Drawn
    moved: int

    @property
    def card(self) -> ModelCard:
        return self.model.card

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        found = {name: value.numpy() for name, value in self.model(torch.from_numpy(images)).items()}
        found["boxes"][0, : self.moved] += 7
        return found


def test_detections_that_rounding_decides_may_be_others_in_the_file_and_no_more(tmp_path: Path) -> None:
    first = float(export_module._inputs(_Drawn(0.0).card, 1)[0, 0, 0, 0])
    at_edge, far = _Drawn(first), _Drawn(first - 0.1)
    told = check_agreement(at_edge, _Other(at_edge, 2), TOLERANCE, tmp_path)
    assert {item.left_out for item in told.values()} == {2}
    assert {item.left_out for item in check_agreement(far, _Other(far, 0), TOLERANCE, tmp_path).values()} == {0}
    for model, moved in ((at_edge, 3), (far, 1)):
        with pytest.raises(ExportError, match="differs from the model: boxes"):
            check_agreement(model, _Other(model, moved), TOLERANCE, tmp_path)
    nan = _Drawn(first)
    nan.forward = lambda *_: {**at_edge(*_), "boxes": torch.full((len(_[0]), 30, 4), torch.nan)}  # type: ignore[method-assign]
    with pytest.raises(ExportError, match="differs from the model"):
        check_agreement(at_edge, _Other(nan, 0), TOLERANCE, tmp_path)
