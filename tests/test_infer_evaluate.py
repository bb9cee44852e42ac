"""Scoring any runtime on a data set: class order, limits, and tiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagia.core.image import write
from pelagia.core.types import Category, Instances, PanopticMap, Segment, SemanticMap, Task
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError, ImageError, OptionError
from pelagia.infer.evaluate import EvaluateOptions, choose_thresholds, evaluate, match_classes, predict_dataset, score, tiles_note
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.infer.scale import training_scale
from pelagia.metrics.panoptic import evaluate_panoptic
from pelagia.metrics.semantic import evaluate_semantic
from tiny_onnx import tiny_card, write_tiny

GREEN_FIRST = (Category(7, "green"), Category(9, "blue"), Category(3, "red"))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    return OnnxRuntime(write_tiny(tmp_path_factory.mktemp("model") / "m.onnx"), threads=1)


def bright(folder: Path, count: int, *, side: int = 64, seed: int = 0, per_image: int = 6) -> Dataset:
    """Images whose bright cells are the truth; channel 0 is red, channel 1 green."""
    rng = np.random.default_rng(seed)
    items = []
    for index in range(count):
        image = np.zeros((side, side, 3), dtype=np.uint8)
        places = rng.choice((side // 8) ** 2, per_image, replace=False)
        colours = rng.integers(0, 2, per_image)
        boxes = []
        for place, colour in zip(places, colours, strict=True):
            y, x = divmod(int(place), side // 8)
            image[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8, colour] = 255
            boxes.append([x * 8, y * 8, x * 8 + 8, y * 8 + 8])
        write(folder / f"{index}.png", image)
        truth = Instances(labels=np.where(colours == 0, 2, 0), boxes=np.array(boxes, dtype=np.float64))
        items.append((folder / f"{index}.png", (side, side), truth))
    return Dataset.from_instances(GREEN_FIRST, items, task="detect")


def test_a_perfect_model_scores_one_whatever_the_order_of_classes(tmp_path: Path, runtime: OnnxRuntime) -> None:
    data = bright(tmp_path, 5)
    result = evaluate(runtime, data, EvaluateOptions(batch=2), show=False)
    assert result.ap == pytest.approx(1.0)
    assert result.ap_all == pytest.approx(1.0)
    assert {item.name: item.truths for item in result.classes}["blue"] == 0
    assert result.images == 5


def test_a_missing_class_counts_against_the_model(tmp_path: Path, runtime: OnnxRuntime) -> None:
    data = bright(tmp_path, 4)
    predictions = predict_dataset(runtime, data, show=False)
    only_red = [item.select(item.labels == 2) for item in predictions]
    result = score(data, only_red)
    assert result.ap50 == pytest.approx(0.5)


def test_large_images_are_tiled_unless_told_otherwise(tmp_path: Path, runtime: OnnxRuntime) -> None:
    data = bright(tmp_path, 2, side=320, per_image=150)
    assert evaluate(runtime, data, show=False).ap == pytest.approx(1.0)
    assert (
        evaluate(runtime, data, EvaluateOptions(tiled=False), show=False).ap50 < 0.5
    )  # shrunk five times, cells are under two pixels


@pytest.mark.parametrize("task", ["detect", "semantic", "panoptic"])
def test_the_result_says_how_many_images_were_tiled(tmp_path: Path, runtime: OnnxRuntime, task: Task) -> None:
    data = bright(tmp_path, 2, side=320, per_image=150)
    small = replace(data, sizes=np.array([[64, 64], [320, 320]]))
    card = replace(runtime.card, task=task)
    told = "2 of 2 images are predicted in tiles of 64 x 64 pixels"
    overlap = "" if task == "semantic" else " that overlap by 13"
    assert tiles_note(card, data, EvaluateOptions()) == [f"{told}{overlap}, as `predict` does"]
    assert tiles_note(card, small, EvaluateOptions()) == [f"{told}{overlap}, as `predict` does".replace("2 of", "1 of")]
    assert tiles_note(card, data, EvaluateOptions(tiled=False)) == []
    unknown = replace(data, sizes=np.zeros_like(data.sizes))  # then the file's header tells that it is large
    assert tiles_note(card, unknown, EvaluateOptions()) == tiles_note(card, data, EvaluateOptions())
    if task == "detect":
        result = evaluate(runtime, data, show=False)
        assert result.notes == (f"{told}{overlap}, as `predict` does",)
        assert result.lines()[1] == str(result).splitlines()[1] == result.notes[0]
        assert result.to_dict()["notes"] == list(result.notes)
        shrunk = evaluate(runtime, data, EvaluateOptions(tiled=False), show=False)
        assert shrunk.notes == ()
        assert "notes" not in shrunk.to_dict()


@pytest.mark.parametrize("side", [64, 320])
def test_the_result_says_that_intensities_are_cut(tmp_path: Path, runtime: OnnxRuntime, side: int) -> None:
    data = bright(tmp_path, 2, side=side)
    for path in data.image_paths:
        write(path, np.full((side, side), 300, dtype=np.uint16))
    (note,) = [note for note in evaluate(runtime, data, show=False).notes if "16 bits" in note]
    assert note.startswith("0.png has 16 bits")


def test_notes_stand_in_every_kind_of_result() -> None:
    ids, categories = np.ones((4, 5), dtype=np.int32), (Category(1, "red"),)
    panoptic = [PanopticMap(ids, (Segment(1, 0),))]
    semantic = [SemanticMap(np.zeros((4, 5), dtype=np.uint8))]
    for result in (evaluate_panoptic(panoptic, panoptic, categories), evaluate_semantic(semantic, semantic, categories)):
        assert "notes" not in result.to_dict()
        noted = replace(result, notes=("tiled", "white"))
        assert noted.lines() == [result.lines()[0], "tiled", "white", *result.lines()[1:]]
        assert noted.to_dict() == {**result.to_dict(), "notes": ["tiled", "white"]}


def test_large_images_are_read_as_scans_within_the_limit(tmp_path: Path, runtime: OnnxRuntime) -> None:
    data = bright(tmp_path, 2, side=320, per_image=150)
    unknown = replace(data, sizes=np.zeros_like(data.sizes))  # then the file's header tells that it is large
    for dataset in (data, unknown):
        assert evaluate(runtime, dataset, EvaluateOptions(max_pixels=320 * 320), show=False).ap == pytest.approx(1.0)
        for tiled in (True, False):
            with pytest.raises(ImageError, match=r"0\.png: 320 x 320 pixels, more than the limit of 102,399"):
                evaluate(runtime, dataset, EvaluateOptions(max_pixels=320 * 320 - 1, tiled=tiled), show=False)


def test_crowded_images_are_not_cut(tmp_path: Path, runtime: OnnxRuntime) -> None:
    data = bright(tmp_path, 1, side=320, per_image=400)
    (found,) = predict_dataset(runtime, data, EvaluateOptions(tiled=True), show=False)
    assert len(found) >= 400
    (cut,) = predict_dataset(runtime, data, EvaluateOptions(tiled=True, most=10), show=False)
    assert len(cut) == 10


def test_classes_are_matched_by_name() -> None:
    card = tiny_card()
    assert match_classes(card, GREEN_FIRST).tolist() == [2, 0]
    assert match_classes(card, [Category(1, "red")]).tolist() == [0, -1]
    with pytest.raises(EvaluationError, match="no class of the model"):
        match_classes(card, [Category(1, "Red")])


def test_what_cannot_be_scored_is_refused(tmp_path: Path, runtime: OnnxRuntime) -> None:
    data = bright(tmp_path, 1)
    with pytest.raises(EvaluationError, match="no image"):
        evaluate(runtime, data.subset([]), show=False)
    with pytest.raises(EvaluationError, match="cannot be scored as objects"):
        score(data, [Instances.empty(scores=True)], "semantic")
    with pytest.raises(EvaluationError, match="no keypoints"):
        score(data, [Instances.empty(scores=True)], "keypoints")


@pytest.mark.parametrize("options", [{"batch": 0}, {"most": -1}, {"max_pixels": 0}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        EvaluateOptions(**options)


def test_the_scale_of_training(tmp_path: Path) -> None:
    data = bright(tmp_path, 3)
    assert training_scale(data) == {"image_size": [64, 64], "object_px": 8.0}
    assert training_scale(data.subset([])) == {}
    assert training_scale(data, windows=True) == {"full_resolution": True, "object_px": 8.0}


def test_thresholds_are_chosen_for_predictions_as_predict_makes_them(tmp_path: Path) -> None:
    boxes = np.array([[8.0 * i, 8, 8 * i + 8, 16] for i in range(0, 8, 2)])
    truth = Instances(labels=np.zeros(4, dtype=np.int64), boxes=boxes)
    data = Dataset.from_instances(["red"], [(tmp_path / "a.png", (64, 64), truth)], task="detect")
    # Three objects are found with 0.9, and once more, shifted to an IoU of 0.6, with 0.6; the fourth with 0.5. With the shifted
    # ones it would be best to stop above them; `predict` suppresses them, so that 0.5 finds everything and nothing else.
    twice = np.concatenate([boxes[:3], boxes[:3] + np.array([2.0, 0, 2, 0]), boxes[3:]])
    scores = np.array([0.9] * 3 + [0.6] * 3 + [0.5])
    found = Instances(labels=np.zeros(7, dtype=np.int64), boxes=twice, scores=scores)
    assert 0.6 < score(data, [found]).thresholds["red"] <= 0.9
    assert choose_thresholds(data, [found])["red"] <= 0.5
