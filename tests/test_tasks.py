"""Every task from labels to results: each architecture through Python, and one model a task through the command line.

Drawn images are of 8 bits for the architectures and the task `detect`, of 16 for the other tasks on the command line.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pelagia
from pelagia.cli.main import main
from pelagia.core import image as core_image
from pelagia.core import masks as core_masks
from pelagia.core.oriented import canonical
from pelagia.core.types import Category, Instances, PanopticMap, SemanticMap, Task
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.models import registry

SIDE = 64
CATEGORIES = (
    Category(1, "bright", "", ("head", "tail"), ((0, 1),), (0, 1)),
    Category(2, "dark", "", ("head", "tail"), ((0, 1),), (0, 1)),
)


def _cases() -> list[Any]:
    """One architecture and task a case; sizes of one family do the same."""
    first = {entry.builder: entry for entry in reversed(registry.entries())}
    return [pytest.param(entry.name, task, id=f"{entry.name}-{task}") for entry in first.values() for task in entry.tasks]


def draw(folder: Path, images: int = 4, *, deep: bool = False) -> Dataset:
    """Grey images with a bright and a dark ellipse each, with masks, oriented boxes and two keypoints; 16 bits where `deep`."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    items = []
    for number in range(images):
        rng = np.random.default_rng([5, number])
        image = rng.integers(110, 130, (SIDE, SIDE, 1)).astype(np.uint8)
        crops, turned, points = [], [], []
        for label, centre in enumerate(((17, 32), (46, 32))):
            cx, cy = centre + rng.uniform(-3, 3, 2)
            angle = rng.uniform(-1.5, 1.5)
            along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
            bitmap = (along / 12) ** 2 + (across / 7) ** 2 < 1
            image[bitmap] = (230, 20)[label]
            crops.append(core_masks.crop_from_bitmap(bitmap))
            turned.append([cx, cy, 24.0, 14.0, angle])
            tips = np.array([[cx, cy]]) + np.array([[12.0], [-12.0]]) * [[np.cos(angle), np.sin(angle)]]
            points.append(np.concatenate([tips.clip(0, SIDE), [[2.0], [2.0]]], axis=1))
        path = folder / f"{number}.png"
        core_image.write(path, image.astype(np.uint16) * 100 if deep else image)
        truth = Instances(
            np.array([0, 1]),
            boxes=np.array([core_masks.bounds(crop) for crop in crops]),
            oriented=canonical(np.array(turned)),
            masks=tuple(crops),
            keypoints=np.array(points),
        )
        items.append((path, (SIDE, SIDE), truth))
    return Dataset.from_instances(CATEGORIES, items, root=folder, splits={"train": range(images), "val": range(images)})


def small(name: str) -> str:
    """The name of the same model with its tiny options, registered for tests."""
    entry = registry.entry(name)
    tiny = f"{name}-tiny-for-tests"
    if tiny not in registry._entries:
        registry._entries[tiny] = replace(entry, name=tiny, defaults={**entry.defaults, **entry.tiny})
    return tiny


@pytest.fixture(autouse=True)
def _only_real_models_remain() -> Any:
    yield
    for name in [name for name in registry._entries if name.endswith("-tiny-for-tests")]:
        del registry._entries[name]


@pytest.mark.parametrize(("name", "task"), _cases())
def test_from_labels_to_results(name: str, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw(tmp_path / "images").with_task(task)
    size = registry.entry(name).tiny_input[0]
    run = pelagia.train(small(name), data, epochs=1, batch=2, imgsz=size, threads=1, out=str(tmp_path / "run"))
    assert run.best.is_file()
    assert (run.folder / "train_batch.png").is_file()
    assert np.isfinite(run.history[0]["loss"])
    predictor = pelagia.load(run.folder)
    found = predictor.predict(tmp_path / "images" / "0.png")
    assert isinstance(found, {"semantic": SemanticMap, "panoptic": PanopticMap}.get(task, Instances))
    assert pelagia.evaluate(predictor, data).lines()
    images = [str(path) for path in sorted((tmp_path / "images").glob("*.png"))]
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(run.folder), *images, "--out", str(tmp_path / "found"), "--json"])
    assert stop.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["images"]) == 4
    assert json.loads((tmp_path / "found" / "results.json").read_text())["complete"] is True
    assert len(list((tmp_path / "found" / "pictures").glob("*.jpg"))) == 4


# The command line


@dataclass(frozen=True)
class Way:
    """A model for each task that trains and exports in seconds, the format of its labels, and what they are converted to."""

    model: str
    labels: str
    target: str
    target_task: Task
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ("coco.json",)


WAYS: dict[Task, Way] = {
    "detect": Way("detr-r50", "coco", "voc", "detect"),
    "oriented": Way("yolo11n", "dota", "yolo", "oriented"),
    "instance": Way("unet-timm", "coco", "labels", "instance", ("labels",)),
    "semantic": Way("unet-timm", "coco", "labels", "semantic", ("semantic",), ("categories.json",)),
    "panoptic": Way("mask2former-r50", "panoptic", "coco", "instance", ("panoptic",), ("panoptic.json",)),
    "keypoints": Way("keypoint-rcnn", "coco", "yolo", "keypoints"),
}


@dataclass(frozen=True)
class Trained:
    """What `pelagia train --json` said, and where everything lies."""

    task: Task
    way: Way
    labels: Path
    run: Path
    told: dict[str, Any]

    @property
    def images(self) -> Path:
        return self.labels / "images"


def command(*words: object) -> str:
    """What a command writes to standard output; it must succeed."""
    output = io.StringIO()
    with redirect_stdout(output), pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0, words
    return output.getvalue()


@pytest.fixture(scope="module", params=list(WAYS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One epoch on four drawn images, two more to validate on."""
    task: Task = request.param
    way, folder = WAYS[task], tmp_path_factory.mktemp(task)
    data = draw(folder / "drawn", 6, deep=task != "detect").with_splits({"train": range(4), "val": range(4, 6)})
    convert(data, folder / "labels", way.labels, task="instance" if task == "semantic" else task)
    entry = registry.entry(way.model)
    own = [word for name, value in entry.tiny.items() for word in ("--model-options", f"{name}={json.dumps(value)}")]
    words = ("train", way.model, folder / "labels", "--task", task, "--out", folder / "run", "--json", *own)
    sizes = ("--epochs", 1, "--batch", 2, "--imgsz", entry.tiny_input[0], "--threads", 1)
    return Trained(task, way, folder / "labels", folder / "run", json.loads(command(*words, *sizes)))


def test_train_leaves_a_run(trained: Trained) -> None:
    assert trained.told["stopped"] == "finished"
    assert np.isfinite(trained.told["history"][0]["loss"])
    assert Path(trained.told["best"]) == trained.run / "best.safetensors"
    names = {path.name for path in trained.run.iterdir()}
    assert names >= {
        "best.safetensors",
        "last.safetensors",
        "config.json",
        "curves.png",
        "train_batch.png",
        "val_predictions.png",
    }
    card = pelagia.load(trained.run).card
    assert card.task == trained.task
    window = (0.0, 255.0) if trained.task == "detect" else (2000.0, 23000.0)
    assert (card.normalisation.low, card.normalisation.high) == window


def test_evaluate_repeats_the_validation(trained: Trained, tmp_path: Path) -> None:
    words = ("evaluate", trained.run, trained.labels, "--task", trained.task, "--out", tmp_path, "--threads", 1, "--json")
    told = json.loads(command(*words))
    assert told["images"] == 2
    epoch = trained.told["metrics"]
    if trained.task == "semantic":
        assert told["mean_iou"] == pytest.approx(epoch["miou"])
    elif trained.task == "panoptic":
        assert told["all"]["pq"] == pytest.approx(epoch["pq"])
    else:
        assert (told["ap"], told["ap50"]) == pytest.approx((epoch["ap"], epoch["ap50"]))
    assert {"evaluation.json", "report.html"} <= {path.name for path in tmp_path.iterdir()}


def found_in(folder: Path) -> list[float]:
    """Of the first image: scores of the strongest objects, shares of the classes, or areas of the segments."""
    image = json.loads((folder / "results.json").read_text())["images"][0]
    if "objects" in image:
        return [item["score"] for item in image["objects"][:5]]
    return [item["share"] for item in image["classes"]] if "classes" in image else [item["area_px"] for item in image["segments"]]


def test_predict_writes_its_files_and_the_exported_model_the_same(trained: Trained, tmp_path: Path) -> None:
    asked = ("--score", 0.001, "--threads", 1)
    told = json.loads(command("predict", trained.run, trained.images, "--out", tmp_path / "torch", *asked, "--json"))
    assert (told["complete"], told["predicted"], told["failed"]) == (True, 6, [])
    names = {path.name for path in (tmp_path / "torch").iterdir()}
    common = {"results", "results.json", "results.csv", "counts.csv", "pictures"}
    assert names == common | {*trained.way.files, *trained.way.folders}
    for folder in ("pictures", "results", *trained.way.folders):
        assert len(list((tmp_path / "torch" / folder).iterdir())) == 6
    scores = found_in(tmp_path / "torch")
    assert scores

    report = json.loads(command("export", trained.run, "--out", tmp_path / "m.onnx", "--json"))
    assert report["outputs"]
    assert all(item["relative"] <= 1e-3 for item in report["outputs"].values())
    assert OnnxRuntime(tmp_path / "m.onnx").card.normalisation == pelagia.load(trained.run).card.normalisation
    text = command("predict", tmp_path / "m.onnx", trained.images, "--out", tmp_path / "onnx", *asked)
    assert f"6 images{' labelled' if trained.task == 'semantic' else ''}. Results: {tmp_path / 'onnx'}" in text
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == names
    assert found_in(tmp_path / "onnx") == pytest.approx(scores, abs=1e-3, rel=0.01)


def test_doctor_and_convert(trained: Trained, tmp_path: Path) -> None:
    way = trained.way
    report = json.loads(command("doctor", trained.labels, "--imgsz", SIDE, "--json"))
    assert (report["facts"]["images"], report["counts"]["error"]) == (6, 0)
    out = tmp_path / "converted"
    text = command("convert", trained.labels, out, "--to", way.target, "--write-task", way.target_task)
    assert f"6 images, 12 objects written as {way.target} ({way.target_task}) to {out}" in text
    again = json.loads(command("doctor", out, "--imgsz", SIDE, "--json"))
    assert (again["facts"]["images"], again["counts"]["error"]) == (6, 0)
    first, second = (pelagia.open_dataset(path, task=way.target_task) for path in (trained.labels, out))
    assert second.format == way.target
    assert second.class_names == first.class_names
    for name in ("train", "val"):
        assert second.split(name).names == first.split(name).names
    if way.target_task == "semantic":
        np.testing.assert_array_equal(second.semantic(0).labels, first.semantic(0).labels)
    else:
        np.testing.assert_allclose(second.truth(0).box_array, first.truth(0).box_array, atol=1)
