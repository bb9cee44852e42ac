"""The data set: flat arrays against the objects that went in."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import CATEGORIES, draw, survey
from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Category, Instances, MaskCrop
from pelagia.data.annotations import ranges
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding, summarise
from pelagia.errors import DataError, OptionError


def boxes_of(count: int, seed: int = 0) -> Instances:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 50, (count, 2))
    return Instances(labels=rng.integers(0, 2, count), boxes=np.concatenate([low, low + 5], axis=1))


@given(counts=st.lists(st.integers(0, 4), min_size=0, max_size=8), data=st.data())
@settings(max_examples=40, deadline=None)
def test_subset_keeps_each_image_with_its_objects(counts: list[int], data: st.DataObject) -> None:
    truths = [boxes_of(count, seed) for seed, count in enumerate(counts)]
    items = [(Path(f"/x/{k}.png"), (60, 60), truth) for k, truth in enumerate(truths)]
    dataset = Dataset.from_instances(["a", "b"], items)
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=6)) if counts else []
    part = dataset.subset(chosen)
    assert len(part) == len(chosen)
    assert len(part.annotations) == sum(counts[i] for i in chosen)
    for position, index in enumerate(chosen):
        np.testing.assert_array_equal(part.truth(position).box_array, truths[index].box_array)
        np.testing.assert_array_equal(part.truth(position).labels, truths[index].labels)
        assert part.names[position] == dataset.names[index]


def test_ranges_is_the_concatenation_of_aranges() -> None:
    starts = np.array([0, 3, 3, 5])
    np.testing.assert_array_equal(ranges(starts, np.array([2, 0, 1, 2])), [3, 4, 0, 1, 2, 3, 4])
    assert len(ranges(starts, np.array([], dtype=np.int64))) == 0


def test_truth_is_fresh_each_time() -> None:
    dataset = Dataset.from_instances(["a", "b"], [("x.png", (60, 60), boxes_of(3))])
    first = dataset.truth(0)
    before = first.box_array.copy()
    first.box_array[:] = -1
    first.labels[:] = 1
    np.testing.assert_array_equal(dataset.truth(0).box_array, before)
    with pytest.raises(ValueError, match="read-only"):
        dataset.annotations.boxes[0, 0] = 1.0


def test_flags_areas_and_keypoints_survive() -> None:
    truth = boxes_of(3).replace(
        crowd=np.array([True, False, False]),
        difficult=np.array([False, True, False]),
        ignore=np.array([False, False, True]),
        areas=np.array([1.5, 2.5, 3.5]),
        keypoints=np.arange(18.0).reshape(3, 2, 3),
    )
    found = Dataset.from_instances(["a", "b"], [("x.png", (60, 60), truth)]).truth(0)
    for name in ("crowd", "difficult", "ignore", "areas", "keypoints"):
        np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))


def test_masks_come_back_to_the_pixel(tmp_path: Path) -> None:
    dataset = survey(tmp_path, "masks")
    assert dataset.task == "instance"
    sample = dataset[0]
    assert sample.truth.masks is not None
    assert dataset.truth(0).masks is None
    for crop, box in zip(sample.truth.masks, sample.truth.box_array, strict=True):
        np.testing.assert_array_equal(core_masks.bounds(crop), box)


def test_object_without_outline_has_its_box_as_mask() -> None:
    masked = Instances(np.array([0]), np.array([[2.0, 2, 4, 4]]), masks=(MaskCrop(2, 2, np.ones((2, 2), dtype=bool)),))
    plain = Instances(np.array([0]), np.array([[10.0, 5, 14, 8]]))
    dataset = Dataset.from_instances(["a"], [("x.png", (20, 20), masked), ("y.png", (20, 20), plain)])
    masks = dataset.truth(1, masks=True).masks
    assert masks is not None
    assert masks[0].area == 12
    np.testing.assert_array_equal(core_masks.bounds(masks[0]), [10, 5, 14, 8])


def test_index_gives_image_and_truth(tmp_path: Path) -> None:
    dataset = survey(tmp_path, "boxes")
    sample = dataset[1]
    assert sample.image.shape == (50, 65, 3)
    assert sample.name == "cruise 1/bild_ö1.png"
    assert sample.index == 1
    assert dataset[-3].name == sample.name
    assert len(list(dataset)) == 4
    with pytest.raises(IndexError):
        dataset[4]


def test_splits_follow_into_subsets(tmp_path: Path) -> None:
    dataset = survey(tmp_path, "boxes")
    assert dataset.split("train").names == (dataset.names[0], dataset.names[2])
    assert dataset.split("valid").names == (dataset.names[1],)
    part = dataset.subset([2, 1, 0])
    np.testing.assert_array_equal(part.splits["train"], [2, 0])
    assert part.split("train").names == (dataset.names[0], dataset.names[2])
    with pytest.raises(OptionError, match="train, val"):
        dataset.split("test")
    with pytest.raises(OptionError, match="0 to 3"):
        dataset.subset([4])


def test_boolean_subset() -> None:
    items = [(f"{k}.png", (9, 9), boxes_of(1, k)) for k in range(3)]
    assert Dataset.from_instances(["a", "b"], items).subset(np.array([False, True, True])).names == ("1.png", "2.png")


def test_pickle_is_small_and_complete(tmp_path: Path) -> None:
    truth = boxes_of(20)
    items = [(tmp_path / f"image_{k:06}.png", (60, 60), truth) for k in range(500)]
    dataset = Dataset.from_instances(["a", "b"], items, root=tmp_path)
    data = pickle.dumps(dataset)
    assert len(data) < 120 * 20 * 500  # bytes per object, names and sizes included
    copy = pickle.loads(data)  # noqa: S301  the bytes are our own
    assert copy.content_hash == dataset.content_hash
    assert copy.image_paths[3] == tmp_path / "image_000003.png"


@pytest.mark.parametrize("change", ["box", "label", "name", "class", "size", "flag"])
def test_content_hash_sees_every_change(change: str) -> None:
    def build(which: str = "") -> Dataset:
        truth = boxes_of(3)
        if which == "box":
            truth.box_array[0, 0] += 1e-9
        if which == "label":
            truth.labels[0] = 1 - truth.labels[0]
        if which == "flag":
            truth.crowd[1] = True
        categories = ["a", "c" if which == "class" else "b"]
        name, size = ("y.png" if which == "name" else "x.png"), ((61, 60) if which == "size" else (60, 60))
        return Dataset.from_instances(categories, [(name, size, truth)])

    assert build().content_hash == build().content_hash
    assert build().content_hash != build(change).content_hash


def test_oriented_from_outlines_is_the_least_rectangle(tmp_path: Path) -> None:
    oriented = np.array([[120.0, 100.0, 80.0, 32.0, 0.4]])
    ring = core_oriented.to_corners(oriented)[0]
    bitmap = core_masks.crop_from_polygon([ring], 200, 240)
    truth = Instances(np.array([0]), core_masks.bounds(bitmap)[None], masks=(bitmap,))
    found = Dataset.from_instances(["a"], [("x.png", (240, 200), truth)]).with_task("oriented").truth(0).oriented
    assert found is not None
    assert core_oriented.iou(found, oriented)[0, 0] > 0.93


def test_oriented_from_boxes_alone_says_so() -> None:
    dataset = Dataset.from_instances(["a", "b"], [("x.png", (60, 60), boxes_of(2))]).with_task("oriented")
    assert [f.code for f in dataset.findings] == ["oriented.upright"]
    oriented = dataset.truth(0).oriented
    assert oriented is not None
    np.testing.assert_allclose(core_oriented.bounds(oriented), dataset.truth(0).box_array)


def test_task_that_labels_cannot_serve() -> None:
    dataset = Dataset.from_instances(["a", "b"], [("x.png", (60, 60), boxes_of(2))])
    for task in ("instance", "keypoints", "semantic"):
        with pytest.raises(DataError):
            dataset.with_task(task)  # type: ignore[arg-type]


def test_no_object_at_all() -> None:
    empty = Dataset.from_instances(["a"], [("x.png", (9, 9), Instances.empty())])
    assert len(empty.truth(0)) == 0
    oriented = empty.with_task("oriented").truth(0).oriented
    assert oriented is not None
    assert oriented.shape == (0, 5)
    assert len(Dataset.from_instances([], [])) == 0


def test_label_without_class_is_refused() -> None:
    with pytest.raises(DataError, match="0 to 0"):
        Dataset.from_instances(["a"], [("x.png", (60, 60), Instances(np.array([1]), np.zeros((1, 4))))])


def test_categories_keep_their_ids(tmp_path: Path) -> None:
    dataset = Dataset.from_instances(CATEGORIES, [(draw(tmp_path / "x.png", 9, 9), (9, 9), Instances.empty())])
    assert [category.id for category in dataset.categories] == [7, 3, 21]
    assert Dataset.from_instances(["u", "v"], []).categories == (Category(1, "u"), Category(2, "v"))


def test_findings_are_summed_by_kind() -> None:
    found = [Finding("info", "b", "x"), Finding("error", "a", "first", "p", 2), Finding("error", "a", "second", "q")]
    assert summarise(found) == [Finding("error", "a", "first", "p", 3), Finding("info", "b", "x")]
    assert str(found[1]) == "error: p: first [a] (2 times)"
