"""Masks from prototypes: the loss against a loop over objects and whole images of logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pelagia.assign.dynamic import Assignment
from pelagia.models.grids.prototypes import Prototypes, mask_loss
from pelagia.models.targets import MaskCrops, Targets

SIZE = (64, 96)


def truth(boxes: Tensor, seed: int = 0) -> MaskCrops:
    """Random masks within the whole pixels of the boxes."""
    limits = torch.tensor([SIZE[1], SIZE[0]]).repeat(2)
    windows = torch.minimum(boxes.round().long().clamp(min=0), limits)
    count = int((windows[:, 2:] - windows[:, :2]).prod(1).sum())
    return MaskCrops(torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.7, windows, *SIZE)


def naive(coefficients: Tensor, prototypes: Tensor, positive: Assignment, targets: Targets) -> Tensor:
    boxes, masks, total = targets.boxes, targets.masks, prototypes.new_zeros(())
    assert masks is not None
    shares = masks.shares(4).to(prototypes.dtype)
    for row in range(len(coefficients)):
        logits = torch.einsum("k,khw->hw", coefficients[row], prototypes[positive.image[row]])
        loss = F.binary_cross_entropy_with_logits(logits, shares[positive.object[row]], reduction="none")
        x1, y1, x2, y2 = (value / 4 for value in boxes[positive.object[row]].tolist())
        left, top = min(max(math.floor(x1), 0), 23), min(max(math.floor(y1), 0), 15)
        right, bottom = max(min(math.ceil(x2), 24), left + 1), max(min(math.ceil(y2), 16), top + 1)
        total = total + positive.score[row] * loss[top:bottom, left:right].mean()
    return total


def case(seed: int, objects: int, cells: int) -> tuple[Tensor, Tensor, Assignment, Targets]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(objects, 2, generator=generator, dtype=torch.float64) * torch.tensor([80, 50]) - 4
    side = 60 * torch.rand(objects, 2, generator=generator, dtype=torch.float64) ** 3  # from less than a cell to most of it
    boxes = torch.cat((low, low + side), 1)
    owner = torch.randint(0, objects, (cells,), generator=generator).sort().values
    positive = Assignment(
        image=owner % 3,
        cell=torch.arange(cells),
        object=owner,
        score=torch.rand(cells, generator=generator, dtype=torch.float64),
        counts=torch.bincount(owner, minlength=objects),
    )
    coefficients = torch.randn(cells, 5, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(3, 5, 16, 24, generator=generator, dtype=torch.float64)
    image = torch.arange(objects) % 3
    return coefficients, prototypes, positive, Targets(image, image, boxes, 3, masks=truth(boxes, seed))


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_and_its_gradients_equal_the_loop(seed: int) -> None:
    coefficients, prototypes, positive, targets = case(seed, 12, 50)
    coefficients.requires_grad_()
    prototypes.requires_grad_()
    found = mask_loss(coefficients, prototypes, positive, targets)
    expected = naive(coefficients, prototypes, positive, targets)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (coefficients, prototypes)),
        torch.autograd.grad(expected, (coefficients, prototypes)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_mask_outside_its_box_or_of_no_pixels_counts_as_background() -> None:
    coefficients, prototypes, positive, targets = case(1, 4, 9)
    empty = MaskCrops(torch.zeros(0, dtype=torch.bool), torch.full((4, 4), 3), *SIZE)
    for masks in (truth(targets.boxes.roll(1, 0)), empty):
        targets = replace(targets, masks=masks)
        torch.testing.assert_close(
            mask_loss(coefficients, prototypes, positive, targets), naive(coefficients, prototypes, positive, targets)
        )


def test_without_positive_cells_the_gradient_is_zero_and_there() -> None:
    coefficients, prototypes, positive, targets = case(0, 3, 0)
    coefficients.requires_grad_()
    prototypes.requires_grad_()
    found = mask_loss(coefficients, prototypes, positive, targets)
    assert found.item() == 0
    found.backward()
    assert prototypes.grad is not None
    assert bool((prototypes.grad == 0).all())


def test_prototypes_have_twice_the_resolution_of_their_level() -> None:
    assert Prototypes(8, 12, 5)(torch.zeros(2, 8, 4, 6)).shape == (2, 5, 8, 12)
