"""Claim: models at full size come out of ONNX Runtime with the numbers they have in PyTorch.

    python benchmarks/export_full_size.py [faster-rcnn ...] [--input-size 320] [--threads 2]

Each model is built with fresh weights, exported to a temporary file, and compared by the export's own check: a drawn image and
noise, in batches of one and three. Printed: parameters, size of the file, seconds, and of each raw output the largest |a - b| and
|a - b| / (1 + |b|). Exit code 1 if an export is refused, with its sentence. Fresh batch norms hold the statistics of no data, so
they are given those of noise first; the scores of two-stage detectors are spread.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from pelagia.core.types import Category
from pelagia.errors import ExportError
from pelagia.export.onnx import export_onnx
from pelagia.models import registry

__all__: list[str] = []

MODELS = (
    "faster-rcnn",
    "mask-rcnn",
    "keypoint-rcnn",
    "fcn",
    "deeplabv3",
    "unet",
    "unet-timm",
    "detr-r50",
    "mask2former-r50",
)
#: Weights by whose scores a two-stage detector selects. Fresh ones score all alike, to the sixth digit: rounding then decides
#: what is selected, in the model as in the file.
SELECTING, SPREAD = ("rpn.objectness.weight", "box_head.classes.logits.weight"), 30.0
#: Sides of the input that a model demands.
SIDES = {"unet": 572}


@torch.no_grad()
def settle(model: nn.Module, size: int) -> None:
    """Batch norms with the statistics of noise, so that signals stay alive through all layers."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None
    if norms:
        model(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    model.eval()
    for name, value in model.named_parameters():
        if name in SELECTING:
            value.mul_(SPREAD)


def export(name: str, size: int, folder: Path) -> bool:
    """Print one row; True when the export was accepted."""
    torch.manual_seed(0)
    entry = registry.entry(name)
    points = ("a", "b", "c") if entry.tasks[0] == "keypoints" else ()
    count = 1 if points else min(entry.classes, 80)
    categories = tuple(Category(k + 1, f"class {k}", keypoints=points) for k in range(count))
    size = SIDES.get(name, size)
    model = registry.create(name, categories, input_size=size).eval()
    settle(model, size)
    parameters = sum(value.numel() for value in model.parameters())
    try:
        report = export_onnx(model, folder / f"{name}.onnx")
    except ExportError as error:
        print(f"{name:16s} {parameters:11,d} parameters  REFUSED: {error.reason}", flush=True)
        return False
    (folder / f"{name}.onnx").unlink()
    values = "  ".join(f"{key} {item.absolute:.1e} ({item.relative:.1e})" for key, item in report.outputs.items())
    print(
        f"{name:16s} {parameters:11,d} parameters  {report.size_bytes / 1e6:6.1f} MB  {report.seconds:5.0f} s  {values}",
        flush=True,
    )
    return True


def main() -> int:
    """Export one model after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--input-size", type=int, default=320)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as temporary:
        good = [export(name, options.input_size, Path(temporary)) for name in options.models]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
