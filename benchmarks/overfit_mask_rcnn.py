"""Can Mask R-CNN learn four images by heart? Trains it from scratch on four images of `nuclei` and scores it on the same four.

    python benchmarks/overfit_mask_rcnn.py ../shared/data/nuclei [--epochs 250]

Reduced options: a small ResNet, narrow pyramid and heads, anchors for small objects, no augmentation. Exits with 1 if AP50 of the
masks stays below 0.9.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import pelagia
from pelagia.core.image import image_size
from pelagia.data.augment import AugmentOptions
from pelagia.metrics.result import DetectionResult
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions

SIDE = 256
WANTED_AP50 = 0.9
OPTIONS = (
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
)


STILL = AugmentOptions(
    flip_lr=0.0, flip_ud=0.0, scale=0.0, translate=0.0, hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, blur=0.0, noise=0.0, mosaic=0.0
)


def main() -> int:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of the data set")
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    data = pelagia.open_dataset(given.data)
    small = [i for i, path in enumerate(data.image_paths) if max(image_size(path)) <= SIDE]
    counts = np.array([len(data[i].truth) for i in small])
    four = data.subset([small[i] for i in np.argsort(counts, kind="stable")[len(counts) // 2 :][:4]])
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            model="mask-rcnn",
            out=str(Path(folder) / "run"),
            epochs=given.epochs,
            batch=4,
            imgsz=SIDE,
            threads=given.threads,
            lr=0.003,
            augment=STILL,
            val_every=given.epochs,
            patience=0,
            model_options=OPTIONS,
        )
        start = time.perf_counter()
        run = train(options, four, four, quiet=True)
        seconds = time.perf_counter() - start
        scores = pelagia.evaluate(pelagia.load(run.best), four)
    objects = sum(len(four[i].truth) for i in range(len(four)))
    print(f"{len(four)} images, {objects} objects, {given.epochs} steps in {seconds:.0f} s")
    print(scores)
    assert isinstance(scores, DetectionResult)
    return 0 if scores.ap50 >= WANTED_AP50 else 1


if __name__ == "__main__":
    sys.exit(main())
