"""The matching of queries to objects against all permutations, and against transformers' matcher."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.loss.loss_for_object_detection import HungarianMatcher

from pelagia.assign.hungarian import hungarian
from pelagia.core import boxes


def cheapest(cost: np.ndarray) -> float:
    """Least total cost over all one-to-one choices, from the definition."""
    objects, queries = cost.shape
    if objects > queries:
        cost, objects, queries = cost.T, queries, objects
    return min(sum(cost[row, chosen[row]] for row in range(objects)) for chosen in permutations(range(queries), objects))


@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, 5), min_size=1, max_size=4), queries=st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_the_total_is_the_least_of_all_permutations(seed: int, counts: list[int], queries: int) -> None:
    rng = np.random.default_rng(seed)
    batch = np.repeat(np.arange(len(counts)), counts)
    cost = rng.normal(size=(len(batch), queries))
    found = hungarian(torch.from_numpy(cost), torch.from_numpy(batch))
    image, query, row = (value.numpy() for value in (found.image, found.query, found.object))
    assert (batch[row] == image).all()
    for number, count in enumerate(counts):
        mine = image == number
        assert mine.sum() == min(count, queries)
        assert len(set(query[mine])) == len(set(row[mine])) == mine.sum()
        if count:
            assert cost[row[mine], query[mine]].sum() == pytest.approx(cheapest(cost[batch == number]))


def test_no_objects() -> None:
    found = hungarian(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    assert found.image.shape == found.query.shape == found.object.shape == (0,)
    assert found.query.dtype == torch.int64


def test_broken_costs_are_avoided() -> None:
    """A query without a finite cost is matched only where no other is left."""
    cost = torch.tensor([[float("nan"), 5.0, float("inf")], [1.0, 6.0, float("-inf")]])
    assert hungarian(cost, torch.zeros(2, dtype=torch.int64)).query.tolist() == [1, 0]
    assert len(hungarian(torch.full((2, 3), float("nan")), torch.zeros(2, dtype=torch.int64)).query) == 2


def test_half_precision_and_equal_costs_are_repeatable() -> None:
    cost = torch.randint(0, 3, (40, 60), generator=torch.Generator().manual_seed(0)).half()
    batch = torch.arange(40) // 20
    first, second = hungarian(cost, batch), hungarian(cost, batch)
    assert torch.equal(first.query, second.query)
    assert torch.equal(first.object, second.object)


@pytest.mark.parametrize("counts", [[3, 0, 9], [30, 1, 25]])  # the second with more objects than queries
def test_equals_the_matcher_of_transformers(counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    queries, classes = 20, 5
    logits = torch.randn(len(counts), queries, classes + 1, generator=generator)
    predicted = 0.1 + 0.5 * torch.rand(len(counts), queries, 4, generator=generator)
    labels = [torch.randint(0, classes, (count,), generator=generator) for count in counts]
    truth = [0.1 + 0.5 * torch.rand(count, 4, generator=generator) for count in counts]
    theirs = HungarianMatcher(1, 5, 2)(
        {"logits": logits, "pred_boxes": predicted},
        [{"class_labels": label, "boxes": box} for label, box in zip(labels, truth, strict=True)],
    )
    batch = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    found = hungarian(_cost(logits, predicted, torch.cat(labels), torch.cat(truth), batch), batch)
    for image, (query, row) in enumerate(theirs):
        mine = found.image == image
        start = sum(counts[:image])
        ours = set(zip(found.query[mine].tolist(), (found.object[mine] - start).tolist(), strict=True))
        assert ours == set(zip(query.tolist(), row.tolist(), strict=True))


def _cost(logits: Tensor, predicted: Tensor, labels: Tensor, truth: Tensor, batch: Tensor) -> Tensor:
    chance = logits.softmax(2)[batch, :, labels]
    distance = (predicted[batch] - truth[:, None]).abs().sum(2)
    corners = boxes.convert(predicted, "cxcywh", "xyxy")[batch], boxes.convert(truth, "cxcywh", "xyxy")[:, None]
    return 5 * distance - chance - 2 * boxes.iou_aligned(*corners, "giou")
