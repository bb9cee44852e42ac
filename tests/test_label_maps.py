"""Class maps, panoptic maps and panoptic truth from outlines and from panoptic images, against the definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import draw, survey
from pelagia.core import image as core_image
from pelagia.core import masks as core_masks
from pelagia.core.types import Category, Instances, Int, MaskCrop
from pelagia.data import label_maps
from pelagia.data.annotation_builder import AnnotationBuilder
from pelagia.data.dataset import Dataset
from pelagia.data.panoptic_png import read_ids, write_ids
from pelagia.errors import DataError, FormatError

WIDTH, HEIGHT = 24, 18
KINDS = (Category(1, "diatom"), Category(2, "copepod"), Category(5, "water", is_thing=False), Category(6, "ice", is_thing=False))


def rectangles(numbers: Int, **flags: list[bool]) -> Instances:
    """Objects from rows of label, x, y, w, h."""
    crops = tuple(MaskCrop(x, y, np.ones((h, w), dtype=np.bool_)) for _, x, y, w, h in numbers.tolist())
    boxes = np.array([core_masks.bounds(crop) for crop in crops]).reshape(-1, 4)
    return Instances(numbers[:, 0], boxes, masks=crops, **{key: np.array(value) for key, value in flags.items()})


def data(truth: Instances, *classes: Category | str) -> Dataset:
    return Dataset.from_instances(classes or ("a", "b"), [("a.png", (WIDTH, HEIGHT), truth)])


def naive(truth: Instances, below: list[bool]) -> Int:
    """For every pixel the uppermost object, by the definition; -1 for none."""
    found = np.full((HEIGHT, WIDTH), -1)
    assert truth.masks is not None
    bitmaps = [core_masks.paste(crop, HEIGHT, WIDTH) for crop in truth.masks]
    for y in range(HEIGHT):
        for x in range(WIDTH):
            over = [k for k in range(len(truth)) if bitmaps[k][y, x]]
            if over:
                found[y, x] = min(over, key=lambda k: (below[k], bitmaps[k].sum(), -k))
    return found


objects = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 18), st.integers(0, 12), st.integers(1, 12), st.integers(1, 10), st.integers(0, 5)
    ),
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(objects)
def test_outlines_are_painted_by_the_rule(rows: list[tuple[int, ...]]) -> None:
    numbers = np.array([row[:5] for row in rows], dtype=np.int64).reshape(-1, 5)
    crowd, ignore = [row[5] == 1 for row in rows], [row[5] == 0 for row in rows]
    truth = rectangles(numbers, crowd=crowd, ignore=ignore)
    dataset = data(truth)
    top = naive(truth, [a or b for a, b in zip(crowd, ignore, strict=True)])

    semantic = dataset.with_task("semantic")
    assert semantic.class_names == ("a", "b", "background")
    expected = np.full((HEIGHT, WIDTH), 2)
    for k in range(len(truth)):
        expected[top == k] = 255 if crowd[k] or ignore[k] else truth.labels[k]
    np.testing.assert_array_equal(semantic.semantic(0).labels, expected)

    panoptic = dataset.with_task("panoptic")
    found = panoptic.panoptic(0)
    for k in range(len(truth)):
        assert (found.ids[top == k] == (0 if ignore[k] else k + 1)).all()
    by_id = {segment.id: segment for segment in found.segments}
    assert set(by_id) == set(np.unique(found.ids).tolist()) - {0}
    for k in set(by_id) - {len(truth) + 1}:
        assert (by_id[k].label, by_id[k].crowd) == (truth.labels[k - 1], crowd[k - 1])
    assert (found.ids[top == -1] == len(truth) + 1).all()
    assert not (top == -1).any() or by_id[len(truth) + 1].label == 2

    cut = panoptic.truth(0, masks=True)
    assert cut.masks is not None
    order = [*(k for k in range(len(truth)) if (top == k).any()), *([-1] if (top == -1).any() else [])]
    assert cut.labels.tolist() == [2 if k < 0 else truth.labels[k] for k in order]
    assert cut.ignore.tolist() == [k >= 0 and ignore[k] for k in order]
    for crop, bounds, k in zip(cut.masks, cut.box_array, order, strict=True):
        np.testing.assert_array_equal(core_masks.paste(crop, HEIGHT, WIDTH), top == k)
        np.testing.assert_array_equal(core_masks.bounds(crop), bounds)


def test_an_existing_background_is_taken_and_an_added_one_goes_again() -> None:
    truth = rectangles(np.array([[1, 2, 2, 6, 5]]))
    own = data(truth, "Background", "fish").with_task("semantic")
    assert own.class_names == ("Background", "fish")
    assert sorted(np.unique(own.semantic(0).labels).tolist()) == [0, 1]
    assert own.with_task("instance").class_names == ("Background", "fish")
    added = data(truth).with_task("semantic")
    assert added.categories[2] == Category(0, "background", is_thing=False)
    assert added.with_task("panoptic").class_names == ("a", "b", "background")
    assert added.with_task("instance").class_names == ("a", "b")
    assert added.with_task("instance").background is None
    zero = data(truth, Category(0, "a"), Category(7, "b")).with_task("semantic")
    assert zero.categories[2].id == 8


def test_outlines_of_stuff_need_no_background_in_panoptic_data() -> None:
    truth = rectangles(np.array([[2, 0, 0, 20, 9], [0, 3, 3, 4, 4], [2, 0, 9, 5, 5]]))
    dataset = data(truth, *KINDS).with_task("panoptic")
    found = dataset.panoptic(0)
    assert dataset.class_names == ("diatom", "copepod", "water", "ice")
    assert [(segment.id, segment.label) for segment in found.segments] == [(1, 2), (2, 0)]  # the two pieces of water are one
    assert found.ids[10, 2] == 1
    assert found.ids[17, 23] == 0


def test_objects_without_an_outline_have_no_class() -> None:
    truth = rectangles(np.array([[0, 2, 2, 6, 5], [1, 10, 2, 6, 5]]))
    dataset = data(truth)
    shapes = dataset.annotations.shapes
    assert shapes is not None
    without = replace(
        shapes, counts=shapes.counts[: shapes.count_starts[1]], count_starts=shapes.count_starts.clip(0, shapes.count_starts[1])
    )
    dataset = replace(dataset, annotations=replace(dataset.annotations, shapes=without))
    labels = dataset.with_task("semantic").semantic(0).labels
    assert (labels[2:7, 10:16] == 255).all()
    assert (labels[2:7, 2:8] == 0).all()
    assert (dataset.with_task("panoptic").panoptic(0).ids[2:7, 10:16] == 0).all()
    assert dataset.with_task("panoptic").truth(0, masks=True).ignore.tolist() == [False, True, False]


def test_tasks_that_the_labels_cannot_serve_are_refused(tmp_path: Path) -> None:
    boxes = survey(tmp_path, "boxes")
    for task in ("semantic", "panoptic", "instance"):
        with pytest.raises(DataError, match="outlines"):
            boxes.with_task(task)  # type: ignore[arg-type]
    classes = replace(boxes.subset([2]), mask_files=("a.png",), task="semantic")
    for task in ("keypoints", "panoptic"):
        with pytest.raises(DataError, match="no single objects"):
            classes.with_task(task)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("ground", "a", "b"), ("a", "Background", "b")])
def test_the_objects_of_label_images_are_their_components(tmp_path: Path, names: tuple[str, ...]) -> None:
    a, b, ground = names.index("a"), names.index("b"), 3 - names.index("a") - names.index("b")
    labels = np.full((HEIGHT, WIDTH), ground, dtype=np.uint8)
    labels[2:5, 3:9] = a  # one object of a, touching one of b
    labels[5:9, 3:6] = b
    labels[12:15, 12:15] = labels[15:18, 15:18] = a  # corners touch: two objects
    labels[0, 20:24] = 255
    core_image.write(tmp_path / "m.png", labels[..., None])
    empty = Instances.empty()
    drawn = Dataset.from_instances(names, [(tmp_path / "i.png", (WIDTH, HEIGHT), empty)], root=tmp_path, task="detect")
    maps = replace(drawn, task="semantic", mask_files=("m.png",))
    counted = maps.with_task("instance")
    assert counted.class_names == ("a", "b")
    truth = counted.truth(0, masks=True)
    assert truth.masks is not None
    found = {
        (int(label), bool(ignore), *map(int, box), mask.area)
        for label, ignore, box, mask in zip(truth.labels, truth.ignore, truth.box_array, truth.masks, strict=True)
    }
    wanted = {
        (0, False, 3, 2, 9, 5, 18),
        (1, False, 3, 5, 6, 9, 12),
        (0, False, 12, 12, 15, 15, 9),
        (0, False, 15, 15, 18, 18, 9),
    }
    assert found == {*wanted, (0, True, 20, 0, 24, 1, 4)}
    assert [finding.code for finding in counted.findings] == ["objects.components"]
    assert counted.findings[0].count == 4
    np.testing.assert_array_equal(maps.with_task("detect").annotations.boxes, counted.annotations.boxes)
    assert maps.with_task("oriented").annotations.oriented is not None


def panoptic_data(folder: Path) -> tuple[Dataset, Int]:
    """One image whose segments are: 70000 and 9 of things (9 a crowd), 300 and 301 of water."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    ids[0:6], ids[6:9] = 300, 301
    ids[2:5, 3:9], ids[4:8, 12:20] = 70000, 9
    write_ids(folder / "a.png", ids)
    truth = rectangles(
        np.array([[0, 3, 2, 6, 3], [2, 0, 0, 24, 6], [1, 12, 4, 8, 4], [2, 0, 6, 24, 3]]), crowd=[False, False, True, False]
    )
    draw(folder / "images" / "a.png", WIDTH, HEIGHT)
    plain = Dataset.from_instances(
        KINDS, [(folder / "images" / "a.png", (WIDTH, HEIGHT), truth.replace(masks=None))], root=folder
    )
    annotations = replace(plain.annotations, ids=np.array([70000, 300, 9, 301]))
    return replace(plain, task="panoptic", annotations=annotations, panoptic_files=("a.png",)), ids


def test_panoptic_images_give_every_kind_of_truth(tmp_path: Path) -> None:
    dataset, ids = panoptic_data(tmp_path)
    np.testing.assert_array_equal(read_ids(tmp_path / "a.png"), ids)
    found = dataset.panoptic(0)
    np.testing.assert_array_equal(found.ids, np.where(ids == 301, 300, ids))
    assert [(s.id, s.label, s.crowd) for s in found.segments] == [(70000, 0, False), (300, 2, False), (9, 1, True)]
    truth = dataset.truth(0, masks=True)
    assert truth.masks is not None
    for crop, number in zip(truth.masks, (70000, 300, 9, 301), strict=True):
        np.testing.assert_array_equal(core_masks.paste(crop, HEIGHT, WIDTH), ids == number)
    labels = dataset.with_task("semantic").semantic(0).labels
    np.testing.assert_array_equal(labels, np.select([ids == 70000, ids >= 300, ids == 9], [0, 2, 1], 255))
    assert len(dataset[0].truth) == 4

    things = dataset.with_task("instance")
    assert things.class_names == ("diatom", "copepod")
    assert "stuff.left_out" in [finding.code for finding in things.findings]
    objects = things[0].truth
    assert objects.labels.tolist() == [0, 1]
    assert objects.masks is not None
    np.testing.assert_array_equal(core_masks.paste(objects.masks[1], HEIGHT, WIDTH), ids == 9)
    assert things.with_task("detect").truth(0).masks is None
    oriented = dataset.with_task("oriented").truth(0).oriented
    assert oriented is not None
    np.testing.assert_allclose(oriented[0], [6, 3.5, 6, 3, 0], atol=1e-9)
    with pytest.raises(DataError, match=r"not listed: \[300, 301\]"):
        things.with_task("panoptic").panoptic(0)


def test_the_hash_covers_panoptic_images_and_values(tmp_path: Path) -> None:
    dataset, ids = panoptic_data(tmp_path)
    before = dataset.content_hash
    ids[0, 0] = 9
    write_ids(tmp_path / "a.png", ids)
    assert replace(dataset).content_hash != before
    assert (
        replace(dataset, mask_values=((0, 0), (255, 1))).content_hash
        != replace(dataset, mask_values=((0, 1), (255, 0))).content_hash
    )
    assert dataset.subset([0]).panoptic_files == ("a.png",)


def test_ids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="16,777,215"):
        write_ids(tmp_path / "b.png", np.full((2, 2), 1 << 24, dtype=np.int32))
    dataset, ids = panoptic_data(tmp_path)
    write_ids(tmp_path / "a.png", ids[:-1])
    with pytest.raises(DataError, match=r"24 x 17 pixels, its image 24 x 18"):
        dataset.panoptic(0)


def test_frequencies_count_pixels_or_objects(tmp_path: Path) -> None:
    dataset, ids = panoptic_data(tmp_path)
    np.testing.assert_allclose(dataset.class_frequencies, np.array([1, 0, 2, 0]) / 3)
    pixels = np.array([(ids == 70000).sum(), (ids == 9).sum(), (ids >= 300).sum() - (ids == 70000).sum(), 0])
    np.testing.assert_allclose(dataset.with_task("semantic").class_frequencies, pixels / pixels.sum())


def test_the_map_is_cut_into_the_masks_it_was_painted_from() -> None:
    numbers = np.array([[0, 0, 2], [3, 3, 0], [0, 3, 0]], dtype=np.int32)
    crops = label_maps.segment_crops(numbers, 3)
    assert [(crop.x, crop.y, crop.bitmap.shape) for crop in crops] == [(0, 0, (0, 0)), (2, 0, (1, 1)), (0, 1, (2, 2))]
    np.testing.assert_array_equal(label_maps.paint(crops, np.zeros(3, dtype=np.bool_), 3, 3), numbers)


def test_sizes_that_are_not_known_come_from_the_image(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", WIDTH, HEIGHT)
    square = np.array([[2.0, 2.0], [8.0, 2.0], [8.0, 7.0], [2.0, 7.0]])
    builder = AnnotationBuilder()
    builder.add(0, 1, (2, 2, 8, 7), rings=[square])
    truth = Instances.empty()
    plain = Dataset.from_instances(("a", "b"), [(tmp_path / "a.png", (0, 0), truth)], root=tmp_path)
    dataset = replace(plain, annotations=builder.build(1)).with_task("semantic")
    labels = dataset.semantic(0).labels
    assert labels.shape == (HEIGHT, WIDTH)
    assert (labels == 1).sum() == 30
    assert (labels == 2).sum() == WIDTH * HEIGHT - 30
