"""OpenVINO reads what `pelagia export` writes and answers like the other runtimes; the choice of a runtime follows its rule."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pelagia.api import Predictor, load
from pelagia.cli import main as cli_main
from pelagia.core.ahead import side_by_side
from pelagia.core.image import write
from pelagia.data.synthetic import draw_image
from pelagia.errors import CheckpointError, ModelError, OptionError
from pelagia.export.openvino import write_ir
from pelagia.infer.openvino_runtime import OpenVinoRuntime, openvino_core
from pelagia.infer.runtimes import OnnxRuntime, Runtime, Shared, lanes, runtime_name
from pelagia.models import checkpoint
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from small_models import exported_file, label_what_is_found
from three_runtimes import all_runtimes, images
from tiny_onnx import tiny_card, write_tiny


@pytest.fixture(scope="module")
def exported() -> tuple[Model, Path]:
    return exported_file("yolo11n", "detect")[:2]


@pytest.fixture(scope="module")
def runtimes(exported: tuple[Model, Path]) -> list[Runtime]:
    return all_runtimes(*exported)


def test_all_runtimes_answer_alike_for_every_batch(runtimes: list[Runtime]) -> None:
    for batch in (1, 2, 5):
        wanted = runtimes[0].run(images(batch))
        for runtime in runtimes[1:]:
            got = runtime.run(images(batch))
            assert list(got) == list(wanted)
            for name, value in wanted.items():
                assert got[name].shape == value.shape
                np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-3)


def test_an_image_is_answered_alike_whatever_stands_beside_it(runtimes: list[Runtime]) -> None:
    for runtime in runtimes[1:]:
        many, few = runtime.run(images(5)), runtime.run(images(5)[2:4])
        for name in many:
            assert np.array_equal(many[name][2:4], few[name])


def test_lanes_answer_like_the_runtime_when_threads_share_them(runtimes: list[Runtime]) -> None:
    many = images(12)
    for runtime in runtimes:
        shared = Shared(runtime)
        assert 1 <= shared.count <= len(lanes(runtime))
        assert shared.card == runtime.card
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(shared.run, np.split(many, 12)))
        for name, value in runtime.run(many).items():
            np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), value, rtol=1e-4, atol=1e-4)
    assert (shared.count, len(lanes(runtime)), shared.callers) == (
        2,
        3,
        4,
    )  # a request waits for a stream, and streams have threads of their own


def test_a_torch_lane_leaves_the_number_of_threads_alone(exported: tuple[Model, Path]) -> None:
    before = torch.get_num_threads()
    lanes(TorchRuntime(exported[0]))[0].run(images(1))
    assert torch.get_num_threads() == before


def test_a_runtime_says_its_name(runtimes: list[Runtime], exported: tuple[Model, Path]) -> None:
    names = [runtime_name(runtime) for runtime in runtimes]
    assert [name.split()[0] for name in names] == ["torch", "onnxruntime", "openvino"]
    assert all(name.endswith("(cpu, float32)") for name in names)
    coarse = OpenVinoRuntime(exported[1], precision="bfloat16")
    assert runtime_name(coarse).endswith("(cpu, bfloat16)")
    assert runtime_name(Shared(runtimes[0])) == "Shared"  # says nothing of itself


def test_bfloat16_is_near(exported: tuple[Model, Path], runtimes: list[Runtime]) -> None:
    model, path = exported
    wanted = runtimes[0].run(images(2))
    for runtime in (TorchRuntime(model, precision="bfloat16"), OpenVinoRuntime(path, precision="bfloat16")):
        for name, value in runtime.run(images(2)).items():
            assert value.dtype == np.float32
            assert np.abs(value - wanted[name]).mean() < 0.05 * np.abs(wanted[name]).std() + 0.01


def test_auto_goes_by_the_file(exported: tuple[Model, Path], tmp_path: Path) -> None:
    model, path = exported
    checkpoint.save(tmp_path / "best.safetensors", model, model.card)
    assert isinstance(load(tmp_path, device="cpu").runtime, TorchRuntime)
    assert isinstance(load(path).runtime, OnnxRuntime)
    assert isinstance(load(path, runtime="openvino", precision="bfloat16").runtime, OpenVinoRuntime)
    for file, chosen in ((tmp_path, "onnx"), (tmp_path, "openvino"), (path, "torch")):
        with pytest.raises(OptionError, match=f"{chosen} does not take"):
            load(file, runtime=chosen)
    with pytest.raises(OptionError, match="bfloat16"):
        load(path, precision="bfloat16")
    with pytest.raises(OptionError, match="runtime is one of"):
        load(path, runtime="tensorrt")  # type: ignore[arg-type]
    for chosen in ("onnx", "openvino"):
        with pytest.raises(OptionError, match="abacus"):
            load(path, runtime=chosen, device="abacus")


def test_unusable_files_are_named(exported: tuple[Model, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        OpenVinoRuntime(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(CheckpointError, match="cannot read this file"):
        OpenVinoRuntime(tmp_path / "text.onnx")
    (tmp_path / "alone.xml").write_text("<net/>")
    with pytest.raises(CheckpointError, match=r"alone.bin: there is no such file"):
        OpenVinoRuntime(tmp_path / "alone.xml")
    graph = onnx.load(exported[1])
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "bare.onnx")
    with pytest.raises(CheckpointError, match="no Pelagia card"):
        OpenVinoRuntime(tmp_path / "bare.onnx")
    with pytest.raises(ModelError, match=r"images have shape \[1, 3, 32, 32\]"):
        OpenVinoRuntime(exported[1]).run(np.zeros((1, 3, 32, 32), dtype=np.float32))


def size_of(path: Path) -> tuple[int, int]:
    number = int(path.stem)
    return (700, 500) if number == 4 else (100 + number, 90)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Small images, a broken file among them, and one that is tiled."""
    paths = [tmp_path / "images" / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        write(path, draw_image(np.random.default_rng(number), *size_of(path)).image)
    paths[6].write_bytes(paths[6].read_bytes()[:200])
    return paths


def test_files_come_in_order_and_like_single_images(runtimes: list[Runtime], pictures: list[Path]) -> None:
    for runtime in runtimes:
        predictor = Predictor(runtime)
        results = list(predictor.predict_files(pictures, score=0.01))
        assert [result.path for result in results] == pictures
        assert [result.found is None for result in results] == [number == 6 for number in range(9)]
        assert "cut short" in str(results[6].error)
        for path, result in zip(pictures, results, strict=True):
            if result.found is not None:
                alone: Any = predictor.predict(path, score=0.01)
                assert abs(len(alone) - len(result.found)) <= 1 + len(alone) // 50  # type: ignore[arg-type]
                assert (result.width, result.height) == (size_of(path))


def noting(kind: type, method: str, used: set[str]) -> Any:
    """The method, which notes that its class was used."""
    real = getattr(kind, method)

    def noted(*given: Any) -> Any:
        used.add(kind.__name__)
        return real(*given)

    return noted


def listed(folder: Path) -> dict[str, Any]:
    """Image -> class, score and box of its objects in results.json [N, 6]."""
    told = json.loads((folder / "results.json").read_text())["images"]
    return {
        item["file"]: np.array([[found["class_id"], found["score"], *found["box"]] for found in item["objects"]]) for item in told
    }


def test_predict_and_evaluate_take_a_runtime(
    exported: tuple[Model, Path],
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both find what torch finds, and score what torch scores."""
    model, path = exported
    for left in pictures[4:]:
        left.unlink()
    labels = label_what_is_found(model, tmp_path / "images", pictures[:4])
    checkpoint.save(tmp_path / "m.safetensors", model, model.card)
    used: set[str] = set()
    for kind, method in ((TorchRuntime, "run"), (OnnxRuntime, "run_session"), (OpenVinoRuntime, "run_requests")):
        monkeypatch.setattr(kind, method, noting(kind, method, used))

    def told(*words: str | Path) -> Any:
        used.clear()
        with pytest.raises(SystemExit) as stop:
            cli_main.main([*map(str, words), "--json"])
        assert stop.value.code == 0
        return json.loads(capsys.readouterr().out)

    # Scrambled scores are often equal to the last digit, so which of two suppresses the other is chance: none does.
    all_of_them = ["--score", "0.001", "--nms-iou", "1", "--tiling", "never", "--no-draw"]
    scores: dict[str, float] = {}
    for chosen, name in (("torch", "TorchRuntime"), ("onnx", "OnnxRuntime"), ("openvino", "OpenVinoRuntime")):
        file = tmp_path / "m.safetensors" if chosen == "torch" else path
        told("predict", file, tmp_path / "images", "--out", tmp_path / chosen, *all_of_them, "--runtime", chosen)
        assert used == {name}
        scores[chosen] = told("evaluate", file, labels, "--runtime", chosen)["ap"]
        assert used == {name}
    wanted = listed(tmp_path / "torch")
    assert len(wanted) == 4
    assert all(len(rows) > 20 for rows in wanted.values())
    for chosen in ("onnx", "openvino"):
        found = listed(tmp_path / chosen)
        assert list(found) == list(wanted)
        for image, rows in found.items():
            assert abs(len(rows) - len(wanted[image])) <= 1  # one may lie on the threshold
            apart = np.abs(rows[:, None] - wanted[image]) / [0.5, 1e-3, 0.5, 0.5, 0.5, 0.5]
            assert (apart.max(axis=2).min(axis=0) > 1).sum() <= 1
    assert scores["torch"] > 0.5
    assert scores["onnx"] == pytest.approx(scores["torch"], abs=0.03)
    assert scores["openvino"] == pytest.approx(scores["torch"], abs=0.03)


def test_other_weights_beside_the_same_graph_are_another_model(
    pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = openvino_core().read_model(str(write_tiny(tmp_path / "m.onnx")))
    write_ir(graph, tmp_path / "m.xml", tiny_card(), lambda _: None)
    told = []
    for factor in (40, 40, 30):
        weights, gain = (tmp_path / "m.bin").read_bytes(), np.float32(40).tobytes()
        assert weights.count(gain) == 1
        (tmp_path / "m.bin").write_bytes(weights.replace(gain, np.float32(factor).tobytes()))
        words = ["predict", tmp_path / "m.xml", *pictures[:2], "--out", tmp_path / "out", "--json"]
        with pytest.raises(SystemExit) as stop:
            cli_main.main([str(word) for word in words])
        assert stop.value.code == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [item["kept"] for item in told] == [0, 2, 0]
    assert [item["anew"] for item in told] == [{}, {}, {"other model": 2}]


def test_ahead_keeps_order_and_drops_what_nobody_takes() -> None:
    assert list(side_by_side([(lambda n=n: n, n % 3 > 0) for n in range(40)], workers=3)) == list(range(40))
    begun: list[int] = []

    def steps() -> Iterator[Any]:
        for number in range(1000):
            yield lambda number=number: begun.append(number), True

    taken = side_by_side(steps(), workers=2)
    next(taken)
    taken.close()  # type: ignore[attr-defined]  # a generator
    assert len(begun) <= 6

    def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(side_by_side([(fails, True), (lambda: None, True)], workers=2))


def test_openvino_is_not_imported_before_it_is_asked_for() -> None:
    code = "import sys, pelagia.api, pelagia.cli.predict, pelagia.infer.openvino_runtime; print('openvino' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
