"""Claim: every kind of model can learn four real images by heart: what it is told reaches what it answers.

    python benchmarks/overfit.py --data ../shared/data [detr ...]

Each case trains a model of reduced size through `pelagia.train`, from random weights, on four images of a data set, at 256
pixels or less and without augmentation, and judges it on the same four. It says nothing of how the model does on images that
it has not seen. Exit code 1 if a figure lies below its floor.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import pelagia
from pelagia.core.types import Task
from pelagia.data.augment import AugmentOptions
from pelagia.data.dataset import Dataset

__all__: list[str] = []

IMAGES = 4
SIDE = 256
#: The images as they are, in every epoch.
PLAIN = AugmentOptions(
    flip_lr=0, flip_ud=0, scale=0, translate=0, hsv_h=0, hsv_s=0, hsv_v=0, blur=0, noise=0, mosaic=0, min_visible=0, min_side_px=0
)


@dataclass(frozen=True)
class Case:
    """What is trained on what, and what must come of it.

    Args:
        model: name in the registry.
        data: path below the folder of data sets.
        task: to learn.
        metric: what the figure is called.
        figure: the result of an evaluation -> the figure.
        floor: the least figure.
        epochs: of one step each.
        side: of the input, in pixels.
        chosen: numbers of the images in the data set; empty for four that are spread over it.
        own: options of the model.
        training: options of the run.
    """

    model: str
    data: str
    task: Task
    metric: str
    figure: Callable[[Any], float]
    floor: float
    epochs: int
    side: int = SIDE
    chosen: tuple[int, ...] = ()
    own: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)


CASES = {
    "detr": Case(
        model="detr-r50",
        data="bccd",
        task="detect",
        metric="AP50",
        figure=lambda result: float(result.ap50),
        floor=0.9,
        epochs=700,
        side=128,
        own=(
            "backbone=timm:resnet18",
            "norm=batch",
            "dilated=true",
            "width=128",
            "heads=4",
            "encoder_layers=1",
            "decoder_layers=3",
            "hidden=256",
            "queries=50",
            "dropout=0.0",
            "norm_first=true",
        ),
        training={"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "clip_norm": 1.0, "backbone_lr": 1.0},
    ),
    "mask-rcnn": Case(
        model="mask-rcnn",
        data="nuclei",
        task="instance",
        metric="mask AP50",
        figure=lambda result: float(result.ap50),
        floor=0.9,
        epochs=250,
        chosen=(51, 100, 118, 126),  # of 256 x 256 pixels, 85 nuclei
        own=(
            "backbone=timm:test_resnet",
            "channels=64",
            "hidden=256",
            "mask_channels=32",
            "mask_convs=2",
            "anchor_sizes=[8, 16, 32, 64, 128]",
            "rpn_before_train=200",
            "rpn_after_train=200",
            "rpn_before=200",
            "rpn_after=200",
            "roi_samples=96",
        ),
        training={"optimizer": "adamw", "lr": 3e-3, "backbone_lr": 1.0},
    ),
    "mask2former": Case(
        model="mask2former-r50",
        data="coco-mini/panoptic.json",
        task="panoptic",
        metric="RQ",
        figure=lambda result: float(result.all.rq),
        floor=0.9,
        epochs=400,
        side=128,
        chosen=(5, 10, 14, 42),  # eleven segments of eight classes
        own=(
            "backbone=timm:resnet10t",
            "width=64",
            "heads=4",
            "pixel_layers=1",
            "pixel_hidden=128",
            "layers=3",
            "hidden=128",
            "queries=30",
            "points=1024",
        ),
        training={"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "clip_norm": 1.0, "backbone_lr": 1.0},
    ),
}


def four(root: Path, case: Case) -> Dataset:
    """Four labelled images, those of the case or spread over the data set."""
    whole = pelagia.open_dataset(root / case.data, task=case.task)
    chosen = np.array(case.chosen or np.linspace(0, len(whole) - 1, IMAGES), dtype=np.int64)
    return replace(whole.subset(chosen), splits={})


def run(name: str, case: Case, root: Path, out: Path, epochs: int) -> bool:
    """Train, judge, print a line; True if the figure reaches its floor."""
    data = four(root, case)
    begin = time.perf_counter()
    pelagia.train(
        case.model,
        data,
        val=data,
        task=case.task,
        epochs=epochs,
        batch=IMAGES,
        imgsz=case.side,
        augment=PLAIN,
        ema_decay=0.0,
        val_every=epochs,
        save_every=epochs,
        patience=0,
        out=str(out / name),
        model_options=case.own,
        **case.training,
    )
    seconds = time.perf_counter() - begin
    # The end of the run, whatever its validations thought best.
    figure = case.figure(pelagia.evaluate(out / name / "last.safetensors", data, show=False))
    good = figure >= case.floor
    print(
        f"{name:12} {case.model:16} {case.task:9} {case.data:12} {epochs:5} steps {seconds:7.1f} s  "
        f"{case.metric} {figure:.4f} (floor {case.floor:g}) {'ok' if good else 'BELOW'}",
        flush=True,
    )
    return good


def main() -> int:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"among {', '.join(CASES)}; by default all")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--epochs", type=int, default=0, help="in place of each case's own")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    args = parser.parse_args()
    unknown = sorted(set(args.cases) - set(CASES))
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}; known are {', '.join(CASES)}")
    with TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        chosen = {name: CASES[name] for name in args.cases or CASES}
        results = [run(name, case, args.data, out, args.epochs or case.epochs) for name, case in chosen.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
