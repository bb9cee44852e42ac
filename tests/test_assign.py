"""Task-aligned assignment against loops written from the paper."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.assign.dynamic import Candidates, cells_inside, cells_inside_oriented, task_aligned
from pelagia.nn.grids import cell_centres, grids_of

GRIDS = grids_of(96, 128, (8, 16, 32))
CENTRES, STRIDES = cell_centres(GRIDS, torch.device("cpu"), torch.float64)
CELLS = len(CENTRES)


def random_boxes(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    centre, size = rng.uniform(-10, 140, (count, 2)), rng.uniform(0.5, 90, (count, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


def pairs_as_set(pairs: Candidates) -> set[tuple[int, int]]:
    found = list(zip(pairs.object.tolist(), pairs.cell.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert pairs.counts.tolist() == torch.bincount(pairs.object, minlength=len(pairs.counts)).tolist()
    assert pairs.object.tolist() == sorted(pairs.object.tolist())
    return set(found)


@given(seed=st.integers(0, 10_000), count=st.integers(0, 12))
@settings(deadline=None, max_examples=50)
def test_cells_inside_is_its_definition(seed: int, count: int) -> None:
    boxes = random_boxes(np.random.default_rng(seed), count)
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum((boxes[:, 2:] - boxes[:, :2]) / 2, 4)
    expected = {
        (row, cell)
        for row in range(count)
        for cell, centre in enumerate(CENTRES.numpy())
        if (np.abs(centre - middle[row]) <= half[row]).all()
    }
    assert pairs_as_set(cells_inside(torch.from_numpy(boxes), GRIDS)) == expected


@given(seed=st.integers(0, 10_000), count=st.integers(0, 12))
@settings(deadline=None, max_examples=50)
def test_cells_inside_oriented_is_its_definition(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    oriented = np.column_stack([rng.uniform(-10, 140, (count, 2)), rng.uniform(0.5, 120, (count, 2)), rng.uniform(-4, 4, count)])
    expected = set()
    for row, (x, y, w, h, angle) in enumerate(oriented):
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        local = (CENTRES.numpy() - [x, y]) @ turn.T
        inside = (np.abs(local) <= np.maximum([w, h], 8) / 2).all(axis=1)
        expected |= {(row, int(cell)) for cell in np.flatnonzero(inside)}
    assert pairs_as_set(cells_inside_oriented(torch.from_numpy(oriented), GRIDS, CENTRES)) == expected


@given(x=st.floats(0, 128), y=st.floats(0, 96), w=st.floats(0, 8), h=st.floats(0, 8))
@settings(deadline=None)
def test_every_object_inside_the_image_has_a_cell(x: float, y: float, w: float, h: float) -> None:
    box = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]], dtype=torch.float64)
    assert len(cells_inside(box, GRIDS).cell) > 0


@given(seed=st.integers(0, 10_000), count=st.integers(0, 10), images=st.integers(1, 3), topk=st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_task_aligned_is_its_definition(seed: int, count: int, images: int, topk: int) -> None:
    rng = np.random.default_rng(seed)
    batch = rng.integers(0, images, count)
    pairs = cells_inside(torch.from_numpy(random_boxes(rng, count)), GRIDS)
    owner, cell = pairs.object, pairs.cell
    score, overlap = rng.random(len(owner)), rng.random(len(owner))  # no ties
    aligned = score**0.5 * overlap**6
    chosen: dict[tuple[int, int], int] = {}
    for row in range(count):
        mine = np.flatnonzero(owner.numpy() == row)
        for pair in mine[np.argsort(-aligned[mine])][:topk]:
            place = (int(batch[row]), int(cell[pair]))
            if place not in chosen or overlap[chosen[place]] < overlap[pair]:
                chosen[place] = int(pair)
    expected = {}
    for place, pair in chosen.items():
        mine = [other for other in chosen.values() if owner[other] == owner[pair]]
        target = aligned[pair] / max(aligned[other] for other in mine) * max(overlap[other] for other in mine)
        expected[place] = (int(owner[pair]), target)
    found = task_aligned(
        pairs, torch.from_numpy(batch), torch.from_numpy(score), torch.from_numpy(overlap), (images, CELLS), topk=topk
    )
    assert len(found.image) == len(expected)
    rows = zip(found.image.tolist(), found.cell.tolist(), found.object.tolist(), found.score.tolist(), strict=True)
    for image, place, owner_found, target in rows:
        row, wanted = expected[image, place]
        assert owner_found == row
        np.testing.assert_allclose(target, wanted, rtol=1e-12)


def test_ties_and_zero_overlaps_are_settled_alike_every_time() -> None:
    pairs = cells_inside(torch.tensor([[0.0, 0, 96, 96], [0, 0, 96, 96]]), GRIDS)
    count = len(pairs.cell)
    first, second = (
        task_aligned(pairs, torch.tensor([0, 0]), torch.ones(count), torch.zeros(count), (1, CELLS)) for _ in range(2)
    )
    assert torch.equal(first.cell, second.cell)
    assert torch.equal(first.object, second.object)
    assert bool((first.score == 0).all())
    assert first.object.tolist() == [0] * 10
