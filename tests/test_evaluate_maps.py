"""`pelagia evaluate` of models that answer with maps, with runtimes that read the answer from the colours of the image."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import pelagia
from pelagia import api
from pelagia.api import Predictor
from pelagia.cli import main as cli_main
from pelagia.core.card import ModelCard
from pelagia.core.image import read, write
from pelagia.core.types import Category, PanopticMap, Segment, SemanticMap, Task
from pelagia.data.dataset import Dataset
from pelagia.data.open import open_dataset
from pelagia.decode import DecodeOptions, registry
from pelagia.errors import OptionError
from pelagia.infer.evaluate import predictions
from pelagia.infer.maps import MapOptions, evaluate_maps
from pelagia.metrics.bootstrap import image_weights, intervals
from pelagia.metrics.panoptic import evaluate_panoptic
from pelagia.metrics.reliability import reliability
from pelagia.metrics.semantic import evaluate_semantic

SIDE = 48
NAMES = ("water", "diatom", "copepod")


class Colours:
    """Answers with the image: channel k speaks for class k. `sure` scales what are logits."""

    def __init__(self, task: Any, names: tuple[str, ...] = NAMES, sure: float = 8.0) -> None:
        categories = tuple(Category(10 + k, name, is_thing=name != "water") for k, name in enumerate(names))
        self.card = ModelCard(
            name="colours", task=task, decoder="colours", categories=categories, input_size=(SIDE, SIDE), options={"sure": sure}
        )

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"logits": images * float(self.card.options["sure"])}


def decode_colours(outputs: Any, frames: Any, card: ModelCard, options: DecodeOptions) -> list[SemanticMap | PanopticMap]:
    found: list[SemanticMap | PanopticMap] = []
    for logits, frame in zip(outputs["logits"], frames, strict=True):
        logits = logits[:, : frame.height, : frame.width]
        labels = logits.argmax(axis=0).astype(np.uint8)
        if card.task == "semantic":
            powers = np.exp(logits - logits.max(axis=0))
            found.append(SemanticMap(labels, (powers / powers.sum(axis=0)).astype(np.float32) if options.scores else None))
        else:
            present = np.unique(labels).tolist()
            found.append(PanopticMap(labels.astype(np.int32) + 1, tuple(Segment(k + 1, k, 0.9) for k in present)))
    return found


@pytest.fixture(autouse=True)
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.DECODERS, "colours", decode_colours)


def blocks(seed: int) -> NDArray[np.uint8]:
    """Class maps of 48 x 48 pixels with all three classes."""
    labels = np.random.default_rng(seed).permutation(np.arange(16) % 3).reshape(4, 4).astype(np.uint8)
    return labels.repeat(12, axis=0).repeat(12, axis=1)


def painted(labels: NDArray[np.uint8], seed: int, wrong: float) -> NDArray[np.uint8]:
    """The image that the model reads as `labels`, but for a share of the pixels."""
    rng = np.random.default_rng(seed)
    seen = np.where(rng.random(labels.shape) < wrong, rng.integers(0, 3, labels.shape), labels)
    return (np.eye(3)[seen] * rng.integers(60, 200, (*labels.shape, 1)) + 30).astype(np.uint8)


@pytest.fixture(scope="module")
def semantic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, the last of which is read worst."""
    folder = tmp_path_factory.mktemp("semantic")
    for index in range(6):
        labels = blocks(index)
        write(folder / "images" / f"{index}.png", painted(labels, index, 0.05 * index))
        labels[:2] = 255
        (folder / "semantic").mkdir(exist_ok=True)
        Image.fromarray(labels).save(folder / "semantic" / f"{index}.png")
    return folder


def open_semantic(folder: Path) -> Dataset:
    return open_dataset(folder, task="semantic", classes=NAMES)


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli_main.main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def words_of(folder: Path) -> list[str | Path]:
    return ["evaluate", "model.onnx", folder, *(word for name in NAMES for word in ("--classes", name))]


def loads(monkeypatch: pytest.MonkeyPatch, **runtimes: Colours) -> None:
    def load(path: str | Path, **_: Any) -> Predictor:
        return Predictor(runtimes[Path(path).stem])

    monkeypatch.setattr(api, "load", load)


# ---------------------------------------------------------------------------------------------- class maps


def test_a_semantic_model_on_the_command_line(
    semantic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads(monkeypatch, model=Colours("semantic"))
    assert run(*words_of(semantic), "--json", "--resamples", "40", "--out", tmp_path) == 0
    content = json.loads(capsys.readouterr().out)
    data = open_semantic(semantic)
    truth = [data.semantic(index) for index in range(6)]
    found = [SemanticMap(read(path).argmax(axis=2).astype(np.uint8)) for path in data.image_paths]
    expected = evaluate_semantic(truth, found, data.categories)
    assert content["mean_iou"] == pytest.approx(expected.mean_iou, abs=1e-12)
    assert [row["iou"] for row in content["classes"]] == pytest.approx(expected.iou, abs=1e-12)
    assert content["mean_boundary_f"] == pytest.approx(expected.mean_boundary_f, abs=1e-12)
    rows = {(row["class"], row["number"]): row for row in content["intervals"]}
    assert rows["diatom", "IoU"]["low"] < expected.iou[1] < rows["diatom", "IoU"]["high"]
    assert [row["image"] for row in content["worst_images"]] == [Path(name).as_posix() for name in reversed(data.names[1:])]
    assert content["worst_images"][0]["score"] == pytest.approx(
        evaluate_semantic(truth[5:], found[5:], data.categories).mean_iou, abs=1e-12
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "evaluation.json", "confusion.png", "intervals.png", "reliability.png", "worst"} <= names
    pictures = sorted((tmp_path / "worst").iterdir())
    assert len(pictures) == 5
    assert read(pictures[0]).shape[1] >= 2 * SIDE
    page = (tmp_path / "report.html").read_text()
    for text in ("Left the truth, right the prediction", "probabilities of pixels", "boundary F", "Intervals by class"):
        assert text in page


def test_the_calibration_of_pixels(semantic: Path) -> None:
    data, runtime = open_semantic(semantic), Colours("semantic", sure=3.0)
    (got,) = evaluate_maps([runtime], semantic, "semantic", lambda _: data, MapOptions(calibration=True, show=False))
    score, right = [], []
    for index, path in enumerate(data.image_paths):
        logits = 3.0 * read(path).astype(np.float64) / 255
        share = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        truth = data.semantic(index).labels
        score.append(share.max(axis=2)[truth != 255])
        right.append((share.argmax(axis=2) == truth)[truth != 255])
    expected = reliability(np.concatenate(score), np.concatenate(right))
    assert got.calibration is not None
    assert got.calibration.count.sum() == expected.count.sum() == 6 * SIDE * (SIDE - 2)
    assert got.calibration.ece == pytest.approx(expected.ece, abs=1e-5)  # probabilities of the model are float32
    assert got.calibration.overconfidence < -0.1
    assert "not sure enough" in got.lines()[-1]
    sure = intervals(got.statistic, len(data), resamples=30)
    assert sure["", "ECE"].value == pytest.approx(got.calibration.ece, abs=1e-12)
    assert sure["", "ECE"].low < sure["", "ECE"].high
    (without,) = evaluate_maps([runtime], semantic, "semantic", lambda _: data, MapOptions(show=False))
    assert without.calibration is None
    assert ("", "ECE") not in without.statistic(np.ones(len(data)))


def test_two_models_and_files_are_compared(
    semantic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads(monkeypatch, model=Colours("semantic"), other=Colours("semantic", names=("diatom", "water", "copepod")))
    assert run(*words_of(semantic), "--against", "other.onnx", "--json", "--resamples", "50") == 0
    rows = {(row["class"], row["number"]): row for row in json.loads(capsys.readouterr().out)["differences"]}
    assert rows["", "mIoU"]["high"] < 0
    assert rows["diatom", "IoU"]["p"] < 0.05
    assert abs(rows["copepod", "IoU"]["value"]) < 1e-12
    assert run(*words_of(semantic), "--against", semantic / "semantic", "--json", "--resamples", "50") == 0
    rows = {(row["class"], row["number"]): row for row in json.loads(capsys.readouterr().out)["differences"]}
    assert rows["", "pixel accuracy"]["second"] == 1
    assert rows["", "pixel accuracy"]["low"] > 0
    words = ["evaluate", semantic / "semantic", *words_of(semantic)[2:], "--compare", "semantic", "--against", "model.onnx"]
    assert run(*words, "--resamples", "50", "--out", tmp_path) == 0
    assert "comparison" in capsys.readouterr().out
    assert "IoU by class" in (tmp_path / "report.html").read_text()


def test_classes_of_the_model_are_those_of_the_data_by_name(semantic: Path) -> None:
    data = open_semantic(semantic)
    runtime = Colours("semantic", names=("water", "bubble", "diatom"))
    found = next(predictions(runtime, data, scores=True, show=False))
    assert isinstance(found, SemanticMap)
    seen = read(data.image_paths[0]).argmax(axis=2)
    np.testing.assert_array_equal(found.labels, np.array([0, 255, 1])[seen])
    assert found.scores is not None
    assert found.scores.shape == (3, SIDE, SIDE)
    assert (found.scores[2] == 0).all()
    assert (found.scores[1][seen == 2] > 0.5).all()


def test_what_says_nothing_about_maps_is_refused(
    semantic: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads(monkeypatch, model=Colours("semantic"), other=Colours("panoptic"))
    for flags, text in (
        (["--compare", "panoptic"], "cannot be compared as panoptic"),
        (["--threshold", "count"], "--threshold"),
        (["--save-calibration", "platt"], "--save-calibration"),
        (["--against", "other.onnx"], "answers the task 'panoptic'"),
    ):
        assert run(*words_of(semantic), *flags) == 1
        assert text in capsys.readouterr().err


def test_from_python(semantic: Path, tmp_path: Path) -> None:
    data = open_semantic(semantic)
    result = pelagia.evaluate(Predictor(Colours("semantic")), data, show=False)
    assert 0.5 < result.mean_iou < 1  # type: ignore[union-attr]  # a class map's score
    same = pelagia.evaluate(semantic / "semantic", data, kind="semantic")
    assert same.mean_iou == 1  # type: ignore[union-attr]
    with pytest.raises(OptionError, match="unknown option"):
        pelagia.evaluate(semantic / "semantic", data, kind="semantic", iou=3)


# ---------------------------------------------------------------------------------------------- panoptic maps


@pytest.fixture(scope="module")
def outlines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO polygons: a square of each of two classes in water."""
    folder = tmp_path_factory.mktemp("outlines")
    annotations = []
    for index in range(5):
        labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
        for category, x in ((1, 4), (2, 28)):
            y, side = 4 + 5 * index, 14
            labels[y : y + side, x : x + side] = category
            ring = [x, y, x + side, y, x + side, y + side, x, y + side]
            entry = {"id": len(annotations) + 1, "image_id": index, "category_id": category, "iscrowd": 0}
            annotations.append({**entry, "bbox": [x, y, side, side], "area": side**2, "segmentation": [ring]})
        write(folder / f"{index}.png", painted(labels, index, 0.06 * index))
    content = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": SIDE, "height": SIDE} for index in range(5)],
        "categories": [{"id": 1, "name": "diatom"}, {"id": 2, "name": "copepod"}],
        "annotations": annotations,
    }
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json"


def test_a_panoptic_model_on_the_command_line(
    outlines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("background", "diatom", "copepod")
    runtime = Colours("panoptic", names=names)
    loads(monkeypatch, model=runtime)
    assert run("evaluate", "model.onnx", outlines, "--json", "--resamples", "30", "--out", tmp_path) == 0
    content = json.loads(capsys.readouterr().out)
    data = open_dataset(outlines, task="panoptic")
    found = []
    for path in data.image_paths:
        seen = read(path).argmax(axis=2).astype(np.int32)
        present = [Segment(k + 1, data.class_names.index(names[k])) for k in np.unique(seen).tolist()]
        found.append(PanopticMap(seen + 1, tuple(present)))
    truth = [data.panoptic(index) for index in range(5)]
    expected = evaluate_panoptic(truth, found, data.categories)
    assert 0.5 < expected.all.pq < 1
    for group in ("all", "things", "stuff"):
        assert content[group]["pq"] == pytest.approx(getattr(expected, group).pq, abs=1e-12)
    assert [row["rq"] for row in content["classes"]] == pytest.approx(expected.rq, abs=1e-12)
    rows = {(row["class"], row["number"]): row for row in content["intervals"]}
    assert rows["diatom", "SQ"]["low"] <= expected.sq[0] <= rows["diatom", "SQ"]["high"]
    assert content["worst_images"][0]["image"] == "4.png"
    assert len(list((tmp_path / "worst").iterdir())) >= 3
    assert "Left the truth" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_the_notes_stand_in_what_is_written(
    outlines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: Task
) -> None:
    """One image is two tiles wide, and of 16 bits, which the model does not know."""
    names = ("background", "diatom", "copepod")
    loads(monkeypatch, model=Colours(task, names), other=Colours(task, names[::-1]))
    content = json.loads(outlines.read_text())
    for index in range(5):
        pixels = read(outlines.parent / f"{index}.png")
        write(tmp_path / f"{index}.png", pixels if index else np.tile(pixels, (1, 2, 1)).astype(np.uint16))
    content["images"][0]["width"] *= 2
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(content))
    result = pelagia.evaluate(Predictor(Colours(task, names)), open_dataset(truth, task=task), show=False)
    notes = list(result.notes)  # type: ignore[union-attr]  # a model's score has them
    assert len(notes) == 2
    assert notes[0].startswith("1 of 5 images are predicted in tiles of 48 x 48 pixels")
    assert notes[1].startswith("0.png has 16 bits")
    words = ("evaluate", "model.onnx", truth)
    assert run(*words, "--against", "other.onnx", "--resamples", "20", "--json", "--out", tmp_path / "out") == 0
    told = capsys.readouterr()
    assert told.err.count(f"{notes[0]}; --no-tiled") == 2  # of both models
    assert json.loads(told.out)["notes"] == notes
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["notes"] == notes
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(html.escape(note) in page for note in notes)
    assert run(*words) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == notes


def test_a_panoptic_file_against_a_model(
    outlines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file paints the truth, so that the model is worse."""
    loads(monkeypatch, model=Colours("panoptic", names=("background", "diatom", "copepod")))
    data = open_dataset(outlines, task="panoptic")
    (tmp_path / "found").mkdir()
    annotations = []
    for index in range(5):
        item = data.panoptic(index)
        pixels = np.stack([item.ids % 256, item.ids // 256 % 256, item.ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "found" / f"{index}.png")
        segments = [{"id": part.id, "category_id": data.categories[part.label].id} for part in item.segments]
        annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
    (tmp_path / "found.json").write_text(json.dumps({"annotations": annotations}))
    words = ("evaluate", tmp_path / "found.json", outlines, "--against", "model.onnx", "--json", "--resamples", "30")
    assert run(*words) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["all"]["pq"] == 1
    assert content["worst_images"] == []
    rows = {(row["class"], row["number"]): row for row in content["differences"]}
    assert rows["", "PQ"]["value"] < 0
    assert rows["", "PQ"]["first"] == 1


def test_weights_of_a_model_equal_scoring_repeated_images(semantic: Path) -> None:
    data, runtime = open_semantic(semantic), Colours("semantic")
    (got,) = evaluate_maps([runtime], semantic, "semantic", lambda _: data, MapOptions(show=False))
    for resample in range(4):
        weights = image_weights(6, 0, resample)
        many = np.repeat(np.arange(6), weights.astype(int)).tolist()
        pairs = [got.images.maps(index) for index in many]
        expected = evaluate_semantic(*zip(*pairs, strict=True), data.categories)  # type: ignore[arg-type]  # class maps
        for name, value in expected.summary():
            assert got.statistic(weights)["", name] == pytest.approx(value, abs=1e-12)
