"""How far networks look, against what their layers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.core.card import ModelCard
from pelagia.core.image import write
from pelagia.core.types import Category, SemanticMap
from pelagia.data.label_pixels import write_label_pixels
from pelagia.data.open import open_dataset
from pelagia.decode import DecodeOptions
from pelagia.export.int8 import export_int8
from pelagia.export.onnx import FileKind, export_onnx
from pelagia.export.openvino import export_openvino
from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.models import checkpoint, registry
from pelagia.models.model import Model, Targets
from pelagia.models.receptive_field import receptive_field
from pelagia.models.runtime import TorchRuntime
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions

CATEGORIES = tuple(Category(index, f"class {index}") for index in range(3))


def field_of(name: str, size: int | tuple[int, int] = 64, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return receptive_field(registry.create(name, CATEGORIES, "semantic", input_size=size, options=options))


class Layers(Model):
    """Any layers as a model."""

    def __init__(self, *layers: nn.Module, stride: int = 1, margin: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        side = 8 * stride + 2 * margin
        self.card = ModelCard(
            name="layers",
            task="semantic",
            decoder="pixels",
            categories=CATEGORIES,
            input_size=(side, side),
            stride=stride,
            margin=margin,
        )

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        return {"logits": self.layers(images)}

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        return {"none": outputs["logits"].sum() * 0}


class Aligned(nn.Module):
    """Bilinear resampling with aligned corners: where a pixel comes from depends on the size of the whole."""

    def forward(self, x: Tensor) -> Tensor:
        small = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=True)
        return F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=True)


def test_layers_whose_reach_is_known() -> None:
    assert receptive_field(Layers(nn.Conv2d(3, 3, 1))) == {"local": True, "halo": 0, "cell": 1}
    # Zero weights are weights too: what counts is what a network may look at.
    wide = nn.Conv2d(3, 3, 7, padding=3)
    nn.init.zeros_(wide.weight)
    assert receptive_field(Layers(wide)) == {"local": True, "halo": 3, "cell": 1}
    assert receptive_field(Layers(nn.Conv2d(3, 3, 3, dilation=40, padding=40))) == {"local": True, "halo": 40, "cell": 1}
    # 2 x 2 cells from pooling look at no neighbour; a convolution on them looks one cell, two pixels, on.
    assert receptive_field(Layers(nn.MaxPool2d(2), stride=2)) == {"local": True, "halo": 0, "cell": 2}
    pooled = Layers(nn.MaxPool2d(2), nn.Conv2d(3, 3, 3, padding=1), nn.Upsample(scale_factor=2), stride=2)
    assert receptive_field(pooled) == {"local": True, "halo": 2, "cell": 1}
    # A valid convolution gives no answer where it would look over the border.
    assert receptive_field(Layers(nn.Conv2d(3, 3, 5), margin=2)) == {"local": True, "halo": 0, "cell": 1}


@pytest.mark.parametrize(
    "layer",
    [nn.AdaptiveAvgPool2d(1), nn.GroupNorm(1, 3), nn.Softmax(dim=3), Aligned(), nn.Upsample((64, 64))],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_look_everywhere_are_not_local(layer: nn.Module) -> None:
    torch.manual_seed(0)
    assert receptive_field(Layers(nn.Conv2d(3, 3, 1), layer)) == {"local": False}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_u_nets_look_as_far_as_the_paper_says(depth: int) -> None:
    """The margin of the valid convolutions is how far the network looks; padded ones look as far and have no margin."""
    margin = 6 * 2**depth - 4
    side = 2 * margin + 4 + 2 * 2**depth
    assert field_of("unet", side, depth=depth, width=2) == {"local": True, "halo": 0, "cell": 1}
    found = field_of("unet", 64, depth=depth, width=2, padding=True, norm=True)
    # Two cells a level on the way down and two on the way up. The grid of the poolings begins at the border here, and two
    # pixels inside it in valid convolutions, which costs up to two pixels more.
    strip = 0
    for level in range(depth + 1):
        strip = -(-strip // 2) + 2 if level else 2
    for _ in range(depth):
        strip = 2 * strip + 2
    assert found == {"local": True, "halo": strip, "cell": 1}
    assert margin <= strip <= margin + 2


def test_encoders_of_timm() -> None:
    assert field_of("unet-timm", backbone="timm:test_resnet", width=0.125)["local"]
    assert field_of("fcn", backbone="timm:test_resnet") == {"local": True, "halo": 96, "cell": 8}
    # Squeeze and excitation, and the pooled branch of the pyramid, see the whole image.
    assert field_of("unet-timm", backbone="timm:test_efficientnet", width=0.125) == {"local": False}
    assert field_of("deeplabv3", backbone="timm:test_resnet", width=8, rates="2,4") == {"local": False}


def test_the_model_is_left_as_it_was() -> None:
    model = registry.create("unet", CATEGORIES, "semantic", input_size=64, options={"depth": 2, "width": 4, "padding": True})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    receptive_field(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_and_export_write_it_into_the_card(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        write(tmp_path / "images" / f"{number}.png", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        write_label_pixels(tmp_path / "masks" / f"{number}.png", rng.integers(0, 2, (64, 64), dtype=np.uint8))
    chosen = ("depth=1", "width=2", "padding=true")
    options = TrainOptions(
        model="unet", out=str(tmp_path / "run"), epochs=1, batch=2, imgsz=64, threads=1, device="cpu", model_options=chosen
    )
    data = open_dataset(tmp_path, task="semantic")
    train(options, data, data, quiet=True)
    expected = {"local": True, "halo": 8, "cell": 1}
    model = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert model.card.manifest["receptive_field"] == expected
    # A file that does not say it, from an older version or another project, gets it when it is exported.
    model.card = replace(model.card, manifest={})
    export_onnx(model, tmp_path / "m.onnx")
    assert OnnxRuntime(tmp_path / "m.onnx").card.manifest["receptive_field"] == expected
    export_openvino(model, tmp_path / "m.xml")
    assert OpenVinoRuntime(tmp_path / "m.xml").card.manifest["receptive_field"] == expected
    kinds: list[tuple[FileKind, str]] = [("onnx", "8.onnx"), ("openvino", "8.xml")]
    for kind, name in kinds:
        export_int8(tmp_path / "m.onnx", tmp_path / name, data, kind, max_drop=1.0, show=False)
        opened = OnnxRuntime(tmp_path / name) if kind == "onnx" else OpenVinoRuntime(tmp_path / name)
        assert opened.card.manifest["receptive_field"] == expected
    image = rng.integers(0, 256, (150, 210, 3), dtype=np.uint8)
    found, whole = (
        predict_image(runtime, image, PredictOptions(tiling="always", blend="exact"), decoding=DecodeOptions(scores=True))
        for runtime in (OnnxRuntime(tmp_path / "m.onnx"), TorchRuntime(larger(model, (150, 210))))
    )
    assert isinstance(found, SemanticMap)
    assert isinstance(whole, SemanticMap)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-5)  # type: ignore[arg-type]


def larger(model: Model, size: tuple[int, int]) -> Model:
    """The same weights for an input that holds the whole image, at the scale of the model's own."""
    wide = registry.create("unet", model.card.categories, "semantic", input_size=size, options=model.card.options)
    wide.load_state_dict(model.state_dict())
    field = {"local": True, "halo": 8, "cell": 1}
    wide.card = replace(wide.card, normalisation=model.card.normalisation, manifest={"receptive_field": field})
    return wide.eval()
