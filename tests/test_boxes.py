"""Axis-aligned boxes: conversions against arithmetic, the IoU family against torchvision and a pixel count."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchvision import ops

from pelagia.core import boxes as B
from pelagia.errors import OptionError

CONVENTIONS = get_args(B.Convention)
FAMILY = {"giou": ops.generalized_box_iou, "diou": ops.distance_box_iou, "ciou": ops.complete_box_iou}


def _random(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 100, (count, 2))
    return np.hstack([corner, corner + rng.uniform(0.5, 60, (count, 2))])


def test_conversions_by_hand() -> None:
    box = np.array([[10.0, 20.0, 40.0, 30.0]])
    np.testing.assert_array_equal(B.convert(box, "xyxy", "xywh"), [[10, 20, 30, 10]])
    np.testing.assert_array_equal(B.convert(box, "xyxy", "cxcywh"), [[25, 25, 30, 10]])
    np.testing.assert_array_equal(B.convert(np.array([[10.0, 20.0, 30.0, 10.0]]), "xywh", "cxcywh"), [[25, 25, 30, 10]])
    np.testing.assert_array_equal(B.normalise(box, 100, 50), [[0.1, 0.4, 0.4, 0.6]])


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(CONVENTIONS, 2)))
@settings(max_examples=25, deadline=None)
@given(boxes=arrays(np.float64, (3, 4), elements=st.floats(-1e4, 1e4)))
def test_conversions_return(source: B.Convention, target: B.Convention, boxes: np.ndarray) -> None:
    back = B.convert(B.convert(boxes, source, target), target, source)
    np.testing.assert_allclose(back, boxes, rtol=0, atol=1e-10)
    np.testing.assert_allclose(B.denormalise(B.normalise(boxes, 640, 480), 640, 480), boxes, rtol=1e-14, atol=1e-12)
    as_tensor = B.convert(torch.from_numpy(boxes), source, target)
    assert isinstance(as_tensor, torch.Tensor)
    np.testing.assert_array_equal(as_tensor.numpy(), B.convert(boxes, source, target))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(OptionError, match="xyxy"):
        B.convert(np.zeros((1, 4)), "yxyx", "xyxy")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="giou"):
        B.iou_aligned(np.zeros((1, 4)), np.zeros((1, 4)), "siou")  # type: ignore[arg-type]


def test_iou_counts_pixels() -> None:
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 20, (12, 2))
    boxes = np.hstack([corner, corner + rng.integers(0, 12, (12, 2))]).astype(float)  # some of zero width
    masks = np.zeros((12, 40, 40), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    common = (masks[:, None] & masks[None]).sum(axis=(2, 3))
    union = (masks[:, None] | masks[None]).sum(axis=(2, 3))
    np.testing.assert_array_equal(B.intersection(boxes, boxes), common)
    np.testing.assert_array_equal(B.iou(boxes, boxes), common / np.maximum(union, 1))
    np.testing.assert_array_equal(B.area(boxes), masks.sum(axis=(1, 2)))


@pytest.mark.parametrize("kind", FAMILY)
def test_family_equals_torchvision(kind: B.Overlap) -> None:
    rng = np.random.default_rng(1)
    a, b = _random(rng, 60), _random(rng, 40)
    expected = FAMILY[kind](torch.from_numpy(a), torch.from_numpy(b)).numpy()  # its eps is added: 1e-7 apart
    np.testing.assert_allclose(B.iou_aligned(a[:, None], b[None], kind), expected, rtol=0, atol=1e-6)
    tensors = B.iou_aligned(torch.from_numpy(a)[:, None], torch.from_numpy(b)[None], kind)
    np.testing.assert_allclose(tensors.numpy(), B.iou_aligned(a[:, None], b[None], kind), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "loss"), [("giou", ops.generalized_box_iou_loss), ("ciou", ops.complete_box_iou_loss)])
def test_gradients_equal_torchvision(kind: B.Overlap, loss: object) -> None:
    rng = np.random.default_rng(2)
    a = torch.from_numpy(_random(rng, 30)).requires_grad_()
    b = torch.from_numpy(_random(rng, 30))
    assert callable(loss)
    (expected,) = torch.autograd.grad(loss(a, b, reduction="sum"), a)
    (actual,) = torch.autograd.grad((1 - B.iou_aligned(a, b, kind)).sum(), a)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", get_args(B.Overlap))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_boxes_have_finite_values_and_gradients(kind: B.Overlap, dtype: torch.dtype) -> None:
    edge = [[0.0, 0, 0, 0], [5, 5, 5, 9], [0, 0, 10, 10], [3, 3, 1, 1], [1e4, 1e4, 1e4, 1e4]]
    a = torch.tensor(edge, dtype=dtype).repeat_interleave(5, 0).requires_grad_()
    b = torch.tensor(edge, dtype=dtype).repeat(5, 1)
    value = B.iou_aligned(a, b, kind)
    value.sum().backward()
    assert a.grad is not None
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(a.grad).all())


def test_clip_leaves_nothing_outside() -> None:
    boxes = np.array([[-5.0, -5, 5, 5], [90, 40, 120, 60], [200, 200, 300, 300]])
    np.testing.assert_array_equal(B.clip(boxes, 100, 50), [[0, 0, 5, 5], [90, 40, 100, 50], [100, 50, 100, 50]])


def test_empty_inputs_keep_their_shapes() -> None:
    none, one = np.zeros((0, 4)), np.array([[0.0, 0, 1, 1]])
    assert B.iou(none, one).shape == (0, 1)
    assert B.iou(one, none).shape == (1, 0)
    assert B.iou_aligned(none, none, "ciou").shape == (0,)
    assert B.convert(none, "xyxy", "xywh").shape == (0, 4)
