"""What needs an NVIDIA GPU: the same answers as on a CPU, recorded networks, training of every task.

    pytest -m gpu tests/test_gpu.py

`PELAGIA_TEST_DEVICE=cpu` runs what does not depend on CUDA on a CPU, to try the tests themselves.
"""

from __future__ import annotations

import itertools
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pelagia
from answers import (
    STRAIGHT,
    answered,
    crowd,
    disturbed_outputs,
    frames_for,
    loss_and_slopes,
    mixed_files,
    same,
    scrambled,
)
from pelagia.core.types import Instances, PanopticMap, SemanticMap, Task
from pelagia.decode import DecodeOptions, decode
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files, predict_image
from pelagia.infer.runtimes import Precision
from pelagia.models import registry
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from pelagia.models.selection import likely
from pelagia.nn.suppression import suppress
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions, defaults_of
from test_models_battery import FAMILIES, batch, input_size, make
from test_tasks import draw, small
from waits import waits_on_gpu

DEVICE = os.environ.get("PELAGIA_TEST_DEVICE", "cuda")
CUDA = DEVICE.startswith("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="needs an NVIDIA GPU that PyTorch can use"),
]


@pytest.fixture(autouse=True)
def _only_real_models_remain() -> Any:
    yield
    for name in [name for name in registry._entries if name.endswith("-tiny-for-tests")]:
        del registry._entries[name]


def within(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> float:
    """Share of the elements that differ by at most `tolerance`, relative where they are large."""
    assert found.shape == expected.shape
    return float(np.isclose(found, expected, rtol=tolerance, atol=tolerance).mean()) if found.size else 1.0


def drawn_images(count: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Smooth noise: what a network answers to it varies."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size, mode="bilinear").mul(255).byte()
    return list(images.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_raw_outputs_equal_those_of_the_cpu(name: str, task: Task) -> None:
    model = scrambled(make(name, task))
    images = batch(2, input_size(name)).numpy()
    expected, device = TorchRuntime(model, device="cpu").run(images), TorchRuntime(model, device=DEVICE)
    for _ in range(3):  # as usual, recorded, replayed
        found = device.run(images)
        assert found.keys() == expected.keys()
        # Near-ties of proposals and of masks at their threshold may fall either way in a network that decides on its way.
        least = 1.0 if (name, task) in [case.values for case in STRAIGHT] else 0.95
        assert {key: share for key, value in expected.items() if (share := within(found[key], value)) < least} == {}


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_predictions_from_stored_pixels_equal_those_of_the_cpu(name: str, task: Task) -> None:
    model = scrambled(make(name, task))
    image = drawn_images(1, (input_size(name)[0] - 10, input_size(name)[1] + 20))[0]
    options = DecodeOptions(score=0.05, most=50)
    found, expected = (predict_image(TorchRuntime(model, device=where), image, decoding=options) for where in (DEVICE, "cpu"))
    if isinstance(expected, SemanticMap):
        assert isinstance(found, SemanticMap)
        assert (found.labels == expected.labels).mean() > 0.99
    elif isinstance(expected, PanopticMap):
        assert isinstance(found, PanopticMap)
        assert found.ids.shape == expected.ids.shape
    else:
        assert isinstance(found, Instances)
        assert isinstance(expected, Instances)
        assert agreement(found, expected) >= 0.9
        assert agreement(expected, found) >= 0.9


def agreement(found: Instances, expected: Instances) -> float:
    """Share of `found` that `expected` holds too: the same class, scores within 0.001 and boxes within a twentieth of a pixel."""
    if not len(found):
        return 1.0
    assert found.scores is not None
    assert expected.scores is not None
    same = found.labels[:, None] == expected.labels
    same &= np.abs(found.scores[:, None] - expected.scores) < 1e-3
    same &= np.abs(found.box_array[:, None] - expected.box_array).max(axis=2) < 0.05
    return float(same.any(axis=1).mean())


@pytest.mark.skipif(not CUDA, reason="records kernels")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(("name", "task"), STRAIGHT)
def test_replayed_equals_eager(name: str, task: Task, precision: Precision) -> None:
    runtime = TorchRuntime(make(name, task), device=DEVICE, precision=precision)
    assert runtime._replayed is not None
    with torch.inference_mode():
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            for count in (2, 1):
                images = torch.rand(count, 3, *input_size(name), generator=generator).to(DEVICE)
                images = images.contiguous(memory_format=torch.channels_last)
                found = {key: value.clone() for key, value in runtime._replayed(images).items()}
                expected = runtime._network(images)
                assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
    assert runtime._replayed._works
    assert all(recorded is not None for recorded in runtime._replayed._recorded.values())


@pytest.mark.parametrize(("name", "task"), STRAIGHT)
def test_bfloat16_is_near(name: str, task: Task) -> None:
    model, images = scrambled(make(name, task)), batch(2, input_size(name)).numpy()
    expected, found = (TorchRuntime(model, device=DEVICE, precision=how).run(images) for how in ("float32", "bfloat16"))
    for key, value in expected.items():
        assert np.linalg.norm(found[key] - value) < 0.05 * np.linalg.norm(value)


@pytest.mark.skipif(not CUDA, reason="TF32 is of NVIDIA GPUs")
def test_float32_is_no_tf32() -> None:
    model = make("yolo11n", "detect", (256, 256))
    images = torch.rand(1, 3, 256, 256)
    exact = model.double().eval()(images.double())["boxes"].detach().numpy()
    model = model.float()
    errors = {}
    for how in ("float32", "tf32"):
        runtime = TorchRuntime(model, device=DEVICE, precision=how)  # type: ignore[arg-type]
        errors[how] = np.linalg.norm(runtime.run(images.numpy())["boxes"] - exact) / np.linalg.norm(exact)
    assert errors["float32"] < 1e-5
    assert errors["float32"] < errors["tf32"] < 1e-2


def test_several_threads_get_what_one_gets() -> None:
    runtime = TorchRuntime(scrambled(make("yolo11n", "detect")), device=DEVICE)
    options = DecodeOptions(score=0.1, most=20)
    images = drawn_images(16, (60, 90))
    expected = [predict_image(runtime, image, decoding=options) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: predict_image(runtime, image, decoding=options), images))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Instances)
        assert isinstance(other, Instances)
        np.testing.assert_array_equal(one.box_array, other.box_array)
        np.testing.assert_array_equal(one.scores, other.scores)  # type: ignore[arg-type]
    assert sum(len(item) for item in expected) >= 20  # type: ignore[arg-type]


def test_files_in_order_with_a_broken_one_and_a_scan_between(tmp_path: Path) -> None:
    model = scrambled(make("yolo11n", "detect", (64, 64)))
    seeds = itertools.count()
    paths = mixed_files(tmp_path, lambda height, width: drawn_images(1, (height, width), seed=next(seeds))[0])
    options = PredictOptions(score=0.1, batch=4)
    found, expected = (list(predict_files(TorchRuntime(model, device=where), paths, options)) for where in (DEVICE, "cpu"))
    for one, other in answered(paths, found, expected):
        assert agreement(one, other) >= 0.9
        assert agreement(other, one) >= 0.9


@pytest.mark.parametrize("task", registry.entry("yolo11n").tasks)
def test_selection_on_the_device_loses_nothing(task: Task) -> None:
    model = scrambled(make("yolo11n", task))
    with torch.inference_mode():
        outputs = model.eval()(batch(3, model.card.input_size))
        moved = {key: value.to(DEVICE) for key, value in outputs.items()}
    for options in (DecodeOptions(score=0.2), DecodeOptions(score=0.6, multi_label=True), DecodeOptions(score=0.999)):
        frames = frames_for(model, 3)
        here = {key: value.numpy() for key, value in outputs.items()}
        there = {key: value.cpu().numpy() for key, value in likely(moved, model.card, options).items()}
        same(decode(there, frames, model.card, options), decode(here, frames, model.card, options))


def test_suppression_on_the_device_equals_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3, 2000, 2, generator=generator) * 300
    boxes = torch.cat((corner, corner + 5 + 40 * torch.rand(3, 2000, 2, generator=generator)), dim=2)
    scores = torch.rand(3, 2000, generator=generator) - 0.1
    kept = suppress(boxes, scores, 0.5)
    assert torch.equal(suppress(boxes.to(DEVICE), scores.to(DEVICE), 0.5).cpu(), kept)
    assert 100 < int(kept.sum()) < 5000


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_training_evaluation_and_prediction(name: str, task: Task, tmp_path: Path) -> None:
    data = draw(tmp_path / "images").with_task(task)
    size = registry.entry(name).tiny_input[0]
    out = str(tmp_path / "run")
    run = pelagia.train(small(name), data, epochs=2, batch=2, imgsz=size, device=DEVICE, workers=2, threads=1, out=out)
    assert all(np.isfinite(record["loss"]) for record in run.history)
    assert len(run.history) == 2
    predictor = pelagia.load(run.folder, device=DEVICE)
    assert isinstance(predictor.runtime, TorchRuntime)
    assert predictor.runtime.device.type == torch.device(DEVICE).type
    found = predictor.predict(tmp_path / "images" / "0.png")
    assert isinstance(found, {"semantic": SemanticMap, "panoptic": PanopticMap}.get(task, Instances))
    assert pelagia.evaluate(predictor, data).lines()


@pytest.mark.parametrize("amp", ["on", "off"])
def test_one_step_moves_the_weights_as_on_the_cpu(amp: str, tmp_path: Path) -> None:
    """One step of SGD with the same weights and samples: the gradients agree to the precision of the device."""
    data = draw(tmp_path / "images").with_task("detect")
    states = []
    for where, mixed in (("cpu", "off"), (DEVICE, amp)):
        options: dict[str, Any] = {
            "optimizer": "sgd",
            "lr": 0.01,
            "warmup_epochs": 0.0,
            "ema_decay": 0.0,
            "workers": 0,
            "threads": 1,
        }
        run = pelagia.train(
            small("yolo11n"),
            data,
            epochs=1,
            batch=4,
            imgsz=64,
            device=where,
            amp=mixed,
            out=str(tmp_path / f"run-{len(states)}"),
            **options,
        )
        model = pelagia.load(run.folder, device="cpu").model
        assert model is not None
        states.append(torch.cat([value.flatten() for value in parameters(model)]))
    moved = (states[1] - states[0]).norm() / states[0].norm()
    assert moved < (2e-3 if amp == "off" else 2e-2)


@pytest.mark.skipif(not CUDA, reason="a CPU has nothing to wait for")
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("task", ["detect", "oriented", "instance", "keypoints"])
def test_loss_and_gradients_wait_for_nothing_and_are_those_of_the_cpu(task: Task, regions: bool) -> None:
    size = (64, 96)
    truth, model = crowd(task, size, regions), make("yolo11n", task, size).train()
    outputs, there = disturbed_outputs(model, size, truth), truth.to(DEVICE, non_blocking=True)
    expected, slopes = loss_and_slopes(model, outputs, truth)
    moved = {name: value.to(DEVICE) for name, value in outputs.items()}
    loss_and_slopes(model, moved, there)  # libraries wait when they are first used
    answers: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    waits = waits_on_gpu(lambda: answers.append(loss_and_slopes(model, moved, there)))
    assert waits == [], "\n".join(waits)
    found, gradients = answers[0]
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-4, atol=1e-5)
    for name, value in slopes.items():
        assert (gradients[name].cpu() - value).norm() < 1e-3 * value.norm()


def parameters(model: Model) -> list[Tensor]:
    return [value.detach() for value in model.parameters()]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    data = draw(tmp_path / "images").with_task("instance")
    common: dict[str, Any] = {"batch": 2, "imgsz": 64, "device": DEVICE, "workers": 0, "threads": 1, "out": str(tmp_path / "run")}
    options = replace(defaults_of(small("yolo11n")), epochs=2, **common)

    def interrupt(done: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = train(options, data, quiet=True, on_step=interrupt)
    assert (stopped.stopped, stopped.epochs) == ("interrupted", 1)
    resumed = train(TrainOptions(resume=str(tmp_path / "run")), data, quiet=True)
    assert (resumed.stopped, resumed.epochs) == ("finished", 2)
    assert all(np.isfinite(record["loss"]) for record in resumed.history)
