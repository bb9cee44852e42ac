"""Text predictions: what is written line by line from known objects is read back, and every fault is named with its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import draw
from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Category, Instances, Task
from pelagia.data.dataset import Dataset
from pelagia.data.open import open_dataset
from pelagia.errors import EvaluationError, FormatError, ImageError
from pelagia.infer import text_predictions
from pelagia.infer.match_images import ImageStems, stem_of
from pelagia.infer.text_predictions import read_dota_predictions, read_yolo_predictions

WIDTH, HEIGHT = 80, 40
TRIANGLE = np.array([[10.0, 10], [40, 10], [40, 30]])


def truth(*names: str, task: Task = "detect", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Dataset:
    """Images without objects, and the classes red (id 7) and small blue (id 3)."""
    categories = [Category(7, "red"), Category(3, "small blue")]
    return Dataset.from_instances(categories, [(name, size, Instances.empty()) for name in names], task=task)


def save(folder: Path, file: str, *lines: str) -> Path:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("".join(line + "\n" for line in lines))
    return folder


def line(*values: float) -> str:
    return " ".join(f"{float(value):.15g}" for value in values)


def found(rng: np.random.Generator, count: int, task: Task) -> Instances:
    labels, scores = rng.integers(0, 2, count), rng.random(count)
    if task == "oriented":
        boxes = np.column_stack([rng.uniform(5, 35, (count, 2)), rng.uniform(8, 20, count), rng.uniform(2, 7, count)])
        boxes = np.column_stack([boxes, rng.uniform(-1.5, 1.5, count)])
        return Instances(labels=labels, oriented=boxes, scores=scores)
    low = rng.uniform(0, 20, (count, 2))
    return Instances(labels=labels, boxes=np.concatenate([low, low + rng.uniform(1, 20, (count, 2))], axis=1), scores=scores)


def yolo_line(item: Instances, row: int) -> str:
    assert item.scores is not None
    scale = np.array([WIDTH, HEIGHT])
    if item.oriented is not None:
        shape = (core_oriented.to_corners(item.oriented[row]) / scale).reshape(-1)
    else:
        low, high = item.box_array[row].reshape(2, 2)
        shape = np.concatenate([(low + high) / 2 / scale, (high - low) / scale])
    return line(item.labels[row], *shape, item.scores[row])


def same(got: Instances, wanted: Instances) -> None:
    assert got.labels.tolist() == wanted.labels.tolist()
    np.testing.assert_allclose(got.scores, wanted.scores)
    for name in ("boxes", "oriented"):
        one, two = getattr(got, name), getattr(wanted, name)
        assert (one is None) == (two is None)
        if one is not None:
            np.testing.assert_allclose(one, two, atol=1e-9)


@pytest.mark.parametrize("task", ["detect", "oriented"])
@pytest.mark.parametrize("place", ["", "labels/", "labels/dive 1/"])
def test_yolo_round_trip(tmp_path: Path, task: Task, place: str) -> None:
    rng = np.random.default_rng(5)
    wanted = {"b.1": found(rng, 6, task), "a": found(rng, 3, task)}
    for name, item in wanted.items():
        save(tmp_path, f"{place}{name}.txt", "", *(yolo_line(item, row) for row in range(len(item))))
    save(tmp_path, f"{place}d.txt")
    got, unknown = read_yolo_predictions(tmp_path, truth("dive 1/b.1.jpg", "c.png", "d.png", "a.tif", task=task))
    assert unknown == []
    same(got[0], wanted["b.1"])
    same(got[3], wanted["a"])
    assert len(got[1]) == len(got[2]) == 0
    assert got[1].scores is not None
    assert (got[1].oriented is not None) == (task == "oriented")


def test_yolo_outlines_boxes_among_them_and_objects_without_outline(tmp_path: Path) -> None:
    ring = (TRIANGLE / [WIDTH, HEIGHT]).reshape(-1)
    save(tmp_path, "a.txt", line(1, *ring, 0.75), line(0, 0.5, 0.5, 0.25, 0.25, 0.5), "1 0.25")
    (got,), _ = read_yolo_predictions(tmp_path, truth("a.png", task="instance"))
    assert got.labels.tolist() == [1, 0, 1]
    assert got.scores is not None
    assert got.scores.tolist() == [0.75, 0.5, 0.25]
    np.testing.assert_allclose(got.boxes, [[10, 10, 40, 30], [30, 15, 50, 25], [0, 0, 0, 0]])
    assert got.masks is not None
    np.testing.assert_array_equal(core_masks.paste(got.masks[0], HEIGHT, WIDTH), core_masks.rasterise([TRIANGLE], HEIGHT, WIDTH))
    assert core_masks.bounds(got.masks[1]).tolist() == [30, 15, 50, 25]
    assert [crop.area for crop in got.masks[1:]] == [200, 0]


def test_four_points_are_an_outline_or_corners_by_the_task(tmp_path: Path) -> None:
    corners = core_oriented.to_corners(np.array([40.0, 20, 20, 8, 0.5]))
    save(tmp_path, "a.txt", line(0, *(corners / [WIDTH, HEIGHT]).reshape(-1), 0.9))
    (turned,), _ = read_yolo_predictions(tmp_path, truth("a.png", task="oriented"))
    np.testing.assert_allclose(turned.oriented, [[40, 20, 20, 8, 0.5]])
    (outlined,), _ = read_yolo_predictions(tmp_path, truth("a.png", task="instance"))
    assert outlined.masks is not None
    np.testing.assert_allclose(outlined.boxes, [[*corners.min(axis=0), *corners.max(axis=0)]])


def test_a_long_oriented_box_may_reach_far_out(tmp_path: Path) -> None:
    wanted = np.array([[2.0, 2.0, 150.0, 4.0, 0.4]])
    corners = (core_oriented.to_corners(wanted)[0] / [WIDTH, HEIGHT]).reshape(-1)
    assert corners.min() < -0.5
    save(tmp_path, "a.txt", line(0, *corners, 0.9))
    (got,), _ = read_yolo_predictions(tmp_path, truth("a.png", task="oriented"))
    np.testing.assert_allclose(got.oriented, wanted, atol=1e-9)


def test_images_of_other_splits_are_listed(tmp_path: Path) -> None:
    for name in ("a", "x", "sub/y"):
        save(tmp_path, f"{name}.txt", "0 0.5 0.5 0.5 0.5 0.5")
    save(tmp_path, "classes.txt", "red")
    save(tmp_path, "._a.txt", "no text")
    (got,), unknown = read_yolo_predictions(tmp_path, truth("a.png"))
    assert len(got) == 1
    assert unknown == ["sub/y", "x"]


def test_class_numbers(tmp_path: Path) -> None:
    save(tmp_path, "a.txt", "0 0.5 0.5 0.1 0.1 0.5", "3 0.5 0.5 0.1 0.1 0.6", "1 0.5 0.5 0.1 0.1 0.7", "7 0.5 0.5 0.1 0.1 0.8")
    classes = [Category(3, "three"), Category(0, "zero"), Category(7, "seven")]
    data = replace(truth("a.png"), categories=tuple(classes), ignored=(Category(1, "DontCare"),), root=tmp_path, format="yolo")
    (got,), _ = read_yolo_predictions(tmp_path, data)
    assert got.labels.tolist() == [1, 0, 2]  # by id, and without the category to ignore
    assert got.scores is not None
    assert got.scores.tolist() == [0.5, 0.6, 0.8]
    with pytest.raises(EvaluationError, match=r"a\.txt:2: class 3 .* 0 three, 1 zero, 2 seven"):
        read_yolo_predictions(tmp_path, replace(data, format="coco"))
    (tmp_path / "categories.json").write_text("{}")  # the ids are those of another source then
    with pytest.raises(EvaluationError, match="class 3"):
        read_yolo_predictions(tmp_path, data)
    names = ["seven", "other", "x", "zero", "x", "x", "x", "three"]
    (got,), _ = read_yolo_predictions(tmp_path, data, classes=names)
    assert got.labels.tolist() == [2, 1, 0]
    with pytest.raises(EvaluationError, match="none of the classes x, y"):
        read_yolo_predictions(tmp_path, data, classes=["x", "y"])


def test_class_numbers_of_yolo_data_with_gaps(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "images" / "a.png", WIDTH, HEIGHT)
    save(tmp_path / "data", "labels/a.txt", "5 0.5 0.5 0.25 0.25")
    (tmp_path / "data" / "data.yaml").write_text("train: images\nnames: {2: red, 5: blue}\n")
    data = open_dataset(tmp_path / "data" / "data.yaml")
    save(tmp_path / "found", "a.txt", "5 0.5 0.5 0.25 0.25 0.9", "2 0.5 0.5 0.25 0.25 0.8")
    (got,), _ = read_yolo_predictions(tmp_path / "found", data)
    assert got.labels.tolist() == [1, 0]
    np.testing.assert_allclose(got.box_array[:1], data.truth(0).box_array)


def test_sizes_that_the_data_do_not_state_come_from_the_files(tmp_path: Path) -> None:
    save(tmp_path, "labels/a.txt", "0 0.5 0.5 1 0.5 0.5")
    data = replace(truth("a.png", size=(0, 0)), root=tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        read_yolo_predictions(tmp_path, data)
    draw(tmp_path / "a.png", 64, 32)
    (got,), _ = read_yolo_predictions(tmp_path, data)
    assert got.box_array.tolist() == [[0, 8, 64, 24]]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("detect", "0 0.5 0.5 0.1 0.1", r"6 numbers.*got 5; the score is missing.*save_conf=True"),
        ("oriented", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", r"10 numbers.*got 9; the score is missing"),
        ("instance", "0 0.1 0.1 0.2 0.1 0.2 0.2", r"8 or more.*got 7; the score is missing"),
        ("instance", "0 0.1 0.1 0.2 0.1", r"got 5; the score is missing"),
        ("instance", "0 0.1 0.1 0.2", r"got 4$"),
        ("detect", "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2 0.9", r"got 10$"),
        ("oriented", "0 0.5 0.5 0.1 0.1 0.9", r"got 6$"),
        ("detect", "0 0.5 0.5 0.1 x 0.9", "must be numbers"),
        ("detect", "0 0.5 0.5 0.1 nan 0.9", "finite"),
        ("detect", "0.5 0.5 0.5 0.1 0.1 0.9", "whole number, got 0.5"),
        ("detect", "0 0.9 0.5 0.5 0.1 12", "score, 0 to 1, but it is 12"),
        ("detect", "0 40 20 10 10 0.9", "40 is no fraction"),
        ("detect", "0 0.5 -0.6 0.1 0.1 0.9", "-0.6 is no fraction"),
        ("oriented", "0 10 10 20 10 20 20 10 20 0.9", "15 is no fraction"),
        ("instance", "0 0.1 0.1 0.2 0.1 0.2 20 0.9", "20 is no fraction"),
        ("detect", "0 0.5 0.5 -0.1 0.1 0.9", "negative"),
        ("instance", "0 0.5 0.5 0.1 -0.1 0.9", "negative"),
    ],
)
def test_a_malformed_line_of_yolo_is_named(tmp_path: Path, task: Task, row: str, message: str) -> None:
    good = {"detect": "0 0.5 0.5 0.1 0.1 0.9", "oriented": "0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2 0.9", "instance": "0 0.9"}[task]
    save(tmp_path, "a.txt", good)
    save(tmp_path, "b.txt", good, "", row, row)
    with pytest.raises(FormatError, match=message) as caught:
        read_yolo_predictions(tmp_path, truth("a.png", "b.png", task=task))
    assert str(caught.value).startswith(f"{tmp_path / 'b.txt'}:3: ")


def test_what_does_not_fit_the_truth(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no file of predictions"):
        read_yolo_predictions(tmp_path, truth("a.png"))
    with pytest.raises(FormatError, match="does not exist"):
        read_yolo_predictions(tmp_path / "nowhere", truth("a.png"))
    save(tmp_path, "a.txt", "5 0.5 0.5 0.1 0.1 0.9")
    with pytest.raises(EvaluationError, match=r"none of the 1 images .* such as a, .* such as b\.png"):
        read_yolo_predictions(tmp_path, truth("b.png"))
    with pytest.raises(EvaluationError, match=r"a\.txt:1: class 5 .* 0 red, 1 small blue"):
        read_yolo_predictions(tmp_path, truth("a.png"))
    with pytest.raises(EvaluationError, match="'a' is the name of several images"):
        read_yolo_predictions(tmp_path, truth("x/a.png", "y/a.png"))
    with pytest.raises(EvaluationError, match="several images"):
        read_yolo_predictions(tmp_path, truth("a.png", "a.jpg"))
    with pytest.raises(EvaluationError, match="semantic"):
        read_yolo_predictions(tmp_path, truth("a.png", task="semantic"))
    save(tmp_path, "x/a.txt", "0 0.5 0.5 0.1 0.1 0.9")
    with pytest.raises(EvaluationError, match=r"a\.txt and x/a\.txt could both be for a\.png"):
        read_yolo_predictions(tmp_path, truth("a.png"))


def test_images_of_one_name_are_told_apart_by_folders(tmp_path: Path) -> None:
    save(tmp_path, "labels/x/a.txt", "0 0.5 0.5 0.1 0.1 0.9")
    save(tmp_path, "labels/z/a.txt", "0 0.5 0.5 0.1 0.1 0.9")
    (first, second), unknown = read_yolo_predictions(tmp_path, truth("y/a.png", "x/a.png"))
    assert (len(first), len(second), unknown) == (0, 1, ["z/a"])


def test_names_without_ending() -> None:
    assert [stem_of(name) for name in ("a.png", "a/b.c.png", "a.b/c", ".x")] == ["a", "a/b.c", "a.b/c", ".x"]
    stems = ImageStems(["b.png", "a/b.png", "x/c.png", "y/c.png", "x/y/d.png"], "here")
    assert [stems.find(name) for name in ("b", "a/b", "x/c", "y/d", "d", "q/x/y/d", "z/c")] == [0, 1, 2, 4, 4, 4, None]
    with pytest.raises(EvaluationError, match="here: 'c'"):
        stems.find("c")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6) | st.integers(-9, 9), min_size=1, max_size=12), max_size=12))
def test_numbers_in_bulk_are_those_of_every_line(rows: list[list[float]]) -> None:
    words = [[repr(value) for value in row] for row in rows]
    bulk = text_predictions._in_bulk(words)
    assert bulk is not None
    np.testing.assert_array_equal(bulk, text_predictions._line_by_line(words, Path("a.txt"), range(1, len(rows) + 1)))
    np.testing.assert_array_equal(bulk, [value for row in rows for value in row])


def test_reading_in_bulk_is_reading_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    data = truth("a.png", "b.png", task="oriented")
    for name in "ab":
        item = found(rng, 20, "oriented")
        save(tmp_path, f"{name}.txt", *(yolo_line(item, row) for row in range(20)))
        dota(tmp_path, {name: item})
    fast = [read_yolo_predictions(tmp_path, data)[0], read_dota_predictions(tmp_path, data)[0]]
    monkeypatch.setattr(text_predictions, "_in_bulk", lambda words: None)
    slow = [read_yolo_predictions(tmp_path, data)[0], read_dota_predictions(tmp_path, data)[0]]
    for one, two in zip([*fast[0], *fast[1]], [*slow[0], *slow[1]], strict=True):
        assert len(one) == 20 or one.labels.tolist() == two.labels.tolist()
        np.testing.assert_array_equal(one.oriented, two.oriented)
        np.testing.assert_array_equal(one.scores, two.scores)


def test_commas_and_line_ends_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf0, 0.5, 0.5, 0.25, 0.5, 0.5\r\n1,0.5,0.5,0.25,0.5,1e-1\r\n")
    (got,), _ = read_yolo_predictions(tmp_path, truth("a.png"))
    assert got.box_array.tolist() == [[30, 10, 50, 30]] * 2
    assert got.labels.tolist() == [0, 1]


# DOTA


def dota(folder: Path, predictions: dict[str, Instances]) -> None:
    """Write the task files of both classes, the images in turn."""
    for label, name in enumerate(("red", "small_blue")):
        for image, item in predictions.items():
            assert item.scores is not None
            kind = "Task2" if item.oriented is None else "Task1"
            shapes = item.box_array if item.oriented is None else core_oriented.to_corners(item.oriented).reshape(-1, 8)
            with (folder / f"{kind}_{name}.txt").open("a") as stream:
                for row in np.flatnonzero(item.labels == label):
                    stream.write(f"{image} {line(item.scores[row], *shapes[row])}\n")


@pytest.mark.parametrize("task", ["detect", "oriented"])
def test_dota_round_trip(tmp_path: Path, task: Task) -> None:
    rng = np.random.default_rng(7)
    wanted = {name: found(rng, 8, task) for name in ("P2", "P 1", "other", "P3.png")}
    dota(tmp_path, wanted)
    dota(tmp_path, {"P2": found(rng, 3, "detect" if task == "oriented" else "oriented")})  # the files of the other task
    got, unknown = read_dota_predictions(tmp_path, truth("P0.png", "P 1.png", "P2.png", "x/P3.png", task=task))
    assert unknown == ["other"]
    assert len(got[0]) == 0
    for item, name in zip(got[1:], ("P 1", "P2", "P3.png"), strict=True):
        order = np.argsort(wanted[name].labels, kind="stable")  # class by class, as the files are read
        same(item, wanted[name].select(order))


def test_dota_files_without_a_line_are_no_predictions(tmp_path: Path) -> None:
    save(tmp_path, "Task2_red.txt")
    got, unknown = read_dota_predictions(tmp_path, truth("a.png", "b.png"))
    assert ([len(item) for item in got], unknown) == ([0, 0], [])


def test_a_category_to_ignore_is_left_out(tmp_path: Path) -> None:
    save(tmp_path, "Task2_Dont_Care.txt", "a 0.5 1 1 2 2")
    save(tmp_path, "Task2_red.txt", "a 0.75 1 1 2 2")
    data = replace(truth("a.png"), ignored=(Category(9, "Dont Care"),))
    (got,), _ = read_dota_predictions(tmp_path, data)
    assert got.scores is not None
    assert got.scores.tolist() == [0.75]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("oriented", "a 0.5 1 1 2 1 2 2 1", "a score and 8 coordinates, got 9 words"),
        ("detect", "a 0.5 1 1 2", "a score and 4 coordinates, got 5 words"),
        ("detect", "a 0.5 1 1 2 2 3", "more numbers"),
        ("detect", "a 0.5 1 1 2 x", "must be numbers"),
        ("detect", "a inf 1 1 2 2", "finite"),
        ("detect", "a 0.5 3 1 2 2", "x2, y2"),
    ],
)
def test_a_malformed_line_of_dota_is_named(tmp_path: Path, task: Task, row: str, message: str) -> None:
    good = "a 0.5 1 1 2 2" if task == "detect" else "a 0.5 1 1 2 1 2 2 1 2"
    file = f"Task{1 if task == 'oriented' else 2}_red.txt"
    save(tmp_path, file, good, "", row, good)
    with pytest.raises(FormatError, match=message) as caught:
        read_dota_predictions(tmp_path, truth("a.png", task=task))
    assert str(caught.value).startswith(f"{tmp_path / file}:3: ")


def test_what_does_not_fit_the_truth_in_dota(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        read_dota_predictions(tmp_path / "nowhere", truth("a.png"))
    with pytest.raises(EvaluationError, match=r"Task2_<class>\.txt, and there is none$"):
        read_dota_predictions(tmp_path, truth("a.png"))
    save(tmp_path, "Task2_red.txt", "a 0.5 1 1 2 2")
    with pytest.raises(EvaluationError, match="none; the Task2 files here hold upright ones"):
        read_dota_predictions(tmp_path, truth("a.png", task="oriented"))
    with pytest.raises(EvaluationError, match="none of the 1 images"):
        read_dota_predictions(tmp_path, truth("b.png"))
    with pytest.raises(EvaluationError, match="several images"):
        read_dota_predictions(tmp_path, truth("x/a.png", "y/a.png"))
    save(tmp_path, "Task2_green.txt")
    with pytest.raises(EvaluationError, match="'green' of this file is not in the truth, which has: red, small blue"):
        read_dota_predictions(tmp_path, truth("a.png"))
