"""The ONNX runtime: same numbers whatever the batch, and a clear sentence for every file that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pelagia.errors import CheckpointError, ModelError, OptionError
from pelagia.infer.runtimes import LANES_MOST, OnnxRuntime, Shared, cpu_count, lanes
from tiny_onnx import tiny_card, write_tiny


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (count, 3, 64, 64)).astype(np.float32)


def test_runs_and_knows_its_card(tmp_path: Path) -> None:
    card = tiny_card(thresholds={"red": 0.4})
    runtime = OnnxRuntime(write_tiny(tmp_path / "m.onnx", card), threads=1)
    assert runtime.card == card
    batch = images(3)
    outputs = runtime.run(batch)
    assert outputs["boxes"].shape == (3, 8, 84)
    expected = (batch[:, :2].reshape(3, 2, 8, 8, 8, 8).mean(axis=(3, 5)) - 0.5) * 40
    np.testing.assert_allclose(outputs["scores"][:, :, :64], expected.reshape(3, 2, 64), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_fixed_batch_gives_the_same(tmp_path: Path, count: int) -> None:
    free = OnnxRuntime(write_tiny(tmp_path / "free.onnx"), threads=1)
    fixed = OnnxRuntime(write_tiny(tmp_path / "fixed.onnx", batch=2), threads=1)
    for name, value in free.run(images(count)).items():
        np.testing.assert_allclose(fixed.run(images(count))[name], value, rtol=1e-5, atol=1e-5)
        assert len(value) == count


def test_wrong_images_are_refused(tmp_path: Path) -> None:
    runtime = OnnxRuntime(write_tiny(tmp_path / "m.onnx"), threads=1)
    with pytest.raises(ModelError, match=r"images have shape \[1, 3, 32, 64\], expected \[B, 3, 64, 64\]"):
        runtime.run(np.zeros((1, 3, 32, 64), dtype=np.float32))
    with pytest.raises(ModelError, match="images have shape"):
        runtime.run(np.zeros((0, 3, 64, 64), dtype=np.float32))


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        OnnxRuntime(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(CheckpointError, match="cannot read"):
        OnnxRuntime(tmp_path / "text.onnx")
    write_tiny(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(CheckpointError, match="no Pelagia card"):
        OnnxRuntime(tmp_path / "bare.onnx")
    with pytest.raises(CheckpointError, match="expected one float input"):
        OnnxRuntime(write_tiny(tmp_path / "other.onnx", tiny_card(input_size=(96, 64))))
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:200])
    with pytest.raises(CheckpointError):
        OnnxRuntime(tmp_path / "cut.onnx")


def test_all_cores_that_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the process is allowed; where no system tells, those of the machine."""
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert cpu_count() == 3
    path = write_tiny(tmp_path / "m.onnx")
    assert len(lanes(OnnxRuntime(path))) == 3
    assert len(lanes(OnnxRuntime(path, threads=2))) == 2
    assert Shared(OnnxRuntime(path)).callers == 3  # each computes in the thread that calls it
    assert Shared(OnnxRuntime(path, threads=2 * LANES_MOST)).callers == LANES_MOST + 1  # each has a second thread
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpu_count() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_count() == 1


def test_a_gpu_computes_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the runtime's name says: ONNX Runtime by itself takes TF32 there. Processors get no options."""
    asked: list[object] = []
    session = onnxruntime.InferenceSession

    def watched(path: str, options: object, providers: list[object]) -> object:
        asked.append(providers)
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    path, gpu, cpu = write_tiny(tmp_path / "m.onnx"), ("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"
    for there, device, wanted in (
        ([gpu[0], cpu], "auto", [gpu, cpu]),
        ([gpu[0], cpu], "cuda", [gpu, cpu]),
        ([gpu[0], cpu], "cpu", [cpu]),
        ([cpu], "auto", [cpu]),
    ):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda there=there: there)
        OnnxRuntime(path, device=device)
        assert asked.pop() == wanted
    with pytest.raises(OptionError, match="no device 'cuda'"):
        OnnxRuntime(path, device="cuda")
