"""FCN and DeepLabV3 against torchvision."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from pelagia.core.types import Category
from pelagia.errors import CheckpointError
from pelagia.models import registry
from pelagia.models.foreign import load_any
from pelagia.models.model import Targets
from pelagia.models.pixels import torchvision as foreign
from pelagia.models.weights import PUBLISHED

REFERENCES = {
    "fcn": torchvision.models.segmentation.fcn_resnet50,
    "deeplabv3": torchvision.models.segmentation.deeplabv3_resnet50,
}


def scrambled(name: str, *, auxiliary: bool = True, classes: int = 21) -> nn.Module:
    """The reference with random weights and random statistics of its batch norms."""
    torch.manual_seed(1)
    model: nn.Module = REFERENCES[name](weights=None, weights_backbone=None, aux_loss=auxiliary, num_classes=classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_parity_with_torchvision(name: str, tmp_path: Path) -> None:
    reference = scrambled(name)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    model = load_any(tmp_path / "weights.pth")
    assert model.card.name == name
    assert model.card.licence == "unknown"  # anybody may have trained it
    assert model.card.class_names == foreign.VOC_CLASSES
    assert sum(p.numel() for p in model.parameters()) == registry.entry(name).parameters["semantic"]
    assert sum(p.numel() for p in reference.parameters()) == registry.entry(name).parameters["semantic"]
    images = torch.randn(2, 3, 65, 97)
    truth = torch.randint(0, 21, (2, 65, 97))
    targets = Targets(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 2, semantic=truth)
    with torch.inference_mode():
        ours, theirs = model(images, targets=targets), reference(images)
        assert model(images).keys() == {"logits"}
        for mine, other in (("logits", "out"), ("aux", "aux")):
            assert ours[mine].shape == (2, 21, 9, 13)
            full = F.interpolate(ours[mine], size=(65, 97), mode="bilinear", align_corners=False)
            assert theirs[other].std() > 0.05
            scale = theirs[other].abs().max()
            assert ((full - theirs[other]).abs().max() / scale).item() < 1e-5
        loss = model.loss(ours, targets)
        expected = F.cross_entropy(theirs["out"], truth), 0.5 * F.cross_entropy(theirs["aux"], truth)
    torch.testing.assert_close(loss["ce"], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss["aux"], expected[1], rtol=1e-4, atol=1e-5)


def test_published_files_are_known_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(scrambled("fcn").state_dict(), tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "fcn", replace(PUBLISHED["fcn"], digest=digest[:8]))
    card = load_any(tmp_path / "weights.pth").card
    assert (card.licence, card.source) == ("BSD-3-Clause", PUBLISHED["fcn"].source)


def test_without_the_auxiliary_head_and_with_other_classes(tmp_path: Path) -> None:
    reference = scrambled("fcn", auxiliary=False, classes=4)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    model = load_any(tmp_path / "weights.pth")
    assert model.card.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert model.card.options["aux_weight"] == 0
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        full = F.interpolate(model(images)["logits"], size=(64, 64), mode="bilinear", align_corners=False)
        torch.testing.assert_close(full, reference(images)["out"], rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = scrambled("fcn", classes=2).state_dict()
    path = tmp_path / "weights.pth"
    torch.save({**state, "extra.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 tensors have no place in fcn, such as extra\.weight"):
        load_any(path)
    torch.save({name: value for name, value in state.items() if name != "classifier.4.bias"}, path)
    with pytest.raises(CheckpointError, match="1 missing"):
        load_any(path)
    torch.save({name: value for name, value in state.items() if not name.startswith("backbone.layer3.5.")}, path)
    with pytest.raises(CheckpointError, match="ResNet-50 or ResNet-101"):
        load_any(path)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_one_image_in_training(name: str) -> None:
    """The pooled branch of the pyramid has one value per channel and image, of which batch norm can make no variance."""
    entry = registry.entry(name)
    categories = tuple(Category(index, str(index)) for index in range(2))
    model = registry.create(name, categories, input_size=entry.tiny_input, options=entry.tiny).train()
    truth = torch.zeros(1, 64, 96, dtype=torch.int64)
    targets = Targets(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 1, semantic=truth)
    value = torch.stack(list(model.loss(model(torch.rand(1, 3, 64, 96), targets=targets), targets).values())).sum()
    value.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_the_auxiliary_head_weighs_half() -> None:
    entry = registry.entry("fcn")
    categories = tuple(Category(index, str(index)) for index in range(2))
    truth = torch.zeros(2, 64, 96, dtype=torch.int64)
    targets = Targets(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 2, semantic=truth)
    logits = torch.randn(2, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    terms = registry.create("fcn", categories, input_size=(64, 96), options=entry.tiny).loss(
        {"logits": logits, "aux": logits}, targets
    )
    torch.testing.assert_close(terms["aux"], 0.5 * terms["ce"])
    without = registry.create("fcn", categories, input_size=(64, 96), options={**entry.tiny, "aux_weight": 0.0})
    assert not any(name.startswith("aux") for name in without.state_dict())
    assert without(torch.zeros(2, 3, 64, 96), targets=targets).keys() == {"logits"}
