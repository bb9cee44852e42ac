"""Train Pelagia and Ultralytics side by side from scratch on the same images, and score both with the same evaluator.

    python benchmarks/training.py bccd --data DIR --peer-python PEER_ENV/bin/python
    python benchmarks/training.py hit-uav --data DIR --peer-python PEER_ENV/bin/python
    python benchmarks/training.py nuclei --data DIR --peer-python PEER_ENV/bin/python

`bccd` (blood cells, axis-aligned boxes, the data set's own split) is scored with pycocotools; `hit-uav` (vehicles and people from
the air, oriented boxes, a held-out fifth by seed) with exact oriented IoU, regions named DontCare ignored; `nuclei` (cell nuclei,
masks, the split of its list files) with pycocotools on run lengths of the size of the original images. Both networks are
YOLO11n from random weights, both see the same number of epochs at the same input size, and each trains with its own defaults.
The peer's environment is made from `benchmarks/requirements.txt`. Prints one table and writes `results.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import pelagia
from pelagia.core import oriented as oriented_boxes
from pelagia.core.masks import crop_to_rle, rle_to_string
from pelagia.core.types import Instances
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.data.formats.writing import WriteOptions
from pelagia.data.split import split, write_splits
from pelagia.infer.evaluate import EvaluateOptions, predict_dataset
from pelagia.metrics.detection import evaluate_detection

#: Predictions for an image of the data set with masks, and those that its score counts.
MOST_MASKS = 1000

PEER = Path(__file__).with_name("peer_ultralytics.py")


@dataclass(frozen=True)
class Setting:
    """One data set: how it is opened, the task, and the defaults of the comparison."""

    path: str
    task: str
    imgsz: int
    epochs: int
    architecture: str
    arguments: tuple[str, ...] = ()


SETTINGS = {
    "bccd": Setting(".", "detect", 320, 30, "yolo11n.yaml"),
    "nuclei": Setting(".", "instance", 320, 30, "yolo11n-seg.yaml"),
    "hit-uav": Setting("oriented.json", "oriented", 512, 30, "yolo11n-obb.yaml", ("--angle", "rad-cw")),
}


def open_data(setting: Setting, root: Path) -> Dataset:
    """The data set with splits `train` and `val`."""
    angle = "rad-cw" if setting.task == "oriented" else None
    data = pelagia.open_dataset(root / setting.path, task=setting.task, angle=angle)
    if "val" not in data.splits:
        parts = split(data, {"train": 0.8, "val": 0.2}, seed=0)
        data = data.with_splits(parts)
    return data


def score_coco(truth: Path, answers: list[dict[str, Any]], kind: str = "bbox") -> dict[str, float]:
    """AP and AP50 by pycocotools, of boxes or of masks (`segm`).

    An image of `nuclei` holds up to 375 objects, so masks are capped at 1,000 an image where COCO takes 100.
    """
    coco = COCO(str(truth))
    run = COCOeval(coco, coco.loadRes(answers), kind)
    if kind == "segm":
        run.params.maxDets = [1, 10, MOST_MASKS]
        run.evaluate()
        run.accumulate()
        precision = run.eval["precision"][:, :, :, 0, 2]  # [IoU, recall, class]
        return {"ap": float(precision[precision > -1].mean()), "ap50": float(precision[0][precision[0] > -1].mean())}
    run.evaluate()
    run.accumulate()
    run.summarize()
    return {"ap": float(run.stats[0]), "ap50": float(run.stats[1])}


def score(data: Dataset, truth_json: Path, found: list[Instances]) -> dict[str, float]:
    """Both sides go through this one door: COCO results for boxes, exact oriented IoU otherwise."""
    if data.task == "oriented":
        truths = [data.truth(index) for index in range(len(data))]
        result = evaluate_detection(truths, found, data.categories, kind="oriented")
        return {"ap": result.ap, "ap50": result.ap50}
    ids = _image_ids(truth_json)
    answers: list[dict[str, Any]] = []
    if data.task == "instance":
        for name, (height, width), instances in zip(data.names, _sizes(truth_json, data.names), found, strict=True):
            assert instances.masks is not None
            assert instances.scores is not None
            for mask, value, label in zip(instances.masks, instances.scores, instances.labels, strict=True):
                runs = {"size": [height, width], "counts": rle_to_string(crop_to_rle(mask, height, width))}
                category = data.categories[label].id
                answers.append(
                    {"image_id": ids[Path(name).name], "category_id": category, "segmentation": runs, "score": float(value)}
                )
        return score_coco(truth_json, answers, "segm")
    for name, instances in zip(data.names, found, strict=True):
        assert instances.scores is not None
        for box, value, label in zip(instances.box_array, instances.scores, instances.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            bbox = [x1, y1, x2 - x1, y2 - y1]
            answers.append(
                {"image_id": ids[Path(name).name], "category_id": data.categories[label].id, "bbox": bbox, "score": float(value)}
            )
    return score_coco(truth_json, answers)


def _sizes(truth_json: Path, names: Sequence[str]) -> list[tuple[int, int]]:
    """Height and width of the images."""
    sizes = {
        Path(item["file_name"]).name: (item["height"], item["width"]) for item in json.loads(truth_json.read_text())["images"]
    }
    return [sizes[Path(name).name] for name in names]


def _image_ids(truth_json: Path) -> dict[str, int]:
    return {Path(item["file_name"]).name: item["id"] for item in json.loads(truth_json.read_text())["images"]}


def ask_peer(python: str, request: dict[str, Any], folder: Path, peer: Path = PEER) -> dict[str, Any]:
    """Run the peer's half in its own environment; its seconds include the start of its process."""
    folder.mkdir(parents=True, exist_ok=True)
    question, answer = folder / "request.json", folder / "answer.json"
    question.write_text(json.dumps(request))
    begin = time.perf_counter()
    with (folder / f"{request['action']}.log").open("w") as log:
        subprocess.run(
            [python, str(peer), str(question), str(answer)], check=True, stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
    return {**json.loads(answer.read_text()), "wall": time.perf_counter() - begin}


def run_peer(args: argparse.Namespace, setting: Setting, data: Dataset, seed: int) -> dict[str, float]:
    """Train the peer, predict the validation images with it, score."""
    folder = (args.out / f"peer-{seed}").resolve()
    yolo = folder / "data"
    if not yolo.exists():
        convert(data, yolo, "yolo")
    request = {"architecture": setting.architecture, "data": str(yolo / "data.yaml"), "epochs": args.epochs, "imgsz": args.imgsz}
    trained = ask_peer(args.peer_python, {"action": "train", **request, "batch": 16, "seed": seed, "out": str(folder)}, folder)
    val = data.split("val")
    images = [str(Path(path).resolve()) for path in val.image_paths]
    most = MOST_MASKS if data.task == "instance" else 300
    asked = {"action": "predict", "weights": trained["weights"], "images": images, "imgsz": args.imgsz, "most": most}
    names = yaml.safe_load((yolo / "data.yaml").read_text())["names"]
    names = list(names.values()) if isinstance(names, dict) else names
    label_of = {name: index for index, name in enumerate(category.name for category in data.categories)}
    found = []
    answer = ask_peer(args.peer_python, asked, folder)
    if data.task == "instance":
        ids = _image_ids(args.out / "truth.json")
        categories = {index: data.categories[label_of[name]].id for index, name in enumerate(names)}
        results = [
            {
                "image_id": ids[Path(item["image"]).name],
                "category_id": categories[label],
                "segmentation": mask_utils.frPyObjects(mask, *mask["size"]),
                "score": value,
            }
            for item in answer["found"]
            for label, value, mask in zip(item["labels"], item["scores"], item["masks"], strict=True)
        ]
        return {**score_coco(args.out / "truth.json", results, "segm"), "seconds": trained["wall"]}
    for item in answer["found"]:
        labels = np.array([label_of[names[label]] for label in item["labels"]], dtype=np.int64)
        boxes, scores = np.array(item["boxes"], dtype=np.float64), np.array(item["scores"], dtype=np.float64)
        if data.task == "oriented":
            found.append(Instances(labels, oriented=oriented_boxes.canonical(boxes.reshape(-1, 5)), scores=scores))
        else:
            found.append(Instances(labels, boxes=boxes, scores=scores))
    return {**score(val, args.out / "truth.json", found), "seconds": trained["wall"]}


def run_pelagia(args: argparse.Namespace, setting: Setting, data: Dataset, seed: int) -> dict[str, float]:
    """Train with the command that a user types, predict the validation images with what it wrote, score."""
    folder = args.out / f"pelagia-{seed}"
    command = [sys.executable, "-m", "pelagia", "train", "yolo11n", str(args.data_path), "--imgsz", str(args.imgsz)]
    command += [
        "--epochs",
        str(args.epochs),
        "--seed",
        str(seed),
        "--out",
        str(folder),
        "--task",
        setting.task,
        *setting.arguments,
    ]
    if args.split_file is not None:
        command += ["--splits", str(args.split_file)]
    begin = time.perf_counter()
    with (args.out / f"pelagia-{seed}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - begin
    val = data.split("val")
    options = EvaluateOptions(most=MOST_MASKS if data.task == "instance" else 300)
    found = predict_dataset(pelagia.load(folder).runtime, val, options)
    return {**score(val, args.out / "truth.json", found), "seconds": seconds}


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=sorted(SETTINGS))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--peer-python", help="Python of an environment with the peer; without it only Pelagia runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peer-seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-training"))
    args = parser.parse_args()
    setting = SETTINGS[args.setting]
    args.epochs, args.imgsz = args.epochs or setting.epochs, args.imgsz or setting.imgsz
    args.out = (args.out / args.setting).resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    args.data_path = args.data / setting.path

    data = open_data(setting, args.data)
    args.split_file = None
    if setting.task == "oriented":
        args.split_file = args.out / "split.json"
        write_splits(data, data.splits, args.split_file)
    convert(data.split("val"), args.out / "truth.json", "coco", options=WriteOptions(images="none"))
    print(f"{args.setting}: {len(data.split('train'))} train, {len(data.split('val'))} val, content {data.content_hash[:16]}")

    rows: list[tuple[str, int, dict[str, float]]] = []
    for position, seed in enumerate(args.seeds):
        rows.append(("pelagia", seed, run_pelagia(args, setting, data, seed)))
        print(rows[-1], flush=True)
        if args.peer_python and position < len(args.peer_seeds):
            rows.append(("ultralytics", args.peer_seeds[position], run_peer(args, setting, data, args.peer_seeds[position])))
            print(rows[-1], flush=True)
    (args.out / "results.json").write_text(json.dumps(rows, indent=1))
    print(f"{'':12} {'seed':>4} {'AP50':>7} {'AP':>7} {'wall s':>8}")
    for name, seed, values in rows:
        print(f"{name:12} {seed:4} {values['ap50']:7.4f} {values['ap']:7.4f} {values['seconds']:8.1f}")
    for name in ("pelagia", "ultralytics"):
        chosen = [values for who, _, values in rows if who == name]
        if chosen:
            means = {key: float(np.mean([values[key] for values in chosen])) for key in ("ap50", "ap", "seconds")}
            spread = float(np.ptp([values["ap50"] for values in chosen]))
            print(f"{name:12} mean AP50 {means['ap50']:.4f} (range {spread:.4f}), AP {means['ap']:.4f}, {means['seconds']:.1f} s")


if __name__ == "__main__":
    main()
