"""`pelagia benchmark` measures every runtime that takes the file; nothing is said of how fast they must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pelagia.cli import main as cli_main
from pelagia.core.image import write
from pelagia.data.synthetic import draw_image
from pelagia.errors import ImageError, OptionError
from pelagia.export.onnx import export_onnx
from pelagia.infer.benchmark import measure
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.models import checkpoint
from test_export import scrambled


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli_main.main(["benchmark", *arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    model = scrambled("detect")
    checkpoint.save(folder / "best.safetensors", model, model.card)
    export_onnx(model, folder / "m.onnx")
    write(folder / "images" / "a.png", draw_image(np.random.default_rng(0), 120, 90).image)
    return folder


def test_a_checkpoint_is_measured_in_every_runtime(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), str(folder / "images"), "--batch", "1", "--seconds", "0.05", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [item["kind"] for item in told["measured"]] == ["torch", "onnx", "openvino"]
    for item in told["measured"]:
        assert item["images_per_second"] > 0
        assert item["images"] > 0
        assert sum(item["shares"].values()) == pytest.approx(1)
    assert told["fastest"] in told["measured"]
    assert told["fastest"]["images_per_second"] == max(item["images_per_second"] for item in told["measured"])


def test_an_exported_file_is_measured_without_torch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "m.onnx"), "--also", str(folder / "m.onnx"), "--precision", "float32", "--precision", "bfloat16"]
    assert run(*arguments, "--seconds", "0.05") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("onnxruntime" in line for line in lines[:-1]) == 2
    assert sum("bfloat16" in line for line in lines[:-1]) == 2
    assert lines[-1].startswith("Fastest here: pelagia predict ")


def test_what_cannot_be_measured_is_named(folder: Path, tmp_path: Path) -> None:
    runtime = OnnxRuntime(folder / "m.onnx")
    with pytest.raises(OptionError, match="at least one image"):
        measure(runtime, [])
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"a.png"):
        measure(runtime, [tmp_path / "a.png"])
