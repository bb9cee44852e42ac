"""Pascal VOC XML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import codes, draw
from pelagia.data.formats.common import ReadOptions
from pelagia.data.formats.voc import sniff
from pelagia.data.open import open_dataset
from pelagia.errors import FormatError, OptionError


def box(xmin: object, ymin: object, xmax: object, ymax: object, name: str = "diatom", difficult: object = 0) -> str:
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def data(folder: Path, *objects: str, stem: str = "a", size: str = "") -> Path:
    draw(folder / "JPEGImages" / f"{stem}.png", 40, 30)
    size = size or "<size><width>40</width><height>30</height><depth>3</depth></size>"
    path = folder / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{Path(stem).name}.png</filename>{size}{''.join(objects)}</annotation>")
    return folder


def test_classes_by_alphabet_and_difficult(tmp_path: Path) -> None:
    dataset = open_dataset(data(tmp_path, box(2, 3, 11, 12, "b", 1), box(1, 1, 5, 5, "a")))
    assert dataset.class_names == ("a", "b")
    truth = dataset.truth(0)
    assert truth.labels.tolist() == [1, 0]
    assert truth.difficult.tolist() == [True, False]
    np.testing.assert_array_equal(truth.box_array, [[1, 2, 11, 12], [0, 0, 5, 5]])
    stated = open_dataset(tmp_path, classes=["b", "a"])
    assert stated.truth(0).labels.tolist() == [0, 1]
    with pytest.raises(FormatError, match="not stated: a"):
        open_dataset(tmp_path, classes=["b"])


def test_splits_of_image_sets(tmp_path: Path) -> None:
    for stem in ("a", "sub/b", "c"):
        data(tmp_path, box(2, 3, 11, 12), stem=stem)
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("a\nsub/b\n")
    (sets / "val.txt").write_text("c\nmissing\n")
    (sets / "trainval.txt").write_text("a\nsub/b\nc\n")
    (sets / "diatom_train.txt").write_text("a  1\nc -1\n")
    dataset = open_dataset(tmp_path)
    assert dataset.names == ("a.png", "c.png", "sub/b.png")
    assert {name: rows.tolist() for name, rows in dataset.splits.items()} == {"train": [0, 2], "val": [1]}
    missing = [finding for finding in dataset.findings if finding.code == "split.image"]
    assert [finding.where for finding in missing] == [f"{sets / 'val.txt'}:2"]


def test_rotated_boxes(tmp_path: Path) -> None:
    fields = "<cx>20</cx><cy>15</cy><w>6</w><h>14</h><angle>0.25</angle>"
    item = f"<object><type>robndbox</type><name>fish</name><robndbox>{fields}</robndbox></object>"
    dataset = open_dataset(data(tmp_path, item))
    assert dataset.task == "oriented"
    np.testing.assert_allclose(dataset.truth(0).oriented, [[20, 15, 14, 6, 0.25 - np.pi / 2]])


def test_folder_of_xml_beside_images(tmp_path: Path) -> None:
    data(tmp_path, box(2, 3, 11, 12))
    (tmp_path / "Annotations").rename(tmp_path / "xml")
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    text = (tmp_path / "xml" / "a.xml").read_text()
    (tmp_path / "xml" / "a.xml").write_text(text.replace("a.png", "a"))  # the name without its ending
    dataset = open_dataset(tmp_path / "xml")
    assert dataset.names == ("a.png",)
    assert dataset[0].image.shape == (30, 40, 3)
    assert "image.missing" not in codes(dataset)


def test_size_from_the_image_where_it_is_not_stated(tmp_path: Path) -> None:
    dataset = open_dataset(data(tmp_path, box(2, 3, 11, 12), size="<size><width>0</width><height>0</height></size>"))
    assert dataset.sizes.tolist() == [[40, 30]]


def test_corrections_are_findings(tmp_path: Path) -> None:
    data(tmp_path, box(20, 3, 11, 12), box(5, 5, 4, 9), box(90, 90, 95, 95))
    draw(tmp_path / "JPEGImages" / "unlabelled.png", 9, 9)
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.truth(0).box_array[0], [10, 2, 20, 12])
    assert {"box.swapped", "box.outside", "image.unlabelled", "voc.offset"} <= set(codes(dataset))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object></annotation>", "not XML"),
        ("<other/>", "expected <annotation>"),
        ("<annotation><object><bndbox/></object></annotation>", "no name"),
        ("<annotation><object><name>a</name></object></annotation>", "neither"),
        (f"<annotation>{box('x', 1, 2, 3)}</annotation>", "xmin must be a number"),
        (f"<annotation>{box('inf', 1, 2, 3)}</annotation>", "finite"),
        (f"<annotation><size><width>w</width><height>3</height></size>{box(1, 1, 2, 3)}</annotation>", "width"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "refused"),
    ],
)
def test_malformed_xml_is_refused_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    data(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        open_dataset(tmp_path)
    assert "a.xml" in str(caught.value)


def test_unknown_offset(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="auto, 0 or 1"):
        open_dataset(data(tmp_path), options=ReadOptions(voc_offset="2"))


def test_empty_folder_and_sniff(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    assert sniff(tmp_path) == 0
    with pytest.raises(FormatError, match="no XML"):
        open_dataset(tmp_path, format="voc")
    assert sniff(data(tmp_path)) > 0.9
    assert sniff(tmp_path / "Annotations" / "a.xml") > 0.5
