"""OpenVINO reads what `pelagia export` writes and answers like the other runtimes; the choice of a runtime follows its rule."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pelagia.api import Predictor, load
from pelagia.cli import main as cli_main
from pelagia.core.ahead import side_by_side
from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.image import letterbox, normalise, write
from pelagia.data.synthetic import draw_image
from pelagia.errors import CheckpointError, ModelError, OptionError
from pelagia.export.onnx import export_onnx
from pelagia.export.openvino import write_ir
from pelagia.infer.openvino_runtime import OpenVinoRuntime, openvino_core
from pelagia.infer.runtimes import CARD_KEY, OnnxRuntime, Runtime, Shared, lanes, prepared, runtime_name
from pelagia.models import checkpoint
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from test_export import SIZE, label_what_is_found, scrambled
from tiny_onnx import tiny_card, write_tiny


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    model, path = scrambled("detect"), tmp_path_factory.mktemp("openvino") / "m.onnx"
    export_onnx(model, path)
    return model, path


@pytest.fixture(scope="module")
def runtimes(exported: tuple[Model, Path]) -> list[Runtime]:
    model, path = exported
    return [TorchRuntime(model), OnnxRuntime(path, threads=2), OpenVinoRuntime(path, threads=2)]


def images(count: int) -> Any:
    return np.random.default_rng(count).normal(0, 1, (count, 3, *SIZE)).astype(np.float32)


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
        assert shared.count == len(lanes(runtime)) >= 1
        assert shared.card == runtime.card
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(shared.run, np.split(many, 12)))
        for name, value in runtime.run(many).items():
            np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), value, rtol=1e-4, atol=1e-4)
    assert shared.count == 2


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


def with_window(source: Path, path: Path, window: Normalisation) -> Path:
    """The same file with another normalisation in its card."""
    graph = onnx.load(source)
    card = ModelCard.from_json({item.key: item.value for item in graph.metadata_props}[CARD_KEY])
    onnx.helper.set_model_props(graph, {CARD_KEY: replace(card, normalisation=window).to_json()})
    onnx.save(graph, path)
    return path


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        (Normalisation(), True),
        (Normalisation(-20.0, 300.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), True),
        (Normalisation(30.0, 200.0), False),  # a network that clips nothing cannot normalise this
    ],
)
def test_stored_images_are_normalised_as_the_card_says(
    window: Normalisation, inside: bool, exported: tuple[Model, Path], tmp_path: Path
) -> None:
    path = with_window(exported[1], tmp_path / "m.onnx", window)
    stored: list[Any] = [letterbox(draw_image(np.random.default_rng(number), 300, 200).image, SIZE)[0] for number in range(3)]
    stored[1] = stored[1][..., :1]  # a grey one among them
    deep = [image.astype(np.uint16) for image in stored]
    wanted = TorchRuntime(exported[0]).run(np.stack([normalise(image, window) for image in stored]))
    assert max(value.std() for value in wanted.values()) > 0.5
    for runtime in (OnnxRuntime(path, threads=2), OpenVinoRuntime(path, threads=2), Shared(OpenVinoRuntime(path, threads=2))):
        for images, count in ((stored, 3), (stored, 1), (deep, 3)):
            given = prepared(runtime, images[:count])
            assert (given.dtype == np.uint8) == (inside and images is stored and not isinstance(runtime, OnnxRuntime))
            for name, value in runtime.run(given).items():
                np.testing.assert_allclose(value, wanted[name][:count], rtol=1e-3, atol=1e-3)


def test_bfloat16_takes_bytes_where_no_mean_would_be_rounded(exported: tuple[Model, Path], tmp_path: Path) -> None:
    stored = list(np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8))
    shifted = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for window, dtype in ((Normalisation(), np.uint8), (Normalisation(std=(0.5, 0.25, 1.0)), np.uint8), (shifted, np.float32)):
        path = with_window(exported[1], tmp_path / "m.onnx", window)
        wanted = OnnxRuntime(path).run(np.stack([normalise(image, window) for image in stored]))
        runtime = OpenVinoRuntime(path, precision="bfloat16")
        given = prepared(runtime, stored)
        assert given.dtype == dtype
        for name, value in runtime.run(given).items():
            assert np.abs(value - wanted[name]).mean() < 0.05 * np.abs(wanted[name]).std() + 0.01


def test_a_runtime_that_says_nothing_of_its_input_is_given_normalised_images(runtimes: list[Runtime]) -> None:
    stored = list(np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8))
    for runtime in (runtimes[0], Shared(runtimes[0])):
        window = runtime.card.normalisation
        for count in (1, 2):
            wanted = np.stack([normalise(image, window) for image in stored[:count]])
            np.testing.assert_array_equal(prepared(runtime, stored[:count]), wanted)


def test_bytes_of_another_size_are_refused(exported: tuple[Model, Path]) -> None:
    runtime = OpenVinoRuntime(exported[1])
    for shape in ((1, 32, 32, 3), (0, *SIZE, 3), (*SIZE, 3), (1, 3, *SIZE)):
        with pytest.raises(ModelError, match=r"expected \[B, 64, 96, 3\]"):
            runtime.run(np.zeros(shape, dtype=np.uint8))


def test_answers_stay_when_the_next_images_come(runtimes: list[Runtime]) -> None:
    for runtime in runtimes:
        for lane in (runtime, lanes(runtime)[0]):
            found = [lane.run(images(count)) for count in (3, 1)]
            before = [{name: value.copy() for name, value in answer.items()} for answer in found]
            for count in (2, 4, 1, 5):
                lane.run(images(count))
            for answer, kept in zip(found, before, strict=True):
                assert all(np.array_equal(answer[name], kept[name]) for name in kept)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_fixed_batch_gives_the_same_for_floats_and_bytes(tmp_path: Path, count: int) -> None:
    stored = list(np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))
    free = OnnxRuntime(write_tiny(tmp_path / "free.onnx"), threads=1)
    wanted = free.run(prepared(free, stored))
    fixed = OpenVinoRuntime(write_tiny(tmp_path / "fixed.onnx", batch=2), threads=2)
    for given in (prepared(free, stored), prepared(fixed, stored)):
        for name, value in fixed.run(given).items():
            assert len(value) == count
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-4)


def test_outputs_whose_size_depends_on_the_image(tmp_path: Path) -> None:
    graph = onnx.load(write_tiny(tmp_path / "plain.onnx"))
    ones = onnx.numpy_helper.from_array(np.array([0], dtype=np.int64), "first")
    graph.graph.initializer.append(ones)
    graph.graph.node.extend(
        [
            onnx.helper.make_node("Relu", ["fine"], ["positive"]),
            onnx.helper.make_node("NonZero", ["positive"], ["where"]),
            onnx.helper.make_node("Unsqueeze", ["where", "first"], ["places"]),
        ]
    )
    graph.graph.output.append(onnx.helper.make_tensor_value_info("places", onnx.TensorProto.INT64, [1, 3, "n"]))
    onnx.save(graph, tmp_path / "places.onnx")
    runtimes = [kind(tmp_path / "places.onnx", threads=1) for kind in (OnnxRuntime, OpenVinoRuntime)]
    kept = []
    for seed in range(3):
        stored = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)]
        kept.append([runtime.run(prepared(runtime, stored)) for runtime in runtimes])
    assert len({wanted["places"].shape for wanted, _ in kept}) > 1
    for wanted, got in kept:
        assert wanted["places"].size
        np.testing.assert_array_equal(got["places"], wanted["places"])
        np.testing.assert_allclose(got["scores"], wanted["scores"], rtol=1e-4, atol=1e-4)


def test_a_transposition_at_the_end_moves_nothing(exported: tuple[Model, Path], tmp_path: Path) -> None:
    """It is made in the strides of the array, unless it moves the batch; two outputs may be made of one array."""
    found = OpenVinoRuntime(exported[1]).run(images(3))
    for name in ("boxes", "scores"):
        assert found[name].transpose(0, 2, 1).flags.c_contiguous
        assert not found[name].flags.c_contiguous
    graph = onnx.load(write_tiny(tmp_path / "plain.onnx"))
    for given, name, order in (("scores", "turned", [0, 2, 1]), ("scores", "first", [1, 0, 2]), ("first", "kept", [1, 0, 2])):
        graph.graph.node.append(onnx.helper.make_node("Transpose", [given], [name], perm=order))
    for name in ("turned", "kept"):
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None, None]))
    onnx.save(graph, tmp_path / "turned.onnx")
    wanted, got = (
        kind(tmp_path / "turned.onnx").run(np.random.default_rng(0).normal(0, 1, (1, 3, 64, 64)).astype(np.float32))
        for kind in (OnnxRuntime, OpenVinoRuntime)
    )
    assert got["turned"].shape == got["scores"].transpose(0, 2, 1).shape
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4)
    assert got["turned"].transpose(0, 2, 1).flags.c_contiguous
    assert got["kept"].flags.c_contiguous


class _Request:
    """Stands for an inference request that may fail."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.waited = fails, 0

    def set_input_tensor(self, place: int, tensor: Any) -> None: ...

    def set_output_tensor(self, place: int, tensor: Any) -> None: ...

    def start_async(self) -> None: ...

    def wait(self) -> None:
        self.waited += 1
        if self.fails:
            raise RuntimeError("Exception from here\nout of memory")


def test_a_failure_waits_for_what_is_still_computing(exported: tuple[Model, Path]) -> None:
    requests = [_Request(True), _Request(False), _Request(False)]
    with pytest.raises(ModelError, match="OpenVINO failed: out of memory"):
        OpenVinoRuntime(exported[1]).run_requests(requests, images(3))
    assert [request.waited for request in requests] == [1, 1, 1]


def test_a_signal_after_the_last_runtime_is_gone_does_no_harm(tmp_path: Path) -> None:
    write_tiny(tmp_path / "m.onnx")
    code = f"""
import faulthandler, gc, os, signal, threading
from pelagia.export.openvino import write_ir
from pelagia.infer.openvino_runtime import OpenVinoRuntime, openvino_core
faulthandler.enable()
held = [OpenVinoRuntime({str(tmp_path / "m.onnx")!r})]
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start(), thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
