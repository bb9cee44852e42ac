"""Do the two-stage detectors give torchvision's numbers? Prints one row a model.

    python benchmarks/parity_torchvision.py

Each model of torchvision is made with random weights, scrambled until many detections survive; its state dictionary is written
and loaded here. Both see the same two images of different sizes, as torchvision's own transform resizes, pads and normalises
them. Compared are the parameter counts, then |ours - theirs| / max(1, |theirs|) of proposals, boxes, scores, masks, keypoints and
of every loss, with both samplers drawing the first of their candidates. `frozen` repeats the outputs with frozen batch norms.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from pelagia.decode.regions import heatmap_points
from pelagia.models.foreign import load_foreign
from pelagia.models.model import MaskCrops, Targets
from pelagia.models.regions.faster_rcnn import TwoStage

TOLERANCE = 1e-4
LEAST_DETECTIONS = 20

#: Name here -> builder there, parameters as published with trainable batch norms.
REFERENCES: dict[str, tuple[Any, int]] = {
    "faster-rcnn": (detection.fasterrcnn_resnet50_fpn, 41_808_406),
    "faster-rcnn-v2": (detection.fasterrcnn_resnet50_fpn_v2, 43_712_278),
    "mask-rcnn": (detection.maskrcnn_resnet50_fpn, 44_454_513),
    "mask-rcnn-v2": (detection.maskrcnn_resnet50_fpn_v2, 46_359_409),
    "keypoint-rcnn": (detection.keypointrcnn_resnet50_fpn, 59_190_378),
}
#: Of each loss: name here -> name there.
LOSSES = {
    "objectness": "loss_objectness",
    "proposals": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
    "keypoint": "loss_keypoint",
}


@dataclass(frozen=True)
class Row:
    """What was found for one model: counts, and the largest difference of each output and loss."""

    name: str
    parameters: int
    expected_parameters: int
    proposals: int
    detections: int
    differences: dict[str, float]

    @property
    def good(self) -> bool:
        """All within tolerance, and enough to mean something."""
        few = self.detections < LEAST_DETECTIONS
        return not few and self.parameters == self.expected_parameters and max(self.differences.values()) <= TOLERANCE


@dataclass(frozen=True)
class Limits:
    """How much both look at: shorter side of the images, proposals, detections and drawn regions per image."""

    side: int = 224
    proposals: int = 1000
    detections: int = 100
    regions: int = 512


def reference(name: str, limits: Limits, *, frozen: bool = False) -> Any:
    """torchvision's model with scrambled weights and statistics; `frozen` fixes the backbone's norms as published files do."""
    torch.manual_seed(0)
    model = REFERENCES[name][0](
        weights=None,
        weights_backbone=None,
        min_size=limits.side,
        max_size=int(1.5 * limits.side),
        image_mean=[0.4] * 3,
        image_std=[0.25] * 3,
        rpn_pre_nms_top_n_test=limits.proposals,
        rpn_post_nms_top_n_test=limits.proposals,
        rpn_pre_nms_top_n_train=2 * limits.proposals,
        rpn_post_nms_top_n_train=2 * limits.proposals,
        box_detections_per_img=limits.detections,
        box_batch_size_per_image=limits.regions,
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(3)
        model.rpn.head.bbox_pred.weight.mul_(5)
        predictor.bbox_pred.weight.mul_(5)
    if frozen:
        model.backbone.body = _freeze(model.backbone.body)
    return model.eval()


def _freeze(body: nn.Module) -> nn.Module:
    for name, child in body.named_children():
        if isinstance(child, nn.BatchNorm2d):
            fixed = FrozenBatchNorm2d(child.num_features)
            fixed.load_state_dict({key: value for key, value in child.state_dict().items() if key != "num_batches_tracked"})
            setattr(body, name, fixed)
        else:
            _freeze(child)
    return body


def spread_scores(model: Any, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[Any]) -> None:
    """Scale the class logits to a spread of 2.5, so that some class of some region stands out."""
    with torch.no_grad():
        heads = model.roi_heads
        logits, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
        layer = heads.box_predictor.cls_score
        layer.weight.mul_(2.5 / logits.std())
        layer.bias.zero_()


def images_and_truth(seed: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two smooth images of different sizes with a few objects each: boxes, labels, masks and seventeen keypoints."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, generator=generator)
    images, truth = [], []
    for height, width in ((200, 280), (260, 210)):
        coarse = draw(1, 3, height // 10, width // 10)
        images.append(nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1))
        corner = draw(6, 2) * torch.tensor([width * 0.6, height * 0.6]) + 4
        boxes = torch.cat((corner, corner + 12 + draw(6, 2) * torch.tensor([width, height]) * 0.25), dim=1)
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        inside = ((x - middle[:, 0, None, None]) / half[:, 0, None, None]) ** 2
        inside = inside + ((y - middle[:, 1, None, None]) / half[:, 1, None, None]) ** 2
        points = boxes[:, None, :2] + draw(6, 17, 2) * (boxes[:, None, 2:] - boxes[:, None, :2])
        points = torch.cat((points, (draw(6, 17, 1) > 0.2).float()), dim=2)
        labels = torch.randint(1, 91, (6,), generator=generator)
        truth.append({"boxes": boxes, "labels": labels, "masks": (inside <= 1).to(torch.uint8), "keypoints": points})
    return images, truth


def largest(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max(1, |theirs|); infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.double(), theirs.double()
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max()) if ours.numel() else 0.0


def nearest(ours: Tensor, theirs: Tensor) -> float:
    """The largest distance of a box to the nearest of the other set, either way, over max(1, its coordinate): order left aside.

    Infinite where the numbers differ.
    """
    if ours.shape != theirs.shape:
        return float("inf")
    apart = (ours[:, None].double() - theirs[None].double()).abs() / theirs.double().abs().clamp(min=1)
    apart = apart.amax(dim=2)
    return float(torch.maximum(apart.amin(dim=0).max(), apart.amin(dim=1).max()))


def load_ours(theirs: Any, limits: Limits) -> TwoStage:
    """The state dictionary of `theirs` as a model here, with its limits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.pth"
        torch.save(theirs.state_dict(), path)
        model = load_foreign(path)
    assert isinstance(model, TwoStage)
    model.options = replace(
        model.options,
        score=0.05,
        detections=limits.detections,
        rpn_before=limits.proposals,
        rpn_after=limits.proposals,
        rpn_before_train=2 * limits.proposals,
        rpn_after_train=2 * limits.proposals,
        roi_samples=limits.regions,
    )
    return model


@torch.inference_mode()
def compare_outputs(theirs: Any, ours: TwoStage) -> tuple[int, int, dict[str, float]]:
    """Proposals and detections, and the largest difference of each output."""
    images, sizes, padded = _input(theirs)
    features = theirs.backbone(padded.tensors)
    proposals, _ = theirs.rpn(padded, features)
    results, _ = theirs.roi_heads(features, proposals, sizes)
    valid = torch.tensor(sizes)
    stage = ours.first_stage(images, valid, learning=False)
    outputs = ours(images, valid)
    some = outputs["scores"] > 0
    # Of equal objectness either may come first.
    pairs = zip(stage.proposals, stage.some, proposals, strict=True)
    worst = {"proposals": max(nearest(found[mask], expected) for found, mask, expected in pairs)}
    joined = {name: torch.cat([item[name] for item in results]) for name in results[0]}
    for name in ("boxes", "scores"):
        worst[name] = largest(outputs[name][some], joined[name])
    worst["labels"] = largest(outputs["labels"][some] + 1, joined["labels"])
    if "masks" in outputs:
        worst["masks"] = largest(outputs["masks"][some].sigmoid(), joined["masks"][:, 0])
    if "heatmaps" in outputs:
        points, heights = heatmap_points(outputs["heatmaps"][some].numpy(), outputs["boxes"][some].double().numpy())
        worst["keypoints"] = largest(torch.from_numpy(points), joined["keypoints"][..., :2])
        worst["keypoint scores"] = largest(torch.from_numpy(heights), joined["keypoints_scores"])
    return len(torch.cat(proposals)), int(some.sum()), worst


def _input(theirs: Any, truth: list[dict[str, Tensor]] | None = None) -> tuple[Tensor, list[Any], Any]:
    images, _ = images_and_truth()
    padded, _ = theirs.transform(images)
    return padded.tensors, padded.image_sizes, padded


@contextmanager
def first_candidates() -> Iterator[None]:
    """Both samplers draw the first of their candidates."""
    drawn = torch.randperm
    torch.randperm = lambda count, **options: torch.arange(count, device=options.get("device"))
    try:
        yield
    finally:
        torch.randperm = drawn


@torch.no_grad()
def compare_losses(theirs: Any, ours: TwoStage) -> dict[str, float]:
    """The largest difference of each loss, in training mode."""
    images, truth = images_and_truth()
    points = ours.card.task == "keypoints"
    labels = [item["labels"].clamp(max=1) if points else item["labels"] for item in truth]
    needed = {"instance": "masks", "keypoints": "keypoints"}.get(ours.card.task)
    given = [
        {"boxes": item["boxes"], "labels": label, **({needed: item[needed]} if needed else {})}
        for item, label in zip(truth, labels, strict=True)
    ]
    padded, scaled = theirs.transform(images, given)
    theirs.train(), ours.train()
    with first_candidates():
        features = theirs.backbone(padded.tensors)
        proposals, expected = theirs.rpn(padded, features, scaled)
        expected |= theirs.roi_heads(features, proposals, padded.image_sizes, scaled)[1]
        targets = targets_of(scaled, padded.tensors.shape[2:])
        terms = ours.loss(ours(padded.tensors, torch.tensor(padded.image_sizes), targets), targets)
    assert len(terms) == len(expected)
    return {f"loss {name}": largest(value, expected[LOSSES[name]]) for name, value in terms.items()}


def targets_of(truth: list[dict[str, Tensor]], size: Any) -> Targets:
    """torchvision's truth of a batch as `Targets`."""
    height, width = (int(side) for side in size)
    counts = torch.tensor([len(item["labels"]) for item in truth])
    masks = None
    if "masks" in truth[0]:
        pads = [(0, width - item["masks"].shape[2], 0, height - item["masks"].shape[1]) for item in truth]
        dense = torch.cat([nn.functional.pad(item["masks"], pad) for item, pad in zip(truth, pads, strict=True)])
        windows = torch.tensor([0, 0, width, height]).expand(len(dense), 4)
        masks = MaskCrops(dense.flatten() > 0, windows, height, width)
    return Targets(
        batch=torch.repeat_interleave(torch.arange(len(truth)), counts),
        labels=torch.cat([item["labels"] for item in truth]) - 1,
        boxes=torch.cat([item["boxes"] for item in truth]),
        size=len(truth),
        masks=masks,
        keypoints=torch.cat([item["keypoints"] for item in truth]) if "keypoints" in truth[0] else None,
    )


def compare(name: str, limits: Limits) -> Row:
    """Everything about one model."""
    theirs = reference(name, limits)
    prepare(theirs)
    ours = load_ours(theirs, limits)
    proposals, detections, worst = compare_outputs(theirs, ours)
    if not name.endswith("-v2"):
        fixed = reference(name, limits, frozen=True)
        prepare(fixed)
        again = load_ours(fixed, limits)
        assert again.options.norm == "frozen"
        worst |= {f"frozen {key}": value for key, value in compare_outputs(fixed, again)[2].items()}
    worst |= compare_losses(theirs, ours)
    count = sum(parameter.numel() for parameter in ours.parameters())
    return Row(name, count, REFERENCES[name][1], proposals, detections, worst)


def prepare(theirs: Any) -> None:
    """Spread the scores of a scrambled reference."""
    with torch.inference_mode():
        _, sizes, padded = _input(theirs)
        features = theirs.backbone(padded.tensors)
        proposals, _ = theirs.rpn(padded, features)
    with torch.no_grad():
        spread_scores(theirs, features, proposals, sizes)


def main() -> int:
    """Print the table; 1 if a row is beyond tolerance."""
    print(f"torchvision {torchvision.__version__}, torch {torch.__version__}, tolerance {TOLERANCE:g}")
    good = True
    for name in REFERENCES:
        row = compare(name, Limits())
        shown = "  ".join(f"{key} {value:.1e}" for key, value in row.differences.items())
        print(
            f"{name:15s} {row.parameters:,} parameters  {row.proposals} proposals  {row.detections} detections  {shown}  "
            f"{'ok' if row.good else 'BEYOND TOLERANCE'}",
            flush=True,
        )
        good &= row.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
