"""What goes into OpenVINO and comes out of it: images as they are stored, fixed batches, answers in place, failures."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.image import letterbox, normalise
from pelagia.data.synthetic import draw_image
from pelagia.errors import ModelError
from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.runtimes import CARD_KEY, OnnxRuntime, Runtime, Shared, lanes, prepared
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from small_models import SIZE, exported_file
from three_runtimes import all_runtimes, images
from tiny_onnx import write_tiny


@pytest.fixture(scope="module")
def exported() -> tuple[Model, Path]:
    return exported_file("yolo11n", "detect")[:2]


@pytest.fixture(scope="module")
def runtimes(exported: tuple[Model, Path]) -> list[Runtime]:
    return all_runtimes(*exported)


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
        for pixels, count in ((stored, 3), (stored, 1), (deep, 3)):
            given = prepared(runtime, pixels[:count])
            assert (given.dtype == np.uint8) == (inside and pixels is stored and not isinstance(runtime, OnnxRuntime))
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
