"""Twenty traps of annotation formats, as far as these formats meet them: one regression test each.

Trap 20 (integer rounding in DIVE) concerns no format that is read here; its rule, that coordinates are never rounded, is held by
trap 13.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets import coco, codes, draw, write_json
from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Category, Instances
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.data.formats.coco_write import coco_dict
from pelagia.data.formats.common import ReadOptions
from pelagia.data.formats.writing import WriteOptions, decimal
from pelagia.data.open import open_dataset
from pelagia.errors import ImageError
from test_format_dota import BOX, CORNERS
from test_format_dota import data as dota
from test_format_labels import data as labels
from test_format_labels import instances
from test_format_voc import box
from test_format_voc import data as voc
from test_format_yolo import data as yolo


def test_trap_01_voc_counts_pixels_from_one_and_includes_both_ends(tmp_path: Path) -> None:
    path = voc(tmp_path, box(1, 1, 40, 30), box(11, 6, 20, 10))
    np.testing.assert_array_equal(open_dataset(path).truth(0).box_array, [[0, 0, 40, 30], [10, 5, 20, 10]])
    edges = open_dataset(path, options=ReadOptions(voc_offset="0"))
    np.testing.assert_array_equal(edges.truth(0).box_array, [[1, 1, 40, 30], [11, 6, 20, 10]])
    zero = open_dataset(voc(tmp_path, box(0, 4, 40, 30)))
    np.testing.assert_array_equal(zero.truth(0).box_array, [[0, 4, 40, 30]])
    assert [f.severity for f in zero.findings if f.code == "voc.offset"] == ["warning"]


@pytest.mark.parametrize("crowd", [0, 1])
def test_trap_02_run_lengths_do_not_mean_crowd(tmp_path: Path, crowd: int) -> None:
    bitmap = np.zeros((30, 40), dtype=bool)
    bitmap[3:9, 4:11] = True
    runs = {
        "bbox": [4, 3, 7, 6],
        "iscrowd": crowd,
        "segmentation": {"size": [30, 40], "counts": core_masks.encode(bitmap).counts.tolist()},
    }
    polygon = {"bbox": [20, 10, 5, 5], "iscrowd": crowd, "segmentation": [[20, 10, 25, 10, 25, 15, 20, 15]]}
    truth = open_dataset(write_json(tmp_path / "x.json", coco(runs, polygon))).truth(0, masks=True)
    assert truth.crowd.tolist() == [bool(crowd)] * 2
    assert truth.masks is not None
    assert [mask.area for mask in truth.masks] == [42, 25]


def test_trap_03_parts_stay_one_object_and_holes_survive_a_bridge(tmp_path: Path) -> None:
    bitmap = np.zeros((30, 40), dtype=bool)
    bitmap[3:12, 4:15] = True
    bitmap[6:9, 7:12] = False  # a hole
    bitmap[20:25, 22:35] = True  # a second part
    draw(tmp_path / "a.png", 40, 30)
    counts = core_masks.encode(bitmap).counts.tolist()
    entry = {"bbox": [4, 3, 31, 22], "segmentation": {"size": [30, 40], "counts": counts}}
    dataset = open_dataset(write_json(tmp_path / "x.json", coco(entry)), task="instance")
    report = convert(dataset, tmp_path / "yolo", "yolo")
    assert "outline.parts" in [finding.code for finding in report.losses]
    again = open_dataset(tmp_path / "yolo", task="instance")
    truth = again.truth(0, masks=True)
    assert len(truth) == 1
    assert truth.masks is not None
    np.testing.assert_array_equal(core_masks.paste(truth.masks[0], 30, 40)[:, :16], bitmap[:, :16])
    # Along the bridge between the parts nothing is gained beyond the border rule of polygons.
    assert np.count_nonzero(core_masks.paste(truth.masks[0], 30, 40) != bitmap) <= 20


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_trap_04_fractions_refer_to_the_upright_size(tmp_path: Path, orientation: int) -> None:
    path = yolo(tmp_path, "0 0.25 0.5 0.5 1")
    draw(tmp_path / "images" / "train" / "a.jpg", 80, 40, orientation=orientation)
    (tmp_path / "images" / "train" / "a.png").unlink()
    dataset = open_dataset(path)
    width, height = (40, 80) if orientation in (6, 8) else (80, 40)
    assert dataset.sizes[0].tolist() == [width, height]
    np.testing.assert_allclose(dataset.truth(0).box_array, [[0, 0, width / 2, height]])


def test_trap_05_image_and_labels_share_the_upright_frame(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", 80, 40, orientation=6)
    images = [{"id": 5, "file_name": "a.jpg"}]
    dataset = open_dataset(write_json(tmp_path / "x.json", coco({"bbox": [1, 50, 20, 25]}, images=images)))
    assert dataset.sizes.tolist() == [[40, 80]]
    assert dataset[0].image.shape[:2] == (80, 40)
    assert len(dataset.truth(0)) == 1  # inside the upright frame, outside the stored one


def test_trap_06_sixteen_bits_survive(tmp_path: Path) -> None:
    pixels = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    images = [{"id": 5, "file_name": "a.tif", "width": 40, "height": 30}]
    sample = open_dataset(write_json(tmp_path / "x.json", coco({"bbox": [1, 1, 5, 5]}, images=images)))[0]
    assert sample.image.dtype == np.uint16
    np.testing.assert_array_equal(sample.image[..., 0], pixels)


def test_trap_07_duplicate_ids_sub_folders_and_case(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        draw(tmp_path / folder / "X.png", 40, 30)
    images = [
        {"id": 5, "file_name": "a/x.PNG", "width": 40, "height": 30},
        {"id": 6, "file_name": "b/X.png", "width": 40, "height": 30},
    ]
    entries = ({"bbox": [1, 1, 5, 5], "id": 3}, {"bbox": [2, 2, 5, 5], "id": 3}, {"bbox": [3, 3, 5, 5], "id": 4, "image_id": 6})
    dataset = open_dataset(write_json(tmp_path / "x.json", coco(*entries, images=images)))
    assert len(dataset.truth(0)) == 2
    assert len(np.unique(dataset.annotations.ids)) == 3
    assert "annotation.id" in codes(dataset)
    assert dataset.names == ("a/x.PNG", "b/X.png")
    assert dataset.image_paths[1] == tmp_path / "b" / "X.png"
    # Two images are called X.png, so which one `a/x.PNG` means cannot be guessed from the name alone.
    assert [f.code for f in dataset.findings if f.severity == "error"] == ["image.missing"]
    (tmp_path / "b" / "X.png").rename(tmp_path / "b" / "y.png")
    assert open_dataset(tmp_path / "x.json").image_paths[0] == tmp_path / "a" / "X.png"


def test_trap_08_category_ids_with_gaps_and_from_zero(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "a"}, {"id": 17, "name": "b"}, {"id": 4, "name": "c"}]
    entries = [{"bbox": [1, 1, 5, 5], "category_id": identity} for identity in (4, 0, 17)]
    draw(tmp_path / "a.png", 40, 30)
    dataset = open_dataset(write_json(tmp_path / "x.json", coco(*entries, categories=categories)))
    assert dataset.truth(0).labels.tolist() == [2, 0, 1]
    assert [entry["category_id"] for entry in coco_dict(dataset)["annotations"]] == [4, 0, 17]
    for format in ("coco", "yolo", "voc", "dota"):
        convert(dataset, tmp_path / format, format)
        again = open_dataset(tmp_path / format)
        assert [(c.id, c.name) for c in again.categories] == [(0, "a"), (17, "b"), (4, "c")]


def test_trap_09_difficult_and_ignore_are_kept_apart(tmp_path: Path) -> None:
    truth = open_dataset(voc(tmp_path, box(1, 1, 9, 9, difficult=1), box(1, 1, 9, 9), box(2, 2, 9, 9, "DontCare"))).truth(0)
    assert truth.difficult.tolist() == [True, False, False]
    assert truth.ignore.tolist() == [False, False, True]
    assert truth.crowd.tolist() == [False, False, False]


def test_trap_10_degenerate_crossing_and_outside_shapes(tmp_path: Path) -> None:
    bow = [[5, 5, 15, 15, 15, 5, 5, 15]]
    entries = (
        {"bbox": [5, 5, 0, 4]},
        {"bbox": [5, 5, 4, -4]},
        {"bbox": [100, 5, 4, 4]},
        {"bbox": [5, 5, 4, 4], "segmentation": [[5, 5, 9, 9]]},
        {"bbox": [5, 5, 10, 10], "segmentation": bow},
        {"bbox": [35, 25, 10, 10.5]},
    )
    dataset = open_dataset(write_json(tmp_path / "x.json", coco(*entries)))
    found = [(f.code, f.where.rsplit("#", 1)[-1]) for f in dataset.findings if f.code != "image.missing"]
    assert found == [("box.degenerate", "1"), ("box.degenerate", "2"), ("box.outside", "3"), ("polygon.degenerate", "4")]
    truth = dataset.truth(0, masks=True)
    np.testing.assert_array_equal(truth.box_array[-1], [35, 25, 45, 35.5])  # partly outside: as stated
    assert truth.masks is not None
    assert 40 <= truth.masks[1].area <= 60  # two triangles of 25 each
    assert truth.masks[2].area == 25  # only what is inside


def test_trap_11_area_missing_or_that_of_the_box(tmp_path: Path) -> None:
    triangle = {"bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 0, 10]]}
    derived = open_dataset(write_json(tmp_path / "x.json", coco(triangle)))
    assert derived.truth(0).areas == pytest.approx([50])
    stated = open_dataset(write_json(tmp_path / "x.json", coco({**triangle, "area": 100})))
    assert stated.truth(0).areas == pytest.approx([100])  # kept, so that scores by size agree with other tools
    assert "area.of_box" in codes(stated)
    assert open_dataset(write_json(tmp_path / "x.json", coco({"bbox": [0, 0, 4, 4]}))).truth(0).areas is None


def test_trap_12_iscrowd_may_be_missing_and_is_always_written(tmp_path: Path) -> None:
    dataset = open_dataset(write_json(tmp_path / "x.json", coco({"bbox": [0, 0, 4, 4]})))
    assert dataset.truth(0).crowd.tolist() == [False]
    assert {"iscrowd", "area", "bbox", "id", "image_id", "category_id"} <= coco_dict(dataset)["annotations"][0].keys()


@pytest.mark.parametrize("format", ["yolo", "voc", "dota", "coco"])
def test_trap_13_a_hundredth_of_a_thousandth_of_a_pixel_on_a_large_scan(tmp_path: Path, format: str) -> None:
    width, height = 24001, 13999
    scan = tmp_path / "scan.tif"
    tifffile.imwrite(scan, np.zeros((1, 1), dtype=np.uint8))
    boxes = np.array([[10001.123456, 77.654321, 10031.333333, 107.777777], [3, 4, 5, 6]])
    dataset = Dataset.from_instances(
        ["a"], [(scan, (width, height), Instances(np.zeros(2, dtype=np.int64), boxes))], root=tmp_path
    )
    convert(dataset, tmp_path / "out", format, options=WriteOptions(images="none"))
    text = "".join(path.read_text() for path in (tmp_path / "out").rglob("*.*") if path.suffix in (".txt", ".xml", ".json"))
    found = _numbers(format, text, width, height)
    np.testing.assert_allclose(found, boxes, atol=1e-5)


def _numbers(format: str, text: str, width: int, height: int) -> np.ndarray:
    """The boxes in a written file, by the definition of the format."""
    if format == "coco":
        start = text.index('"annotations":')
        entries = json.JSONDecoder().raw_decode(text[start + len('"annotations":') :])[0]
        boxes = np.array([entry["bbox"] for entry in entries])
        return np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    if format == "voc":
        keys = ("xmin", "ymin", "xmax", "ymax")
        columns = [[float(part.split("<")[0]) for part in text.split(f"<{key}>")[1:]] for key in keys]
        return np.array(columns).T - [1, 1, 0, 0]
    rows = [line.split() for line in text.splitlines() if len(line.split()) >= 5 and line[0].isdigit()]
    if format == "dota":
        points = np.array([[float(value) for value in row[:8]] for row in rows]).reshape(-1, 4, 2)
        return np.column_stack([points.min(axis=1), points.max(axis=1)])
    values = np.array([[float(value) for value in row[1:5]] for row in rows]) * [width, height, width, height]
    return np.column_stack([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2])


def test_trap_13_numbers_have_no_exponent() -> None:
    assert decimal(1.25e-7) == "0.000000125"
    assert decimal(3.0) == "3"
    assert abs(float(decimal(1 / 3)) - 1 / 3) < 1e-12


def test_trap_14_the_same_rotated_box_in_every_convention(tmp_path: Path) -> None:
    cx, cy, w, h, angle = BOX[0]
    expected = core_oriented.to_corners(BOX)
    draw(tmp_path / "a.png", 80, 60)
    images = [{"id": 5, "file_name": "a.png", "width": 80, "height": 60}]
    sources = {"rad-cw": angle, "rad-ccw": -angle, "deg-cw": np.degrees(angle), "deg-ccw": -np.degrees(angle)}
    found = []
    for convention, value in sources.items():
        path = write_json(tmp_path / f"{convention}.json", coco({"bbox": [cx, cy, w, h, float(value)]}, images=images))
        found.append(open_dataset(path, angle=convention))
    fields = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("cx", "cy", "w", "h", "angle"), BOX[0], strict=True))
    size = "<size><width>80</width><height>60</height></size>"
    item = f"<object><name>a</name><robndbox>{fields}</robndbox></object>"
    found.append(open_dataset(voc(tmp_path / "voc", item, size=size)))
    found.append(open_dataset(dota(tmp_path / "dota", f"{CORNERS} a 0")))
    corners = (expected[0] / [80, 60]).reshape(-1)
    found.append(
        open_dataset(yolo(tmp_path / "yolo", "0 " + " ".join(map(repr, corners.tolist())), size=(80, 60)), task="oriented")
    )
    for dataset in found:
        oriented = dataset.truth(0).oriented
        assert oriented is not None
        np.testing.assert_allclose(core_oriented.to_corners(oriented), expected, atol=1e-7)


@pytest.mark.parametrize("format", ["coco", "yolo", "voc", "dota"])
def test_trap_15_names_with_spaces_commas_unicode(tmp_path: Path, format: str) -> None:
    names = ("Chaetoceros sp., (chain)", "Ålgæ <&> 'mixed'", "海藻")
    path = draw(tmp_path / "src" / "bild ö 1.png", 40, 30)
    boxes = np.array([[1.0, 2, 9, 8], [10, 10, 20, 15], [3, 3, 6, 9]])
    items = [(path, (40, 30), Instances(np.array([0, 1, 2]), boxes))]
    convert(Dataset.from_instances(names, items, root=tmp_path / "src"), tmp_path / "out", format)
    again = open_dataset(tmp_path / "out")
    assert again.class_names == names
    assert again.names == ("bild ö 1.png",)
    assert again.truth(0).labels.tolist() == [0, 1, 2]


def test_trap_15_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = yolo(tmp_path / "yolo", "0 0.5 0.5 0.5 0.5")
    text = "names:\r\n  0: Ålg\r\ntrain: images/train\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "yolo" / "labels" / "train" / "a.txt").write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.5 0.5\r\n\r\n0 0.2 0.2 0.1 0.1\r\n")
    dataset = open_dataset(path)
    assert dataset.class_names == ("Ålg",)
    assert len(dataset.annotations) == 2
    file = tmp_path / "x.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco({"bbox": [1, 1, 2, 2]})).replace(", ", ",\r\n").encode())
    assert len(open_dataset(file).annotations) == 1
    rows = f"\ufeffgsd:1\r\n{CORNERS} ship 1\r\n"
    dota(tmp_path / "dota")
    (tmp_path / "dota" / "labelTxt" / "P0001.txt").write_bytes(rows.encode())
    assert open_dataset(tmp_path / "dota").truth(0).difficult.tolist() == [True]
    voc(tmp_path / "voc")
    xml = f"\ufeff<?xml version='1.0' encoding='utf-8'?>\r\n<annotation>\r\n{box(1, 1, 5, 5, 'Ålg')}\r\n</annotation>"
    (tmp_path / "voc" / "Annotations" / "a.xml").write_bytes(xml.encode())
    assert open_dataset(tmp_path / "voc").class_names == ("Ålg",)


@pytest.mark.parametrize("format", ["coco", "yolo", "voc", "dota", "labels"])
def test_trap_16_images_without_objects_survive(tmp_path: Path, format: str) -> None:
    paths = [draw(tmp_path / "src" / f"{name}.png", 40, 30) for name in "abc"]
    mask = core_masks.crop_from_bitmap(instances() == 700)
    one = Instances(np.array([0]), core_masks.bounds(mask)[None], masks=(mask,))
    empty = Instances(np.zeros(0, dtype=np.int64), np.zeros((0, 4)), masks=())
    items = [(path, (40, 30), truth) for path, truth in zip(paths, (empty, one, empty), strict=True)]
    convert(Dataset.from_instances(["a"], items, root=tmp_path / "src"), tmp_path / "out", format)
    again = open_dataset(tmp_path / "out")
    assert again.names == ("a.png", "b.png", "c.png")
    assert [len(again.truth(index)) for index in range(3)] == [0, 1, 0]


def test_trap_17_background_is_an_empty_or_missing_label_file(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    draw(tmp_path / "images" / "train" / "c.png", 80, 40)
    (tmp_path / "labels" / "train" / "c.txt").write_text("\n \n")
    dataset = open_dataset(path)
    assert len(dataset) == 3
    assert len(dataset.annotations) == 0
    assert [f.count for f in dataset.findings if f.code == "image.unlabelled"] == [1]


@pytest.mark.parametrize("format", ["yolo", "voc", "dota", "labels", "coco"])
def test_trap_18_equal_stems_do_not_share_labels(tmp_path: Path, format: str) -> None:
    names = ("a/x.png", "b/x.png", "b/x.bmp")
    mask = core_masks.crop_from_bitmap(instances() == 700)
    truth = Instances(np.array([0]), core_masks.bounds(mask)[None], masks=(mask,))
    empty = Instances(np.zeros(0, dtype=np.int64), np.zeros((0, 4)), masks=())
    items = [(draw(tmp_path / "src" / n, 40, 30), (40, 30), t) for n, t in zip(names, (truth, empty, empty), strict=True)]
    report = convert(Dataset.from_instances(["a"], items, root=tmp_path / "src"), tmp_path / "out", format)
    again = open_dataset(tmp_path / "out")
    assert dict(zip(again.names, [len(again.truth(i)) for i in range(3)], strict=True)) == (
        dict(zip(names, (1, 0, 0), strict=True)) if format == "coco" else {"a/x.png": 1, "b/x.png": 0, "b/x_bmp.bmp": 0}
    )
    assert ("image.same_stem" in [finding.code for finding in report.losses]) == (format != "coco")
    shared = yolo(tmp_path / "in", "0 0.5 0.5 0.1 0.1")
    draw(tmp_path / "in" / "images" / "train" / "a.bmp", 80, 40)
    assert "label.shared" in codes(open_dataset(shared))


def test_trap_19_pages_palette_alpha_and_jpeg_of_label_images(tmp_path: Path) -> None:
    pixels = instances()
    first = labels(tmp_path / "pages", pixels)
    (first / "instances" / "a.png").unlink()
    tifffile.imwrite(first / "instances" / "a.tif", np.stack([pixels, np.zeros_like(pixels)]), photometric="minisblack")
    dataset = open_dataset(first)
    assert len(dataset.annotations) == 2
    assert "label.pages" in codes(dataset)
    small = (pixels > 0).astype(np.uint8) * 3
    second = labels(tmp_path / "palette", small)
    palette = Image.fromarray(small)
    palette.putpalette([value for colour in range(256) for value in (255 - colour, 7, colour)])
    palette.save(second / "instances" / "a.png")
    assert open_dataset(second).annotations.ids.tolist() == [3]
    third = labels(tmp_path / "alpha", small)
    opaque = np.dstack([small, small, small, np.full_like(small, 255)])
    Image.fromarray(opaque).save(third / "instances" / "a.png")
    assert open_dataset(third).annotations.ids.tolist() == [3]
    opaque[5, 5, 1] = 77
    Image.fromarray(opaque).save(third / "instances" / "a.png")
    with pytest.raises(ImageError, match="colour"):
        open_dataset(third)
    fourth = labels(tmp_path / "jpeg", small)
    (fourth / "instances" / "a.png").unlink()
    Image.fromarray(small).save(fourth / "instances" / "a.jpg")
    with pytest.raises(ImageError, match="JPEG"):
        open_dataset(fourth)


def test_written_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    draw(tmp_path / "src" / "a.png", 40, 30)
    images = [{"id": 5, "file_name": "../src/a.png", "width": 40, "height": 30}]
    dataset = open_dataset(write_json(tmp_path / "labels" / "x.json", coco({"bbox": [1, 1, 5, 5]}, images=images)))
    assert dataset.names == ("src/a.png",)
    assert dataset[0].image.shape == (30, 40, 3)
    convert(dataset, tmp_path / "out" / "deep", "yolo")
    assert (tmp_path / "out" / "deep" / "images" / "src" / "a.png").is_file()
    assert Category(2, "diatom") in dataset.categories
