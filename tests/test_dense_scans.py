"""Class maps of scans: tiled equals whole for networks that are local, averages without seams for the others."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F

from pelagia.core.card import ModelCard
from pelagia.core.image import normalise
from pelagia.core.scan import Scan
from pelagia.core.types import Category, SemanticMap
from pelagia.decode import DecodeOptions
from pelagia.errors import OptionError
from pelagia.infer.dense import map_blocks, plan_map
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.views import tile_size
from pelagia.models import registry
from pelagia.models.model import Model
from pelagia.models.receptive_field import receptive_field
from pelagia.models.runtime import TorchRuntime

CATEGORIES = tuple(Category(index, f"class {index}") for index in range(3))

#: Name, side of the input, options: every convolutional architecture.
LOCAL: dict[str, tuple[str, int, dict[str, Any]]] = {
    "unet-valid": ("unet", 92, {"depth": 2, "width": 4}),
    "unet-padded": ("unet", 96, {"depth": 2, "width": 4, "padding": True, "norm": True}),
    "unet-sigmoid": ("unet", 64, {"depth": 1, "width": 4, "padding": True, "form": "sigmoid"}),
    "fcn": ("fcn", 288, {"backbone": "timm:test_resnet"}),
    "unet-timm": ("unet-timm", 256, {"backbone": "timm:test_resnet", "width": 0.125}),
}


def make(name: str, side: int | tuple[int, int], options: dict[str, Any], **manifest: Any) -> Model:
    """Random weights."""
    torch.manual_seed(1)
    model = registry.create(name, CATEGORIES, "semantic", input_size=side, options=options)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():  # so that the classes are about equally likely
        model.eval()
        logits = model(torch.rand(1, 3, *model.card.input_size))["logits"]
        last = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d) and module.out_channels % 3 == 0][-1]
        assert last.bias is not None
        last.bias.view(3, -1).sub_(logits.mean(dim=(0, 2, 3))[:, None])
    model.card = replace(model.card, manifest={"full_resolution": True, **manifest})
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    made = {key: make(*value) for key, value in LOCAL.items()}
    for model in made.values():
        model.card = replace(model.card, manifest={**model.card.manifest, "receptive_field": receptive_field(model)})
    return made


def picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blobs and noise, so that no two tiles look alike."""
    rng = np.random.default_rng([width, height, seed])
    coarse = torch.from_numpy(rng.random((1, 3, height // 16 + 2, width // 16 + 2)))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(255 * (0.7 * smooth + 0.3 * rng.random((height, width, 3))), 0, 255).astype(np.uint8)


def whole(model: Model, image: NDArray[np.uint8], times: int = 1) -> NDArray[np.float32]:
    """[K, H, W] probabilities by the definition: the network on the whole image at once, continued to the right and below by the
    fill value to a multiple of the stride (or by the mirrored image all around for a margin); enlarged so many `times`."""
    card, (height, width) = model.card, image.shape[:2]
    inner = [side - 2 * card.margin for side in card.input_size]
    sides = [
        side + card.stride * math.ceil(max(length - side, 0) / card.stride)
        for side, length in zip(inner, (height, width), strict=True)
    ]
    canvas = np.full((sides[0] + 2 * card.margin, sides[1] + 2 * card.margin, 3), 114, dtype=np.uint8)
    mirrored = np.pad(image, ((card.margin, card.margin), (card.margin, card.margin), (0, 0)), mode="symmetric")
    canvas[: mirrored.shape[0], : mirrored.shape[1]] = mirrored
    with torch.inference_mode():
        logits = model(torch.from_numpy(normalise(canvas, card.normalisation))[None].float())["logits"]
        logits = F.interpolate(logits, size=tuple(times * side for side in sides), mode="bilinear", align_corners=False)
        chances = torch.sigmoid(logits) if card.options["form"] == "sigmoid" else logits.softmax(dim=1)
    found: NDArray[np.float32] = chances[0, :, : times * height, : times * width].numpy()
    return found


def tiled(model: Model, image: NDArray[np.uint8], **options: Any) -> SemanticMap:
    chosen = PredictOptions(tiling="always", batch=2, **options)
    found = predict_image(TorchRuntime(model), image, chosen, decoding=DecodeOptions(scores=True))
    assert isinstance(found, SemanticMap)
    assert found.scores is not None
    return found


def assert_whole(model: Model, found: SemanticMap, expected: NDArray[np.float32]) -> None:
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, expected, atol=1e-5, rtol=0)
    top = np.sort(expected, axis=0)
    sure = top[-1] - top[-2] > 1e-4
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(found.labels[sure], expected.argmax(axis=0)[sure])
    assert len(np.unique(found.labels)) > 1  # a constant would prove nothing


@pytest.mark.parametrize("size", [(301, 203), (130, 257), (511, 40)])
@pytest.mark.parametrize("key", ["unet-valid", "unet-padded", "unet-sigmoid"])
def test_a_tiled_map_equals_the_whole(models: dict[str, Model], key: str, size: tuple[int, int]) -> None:
    model, image = models[key], picture(*size)
    plan = plan_map(TorchRuntime(model), Scan.of(image), tile_size(model.card, PredictOptions()), PredictOptions())
    assert plan.way == "exact"
    assert size[0] > plan.canvas.tile[0]
    assert_whole(model, tiled(model, image), whole(model, image))


@pytest.mark.parametrize("key", ["fcn", "unet-timm"])
def test_deep_encoders_too(models: dict[str, Model], key: str) -> None:
    model, image = models[key], picture(1003, 501)
    assert_whole(model, tiled(model, image, blend="exact"), whole(model, image))


@settings(max_examples=15, deadline=None)
@given(
    width=st.integers(1, 260),
    height=st.integers(1, 200),
    steps=st.integers(0, 12),
    key=st.sampled_from(["unet-valid", "unet-padded"]),
)
def test_any_size_of_image_and_tile(width: int, height: int, steps: int, key: str) -> None:
    name, _, options = LOCAL[key]
    side = (60 if key == "unet-valid" else 92) + 4 * steps
    halo = 0 if key == "unet-valid" else 22
    model = make(name, side, options, receptive_field={"local": True, "halo": halo, "cell": 1})
    image = picture(width, height)
    found = tiled(model, image, blend="exact")
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, whole(model, image), atol=1e-5, rtol=0)


def test_one_pixel_less_of_halo_is_not_exact(models: dict[str, Model]) -> None:
    """The halo is needed: the network does look that far."""
    model, image = models["unet-padded"], picture(301, 203)
    field = model.card.manifest["receptive_field"]
    wrong = make(*LOCAL["unet-padded"], receptive_field={**field, "halo": 4})
    wrong.load_state_dict(model.state_dict())
    found = tiled(wrong, image)
    assert found.scores is not None
    assert np.abs(found.scores - whole(model, image)).max() > 1e-3


def test_halved_images_are_tiled_exactly(models: dict[str, Model]) -> None:
    """At a scale of 1/2 the network's pixels are means of 2 x 2, whatever the tile; the map is at the scale of the image."""
    model, image = models["unet-padded"], picture(602, 406)
    total = np.stack([image[y::2, x::2].astype(int) for y in (0, 1) for x in (0, 1)]).sum(axis=0)
    assert_whole(model, tiled(model, image, tile=192), whole(model, ((total + 2) // 4).astype(np.uint8), times=2))


class Pixelwise:
    """Logits from the colour of each pixel or cell, plus a share of where it lies in the tile: a network that is not local."""

    def __init__(
        self, size: tuple[int, int], *, bias: float = 0.0, cell: int = 1, form: str = "softmax", manifest: Any = None
    ) -> None:
        self.bias, self.cell = bias, cell
        self.card = ModelCard(
            name="pixelwise",
            task="semantic",
            decoder="pixels",
            categories=CATEGORIES,
            input_size=size,
            stride=8,
            options={"form": form},
            manifest={"full_resolution": True, **(manifest or {})},
        )
        self.calls = 0

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self.calls += len(images)
        batch, _, height, width = images.shape
        cells = images.reshape(batch, 3, height // self.cell, self.cell, width // self.cell, self.cell).mean(axis=(3, 5))
        ramp = np.linspace(-1, 1, cells.shape[3], dtype=np.float32)
        logits = 8 * cells - 4
        logits[:, 0] += self.bias * ramp
        return {"logits": logits}


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("cell", [1, 4])
@pytest.mark.parametrize("blend", ["hann", "cut"])
@pytest.mark.parametrize("scale", [1, 2])
def test_averages_of_equal_answers_are_these_answers(blend: Any, cell: int, form: str, scale: int) -> None:
    image = picture(333, 217)
    options = PredictOptions(tiling="always", blend=blend, overlap=0.4)
    found, at_once = (
        predict_image(
            Pixelwise(size, cell=cell, form=form),
            image,
            replace(options, tile=scale * max(size)),
            decoding=DecodeOptions(scores=True),
        )
        for size in ((64, 64), (224 // scale, 336 // scale))
    )
    assert isinstance(found, SemanticMap)
    assert isinstance(at_once, SemanticMap)
    assert found.scores is not None
    assert at_once.scores is not None
    np.testing.assert_allclose(found.scores, at_once.scores, atol=2e-6)
    assert (found.labels == at_once.labels).mean() > 0.999


def test_a_hann_window_leaves_no_seam() -> None:
    """A network whose answer drifts within its tile: cut, the map jumps; averaged, it is as smooth as the drift itself."""
    image = np.full((64, 500, 3), 128, dtype=np.uint8)
    steps = {}
    for blend in ("cut", "hann"):
        options = PredictOptions(tiling="always", blend=blend, overlap=0.5)  # type: ignore[arg-type]
        found = predict_image(Pixelwise((64, 64), bias=2.0), image, options, decoding=DecodeOptions(scores=True))
        assert isinstance(found, SemanticMap)
        assert found.scores is not None
        steps[blend] = np.abs(np.diff(found.scores[0], axis=1)).max()
    assert steps["hann"] < 0.25 * steps["cut"]


def test_the_average_is_that_of_the_definition() -> None:
    """Naively: every tile's probabilities with the weights sin^2, summed over the whole map."""
    image = picture(150, 64, seed=3)
    runtime = Pixelwise((64, 64), bias=3.0)
    options = PredictOptions(tiling="always", blend="hann", overlap=0.25)
    plan = plan_map(runtime, Scan.of(image), (64, 64), options)
    total, weight = np.zeros((3, 64, 152)), np.zeros((64, 152))
    window = np.sin(np.pi * (np.arange(64) + 0.5) / 64) ** 2
    both = window[:, None] * window
    canvas = np.full((64, 152, 3), 114, dtype=np.uint8)
    canvas[:, :150] = image
    for x in (0, 40, 88):  # evenly, at multiples of 8
        logits = runtime.run(normalise(canvas[:, x : x + 64], runtime.card.normalisation)[None])["logits"][0].astype(np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(axis=0)
        total[:, :, x : x + 64] += both * chances
        weight[:, x : x + 64] += both
    found = predict_image(runtime, image, options, decoding=DecodeOptions(scores=True))
    assert isinstance(found, SemanticMap)
    assert found.scores is not None
    assert plan.way == "hann"
    np.testing.assert_allclose(found.scores, (total / weight)[:, :, :150], atol=1e-6)


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ({}, "does not say how far"),
        ({"receptive_field": {"local": False}}, "whole input at once"),
        ({"receptive_field": {"local": True, "halo": 40, "cell": 1}}, "looks 40 pixels beyond"),
    ],
)
def test_what_cannot_be_exact_is_averaged_or_refused(manifest: dict[str, Any], why: str) -> None:
    runtime, scan = Pixelwise((64, 64), manifest=manifest), Scan.of(picture(300, 200))
    assert plan_map(runtime, scan, (64, 64), PredictOptions()).way == "hann"
    with pytest.raises(OptionError, match=why):
        plan_map(runtime, scan, (64, 64), PredictOptions(blend="exact"))


def test_a_runtime_of_any_size_gets_a_larger_input(models: dict[str, Model]) -> None:
    model = models["unet-timm"]
    plan = plan_map(TorchRuntime(model), Scan.of(picture(2000, 1500)), (256, 256), PredictOptions())
    assert plan.way == "exact"
    assert plan.canvas.tile[0] >= 4 * model.card.manifest["receptive_field"]["halo"]
    assert plan.canvas.tile[0] % 32 == 0


@pytest.mark.parametrize("blend", ["exact", "hann"])
def test_every_pixel_is_in_one_block(blend: Any) -> None:
    runtime = Pixelwise((64, 64), manifest={"receptive_field": {"local": True, "halo": 8, "cell": 1}})
    scan = Scan.of(picture(700, 530))
    options = PredictOptions(blend=blend)
    plan = plan_map(runtime, scan, (64, 64), options)
    seen = np.zeros((530, 700), dtype=int)
    for block in map_blocks(runtime, plan, options, DecodeOptions()):
        seen[block.place] += 1
        assert block.labels.shape == tuple(
            min(start + side, length) - start
            for start, side, length in zip((block.y, block.x), plan.block[::-1], (530, 700), strict=True)
        )
        assert block.x % plan.block[0] == 0
        assert block.y % plan.block[1] == 0
    assert (seen == 1).all()


class Wide(Scan):
    """A scan that is made while it is read."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(None, np.zeros((1, 1, 1), dtype=np.uint8))
        self.width, self.height = width, height

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        return np.broadcast_to(((np.arange(x, x + width) // 7) % 200).astype(np.uint8)[None, :, None], (height, width, 1))


def peak(blend: Any, side: int) -> int:
    """Bytes held at most while a map of `side` x `side` pixels comes, block by block."""
    runtime = Pixelwise((256, 256), manifest={"receptive_field": {"local": True, "halo": 16, "cell": 1}})
    options = PredictOptions(blend=blend, batch=2)
    scan = Wide(side, side)
    tracemalloc.start()
    blocks: Iterator[Any] = map_blocks(runtime, plan_map(runtime, scan, (256, 256), options), options, DecodeOptions())
    pixels = sum(block.labels.size for block in blocks)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels == side * side
    return held


def test_memory_does_not_grow_with_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pelagia.infer.blend._BUDGET", 8 << 20)  # so that a scan of this size has several stripes
    for blend in ("exact", "hann"):
        small, large = peak(blend, 768), peak(blend, 2560)
        assert large < 1.3 * small
        assert large < 48 << 20
