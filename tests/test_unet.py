"""U-Net: the paper's numbers, the overlap-tile strategy, instances as classes, encoders of timm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pelagia.core.frame import Frame
from pelagia.core.image import letterbox
from pelagia.core.types import Category, Instances, Task
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError, OptionError
from pelagia.losses.borders import border_weights
from pelagia.models import registry
from pelagia.models.model import MaskCrops, Model, Targets
from pelagia.models.pixels.dense import DenseOptions, dense_truth
from pelagia.models.pixels.unet import Options, UNet, margin_of
from pelagia.models.pixels.unet_timm import TimmUNet


def categories(count: int) -> tuple[Category, ...]:
    return tuple(Category(index, f"class {index}") for index in range(count))


def make(name: str, count: int = 2, task: Task = "semantic", size: int | tuple[int, int] = 64, **options: Any) -> Model:
    torch.manual_seed(0)
    return registry.create(name, categories(count), task, input_size=size, options=options)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_papers_numbers() -> None:
    with torch.device("meta"):
        model = make("unet", size=572)
        padded = make("unet", size=512, padding=True, norm=True)
    assert isinstance(model, UNet)
    assert model.card.margin == 92
    assert model(torch.zeros(1, 3, 572, 572, device="meta"))["logits"].shape == (1, 2, 388, 388)
    assert padded(torch.zeros(1, 3, 512, 512, device="meta"))["logits"].shape == (1, 2, 512, 512)
    assert padded.card.margin == 0
    # One input channel as in the paper would have 2 x 9 x 64 parameters fewer: 31,030,658.
    assert parameters(model) == 31_031_810 == registry.entry("unet").parameters["semantic"]
    assert parameters(padded) == 31_037_698


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_margin_is_what_valid_convolutions_take(depth: int) -> None:
    margin = margin_of(depth)
    size = 2 * margin + 4 + 2 * 2**depth
    model = make("unet", size=size, depth=depth, width=2, dropout=0.0).eval()
    logits = model(torch.rand(1, 3, size, size))["logits"]
    assert logits.shape[2:] == (size - 2 * margin, size - 2 * margin)
    for wrong in (size + 1, 2 * margin):
        with pytest.raises(ModelError, match="the nearest to"):
            make("unet", size=wrong, depth=depth, width=2)


def test_overlapping_tiles_give_what_the_whole_gives() -> None:
    """Valid convolutions see nothing but image: tiles shifted by multiples of 2^depth answer as the whole image does."""
    model = make("unet", size=(76, 76), depth=2, width=4, dropout=0.0).eval()
    image = torch.rand(1, 3, 140, 140)
    with torch.inference_mode():
        whole = model(image)["logits"]  # 100 x 100
        for top in (0, 32, 64):
            for left in (0, 16, 64):
                tile = model(image[..., top : top + 76, left : left + 76])["logits"]  # 36 x 36
                torch.testing.assert_close(tile, whole[..., top : top + 36, left : left + 36], atol=1e-5, rtol=1e-4)


def test_the_frame_leads_from_the_answer_to_the_original() -> None:
    """A place that the network marks is the same place in the image that was mirrored outwards."""
    model = make("unet", size=(76, 108), depth=2, width=4).eval()
    image = np.zeros((36, 68, 3), dtype=np.uint8)
    image[10:14, 20:26] = 255
    fitted, frame = letterbox(image, (76, 108), margin=20)
    assert fitted.shape == (76, 108, 3)
    inner = fitted[20:-20, 20:-20, 0] > 0
    logits = np.where(inner[None, None], [[[[-1.0]], [[1.0]]]], [[[[1.0]], [[-1.0]]]]).astype(np.float32)
    found: Any = model.decode({"logits": torch.from_numpy(logits)}, [frame])[0]
    np.testing.assert_array_equal(found.labels, image[..., 0] > 0)


def masks_of(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (40, 60)) -> MaskCrops:
    windows = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
    return MaskCrops(torch.ones(int((windows[:, 2:] - windows[:, :2]).prod(1).sum()), dtype=torch.bool), windows, *size)


def test_painted_masks_the_smaller_above() -> None:
    masks = masks_of((0, 0, 30, 30), (10, 10, 20, 20), (25, 25, 40, 35), (5, 5, 6, 6))
    found = masks.paint(torch.tensor([0, 0, 0, 1]), 2)
    expected = torch.zeros(2, 40, 60, dtype=torch.int64)
    for row, image in ((0, 0), (2, 0), (1, 0), (3, 1)):  # by falling area
        x1, y1, x2, y2 = masks.windows[row].tolist()
        expected[image, y1:y2, x1:x2] = row + 1
    assert torch.equal(found, expected)
    assert torch.equal(masks_of().paint(torch.zeros(0, dtype=torch.int64), 2), torch.zeros(2, 40, 60, dtype=torch.int64))


def instance_targets() -> Targets:
    """Two touching objects of one class, one of another apart, and a region to ignore."""
    masks = masks_of((5, 5, 15, 20), (15, 5, 25, 20), (40, 10, 50, 20), (0, 30, 60, 40))
    return Targets(
        batch=torch.zeros(4, dtype=torch.int64),
        labels=torch.tensor([0, 0, 1, 0]),
        boxes=masks.windows.float(),
        size=1,
        masks=masks,
        ignore=torch.tensor([False, False, False, True]),
    )


def test_instances_become_classes_with_a_seam() -> None:
    truth = dense_truth(instance_targets(), "instance", categories(2), DenseOptions())
    labels = truth.labels[0]
    assert (labels[30:] == 255).all()
    assert (labels[5:20, 14:16] == 0).all()  # the seam is ground
    assert (labels[5:20, 5:14] == 1).all()
    assert (labels[5:20, 16:25] == 1).all()
    assert (labels[10:20, 40:50] == 2).all()
    assert truth.weights is not None
    ids = torch.zeros(40, 60, dtype=torch.int64)
    ids[5:20, 5:14], ids[5:20, 16:25], ids[10:20, 40:50] = 1, 2, 3
    ids[30:] = -1
    np.testing.assert_allclose(truth.weights[0].numpy(), 1 + border_weights(ids.numpy()), rtol=1e-5)
    assert truth.weights[0, 12, 14].item() > 9
    inner = dense_truth(instance_targets(), "instance", categories(2), DenseOptions(border="never"), margin=5)
    assert inner.weights is None
    assert torch.equal(inner.labels[0], labels[5:-5, 5:-5])
    yes_or_no = dense_truth(instance_targets(), "instance", categories(2), DenseOptions(form="sigmoid")).labels[0]
    assert (yes_or_no[5:20, 5:14] == 0).all()
    assert (yes_or_no[10:20, 40:50] == 1).all()
    assert (yes_or_no[0] == 2).all()  # no channel has this label


def test_borders_of_a_map_are_those_of_its_components() -> None:
    labels = torch.zeros(1, 40, 60, dtype=torch.int64)
    labels[0, 5:20, 5:14], labels[0, 5:20, 17:25] = 1, 1
    targets = Targets(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 1, semantic=labels)
    truth = dense_truth(targets, "semantic", categories(2), DenseOptions(border="always"))
    ids = labels[0].clone()
    ids[5:20, 17:25] = 2
    assert truth.weights is not None
    np.testing.assert_allclose(truth.weights[0].numpy(), 1 + border_weights(ids.numpy()), rtol=1e-5)
    assert dense_truth(targets, "semantic", categories(2), DenseOptions()).weights is None
    # Outlines put the background last.
    named = (Category(0, "copepod"), Category(1, "background"))
    turned = dense_truth(replace(targets, semantic=1 - labels), "semantic", named, DenseOptions(border="always")).weights
    assert turned is not None
    assert torch.equal(turned, truth.weights)


@pytest.mark.parametrize("form", ["softmax", "binary", "sigmoid"])
@pytest.mark.parametrize("name", ["unet", "unet-timm"])
def test_the_loss_reads_outputs_as_the_decoder_does(name: str, form: str) -> None:
    """Logits made of the truth have next to no loss, and decode to the objects without their seam."""
    targets = instance_targets()
    targets.ignore[:] = torch.tensor([False, False, False, False])
    count = 1 if form == "binary" else 2
    targets.labels[:] = torch.tensor([0, 0, 0, 0] if form == "binary" else [0, 0, 1, 0])
    options = {"depth": 2, "width": 2, "padding": True} if name == "unet" else {"backbone": "timm:test_efficientnet"}
    size = (40, 60) if name == "unet" else (64, 64)
    model = make(name, count, "instance", size, form=form, **options)
    truth = dense_truth(targets, "instance", categories(count), DenseOptions(form=form)).labels
    channels = {"softmax": 3, "binary": 1, "sigmoid": 2}[form]
    first = 1 if form == "binary" else 0
    wanted = truth[:, None] == torch.arange(first, first + channels)[:, None, None]
    logits = torch.where(wanted, 12.0, -12.0).float().requires_grad_()
    assert model.loss({"logits": logits}, targets)["ce"].item() < 1e-4
    assert model.loss({"logits": -logits}, targets)["ce"].item() > 1
    if name == "unet":
        found = model.decode({"logits": logits}, [Frame.identity(60, 40)], DecodeOptions())[0]
        assert isinstance(found, Instances)
        assert sorted(found.box_array.tolist()) == [[0, 30, 60, 40], [5, 5, 14, 20], [16, 5, 25, 20], [40, 10, 50, 20]]


@pytest.mark.parametrize("loss", ["ce", "dice", "focal", "lovasz", "ce+dice", "focal+lovasz"])
@pytest.mark.parametrize("form", ["softmax", "binary", "sigmoid"])
def test_every_loss_trains_every_form(loss: str, form: str) -> None:
    model = make("unet", 2, "semantic", 48, depth=1, width=4, padding=True, norm=True, dropout=0.0, loss=loss, form=form).train()
    image = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 0.2
    labels = torch.zeros(2, 48, 48, dtype=torch.int64)
    labels[:, 10:30, 15:40] = 1
    image[:, 0, 10:30, 15:40] += 0.5
    labels[:, :3] = 255
    targets = Targets(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 2, semantic=labels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(25):
        terms = model.loss(model(image, targets=targets), targets)
        assert list(terms) == loss.split("+")
        value = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        history.append(value.item())
    assert history[-1] < 0.6 * history[0]


def test_logits_are_resampled_to_the_truth() -> None:
    model = make("unet-timm", 2, size=64, backbone="timm:test_efficientnet")
    labels = torch.randint(0, 2, (1, 64, 64), generator=torch.Generator().manual_seed(0))
    targets = Targets(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 1, semantic=labels)
    coarse = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    fine = nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear", align_corners=False)
    expected = nn.functional.cross_entropy(fine, labels)
    torch.testing.assert_close(model.loss({"logits": coarse}, targets)["ce"], expected)


@pytest.mark.parametrize(
    ("backbone", "stride"), [("test_efficientnet", 2), ("resnet18", 2), ("test_convnext", 4), ("mobilenetv3_small_050", 2)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_any_encoder_of_timm(backbone: str, stride: int) -> None:
    model = make("unet-timm", 3, size=(64, 96), backbone=f"timm:{backbone}").train()
    backbone_module: Any = model.backbone
    assert backbone_module.strides[0] == stride
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)
    targets = Targets(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 2, semantic=labels)
    outputs = model(torch.rand(2, 3, 64, 96), targets=targets)
    assert outputs["logits"].shape == (2, 3, 64, 96)
    model.loss(outputs, targets)["ce"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_image_itself_is_seen_at_full_resolution() -> None:
    """With the features silenced, a pixel still moves the answers around it, as far as three 3 x 3 convolutions reach."""
    model = make("unet-timm", 2, size=64, backbone="timm:test_efficientnet").eval()
    assert isinstance(model, TimmUNet)
    norm = model.head.coarse[1]
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)
    image = torch.rand(1, 3, 64, 64)
    other = image.clone()
    other[:, :, 21, 40] += 1.0
    moved = (model(image)["logits"] != model(other)["logits"]).any(dim=1)[0].nonzero()
    assert moved.amin(dim=0).tolist() == [18, 37]
    assert moved.amax(dim=0).tolist() == [24, 43]


def test_the_numbers_over_resnet18() -> None:
    with torch.device("meta"):
        model = make("unet-timm", size=256)
    assert parameters(model) == 14_345_042 == registry.entry("unet-timm").parameters["semantic"]


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ModelError, match="at least one class"):
        make("unet", 0, size=572)
    with pytest.raises(ModelError, match="single class"):
        make("unet", 1, size=572)
    with pytest.raises(ModelError, match="binary tells two classes apart, got 3"):
        make("unet", 3, size=572, form="binary")
    with pytest.raises(ModelError, match="at most 255"):
        make("unet", 256, size=572, width=2)
    with pytest.raises(ModelError, match="multiples of 32"):
        make("unet-timm", 2, size=72, backbone="timm:test_efficientnet")
    with pytest.raises(ModelError, match="multiples of 32"):
        make("unet-timm", 2, size=64, backbone="timm:test_efficientnet")(torch.zeros(1, 3, 40, 64))
    for options, text in (
        ({"loss": "ce+nice"}, "ce, dice, focal, lovasz"),
        ({"loss": "ce+ce"}, "sum such as"),
        ({"form": "logistic"}, "softmax, binary, sigmoid"),
        ({"gamma": 0.5}, "at least 1"),
        ({"class_weights": "1,x"}, "numbers joined by commas"),
        ({"class_weights": "1,-1"}, "at least 0"),
        ({"class_weights": "1,2,3"}, "3 numbers for 2 classes"),
        ({"separate": "cut"}, "components, watershed"),
        ({"border_sigma": 0.0}, "positive"),
        ({"dropout": 1.0}, "dropout"),
        ({"depth": 0}, "positive"),
    ):
        with pytest.raises(OptionError, match=text):
            make("unet", 2, size=572, **options)
    with pytest.raises(OptionError, match="timm:NAME"):
        make("unet-timm", 2, backbone="resnet18")
    model = make("unet", 2, "instance", size=(40, 60), depth=2, width=2, padding=True)
    with pytest.raises(ModelError, match="masks in the targets"):
        model.loss({"logits": torch.zeros(1, 3, 40, 60)}, Targets(*[torch.zeros(0)] * 3, size=1))
    assert Options().weights(2, torch.device("cpu")) is None
