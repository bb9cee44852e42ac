"""Claim: FCN and DeepLabV3 here give the numbers of torchvision's.

    python benchmarks/parity_pixels.py [--side 520]

torchvision's networks, with random weights and random statistics of their batch norms, are saved and read back by
`pelagia.models.foreign`. Compared, as largest difference over largest magnitude: the logits and the auxiliary logits at stride 8
and after resampling to the size of the image, and the two terms of the loss. Exit code 1 beyond 1e-4.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.models.foreign import load_foreign
from pelagia.models.model import Targets

__all__: list[str] = []

TOLERANCE = 1e-4
MODELS = {
    "fcn_resnet50": torchvision.models.segmentation.fcn_resnet50,
    "fcn_resnet101": torchvision.models.segmentation.fcn_resnet101,
    "deeplabv3_resnet50": torchvision.models.segmentation.deeplabv3_resnet50,
    "deeplabv3_resnet101": torchvision.models.segmentation.deeplabv3_resnet101,
}


def scramble(model: nn.Module) -> None:
    """Random scales, shifts and statistics of every batch norm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare(name: str, side: int, folder: Path) -> bool:
    """Print one row; True when within tolerance."""
    torch.manual_seed(0)
    reference = MODELS[name](weights=None, weights_backbone=None, aux_loss=True, num_classes=21).eval()
    scramble(reference)
    torch.save(reference.state_dict(), folder / "weights.pth")
    model = load_foreign(folder / "weights.pth")
    images, truth = torch.randn(1, 3, side, side + 9), torch.randint(0, 21, (1, side, side + 9))
    targets = Targets(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 1, semantic=truth)
    with torch.inference_mode():
        features = reference.backbone(images)
        native = {"logits": reference.classifier(features["out"]), "aux": reference.aux_classifier(features["aux"])}
        theirs, ours = reference(images), model(images, targets=targets)
        loss = model.loss(ours, targets)
    values = {f"{key} at stride 8": relative(ours[key], native[key]) for key in ("logits", "aux")}
    for key, other in (("logits", "out"), ("aux", "aux")):
        full = F.interpolate(ours[key], size=truth.shape[1:], mode="bilinear", align_corners=False)
        values[f"{key} resampled"] = relative(full, theirs[other])
    values["loss"] = relative(loss["ce"], F.cross_entropy(theirs["out"], truth))
    values["auxiliary loss"] = relative(loss["aux"], 0.5 * F.cross_entropy(theirs["aux"], truth))
    counts = [sum(p.numel() for p in network.parameters()) for network in (model, reference)]
    good = counts[0] == counts[1] and all(value <= TOLERANCE for value in values.values())
    shown = "  ".join(f"{key} {value:.1e}" for key, value in values.items())
    print(f"{name:20s} {counts[0]:,} parameters  {shown}  {'ok' if good else 'BEYOND TOLERANCE'}", flush=True)
    return good


def main() -> int:
    """Compare every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=520)
    side = parser.parse_args().side
    print(f"torchvision {torchvision.__version__}, images of {side} x {side + 9}")
    with tempfile.TemporaryDirectory() as folder:
        return 0 if all(compare(name, side, Path(folder)) for name in MODELS) else 1


if __name__ == "__main__":
    sys.exit(main())
