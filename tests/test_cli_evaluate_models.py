"""`pelagia evaluate` with a model: tiles are told and noted, and thresholds and calibration go into its card."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pelagia
from evaluating import CLASSES, HEIGHT, WIDTH, document, drawn, run, truth_file
from pelagia.api import Predictor
from pelagia.cli.evaluate import _Flags, _store
from pelagia.core.image import write
from pelagia.core.types import Instances
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.errors import OptionError
from pelagia.infer.assess import AssessOptions
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files, predict_image
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.metrics.scaling import ScoreMap
from pelagia.models import checkpoint
from tiny_onnx import tiny_card, write_tiny

TILED = "1 of 2 images are predicted in tiles of 64 x 64 pixels that overlap by 13, as `predict` does"


def small_and_wide(folder: Path, kind: type[np.unsignedinteger[Any]]) -> Path:
    """The labels of an image that the network sees at once and of one that it does not."""
    items = []
    for name, width in (("small", 64), ("wide", 200)):
        path = folder / "images" / f"{name}.png"
        write(path, np.zeros((64, width, 3), dtype=kind))
        items.append((path, (width, 64), Instances(labels=np.array([0]), boxes=np.array([[8.0, 8, 16, 16]]))))
    convert(Dataset.from_instances(tiny_card().categories, items, task="detect"), folder / "coco", "coco")
    return truth_file(folder)


def test_tiles_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, model = small_and_wide(tmp_path, np.uint8), write_tiny(tmp_path / "m.onnx")
    for words, count in (((), 1), (("--no-tiled",), 0)):
        assert run("evaluate", model, truth, *words) == 0
        error = capsys.readouterr().err
        assert error.count(f"{TILED}; --no-tiled") == count
        assert error.count(" in tiles of ") == count


def test_the_notes_stand_in_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, model = small_and_wide(tmp_path, np.uint16), write_tiny(tmp_path / "m.onnx")
    notes = list(pelagia.evaluate(model, truth, show=False).notes)  # type: ignore[union-attr]  # a model has notes
    assert notes[0] == TILED
    assert "has 16 bits" in notes[1]
    assert run("evaluate", model, truth, "--json", "--out", tmp_path / "out") == 0
    found = document(capsys)
    assert found["notes"] == json.loads((tmp_path / "out" / "evaluation.json").read_text())["notes"] == notes
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(html.escape(note) in page for note in notes)
    assert run("evaluate", model, truth) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == notes
    assert run("evaluate", model, small_and_wide(tmp_path / "bytes", np.uint8), "--no-tiled", "--json") == 0
    assert "notes" not in document(capsys)


def test_calibrated_scores(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[8:16, 16:24, 0] = 140
    write(tmp_path / "a.png", image)
    fitted = ScoreMap("temperature", {"temperature": 4.0})
    raw = OnnxRuntime(write_tiny(tmp_path / "raw.onnx"), threads=1)
    card = replace(tiny_card(), calibration=fitted.to_dict())
    mapped = OnnxRuntime(write_tiny(tmp_path / "mapped.onnx", card), threads=1)
    plain, options = predict_image(raw, image), PredictOptions(calibrated=True)
    assert plain.scores is not None
    assert 0.5 < plain.scores[0] < 1
    expected = fitted.apply(plain.scores)
    assert expected[0] < plain.scores[0] - 0.05
    np.testing.assert_allclose(predict_image(mapped, image, options).scores, expected)
    found = next(predict_files(mapped, [tmp_path / "a.png"], options)).found
    assert found is not None
    np.testing.assert_allclose(found.scores, expected)
    np.testing.assert_allclose(predict_image(mapped, image).scores, plain.scores)
    with pytest.raises(OptionError, match="--save-calibration"):
        predict_image(raw, image, options)


def test_thresholds_and_calibration_are_stored(tmp_path: Path) -> None:
    model = pelagia.create_model("yolo11n", [category.name for category in CLASSES], input_size=64)
    checkpoint.save(tmp_path / "m.safetensors", model, model.card)
    items = [(tmp_path / f"{index}.png", (WIDTH, HEIGHT), drawn(index).replace(masks=None)) for index in range(20)]
    data = Dataset.from_instances(CLASSES, items, task="detect")
    rng, found = np.random.default_rng(0), []
    for index in range(20):
        truth = data.truth(index)
        right = rng.random(len(truth)) < 0.7
        scores = np.where(right, rng.uniform(0.3, 1, len(truth)), rng.uniform(0, 0.8, len(truth)))
        found.append(truth.replace(boxes=truth.box_array + np.where(right, 0, 60)[:, None], scores=scores, areas=None))
    predictor, before = pelagia.load(tmp_path / "m.safetensors"), checkpoint.read(tmp_path / "m.safetensors")[0]
    flags = _Flags(save_thresholds=True, save_calibration="platt")
    _store(predictor, data, found, flags, AssessOptions(threshold="count"))
    tensors, card, _ = checkpoint.read(tmp_path / "m.safetensors")
    assert set(card.thresholds) == {"red", "orange", "blue"}
    fitted = ScoreMap.from_dict(card.calibration)
    assert fitted.kind == "platt"
    assert fitted.class_names == ("red", "orange", "blue")
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    exported = OnnxRuntime(write_tiny(tmp_path / "m.onnx"), threads=1)
    with pytest.raises(OptionError, match="safetensors"):
        _store(Predictor(exported, tmp_path / "m.onnx"), data, found, flags, AssessOptions())
