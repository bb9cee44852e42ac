"""Results of every task: what is written, and that a score of the files is the score of the predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pelagia.cli import main as cli_main
from pelagia.core import masks as core_masks
from pelagia.core.card import ModelCard
from pelagia.core.image import image_size, read, write
from pelagia.core.types import Category, Instances, MaskCrop, PanopticMap, Prediction, Segment, SemanticMap, Task
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.data.label_pixels import read_label_pixels, write_label_pixels
from pelagia.data.open import open_dataset
from pelagia.errors import EvaluationError, ModelError
from pelagia.infer.evaluate import gather_evidence
from pelagia.infer.objects import instances_of
from pelagia.infer.panoptic_files import read_panoptic
from pelagia.infer.predict import FileResult
from pelagia.infer.read_predictions import read_predictions
from pelagia.infer.result_pictures import draw_result
from pelagia.infer.result_values import image_dict
from pelagia.infer.results import ResultWriter
from pelagia.train.run import RunFolder
from tiny_onnx import tiny_card

WIDTH, HEIGHT = 100, 80
POINTS = ("head", "tail")
CLASSES = (
    Category(3, "red", keypoints=POINTS, skeleton=((0, 1),)),
    Category(7, "green", keypoints=POINTS, skeleton=((0, 1),)),
)


def card_of(task: Task, categories: tuple[Category, ...] = CLASSES) -> ModelCard:
    return tiny_card(task=task, categories=categories)


def some(seed: int, count: int, task: Task) -> Instances:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 50, (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(6, 30, (count, 2))], axis=1).astype(np.float64)
    scores = np.sort(rng.permutation(900)[:count] / 1000 + 0.1)[::-1]
    found = Instances(labels=rng.integers(0, 2, count), boxes=boxes, scores=scores)
    if task == "instance":
        masks = []
        for x1, y1, x2, y2 in boxes.astype(int).tolist():
            bitmap = rng.random((y2 - y1, x2 - x1)) < 0.9
            bitmap[0], bitmap[-1], bitmap[:, 0], bitmap[:, -1] = True, True, True, True
            masks.append(MaskCrop(x1, y1, bitmap))
        return found.replace(masks=tuple(masks))
    places = boxes[:, None, :2] + rng.random((count, 2, 2)) * (boxes[:, None, 2:] - boxes[:, None, :2])
    return found.replace(keypoints=np.concatenate([places, rng.random((count, 2, 1))], axis=2))


def save(folder: Path, card: ModelCard, found: dict[str, Prediction]) -> dict[str, Any]:
    with ResultWriter(folder, card, model="m.onnx") as writer:
        for name, item in found.items():
            height, width = (HEIGHT, WIDTH)
            if isinstance(item, SemanticMap | PanopticMap):
                height, width = (item.labels if isinstance(item, SemanticMap) else item.ids).shape
            writer.add(FileResult(Path(name), width, height, item), name)
        writer.add(FileResult(Path("bad.png"), error="broken"), "bad.png")
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    assert content["complete"] is True
    assert content["images"][-1] == {"file": "bad.png", "error": "broken"}
    return content


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def truth_of(found: dict[str, Instances], task: Task) -> Dataset:
    """The predictions as truth, moved a little, so that scores are neither 0 nor 1."""
    items = []
    for name, item in found.items():
        moved: dict[str, Any] = {"scores": None}
        if item.masks is not None:
            moved["masks"] = tuple(MaskCrop(mask.x + 1, mask.y, mask.bitmap) for mask in item.masks)
            moved["boxes"] = item.box_array + np.array([1, 0, 1, 0])
        if item.keypoints is not None:
            moved["keypoints"] = np.concatenate([item.keypoints[..., :2] + 0.8, np.full((len(item), 2, 1), 2.0)], axis=2)
        items.append((name, (WIDTH, HEIGHT), item.replace(**moved)))
    return Dataset.from_instances(CLASSES, items, task=task)


@pytest.mark.parametrize("task", ["instance", "keypoints"])
@pytest.mark.parametrize("source", ["results.json", "coco.json", "."])
def test_objects_are_read_back_with_the_same_score(tmp_path: Path, task: Task, source: str) -> None:
    found = {"a/1.png": some(0, 7, task), "b.png": some(1, 4, task), "none.png": some(2, 0, task)}
    save(tmp_path, card_of(task), dict(found))
    truth = truth_of(found, task)
    back = read_predictions(tmp_path / source, truth)
    kind = "masks" if task == "instance" else "keypoints"
    assert back.objects.kind == kind
    for index, item in enumerate(found.values()):
        got = instances_of(back.objects, index, (WIDTH, HEIGHT))
        np.testing.assert_array_equal(got.labels, item.labels)
        if task == "instance":
            assert got.masks is not None
            for mask, wanted in zip(got.masks, item.masks or (), strict=True):
                np.testing.assert_array_equal(core_masks.paste(mask, HEIGHT, WIDTH), core_masks.paste(wanted, HEIGHT, WIDTH))
        else:
            assert got.keypoints is not None
            assert item.keypoints is not None
            np.testing.assert_allclose(got.keypoints[..., :2], item.keypoints[..., :2], atol=6e-4)
    mine = gather_evidence(truth, list(found.values()), task).result()
    theirs = gather_evidence(truth, back.objects).result()
    assert 0.1 < mine.ap < 0.999
    assert theirs.ap == pytest.approx(mine.ap, abs=1e-9)
    assert theirs.ap50 == pytest.approx(mine.ap50, abs=1e-9)


def test_masks_become_label_images(tmp_path: Path) -> None:
    found = {"a/1.png": some(0, 7, "instance"), "a/1.tif": some(1, 4, "instance"), "none.png": some(2, 0, "instance")}
    content = save(tmp_path, card_of("instance"), dict(found))
    assert [image["map"] for image in content["images"][:3]] == ["labels/a/1.png", "labels/a/1.tif.png", "labels/none.png"]
    for name, item in found.items():
        rows = [row for row in table(tmp_path / "results.csv") if row["file"] == name]
        assert [int(row["object"]) for row in rows] == list(range(1, len(item) + 1))
        image = next(image for image in content["images"] if image["file"] == name)
        pixels = read_label_pixels(tmp_path / image["map"])
        assert pixels.shape == (HEIGHT, WIDTH)
        free = np.ones(pixels.shape, bool)
        for number, mask in enumerate(item.masks or (), start=1):
            whole = core_masks.paste(mask, HEIGHT, WIDTH)
            assert int(rows[number - 1]["area_px"]) == whole.sum() == image["objects"][number - 1]["area_px"]
            np.testing.assert_array_equal(pixels == number, whole & free)  # the strongest, which comes first, on top
            free &= ~whole
        assert (pixels[free] == 0).all()


def test_more_objects_than_16_bits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pelagia.infer.result_maps._MOST_IN_PNG", 5)
    found = some(0, 7, "instance")
    content = save(tmp_path, card_of("instance"), {"a.png": found})
    assert content["images"][0]["map"] == "labels/a.tif"
    pixels = tifffile.imread(tmp_path / "labels" / "a.tif")
    assert pixels.dtype == np.uint32
    assert pixels.max() <= 7


def test_keypoints_in_tables_and_coco(tmp_path: Path) -> None:
    found = some(0, 3, "keypoints")
    assert found.keypoints is not None
    found.keypoints[0, :, 2] = 0.9, 0.2
    save(tmp_path, card_of("keypoints"), {"a.png": found})
    row = table(tmp_path / "results.csv")[0]
    assert float(row["head_x_px"]) == pytest.approx(found.keypoints[0, 0, 0], abs=6e-4)
    assert float(row["tail_score"]) == pytest.approx(0.2)
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert coco["categories"][0]["keypoints"] == [*POINTS]
    assert coco["categories"][0]["skeleton"] == [[1, 2]]
    assert coco["annotations"][0]["keypoints"][2::3] == [2, 1]
    assert coco["annotations"][0]["num_keypoints"] == 2
    assert open_dataset(tmp_path / "coco.json", task="keypoints").annotations.keypoints is not None


SEMANTIC = (Category(0, "background"), Category(20, "cell"), Category(11, "membrane"))


def class_map(seed: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> SemanticMap:
    rng = np.random.default_rng(seed)
    return SemanticMap(np.repeat(np.repeat(rng.integers(0, 3, (shape[0] // 4, shape[1] // 4)), 4, 0), 4, 1).astype(np.uint8))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    with pytest.raises(SystemExit) as stop:
        cli_main.main([str(word) for word in words])
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("source", ["results.json", ".", "semantic"])
@pytest.mark.parametrize("binary", [False, True])
def test_class_maps_are_scored_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, binary: bool) -> None:
    """Also where the truth's files have other values (0 and 255) or another order of classes."""
    maps = {"a.png": class_map(0), "b.png": class_map(1)}
    real = {name: class_map(0 if name == "a.png" else 2).labels.copy() for name in maps}
    for name, labels in real.items():
        labels[:10] = 0
        write(tmp_path / "data" / "images" / name, np.zeros((HEIGHT, WIDTH), np.uint8))
    classes = ("background", "membrane", "cell")  # the model's second is the truth's third
    for name, labels in real.items():
        stored = (labels > 0).astype(np.uint8) * 255 if binary else np.array([0, 2, 1], np.uint8)[labels]
        write_label_pixels(tmp_path / "data" / "semantic" / name, stored)
    categories = (Category(0, "background"), Category(1, "foreground")) if binary else SEMANTIC
    if binary:
        maps = {name: SemanticMap((item.labels > 0).astype(np.uint8)) for name, item in maps.items()}
    save(tmp_path / "out", card_of("semantic", categories), dict(maps))
    words = [] if binary else [word for name in classes for word in ("--classes", name)]
    more = ["--compare", "semantic"] if source == "semantic" else []
    result = run(capsys, "evaluate", tmp_path / "out" / source, tmp_path / "data", "--json", *words, *more)
    # The definition, with labels of the model.
    overlap = []
    for label in range(len(categories)):
        truth = [(labels > 0) * 1 if binary else labels for labels in real.values()]
        pairs = [(item.labels == label, labels == label) for item, labels in zip(maps.values(), truth, strict=True)]
        overlap.append(sum((a & b).sum() for a, b in pairs) / sum((a | b).sum() for a, b in pairs))
    assert result["mean_iou"] == pytest.approx(np.mean(overlap), abs=1e-9)


def test_class_maps_in_tables(tmp_path: Path) -> None:
    found = class_map(0)
    found.labels[:8] = 255
    content = save(tmp_path, card_of("semantic", SEMANTIC), {"a.png": found})
    assert not (tmp_path / "coco.json").exists()
    image = content["images"][0]
    assert image["map"] == "semantic/a.png"
    np.testing.assert_array_equal(read_label_pixels(tmp_path / "semantic" / "a.png"), found.labels)
    for label, item in enumerate(image["classes"]):
        assert (item["class"], item["class_id"]) == (SEMANTIC[label].name, SEMANTIC[label].id)
        assert item["pixels"] == (found.labels == label).sum()
        assert item["share"] == pytest.approx((found.labels == label).mean(), abs=1e-6)
    rows, counts = table(tmp_path / "results.csv"), table(tmp_path / "counts.csv")
    assert [int(row["pixels"]) for row in rows] == [item["pixels"] for item in image["classes"]]
    assert int(counts[0]["cell_px"]) == image["classes"][1]["pixels"]
    assert float(counts[0]["membrane_share"]) == image["classes"][2]["share"]
    assert int(counts[0]["total_px"]) == HEIGHT * WIDTH


def test_classes_that_the_truth_does_not_have(tmp_path: Path) -> None:
    write(tmp_path / "data" / "images" / "a.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    write_label_pixels(tmp_path / "data" / "semantic" / "a.png", class_map(0).labels)
    other = (Category(1, "sky"), Category(2, "sea"), Category(3, "ship"))
    save(tmp_path / "out", card_of("semantic", other), {"a.png": class_map(0)})
    with pytest.raises(EvaluationError, match="sky"):
        cli_main.app(["evaluate", str(tmp_path / "out"), str(tmp_path / "data")])


PANOPTIC = (Category(5, "water", is_thing=False), Category(9, "medusa"), Category(2, "sand", is_thing=False))


def panoptic_map(seed: int) -> PanopticMap:
    rng = np.random.default_rng(seed)
    ids = np.full((HEIGHT, WIDTH), 40, np.int32)
    ids[60:], ids[:3] = 17, 0
    segments = [Segment(40, 0), Segment(17, 2, 0.7), Segment(99, 1, 0.5)]  # 99 is hidden
    for number in range(5):
        x, y = int(rng.integers(0, 80)), int(rng.integers(5, 50))
        ids[y : y + 9, x : x + 14] = 1000 + number
        segments.append(Segment(1000 + number, 1, 0.9 - number / 10))
    segments = [item for item in segments if item.id == 99 or (ids == item.id).any()]
    ids[75:, 90:] = 12345  # of no segment
    return PanopticMap(ids, tuple(segments))


@pytest.mark.parametrize("source", ["results.json", ".", "panoptic.json"])
def test_panoptic_maps_are_scored_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    maps = {"x/a.png": panoptic_map(0), "b.png": panoptic_map(1)}
    save(tmp_path / "truth", card_of("panoptic", PANOPTIC), dict(maps))
    perfect = run(capsys, "evaluate", tmp_path / "truth" / source, tmp_path / "truth" / "panoptic.json", "--json")
    assert perfect["all"]["pq"] == pytest.approx(1.0)
    other = {"x/a.png": panoptic_map(0), "b.png": panoptic_map(5)}
    save(tmp_path / "out", card_of("panoptic", PANOPTIC), dict(other))
    worse = run(capsys, "evaluate", tmp_path / "out" / source, tmp_path / "truth" / "panoptic.json", "--json")
    assert 0.2 < worse["all"]["pq"] < 0.95


def test_panoptic_maps_on_disk(tmp_path: Path) -> None:
    found = panoptic_map(0)
    content = save(tmp_path, card_of("panoptic", PANOPTIC), {"x/a.jpg": found})
    image = content["images"][0]
    assert image["map"] == "panoptic/x/a.png"
    file = read_panoptic(tmp_path / "panoptic.json")
    assert file.names == ("x/a.jpg",)
    assert [category.is_thing for category in file.categories] == [False, True, False]
    back = file.map(0)
    things = 0
    for item, segment in zip(image["segments"], back.segments, strict=True):
        pixels = back.ids == segment.id
        assert (item["id"], item["area_px"]) == (segment.id, pixels.sum())
        original = np.unique(found.ids[pixels])
        assert len(original) == 1  # one segment of the prediction
        np.testing.assert_array_equal(pixels, found.ids == original[0])
        row, column = np.nonzero(pixels)
        assert item["box"] == [column.min(), row.min(), column.max() + 1, row.max() + 1]
        assert file.categories[segment.label].id == item["class_id"]
        things += item["thing"]
    assert (back.ids[(found.ids == 0) | (found.ids == 12345)] == 0).all()
    assert image["count"] == things == sum((found.ids == item.id).any() for item in found.segments if item.label == 1)
    counts = table(tmp_path / "counts.csv")[0]
    assert int(counts["medusa"]) == int(counts["total"]) == things
    assert float(counts["sand_share"]) == pytest.approx((found.ids == 17).mean(), abs=1e-6)
    assert [int(row["segment"]) for row in table(tmp_path / "results.csv")] == list(range(1, len(back.segments) + 1))


def test_huge_ids_are_renumbered(tmp_path: Path) -> None:
    found = panoptic_map(0)
    large = PanopticMap(
        np.where(found.ids == 40, 2**30, found.ids).astype(np.int32),
        tuple(Segment(2**30 if item.id == 40 else item.id, item.label, item.score) for item in found.segments),
    )
    assert save(tmp_path / "1", card_of("panoptic", PANOPTIC), {"a.png": found}) == save(
        tmp_path / "2", card_of("panoptic", PANOPTIC), {"a.png": large}
    )
    for name in ("panoptic.json", "panoptic/a.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_an_answer_of_another_kind_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match="does not answer with SemanticMap"),
        ResultWriter(tmp_path, card_of("instance")) as writer,
    ):
        writer.add(FileResult(Path("a.png"), WIDTH, HEIGHT, class_map(0)), "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["instance", "keypoints", "semantic", "panoptic"])
def test_pictures_of_every_task_also_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    write(tmp_path / "a.png", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    found: Prediction = some(0, 3, task)
    card = card_of(task)
    if task == "semantic":
        found, card = class_map(0), card_of(task, SEMANTIC)
    if task == "panoptic":
        found, card = panoptic_map(0), card_of(task, PANOPTIC)
    result = FileResult(tmp_path / "a.png", WIDTH, HEIGHT, found)
    draw_result(result, tmp_path / "whole.png", card)
    monkeypatch.setattr("pelagia.infer.preview.PICTURE_PIXELS", 2000)
    draw_result(result, tmp_path / "small.png", card)
    whole, small = read(tmp_path / "whole.png"), read(tmp_path / "small.png")
    for picture, (width, height) in ((whole, (WIDTH, HEIGHT)), (small, (50, 40))):
        assert picture.shape[1] == width
        assert picture.shape[0] > height if task in ("semantic", "panoptic") else picture.shape[0] == height
        assert (picture[:height] != 90).any()
    assert image_size(tmp_path / "small.png")[0] == 50
    json.dumps(image_dict(result.found or found, "a.png", (WIDTH, HEIGHT), card))


def test_written_label_images_open_as_a_data_set(tmp_path: Path) -> None:
    """The folder of class maps is that of `pelagia convert`: with the images beside it, it is a labelled data set."""
    found = class_map(0)
    save(tmp_path / "out", card_of("semantic", SEMANTIC), {"a.png": found})
    write(tmp_path / "out" / "images" / "a.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    data = open_dataset(tmp_path / "out", format="labels", task="semantic")
    assert data.class_names == ("background", "cell", "membrane")
    np.testing.assert_array_equal(data.semantic(0).labels, found.labels)
    convert(data, tmp_path / "again", "labels")
    assert (tmp_path / "again" / "categories.json").read_text() == (tmp_path / "out" / "categories.json").read_text()


def test_pictures_of_validation_show_maps_beside_their_truth(tmp_path: Path) -> None:
    save(tmp_path / "data", card_of("semantic", SEMANTIC), {"a.png": class_map(0)})
    write(tmp_path / "data" / "images" / "a.png", np.full((HEIGHT, WIDTH), 100, np.uint8))
    data = open_dataset(tmp_path / "data", format="labels", task="semantic")
    folder = RunFolder(tmp_path / "run")
    folder.predictions(data, [class_map(1)])
    folder.draw()
    sheet = read(tmp_path / "run" / "val_predictions.png")
    assert sheet.shape[1] > 2 * 400  # truth and prediction side by side, enlarged
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 4
