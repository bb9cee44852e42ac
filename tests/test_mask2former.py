"""Mask2Former against `transformers`, on scrambled weights; its losses, its rules for ignored pixels, its options."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinBackbone, SwinConfig

from pelagia.core.types import Category, Task
from pelagia.errors import CheckpointError, ExportError, ModelError, OptionError
from pelagia.export import onnx
from pelagia.losses.points import read_points
from pelagia.models import foreign, registry
from pelagia.models.model import MaskCrops, Targets
from pelagia.models.queries import mask2former_weights
from pelagia.models.queries.mask2former import Mask2Former, Options, match
from pelagia.models.queries.mask_truth import mask_truth
from pelagia.nn.deformable import DeformableAttention
from pelagia.nn.swin import Swin

CLASSES, QUERIES, POINTS = 5, 30, 512
CATEGORIES = tuple(Category(i, f"class {i}") for i in range(CLASSES))
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def scramble(network: nn.Module, seed: int = 1) -> None:
    """Random weights of a size that keeps signals alive: masks cover a half, attention differs from cell to cell."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "level_embed" in name or "queries_" in name:
                value.copy_(noise)
            elif value.ndim > 1:
                value.copy_(noise * value[0].numel() ** -0.5)
            else:
                value.add_(noise * (0.5 if "sampling_offsets" in name else 0.1))
        for name, value in network.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def reference(backbone: str) -> Any:
    if backbone == "swin":
        inner: Any = SwinConfig(
            embed_dim=32, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 8], window_size=7, drop_path_rate=0.0, out_features=STAGES
        )
    else:
        inner = ResNetConfig(out_features=STAGES)
    config = Mask2FormerConfig(
        backbone_config=inner,
        num_labels=CLASSES,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=96,
        dim_feedforward=128,
        encoder_layers=2,
        decoder_layers=7,
        num_queries=QUERIES,
        train_num_points=POINTS,
    )
    network = Mask2FormerForUniversalSegmentation(config).eval()
    scramble(network)
    with torch.no_grad():  # the mean of the pixels at 0, so that masks and with them attention cover about a half
        pixels = network.model.pixel_level_module(torch.randn(1, 3, 64, 96)).decoder_last_hidden_state
        network.model.pixel_level_module.decoder.mask_projection.bias -= pixels.mean((0, 2, 3))
    return network


@pytest.fixture(scope="module", params=["swin", "resnet"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Mask2Former]:
    theirs = reference(request.param)
    ours = mask2former_weights.load(theirs.state_dict(), Path("panoptic.bin"))
    assert isinstance(ours, Mask2Former)
    ours.options = replace(ours.options, points=POINTS)
    return theirs, ours


def objects(counts: list[int], height: int, width: int) -> Targets:
    """Ellipses, some of which overlap, as crops."""
    generator = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width] + 0.5
    windows, bits = [], []
    for _ in range(sum(counts)):
        cx, cy = generator.uniform(0, width), generator.uniform(0, height)
        rx, ry = generator.uniform(8, width / 3), generator.uniform(8, height / 3)
        mask = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        window = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        windows.append(window)
        bits.append(mask[window[1] : window[3], window[0] : window[2]].ravel())
    crops = MaskCrops(
        torch.from_numpy(np.concatenate(bits) if bits else np.zeros(0, bool)),
        torch.tensor(np.array(windows).reshape(-1, 4), dtype=torch.int64),
        height,
        width,
    )
    batch = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = torch.from_numpy(generator.integers(0, CLASSES, sum(counts)))
    return Targets(batch, labels, crops.windows.float(), len(counts), masks=crops)


@pytest.mark.parametrize("size", [(64, 96), (128, 160), (100, 130)])
def test_outputs_equal_the_reference(pair: tuple[Any, Mask2Former], size: tuple[int, int]) -> None:
    theirs, ours = pair
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = theirs(images, output_auxiliary_logits=True)
        found = ours(images, valid=torch.tensor([size, (50, 60)]), targets=objects([1, 1], *size))
    torch.testing.assert_close(found["logits"], expected.class_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found["masks"], expected.masks_queries_logits, rtol=0, atol=1e-4)
    assert 0.2 < (found["masks"] > 0).float().mean() < 0.8
    assert found["logits"].std() > 0.3
    assert len(expected.auxiliary_logits) == found["earlier_logits"].shape[1] == 6
    for layer, answer in enumerate(expected.auxiliary_logits):
        torch.testing.assert_close(found["earlier_logits"][:, layer], answer["class_queries_logits"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found["earlier_masks"][:, layer], answer["masks_queries_logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("counts", [[3, 5], [0, 2], [0, 0]])
def test_losses_equal_the_reference(pair: tuple[Any, Mask2Former], counts: list[int]) -> None:
    theirs, ours = pair
    size = (64, 96)
    truth = objects(counts, *size)
    assert truth.masks is not None
    dense = truth.masks.dense().float()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        answer = theirs(images, output_auxiliary_logits=True)
        found = ours(images, targets=truth)
        torch.manual_seed(7)
        if sum(counts):
            expected = theirs.get_loss_dict(
                answer.masks_queries_logits,
                answer.class_queries_logits,
                [dense[truth.batch == image] for image in range(2)],
                [truth.labels[truth.batch == image] for image in range(2)],
                answer.auxiliary_logits,
            )
        torch.manual_seed(7)
        terms = ours.layer_losses(found, truth)
    for name, there in {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}.items():
        assert len(terms[name]) == 7
        if not sum(counts):  # the reference cannot
            assert (terms[name] == 0).all() if name != "class" else (terms[name] > 0).all()
            continue
        for layer in range(7):
            torch.testing.assert_close(
                terms[name][layer], expected[there if layer == 6 else f"{there}_{layer}"], rtol=1e-4, atol=1e-4
            )


def test_matching_equals_the_reference(pair: tuple[Any, Mask2Former]) -> None:
    theirs, ours = pair
    truth = objects([6, 9], 64, 96)
    assert truth.masks is not None
    dense = truth.masks.dense().float()
    generator = torch.Generator().manual_seed(2)
    logits, masks = (
        torch.randn(2, QUERIES, CLASSES + 1, generator=generator),
        torch.randn(2, QUERIES, 16, 24, generator=generator),
    )
    torch.manual_seed(9)
    expected = theirs.criterion.matcher(masks, logits, [dense[:6], dense[6:]], [truth.labels[:6], truth.labels[6:]])
    torch.manual_seed(9)
    found, spared = match(logits, masks, mask_truth(truth, "panoptic", "test"), ours.options)
    assert not spared.any()
    for image, (queries, owned) in enumerate(expected):
        own = found.image == image
        assert found.query[own].tolist() == queries.tolist()
        assert (found.object[own] - 6 * image).tolist() == owned.tolist()


def test_points_of_crops_are_those_of_bitmaps() -> None:
    truth = objects([4, 3], 50, 70)
    crops = truth.masks
    assert crops is not None
    points = torch.rand(7, 300, 2, generator=torch.Generator().manual_seed(0))
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    rows = torch.tensor([6, 0, 3, 3, 1, 2, 5])
    expected = read_points(crops.dense(rows).float()[:, None], points)[:, 0]
    torch.testing.assert_close(crops.at(points, rows), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        crops.at(points[:1], rows), read_points(crops.dense(rows).float()[None], points[:1])[0], rtol=0, atol=1e-5
    )


def test_a_label_map_is_a_mask_per_class_shown() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (2, 12, 20), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0][labels[0] == 2] = 255
    truth = mask_truth(replace(objects([0, 0], 48, 80), semantic=labels), "semantic", "test")
    assert truth.labels.tolist() == [0, 1, 3, 4, 0, 1, 2, 3, 4]
    assert truth.batch.tolist() == [0] * 4 + [1] * 5
    points = torch.rand(9, 200, 2, generator=generator)
    bitmaps = torch.stack([labels[image] == label for image, label in zip(truth.batch, truth.labels, strict=True)]).float()
    torch.testing.assert_close(truth.at(points, torch.arange(9)), read_points(bitmaps[:, None], points)[:, 0], rtol=0, atol=1e-5)
    x, y = (points[:1, :, 0] * 80).long(), (points[:1, :, 1] * 48).long()
    assert torch.equal(truth.ignored_at(points[:1], torch.tensor([0])), labels[:1][0, y, x] == 255)
    assert truth.ignored


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_ignored_pixels_neither_reward_nor_punish(task: Task) -> None:
    """The right half of the image is open: nothing learns from it, and a query that answers there alone is spared."""
    model = registry.create(
        "mask2former-swin-t", CATEGORIES, task, input_size=64, options=registry.entry("mask2former-swin-t").tiny
    )
    assert isinstance(model, Mask2Former)
    truth = objects([2], 64, 64)
    if task == "semantic":
        labels = torch.zeros(1, 64, 64, dtype=torch.int64)
        labels[:, 30:], labels[:, :, 32:] = 1, 255
        truth = replace(truth, semantic=labels)
    else:
        assert truth.masks is not None
        windows = torch.tensor([[4, 4, 28, 40], [32, 0, 64, 64]])
        bits = torch.ones(24 * 36 + 32 * 64, dtype=torch.bool)
        truth = replace(truth, masks=MaskCrops(bits, windows, 64, 64), ignore=torch.tensor([False, True]))
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(1, 12, 16, 16, generator=generator)
    masks[..., 8:] -= 1  # but query 5, all answer mostly in the closed half
    masks[0, 5] = -4
    masks[0, 5, :, 9:] = 4
    outputs = {"logits": torch.randn(1, 12, CLASSES + 1, generator=generator), "masks": masks}
    outputs |= {f"earlier_{name}": value[:, None].clone() for name, value in outputs.items()}
    for value in outputs.values():
        value.requires_grad_(True)
    terms = model.loss(outputs, truth)
    torch.stack(list(terms.values())).sum().backward()
    for name in ("masks", "earlier_masks"):
        gradient = outputs[name].grad
        assert gradient is not None
        assert (gradient[..., 9:] == 0).all()
        assert (gradient[..., :7] != 0).any()
    gradient = outputs["logits"].grad
    assert gradient is not None
    assert (gradient[0, 5] == 0).all()
    assert (gradient[0] != 0).any(1).sum() == 11


def test_swin_equals_the_reference_where_windows_do_not_fit() -> None:
    config = SwinConfig(embed_dim=32, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=7, out_features=STAGES)
    theirs = SwinBackbone(config).eval()
    scramble(theirs)
    ours = Swin("swin_tiny_patch4_window7_224", 32, (2, 2, 2, 2)).eval()
    state = {f"{mask2former_weights.ENCODER}{name}": value for name, value in theirs.state_dict().items()}
    own = mask2former_weights.our_tensors(state)
    ours.load_state_dict({name.removeprefix("backbone."): value for name, value in own.items()})
    for size in [(224, 224), (96, 64), (100, 130), (32, 32)]:
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            for found, expected in zip(ours(images), theirs(images).feature_maps, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_swin_has_the_tensors_of_timm_and_its_outputs_where_windows_fit() -> None:
    theirs = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, always_partition=True).eval()
    scramble(theirs)
    ours = Swin("swin_tiny_patch4_window7_224").eval()
    state = {name.replace("layers_", "layers."): value for name, value in theirs.state_dict().items()}
    missing, surplus = ours.load_state_dict(state, strict=False)
    assert not surplus
    assert {name.partition(".")[0] for name in missing} == {"norms"}
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    ours.norms = nn.ModuleList(nn.Identity() for _ in range(4))
    with torch.inference_mode():
        for found, expected in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)
    with pytest.raises(OptionError, match="no Swin Transformer is called"):
        Swin("swin_giant")
    with pytest.raises(OptionError, match="four depths"):
        Swin("swin_tiny_patch4_window7_224", 40)


def test_files_load_in_both_spellings(pair: tuple[Any, Mask2Former], tmp_path: Path) -> None:
    theirs, ours = pair
    folder = tmp_path / "mask2former-coco-instance"
    folder.mkdir()
    state = {}
    for name, value in theirs.state_dict().items():  # as the published files spell it
        name = name.replace("encoder.swin.", "encoder.")
        for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
            name = re.sub(rf"(blocks\.\d+\.attention)\.{letter}_proj", rf"\1.self.{word}", name)
        name = re.sub(r"(blocks\.\d+\.attention)\.relative_position_bias\.", r"\1.self.", name)
        name = re.sub(r"(blocks\.\d+\.attention)\.o_proj", r"\1.output.dense", name)
        name = re.sub(r"(blocks\.\d+)\.mlp\.fc1", r"\1.intermediate.dense", name)
        name = re.sub(r"(blocks\.\d+)\.mlp\.fc2", r"\1.output.dense", name)
        state[name] = value.contiguous()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"id2label": {str(i): f"kind {i}" for i in range(CLASSES)}}))
    loaded = foreign.load_any(folder / "model.safetensors")
    assert loaded.card.task == "instance"
    assert loaded.card.class_names[1] == "kind 1"
    assert loaded.card.licence == "other"
    assert loaded.card.name == ours.card.name
    found, expected = loaded.state_dict(), ours.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    del state["class_predictor.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(decoder\.classes\.bias\)"):
        foreign.load_any(folder / "model.safetensors")
    state |= {"class_predictor.bias": torch.zeros(CLASSES + 1), "model.more.weight": torch.zeros(2)}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unknown \(model\.more"):
        foreign.load_any(folder / "model.safetensors")


def test_first_offsets_look_in_all_directions() -> None:
    layer = DeformableAttention(64, 8, 3, 4)
    offsets = layer.offsets.bias.detach().view(8, 3, 4, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 2])
    torch.testing.assert_close(offsets.abs().amax(3)[:, 1], torch.arange(1.0, 5).expand(8, 4))
    torch.testing.assert_close(offsets[2, 0, 0], torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_refuses_impossible_options() -> None:
    with pytest.raises(OptionError, match="multiple of 32"):
        Options(width=48)
    with pytest.raises(OptionError, match="timm:NAME"):
        Options(backbone="resnet50")
    with pytest.raises(OptionError, match="queries must be at least 1"):
        Options(queries=0)
    with pytest.raises(OptionError, match="oversample"):
        Options(oversample=0.5)
    with pytest.raises(OptionError, match="swin_width"):
        registry.create("mask2former-r50", CATEGORIES, "panoptic", options={"swin_width": 32})
    with pytest.raises(ModelError, match="needs masks"):
        mask_truth(replace(objects([1], 32, 32), masks=None), "panoptic", "test")
    with pytest.raises(ModelError, match="needs a label map"):
        mask_truth(objects([1], 32, 32), "semantic", "test")


def test_an_export_may_jump_where_rounding_decides_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Logits of masked attention within the edge may change sides; a difference of another origin is refused."""
    torch.manual_seed(0)
    model = registry.create(
        "mask2former-r50", CATEGORIES, "panoptic", input_size=64, options=registry.entry("mask2former-r50").tiny
    )
    assert isinstance(model, Mask2Former)
    scramble(model.eval())

    class Other:
        """The model with its logits moved, and all its masks by a constant."""

        def __init__(self, shift: float, added: float = 0.0) -> None:
            self._model, self._added, self.card = copy.deepcopy(model), added, model.card
            self._model.decoder.shift = shift

        def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                found = self._model(torch.from_numpy(images))
            return {name: value.numpy() + self._added * (name == "masks") for name, value in found.items()}

    monkeypatch.setattr("pelagia.export.onnx._EDGE", 0.05)
    same = onnx.check_agreement(model, Other(0.0), onnx.TOLERANCE, tmp_path)
    assert max(item.relative for item in same.values()) == 0
    assert {item.limit for item in same.values()} == {onnx.TOLERANCE}
    jumped = onnx.check_agreement(model, Other(0.03), onnx.TOLERANCE, tmp_path)
    assert max(item.relative for item in jumped.values()) > onnx.TOLERANCE
    assert all(item.relative <= item.limit for item in jumped.values())
    assert max(item.limit for item in jumped.values()) > onnx.TOLERANCE
    with pytest.raises(ExportError, match="differs from the model: masks"):
        onnx.check_agreement(model, Other(0.03, added=50.0), onnx.TOLERANCE, tmp_path)
    monkeypatch.setattr("pelagia.export.onnx._EDGE", 0.0)
    with pytest.raises(ExportError, match="differs from the model"):
        onnx.check_agreement(model, Other(0.03), onnx.TOLERANCE, tmp_path)
