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
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from pelagia.core import boxes as upright
from pelagia.models.foreign import load_any
from pelagia.models.model import MaskCrops, Targets
from pelagia.models.queries.detr import DETR
from pelagia.models.queries.mask2former import Mask2Former

__all__: list[str] = []

TOLERANCE = 1e-4
#: Standard deviation over the queries, as a multiple of the tolerance, below which equality would say little.
LEAST_SPREAD = 50
SIZE = (320, 416)
#: No multiple of the windows of a Swin Transformer.
MASK_SIZE = (192, 224)
VALID = ((320, 416), (211, 400))


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


#: Parameters of theirs that no output depends on: the norm at the end of a Swin Transformer.
UNUSED = {"mask2former-swin-t": 1536, "mask2former-swin-s": 1536, "mask2former-swin-b": 2048}


@dataclass(frozen=True)
class Case:
    """A model of transformers, how to compare it (yields the name of a value and its largest difference), how to scramble it."""

    build: Callable[[], torch.nn.Module]
    compare: Callable[[Any, Any], Iterator[tuple[str, float]]]
    scramble: Callable[[torch.nn.Module], None] = scramble


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


def build_mask2former(**backbone: Any) -> torch.nn.Module:
    """Mask2Former as published, with COCO's 133 classes."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    inner = SwinConfig(out_features=stages, **backbone) if backbone else ResNetConfig(out_features=stages)
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=inner, num_labels=133))


def swin(width: int, third: int, window: int) -> dict[str, Any]:
    """A Swin Transformer by the channels of its first stage, the blocks of its third, and the side of its windows."""
    heads = [width // 32 * 2**stage for stage in range(4)]
    return {"embed_dim": width, "depths": [2, 2, third, 2], "num_heads": heads, "window_size": window, "drop_path_rate": 0.0}


@torch.no_grad()
def scramble_masks(model: Any) -> None:
    """Weights that keep signals alive, and pixels of mean 0, so that masks and with them attention cover about a half."""
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        noise = torch.randn_like(value)
        if "level_embed" in name or "queries_" in name:
            value.copy_(noise)
        elif value.ndim > 1:
            value.copy_(noise * value[0].numel() ** -0.5)
        else:
            value.add_(noise * (0.5 if "sampling_offsets" in name else 0.1))
    for name, value in model.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
    module = model.model.pixel_level_module
    pixels = module(torch.randn(1, 3, *MASK_SIZE)).decoder_last_hidden_state
    module.decoder.mask_projection.bias -= pixels.mean((0, 2, 3))


def compare_mask2former(ours: Mask2Former, theirs: Any) -> Iterator[tuple[str, float]]:
    """Logits and masks of every layer, and every term of the loss with the same random points."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *MASK_SIZE, generator=generator)
    height, width = MASK_SIZE
    batch = torch.arange(2).repeat_interleave(torch.tensor([4, 7]))
    corner = torch.stack(
        (torch.randint(0, width - 60, (11,), generator=generator), torch.randint(0, height - 60, (11,), generator=generator)), 1
    )
    windows = torch.cat((corner, corner + torch.randint(8, 60, (11, 2), generator=generator)), 1)
    bits = torch.rand(int((windows[:, 2:] - windows[:, :2]).prod(1).sum()), generator=generator) > 0.3
    masks = MaskCrops(bits, windows, height, width)
    labels = torch.randint(0, 133, (11,), generator=generator)
    targets = Targets(batch, labels, windows.float(), 2, masks=masks)
    with torch.inference_mode():
        wanted, found = theirs(images, output_auxiliary_logits=True), ours(images, targets=targets)
        yield "logits", largest(found["logits"], wanted.class_queries_logits)
        yield "masks", largest(found["masks"], wanted.masks_queries_logits)
        for key, name in (("earlier_logits", "class_queries_logits"), ("earlier_masks", "masks_queries_logits")):
            yield key, largest(found[key], torch.stack([layer[name] for layer in wanted.auxiliary_logits], 1))
        covered = float((found["masks"] > 0).float().mean())
        if not 0.2 < covered < 0.8 or float(wanted.class_queries_logits.std(dim=1).mean()) < LEAST_SPREAD * TOLERANCE:
            yield f"queries alike, or masks that cover {covered:.2f}", float("inf")
        dense = masks.dense().float()
        torch.manual_seed(2)
        terms = theirs.get_loss_dict(
            wanted.masks_queries_logits,
            wanted.class_queries_logits,
            [dense[batch == image] for image in range(2)],
            [labels[batch == image] for image in range(2)],
            wanted.auxiliary_logits,
        )
        torch.manual_seed(2)
        losses = ours.layer_losses(found, targets)
    for name, value in {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}.items():
        last = len(losses[name]) - 1
        expected = torch.stack([terms[value if layer == last else f"{value}_{layer}"] for layer in range(last + 1)])
        yield f"{name} loss", largest(losses[name], expected)


CASES = {
    "detr-r50": Case(build_detr, compare_detr),
    "detr-r50, their ResNet": Case(lambda: build_detr(**resnet_form()), compare_detr),
    "detr-r50-dc5": Case(lambda: build_detr(dilation=True), compare_detr),
    "detr-r101": Case(lambda: build_detr(backbone="resnet101"), compare_detr),
    "mask2former-r50": Case(build_mask2former, compare_mask2former, scramble_masks),
    "mask2former-swin-t": Case(lambda: build_mask2former(**swin(96, 6, 7)), compare_mask2former, scramble_masks),
    "mask2former-swin-s": Case(lambda: build_mask2former(**swin(96, 18, 7)), compare_mask2former, scramble_masks),
    "mask2former-swin-b": Case(lambda: build_mask2former(**swin(128, 18, 12)), compare_mask2former, scramble_masks),
}


def run(name: str, case: Case) -> bool:
    """Compare and print one row; True if everything agrees."""
    torch.manual_seed(0)
    theirs = case.build().eval()
    case.scramble(theirs)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)  # type: ignore[operator]
        ours = load_any(Path(folder) / "model.safetensors")
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    values = dict(case.compare(ours, theirs))
    good = counts[0] == counts[1] - UNUSED.get(name, 0) and max(values.values()) <= TOLERANCE
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
