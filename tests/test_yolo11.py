"""YOLO11: published size, outputs that mean what the decoder reads, and its loss."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagia.core.frame import Frame
from pelagia.core.masks import paste
from pelagia.core.oriented import canonical, iou_aligned
from pelagia.core.types import Category, Instances, Task
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError
from pelagia.models import registry
from pelagia.models.grids.yolo11 import YOLO11, Options
from pelagia.models.model import MaskCrops, Model, Targets
from pelagia.nn.grids import cell_centres, grids_of


def categories(count: int, points: int = 0) -> tuple[Category, ...]:
    names = tuple(f"point {number}" for number in range(points))
    return tuple(Category(index, f"class {index}", keypoints=names) for index in range(count))


def tiny(task: Task, size: tuple[int, int] = (64, 96), classes: int = 2) -> Model:
    torch.manual_seed(0)
    chosen = categories(classes, 3 if task == "keypoints" else 0)
    return registry.create("yolo11n", chosen, task, input_size=size, options=registry.entry("yolo11n").tiny)


def perfect_outputs(truth: Tensor, labels: Tensor, task: Task, size: tuple[int, int], classes: int) -> dict[str, Tensor]:
    """Raw outputs of one image in which the cell nearest to each object's centre answers with that object exactly."""
    centres, strides = cell_centres(grids_of(*size, (8, 16, 32)), torch.device("cpu"), torch.float64)
    cells = len(centres)
    outputs = {
        "boxes": torch.zeros(1, 64, cells, dtype=torch.float64),
        "scores": torch.full((1, classes, cells), -20.0, dtype=torch.float64),
    }
    if task == "oriented":
        outputs["angles"] = torch.zeros(1, 1, cells, dtype=torch.float64)
    for row, label in zip(truth, labels, strict=True):
        middle = (row[:2] + row[2:4]) / 2 if task == "detect" else row[:2]
        cell = int((centres - middle).norm(dim=1).argmin())
        away = centres[cell] - middle
        if task == "detect":
            half, along = (row[2:4] - row[:2]) / 2, away
        else:
            cos, sin = row[4].cos(), row[4].sin()
            half, along = row[2:4] / 2, torch.stack((away[0] * cos + away[1] * sin, away[1] * cos - away[0] * sin))
            share = (row[4] / math.pi + 0.25) % 1.0
            outputs["angles"][0, 0, cell] = torch.log(share / (1 - share))
            if row[4] / math.pi + 0.25 < 0:
                along = -along
        distances = torch.cat((half + along, half - along)) / strides[cell]
        left = distances.floor()
        logits = torch.full((4, 16), -40.0, dtype=torch.float64)
        for side in range(4):
            logits[side, int(left[side])] = torch.log(1 - (distances[side] - left[side]) + 1e-12)
            logits[side, int(left[side]) + 1] = torch.log(distances[side] - left[side] + 1e-12)
        outputs["boxes"][0, :, cell] = logits.flatten()
        outputs["scores"][0, int(label), cell] = 20.0
    return outputs


TRUTH: dict[str, list[list[float]]] = {
    "detect": [[5, 6, 30, 21], [40, 10, 80, 60], [70.5, 40.25, 90, 50]],
    "oriented": [[20, 20, 30, 10, 0.3], [60, 40, 40, 12, -1.4], [80, 15, 20, 8, -0.5]],
}


@pytest.mark.parametrize("task", ["detect", "oriented"])
def test_the_loss_reads_outputs_as_the_decoder_does(task: Task) -> None:
    size = (64, 96)
    model = tiny(task, size)
    truth, labels = torch.tensor(TRUTH[task], dtype=torch.float64), torch.tensor([0, 1, 1])
    outputs = perfect_outputs(truth, labels, task, size, 2)
    found = model.decode(outputs, [Frame.identity(96, 64)], DecodeOptions(score=0.5))[0]
    assert isinstance(found, Instances)
    answer = found.oriented if task == "oriented" else found.boxes
    assert answer is not None
    wanted = canonical(truth.numpy()) if task == "oriented" else truth.numpy()
    order, wanted_order = np.argsort(answer[:, 0]), np.argsort(wanted[:, 0])
    np.testing.assert_allclose(answer[order], wanted[wanted_order], atol=1e-6)
    np.testing.assert_array_equal(found.labels[order], labels.numpy()[wanted_order])

    terms = model.loss(outputs, targets_of(task, truth, labels))
    assert terms["box"].item() < 1e-3
    assert terms["class"].item() < 1e-3
    shifted = {**outputs, "boxes": outputs["boxes"].roll(1, dims=1)}
    assert model.loss(shifted, targets_of(task, truth, labels))["box"].item() > 0.1


def targets_of(task: Task, truth: Tensor, labels: Tensor, ignore: Tensor | None = None) -> Targets:
    oriented = truth if task == "oriented" else None
    boxes = torch.zeros(len(truth), 4) if task == "oriented" else truth
    flags = torch.zeros(len(truth), dtype=torch.bool) if ignore is None else ignore
    return Targets(torch.zeros(len(truth), dtype=torch.int64), labels, boxes, 1, oriented=oriented, ignore=flags)


def complete(target: Targets, size: tuple[int, int] = (64, 96)) -> Targets:
    """Masks that fill the boxes, and three points in them."""
    limits = torch.tensor([size[1], size[0]]).repeat(2)
    windows = torch.minimum(target.boxes.round().long().clamp(min=0), limits)
    bits = torch.ones(int((windows[:, 2:] - windows[:, :2]).prod(1).sum()), dtype=torch.bool)
    middle = (target.boxes[:, :2] + target.boxes[:, 2:]) / 2
    points = torch.stack((target.boxes[:, :2], middle, target.boxes[:, 2:]), 1)
    seen = torch.tensor([2.0, 0.0, 1.0], dtype=points.dtype).expand(len(points), 3)[..., None]
    return replace(target, masks=MaskCrops(bits, windows, *size), keypoints=torch.cat((points, seen), 2))


def test_the_mask_loss_reads_outputs_as_the_decoder_does() -> None:
    size = (64, 96)
    model = tiny("instance", size)
    truth = torch.tensor([[8.0, 8, 32, 24], [40, 12, 80, 60]], dtype=torch.float64)
    outputs = perfect_outputs(truth, torch.tensor([0, 1]), "detect", size, 2)
    inner = torch.tensor([[12, 12, 28, 20], [48, 20, 72, 52]])  # masks smaller than their boxes, of whole prototype cells
    masks = MaskCrops(torch.ones(int((inner[:, 2:] - inner[:, :2]).prod(1).sum()), dtype=torch.bool), inner, *size)
    # One prototype for each object: its mask.
    outputs["prototypes"] = 40 * masks.shares(4).double()[None] - 20
    outputs["coefficients"] = torch.zeros(1, 2, outputs["scores"].shape[2], dtype=torch.float64)
    for row in range(2):
        outputs["coefficients"][0, row, outputs["scores"][0, row].argmax()] = 1.0
    target = replace(targets_of("detect", truth, torch.tensor([0, 1])), masks=masks)
    found = model.decode(outputs, [Frame.identity(96, 64)], DecodeOptions(score=0.5))[0]
    assert isinstance(found, Instances)
    assert found.masks is not None
    for label, mask in zip(found.labels, found.masks, strict=True):
        differ = paste(mask, *size) != masks.dense(torch.tensor([label]))[0].numpy()
        assert differ.sum() == 4  # interpolation rounds the four corners
    assert model.loss(outputs, target)["mask"].item() < 1e-3
    outputs["coefficients"] = outputs["coefficients"].flip(1)  # each answers with the mask of the other
    assert model.loss(outputs, target)["mask"].item() > 1


def test_the_loss_of_keypoints_reads_outputs_as_the_decoder_does() -> None:
    size = (64, 96)
    model = tiny("keypoints", size)
    truth = torch.tensor(TRUTH["detect"], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    outputs = perfect_outputs(truth, labels, "detect", size, 2)
    target = complete(targets_of("detect", truth, labels))
    assert target.keypoints is not None
    outputs["keypoints"] = torch.zeros(1, 9, outputs["scores"].shape[2], dtype=torch.float64)
    centres, strides = cell_centres(grids_of(*size, (8, 16, 32)), torch.device("cpu"), torch.float64)
    for row, label in enumerate(labels.tolist()):
        away = (centres - (truth[row, :2] + truth[row, 2:]) / 2).norm(dim=1)
        cell = int(away.argmin())
        assert outputs["scores"][0, label, cell] == 20
        place = target.keypoints[row, :, :2] / strides[cell] - (centres[cell] / strides[cell] - 0.5)
        outputs["keypoints"][0, :, cell] = torch.cat((place / 2, 40 * (target.keypoints[row, :, 2:] > 0) - 20.0), 1).flatten()
    found = model.decode(outputs, [Frame.identity(96, 64)], DecodeOptions(score=0.5))[0]
    assert isinstance(found, Instances)
    assert found.keypoints is not None
    order = np.argsort(found.box_array[:, 0])
    np.testing.assert_allclose(found.keypoints[order][..., :2], target.keypoints[..., :2], atol=1e-6)
    np.testing.assert_allclose(found.keypoints[..., 2], [[1, 0, 1]] * 3, atol=1e-6)
    terms = model.loss(outputs, target)
    assert terms["point"].item() < 1e-6
    assert terms["visibility"].item() < 1e-6
    # The point that is not labelled may lie anywhere, and its visibility is what is learnt.
    outputs["keypoints"][0, 3:5] += 3
    assert model.loss(outputs, target)["point"].item() < 1e-6
    outputs["keypoints"][0, :2] += 3
    assert model.loss(outputs, target)["point"].item() > 1


def test_keypoints_are_learnt_from_far() -> None:
    """Gradient descent on the raw outputs alone, from points at the corner of their cell, finds the corners of the object."""
    model = tiny("keypoints")
    truth, labels = torch.tensor([[8.0, 6, 88, 58]], dtype=torch.float64), torch.tensor([1])
    target = complete(targets_of("detect", truth, labels))
    assert target.keypoints is not None
    outputs = perfect_outputs(truth, labels, "detect", (64, 96), 2)
    outputs["keypoints"] = torch.zeros(1, 9, outputs["scores"].shape[2], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([outputs["keypoints"]], lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        model.loss(outputs, target)["point"].backward()
        optimiser.step()
    found = model.decode(outputs, [Frame.identity(96, 64)], DecodeOptions(score=0.5))[0]
    assert isinstance(found, Instances)
    assert found.keypoints is not None
    np.testing.assert_allclose(found.keypoints[0, [0, 2], :2], target.keypoints[0, [0, 2], :2], atol=1.0)


@pytest.mark.parametrize("task", ["instance", "keypoints"])
def test_masks_and_keypoints_of_ignore_regions_teach_nothing(task: Task) -> None:
    model = tiny(task).double().train()
    truth, labels = torch.tensor(TRUTH["detect"], dtype=torch.float64), torch.tensor([0, 1, 1])
    outputs = {name: value.detach() for name, value in model(torch.rand(1, 3, 64, 96, dtype=torch.float64)).items()}
    ignore = torch.tensor([False, True, False])
    target = complete(targets_of("detect", truth, labels, ignore))
    terms = model.loss(outputs, target)
    without = complete(targets_of("detect", truth[~ignore], labels[~ignore]))
    for name in ("mask",) if task == "instance" else ("point", "visibility"):
        assert terms[name].item() > 0
        torch.testing.assert_close(terms[name], model.loss(outputs, without)[name])


@pytest.mark.parametrize("task", ["detect", "oriented"])
def test_ignore_regions_neither_reward_nor_punish(task: Task) -> None:
    model = tiny(task)
    truth, labels = torch.tensor(TRUTH[task], dtype=torch.float64), torch.tensor([0, 1, 1])
    outputs = {name: value.requires_grad_() for name, value in perfect_outputs(truth, labels, task, (64, 96), 2).items()}
    ignore = torch.tensor([False, True, False])
    terms = model.loss(outputs, targets_of(task, truth, labels, ignore))
    gradient = torch.autograd.grad(terms["class"], outputs["scores"])[0]
    assert terms["class"].item() < 1e-3  # the object in the ignore region was found, and that is no mistake
    without = model.loss(outputs, targets_of(task, truth[~ignore], labels[~ignore]))
    assert without["class"].item() > 1  # without the region it is
    centres, _ = cell_centres(grids_of(64, 96, (8, 16, 32)), torch.device("cpu"), torch.float64)
    x, y = TRUTH[task][1][:2] if task == "oriented" else (60, 35)
    inside = (centres - torch.tensor([x, y])).norm(dim=1) < 5
    assert bool(inside.any())
    assert bool((gradient[0, :, inside] == 0).all())


def test_only_ignore_regions_leave_a_finite_background_loss() -> None:
    model = tiny("detect").double().train()
    target = targets_of("detect", torch.tensor([[0.0, 0, 96, 64]]), torch.tensor([0]), torch.tensor([True]))
    terms = model.loss(model(torch.rand(1, 3, 64, 96, dtype=torch.float64)), target)
    assert all(value.item() == 0 for value in terms.values())


@pytest.mark.parametrize("task", ["detect", "oriented", "instance", "keypoints"])
def test_two_processes_with_a_shared_normaliser_equal_one(task: Task) -> None:
    """`reduce` is called once; its mean over processes makes the gradients those of the whole batch."""
    model = tiny(task).double().eval()
    images = torch.rand(4, 3, 64, 96, dtype=torch.float64)
    truth = torch.tensor(TRUTH["oriented" if task == "oriented" else "detect"] * 4, dtype=torch.float64)
    batch = torch.tensor([0, 1, 1, 2, 2, 2, 0, 2, 3, 3, 3, 3])
    labels = torch.arange(12) % 2

    def part(first: int, count: int) -> tuple[Tensor, Targets]:
        keep = (batch >= first) & (batch < first + count)
        oriented = truth[keep] if task == "oriented" else None
        boxes = torch.zeros(int(keep.sum()), 4) if task == "oriented" else truth[keep]
        return images[first : first + count], complete(
            Targets(batch[keep] - first, labels[keep], boxes, count, oriented=oriented)
        )

    def gradients(first: int, count: int) -> list[Tensor]:
        chosen, target = part(first, count)
        value = torch.stack(list(model.loss(model(chosen), target).values())).sum()
        return list(torch.autograd.grad(value, list(model.parameters())))

    whole = gradients(0, 4)
    seen: list[Tensor] = []
    assert isinstance(model, YOLO11)
    model.reduce = lambda value: seen.append(value) or value
    for first in (0, 2):
        gradients(first, 2)
    assert [value.shape for value in seen] == [torch.Size([2])] * 2
    mean = (seen[0] + seen[1]) / 2
    model.reduce = lambda _: mean
    halves = zip(gradients(0, 2), gradients(2, 2), strict=True)
    for expected, (a, b) in zip(whole, halves, strict=True):
        torch.testing.assert_close((a + b) / 2, expected)


def test_other_scales_of_the_same_shape_can_be_trained() -> None:
    model = tiny("detect", (64, 96)).train()
    target = targets_of("detect", torch.tensor([[10.0, 10, 90, 70]]), torch.tensor([0]))
    assert torch.stack(list(model.loss(model(torch.rand(1, 3, 128, 192)), target).values())).isfinite().all()
    with pytest.raises(ModelError, match="aspect ratio"):
        model.loss(model(torch.rand(1, 3, 64, 160)), target)


@pytest.mark.parametrize("task", ["detect", "oriented"])
def test_first_answers_follow_the_priors(task: Task) -> None:
    model = tiny(task, (128, 128), classes=3).eval()
    with torch.inference_mode():
        outputs = model(torch.zeros(1, 3, 128, 128))
    assert outputs["scores"].sigmoid().max().item() < 0.15
    sides = outputs["boxes"].view(1, 4, 16, -1).softmax(2).mul(torch.arange(16.0)[None, None, :, None]).sum(2)
    assert 1 < sides.mean().item() < 4
    if task == "oriented":
        angle = (outputs["angles"].sigmoid() - 0.25) * math.pi
        assert angle.mean().item() == pytest.approx(math.pi / 8, abs=0.3)


@pytest.mark.parametrize("angle", [0.0, 0.4, -0.7, 1.1, -1.5])
def test_the_angle_of_a_slender_box_is_learnt_from_far(angle: float) -> None:
    """Gradient descent on the raw outputs alone, from the first answers, finds the oriented box."""
    model = tiny("oriented", (64, 64), classes=1)
    truth = torch.tensor([[31.0, 33.0, 44.0, 12.0, angle]], dtype=torch.float64)
    cells = 84
    bias = (-torch.arange(16, dtype=torch.float64) / 2.5).repeat(4)
    start = math.log((0.125 + 0.25) / (1 - 0.125 - 0.25))
    outputs = {
        "boxes": bias[None, :, None].repeat(1, 1, cells).requires_grad_(),
        "scores": torch.zeros(1, 1, cells, dtype=torch.float64),
        "angles": torch.full((1, 1, cells), start, dtype=torch.float64, requires_grad=True),
    }
    optimiser = torch.optim.Adam([outputs["boxes"], outputs["angles"]], lr=0.1)
    target = targets_of("oriented", truth, torch.tensor([0]))
    for _ in range(120):
        optimiser.zero_grad()
        terms = model.loss(outputs, target)
        (terms["box"] + terms["distance"] + terms["angle"]).backward()
        optimiser.step()
    centres, _ = cell_centres(grids_of(64, 64, (8, 16, 32)), torch.device("cpu"), torch.float64)
    cell = int((centres[:64] - truth[0, :2]).norm(dim=1).argmin())
    outputs["scores"][0, 0] = -20.0
    outputs["scores"][0, 0, cell] = 20.0
    found = model.decode(outputs, [Frame.identity(64, 64)], DecodeOptions(score=0.5))[0]
    assert isinstance(found, Instances)
    assert found.oriented is not None
    assert iou_aligned(found.oriented, truth.numpy())[0] > 0.9


def test_masks_and_keypoints_need_their_truth() -> None:
    none = targets_of("detect", torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for task, message in (("instance", "needs masks"), ("keypoints", "needs keypoints")):
        model = tiny(task)
        with pytest.raises(ModelError, match=message):
            model.loss(model(torch.zeros(1, 3, 64, 96)), none)
    model = tiny("keypoints")
    with pytest.raises(ModelError, match="have 5 keypoints, the model 3"):
        model.loss(model(torch.zeros(1, 3, 64, 96)), replace(none, keypoints=torch.zeros(0, 5, 3)))
    with pytest.raises(ModelError, match="same number of keypoints"):
        registry.create("yolo11n", categories(2), "keypoints")


def test_oriented_needs_oriented_truth() -> None:
    model = tiny("oriented")
    with pytest.raises(ModelError, match="oriented truth"):
        model.loss(model(torch.zeros(1, 3, 64, 96)), targets_of("detect", torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_timm_backbone_takes_the_place_of_stem_and_stages() -> None:
    options = {**registry.entry("yolo11n").tiny, "backbone": "timm:resnet18"}
    model = registry.create("yolo11n", categories(2), "detect", input_size=64, options=options).train()
    terms = model.loss(
        model(torch.rand(2, 3, 64, 64)), targets_of("detect", torch.tensor([[10.0, 10, 40, 40]]), torch.tensor([0]))
    )
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(name.startswith("backbone.stem") for name in model.state_dict())


def test_options_of_a_size_are_in_the_card() -> None:
    with torch.device("meta"):
        model = registry.create("yolo11m", categories(2))
    assert Options(**model.card.options) == Options(depth=0.5, width=1.0, most_channels=512, nested=True)
