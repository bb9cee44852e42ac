"""The public interface: what `load` takes, what a `Predictor` answers, and how wrong arguments are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pelagia
from pelagia.core.image import write
from pelagia.core.types import Category, Instances
from pelagia.data.dataset import Dataset
from pelagia.errors import CheckpointError, ExportError, ImageError, OptionError
from pelagia.models import checkpoint
from pelagia.models.model import Model
from pelagia.models.registry import entry
from tiny_onnx import write_tiny


@pytest.fixture
def image() -> np.ndarray:
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[8:16, 24:32, 0] = 255
    return picture


def tiny_model() -> Model:
    return pelagia.create_model("yolo11n", 2, input_size=64, options=dict(entry("yolo11n").tiny)).eval()


def test_an_exported_file(tmp_path: Path, image: np.ndarray) -> None:
    model = pelagia.load(write_tiny(tmp_path / "m.onnx"))
    write(tmp_path / "a.png", image)
    from_file, from_array = model.predict(tmp_path / "a.png"), model.predict(image)
    np.testing.assert_array_equal(from_file.boxes, [[24, 8, 32, 16]])
    np.testing.assert_array_equal(from_array.boxes, from_file.boxes)
    assert len(model.predict(image, score=1.0)) == 0
    assert model.model is None
    assert model.card.licence == "CC0-1.0"
    assert [result.error is None for result in model.predict_files([tmp_path / "a.png", tmp_path / "b.png"])] == [True, False]
    with pytest.raises(ImageError, match="does not exist"):
        model.predict(tmp_path / "b.png")
    with pytest.raises(OptionError, match="unknown option scores; known are score"):
        model.predict(image, scores=0.3)
    with pytest.raises(ExportError, match="exported file already"):
        model.export(tmp_path / "again.onnx")


def test_evaluate(tmp_path: Path, image: np.ndarray) -> None:
    write(tmp_path / "a.png", image)
    truth = Instances(labels=np.array([0]), boxes=np.array([[24.0, 8, 32, 16]]))
    data = Dataset.from_instances([Category(3, "red")], [(tmp_path / "a.png", (64, 64), truth)])
    path = write_tiny(tmp_path / "m.onnx")
    result = pelagia.evaluate(path, data, show=False)
    assert result.ap == pytest.approx(1.0)
    assert "AP50           1.000" in str(result)
    assert pelagia.evaluate(pelagia.load(path), data, show=False, batch=2).ap == pytest.approx(1.0)
    with pytest.raises(OptionError, match="unknown option"):
        pelagia.evaluate(path, data, threshold=0.1)


def test_a_checkpoint_and_a_run_folder(tmp_path: Path, image: np.ndarray) -> None:
    model = tiny_model()
    checkpoint.save(tmp_path / "best.safetensors", model, model.card)
    for place in (tmp_path, tmp_path / "best.safetensors"):
        predictor = pelagia.load(place, device="cpu")
        assert predictor.model is not None
        assert predictor.card == model.card
        found = predictor.predict(image, score=0.0, most=7)
        assert len(found) == 7
    checkpoint.save(tmp_path / "other" / "last.safetensors", model, model.card)
    assert pelagia.load(tmp_path / "other").path == tmp_path / "other" / "last.safetensors"


@pytest.mark.parametrize(
    "name", ["absent.onnx", "absent.safetensors", "absent", "empty", "text.txt", "text.safetensors", "text.pt"]
)
def test_what_is_no_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for suffix in ("txt", "safetensors", "pt"):
        (tmp_path / f"text.{suffix}").write_text("text")
    with pytest.raises(CheckpointError, match=r"\w"):
        pelagia.load(tmp_path / name)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "meta"])
def test_an_unknown_device_is_refused(tmp_path: Path, device: str) -> None:
    model = tiny_model()
    checkpoint.save(tmp_path / "m.safetensors", model, model.card)
    with pytest.raises(OptionError, match="device"):
        pelagia.load(tmp_path / "m.safetensors", device=device)


def test_create_and_list() -> None:
    assert tiny_model().card.class_names == ("class 0", "class 1")
    named = pelagia.create_model("yolo11n", ["centric", "pennate"], task="oriented", options=dict(entry("yolo11n").tiny))
    assert [(item.id, item.name) for item in named.card.categories] == [(1, "centric"), (2, "pennate")]
    assert named.card.task == "oriented"
    kept = pelagia.create_model("yolo11n", [Category(7, "x")], options=dict(entry("yolo11n").tiny))
    assert kept.card.categories == (Category(7, "x"),)
    assert {item.name for item in pelagia.list_models(task="oriented")} >= {"yolo11n", "yolo11x"}
    with pytest.raises(OptionError, match="yolo11n"):
        pelagia.create_model("yolo11q", 2)


def test_options_of_training_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown option epoch"):
        pelagia.train("yolo11n", tmp_path, epoch=3)
    with pytest.raises(OptionError, match="imgsz"):
        pelagia.train("yolo11n", tmp_path, imgsz=10)
