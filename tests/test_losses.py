"""Losses against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pelagia.core.keypoints import COCO_PERSON_SIGMAS, oks_aligned
from pelagia.core.oriented import iou_aligned
from pelagia.losses.boxes import angle_loss, distribution_focal, nearest_form
from pelagia.losses.classify import binary_cross_entropy_sum, sigmoid_focal, softmax_focal
from pelagia.losses.keypoints import keypoint_similarity_loss, visibility_loss
from pelagia.losses.masks import dice


@given(seed=st.integers(0, 1000), count=st.integers(0, 10))
@settings(deadline=None, max_examples=30)
def test_sparse_cross_entropy_equals_the_dense_one(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 20 * torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    places = torch.randperm(30, generator=generator)[:count]
    index = (places // 15, places // 5 % 3, places % 5)
    target = torch.rand(count, dtype=torch.float64, generator=generator)
    dense = torch.zeros_like(logits)
    dense[index] = target
    torch.testing.assert_close(
        binary_cross_entropy_sum(logits, index, target), F.binary_cross_entropy_with_logits(logits, dense, reduction="sum")
    )
    ignored = torch.rand(2, 5, generator=generator) < 0.5
    ignored[index[0], index[2]] = False
    terms = F.binary_cross_entropy_with_logits(logits, dense, reduction="none")
    torch.testing.assert_close(binary_cross_entropy_sum(logits, index, target, ignored), (terms * ~ignored[:, None]).sum())


@given(distance=st.floats(-2, 20), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_distribution_focal_is_equation_6(distance: float, seed: int) -> None:
    logits = torch.randn(1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = min(max(distance, 0.0), 14.99)
    i = math.floor(y)
    p = logits[0, 0].softmax(0)
    expected = -((i + 1 - y) * p[i].log() + (y - i) * p[i + 1].log())
    found = distribution_focal(logits, torch.tensor([[distance]], dtype=torch.float64))
    torch.testing.assert_close(found, expected[None])


def test_distribution_focal_is_least_at_the_two_bins_around_the_distance() -> None:
    logits = torch.zeros(1, 4, 8, dtype=torch.float64, requires_grad=True)
    distances = torch.tensor([[0.0, 1.25, 3.5, 6.75]], dtype=torch.float64)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12)

    def closure() -> float:
        optimiser.zero_grad()
        value = distribution_focal(logits, distances).sum()
        value.backward()
        return value.item()

    optimiser.step(closure)
    mean = logits.detach().softmax(-1) @ torch.arange(8, dtype=torch.float64)
    torch.testing.assert_close(mean, distances, atol=1e-3, rtol=0)


@given(
    angle=st.floats(-1.57, 1.57),
    near=st.floats(-0.78, 2.35),
    w=st.floats(1, 50),
    h=st.floats(1, 50),
)
@settings(deadline=None, max_examples=100)
def test_nearest_form_is_the_same_rectangle_at_most_an_eighth_turn_away(angle: float, near: float, w: float, h: float) -> None:
    box = torch.tensor([[3.0, 4.0, w, h, angle]], dtype=torch.float64)
    found = nearest_form(box, torch.tensor([near], dtype=torch.float64))
    np.testing.assert_allclose(iou_aligned(found.numpy(), box.numpy()), 1.0, atol=1e-9)
    turned = found[0, 4].item()
    assert -math.pi / 4 - 1e-9 <= turned <= 3 * math.pi / 4 + 1e-9
    other = [turned + quarter * math.pi / 2 for quarter in (-1, 1)]
    reachable = [value for value in other if -math.pi / 4 <= value < 3 * math.pi / 4]
    assert all(abs(turned - near) <= abs(value - near) + 1e-9 for value in reachable)


def test_angle_loss_turns_slender_boxes_and_leaves_squares() -> None:
    angle = torch.tensor([0.3, 0.3, 0.3], dtype=torch.float64, requires_grad=True)
    truth = torch.tensor([[0, 0, 20, 5, 0.1], [0, 0, 5, 20, 0.1], [0, 0, 9, 9, 0.1]], dtype=torch.float64)
    value = angle_loss(angle, truth)
    torch.testing.assert_close(value, torch.tensor([0.75, 0.75, 0.0], dtype=torch.float64) * math.sin(0.2) ** 2)
    value.sum().backward()
    assert angle.grad is not None
    assert angle.grad[0] > 0
    assert angle.grad[2] == 0


@given(seed=st.integers(0, 1000), gamma=st.sampled_from([0.0, 1.0, 2.0]), alpha=st.sampled_from([None, 0.25, 0.6]))
@settings(deadline=None, max_examples=20)
def test_sigmoid_focal_is_equation_5(seed: int, gamma: float, alpha: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 5, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 2, (2, 5), generator=generator)
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for i in range(2):
        for j in range(5):
            p = 1 / (1 + math.exp(-logits[i, j].item()))
            right = p if targets[i, j] else 1 - p
            weight = 1.0 if alpha is None else alpha if targets[i, j] else 1 - alpha
            expected[i, j] = -weight * (1 - right) ** gamma * math.log(right)
    torch.testing.assert_close(sigmoid_focal(logits, targets, alpha=alpha, gamma=gamma), expected)


@given(seed=st.integers(0, 1000), gamma=st.sampled_from([0.0, 1.0, 2.0]))
@settings(deadline=None, max_examples=20)
def test_softmax_focal_is_its_formula(seed: int, gamma: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (2, 3), generator=generator)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            powers = [math.exp(value) for value in logits[i, :, j].tolist()]
            p = powers[int(labels[i, j])] / sum(powers)
            expected[i, j] = -((1 - p) ** gamma) * math.log(p)
    torch.testing.assert_close(softmax_focal(logits, labels, gamma=gamma), expected)


def test_focal_losses_stay_finite_at_the_ends() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    value = sigmoid_focal(logits, torch.tensor([[0, 1, 1]])).sum() + softmax_focal(logits, torch.tensor([1])).sum()
    value = value + softmax_focal(logits, torch.tensor([0])).sum()
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@given(seed=st.integers(0, 1000), smooth=st.sampled_from([0.5, 1.0]))
@settings(deadline=None, max_examples=20)
def test_dice_is_its_formula(seed: int, smooth: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(3, 2, 4, dtype=torch.float64, generator=generator)
    t = torch.randint(0, 2, (3, 2, 4), generator=generator).double()
    t[2] = 0
    for mask, value in enumerate(dice(p, t, smooth=smooth).tolist()):
        both = sum(a * b for a, b in zip(p[mask].flatten().tolist(), t[mask].flatten().tolist(), strict=True))
        either = p[mask].sum().item() + t[mask].sum().item()
        assert value == pytest.approx(1 - (2 * both + smooth) / (either + smooth))
    assert dice(torch.zeros(1, 5), torch.zeros(1, 5)).item() == 0


def test_the_loss_of_keypoints_is_one_minus_the_similarity_that_the_metric_computes() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = 100 * torch.rand(40, 17, 3, dtype=torch.float64, generator=generator)
    truth[..., 2] = torch.randint(0, 3, (40, 17), generator=generator)
    truth[0, :, 2] = 0
    points = truth[..., :2] + 4 * torch.randn(40, 17, 2, dtype=torch.float64, generator=generator)
    points[0] = 1e200  # nothing is labelled here, so nothing may come of it
    points.requires_grad_()
    areas = 100 + 4000 * torch.rand(40, dtype=torch.float64, generator=generator)
    sigmas = torch.tensor(COCO_PERSON_SIGMAS, dtype=torch.float64)
    found = keypoint_similarity_loss(points, truth, areas, sigmas)
    predicted = torch.cat((points.detach(), torch.ones(40, 17, 1)), 2).numpy()
    expected = 1 - oks_aligned(predicted[1:], truth[1:].numpy(), areas[1:].numpy(), np.zeros((39, 4)), sigmas.numpy())
    np.testing.assert_allclose(found[1:].detach().numpy(), expected, rtol=1e-12)
    assert 0.2 < expected.mean() < 0.8
    assert found[0].item() == 0
    found.sum().backward()
    assert points.grad is not None
    assert bool((points.grad[truth[..., 2] == 0] == 0).all())
    assert bool((points.grad[truth[..., 2] > 0] != 0).any())


def test_the_loss_of_visibility_asks_whether_a_point_is_labelled() -> None:
    truth = torch.tensor([[[0, 0, 0], [0, 0, 1], [0, 0, 2.0]]])
    logits = torch.tensor([[0.5, -1.0, 2.0]])
    expected = (math.log(1 + math.exp(0.5)) + math.log(1 + math.exp(1.0)) + math.log(1 + math.exp(-2.0))) / 3
    assert visibility_loss(logits, truth).item() == pytest.approx(expected)
