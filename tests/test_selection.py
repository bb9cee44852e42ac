"""What a runtime with a device of its own does with images and outputs, shown on the CPU: nothing that is found changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from answers import STRAIGHT, answered, frames_for, mixed_files, same, scrambled
from pelagia.api import load
from pelagia.core.card import Normalisation
from pelagia.core.image import letterbox, normalise, write
from pelagia.core.types import Instances, Task
from pelagia.decode import DecodeOptions, decode
from pelagia.errors import ModelError, OptionError
from pelagia.infer.benchmark import measure
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files
from pelagia.infer.runtimes import Runtime, Shared
from pelagia.models import checkpoint, registry
from pelagia.models.runtime import TorchRuntime, float32_products, round_weights
from pelagia.models.selection import likely
from pelagia.nn.intensities import stack_pixels, to_network
from pelagia.nn.layers import fuse
from test_models_battery import FAMILIES, batch, input_size, make

YOLO_TASKS = registry.entry("yolo11n").tasks


class DeviceRuntime(TorchRuntime):
    """A runtime on the CPU that is used as one on a GPU is: no lanes, batches, stored pixels."""

    @property
    def takes_pixels(self) -> bool:
        return True

    def lanes(self) -> tuple[Runtime, ...]:
        return ()


@pytest.mark.parametrize(
    ("options", "share"),
    [
        (DecodeOptions(), 0.7),
        (DecodeOptions(multi_label=True, agnostic=True, nms_iou=0.9), 0.8),
        (DecodeOptions(class_scores={"disc": 1.0}, nms_iou=0.99), 0.5),
        (DecodeOptions(score=0.0, most=100), 0.0),
    ],
)
@pytest.mark.parametrize("task", YOLO_TASKS)
def test_decoding_finds_the_same_without_the_weak_cells(task: Task, options: DecodeOptions, share: float) -> None:
    model = scrambled(make("yolo11n", task, (160, 128)))
    with torch.inference_mode():
        outputs = model(batch(3, model.card.input_size))
        outputs["scores"] = (outputs["scores"] * 64).round() / 64  # many equal scores: their order decides
        if share:
            best = outputs["scores"].amax(dim=1).flatten()
            options = replace(options, score=float(best.quantile(share).sigmoid()))
        fewer = likely(outputs, model.card, options)
    arrays, chosen = ({key: value.numpy() for key, value in item.items()} for item in (outputs, fewer))
    frames = frames_for(model, 3)
    count = same(decode(chosen, frames, model.card, options), decode(arrays, frames, model.card, options))
    assert count >= 20
    if options.score:
        assert 0 < fewer["scores"].shape[2] < outputs["scores"].shape[2]
        assert fewer["cells"].shape == (3, fewer["scores"].shape[2])


def test_nothing_is_left_where_no_cell_is_strong_enough() -> None:
    model = make("yolo11n", "instance").eval()
    with torch.inference_mode():
        outputs = model(batch(2, model.card.input_size))
        outputs["scores"] -= 100
        fewer = likely(outputs, model.card, DecodeOptions())
    assert fewer["boxes"].shape[2] == 0
    found = decode({key: value.numpy() for key, value in fewer.items()}, frames_for(model, 2), model.card, DecodeOptions())
    assert [len(item) for item in found if isinstance(item, Instances)] == [0, 0]


def test_nan_is_not_left_out() -> None:
    model = make("yolo11n", "detect").eval()
    with torch.inference_mode():
        outputs = model(batch(1, model.card.input_size))
        outputs["scores"] -= 100
        outputs["scores"][0, 1, 5] = float("nan")
        fewer = likely(outputs, model.card, DecodeOptions())
    with pytest.raises(ModelError, match="NaN"):
        decode({key: value.numpy() for key, value in fewer.items()}, frames_for(model, 1), model.card, DecodeOptions())


@pytest.mark.parametrize("task", YOLO_TASKS)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_stored_pixels_give_what_normalised_ones_give(task: Task, kind: Any) -> None:
    model = scrambled(make("yolo11n", task))
    model.card = replace(model.card, normalisation=Normalisation(low=10, high=np.iinfo(kind).max - 5, mean=(0.4, 0.5, 0.6)))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, np.iinfo(kind).max, (*model.card.input_size, channels)).astype(kind) for channels in (3, 1)]
    runtime, options, frames = TorchRuntime(model, device="cpu"), DecodeOptions(score=0.5), frames_for(model, 2)
    expected = decode(
        runtime.run(np.stack([normalise(image, model.card.normalisation) for image in images])), frames, model.card, options
    )
    found = decode(runtime.run_pixels(images, options), frames, model.card, options)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Instances)
        assert isinstance(other, Instances)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)  # type: ignore[arg-type]
        np.testing.assert_allclose(one.box_array, other.box_array, atol=1e-2)
    assert sum(len(item) for item in expected) >= 20  # type: ignore[arg-type]


def test_pixels_are_stacked_as_they_are() -> None:
    rng = np.random.default_rng(0)
    images: list[NDArray[Any]] = [
        rng.integers(0, 255, (5, 7, 3), dtype=np.uint8),
        rng.integers(0, 255, (5, 7, 1), dtype=np.uint8),
    ]
    found = stack_pixels(images)
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(found[0].permute(1, 2, 0), images[0])
    np.testing.assert_array_equal(found[1], np.repeat(images[1].transpose(2, 0, 1), 3, axis=0))
    deep = stack_pixels([np.full((2, 2, 3), 65535, dtype=np.uint16)])
    assert to_network(deep, Normalisation(low=0, high=65535), torch.device("cpu")).unique().tolist() == [1.0]
    with pytest.raises(ValueError, match="one size"):
        stack_pixels([images[0], images[1][:4]])


def test_files_go_the_way_of_a_gpu(tmp_path: Path) -> None:
    model = scrambled(make("yolo11n", "detect", (64, 64)))
    rng = np.random.default_rng(0)
    paths = mixed_files(tmp_path, lambda height, width: rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    options = PredictOptions(score=0.5, batch=4)
    runtime = DeviceRuntime(model, device="cpu")
    assert not Shared(runtime).alone
    found, expected = (list(predict_files(each, paths, options)) for each in (runtime, TorchRuntime(model, device="cpu")))
    for one, other in answered(paths, found, expected):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)  # type: ignore[arg-type]
        np.testing.assert_allclose(one.box_array, other.box_array, atol=1e-2)
    timing = measure(runtime, [paths[0]], options, seconds=0.05)
    assert timing.batch == 4
    assert timing.network_ms > 0


def test_leaving_files_early_ends_the_readers(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    write(path, np.zeros((64, 64, 3), dtype=np.uint8))
    results = predict_files(DeviceRuntime(make("yolo11n", "detect", (64, 64)), device="cpu"), [path] * 50)
    assert next(results).error is None
    results.close()  # type: ignore[attr-defined]
    assert list(results) == []


@pytest.mark.parametrize(("name", "task"), [case for case in FAMILIES if case.values[0] in ("yolo11n", "detr-r50")])
def test_a_padded_batch_goes_the_way_of_a_gpu(name: str, task: Task) -> None:
    model = scrambled(make(name, task))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 90, 3), dtype=np.uint8)
    view, _ = letterbox(image, model.card.input_size)
    valid = np.array([model.card.input_size]) if model.card.masks_padding else None
    runtime = TorchRuntime(model, device="cpu")
    batched = normalise(view, model.card.normalisation)[None]
    expected = runtime.run(batched) if valid is None else runtime.run(batched, valid)
    found = runtime.run_pixels([view], DecodeOptions(score=0.0), valid)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "task"), STRAIGHT)
def test_rounding_the_weights_once_is_what_autocast_does(name: str, task: Task) -> None:
    model, images = fuse(scrambled(make(name, task))), batch(2, input_size(name))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = {key: value.clone() for key, value in model(images).items()}
        round_weights(model)
        found = model(images)
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
    assert any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_the_precision_of_products_is_as_before_afterwards() -> None:
    newer = hasattr(torch.backends.cudnn, "conv")
    place: Any = torch.backends.cudnn.conv if newer else torch.backends.cudnn
    name, values = ("fp32_precision", ("ieee", "tf32")) if newer else ("allow_tf32", (False, True))
    before = getattr(place, name)
    for tf32 in (False, True):
        with float32_products(tf32=tf32):
            assert getattr(place, name) == values[tf32]
    assert getattr(place, name) == before


def test_tf32_needs_an_nvidia_gpu(tmp_path: Path) -> None:
    model = make("yolo11n", "detect")
    with pytest.raises(OptionError, match="NVIDIA"):
        TorchRuntime(model, device="cpu", precision="tf32")
    checkpoint.save(tmp_path / "model.safetensors", model, model.card)
    with pytest.raises(OptionError, match="NVIDIA"):
        load(tmp_path / "model.safetensors", device="cpu", precision="tf32")
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(OptionError, match="NVIDIA"):
        load(tmp_path / "model.xml", precision="tf32")
