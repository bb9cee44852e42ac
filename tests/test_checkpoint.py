"""Checkpoints: what is written comes back, and what is broken is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.types import Category
from pelagia.errors import CheckpointError
from pelagia.models import checkpoint, registry
from pelagia.models.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    categories = (Category(3, "Coscinodiscus"), Category(90, "Nitzschia é"))
    built = registry.create("yolo11n", categories, "detect", input_size=64, options=registry.entry("yolo11n").tiny)
    built.card = replace(
        built.card,
        normalisation=Normalisation(high=4095.0),
        thresholds={"Coscinodiscus": 0.31},
        licence="CC-BY-4.0",
        manifest={"seed": 1},
    )
    return built


def test_tensors_card_and_state_come_back(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "run" / "best.safetensors"
    state = {"epoch": 3, "best": 0.1 + 0.2, "rng": [1, 2**63], "name": "é"}
    extra = {
        "train/optimizer/0/exp_avg": torch.randn(3, 4).t(),  # not contiguous
        "train/half": torch.randn(5).to(torch.bfloat16),
        "train/step": torch.tensor(7),
        "train/rng": torch.arange(9, dtype=torch.uint8),
    }
    checkpoint.save(path, {**model.state_dict(), **extra}, model.card, state)
    tensors, card, found = checkpoint.read(path)
    assert card == model.card
    assert found == state
    assert tensors.keys() == model.state_dict().keys() | extra.keys()
    for name, value in {**model.state_dict(), **extra}.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)
    assert checkpoint.load(path).card == model.card  # the tensors of the training loop are left aside


def test_what_the_options_freeze_stays_frozen() -> None:
    tiny = {**registry.entry("faster-rcnn").tiny, "trainable_stages": 2}
    built = registry.create("faster-rcnn", (Category(1, "a"),), "detect", input_size=64, options=tiny)
    fixed = {name for name, parameter in built.named_parameters() if not parameter.requires_grad}
    assert fixed
    loaded = checkpoint.build(built.state_dict(), built.card)
    assert {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} == fixed


def test_without_a_state_there_is_none(model: Model, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", model, model.card)
    assert checkpoint.read(tmp_path / "m.safetensors")[2] is None


def test_tied_tensors_and_channels_last_are_written(model: Model, tmp_path: Path) -> None:
    shared = torch.randn(4)
    checkpoint.save(tmp_path / "m.safetensors", {"a": shared, "b": shared[1:], "c": shared}, model.card)
    tensors, _, _ = checkpoint.read(tmp_path / "m.safetensors")
    assert torch.equal(tensors["a"], shared)
    assert torch.equal(tensors["b"], shared[1:])
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path / "m.safetensors", {"a": last}, model.card)
    assert torch.equal(checkpoint.read(tmp_path / "m.safetensors")[0]["a"], last)


def test_loading_moves_no_random_generator_and_gives_trainable_weights(model: Model, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", model, model.card)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert {str(value.device) for value in loaded.state_dict().values()} == {"cpu"}


def test_constants_that_no_checkpoint_holds_are_made_again(tmp_path: Path) -> None:
    """The filters of blurring poolings, like the tables of timm's Swin Transformers, are no part of the state dict."""
    options = {"backbone": "timm:resnetblur18", "width": 0.25}
    built = registry.create("unet-timm", [Category(0, "a"), Category(1, "b")], "semantic", input_size=64, options=options).eval()
    assert {name for name, _ in built.named_buffers()} > {name for name, _ in built.named_buffers() if name in built.state_dict()}
    checkpoint.save(tmp_path / "m.safetensors", built, built.card)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(image)["logits"], built(image)["logits"])


def test_the_same_content_gives_the_same_bytes(model: Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, model, model.card, {"epoch": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_broken_files_are_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(path)
    checkpoint.save(path, model, model.card)
    whole = path.read_bytes()
    for broken in (b"", b"x" * 100, whole[: len(whole) // 2], b"\xff" * 8 + whole[8:]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="not a safetensors file, or it is cut short"):
            checkpoint.load(path)


def test_foreign_and_newer_safetensors_are_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="without the card"):
        checkpoint.load(path)
    newer = json.loads(model.card.to_json()) | {"version": 99}
    save_file({"weight": torch.zeros(1)}, path, metadata={"pelagia": json.dumps(newer)})
    with pytest.raises(CheckpointError, match="newer Pelagia"):
        checkpoint.load(path)
    save_file({"weight": torch.zeros(1)}, path, metadata={"pelagia": model.card.to_json(), "state": "{"})
    with pytest.raises(CheckpointError, match="training state is not JSON"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "yolo99"}, "cannot build"), ({"options": {"unknown": 1}}, "cannot build"), ({"options": {}}, "another shape")],
)
def test_a_card_that_does_not_fit_is_refused(model: Model, tmp_path: Path, change: dict[str, object], message: str) -> None:
    values = json.loads(model.card.to_json()) | change
    checkpoint.save(tmp_path / "m.safetensors", model, ModelCard.from_json(json.dumps(values)))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "m.safetensors")


def test_missing_and_surplus_weights_are_named(model: Model, tmp_path: Path) -> None:
    tensors = dict(model.state_dict())
    tensors["extra.weight"] = tensors.pop("head.sides.0.2.bias")
    checkpoint.save(tmp_path / "m.safetensors", tensors, model.card)
    with pytest.raises(CheckpointError, match=r"1 missing \(head\.sides\.0\.2\.bias\); 1 unknown \(extra\.weight\)"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_a_state_that_is_not_json_is_refused_and_nothing_is_written(model: Model, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        checkpoint.save(tmp_path / "m.safetensors", model, model.card, {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []
