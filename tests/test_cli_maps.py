"""`pelagia predict` for models that answer with maps, and the label images it writes judged by `pelagia evaluate`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pelagia.cli.main import main
from pelagia.core.types import Category, Task
from pelagia.models import checkpoint
from pelagia.models.registry import create, entry

GROUND, CELL = Category(1, "ground", is_thing=False), Category(2, "cell")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def saved(folder: Path, name: str, task: Task, categories: tuple[Category, ...]) -> Path:
    torch.manual_seed(1)
    model = create(name, categories, task, input_size=64, options=entry(name).tiny)
    checkpoint.save(folder / f"{task}.safetensors", model, model.card)
    return folder / f"{task}.safetensors"


def pictures(folder: Path, count: int = 3) -> Path:
    """Bright squares on dark noise."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        for _ in range(4):
            x, y = rng.integers(0, 50, 2)
            image[y : y + 12, x : x + 12] = rng.integers(150, 255)
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def cells_of(line: str) -> list[str]:
    return line.split()


def test_the_table_of_a_class_map_holds_the_shares_of_its_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path, "unet-timm", "semantic", (GROUND, CELL))
    images = pictures(tmp_path / "images")
    assert run("predict", model, images, "--out", tmp_path / "r", "--no-draw", "--threads", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(place for place, line in enumerate(lines) if "% of pixels" in line)
    rows = dict(cells_of(line)[:2] for line in lines[head + 1 :] if cells_of(line)[:1] in (["ground"], ["cell"]))
    maps = np.stack([np.array(Image.open(tmp_path / "r" / "semantic" / f"{number}.png")) for number in range(3)])
    shares = [100 * float((maps == label).mean()) for label in (0, 1)]
    assert [float(rows["ground"]), float(rows["cell"])] == pytest.approx(shares, abs=0.006)
    assert sum(shares) == pytest.approx(100)
    assert "3 images labelled" in "\n".join(lines)


def test_the_tables_of_panoptic_maps_hold_counts_and_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path, "mask2former-r50", "panoptic", (GROUND, CELL))
    images = pictures(tmp_path / "images")
    words = ("predict", model, images, "--no-draw", "--threads", 1, "--score", 0.01)
    assert run(*words, "--out", tmp_path / "r") == 0
    text = capsys.readouterr().out
    assert run(*words, "--out", tmp_path / "j", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    lines = [cells_of(line) for line in text.splitlines()]
    counts = {row[0]: int(row[1]) for row in lines if len(row) == 2 and row[1].isdigit()}
    assert {name: count for name, count in counts.items() if name != "total"} == told["counts"]
    assert counts["total"] == sum(told["counts"].values())
    shares = {row[0]: float(row[1]) for row in lines if len(row) == 2 and "." in row[1]}
    assert shares == {name: pytest.approx(100 * share, abs=0.006) for name, share in told["shares"].items()}
    document = json.loads((tmp_path / "r" / "panoptic.json").read_text())
    segments = [segment for item in document["annotations"] for segment in item["segments_info"]]
    things = sum(segment["category_id"] == CELL.id for segment in segments)
    assert told["counts"].get("cell", 0) == things
    assert segments


def test_predicted_label_images_are_judged_as_label_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path, "unet-timm", "instance", (CELL,))
    images = pictures(tmp_path / "data" / "images")
    # Fresh weights see one object all over: half of the pixels shall be ground.
    tensors, card, _ = checkpoint.read(model)
    network = checkpoint.build(tensors, card)
    seen = np.stack([np.array(Image.open(path)) for path in sorted(images.iterdir())])
    with torch.inference_mode():
        ground, cell = network(torch.from_numpy(seen).permute(0, 3, 1, 2).float() / 255)["logits"].unbind(1)
    bias = tensors["head.classes.bias"]
    bias[len(bias) // 2 :] -= (cell - ground).median()
    checkpoint.save(model, tensors, card)
    assert run("predict", model, images, "--out", tmp_path / "r", "--no-draw", "--threads", 1, "--score", 0.01) == 0
    capsys.readouterr()
    labels = tmp_path / "r" / "labels"
    with open(tmp_path / "r" / "results.csv", newline="") as stream:
        objects = len(list(csv.DictReader(stream)))
    assert objects >= 3
    shutil.copytree(labels, tmp_path / "data" / "masks")
    words = ("evaluate", labels, tmp_path / "data", "--compare", "label-images", "--json")
    assert run(*words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 3
    assert told["pooled"]["f1"][0] == 1
    # One object taken away from the truth of each image: it is then found in excess.
    fewer = 0
    for path in sorted((tmp_path / "data" / "masks").iterdir()):
        pixels = np.array(Image.open(path))
        fewer += len(np.unique(pixels[pixels > 0])) > 0
        pixels[pixels == pixels.max()] = 0
        Image.fromarray(pixels).save(path)
    assert fewer == 3
    assert run(*words) == 0
    found = json.loads(capsys.readouterr().out)["pooled"]
    assert found["precision"][0] == pytest.approx((objects - fewer) / objects)
    assert found["recall"][0] == 1
