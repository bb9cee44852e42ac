"""What is padding: from the samples of training and the views of prediction to the models that look away from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pelagia.core import image as core_image
from pelagia.core.image import letterbox
from pelagia.core.padding import covered, to_corner
from pelagia.core.types import Category, Instances
from pelagia.data.augment import FILL, AugmentOptions, corner_sample, evaluation_sample
from pelagia.data.dataset import Dataset
from pelagia.decode import DecodeOptions
from pelagia.export.int8 import calibration_inputs, export_int8
from pelagia.export.onnx import export_onnx
from pelagia.export.openvino import export_openvino
from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.predict import predict_batch
from pelagia.infer.runtimes import OnnxRuntime, PaddedRuntime
from pelagia.models.model import Model, Targets
from pelagia.models.registry import create, entry
from pelagia.models.runtime import TorchRuntime
from pelagia.train.batch import collate
from pelagia.train.data import Maker, Plan
from pelagia.train.distributed import Group
from pelagia.train.step import wrap

STILL = AugmentOptions(flip_lr=0, flip_ud=0, scale=0, translate=0, hsv_h=0, hsv_s=0, hsv_v=0, blur=0, noise=0, mosaic=0)
CATEGORIES = (Category(1, "a"), Category(2, "b"))


def model_of(name: str, size: tuple[int, int] = (96, 128)) -> Model:
    torch.manual_seed(0)
    return create(name, CATEGORIES, "detect", input_size=size, options=entry(name).tiny).eval()


def images_of(folder: Path, sizes: list[tuple[int, int]]) -> Dataset:
    """Noise with one object each."""
    items = []
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        core_image.write(folder / f"{number}.png", pixels)
        box = np.array([[0.25 * width, 0.25 * height, 0.75 * width, 0.5 * height]])
        items.append((folder / f"{number}.png", (width, height), Instances(np.array([number % 2]), boxes=box)))
    return Dataset.from_instances(CATEGORIES, items, root=folder, task="detect")


def test_the_covered_pixels_are_those_of_the_image() -> None:
    assert covered(np.array([[0.5, 0, 3.2], [0, 0.5, 4.0]]), (20, 10), (64, 48)) == (3, 4, 14, 9)
    assert covered(np.array([[2.0, 0, -30], [0, 2.0, 5]]), (40, 40), (64, 48)) == (0, 5, 50, 48)
    assert covered(np.array([[0, -1.0, 30.0], [1.0, 0, 2.0]]), (20, 10), (64, 48)) == (20, 2, 30, 22)  # a quarter turn
    assert covered(np.array([[0.9, 0.1, 0], [-0.1, 0.9, 0]]), (20, 10), (64, 48)) is None
    assert covered(np.array([[1.0, 0, 100], [0, 1.0, 0]]), (20, 10), (64, 48)) is None


@pytest.mark.parametrize("size", [(200, 50), (30, 90), (64, 48)])
def test_samples_lie_in_the_corner_with_their_truth(size: tuple[int, int], tmp_path: Path) -> None:
    data = images_of(tmp_path, [size])
    centred, frame = evaluation_sample(data, 0, (96, 128))
    assert centred.shown is not None
    x1, y1, x2, y2 = centred.shown
    scale = min(128 / size[0], 96 / size[1])
    assert (x2 - x1, y2 - y1) == (round(size[0] * scale), round(size[1] * scale))
    moved = corner_sample(centred, data.categories)
    assert moved.shown == (0, 0, x2 - x1, y2 - y1)
    assert np.array_equal(moved.image[: y2 - y1, : x2 - x1], centred.image[y1:y2, x1:x2])
    assert (moved.image[y2 - y1 :] == FILL).all()
    assert (moved.image[:, x2 - x1 :] == FILL).all()
    np.testing.assert_allclose(moved.truth.box_array, data.truth(0).box_array * scale, atol=1e-9)
    np.testing.assert_allclose(
        frame.boxes(moved.truth.box_array + np.array([x1, y1, x1, y1])), data.truth(0).box_array, atol=1e-9
    )


def test_batches_say_what_is_image(tmp_path: Path) -> None:
    data = images_of(tmp_path, [(200, 50), (30, 90), (128, 96)])
    plan = Plan(3, 3, 0)
    maker = Maker(data, STILL, (96, 128), 0, 9, masks_padding=True)
    batch = maker.batch(plan.step(0))
    names = [data.names.index(name) for name in batch.names]
    expected = {0: (32, 128), 1: (96, 32), 2: (96, 128)}
    assert batch.valid is not None
    assert [tuple(row) for row in batch.valid.tolist()] == [expected[index] for index in names]
    assert replace(maker, masks_padding=False).batch(plan.step(0)).valid is None
    joined = replace(maker, augment=replace(STILL, mosaic=1.0)).batch(plan.step(0))
    assert joined.valid is None  # all of a mosaic counts
    turned = replace(maker, augment=replace(STILL, rotate_deg=40.0)).batch(plan.step(0))
    assert turned.valid is None


def test_zoomed_and_shifted_samples_keep_their_objects_on_their_pixels(tmp_path: Path) -> None:
    """A bright object on dark: truth and pixels move together into the corner."""
    image = np.full((60, 100, 3), 20, dtype=np.uint8)
    image[20:40, 30:70] = 240
    core_image.write(tmp_path / "a.png", image)
    truth = Instances(np.array([0]), boxes=np.array([[30.0, 20.0, 70.0, 40.0]]))
    data = Dataset.from_instances(CATEGORIES, [(tmp_path / "a.png", (100, 60), truth)], root=tmp_path, task="detect")
    options = replace(STILL, scale=0.5, translate=0.1, flip_lr=0.5, flip_ud=0.5, min_visible=0.0)
    maker = Maker(data, options, (96, 128), 3, 0, masks_padding=True)
    smaller = 0
    for epoch in range(20):
        batch = maker.batch(Plan(1, 1, 0).step(epoch))
        assert batch.valid is not None
        height, width = batch.valid[0].tolist()
        smaller += int((height, width) != (96, 128))
        pixels = batch.images[0].permute(1, 2, 0).numpy()
        assert (pixels[height:] == FILL).all()
        assert (pixels[:, width:] == FILL).all()
        bright = np.argwhere(pixels[..., 0] > 180)
        (y1, x1), (y2, x2) = bright.min(axis=0), bright.max(axis=0) + 1
        np.testing.assert_allclose(batch.targets.boxes[0].numpy(), [x1, y1, x2, y2], atol=1.1)
    assert smaller >= 5


def test_detr_learns_as_from_its_reference_batch(tmp_path: Path) -> None:
    """What lies in the padding changes nothing, and the loss is that of `forward` with `valid`."""
    data = images_of(tmp_path, [(128, 32), (32, 96)])
    model = model_of("detr-r50")
    step = wrap(model, Group())
    batch = Maker(data, STILL, (96, 128), 0, 0, masks_padding=model.card.masks_padding).batch(Plan(2, 2, 0).step(0))
    images = batch.images.float() / 255
    assert batch.valid is not None
    terms = step(images, batch.targets, batch.valid)
    direct = model.loss(model(images, batch.valid, batch.targets), batch.targets)
    blind = model.loss(model(images, None, batch.targets), batch.targets)
    for name, value in terms.items():
        assert torch.equal(value, direct[name])
    assert not torch.allclose(terms["l1"], blind["l1"])  # boxes are shares of the image, not of the canvas
    assert terms["l1"].requires_grad


class Recorder:
    """A runtime that notes what it is given."""

    def __init__(self, model: Model) -> None:
        self._runtime, self.card = TorchRuntime(model), model.card
        self.seen: list[tuple[NDArray[Any], NDArray[Any] | None]] = []

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        self.seen.append((images, valid))
        return self._runtime.run(images, valid)


@pytest.mark.parametrize("name", ["detr-r50", "faster-rcnn"])
def test_prediction_tells_the_model_and_boxes_come_back(name: str) -> None:
    model = model_of(name)
    runtime = Recorder(model)
    pictures = [
        np.random.default_rng(k).integers(0, 255, shape, dtype=np.uint8) for k, shape in enumerate([(40, 160, 3), (90, 30, 3)])
    ]
    options = DecodeOptions(score=0.0, most=50)
    found = predict_batch(runtime, pictures, options)
    images, valid = runtime.seen[0]
    assert valid is not None
    assert valid.tolist() == [[32, 128], [96, 32]]
    for picture, item, shown, (height, width) in zip(pictures, found, images, valid, strict=True):
        boxed, _ = letterbox(picture, (96, 128))
        part = covered(letterbox(picture, (96, 128))[1].inverse, (picture.shape[1], picture.shape[0]), (128, 96))
        assert part is not None
        expected = core_image.normalise(to_corner(boxed, part, FILL), model.card.normalisation)
        np.testing.assert_array_equal(shown, expected)
        # By hand: the raw boxes of the network, in shares or pixels of its input, times the original's pixels per input pixel.
        raw = model(torch.from_numpy(shown[None]), torch.tensor([[height, width]]))
        if name == "detr-r50":
            cx, cy, w, h = raw["boxes"][0].double().unbind(1)
            x, y = picture.shape[1], picture.shape[0]
            everything = torch.stack([(cx - w / 2) * x, (cy - h / 2) * y, (cx + w / 2) * x, (cy + h / 2) * y], dim=1)
            wanted = everything.clamp(min=0).minimum(torch.tensor([x, y, x, y]))
        else:
            wanted = raw["boxes"][0].double() * (picture.shape[1] / width)
        assert isinstance(item, Instances)
        assert len(item) > 0
        distance = np.abs(item.box_array[:, None] - wanted.detach().numpy()[None]).max(axis=2).min(axis=1)
        assert distance.max() < 1e-2


def test_an_exported_graph_looks_away_from_padding_too(tmp_path: Path) -> None:
    model = model_of("detr-r50", (64, 96))
    report = export_onnx(model, tmp_path / "m.onnx")
    assert report.inputs == {"images": ["batch", "3", "64", "96"], "valid": ["batch", "2"]}
    for threads in (1, 2):  # one session, and a session for each core
        _looks_away(model, OnnxRuntime(tmp_path / "m.onnx", threads=threads))


def test_a_graph_for_openvino_looks_away_from_padding_too(tmp_path: Path) -> None:
    model = model_of("detr-r50", (64, 96))
    export_openvino(model, tmp_path / "m.xml")
    export_onnx(model, tmp_path / "m.onnx")
    for path in (tmp_path / "m.xml", tmp_path / "m.onnx"):
        for threads in (1, 2):
            _looks_away(model, OpenVinoRuntime(path, threads=threads))


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_8_bit_graphs_are_calibrated_on_what_is_image(kind: Any, tmp_path: Path) -> None:
    model = model_of("detr-r50", (64, 96))
    source = export_onnx(model, tmp_path / "m.onnx").path
    data = images_of(tmp_path / "data", [(140, 35), (30, 90), (96, 64)])
    sizes = [item["valid"].tolist() for item in calibration_inputs(data, TorchRuntime(model), 9)]
    assert sizes == [[[24, 96]], [[64, 22]], [[64, 96]]]
    path = tmp_path / ("8.onnx" if kind == "onnx" else "8.xml")
    report = export_int8(source, path, data, kind, max_drop=1.0, show=False)
    assert report.calibration == 3
    runtime = OnnxRuntime(path) if kind == "onnx" else OpenVinoRuntime(path)
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    valid = np.array([[40, 96], [64, 20]])
    assert np.abs(runtime.run(images, valid)["logits"] - runtime.run(images)["logits"]).max() > 1e-3


def _looks_away(model: Model, runtime: PaddedRuntime) -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 96)).astype(np.float32)
    valid = np.array([[64, 96], [40, 96], [64, 20]])

    def plain(told: Tensor | None) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in model(torch.from_numpy(images), told).items()}

    for name, value in plain(torch.from_numpy(valid)).items():
        np.testing.assert_allclose({**runtime.run(images, valid), "valid": valid}[name], value, atol=1e-4)
    for name, value in plain(None).items():  # nothing said: all is image
        np.testing.assert_allclose(runtime.run(images)[name], value, atol=1e-4)
    assert np.abs(runtime.run(images, valid)["logits"][1:] - runtime.run(images)["logits"][1:]).max() > 1e-3


def test_collate_needs_no_shown_part(tmp_path: Path) -> None:
    data = images_of(tmp_path, [(128, 96)])
    sample = replace(evaluation_sample(data, 0, (96, 128))[0], shown=None)
    batch = collate([sample])
    assert batch.valid is None
    assert isinstance(batch.targets, Targets)
