"""The parts of the two-stage detectors against their definitions: matching, sampling, offsets, suppression, pooling, decoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.ops import MultiScaleRoIAlign

from pelagia.assign.overlap import BACKGROUND, NEITHER, match_by_overlap, sample_balanced
from pelagia.core import boxes as core_boxes
from pelagia.core import nms as core_nms
from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.types import Category
from pelagia.decode import DecodeOptions, decode
from pelagia.decode.regions import heatmap_points, mask_crop, point_scores
from pelagia.errors import ModelError, OptionError
from pelagia.models.registry import create, entry
from pelagia.nn.anchors import decode_offsets, encode_offsets, grid_anchors
from pelagia.nn.roi import pool_regions
from pelagia.nn.rpn import highest
from pelagia.nn.suppression import suppress


def some_boxes(count: int, seed: int, side: float = 60.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat((corner, corner + 2 + torch.rand(count, 2, generator=generator) * side / 2), dim=1)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_matching_is_its_definition(every: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pelagia.assign.overlap._AT_ONCE", at_once)
    candidates, truth, ignored = some_boxes(80, 0), some_boxes(7, 1), some_boxes(2, 2)
    truth[6] = torch.tensor([500.0, 500.0, 510.0, 510.0])  # overlaps nothing: must not claim what overlaps it "most"
    found = match_by_overlap(candidates, truth, low=0.3, high=0.5, every_object=every, ignored=ignored)
    overlap = core_boxes.iou(candidates, truth)
    kinds = set()
    for i, candidate in enumerate(candidates):
        best = int(overlap[i].argmax())
        value = float(overlap[i, best])
        wanted = best if value >= 0.5 else BACKGROUND if value < 0.3 else NEITHER
        if every and any(overlap[i, j] == overlap[:, j].max() and overlap[i, j] > 0 for j in range(7)):
            wanted = best
        part = core_boxes.intersection(candidate[None], ignored).max() / core_boxes.area(candidate)
        if wanted == BACKGROUND and part >= 0.5:
            wanted = NEITHER
        assert int(found[i]) == wanted
        kinds.add(min(wanted, 0))
    assert kinds == {0, BACKGROUND, NEITHER}
    assert (match_by_overlap(candidates, truth[:0], low=0.3, high=0.7) == BACKGROUND).all()


def test_samples_are_balanced() -> None:
    matched = torch.tensor([3] * 50 + [BACKGROUND] * 500 + [NEITHER] * 30)
    torch.manual_seed(0)
    drawn = sample_balanced(matched, 100, 0.25)
    assert len(set(drawn.tolist())) == 100
    assert torch.equal(drawn, drawn.sort().values)
    assert int((matched[drawn] >= 0).sum()) == 25
    assert int((matched[drawn] == BACKGROUND).sum()) == 75
    few = sample_balanced(matched[45:], 100, 0.25)
    assert int((matched[45:][few] >= 0).sum()) == 5
    assert len(few) == 100
    assert len(sample_balanced(torch.full((9,), NEITHER), 100, 0.5)) == 0


def test_offsets_are_inverse_and_cut() -> None:
    boxes, references = some_boxes(40, 3), some_boxes(40, 4)
    weights = (10.0, 10.0, 5.0, 5.0)
    offsets = encode_offsets(boxes, references, weights)
    torch.testing.assert_close(decode_offsets(offsets, references, weights), boxes, rtol=1e-4, atol=1e-4)
    large = decode_offsets(torch.tensor([0.0, 0.0, 9.0, 9.0]), torch.tensor([0.0, 0.0, 4.0, 4.0]), (1.0, 1.0, 1.0, 1.0))
    assert float(large[2] - large[0]) == pytest.approx(4 * 1000 / 16, rel=1e-5)


def test_anchors_of_a_cell() -> None:
    (found,) = grid_anchors([(2, 3)], (32, 48), [[32.0]], [0.5, 1.0, 2.0])
    assert found.shape == (18, 4)
    assert found[1].tolist() == [-16, -16, 16, 16]
    assert found[0].tolist() == [-23, -11, 23, 11]  # 32 sqrt(2) wide, 32 / sqrt(2) high
    assert found[3 * 4 + 1].tolist() == [0, 0, 32, 32]  # second row, second column


def test_suppression_is_that_of_the_array_side() -> None:
    boxes = torch.stack([some_boxes(60, seed) for seed in range(3)])
    scores = torch.rand(3, 60, generator=torch.Generator().manual_seed(0)) - 0.2
    kept = suppress(boxes, scores, 0.4)
    for group in range(3):
        alive = np.flatnonzero(scores[group].numpy() > 0)
        expected = alive[core_nms.nms(boxes[group, alive].numpy(), scores[group, alive].numpy(), 0.4)]
        assert sorted(expected) == torch.nonzero(kept[group])[:, 0].tolist()


@pytest.mark.parametrize("most", [1, 7, 100, 1000])
def test_of_equal_scores_the_first_are_the_highest(most: int) -> None:
    scores = torch.randint(-3, 4, (4, 300), generator=torch.Generator().manual_seed(most)) / 3
    scores[1] = 0.0
    scores[2] *= torch.tensor([1.0, -0.0]).repeat(150)  # zeros of both signs are equal
    values, place = highest(scores, most)
    for row in range(4):
        expected = sorted(range(300), key=lambda column: (-float(scores[row, column]), column))[:most]
        assert place[row].tolist() == expected
        assert torch.equal(values[row], scores[row, expected])


def test_pooling_reads_the_level_of_a_region() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = tuple(torch.rand(2, 4, 256 // stride, 320 // stride, generator=generator) for stride in (4, 8, 16, 32))
    regions = [torch.cat((some_boxes(10, seed), some_boxes(10, seed, 250.0)))[:, :].clamp(max=250) for seed in (1, 2)]
    flat = torch.cat([torch.cat((torch.full((20, 1), float(i)), boxes), 1) for i, boxes in enumerate(regions)])
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = pool({str(i): level for i, level in enumerate(levels)}, regions, [(256, 320)] * 2)
    torch.testing.assert_close(pool_regions(levels, (4, 8, 16, 32), flat, 7), expected)


def test_a_mask_is_interpolated_at_pixel_centres() -> None:
    chances = np.random.default_rng(0).random((28, 28))
    box = np.array([-3.3, 4.2, 31.7, 40.9])
    found = mask_crop(chances, box, 30, 50, 0.5)
    padded = np.pad(chances, 1)
    count = 0
    for y in range(50):
        for x in range(30):
            u, v = (x + 0.5 - box[0]) / (box[2] - box[0]) * 28 - 0.5, (y + 0.5 - box[1]) / (box[3] - box[1]) * 28 - 0.5
            inside = found.y <= y < found.y + found.bitmap.shape[0] and found.x <= x < found.x + found.bitmap.shape[1]
            within = box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3]
            assert inside == within
            if not within:
                continue
            i, j = math.floor(v), math.floor(u)
            part = padded[i + 1 : i + 3, j + 1 : j + 3]
            value = np.array([1 - (v - i), v - i]) @ part @ np.array([1 - (u - j), u - j])
            assert abs(value - 0.5) < 1e-9 or found.bitmap[y - found.y, x - found.x] == (value >= 0.5)
            count += 1
    assert count == found.bitmap.size > 500
    assert mask_crop(chances, np.array([3.6, 3.6, 4.4, 9.0]), 30, 50, 0.5).bitmap.shape == (0, 0)


def test_keypoints_are_those_of_torchvision() -> None:
    maps = torch.randn(12, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat((some_boxes(6, 1, 300.0), some_boxes(6, 2, 40.0)))
    expected, heights = heatmaps_to_keypoints(maps, boxes)
    points, found = heatmap_points(maps.numpy(), boxes.double().numpy())
    np.testing.assert_allclose(points, expected[..., :2].numpy(), atol=1e-3)
    np.testing.assert_allclose(found, heights.numpy(), atol=1e-4)


def keypoint_card() -> ModelCard:
    return ModelCard("m", "keypoints", "regions", (Category(1, "a", keypoints=("head",)),), (64, 64))


def found_score(cells: torch.Tensor) -> float:
    """The score of the point that decoding reads from logits [28, 28], enlarged as the network enlarges them."""
    maps = nn.functional.interpolate(cells[None, None], scale_factor=2.0, mode="bilinear", align_corners=False)
    outputs = {
        "boxes": np.array([[[4, 4, 60, 34]]], dtype=np.float32),
        "scores": np.array([[0.9]], dtype=np.float32),
        "labels": np.array([[0]]),
        "heatmaps": maps[None].numpy(),
    }
    (found,) = decode(outputs, [Frame.identity(64, 64)], keypoint_card(), DecodeOptions())
    return float(found.keypoints[0, 0, 2])  # type: ignore[union-attr, index]


def test_the_score_of_a_keypoint_tells_how_well_it_is_placed() -> None:
    y, x = torch.meshgrid(torch.arange(28) + 0.5, torch.arange(28) + 0.5, indexing="ij")

    def scattered(sigma: float, *centres: float) -> torch.Tensor:
        parts = [-((x - cx) ** 2 + (y - 14.2) ** 2) / (2 * sigma**2) for cx in centres]
        return torch.stack(parts).logsumexp(0)

    lone = torch.zeros(28, 28)
    lone[11, 17] = 30.0
    assert found_score(lone) > 0.99
    assert found_score(scattered(1.4, 13.7)) == pytest.approx(math.erf(2 / math.sqrt(2)) ** 2, abs=0.05)  # 0.05 of the side
    assert 0.2 < found_score(scattered(2.8, 13.7)) < 0.5
    assert found_score(scattered(1.0, 6.3, 21.7)) == pytest.approx(0.5, abs=0.03)  # head or tail?
    assert found_score(torch.zeros(28, 28)) < 0.05


def test_scores_of_keypoints_are_their_definition() -> None:
    maps = 3 * np.random.default_rng(0).standard_normal((4, 2, 56, 48))
    boxes = np.array([[3.0, 5, 90, 41], [-10, -10, 30, 70], [8, 8, 8.2, 8.1], [0, 0, 400, 300]])
    points, _ = heatmap_points(maps, boxes)
    found = point_scores(maps, boxes, points)
    for n, k in np.ndindex(4, 2):
        chances = np.exp(maps[n, k]) / np.exp(maps[n, k]).sum()
        x1, y1, x2, y2 = boxes[n]
        wide, high = max(x2 - x1, 1), max(y2 - y1, 1)
        total = 0.0
        for i, j in np.ndindex(56, 48):
            x, y = x1 + (j + 0.5) / 48 * wide, y1 + (i + 0.5) / 56 * high
            if abs(x - points[n, k, 0]) <= wide / 10 and abs(y - points[n, k, 1]) <= high / 10:
                total += chances[i, j]
        assert found[n, k] == pytest.approx(total, abs=1e-9)
    assert point_scores(maps[:0], boxes[:0], points[:0]).shape == (0, 2)


def test_decoding_chooses_and_goes_back_to_the_original() -> None:
    card = ModelCard("m", "instance", "regions", (Category(1, "a"), Category(2, "b")), (64, 64))
    outputs = {
        "boxes": np.array([[[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 40], [0, 0, 0, 0]]], dtype=np.float32),
        "scores": np.array([[0.9, 0.8, 0.4, 0.0]], dtype=np.float32),
        "labels": np.array([[0, 0, 1, 0]]),
        "masks": np.full((1, 4, 28, 28), 9.0, dtype=np.float32),
    }
    frame = Frame(np.array([[2.0, 0.0, -10.0], [0.0, 2.0, 0.0]]), 50, 60)
    (found,) = decode(outputs, [frame], card, DecodeOptions(score=0.0, nms_iou=1.0))
    assert found.labels.tolist() == [0, 0, 1]  # type: ignore[union-attr]
    np.testing.assert_allclose(found.boxes, [[0, 0, 10, 20], [0, 0, 12, 20], [30, 40, 50, 60]])  # type: ignore[union-attr]
    masks = found.masks  # type: ignore[union-attr]
    assert masks is not None
    assert [(mask.x, mask.y, *mask.bitmap.shape) for mask in masks] == [(0, 0, 20, 10), (0, 0, 20, 12), (30, 40, 20, 20)]
    (thinned,) = decode(outputs, [frame], card, DecodeOptions(score=0.0, nms_iou=0.5, class_scores={"b": 0.5}))
    assert thinned.scores.tolist() == pytest.approx([0.9])  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="no output 'masks'"):
        decode({key: value for key, value in outputs.items() if key != "masks"}, [frame], card, DecodeOptions())
    with pytest.raises(ModelError, match="hold NaN"):
        decode(outputs | {"scores": outputs["scores"] * np.nan}, [frame], card, DecodeOptions())


def test_options_are_checked() -> None:
    classes = [Category(1, "a")]
    for wrong, text in (
        ({"anchor_sizes": (1.0,)}, "anchor_sizes must be 5"),
        ({"norm": "group"}, "batch or frozen"),
        ({"rpn_low": 0.9}, "at most rpn_high"),
        ({"trainable_stages": 6}, "0 to 5"),
        ({"score": 2.0}, "0 to 1"),
        ({"backbone": "resnet50"}, "timm:NAME"),
        ({"detections": 0}, "at least 1"),
    ):
        with pytest.raises(OptionError, match=text):
            create("faster-rcnn", classes, options={**entry("faster-rcnn").tiny, **wrong})
    with pytest.raises(ModelError, match="classes with keypoints"):
        create("keypoint-rcnn", classes, "keypoints", input_size=64, options=dict(entry("keypoint-rcnn").tiny))


@pytest.mark.parametrize(("trainable", "fixed"), [(5, 0), (4, 1), (3, 2), (0, 5)])
def test_stages_are_frozen_from_the_stem_on(trainable: int, fixed: int) -> None:
    options = {**entry("faster-rcnn").tiny, "backbone": "timm:test_resnet", "trainable_stages": trainable}
    model = create("faster-rcnn", [Category(1, "a")], input_size=64, options=options)
    names = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    frozen = {name.split(".")[2] for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {*names[:fixed], *(["bn1"] if fixed else [])}
