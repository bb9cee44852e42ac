"""Decoding of sets of masks against the definition, written with dense tensors and loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.masks import paste
from pelagia.core.types import Category, Instances, PanopticMap, SemanticMap, Task
from pelagia.decode import DecodeOptions, decode, query_masks
from pelagia.errors import ModelError

CLASSES = 4
CATEGORIES = tuple(Category(10 + i, f"class {i}", is_thing=i < 2) for i in range(CLASSES))
SIZE = (64, 96)


def card(task: Task, size: tuple[int, int] = SIZE) -> ModelCard:
    return ModelCard(name="test", task=task, decoder="masks", categories=CATEGORIES, input_size=size)


def raw(queries: int, seed: int = 0, size: tuple[int, int] = SIZE) -> dict[str, NDArray[Any]]:
    """Blobs with soft borders; sure classes, some of them none."""
    rng = np.random.default_rng(seed)
    height, width = size[0] // 4, size[1] // 4
    y, x = np.mgrid[:height, :width]
    cy, cx, radius = rng.uniform(0, height, queries), rng.uniform(0, width, queries), rng.uniform(1.5, 5, queries)
    masks = 2 * (radius[:, None, None] - np.hypot(y - cy[:, None, None], x - cx[:, None, None]))
    masks += rng.normal(0, 0.5, masks.shape)
    logits = rng.normal(0, 3, (queries, CLASSES + 1))
    return {"logits": logits[None].astype(np.float32), "masks": masks[None].astype(np.float32)}


def at_original(masks: NDArray[Any], height: int, width: int) -> torch.Tensor:
    return F.interpolate(torch.from_numpy(masks).double()[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def frame(height: int, width: int, size: tuple[int, int] = SIZE) -> Frame:
    """The whole input stretched over an original of this size."""
    return Frame(np.array([[width / size[1], 0.0, 0.0], [0.0, height / size[0], 0.0]]), width, height)


ORIGINALS = [(64, 96), (150, 210), (40, 50)]


@pytest.mark.parametrize("original", ORIGINALS)
def test_semantic_equals_the_definition(original: tuple[int, int]) -> None:
    outputs = raw(12)
    found = decode(outputs, [frame(*original)], card("semantic"), DecodeOptions(scores=True))[0]
    chances = torch.from_numpy(outputs["logits"][0]).double().softmax(1)[:, :-1]
    sums = torch.einsum("qc,qhw->chw", chances, torch.from_numpy(outputs["masks"][0]).double().sigmoid())
    expected = at_original(sums.numpy(), *original)
    assert isinstance(found, SemanticMap)
    assert len(np.unique(found.labels)) >= 3
    top = expected.topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-5).numpy()
    assert clear.mean() > 0.99
    assert (found.labels == expected.argmax(0).numpy())[clear].all()
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, expected / expected.sum(0), atol=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("original", ORIGINALS)
def test_instances_equal_the_definition(original: tuple[int, int], multi_label: bool) -> None:
    outputs = raw(20)
    options = DecodeOptions(score=0.2, multi_label=multi_label)
    found = decode(outputs, [frame(*original)], card("instance"), options)[0]
    planes = at_original(outputs["masks"][0], *original)
    chances = torch.from_numpy(outputs["logits"][0]).double().softmax(1)[:, :-1]
    expected = []
    best = chances.flatten().topk(20).indices if multi_label else torch.arange(20) * CLASSES + chances.argmax(1)
    for pair in best.tolist():
        query, label = divmod(pair, CLASSES)
        bitmap = planes[query] >= 0
        score = float(chances[query, label] * planes[query].sigmoid()[bitmap].mean()) if bitmap.any() else 0.0
        if score >= 0.2:
            expected.append((score, label, bitmap.numpy()))
    expected.sort(key=lambda item: -item[0])
    assert isinstance(found, Instances)
    assert found.scores is not None
    assert found.masks is not None
    assert len(found) == len(expected) >= 5
    np.testing.assert_allclose(found.scores, [item[0] for item in expected], atol=1e-4)
    assert found.labels.tolist() == [item[1] for item in expected]
    for crop, box, (_, _, bitmap) in zip(found.masks, found.box_array, expected, strict=True):
        whole = paste(crop, *original)
        assert np.count_nonzero(whole != bitmap) <= 2  # float32 at the limit
        rows, columns = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert crop.bitmap.shape == (rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0])


def panoptic_by_definition(outputs: dict[str, NDArray[Any]], original: tuple[int, int], score: float) -> list[tuple[Any, ...]]:
    """Figure 4 of the paper's rule, query by query: label, score and bitmap of each segment."""
    chances = torch.from_numpy(outputs["logits"][0]).double().softmax(1)
    scores, labels = chances.max(1)
    kept = [q for q in scores.argsort(descending=True).tolist() if labels[q] < CLASSES and scores[q] >= score]
    planes = at_original(outputs["masks"][0], *original)[kept].sigmoid()
    owner = (planes * scores[kept][:, None, None]).argmax(0)
    segments: list[tuple[Any, ...]] = []
    for row, query in enumerate(kept):
        mine, covers = owner == row, planes[row] >= 0.5
        drawn = mine & covers
        if not drawn.any() or mine.sum() / covers.sum() < 0.8:
            continue
        label = int(labels[query])
        before = next((item for item in segments if item[0] == label and label >= 2), None)
        if before is not None:
            before[2][drawn] = True
        else:
            segments.append((label, float(scores[query]), drawn.clone()))
    return segments


@pytest.mark.parametrize("original", ORIGINALS)
def test_panoptic_equals_the_definition(original: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_masks, "_BAND", 5_000)  # several bands
    merged = 0
    for seed in range(4):
        outputs = raw(20, seed)
        found = decode(outputs, [frame(*original)], card("panoptic"), DecodeOptions(score=0.5))[0]
        expected = panoptic_by_definition(outputs, original, 0.5)
        assert isinstance(found, PanopticMap)
        assert found.ids.dtype == np.int32
        assert [segment.label for segment in found.segments] == [item[0] for item in expected]
        assert len(expected) >= 3
        np.testing.assert_allclose(
            [segment.score or 0.0 for segment in found.segments], [item[1] for item in expected], atol=1e-6
        )
        for segment, (_, _, bitmap) in zip(found.segments, expected, strict=True):
            assert np.count_nonzero((found.ids == segment.id) != bitmap.numpy()) <= 4
        labels = [segment.label for segment in found.segments]
        assert all(labels.count(stuff) <= 1 for stuff in (2, 3))
        scores = torch.from_numpy(outputs["logits"][0]).softmax(1).max(1)
        kept = [int(label) for value, label in zip(*scores, strict=True) if value >= 0.5 and label in (2, 3)]
        merged += len(kept) > len(set(kept))
    assert merged


def test_margins_of_a_letterbox_are_left_out() -> None:
    outputs = raw(8)
    outputs["masks"][:] = -5
    outputs["masks"][0, 0, :, :] = 5  # one mask over all of the input
    outputs["logits"][:] = 0
    outputs["logits"][0, 0, 1] = 20
    shown = Frame.letterbox(100, 300, SIZE[1], SIZE[0])
    found = decode(outputs, [shown], card("instance"), DecodeOptions(score=0.5))[0]
    assert isinstance(found, Instances)
    assert found.box_array.tolist() == [[0, 0, 100, 300]]
    assert found.masks is not None
    assert found.masks[0].bitmap.all()
    found = decode(outputs, [shown], card("panoptic"), DecodeOptions(score=0.5))[0]
    assert isinstance(found, PanopticMap)
    assert (found.ids == 1).all()
    assert found.ids.shape == (300, 100)


def test_thresholds_of_classes_and_the_most_objects() -> None:
    outputs = raw(20)
    options = DecodeOptions(score=0.2)
    everything = decode(outputs, [frame(*SIZE)], card("instance"), options)[0]
    strict = decode(outputs, [frame(*SIZE)], card("instance"), replace(options, class_scores={"class 1": 1.0}))[0]
    few = decode(outputs, [frame(*SIZE)], card("instance"), replace(options, most=2))[0]
    assert isinstance(everything, Instances)
    assert isinstance(strict, Instances)
    assert isinstance(few, Instances)
    assert 1 in everything.labels
    assert strict.labels.tolist() == [label for label in everything.labels.tolist() if label != 1]
    assert few.scores is not None
    assert everything.scores is not None
    assert few.scores.tolist() == everything.scores[:2].tolist()


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_nothing_found_is_an_empty_answer(task: Task) -> None:
    outputs = raw(6)
    outputs["logits"][..., -1] = 30
    found = decode(outputs, [frame(30, 40)], card(task), DecodeOptions())[0]
    if isinstance(found, Instances):
        assert len(found) == 0
        assert found.masks == ()
    elif isinstance(found, PanopticMap):
        assert found.segments == ()
        assert not found.ids.any()
    else:
        assert found.labels.shape == (30, 40)


def test_refuses_what_does_not_fit() -> None:
    outputs = raw(6)
    with pytest.raises(ModelError, match="no output 'masks'"):
        decode({"logits": outputs["logits"]}, [frame(*SIZE)], card("panoptic"), DecodeOptions())
    with pytest.raises(ModelError, match=r"expected \[1, Q, 5\]"):
        decode({**outputs, "logits": outputs["logits"][..., :3]}, [frame(*SIZE)], card("panoptic"), DecodeOptions())
    with pytest.raises(ModelError, match=r"expected \[1, 6, h, w\]"):
        decode({**outputs, "masks": outputs["masks"][:, :3]}, [frame(*SIZE)], card("panoptic"), DecodeOptions())
    outputs["masks"][0, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="hold NaN"):
        decode(outputs, [frame(*SIZE)], card("panoptic"), DecodeOptions())
