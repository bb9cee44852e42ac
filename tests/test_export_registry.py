"""Every model and task as ONNX: the file answers like the model in ONNX Runtime and OpenVINO, from decoding to the pictures,
or the table says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pelagia.api import Predictor, load
from pelagia.core.types import Instances, PanopticMap, Prediction, SemanticMap, Task
from pelagia.data.synthetic import draw_image
from pelagia.errors import ExportError
from pelagia.export.onnx import TOLERANCE, compare_runtime, export_onnx
from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.predict import FileResult
from pelagia.infer.results import ResultWriter
from pelagia.models import registry
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from test_models_battery import make


def _cases() -> list[object]:
    """Each builder for its first task; the others are slow, since an export takes up to half a minute."""
    first = {entry.builder: entry.name for entry in reversed(registry.entries())}
    chosen = [(entry, task) for entry in registry.entries() if first[entry.builder] == entry.name for task in entry.tasks]
    return [
        pytest.param(entry.name, task, id=f"{entry.name}-{task}", marks=[] if task == entry.tasks[0] else [pytest.mark.slow])
        for entry, task in chosen
    ]


def scrambled(name: str, task: Task) -> Model:
    """Weights and running statistics far from their start, so that folding them wrongly shows."""
    model = make(name, task)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize(("name", "task"), _cases())
def test_the_file_answers_like_the_model(name: str, task: Task, tmp_path: Path) -> None:
    model, path, states = scrambled(name, task), tmp_path / "m.onnx", registry.entry(name).exports
    assert states in ("yes", "not for the web") or states.startswith("no: ")
    if states.startswith("no:"):
        with pytest.raises(ExportError):
            export_onnx(model, path)
        assert not path.exists()
        return
    torch.manual_seed(0)
    report = export_onnx(model, path)
    for given in onnx.load(path, load_external_data=False).graph.input:  # or each image would be run beside an empty one
        assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert report.outputs
    assert all(item.relative <= TOLERANCE for item in report.outputs.values())
    torch.manual_seed(0)
    openvino = OpenVinoRuntime(path)
    others = compare_runtime(model, openvino)
    assert all(item.relative <= TOLERANCE for item in others.values()), others
    image = draw_image(np.random.default_rng(0), 200, 130).image
    asked = {"score": 0.001, "nms_iou": 1.0, "tiling": "never"}
    found = load(path).predict(image, **asked)  # numpy from the raw outputs on
    wanted = Predictor(TorchRuntime(model)).predict(image, **asked)
    agree(found, wanted)
    agree(Predictor(openvino).predict(image, **asked), wanted)  # normalised within the graph
    with ResultWriter(tmp_path / "out", model.card) as writer:
        writer.add(FileResult(Path("a.png"), 200, 130, found), "a.png")
    assert (tmp_path / "out" / "results.json").is_file()


def agree(found: Prediction, wanted: Prediction) -> None:
    """Objects are as many and score alike; of maps 99 % of the pixels are the same."""
    assert type(found) is type(wanted)
    if isinstance(found, SemanticMap) and isinstance(wanted, SemanticMap):
        assert (found.labels == wanted.labels).mean() > 0.99
    elif isinstance(found, PanopticMap) and isinstance(wanted, PanopticMap):
        assert abs(len(found.segments) - len(wanted.segments)) <= 1
        assert ((found.ids > 0) == (wanted.ids > 0)).mean() > 0.99
    else:
        assert isinstance(found, Instances)
        assert isinstance(wanted, Instances)
        assert abs(len(found) - len(wanted)) <= 1
        count = min(len(found), len(wanted))
        assert found.scores is not None
        assert wanted.scores is not None
        np.testing.assert_allclose(found.scores[:count], wanted.scores[:count], atol=1e-3)
