"""`pelagia benchmark` measures every runtime that takes the file; nothing is said of how fast they must be."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from colours import Colours, noise_picture
from pelagia.cli import main as cli_main
from pelagia.core.image import write
from pelagia.data.synthetic import draw_image
from pelagia.errors import ExportError, ImageError, OptionError
from pelagia.export.onnx import export_onnx
from pelagia.infer.benchmark import measure
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.models import checkpoint
from small_models import scrambled


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


def test_an_exported_file_is_measured_without_torch(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pelagia.cli.benchmark._DRAWN_SIZE", (120, 90))
    arguments = [str(folder / "m.onnx"), "--also", str(folder / "m.onnx"), "--precision", "float32", "--precision", "bfloat16"]
    assert run(*arguments, "--seconds", "0.05") == 0
    out = capsys.readouterr().out
    assert "in tiles" not in out
    lines = out.splitlines()
    assert sum("onnxruntime" in line for line in lines[:-1]) == 2
    assert sum("bfloat16" in line for line in lines[:-1]) == 2
    assert lines[-1].startswith("Fastest here: pelagia predict ")


def test_a_model_that_cannot_be_exported_is_measured_in_torch(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("the exported graph differs from the model: masks by 2", where="m.onnx")

    monkeypatch.setattr("pelagia.export.onnx.export_onnx", refuse)
    words = [str(folder), str(folder / "images"), "--batch", "1", "--seconds", "0.05"]
    assert run(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "torch" in lines[1]
    assert lines[2] == "EXPORTED.onnx  cannot be exported: the exported graph differs from the model: masks by 2"
    assert run(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [item["kind"] for item in told["measured"]] == ["torch"]
    assert told["refused"] == {"EXPORTED.onnx": "the exported graph differs from the model: masks by 2"}


def test_large_images_are_measured_in_tiles(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "scan.png", draw_image(np.random.default_rng(0), 300, 200).image)
    assert run(str(folder / "m.onnx"), str(tmp_path / "scan.png"), "--seconds", "0.05") == 0
    assert "Large images were predicted in tiles" in capsys.readouterr().out


def test_what_is_measured_of_a_scan_is_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile of one scan to warm up and of one more, then one tile a step; and maps of scans do not pile up."""
    (tmp_path / "held").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "held"))
    write(tmp_path / "scan.png", noise_picture(200, 150))
    write(tmp_path / "small.png", noise_picture(60, 50))
    runtime, options = Colours(), PredictOptions(batch=1, blend="cut")
    seen: list[int] = []
    real = Colours.run

    def counted(self: Colours, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        seen.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Colours, "run", counted)
    list(predict_files(runtime, [tmp_path / "scan.png"], options))
    tiles = len(seen)
    assert tiles > 4
    seen.clear()
    timing = measure(runtime, [tmp_path / "scan.png"], options, seconds=1e-6)
    assert (timing.images, timing.tiled) == (1, 1)
    assert len(seen) == 2 * tiles + 2
    assert list((tmp_path / "held").iterdir()) == []
    mixed = measure(runtime, [tmp_path / "small.png", tmp_path / "scan.png"], options, seconds=1e-6)
    assert (mixed.images, mixed.tiled) == (1, 0)
    whole = measure(runtime, [tmp_path / "scan.png"], replace(options, tiling="never"), seconds=1e-6)
    assert whole.images > 0
    assert whole.tiled == 0


def test_what_cannot_be_measured_is_named(folder: Path, tmp_path: Path) -> None:
    runtime = OnnxRuntime(folder / "m.onnx")
    with pytest.raises(OptionError, match="at least one image"):
        measure(runtime, [])
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"a.png"):
        measure(runtime, [tmp_path / "a.png"])
