"""Labels that are not complete (LVIS): what was not looked for is not judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drawn import draw
from pelagia.core.types import Category, Instances
from pelagia.data.open import open_dataset
from pelagia.errors import FormatError, OptionError
from pelagia.infer.objects import federated_labels
from pelagia.metrics.detection import evaluate_detection, gather
from pelagia.metrics.matching import Federated
from pelagia.metrics.objects import flatten
from pelagia.metrics.result import DetectionResult

CLASSES = 3
CATEGORIES = [Category(i + 1, f"c{i}") for i in range(CLASSES)]


def score(
    truths: list[Instances], found: list[Instances], federated: Federated | None = None, per_image: int = 0
) -> DetectionResult:
    truth, predictions = flatten(truths, "boxes", what="truth"), flatten(found, "boxes", what="predictions")
    return gather(truth, predictions, CATEGORIES, images=len(truths), federated=federated, per_image=per_image).result()


def flags(rng: np.random.Generator, images: int, share: float) -> np.ndarray:
    return rng.random((images, CLASSES)) < share


@pytest.mark.parametrize("seed", range(5))
def test_classes_that_were_not_looked_for_are_left_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, found = draw(rng, images=6, classes=CLASSES, objects=8, found=20)
    negative = flags(rng, 6, 0.3)
    kept = []
    for image, (truth, item) in enumerate(zip(truths, found, strict=True)):
        looked_for = set(truth.labels.tolist()) | set(np.flatnonzero(negative[image]).tolist())
        kept.append(item.select(np.array([label in looked_for for label in item.labels.tolist()], dtype=bool)))
    got = score(truths, found, Federated(negative, np.zeros_like(negative)))
    np.testing.assert_array_equal(got.stats, evaluate_detection(truths, kept, CATEGORIES).stats)
    everything = Federated(np.ones_like(negative), np.zeros_like(negative))
    np.testing.assert_array_equal(score(truths, found, everything).stats, evaluate_detection(truths, found, CATEGORIES).stats)


def test_where_labels_are_partial_a_find_more_is_not_false() -> None:
    box = np.array([[10, 10, 30, 30.0], [50, 50, 90, 90]])
    truths = [Instances(labels=[0], boxes=box[:1])]
    found = [Instances(labels=[0, 0], boxes=box, scores=[0.5, 0.9])]
    none = np.zeros((1, CLASSES), dtype=bool)
    partial = none.copy()
    partial[0, 0] = True
    assert score(truths, found, Federated(none, none)).ap50 == pytest.approx(0.5)
    assert score(truths, found, Federated(none, partial)).ap50 == pytest.approx(1.0)


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_a_cut_over_all_classes_keeps_the_best(most: int) -> None:
    truths, found = draw(np.random.default_rng(3), images=5, classes=CLASSES, objects=8, found=20)
    kept = [item.select(np.argsort(-np.asarray(item.scores), kind="stable")[:most]) for item in found]
    expected = evaluate_detection(truths, kept, CATEGORIES).stats
    np.testing.assert_array_equal(score(truths, found, per_image=most).stats, expected)


def test_flags_of_another_size_are_refused() -> None:
    none = np.zeros((2, CLASSES), dtype=bool)
    with pytest.raises(OptionError, match="1 images and 3 classes"):
        score([Instances.empty()], [Instances.empty(scores=True)], Federated(none, none))


def write(folder: Path, **extra: object) -> Path:
    image = {"id": 4, "file_name": "4.png", "width": 50, "height": 50, **extra}
    content = {
        "images": [image],
        "categories": [{"id": 1, "name": "a"}, {"id": 6, "name": "b"}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}],
    }
    (folder / "lvis.json").write_text(json.dumps(content))
    return folder / "lvis.json"


def test_flags_are_read_from_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, neg_category_ids=[6], not_exhaustive_category_ids=[1])
    federated = federated_labels(path, open_dataset(path))
    assert federated.negative.tolist() == [[False, True]]
    assert federated.partial.tolist() == [[True, False]]


@pytest.mark.parametrize(("extra", "message"), [({}, "form of LVIS"), ({"neg_category_ids": [7]}, "no category")])
def test_other_files_are_refused(tmp_path: Path, extra: dict[str, object], message: str) -> None:
    path = write(tmp_path, **extra)
    with pytest.raises(FormatError, match=message):
        federated_labels(path, open_dataset(path))
