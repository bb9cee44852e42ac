"""The HTML report is one self-contained file that shows what it was given; plots are PNG files with something on them."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pelagia.core.types import Category, Instances
from pelagia.errors import ImageError, OptionError
from pelagia.metrics import DetectionResult, evaluate_detection
from pelagia.report import Gallery, Heading, Numbers, Picture, Table, Text, detection_plots, detection_sections, write_report
from pelagia.report.html import render
from pelagia.report.plots import counts_scatter, f1_curve, plot_confusion, pr_curve, training_curves


class Reader(HTMLParser):
    """Checks that tags nest, and collects text, cells and what the page would load."""

    VOID = frozenset({"meta", "img", "br", "hr", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("td", "th"):
            self.cells.append(data)
        if "style" not in self.stack:
            self.words.append(data)


def drawn(classes: int = 3, images: int = 4, names: list[str] | None = None) -> DetectionResult:
    rng = np.random.default_rng(0)
    truths, found = [], []
    for _ in range(images):
        corner = rng.integers(0, 300, (30, 2))
        boxes = np.concatenate([corner, corner + 30], axis=1)
        labels = rng.integers(0, classes, 30)
        truths.append(Instances(labels=labels, boxes=boxes))
        found.append(Instances(labels=labels, boxes=boxes + rng.integers(-6, 7, (30, 4)), scores=rng.random(30)))
    names = names or [f"taxon {i}" for i in range(classes)]
    return evaluate_detection(truths, found, [Category(i, name) for i, name in enumerate(names)])


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


# ---------------------------------------------------------------------------------------------- the page


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    result = drawn()
    plots = detection_plots(result, tmp_path / "plots")
    file = write_report(
        tmp_path / "new folder" / "report.html", "A survey", detection_sections(result, plots), subtitle="held out"
    )
    reader = Reader(file.read_text(encoding="utf-8"))
    assert all(link.startswith(("data:image/", "#")) for link in reader.links)
    assert sum(link.startswith("data:image/png;base64,") for link in reader.links) == 3
    assert "script" not in reader.tags
    words = " ".join(reader.words)
    for part in ("A survey", "held out", "Accuracy", f"{result.ap:.3f}", "taxon 2"):
        assert part in words
    assert [entry.name for entry in file.parent.iterdir()] == ["report.html"]


def test_text_is_shown_not_obeyed() -> None:
    evil = "<script>alert('x')</script> & \"so on\" {braces}"
    sections = [
        Heading(evil),
        Text(evil),
        Numbers([(evil, evil)]),
        Table([evil], [[evil]], caption=evil),
        Gallery([Picture(np.zeros((4, 4, 3), dtype=np.uint8), evil)]),
    ]
    page = render(evil, sections, subtitle=evil)
    reader = Reader(page)
    assert "<script" not in page
    assert evil in reader.words
    assert evil in reader.cells


def test_contents_lead_to_the_headings() -> None:
    page = render("t", [Heading("One"), Heading("part", 3), Heading("Two"), Heading("Three")])
    anchors = [link[1:] for link in Reader(page).links]
    assert len(anchors) == 3
    assert re.findall(r'<h2 id="(\w+)">', page) == anchors
    assert "<nav>" not in render("t", [Heading("One"), Heading("Two")])


def test_tables_align_numbers_and_show_missing_ones() -> None:
    page = render("t", [Table(["name", "n", "share", "mixed"], [["a", 3, 0.25, "x"], ["7", "1,200", float("nan"), "2"]])])
    reader = Reader(page)
    assert reader.cells == ["name", "n", "share", "mixed", "a", "3", "0.250", "x", "7", "1,200", "-", "2"]
    assert page.count('<th class="n">') == 2
    assert page.count('<td class="n">') == 4
    with pytest.raises(OptionError, match="row 0"):
        render("t", [Table(["a", "b"], [["only one"]])])
    assert Reader(render("t", [Table(["a"], [])])).cells == ["a"]


def embedded(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)\"", page)]


def test_pictures_are_embedded_and_large_ones_shrunk(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(small).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((100, 4000), dtype=np.uint8)).save(tmp_path / "scan.tif")
    sources = [tmp_path / "small.png", tmp_path / "scan.tif", small, small[..., :1], small[..., 0]]
    images = embedded(render("t", [Gallery([Picture(source) for source in sources])]))
    np.testing.assert_array_equal(np.asarray(images[0]), small)
    assert [image.format for image in images] == ["PNG", "JPEG", "JPEG", "JPEG", "JPEG"]
    assert images[1].size == (1600, 40)
    assert all(image.size == (30, 20) for image in images[2:])


def test_pictures_that_cannot_be_shown_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for name in ("broken.png", "absent.png"):
        with pytest.raises(ImageError, match=name):
            render("t", [Gallery([Picture(tmp_path / name)])])
    for array in (np.zeros((4, 4, 2), dtype=np.uint8), np.zeros((4, 4), dtype=np.float32), np.zeros((0, 4), dtype=np.uint8)):
        with pytest.raises(OptionError, match="uint8"):
            render("t", [Gallery([Picture(array)])])


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    file = write_report(tmp_path / "report.html", "old", [])
    with pytest.raises(ImageError):
        write_report(file, "new", [Gallery([Picture(tmp_path / "absent.png")])])
    assert "<h1>old</h1>" in file.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- plots


@pytest.mark.parametrize("classes", [1, 3, 15, 70])
def test_detection_plots_for_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    result = drawn(classes)
    for plot in (pr_curve, f1_curve):
        assert picture(plot(result, tmp_path / "plot.png")).std() > 5
    shown = picture(plot_confusion(result.confusion, tmp_path / "plot.png"))
    assert shown.std() > 5
    assert max(shown.shape) < 3000


def test_plots_of_nothing_and_of_odd_names(tmp_path: Path) -> None:
    empty = evaluate_detection([], [], [Category(1, "a")])
    for file in detection_plots(empty, tmp_path).values():
        assert picture(file).std() > 0
    odd = drawn(4, names=["$x_1$ $", "_hidden", "back\\slash $", "an unusually long name " * 5])
    for file in detection_plots(odd, tmp_path).values():
        assert picture(file).std() > 5


def test_plots_repeat_byte_for_byte(tmp_path: Path) -> None:
    result = drawn()
    first = pr_curve(result, tmp_path / "a.png").read_bytes()
    assert pr_curve(result, tmp_path / "b.png").read_bytes() == first


def blue(image: np.ndarray) -> int:
    """Pixels of the first colour of the palette."""
    return int((np.abs(image.astype(int) - [0x00, 0x72, 0xB2]).max(axis=2) < 12).sum())


def test_training_curves_show_what_is_a_number(tmp_path: Path) -> None:
    rows = [
        {
            "epoch": epoch,
            "train": {"loss": 3 / (epoch + 1)},
            "val": {"ap50": None if epoch == 0 else 0.5},
            "lr": 0.01,
            "note": "x",
        }
        for epoch in range(4)
    ]
    full = picture(training_curves(rows, tmp_path / "c.png"))
    assert blue(full) > 100
    narrow = picture(training_curves([{"epoch": 0, "loss": float("nan"), "ap": 0.5}], tmp_path / "c.png"))
    assert narrow.shape[1] < full.shape[1]  # one panel: NaN is left out, and the panel of losses with it
    assert picture(training_curves([], tmp_path / "c.png")).std() > 0


@pytest.mark.parametrize("name", ["miou", "dice", "pixel_accuracy", "pq", "sq", "rq", "pq_things", "pq_stuff", "masks/ap50"])
def test_training_curves_show_the_scores_of_every_task(tmp_path: Path, name: str) -> None:
    rows = [{"epoch": epoch, "loss": 1.0, name: 0.5} for epoch in range(3)]
    with_score = picture(training_curves(rows, tmp_path / "c.png"))
    without = picture(training_curves([{"epoch": row["epoch"], "loss": 1.0} for row in rows], tmp_path / "c.png"))
    assert with_score.shape[1] > without.shape[1]  # a panel of its own


def test_counts_scatter(tmp_path: Path) -> None:
    assert blue(picture(counts_scatter([], [], tmp_path / "c.png"))) < 5
    assert picture(counts_scatter([1, 20], [2, 18], tmp_path / "c.png", names=["a", "b"])).std() > 5
    with pytest.raises(OptionError, match="fit together"):
        counts_scatter([1, 2], [1], tmp_path / "c.png")
