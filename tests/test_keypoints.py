"""Keypoint similarity against pycocotools, mirroring against its definition."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pelagia.core.keypoints import COCO_PERSON_SIGMAS, flip, keypoint_sigmas, oks, point_count
from pelagia.core.types import Category
from pelagia.errors import LabelError, ModelError, OptionError


def _reference(predicted: np.ndarray, truth: np.ndarray, areas: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """OKS as COCOeval computes it; predictions in the order given (scores fall)."""
    xywh = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    annotations = [
        {
            "id": i + 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "area": float(areas[i]),
            "bbox": xywh[i].tolist(),
            "keypoints": truth[i].ravel().tolist(),
            "num_keypoints": int((truth[i, :, 2] > 0).sum()),
        }
        for i in range(len(truth))
    ]
    found = [
        {"image_id": 1, "category_id": 1, "keypoints": points.ravel().tolist(), "score": 1 - 0.001 * i}
        for i, points in enumerate(predicted)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, "images": [{"id": 1, "width": 500, "height": 500}], "categories": [{"id": 1, "name": "a"}]}
        coco.dataset["annotations"] = annotations
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "keypoints")
        evaluation._prepare()
        return np.asarray(evaluation.computeOks(1, 1))


@pytest.mark.parametrize("seed", range(5))
def test_oks_equals_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.uniform(0, 300, (6, 17, 2)), rng.integers(0, 3, (6, 17, 1))], axis=2)
    truth[0, :, 2] = 0  # no labelled point: the box decides
    truth[1, 1:, 2] = 0
    corner, side = rng.uniform(0, 100, (6, 2)), rng.uniform(20, 200, (6, 2))
    boxes = np.column_stack([corner, corner + side])
    areas = side.prod(axis=1) * 0.6
    predicted = np.concatenate([truth[:, :, :2] + rng.normal(0, 8, (6, 17, 2)), np.ones((6, 17, 1))], axis=2)
    result = oks(predicted, truth, areas, boxes, COCO_PERSON_SIGMAS)
    assert 0.05 < result[2, 2] < 1
    np.testing.assert_allclose(result, _reference(predicted, truth, areas, boxes), rtol=0, atol=1e-12)


def test_oks_of_equal_points_is_one_and_empty_inputs_have_a_shape() -> None:
    points = np.array([[[3.0, 4.0, 2.0], [8.0, 9.0, 1.0]]])
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    assert oks(points, points, [100.0], box, [0.1, 0.1])[0, 0] == 1.0
    assert oks(np.zeros((0, 2, 3)), points, [100.0], box, [0.1, 0.1]).shape == (0, 1)
    assert oks(points, np.zeros((0, 2, 3)), [], np.zeros((0, 4)), [0.1, 0.1]).shape == (1, 0)


def test_oks_refuses_what_does_not_fit() -> None:
    points, box = np.ones((1, 2, 3)), np.array([[0.0, 0.0, 1.0, 1.0]])
    with pytest.raises(LabelError, match="do not fit"):
        oks(points, points, [1.0], box, [0.1] * 3)
    with pytest.raises(OptionError, match="positive"):
        oks(points, points, [1.0], box, [0.1, 0.0])


def test_flip_mirrors_and_exchanges_partners() -> None:
    points = np.array([[[10.0, 5.0, 2.0], [30.0, 6.0, 1.0], [0.0, 0.0, 0.0]]])
    mirrored = flip(points, 100, (1, 0, 2))
    np.testing.assert_array_equal(mirrored, [[[70.0, 6.0, 1.0], [90.0, 5.0, 2.0], [0.0, 0.0, 0.0]]])
    np.testing.assert_array_equal(flip(mirrored, 100, (1, 0, 2)), points)
    np.testing.assert_array_equal(flip(points, 100)[0, :2, 0], [90.0, 70.0])
    with pytest.raises(OptionError, match="once"):
        flip(points, 100, (1, 1, 2))


def test_classes_must_agree_on_the_number_of_keypoints() -> None:
    def classes(*counts: int) -> list[Category]:
        return [Category(index, f"c{index}", keypoints=tuple(map(str, range(count)))) for index, count in enumerate(counts)]

    assert point_count(classes(4, 4), where="model") == 4
    for counts, message in (((4, 3), "c0 4, c1 3"), ((0, 0), "c0 0"), ((), "have none")):
        with pytest.raises(ModelError, match=message):
            point_count(classes(*counts), where="model")


def test_sigmas_are_those_of_a_person_or_all_the_same() -> None:
    assert keypoint_sigmas(17) == COCO_PERSON_SIGMAS
    assert keypoint_sigmas(3) == (0.05,) * 3
