"""The plots of an evaluation are PNG files that show what they were given, and its sections hold the numbers of the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pelagia.core.types import Category
from pelagia.metrics.angles import AngleErrors
from pelagia.metrics.bootstrap import Difference, Interval, Key
from pelagia.metrics.calibration import classification_calibration, detection_calibration
from pelagia.metrics.error_types import ERROR_TYPES, ErrorBreakdown, ImageErrors
from pelagia.metrics.label_images import evaluate_label_images
from pelagia.metrics.reliability import Reliability, reliability
from pelagia.metrics.semantic import SemanticTally
from pelagia.metrics.semantic_result import SemanticResult
from pelagia.metrics.taxonomy import HierarchicalResult, Level
from pelagia.metrics.thresholds import BEST_F1, OperatingPoint, ThresholdRule
from pelagia.report.evaluation import (
    angle_sections,
    calibration_sections,
    comparison_sections,
    error_sections,
    interval_sections,
    table_sections,
    taxonomy_sections,
    threshold_sections,
    worst_image_sections,
)
from pelagia.report.evaluation_plots import (
    angle_histogram,
    error_bars,
    interval_plot,
    reliability_diagram,
    semantic_confusion,
    size_bars,
)
from pelagia.report.html import Gallery, Section, Table, Text, render
from pelagia.report.plots import counts_scatter
from test_report import Reader

NAN = float("nan")
ODD_NAMES = ("$x_1$ $", "_hidden", "back\\slash $", "an unusually long name " * 5)
TOTALS = ("false positive", "false negative")
BLUE, SKY, GREY = (0x00, 0x72, 0xB2), (0x56, 0xB4, 0xE9), (0x9A, 0xA5, 0xAD)
TOO_HIGH, TOO_LOW = (0xF6, 0xCF, 0xB3), (0xBF, 0xE6, 0xDA)


def picture(path: Path) -> np.ndarray:
    """The pixels of a PNG file of plausible size."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        pixels = np.asarray(image.convert("RGB"))
    assert 300 <= pixels.shape[0] <= 2000
    assert 400 <= pixels.shape[1] <= 2100
    assert pixels.std() > 3
    return pixels


def like(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(np.abs(pixels.astype(int) - colour).max(axis=2) < 10)


def margins_are_white(pixels: np.ndarray) -> bool:
    """Nothing is cut at the border of the picture."""
    edges = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
    return all(bool((edge == 255).all()) for edge in edges)


def blocks(pixels: np.ndarray, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(top, length) of each horizontal bar of a colour, from top to bottom; the length is that of its longest row."""
    rows = like(pixels, colour).sum(axis=1)
    thick = np.flatnonzero(rows > 3)
    groups = np.split(thick, np.flatnonzero(np.diff(thick) > 1) + 1) if len(thick) else []
    return [(int(group[0]), int(rows[group].max())) for group in groups if len(group) > 8]


def words(sections: list[Section]) -> str:
    return " ".join(Reader(render("t", sections)).words)


def cells(sections: list[Section]) -> list[str]:
    return Reader(render("t", sections)).cells


def broken_down(classes: int = 3, gain: float | None = None, names: tuple[str, ...] = ()) -> ErrorBreakdown:
    rng = np.random.default_rng(classes)
    every = (*ERROR_TYPES, *TOTALS)
    gains = dict(zip(every, rng.uniform(0.01, 0.2, len(every)).tolist(), strict=True))
    gains = gains if gain is None else dict.fromkeys(every, gain)
    counts = {name: rng.integers(0, 90, classes) if gain != 0 else np.zeros(classes, dtype=np.int64) for name in ERROR_TYPES}
    sizes = {}
    for name in ERROR_TYPES:
        whole = int(counts[name].sum())
        sizes[name] = {"small": whole // 2, "medium": whole // 3, "large": whole - whole // 2 - whole // 3}
    return ErrorBreakdown(
        ap=0.6 if gain is None else gain,
        gain=gains,
        class_gain={name: np.full(classes, value) for name, value in gains.items()},
        counts=counts,
        sizes=sizes,
        class_names=names or tuple(f"taxon {i}" for i in range(classes)),
    )


def some_intervals(classes: int, names: tuple[str, ...] = ()) -> dict[Key, Interval]:
    rng = np.random.default_rng(classes)
    found: dict[Key, Interval] = {("", "AP"): Interval(0.4, 0.35, 0.45, 0.02), ("", "AP50"): Interval(0.612, 0.571, 0.653, 0.02)}
    for label in range(classes):
        value, half = rng.uniform(0.2, 0.9), rng.uniform(0.01, 0.1)
        name = names[label] if names else f"taxon {label}"
        found[name, "AP50"] = Interval(value, value - half, value + half, half / 2)
        found[name, "F1"] = Interval(value, NAN, NAN, NAN)
    return found


def tally_of(classes: int, none: bool = True) -> SemanticResult:
    rng = np.random.default_rng(classes)
    tally = SemanticTally(classes, ignore_index=65535, boundary=None)
    truth = rng.integers(0, classes, (60, 80)).astype(np.uint16)
    predicted = np.where(rng.random((60, 80)) < 0.7, truth, rng.integers(0, classes, (60, 80))).astype(np.uint16)
    if none:
        predicted[:3] = 65535
    tally.add(truth, predicted)
    return tally.result(categories=[Category(label, f"class {label}") for label in range(classes)])


def scores(size: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    score = rng.random(size)
    return score, rng.random(size) < score**2


# ---------------------------------------------------------------------------------------------- plots


def flat(accuracy: float, score: float) -> Reliability:
    """Ten bins of one accuracy, all holding one gap."""
    edges, ones = np.linspace(0, 1, 11), np.ones(10)
    return Reliability(edges, np.full(10, 50), 50 * ones, score * ones, accuracy * ones)


def colours(item: Reliability, folder: Path) -> tuple[int, int, int]:
    """Pixels of the bars, of gaps above and of gaps below the accuracy."""
    pixels = picture(reliability_diagram(item, folder / "r.png"))
    assert margins_are_white(pixels)
    bar, high, low = (int(like(pixels, colour).sum()) for colour in (SKY, TOO_HIGH, TOO_LOW))
    return bar, high, low


def test_bars_of_accuracy_have_their_heights(tmp_path: Path) -> None:
    low, high = (colours(flat(accuracy, accuracy), tmp_path) for accuracy in (0.3, 0.6))
    assert high[0] / low[0] == pytest.approx(2, rel=0.1)
    assert low[1:] == high[1:] == (0, 0)


def test_gaps_have_the_height_and_colour_of_their_sign(tmp_path: Path) -> None:
    above, twice, below = (colours(flat(*values), tmp_path) for values in ((0.3, 0.6), (0.3, 0.9), (0.6, 0.3)))
    assert above[1] > 10_000
    assert above[2] == below[1] == 0
    assert twice[1] == pytest.approx(2 * above[1], rel=0.1)
    assert below[2] == pytest.approx(above[1], rel=0.1)
    assert below[0] == pytest.approx(above[0], rel=0.1)  # the gap of a low score covers the end of the bar


@pytest.mark.parametrize("adaptive", [False, True])
def test_reliability_of_real_few_and_no_samples(tmp_path: Path, adaptive: bool) -> None:
    score, right = scores()
    for size in (0, 1, 2, 2000):
        item = reliability(score[:size], right[:size], adaptive=adaptive)
        assert margins_are_white(picture(reliability_diagram(item, tmp_path / "r.png")))
    steep = np.concatenate([np.zeros(5000), np.full(30, 0.95)])
    picture(reliability_diagram(reliability(steep, steep > 0.5, adaptive=adaptive), tmp_path / "r.png"))


def test_error_bars_are_as_long_as_the_losses(tmp_path: Path) -> None:
    gain = dict(zip((*ERROR_TYPES, *TOTALS), (0.05, 0.10, 0.20, 0.0, 0.15, 0.10, 0.30, 0.40), strict=True))
    item = dataclasses.replace(broken_down(), gain=gain)
    pixels = picture(error_bars(item, tmp_path / "e.png"))
    assert margins_are_white(pixels)
    lengths = np.array([length for _, length in blocks(pixels, BLUE)])
    assert lengths / lengths.max() == pytest.approx(np.array([0.05, 0.10, 0.20, 0.15, 0.10]) / 0.20, abs=0.02)
    totals = blocks(pixels, GREY)[-2:]
    assert totals[0][1] / totals[1][1] == pytest.approx(0.30 / 0.40, abs=0.02)
    assert totals[0][0] > blocks(pixels, BLUE)[-1][0]


@pytest.mark.parametrize("gain", [NAN, 0.0, -1e-17, 1.0])
def test_error_plots_of_odd_values(tmp_path: Path, gain: float) -> None:
    for plot in (error_bars, size_bars):
        assert margins_are_white(picture(plot(broken_down(gain=gain), tmp_path / "e.png")))


def test_one_missing_loss_leaves_the_others(tmp_path: Path) -> None:
    item = broken_down()
    item.gain["both"] = NAN
    assert len(blocks(picture(error_bars(item, tmp_path / "e.png")), BLUE)) == 5


def test_size_bars_are_stacked(tmp_path: Path) -> None:
    empty = {"small": 0, "medium": 0, "large": 0}
    sizes = dict.fromkeys(ERROR_TYPES, empty) | {"both": {"small": 0, "medium": 30, "large": 0}}
    sizes["missed"] = {"small": 10, "medium": 60, "large": 100}
    pixels = picture(size_bars(dataclasses.replace(broken_down(), sizes=sizes), tmp_path / "s.png"))
    bars = blocks(pixels, BLUE)[:2]
    assert bars[0][1] / bars[1][1] == pytest.approx(0.5, abs=0.05)
    row = bars[1][0] + 3
    middle = np.flatnonzero(like(pixels[row : row + 1], BLUE)[0])
    small = np.flatnonzero(like(pixels[row : row + 1], (0x8C, 0xCB, 0xF0))[0])
    large = np.flatnonzero(like(pixels[row : row + 1], (0x0B, 0x2F, 0x4A))[0])
    assert small.max() < middle.min() < middle.max() < large.min()
    assert len(large) / len(small) == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("classes", [0, 1, 7, 40, 41, 100])
def test_intervals_of_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    pixels = picture(interval_plot(some_intervals(classes), tmp_path / "i.png"))
    assert margins_are_white(pixels)
    if classes in (7, 40, 100):
        marks = [top for top, _ in blocks(pixels, BLUE)]  # points and caps of a row join
        assert len(marks) == min(classes, 40)


def test_intervals_that_do_not_exist_or_miss_their_value(tmp_path: Path) -> None:
    plot: Callable[..., Path] = interval_plot
    nothing = {("", "AP50"): Interval(NAN, NAN, NAN, NAN), ("a", "AP50"): Interval(NAN, NAN, NAN, NAN)}
    beside = {("", "AP50"): Interval(0.5, 0.6, 0.7, 0.1), ("a", "AP50"): Interval(0.5, NAN, NAN, NAN)}
    ratio = {("a", "count ratio"): Interval(1.3, 0.9, 2.5, 0.4), ("b", "count ratio"): Interval(0.0, 0.0, 0.0, 0.0)}
    for item, number in ((nothing, "AP50"), ({}, "AP50"), (beside, "AP50"), (ratio, "count ratio"), (ratio, "AP50")):
        assert margins_are_white(picture(plot(item, tmp_path / "i.png", number)))


def test_odd_names_do_not_break_plots(tmp_path: Path) -> None:
    assert margins_are_white(picture(interval_plot(some_intervals(4, ODD_NAMES), tmp_path / "i.png")))
    result = dataclasses.replace(tally_of(4), categories=tuple(Category(i, name) for i, name in enumerate(ODD_NAMES)))
    picture(semantic_confusion(result, tmp_path / "c.png"))


def angles_of(degrees: np.ndarray, skipped: int) -> AngleErrors:
    """All of class a; class b has none."""
    nothing = np.zeros(len(degrees), dtype=np.int64)
    return AngleErrors(np.sort(degrees), nothing, nothing, ("a", "b"), skipped)


@pytest.mark.parametrize("spread", [0.5, 4.0, 15.0, 30.0, 90.0])
def test_angle_histogram(tmp_path: Path, spread: float) -> None:
    degrees = np.random.default_rng(0).beta(1, 6, 500) * spread
    item = angles_of(degrees, 12)
    pixels = picture(angle_histogram(item, tmp_path / "a.png"))
    assert margins_are_white(pixels)
    assert like(pixels, SKY).sum() > 2000


@pytest.mark.parametrize("degrees", [[], [0.0], [90.0], [np.degrees(np.pi / 2) + 1e-9, 3.0]])
def test_angle_histogram_of_few(tmp_path: Path, degrees: list[float]) -> None:
    item = angles_of(np.array(degrees, dtype=np.float64), 0)
    assert margins_are_white(picture(angle_histogram(item, tmp_path / "a.png")))


@pytest.mark.parametrize(("classes", "none"), [(1, True), (1, False), (3, True), (40, False), (41, True), (100, True)])
def test_semantic_confusion(tmp_path: Path, classes: int, none: bool) -> None:
    assert margins_are_white(picture(semantic_confusion(tally_of(classes, none), tmp_path / "c.png")))


def test_semantic_confusion_of_nothing(tmp_path: Path) -> None:
    picture(semantic_confusion(SemanticTally(3).result(), tmp_path / "c.png"))


def test_names_of_counts_never_cover_one_another(tmp_path: Path) -> None:
    def drawn(place: float, name: str) -> bytes:
        return counts_scatter([100, place], [100, place], tmp_path / "c.png", names=["first", name]).read_bytes()

    assert drawn(99, "second") == drawn(99, "other")
    assert drawn(50, "second") != drawn(50, "other")


def test_plots_repeat_byte_for_byte(tmp_path: Path) -> None:
    item = reliability(*scores())
    first = reliability_diagram(item, tmp_path / "a.png").read_bytes()
    assert reliability_diagram(item, tmp_path / "b.png").read_bytes() == first


# ---------------------------------------------------------------------------------------------- sections


def test_interval_sections(tmp_path: Path) -> None:
    found = some_intervals(2)
    plot = interval_plot(found, tmp_path / "i.png")
    sections = interval_sections(found, {"intervals": plot})
    shown = cells(sections)
    assert shown[: shown.index("AP") + 5][-5:] == ["AP", "0.400", "0.350", "0.450", "0.020"]
    first = found["taxon 0", "AP50"]
    assert f"{first.value:.3f} [{first.low:.3f}, {first.high:.3f}]" in shown
    assert f"{first.value:.3f}" in shown  # F1 without an interval
    assert "95%" in words(sections)
    assert any(link.startswith("data:image/png") for link in Reader(render("t", sections)).links)
    assert "90%" in words(interval_sections(found, level=0.9))
    assert "no number" in words(interval_sections({}))


def test_intervals_of_classes_with_other_numbers() -> None:
    item = Interval(0.25, 0.125, 0.375, 0.1)
    shown = cells(interval_sections({("a", "AP"): item, ("b", "F1"): item}))
    assert shown == ["class", "AP", "F1", "a", "0.250 [0.125, 0.375]", "-", "b", "-", "0.250 [0.125, 0.375]"]


def test_error_sections() -> None:
    item = broken_down(3)
    item.class_gain["missed"][1] = NAN
    shown = cells(error_sections(item))
    for name in ERROR_TYPES:
        place = shown.index(name)
        assert shown[place + 1 : place + 3] == [f"{item.gain[name]:.3f}", str(int(item.counts[name].sum()))]
    assert "0.600" in words(error_sections(item))
    tables = [section for section in error_sections(item) if isinstance(section, Table)]
    assert [row[0] for row in tables[1].rows] == list(item.class_names)
    assert np.isnan(tables[1].rows[1][-1])  # type: ignore[call-overload]
    assert tables[2].rows[2][1:] == [int(item.counts[name][2]) for name in ERROR_TYPES]


def test_calibration_sections() -> None:
    score, right = scores()
    place = np.full((len(score), 4), 0.5)
    place[:, 0] = np.random.default_rng(1).random(len(score))
    detection = detection_calibration(score, right, position=place)
    text = words(calibration_sections(detection))
    for value in (detection.d_ece, detection.d_ece_position, detection.kept_position, detection.confidence.ece):
        assert f"{value:.3f}" in text
    assert f"{detection.confidence.overconfidence:.3f} too high" in text
    probabilities = np.stack([score, 1 - score], axis=1)
    classes = classification_calibration(probabilities, np.where(right, 0, 1))
    text = words(calibration_sections(classes, title="Classes"))
    for value in (classes.ece, classes.classwise_ece, classes.brier, classes.nll):
        assert f"{value:.3f}" in text
    assert "Classes" in text
    plain = reliability(score, right, bins=4)
    rows = next(section for section in calibration_sections(plain) if isinstance(section, Table)).rows
    assert [row[2] for row in rows] == plain.count.tolist()
    assert [row[5] for row in rows] == pytest.approx(plain.gap.tolist())


@pytest.mark.parametrize(("score", "said"), [([], "no sample"), ([0.5, 0.5], "neither"), ([0.25, 0.25], "0.250 too low")])
def test_tendency_of_scores(score: list[float], said: str) -> None:
    right = np.arange(len(score)) % 2 == 0
    sections = calibration_sections(reliability(np.array(score), right))
    assert said in words(sections)
    rows = next(section for section in sections if isinstance(section, Table)).rows
    assert len(rows) == (1 if score else 0)  # empty bins are left out


def test_angle_sections() -> None:
    item = angles_of(np.array([1.0, 3.0]), 7)
    shown = cells(angle_sections(item))
    assert shown[5:10] == ["all", "2", "2.000", "2.000", "2.800"]
    assert shown[-5:] == ["b", "0", "-", "-", "-"]
    assert "7 nearly square" in words(angle_sections(item))


def test_taxonomy_sections() -> None:
    many = tuple(f"genus {i}" for i in range(50))
    item = HierarchicalResult((Level(1, many, 0.1, 0.2, 0.3, 0.4), Level(0, ("anything",), 0.5, 0.6, 0.7, 0.8)), 0.75, 0.5)
    text = words(taxonomy_sections(item))
    assert "0.600" in text  # F1 of 0.75 and 0.5
    assert "genus 39 and 10 more." in text
    assert "genus 40" not in text
    assert cells(taxonomy_sections(item))[-6:] == ["anything", "1", "0.500", "0.600", "0.700", "0.800"]


def test_threshold_sections() -> None:
    a, b = OperatingPoint(0.3, 0.8, 0.7, 0.747), OperatingPoint(NAN, NAN, NAN, NAN)
    one = threshold_sections({BEST_F1: {"a": a}})
    assert cells(one) == ["class", "score", "precision", "recall", "F1", "a", "0.300", "0.800", "0.700", "0.747"]
    precise = ThresholdRule.parse("precision=0.9")
    two = threshold_sections({BEST_F1: {"a": a, "b": a}, precise: {"a": b}, ThresholdRule.parse("count"): {"a": a}})
    shown = cells(two)
    assert shown[:12] == ["class", "F1", "precision 0.9", "count", "a", "0.300", "-", "0.300", "b", "0.300", "-", "-"]
    assert "precision of at least 0.9" in words(two)
    assert "largest F2" in words(threshold_sections({ThresholdRule("f", 2.0): {}}))


def test_worst_image_sections() -> None:
    images = [(f"scan {i}.tif", ImageErrors(i, correct=6, false=3, missed=60 - i)) for i in range(45)]
    shots = {"scan 1.tif": np.zeros((8, 8, 3), dtype=np.uint8)}
    sections = worst_image_sections(images, shots)
    text, shown = words(sections), cells(sections)
    assert "5 more images" in text
    assert shown[5:10] == ["scan 0.tif", "6", "3", "60", f"{12 / 75:.3f}"]
    assert "scan 40.tif" not in shown
    galleries = [section for section in sections if isinstance(section, Gallery)]
    assert [picture.caption for picture in galleries[0].pictures] == ["scan 1.tif: 6 correct, 3 false, 59 missed"]
    assert "No image has an error" in words(worst_image_sections([]))


def test_table_sections_of_semantic_and_label_image_results(tmp_path: Path) -> None:
    semantic = tally_of(3)
    plot = semantic_confusion(semantic, tmp_path / "c.png")
    sections = table_sections("Semantic", semantic.summary(), semantic.class_rows(), {"confusion": plot}, text="A remark.")
    text = words(sections)
    for part in ("Semantic", "A remark.", "mIoU", f"{semantic.mean_iou:.3f}", f"{semantic.iou[2]:.3f}", "Percent"):
        assert part in text
    label = np.arange(12).reshape(3, 4)
    result = evaluate_label_images([label], [label], thresholds=(0.5, 0.9))
    sections = table_sections("Objects", result.summary(), result.threshold_rows(), caption="By overlap.")
    assert "By overlap." in words(sections)
    assert "0.9" in cells(sections)
    assert not any(isinstance(section, Text) for section in sections)


def test_comparison_sections() -> None:
    found: dict[Key, Difference] = {
        ("", "AP"): Difference(0.5, 0.6, 0.1, 0.05, 0.15, 0.002),
        ("a", "AP50"): Difference(0.5, 0.4, -0.1, -0.15, -0.05, 0.004),
        ("b", "AP50"): Difference(0.5, 0.5, 0.0, -0.05, 0.05, 1.0),
        ("c", "AP50"): Difference(NAN, NAN, NAN, NAN, NAN, NAN),
        ("a", "F1"): Difference(0.5, 0.25, -0.25, -0.3, -0.2, 0.04),
    }
    sections = comparison_sections(found, names=("old", "new"))
    shown, text = cells(sections), words(sections)
    assert shown[:7] == ["number", "old", "new", "difference", "low", "high", "p"]
    assert shown[7:14] == ["AP", "0.500", "0.600", "+0.100", "+0.050", "+0.150", "0.002"]
    assert shown[21:28] == ["a", "0.500", "0.400", "-0.100", "-0.150", "-0.050", "0.004"]
    assert shown[-7:] == ["c", "-", "-", "-", "-", "-", "-"]
    assert "1 of 2 classes have p below 0.05" in text
    assert "about 0.1 would by chance" in text
    assert "-0.250" in cells(comparison_sections(found, number="F1"))
    assert "no number" in words(comparison_sections({}))
    only_missing = {("c", "AP50"): found["c", "AP50"]}
    assert "by chance" not in words(comparison_sections(only_missing))
