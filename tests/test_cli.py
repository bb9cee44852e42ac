"""The command line: exit codes, one JSON document, one sentence per error, and work without the tensor side.

Commands run in this process through `main`; what concerns the process itself (no torch installed, Ctrl-C) in a fresh one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagia.cli import main as cli_main
from pelagia.cli.common import table
from pelagia.cli.flags import flags_of, given
from pelagia.core.image import write
from pelagia.core.types import Category, Instances
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.models import registry
from pelagia.models.weights import PUBLISHED
from pelagia.train.options import TrainOptions, defaults_of
from tiny_onnx import write_tiny

SOURCE = Path(__file__).parents[1] / "src"

#: Run before the command: every package of the tensor side is as if it were not installed.
WITHOUT_TENSORS = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Block())
"""


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli_main.main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def fresh(*words: str | Path, before: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = f"{before}\nfrom pelagia.cli.main import main\nmain({[str(word) for word in words]!r})"
    env = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PATH": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env, cwd=cwd)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images with bright cells, and their labels as COCO with splits in YOLO form."""
    folder = tmp_path_factory.mktemp("cli")
    write_tiny(folder / "m.onnx")
    rng = np.random.default_rng(0)
    items = []
    for index in range(6):
        image = rng.integers(0, 40, (64, 64, 3)).astype(np.uint8)
        boxes, labels = [], []
        for place, label in zip(rng.choice(64, 4, replace=False).tolist(), (0, 1, 0, 1), strict=True):
            y, x = divmod(place, 8)
            image[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = (255, 0, 0) if label == 0 else (0, 255, 0)
            boxes.append([x * 8.0, y * 8, x * 8 + 8, y * 8 + 8])
            labels.append(label)
        path = folder / "images" / f"{index}.png"
        write(path, image)
        items.append((path, (64, 64), Instances(labels=np.array(labels), boxes=np.array(boxes))))
    data = Dataset.from_instances(
        [Category(3, "red"), Category(7, "green")], items, splits={"train": [0, 1, 2], "val": [3, 4, 5]}
    )
    convert(data, folder / "coco", "coco")
    convert(data, folder / "yolo", "yolo")
    return folder


def coco_file(place: Path) -> Path:
    return next((place / "coco").rglob("*.json"))


# Overview and errors


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli_main.COMMANDS)
    assert run("--version") == 0


@pytest.mark.parametrize("command", list(cli_main.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["predict", "m.onnx"],
        ["predict", "m.onnx", "a.png", "--score", "much"],
        ["predict", "m.onnx", "a.png", "--score", "2"],
        ["predict", "m.onnx", "a.png", "--tiling", "perhaps"],
        ["models", "--task", "guess"],
        ["train", "yolo11n", "data", "--imgsz", "many"],
    ],
)
def test_a_wrong_command_line_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err


def test_a_failure_is_one_line_and_ends_with_1(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["predict", tmp_path / "absent.onnx", place / "images"],
        ["evaluate", place / "m.onnx", tmp_path / "absent.json"],
        ["doctor", tmp_path / "absent"],
        ["train", "yolo11n"],
        ["train", "yolo11n", tmp_path / "absent"],
        ["train", "yolo99", place / "yolo"],
        ["split", place / "yolo", "--fractions", "train"],
        ["export", place / "m.onnx"],
        ["evaluate", place / "m.onnx", place / "yolo", "--save-thresholds"],
    ):
        assert run(*words) == 1, words
        error = capsys.readouterr().err
        assert [line for line in error.splitlines() if line.startswith("pelagia: ")]
        assert "Traceback" not in error


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pelagia.cli.models.list_models", stop)
    assert run("models") == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


# Commands


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    output = capsys.readouterr().out
    assert "2,624,080" in output
    assert output.count("YOLO11 (no paper") < 5  # sizes stand together
    assert all(len(line) <= 80 for line in output.splitlines())
    words = " ".join(output.split())
    for entry in registry.entries():
        assert f"{entry.authors}, {entry.year}, {entry.url} tasks: {', '.join(entry.tasks)}" in words
        assert entry.weights + (f" (licence: {entry.weights_licence})" if entry.weights_licence else "") in words
    for name, item in PUBLISHED.items():
        assert f"{item.source}; from {item.url.removesuffix(item.file_name)}" in words
        assert f"{name}: {item.file_name}, {item.metric}" in words
        assert item.licence == registry.entry(name).weights_licence
    assert "weights of mask2former-r50: files of Hugging Face transformers" in words
    assert "unet 31,031,810 301.6 572 2 yes weights: none to read" in words
    assert run("models", "--task", "detect", "--json") == 0
    found = {entry["name"]: entry["published"] for entry in json.loads(capsys.readouterr().out)}
    assert found["detr-r50"]["url"] == PUBLISHED["detr-r50"].url
    assert found["yolo11n"] is None
    assert run("models", "--task", "oriented", "--json") == 0
    assert all("oriented" in entry["tasks"] for entry in json.loads(capsys.readouterr().out))


def test_predict(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", place / "m.onnx", place / "images", "--out", tmp_path / "r") == 0
    output = capsys.readouterr().out
    assert "24 objects in 6 images" in output
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "coco.json", "counts.csv", "pictures", "results", "results.csv", "results.json",
    ]  # fmt: skip
    assert len(list((tmp_path / "r" / "pictures").iterdir())) == 6


def test_predict_goes_on_after_a_broken_image(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_text("no image")
    words = ["predict", place / "m.onnx", tmp_path / "bad.png", tmp_path / "absent.png", str(place / "images" / "[01].png")]
    assert run(*words, "--json", "--no-draw", "--out", tmp_path / "r") == 1
    output = capsys.readouterr()
    content = json.loads(output.out)
    assert content["counts"] == {"red": 4, "green": 4}
    assert len(content["failed"]) == 2
    assert "bad.png" in output.err
    assert not (tmp_path / "r" / "pictures").exists()


def test_evaluate_a_model_and_its_predictions_alike(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", place / "m.onnx", place / "yolo", "--json", "--out", tmp_path / "e") == 0
    output = capsys.readouterr()
    content = json.loads(output.out)
    assert content["images"] == 3
    assert "split val: 3 of 6 images" in output.err
    assert content["ap"] == pytest.approx(1.0)
    assert {"evaluation.json", "report.html", "precision_recall.png"} <= {path.name for path in (tmp_path / "e").iterdir()}

    assert run("predict", place / "m.onnx", place / "images", "--out", tmp_path / "r", "--no-draw", "--score", "0.01") == 0
    capsys.readouterr()
    for file in ("results.json", "coco.json"):
        assert run("evaluate", tmp_path / "r" / file, coco_file(place), "--split", "all", "--json") == 0
        output = capsys.readouterr()
        assert json.loads(output.out)["ap50"] == pytest.approx(1.0)
        assert "predictions for 3 images that the truth does not have" in output.err
    assert run("evaluate", tmp_path / "r" / "results.json", coco_file(place)) == 0
    assert "AP50" in capsys.readouterr().out


def test_doctor_convert_split(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", place / "yolo", "--imgsz", "64", "--json") == 0
    assert json.loads(capsys.readouterr().out)["facts"]["images"] == 6
    assert run("convert", place / "yolo", tmp_path / "voc", "--to", "voc") == 0
    assert "24 objects" in capsys.readouterr().out
    assert run("split", tmp_path / "voc", "--fractions", "train=0.5,test=0.5", "--out", tmp_path / "s.json", "--json") == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert sorted(map(len, splits.values())) == [3, 3]
    assert run("evaluate", place / "m.onnx", tmp_path / "voc", "--splits", tmp_path / "s.json", "--split", "test", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3
    (tmp_path / "voc" / "JPEGImages" / "0.png").unlink()
    assert run("doctor", tmp_path / "voc") == 1


# Without the tensor side


def test_base_commands_need_no_torch(place: Path, tmp_path: Path) -> None:
    for words in (
        ["predict", place / "m.onnx", place / "images" / "0.png", "--out", tmp_path / "r"],
        ["evaluate", tmp_path / "r" / "coco.json", coco_file(place)],
        ["evaluate", place / "m.onnx", place / "yolo"],
        ["convert", place / "yolo", tmp_path / "dota", "--to", "dota"],
        ["doctor", place / "yolo"],
        ["split", place / "yolo", "--out", tmp_path / "s.json"],
        ["models"],
    ):
        done = fresh(*words, before=WITHOUT_TENSORS)
        assert done.returncode == 0, (words, done.stderr)


def test_commands_that_need_torch_name_the_extra(place: Path, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    for words in (
        ["train", "yolo11n", place / "yolo"],
        ["predict", tmp_path / "w.safetensors", place / "images"],
        ["export", tmp_path / "w.safetensors"],
        ["demo", "--out", tmp_path / "demo"],
    ):
        done = fresh(*words, before=WITHOUT_TENSORS, cwd=tmp_path)
        assert done.returncode == 1, (words, done.stdout, done.stderr)
        assert "pelagia[train]" in done.stderr
        assert "Traceback" not in done.stderr


# Flags


def test_flags_know_what_was_given() -> None:
    kind = flags_of(TrainOptions, leave=("model",))
    assert given(kind(), TrainOptions) == {}
    assert given(kind(epochs=3, mosaic=0.0, track=("tensorboard",)), TrainOptions) == {
        "epochs": 3, "track": ("tensorboard",), "augment": {"mosaic": 0.0},
    }  # fmt: skip
    assert not hasattr(kind(), "model")


def test_train_passes_on_what_was_given(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    class Loop:
        @staticmethod
        def train(options: TrainOptions, dataset: Dataset, val: Dataset | None, **more: Any) -> Any:
            seen.update(options=options, dataset=dataset, val=val, **more)
            raise KeyboardInterrupt

    monkeypatch.setattr("pelagia.cli.train.resolve", lambda name, purpose: Loop)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"epochs": 7, "batch": 3, "seed": 5, "augment": {"mixup": 0.5}}))
    words = ["train", "yolo11s", place / "yolo", "--config", config, "--batch", "4", "--mosaic", "0.25", "--no-channels-last"]
    assert run(*words) == 130
    options = seen["options"]
    assert (options.model, options.epochs, options.batch, options.seed) == ("yolo11s", 7, 4, 5)
    assert (options.augment.mixup, options.augment.mosaic) == (0.5, 0.25)
    assert options.channels_last is False
    assert len(seen["dataset"]) == 6
    config.write_text(json.dumps(replace(defaults_of("detr-r50"), lr=5e-5, imgsz=320).to_dict()))
    assert run("train", "detr-r50", place / "yolo", "--resume", tmp_path, "--epochs", "9") == 130  # the model may be named
    options = seen["options"]
    assert (options.model, options.lr, options.imgsz, options.epochs) == ("detr-r50", 5e-5, 320, 9)
    assert run("train", place / "m", place / "yolo", "--config", config, "--resume", tmp_path) == 1
    assert "leave --config out" in capsys.readouterr().err


def test_tables_align() -> None:
    assert table(["name", "n"], [["a", 1], ["bcd", "1,234"]]).splitlines() == ["name      n", "a         1", "bcd   1,234"]
