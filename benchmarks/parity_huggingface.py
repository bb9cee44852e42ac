"""Claim: the set predictors here give the numbers of Hugging Face transformers, at full size.

    python benchmarks/parity_huggingface.py [detr-r50 ...]

A model of transformers with scrambled weights is written as `model.safetensors`, read by `pelagia.models.foreign`, and asked
about the same images with and without padding. Printed: parameters, and the largest |ours - theirs| of every output and of every
term of the loss. Exit code 1 beyond 1e-4, or if the answers hardly differ from query to query.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from pelagia.core import boxes as upright
from pelagia.models.foreign import load_any
from pelagia.models.model import Targets
from pelagia.models.queries.detr import DETR

__all__: list[str] = []

TOLERANCE = 1e-4
#: Standard deviation over the queries, as a multiple of the tolerance, below which equality would say little.
LEAST_SPREAD = 50
SIZE = (320, 416)
VALID = ((320, 416), (211, 400))


@dataclass(frozen=True)
class Case:
    """A model of transformers, and how to compare it: yields the name of a value and its largest difference."""

    build: Callable[[], torch.nn.Module]
    compare: Callable[[Any, Any], Iterator[tuple[str, float]]]


def largest(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs|; infinite where the shapes differ or a value is NaN."""
    if ours.shape != theirs.shape or not bool((ours.isfinite() & theirs.isfinite()).all()):
        return float("inf")
    return float((ours - theirs).abs().max())


@torch.no_grad()
def scramble(model: torch.nn.Module) -> None:
    """Weights far from their start: variances of order one, queries that look at different cells."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
        elif value.ndim == 1:
            value.add_(0.2 * torch.randn_like(value))
        elif value.ndim > 1:
            gain = 12.0 if any(word in name for word in ("q_proj", "k_proj", "query")) else 1.4
            value.normal_(0, gain * value[0].numel() ** -0.5)


def build_detr(**changes: Any) -> torch.nn.Module:
    """DETR as published, with 91 labels."""
    return DetrForObjectDetection(DetrConfig(num_labels=91, use_pretrained_backbone=False, **changes))


def resnet_form() -> dict[str, Any]:
    """The backbone as transformers' own ResNet-50 instead of timm's."""
    return {"use_timm_backbone": False, "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}}


def compare_detr(ours: DETR, theirs: Any) -> Iterator[tuple[str, float]]:
    """Logits, boxes and losses, with and without padding."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *SIZE, generator=generator)
    valid = torch.tensor(VALID)
    mask = torch.zeros(2, *SIZE)
    for part, (height, width) in zip(mask, VALID, strict=True):
        part[:height, :width] = 1
    with torch.inference_mode():
        wanted, found = theirs(pixel_values=images), ours(images)
        yield "logits", largest(found["logits"], wanted.logits)
        yield "boxes", largest(found["boxes"], wanted.pred_boxes)
        spread = float(wanted.logits.std(dim=1).mean()) / TOLERANCE
        if spread < LEAST_SPREAD:
            yield f"queries alike ({spread:.0f} tolerances apart)", float("inf")
        wanted = theirs(pixel_values=images, pixel_mask=mask)
        targets = draw_truth(generator, valid)
        found = ours(images, valid=valid, targets=targets)
        yield "padded logits", largest(found["logits"], wanted.logits)
        yield "padded boxes", largest(found["boxes"], wanted.pred_boxes)
        yield from compare_detr_losses(ours, found, targets, valid)


def draw_truth(generator: torch.Generator, valid: Tensor) -> Targets:
    """Seven and twelve objects inside the valid part of two images."""
    batch = torch.arange(2).repeat_interleave(torch.tensor([7, 12]))
    limits = valid.flip(1).repeat(1, 2)[batch]
    centre = 0.2 + 0.6 * torch.rand(19, 2, generator=generator)
    half = 0.02 + 0.1 * torch.rand(19, 2, generator=generator)
    labels = torch.randint(0, 91, (19,), generator=generator)
    return Targets(batch, labels, torch.cat((centre - half, centre + half), dim=1) * limits, 2)


def compare_detr_losses(ours: DETR, outputs: dict[str, Tensor], targets: Targets, valid: Tensor) -> Iterator[tuple[str, float]]:
    """Every term of every layer of the decoder, from the same outputs."""
    shares = upright.convert(targets.boxes / valid.flip(1).repeat(1, 2)[targets.batch], "xyxy", "cxcywh")
    labels = [
        {"class_labels": targets.labels[targets.batch == image], "boxes": shares[targets.batch == image]} for image in range(2)
    ]
    logits = torch.cat((outputs["earlier_logits"], outputs["logits"][:, None]), dim=1).transpose(0, 1)
    boxes = torch.cat((outputs["earlier_boxes"], outputs["boxes"][:, None]), dim=1).transpose(0, 1)
    config = DetrConfig(num_labels=91, auxiliary_loss=True)
    total, terms, _ = ForObjectDetectionLoss(logits[-1], labels, "cpu", boxes[-1], config, logits, boxes)
    found = ours.layer_losses(outputs, targets)
    last = len(logits) - 1
    for name, (theirs, weight) in {"class": ("loss_ce", 1), "l1": ("loss_bbox", 5), "giou": ("loss_giou", 2)}.items():
        wanted = torch.stack([weight * terms[theirs if layer == last else f"{theirs}_{layer}"] for layer in range(last + 1)])
        yield f"{name} loss", largest(found[name], wanted)
    yield "loss", largest(torch.stack([value.sum() for value in found.values()]).sum(), total)


CASES = {
    "detr-r50": Case(build_detr, compare_detr),
    "detr-r50, their ResNet": Case(lambda: build_detr(**resnet_form()), compare_detr),
    "detr-r50-dc5": Case(lambda: build_detr(dilation=True), compare_detr),
    "detr-r101": Case(lambda: build_detr(backbone="resnet101"), compare_detr),
}


def run(name: str, case: Case) -> bool:
    """Compare and print one row; True if everything agrees."""
    torch.manual_seed(0)
    theirs = case.build().eval()
    scramble(theirs)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)  # type: ignore[operator]
        ours = load_any(Path(folder) / "model.safetensors")
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    values = dict(case.compare(ours, theirs))
    good = counts[0] == counts[1] and max(values.values()) <= TOLERANCE
    shown = "  ".join(f"{key} {value:.1e}" for key, value in values.items())
    print(f"{name}: {counts[0]:,} parameters (theirs {counts[1]:,})  {shown}  {'ok' if good else 'BEYOND TOLERANCE'}", flush=True)
    return good


def main() -> int:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"among {'; '.join(CASES)}; by default all")
    args = parser.parse_args()
    unknown = sorted(set(args.cases) - set(CASES))
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}; known are {'; '.join(CASES)}")
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    results = [run(name, case) for name, case in CASES.items() if not args.cases or name in args.cases]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
