"""Every model and task as ONNX: the file answers like the model in ONNX Runtime and OpenVINO, from decoding to the pictures,
or the table says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pelagia.api import Predictor, load
from pelagia.core.types import Instances, PanopticMap, Prediction, SemanticMap, Task
from pelagia.data.synthetic import draw_image
from pelagia.errors import ExportError
from pelagia.export.onnx import TOLERANCE, compare_runtime, export_onnx
from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.predict import FileResult
from pelagia.infer.results import ResultWriter
from pelagia.models import registry
from pelagia.models.runtime import TorchRuntime
from small_models import exported_file, scrambled_entry


def _cases() -> list[object]:
    """Each builder for its first task; the others are slow, since an export takes up to half a minute."""
    first = {entry.builder: entry.name for entry in reversed(registry.entries())}
    chosen = [(entry, task) for entry in registry.entries() if first[entry.builder] == entry.name for task in entry.tasks]
    return [
        pytest.param(entry.name, task, id=f"{entry.name}-{task}", marks=[] if task == entry.tasks[0] else [pytest.mark.slow])
        for entry, task in chosen
    ]


@pytest.mark.parametrize(("name", "task"), _cases())
def test_the_file_answers_like_the_model(name: str, task: Task, tmp_path: Path) -> None:
    states = registry.entry(name).exports
    assert states in ("yes", "not for the web") or states.startswith("no: ")
    if states.startswith("no:"):
        with pytest.raises(ExportError):
            export_onnx(scrambled_entry(name, task), tmp_path / "m.onnx")
        assert not any(tmp_path.iterdir())
        return
    model, path, report = exported_file(name, task)
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
