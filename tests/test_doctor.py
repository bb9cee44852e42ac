"""The doctor finds each fault that is put into a healthy data set, and nothing in the healthy one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pelagia.core.image import read, write
from pelagia.core.types import Category, Instances
from pelagia.data.dataset import Dataset
from pelagia.data.doctor import Report, Table, examine
from pelagia.data.findings import Finding
from pelagia.data.fingerprint import Fingerprint, _close_pairs, fingerprint, near_groups
from pelagia.errors import OptionError


def picture(seed: int, height: int = 96, width: int = 128, dtype: Any = np.uint8) -> NDArray[Any]:
    """Blobs on a background that all pictures share."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = 120 + 40 * x / width + 30 * y / height + rng.normal(0, 2, (height, width))
    for _ in range(6):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(5, 14)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(20, 100)
    return (np.clip(image, 0, 255) * (np.iinfo(dtype).max // 255)).astype(dtype)[..., None]


Item = tuple[str | Path, tuple[int, int], Instances]
LABELS = np.array([0, 1, 1, 0])
BOXES = np.array([[5.0, 5, 45, 40], [50, 10, 90, 50], [20, 50, 60, 90], [70, 55, 110, 95]])


def healthy(folder: Path, count: int = 12) -> Dataset:
    items: list[Item] = []
    for index in range(count):
        write(folder / f"{index:02}.png", picture(index))
        items.append((folder / f"{index:02}.png", (128, 96), Instances(labels=LABELS, boxes=BOXES)))
    cut = 3 * count // 4
    return Dataset.from_instances(
        ["centric", "pennate"], items, root=folder, splits={"train": range(cut), "val": range(cut, count)}
    )


def with_truth(dataset: Dataset, index: int, truth: Instances) -> Dataset:
    """The same data set with other objects in one image."""
    items: list[Item] = [
        (dataset.image_paths[i], (int(dataset.sizes[i, 0]), int(dataset.sizes[i, 1])), truth if i == index else dataset.truth(i))
        for i in range(len(dataset))
    ]
    return Dataset.from_instances(dataset.categories, items, root=dataset.root, splits=dataset.splits)


def found(report: Report) -> dict[str, int]:
    codes: dict[str, int] = {}
    for finding in report.findings:
        codes[f"{finding.severity} {finding.code}"] = codes.get(f"{finding.severity} {finding.code}", 0) + finding.count
    return codes


def test_nothing_is_wrong_with_a_healthy_data_set(tmp_path: Path) -> None:
    report = examine(healthy(tmp_path))
    assert report.findings == ()
    assert not report.has_errors
    assert "nothing wrong was found" in report.lines()
    assert report.facts["images"] == 12
    assert report.facts["objects"] == 48
    assert report.facts["splits"] == {"train": 9, "val": 3}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


FILE_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "error image.missing"),
    "broken": (cut_short, "error image.broken"),
    "no image": (lambda path: path.write_text("x"), "error image.broken"),
    "resized": (lambda path: write(path, picture(3, 48, 64)), "error image.size"),
    "flat": (lambda path: write(path, np.full((96, 128), 90, np.uint8)), "warning image.flat"),
    "deeper": (lambda path: write(path, picture(3, dtype=np.uint16)), "warning image.depths"),
    "copy in one split": (lambda path: write(path, picture(5)), "warning image.duplicate"),
    "copy in two splits": (lambda path: write(path, picture(10)), "error split.same_image"),
    "paler copy": (lambda path: write(path, (picture(5) * 0.9).astype(np.uint8)), "info image.near_duplicate"),
    "paler copy in two": (lambda path: write(path, (picture(10) * 0.9).astype(np.uint8)), "warning split.near_duplicate"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_faults_of_files(tmp_path: Path, fault: str) -> None:
    dataset = healthy(tmp_path)
    spoil, code = FILE_FAULTS[fault]
    spoil(tmp_path / "03.png")
    report = examine(dataset)
    assert list(found(report)) == [code]
    assert report.has_errors == code.startswith("error")
    assert "03.png" in str(report.findings[0]) or fault == "deeper"
    assert examine(dataset, images=False).findings == ()


def test_an_image_annotated_before_it_was_turned(tmp_path: Path) -> None:
    dataset = healthy(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(read(tmp_path / "03.png")[..., 0]).save(tmp_path / "03.png", exif=exif)
    (finding,) = examine(dataset).findings
    assert "EXIF" in finding.message


TRUTH_FAULTS: dict[str, tuple[list[list[float]], list[int], str]] = {
    "no extent": ([[5, 5, 5, 40]], [0], "warning box.degenerate"),
    "not finite": ([[5, 5, np.nan, 40]], [0], "error box.not_finite"),
    "outside": ([[200, 5, 240, 40]], [0], "warning box.outside"),
    "over the border": ([[100, 5, 135, 40]], [0], "warning box.over_border"),
    "twice": ([[5, 5, 45, 40], [5, 5, 45.5, 40]], [0, 0], "warning object.twice"),
    "of two classes": ([[5, 5, 45, 40], [5, 5, 45, 40]], [0, 1], "warning object.two_classes"),
    "unlabelled": ([], [], "info image.unlabelled"),
    "tiny": ([[5, 5, 6, 40]], [0], "info object.small"),
}


@pytest.mark.parametrize("fault", TRUTH_FAULTS)
def test_faults_of_labels(tmp_path: Path, fault: str) -> None:
    boxes, labels, code = TRUTH_FAULTS[fault]
    truth = Instances(labels=np.array(labels, dtype=int), boxes=np.array(boxes, dtype=float).reshape(-1, 4))
    report = examine(with_truth(healthy(tmp_path), 3, truth), images=False)
    assert found(report) == {code: 1}
    assert report.has_errors == code.startswith("error")


def test_rounding_over_the_border_and_crowds_are_no_faults(tmp_path: Path) -> None:
    crowd = Instances(
        labels=np.zeros(3, int),
        boxes=np.array([[5, 5, 129, 97], [5, 5, 45, 40], [5, 5, 45, 40]]),
        crowd=np.array([False, True, False]),
        ignore=np.array([False, False, True]),
    )
    assert examine(with_truth(healthy(tmp_path), 3, crowd), images=False).findings == ()


def test_crossing_oriented_boxes_are_two_objects(tmp_path: Path) -> None:
    def report(second: list[float]) -> dict[str, int]:
        oriented = np.array([[60, 50, 50, 8, np.pi / 4], second])
        dataset = with_truth(healthy(tmp_path), 3, Instances(labels=np.zeros(2, int), oriented=oriented))
        return found(examine(dataset, images=False))

    assert "warning object.twice" not in report([60, 50, 50, 8, -np.pi / 4])
    assert report([60, 50, 50, 8, np.pi / 4])["warning object.twice"] == 1


def test_faults_of_splits(tmp_path: Path) -> None:
    dataset = healthy(tmp_path)
    leak = examine(dataset.with_splits({"train": range(8), "val": range(7, 11)}), images=False)
    assert found(leak) == {"error split.leak": 1, "info split.none": 1}
    assert leak.findings[0].where == "07.png"
    assert found(examine(dataset.with_splits({"train": range(12), "val": []}), images=False))["warning split.empty"] == 1


def test_faults_of_classes(tmp_path: Path) -> None:
    dataset = replace(healthy(tmp_path), categories=(Category(1, "a b"), Category(2, "c"), Category(3, "A_B "), Category(4, "d")))
    dataset = with_truth(dataset, 11, Instances(labels=np.array([3]), boxes=BOXES[:1]))
    codes = found(examine(dataset, images=False))
    assert codes == {"warning class.alike": 1, "warning class.empty": 1, "warning class.few": 1, "warning class.not_in_train": 1}
    dataset = with_truth(
        healthy(tmp_path),
        0,
        Instances(
            labels=np.array([0] * 3000), boxes=np.random.default_rng(0).uniform([0, 0, 50, 40], [40, 30, 120, 90], (3000, 4))
        ),
    )
    dataset = dataset.subset([0, 1])
    assert "info class.imbalance" in found(examine(dataset, images=False))


def test_no_labels_and_no_images(tmp_path: Path) -> None:
    dataset = healthy(tmp_path)
    empty: list[Item] = [(path, (128, 96), Instances.empty()) for path in dataset.image_paths]
    assert "error data.unlabelled" in found(examine(Dataset.from_instances(["a"], empty, root=tmp_path)))
    assert examine(dataset.subset([])).has_errors


def test_what_the_reader_found_is_in_the_report(tmp_path: Path) -> None:
    dataset = healthy(tmp_path)
    (tmp_path / "03.png").unlink()
    reader = (Finding("warning", "box.degenerate", "left out", "a.txt:3"), Finding("error", "image.missing", "not found", "a", 1))
    report = examine(replace(dataset, findings=reader))
    assert found(report) == {"error image.missing": 1, "warning box.degenerate": 1}
    assert report.findings[0].where.endswith("03.png")


def test_sizes_are_those_at_the_input(tmp_path: Path) -> None:
    # At an input of 64 x 32, an image of 128 x 96 shrinks by 3: boxes of 35 and 40 pixels become 11.7 and 13.3.
    report = examine(healthy(tmp_path), (32, 64), images=False)
    classes, sizes = report.tables
    assert classes.columns == (
        "class",
        "id",
        "objects",
        "share %",
        "images",
        "train",
        "val",
        "median length px",
        "under 8 px at input %",
    )
    assert classes.rows[0] == ("centric", 1, 24, 50.0, 12, 18, 6, 40.0, 0.0)
    assert [row[1] for row in sizes.rows] == [0, 0, 48, 0, 0, 0, 0, 0]
    small = examine(healthy(tmp_path), 16, images=False)
    (finding,) = small.findings
    assert finding.code == "object.small"
    assert finding.count == 48
    assert "an input of 32" in finding.message  # 35 pixels of 128 are 8 at an input of 29.3
    with pytest.raises(OptionError, match="positive"):
        examine(healthy(tmp_path), 0)


def test_the_report_is_json_and_text(tmp_path: Path) -> None:
    dataset = healthy(tmp_path)
    for index in range(5):
        (tmp_path / f"{index:02}.png").unlink()
    report = examine(dataset)
    value = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert value["counts"] == {"error": 5, "warning": 0, "info": 0}
    assert len(value["findings"]) == 5
    text = "\n".join(report.lines(most=2))
    assert "error [image.missing] 5" in text
    assert "and 3 more" in text
    assert "5 errors, 0 warnings, 0 notes" in text


def test_a_table_aligns_its_columns() -> None:
    table = Table("Title", ("name", "n"), (("a", 5), ("longer", 1234)))
    assert table.lines() == ["Title", "name        n", "a           5", "longer  1,234"]


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    examine(healthy(tmp_path, 4), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Fingerprints


CHANGES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "compressed": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 0)[..., None],
    "halved": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[..., None],
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "16 bit": lambda image: image.astype(np.uint16) * 257,
    "colour": lambda image: np.repeat(image, 3, axis=2),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("others", [1, 20])
def test_changed_copies_are_found_and_others_are_not(change: str, others: int) -> None:
    images = [picture(seed, 240, 320) for seed in range(others + 1)]
    images.append(np.ascontiguousarray(CHANGES[change](images[1])))
    assert near_groups([fingerprint(image) for image in images]) == [[1, others + 1]]


def test_flat_images_are_not_alike() -> None:
    prints = [fingerprint(np.full((50, 60, 1), value, np.uint8)) for value in (90, 100)]
    assert all(item.flat for item in prints)
    assert near_groups(prints) == []


def test_pairs_of_close_hashes_equal_those_of_all_comparisons() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**16, (300, 8), dtype=np.uint16)
    for row in range(0, 200, 2):  # pairs at distances around the limit
        flips = rng.choice(128, rng.integers(0, 12), replace=False)
        flipped = np.unpackbits(bits[row].view(np.uint8))
        flipped[flips] ^= 1
        bits[row + 1] = np.packbits(flipped).view(np.uint16)
    distance = np.bitwise_count(bits[:, None] ^ bits[None]).sum(axis=2)
    expected = {(int(a), int(b)) for a, b in zip(*np.nonzero(np.triu(distance <= 7, 1)), strict=True)}
    first, second = _close_pairs(bits)
    assert {(min(a, b), max(a, b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)} == expected
    assert expected


def test_content_is_that_of_the_pixels(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture(1))
    write(tmp_path / "a.tif", picture(1))
    one, two = (fingerprint(read(tmp_path / name)) for name in ("a.png", "a.tif"))
    assert isinstance(one, Fingerprint)
    assert one.content == two.content
    assert one.content != fingerprint(picture(2)).content
