"""Pictures: seven colours that the colour-blind tell apart, labels that never collide, objects where they belong."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab

from pelagia.core import draw_maps
from pelagia.core.draw import colour, display, draw_instances, draw_prediction
from pelagia.core.draw_text import legend, place, tab
from pelagia.core.palette import luminance, shade
from pelagia.core.types import Category, Float, Instances, MaskCrop, PanopticMap, Segment, SemanticMap
from pelagia.errors import OptionError

#: Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


def seen_as(rgb: tuple[int, int, int], kind: str) -> Any:
    value = np.array(rgb) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.clip(BLINDNESS[kind] @ linear, 0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


def scene(boxes: Any, **fields: Any) -> Instances:
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    fields.setdefault("labels", np.zeros(len(boxes), dtype=int))
    return Instances(boxes=boxes, **fields)


def random_scene(rng: np.random.Generator, count: int, width: int, height: int) -> Instances:
    centre, size = rng.uniform(0, 1, (count, 2)) * [width, height], rng.uniform(5, 0.2 * max(width, height), (count, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return scene(boxes, labels=rng.integers(0, 5, count), scores=rng.uniform(0, 1, count))


def placed_labels(found: Instances, names: list[str], size: tuple[int, int]) -> list[Any]:
    return list(place(found, found.box_array, names, size, True, [colour(int(label)) for label in found.labels]))


@pytest.mark.parametrize("kind", BLINDNESS)
def test_two_of_the_first_classes_differ_for_everyone(kind: str) -> None:
    seen = [seen_as(colour(label), kind) for label in range(21)]
    for first, limit in ((7, 10), (21, 3)):
        least = min(deltaE_ciede2000(a, b) for a, b in itertools.combinations(seen[:first], 2))
        assert least > limit  # 1 is just noticeable, side by side


def test_many_classes_have_colours_of_their_own() -> None:
    colours = [colour(label) for label in range(133)]  # as many as COCO has in panoptic data
    assert len(set(colours)) == 133
    assert all(0 <= value <= 255 for rgb in colours for value in rgb)


@pytest.mark.parametrize("label", range(40))
def test_text_stands_out_from_its_tab(label: int) -> None:
    picture = np.full((30, 100, 3), 7, np.uint8)
    tab(picture, "Mm", (0, 0, 100, 30), 20, colour(label))
    back = luminance(colour(label))
    ratios = [(max(back, ink) + 0.05) / (min(back, ink) + 0.05) for ink in map(luminance, map(tuple, picture.reshape(-1, 3)))]
    assert max(ratios) >= 4.5  # WCAG 2.1, level AA


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_any_image_becomes_an_rgb_picture_and_stays_untouched(dtype: Any, channels: int) -> None:
    shape = (50, 60, channels) if channels else (50, 60)
    image = np.random.default_rng(0).integers(0, 200, shape, dtype=dtype)
    before = image.copy()
    found = draw_instances(image, scene([[10, 10, 30, 30]]), ["a"])
    assert found.shape == (50, 60, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(draw_instances(image, scene([]), []), display(image))


def test_a_tall_16_bit_image_is_stretched_as_its_definition_says() -> None:
    image = np.random.default_rng(0).integers(0, 60_000, (300, 40, 3), dtype=np.uint16)
    low, high = np.percentile(image, [0.1, 99.9])
    expected = np.clip((image - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(display(image), expected)


def test_dark_16_bit_images_are_stretched() -> None:
    image = np.random.default_rng(0).integers(1000, 1400, (64, 64), dtype=np.uint16)
    shown = display(image)
    assert shown.min() == 0
    assert shown.max() == 255
    assert abs(shown.mean() - 127) < 5


def test_a_box_is_drawn_on_its_edge() -> None:
    picture = draw_instances(np.zeros((40, 50), np.uint8), scene([[10, 5, 30, 25]]), ["a"], labels=False)
    ink = (picture == colour(0)).all(axis=2)
    expected = np.zeros((40, 50), bool)
    expected[5:25, 10:30] = True
    expected[6:24, 11:29] = False
    np.testing.assert_array_equal(ink, expected)


def test_a_box_over_the_border_shows_all_sides() -> None:
    picture = draw_instances(np.zeros((40, 50), np.uint8), scene([[-10, -10, 500, 500]]), ["a"], labels=False)
    ink = (picture == colour(0)).all(axis=2)
    assert ink[0].all()
    assert ink[-1].all()
    assert ink[:, 0].all()
    assert ink[:, -1].all()
    assert not ink[1:-1, 1:-1].any()


def test_lines_grow_with_the_image_but_not_beyond_the_object() -> None:
    def width(side: int, box: int) -> int:
        picture = draw_instances(np.zeros((side, side), np.uint8), scene([[50, 50, 50 + box, 50 + box]]), ["a"], labels=False)
        return int(np.flatnonzero(picture[50 + box // 2, 50 : 50 + box // 2].any(axis=1)).max()) + 1

    assert width(200, 100) == 1
    assert width(1000, 500) == 2
    assert width(4000, 1000) == 9
    assert width(4000, 40) == 4


def test_oriented_boxes_are_drawn_turned() -> None:
    angle = np.pi / 4
    found = Instances(labels=np.array([1]), oriented=np.array([[50.0, 50.0, 60.0, 20.0, angle]]))
    picture = draw_instances(np.zeros((100, 100), np.uint8), found, ["a", "b"], labels=False)
    y, x = np.nonzero(picture.any(axis=2))
    along = (x + 0.5 - 50) * np.cos(angle) + (y + 0.5 - 50) * np.sin(angle)
    across = -(x + 0.5 - 50) * np.sin(angle) + (y + 0.5 - 50) * np.cos(angle)
    assert np.maximum(abs(along) / 30, abs(across) / 10).max() < 1.2
    assert ((abs(abs(along) - 30) < 1.6) | (abs(abs(across) - 10) < 1.6)).all()
    assert along.max() == pytest.approx(30, abs=1.5)


def test_masks_are_translucent_and_cut_at_the_border() -> None:
    mask = MaskCrop(-5, -5, np.ones((30, 30), bool))
    picture = draw_instances(np.full((50, 50), 100, np.uint8), scene([[-5, -5, 25, 25]], masks=(mask,)), ["a"], labels=False)
    expected = np.rint(0.65 * 100 + 0.35 * np.array(colour(0)))
    np.testing.assert_array_equal(picture[10, 10], expected)
    np.testing.assert_array_equal(picture[40, 40], [100, 100, 100])
    outside = MaskCrop(80, 80, np.ones((3, 3), bool))
    np.testing.assert_array_equal(
        draw_instances(np.zeros((50, 50), np.uint8), scene([[80, 80, 83, 83]], masks=(outside,)), ["a"], labels=False), 0
    )


def test_regions_to_ignore_are_grey_and_nameless() -> None:
    found = scene([[10, 10, 40, 40]], ignore=np.array([True]))
    picture = draw_instances(np.zeros((50, 50), np.uint8), found, ["a"])
    assert {tuple(value) for value in picture.reshape(-1, 3).tolist()} == {(0, 0, 0), (170, 170, 170)}


def test_keypoints_and_skeleton() -> None:
    points = np.array([[[10.5, 10.5, 2], [40.5, 10.5, 1], [25.5, 40.5, 0]]])
    found = scene([[2, 2, 48, 48]], keypoints=points)
    category = Category(1, "a", skeleton=((0, 1), (1, 2)))
    picture = draw_instances(np.zeros((50, 50), np.uint8), found, [category], labels=False)
    assert tuple(picture[10, 10]) == colour(0)
    assert np.abs(picture[10, 25].astype(int) - colour(0)).max() < 40  # antialiased
    assert tuple(picture[10, 40]) == (255, 255, 255)
    assert not picture[20:45, 5:45].any()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 150), width=st.integers(60, 900), height=st.integers(60, 900))
def test_labels_follow_their_rule(seed: int, count: int, width: int, height: int) -> None:
    found = random_scene(np.random.default_rng(seed), count, width, height)
    names = [f"taxon {i}" for i in range(5)]
    placed = placed_labels(found, names, (width, height))
    kept = len(np.unique(found.labels))
    assert kept <= len(placed) <= count
    assert {text.split(" ")[1] for text, *_ in placed} == {str(label) for label in np.unique(found.labels)}
    for position, (_, rect, size, _) in enumerate(placed):
        assert size >= 10
        if position < kept:  # the best of a class may be forced
            continue
        assert rect[0] >= 0
        assert rect[1] >= 0
        assert rect[2] <= width
        assert rect[3] <= height
        for _, other, *_ in placed[:position]:
            assert rect[2] <= other[0] or other[2] <= rect[0] or rect[3] <= other[1] or other[3] <= rect[1]


def test_a_crowded_scene_drops_labels_and_a_sparse_one_keeps_them() -> None:
    def shares(boxes: Float) -> float:
        found = scene(boxes, scores=np.full(len(boxes), 0.5))
        return len(placed_labels(found, ["Pseudo-nitzschia"], (1000, 1000))) / len(boxes)

    grid = np.array([[x, y] for x in range(20, 980, 30) for y in range(20, 980, 30)], dtype=float)
    assert shares(np.concatenate([grid, grid + 20], axis=1)) < 0.1
    sparse = np.array([[x, y] for x in range(100, 900, 300) for y in range(100, 900, 200)], dtype=float)
    assert shares(np.concatenate([sparse, sparse + 80], axis=1)) == 1


@pytest.mark.parametrize(
    ("side", "count", "least"),
    # Of a picture of 8,000 pixels that a screen shows 1,600 wide, 40 pixels are 8 and can be read.
    [(200, 3, 10), (900, 20, 18), (8000, 1, 160), (8000, 30, 160), (8000, 100, 80), (8000, 400, 40), (8000, 2000, 18)],
)
def test_text_is_as_high_as_there_is_room_for(side: int, count: int, least: int) -> None:
    rng = np.random.default_rng(count)
    across = math.ceil(math.sqrt(count))
    cells = np.stack(np.unravel_index(rng.permutation(across**2)[:count], (across, across)), axis=1)
    corners = (cells + rng.uniform(0.1, 0.9, (count, 2))) * (side / across)
    found = scene(np.concatenate([corners, corners + side / 200], axis=1), scores=rng.uniform(0.3, 1, count))
    placed = placed_labels(found, ["copepod"], (side, side))
    heights = np.array([size for _, _, size, _ in placed])
    assert heights.max() <= max(side / 50, 10)
    assert (heights >= least).sum() >= 0.8 * count
    if max(side / 50, 10) > least:  # crowded: all labels together cover a tenth
        areas = sum((right - left) * (bottom - top) for _, (left, top, right, bottom), size, _ in placed if size == heights.max())
        assert 0.07 < areas / side**2 < 0.11


def test_text_gives_way_only_where_it_finds_no_room() -> None:
    lone, clump = np.array([[6000.0, 6000.0]]), np.array([[x, y] for x in range(500, 900, 50) for y in range(500, 900, 50)])
    corners = np.concatenate([lone, clump])
    found = scene(np.concatenate([corners, corners + 40], axis=1), scores=np.linspace(0.9, 0.5, len(corners)))
    placed = placed_labels(found, ["copepod"], (8000, 8000))
    heights = [size for _, _, size, _ in placed]
    assert heights[0] > 100  # the lone one
    assert min(heights) < 20
    assert len(set(heights)) > 2


def test_a_label_at_the_upper_border_goes_inside_or_below() -> None:
    found = scene([[10, 0, 390, 200]])
    ((_, rect, _, _),) = placed_labels(found, ["a"], (400, 400))
    assert (rect[0], rect[1]) == (10, 0)


@pytest.mark.parametrize("box", [[5, 5, 5, 5], [20, 20, 10, 10], [-900, -900, -800, -800], [1e9, 1e9, 2e9, 2e9], [0, 0, 3, 3]])
def test_degenerate_boxes_do_no_harm(box: list[float]) -> None:
    for kind in ("boxes", "oriented"):
        found = scene([box], scores=np.array([0.3]))
        if kind == "oriented":
            x1, y1, x2, y2 = box
            oriented = np.array([[x1, y1, abs(x2 - x1), abs(y2 - y1), 0.3]])
            found = found.replace(boxes=None, oriented=oriented)
        assert draw_instances(np.zeros((8, 9), np.uint8), found, []).shape == (8, 9, 3)


@pytest.mark.parametrize("kind", BLINDNESS)
def test_neighbouring_classes_differ_for_everyone(kind: str) -> None:
    seen = [seen_as(colour(label), kind) for label in range(42)]
    assert min(deltaE_ciede2000(a, b) for a, b in itertools.pairwise(seen)) > 6


def test_shades_stay_with_their_class_and_differ_from_each_other() -> None:
    classes = [seen_as(colour(label), "none") for label in range(7)]
    for label in range(7):
        shades = [seen_as(shade(colour(label), step), "none") for step in range(7)]
        assert shade(colour(label), 0) == colour(label) == shade(colour(label), 7)
        for one in shades:
            distances = [deltaE_ciede2000(one, other) for other in classes]
            assert int(np.argmin(distances)) == label
        assert min(deltaE_ciede2000(a, b) for a, b in itertools.combinations(shades, 2)) > 2


def test_touching_masks_have_outlines_and_shades_of_their_own() -> None:
    masks = (MaskCrop(5, 5, np.ones((20, 20), bool)), MaskCrop(25, 5, np.ones((20, 20), bool)))
    found = scene([[5, 5, 25, 25], [25, 5, 45, 25]], masks=masks)
    picture = draw_instances(np.zeros((40, 50), np.uint8), found, ["a"], labels=False)
    assert tuple(picture[10, 24]) == colour(0)
    assert tuple(picture[10, 25]) == shade(colour(0), 1, 2.5) != colour(0)
    assert not picture[26:].any()
    assert not picture[:, 45:].any()


CLASSES = (Category(1, "background"), Category(2, "membrane"), Category(3, "cell"))


def test_a_class_map_is_blended_and_outlined() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 20:40], labels[:, 40:] = 1, 2
    labels[:5] = 255
    image = np.full((40, 60), 100, np.uint8)
    picture = draw_prediction(image, SemanticMap(labels), CLASSES, legend=False)
    assert picture.shape == (40, 60, 3)
    np.testing.assert_array_equal(picture[:5], 100)  # no class
    np.testing.assert_array_equal(picture[:, :20], 100)  # background
    for column, label in ((30, 1), (50, 2)):
        np.testing.assert_array_equal(picture[20, column], np.rint(0.55 * 100 + 0.45 * np.array(colour(label))))
    assert tuple(picture[20, 20]) == tuple(picture[20, 39]) == colour(1)
    assert tuple(picture[20, 40]) == tuple(picture[5, 50]) == colour(2)
    np.testing.assert_array_equal(image, 100)


def test_bands_of_a_tall_map_join_without_a_seam() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.repeat(rng.integers(0, 3, (70, 4)), 20, axis=0), 20, axis=1).astype(np.uint8)
    image = rng.integers(0, 255, labels.shape, dtype=np.uint8)
    tall = draw_prediction(image, SemanticMap(labels), CLASSES, legend=False)
    for first in (128, 500, 512, 1020):  # where bands of 128 rows meet; the lines of a smaller picture are as wide
        part = draw_prediction(
            image[first - 20 : first + 40], SemanticMap(labels[first - 20 : first + 40]), CLASSES, legend=False
        )
        np.testing.assert_array_equal(tall[first - 10 : first + 30], part[10:50])


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 40), st.integers(2, 8))
@settings(deadline=None, max_examples=40)
def test_lines_are_as_wide_as_both_sides_allow(seed: int, height: int, width: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, count, (height, width)).repeat(3, axis=0).repeat(2, axis=1)[:height, :width].astype(np.uint8)
    widths = rng.choice([1, 2, 4], count).astype(np.uint8)
    rows = slice(int(rng.integers(height)), height)
    expected = np.zeros(index.shape, np.bool_)
    for (y, x), (v, u) in itertools.product(np.ndindex(index.shape), itertools.product(range(-4, 5), repeat=2)):
        if 0 <= y + v < height and 0 <= x + u < width and index[y, x] != index[y + v, x + u]:
            expected[y, x] |= max(abs(v), abs(u)) <= min(widths[index[y, x]], widths[index[y + v, x + u]])
    np.testing.assert_array_equal(draw_maps._edges(index, rows, widths), expected[rows])


def test_lines_hide_no_organism_of_a_large_scan() -> None:
    """Lines are 3 pixels wide here, but 1 beside organisms of 20 pixels; and what lies between two of them is seen."""
    ids = np.ones((2600, 2600), np.int32)
    ids[:, :1000] = 2
    ids[500:520, 1500:1520], ids[500:520, 1523:1543] = 3, 4
    classes = (Category(1, "water", is_thing=False), Category(2, "sand", is_thing=False), Category(3, "copepod"))
    found = PanopticMap(ids, (Segment(1, 0), Segment(2, 1), Segment(3, 2), Segment(4, 2)))
    picture = draw_prediction(np.full(ids.shape, 50, np.uint8), found, classes, labels=False, legend=False)
    lines = [(picture == own).all(axis=2) for own in (colour(0), colour(1), colour(2), shade(colour(2), 1))]
    assert lines[0][100, 990:1010].tolist() == [False] * 10 + [True] * 3 + [False] * 7
    assert lines[1][100, 990:1010].tolist() == [False] * 7 + [True] * 3 + [False] * 10
    assert lines[2][510, 1495:1525].tolist() == [False] * 5 + [True] + [False] * 18 + [True] + [False] * 5
    assert lines[3][510, 1520:1545].tolist() == [False] * 3 + [True] + [False] * 18 + [True] + [False] * 2
    assert lines[0][510, 1495:1548].tolist() == [k in (4, 25, 27, 48) for k in range(53)]


@pytest.mark.parametrize("side", [60, 200, 640, 2000])
def test_the_legend_names_the_classes_below(side: int) -> None:
    labels = np.zeros((side, side), np.uint8)
    labels[: side // 2] = 2
    picture = draw_prediction(np.zeros((side, side), np.uint8), SemanticMap(labels), CLASSES)
    assert picture.shape[1] == side
    strip = picture[side:]
    assert 10 <= len(strip) <= max(0.4 * side, 40) + 10
    assert (strip == colour(2)).all(axis=2).sum() >= 60  # the patch of the class
    assert not (strip == colour(1)).all(axis=2).any()  # which does not occur
    assert (strip.max(axis=2) < 60).sum() > 30  # text


@pytest.mark.parametrize("side", [200, 640, 2000, 8000, 20_000])
def test_the_legend_can_be_read_on_a_screen(side: int) -> None:
    strip = legend([(colour(1), "membrane 12%"), (colour(2), "cell 88%")], side, side)
    rows = np.flatnonzero((strip.max(axis=2) < 60).any(axis=1))
    # Of a screen that shows the picture 1,600 pixels wide, letters are at least 16 high.
    assert rows[-1] - rows[0] + 1 >= max(side / 100, 7)
    assert len(strip) < side / 5


def test_the_legend_does_not_tell_few_pixels_as_none() -> None:
    shares = [draw_maps._share(value) for value in (0.0, 0.0001, 0.0006, 0.012, 0.5)]
    assert shares == ["0.0%", "<0.1%", "0.1%", "1.2%", "50%"]


def test_a_long_legend_tells_what_it_leaves_out() -> None:
    many = [Category(k, f"a rather long name of taxon {k}") for k in range(60)]
    labels = np.repeat(np.arange(60, dtype=np.uint8), 4)[None].repeat(120, axis=0)
    picture = draw_prediction(np.zeros(labels.shape, np.uint8), SemanticMap(labels), many)
    assert 120 < len(picture) <= 120 * 1.4 + 10


def panoptic() -> tuple[PanopticMap, tuple[Category, ...]]:
    ids = np.full((80, 120), 9, np.int32)
    ids[10:40, 10:50], ids[10:40, 50:90], ids[70:] = 4, 7, 0
    classes = (Category(1, "water", is_thing=False), Category(2, "medusa"))
    return PanopticMap(ids, (Segment(9, 0), Segment(4, 1, 0.9), Segment(7, 1, 0.8), Segment(3, 1, 0.4))), classes


def test_a_panoptic_map_has_flat_stuff_and_a_shade_for_each_thing() -> None:
    found, classes = panoptic()
    image = np.full(found.ids.shape, 50, np.uint8)
    picture = draw_prediction(image, found, classes, labels=False, legend=False)
    np.testing.assert_array_equal(picture[70:], 50)  # void
    np.testing.assert_array_equal(picture[60, 20], np.rint(0.55 * 50 + 0.45 * np.array(colour(0))))
    np.testing.assert_array_equal(picture[25, 30], np.rint(0.45 * 50 + 0.55 * np.array(colour(1))))
    np.testing.assert_array_equal(picture[25, 70], np.rint(0.45 * 50 + 0.55 * np.array(shade(colour(1), 1))))
    assert tuple(picture[25, 49]) == colour(1)
    assert tuple(picture[25, 50]) == shade(colour(1), 1)


def test_things_are_labelled_inside_and_counted_below() -> None:
    found, classes = panoptic()
    found = PanopticMap(found.ids.repeat(4, axis=0).repeat(4, axis=1), found.segments)
    image = np.full(found.ids.shape, 50, np.uint8)
    plain = draw_prediction(image, found, classes, labels=False)
    named = draw_prediction(image, found, classes)
    assert plain.shape == named.shape
    changed = np.argwhere((plain != named).any(axis=2))
    assert (found.ids[tuple(changed.T)] % 9 > 0).all()  # on the things alone: labels fit inside
    assert {4, 7} == set(found.ids[tuple(changed.T)].tolist())


def test_the_legend_counts_things_that_a_shrunk_map_has_lost() -> None:
    found, classes = panoptic()
    _, pixels = draw_maps._segment_index(found)
    assert pixels.tolist()[3] == 0
    assert [text for _, text in draw_maps._panoptic_entries(found, classes, pixels)] == ["water 62%", "medusa 3"]


@pytest.mark.parametrize("kind", ["objects", "classes", "segments"])
def test_a_picture_may_be_drawn_where_the_image_is(kind: str) -> None:
    segments, classes = panoptic()
    found: dict[str, Any] = {
        "objects": scene([[10, 10, 50, 60]], scores=[0.5]),
        "classes": SemanticMap((segments.ids == 4).astype(np.uint8)),
        "segments": segments,
    }
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    before = image.copy()
    expected = draw_prediction(image, found[kind], classes)
    np.testing.assert_array_equal(image, before)
    fixed = image.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(draw_prediction(fixed, found[kind], classes, overwrite=True), expected)
    np.testing.assert_array_equal(fixed, before)
    np.testing.assert_array_equal(draw_prediction(image, found[kind], classes, overwrite=True), expected)
    np.testing.assert_array_equal(image, expected[:80])


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(OptionError, match="60 x 40"):
        draw_prediction(np.zeros((40, 50), np.uint8), SemanticMap(np.zeros((40, 60), np.uint8)), CLASSES)


def test_predicted_points_are_drawn_by_their_score() -> None:
    points = np.array([[[10.5, 10.5, 0.9], [40.5, 10.5, 0.3], [25.5, 40.5, 0.1]]])
    found = scene([[2, 2, 48, 48]], keypoints=points, scores=np.array([0.9]))
    category = Category(1, "a", skeleton=((0, 1), (1, 2)))
    picture = draw_prediction(np.zeros((50, 50), np.uint8), found, [category], labels=False)
    assert tuple(picture[10, 10]) == colour(0)
    assert tuple(picture[10, 40]) == (255, 255, 255)
    assert not picture[20:45, 5:45].any()
