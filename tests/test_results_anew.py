"""What a second run uses of the results that are there, and what it makes anew, and why."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pelagia.core.image import write
from pelagia.infer.runtimes import OnnxRuntime
from resuming import cells, content, fill, finished, run
from tiny_onnx import tiny_card, write_tiny


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A place that a test may change, with finished results."""
    fill(tmp_path / "scans")
    write_tiny(tmp_path / "m.onnx")
    run("predict", tmp_path / "m.onnx", tmp_path / "scans", "--out", tmp_path / "out")
    return tmp_path


def again(own: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run("predict", own / "m.onnx", own / "scans", "--out", own / "out", "--json", *words) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] + told["predicted"] == 13
    fresh_run = own / "fresh"
    assert run("predict", own / "m.onnx", own / "scans", "--out", fresh_run, *words) == 1
    assert content(own / "out") == content(fresh_run)
    return {"predicted": told["predicted"], **told["anew"]}


def test_nothing_has_changed(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(own, capsys) == {"predicted": 0}
    for path in [*(own / "scans").rglob("*.*"), *(own / "out").rglob("*.*")]:
        os.utime(path, (1, 1))  # as a copy without times has
    assert again(own, capsys) == {"predicted": 0}
    assert again(own, capsys, "--batch", "3") == {"predicted": 0}


def test_other_options(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--score", "0.5", "--most", "2")
    assert again(own, capsys, *words) == {"predicted": 13, "other options (most, score)": 13}
    assert again(own, capsys, *words) == {"predicted": 0}


def test_another_limit_of_pixels(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own / "out")
    assert run("predict", own / "m.onnx", own / "scans", "--out", own / "out", "--max-pixels", "4000") == 1
    assert finished(own / "out") == 13
    assert again(own, capsys) == {"predicted": 10, "other limit, or other extras, for images that were refused": 10}
    assert again(own, capsys) == {"predicted": 0}


def test_another_model(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(own / "m.onnx", tiny_card(thresholds={"red": 0.9}))
    assert again(own, capsys) == {"predicted": 13, "other model": 13}


def test_another_runtime(own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "name", "int8", raising=False)
    (reason,) = set(again(own, capsys)) - {"predicted"}
    assert reason.startswith("other runtime")


def test_other_images(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(own / "scans" / "b" / "3.png", cells(np.random.default_rng(5), 64, 64, 4))  # broken before
    (own / "scans" / "a" / "4.png").write_text("broken now")
    assert again(own, capsys) == {"predicted": 2, "image changed": 2}
    assert not (own / "out" / "pictures" / "a" / "4.jpg").exists()


def test_files_that_are_gone_or_spoilt(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "out" / "results" / "a" / "0.png.json").unlink()
    for name in ("a/2.png", "scan0.tif"):
        path = own / "out" / "results" / f"{name}.json"
        path.write_text(path.read_text()[:-40])
    (own / "out" / "pictures" / "b" / "1.jpg").unlink()
    (own / "out" / "pictures" / "b" / "5.jpg").write_bytes(b"x")
    assert again(own, capsys) == {"predicted": 3, "broken result file": 2}


def test_pictures_later(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(own, capsys, "--score", "0.4", "--no-draw") == {"predicted": 13, "other options (score)": 13}
    assert not any(path.is_file() for path in (own / "out" / "pictures").rglob("*"))
    assert again(own, capsys, "--score", "0.4") == {"predicted": 0}


def test_an_image_that_changes_while_it_is_predicted_is_not_finished(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxRuntime.run_session

    def grow(self: OnnxRuntime, *shown: Any) -> dict[str, NDArray[Any]]:
        with open(own / "scans" / "scan2.tif", "ab") as stream:
            stream.write(b"x")
        return real(self, *shown)

    monkeypatch.setattr(OnnxRuntime, "run_session", grow)
    words = ["predict", own / "m.onnx", own / "scans", "--out", own / "out", "--score", "0.5"]
    assert run(*words, "--shard", "1/1") == 1
    assert not (own / "out" / "results.json").exists()
    monkeypatch.setattr(OnnxRuntime, "run_session", real)
    run(*words, "--shard", "1/1")
    assert (own / "out" / "results.json").exists()


def test_pictures_of_an_earlier_run_are_no_images(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "scans" / "nowhere.png").symlink_to(own / "absent.png")
    words = [
        "predict",
        own / "m.onnx",
        own / "scans",
        str(own / "scans" / ".." / "scans" / "*.tif"),
        "--out",
        own / "scans" / "out",
    ]
    for kept in (0, 13):
        capsys.readouterr()
        assert run(*words, "--json") == 1
        told = json.loads(capsys.readouterr().out)
        assert len(told["images"]) == 14  # the scans are named twice
        assert told["kept"] >= kept
        assert any("nowhere.png: this image does not exist" in line for line in told["failed"])


def test_a_log_file_gets_a_line_now_and_then(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pelagia.cli.predict._LOG_SECONDS", 0)
    run("predict", own / "m.onnx", own / "scans", "--out", own / "new")
    assert "13 of 13 images predicted, the last scan2.tif" in capsys.readouterr().err
