"""YOLO11: a one-stage detector without anchors, for axis-aligned and oriented boxes, masks and keypoints.

There is no paper. The architecture follows its public description (Khanam & Hussain, "YOLOv11: an overview of the key
architectural enhancements", 2024, arXiv:2410.17725) and the names and shapes of the published weights; the parts come from CSPNet
(`nn.csp`), YOLOv10 (`nn.attention`), PANet (`nn.necks`), TOOD (`assign.dynamic`) and Generalized Focal Loss (`losses.boxes`).

    images -> stem and four stages (P3, P4, P5 at strides 8, 16, 32) -> pooling and attention on P5 -> PANet -> head per level

A cell answers with class logits and with four distributions over the distances to the sides of the box, in strides. The oriented
head adds an angle, the instance head the coefficients of a sum of prototypes (`grids.prototypes`, YOLACT), the keypoints head a
position and a visibility for each point (YOLO-Pose). `pelagia.decode.grids` states the outputs; how keypoints are counted from
their cell was found by observing the reference. Published weights: Ultralytics, AGPL-3.0 (`models.grids.ultralytics` reads
them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, final

import torch
from torch import Tensor, nn

from pelagia.assign.dynamic import (
    Assignment,
    Candidates,
    cells_inside,
    cells_inside_oriented,
    ignored_cells,
    task_aligned,
)
from pelagia.core import boxes as upright
from pelagia.core.card import ModelCard
from pelagia.core.keypoints import keypoint_sigmas, point_count
from pelagia.core.oriented import probiou
from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError
from pelagia.losses.boxes import angle_loss, distribution_focal, nearest_form
from pelagia.losses.classify import binary_cross_entropy_sum
from pelagia.losses.keypoints import keypoint_similarity_loss, visibility_loss
from pelagia.models.grids.prototypes import Prototypes, mask_loss
from pelagia.models.model import Model, Targets
from pelagia.nn.attention import C2PSA
from pelagia.nn.backbones import TimmBackbone
from pelagia.nn.csp import SPPF, C3k2
from pelagia.nn.devices import send
from pelagia.nn.grids import cell_centres, expected_distances, grids_of, grids_of_count
from pelagia.nn.layers import ConvNormAct
from pelagia.nn.necks import PathAggregation

__all__ = ["STRIDES", "YOLO11", "Options"]

STRIDES: Final = (8, 16, 32)

#: Expected sum of soft targets per image and level before anything is learnt; sets the first bias of the classes.
_PRIOR_OBJECTS = 5.0
#: Mean of the first distribution of distances, in strides: with it the first boxes are of the size of objects of their level.
_PRIOR_DISTANCE = 2.5
#: First angle, a quarter of the way between the two axis-aligned answers 0 and pi/2 (see `losses.boxes.nearest_form`).
_PRIOR_ANGLE = math.pi / 8
#: The normaliser of the loss is at least one such part of the number of images, so that a batch of empty images stays bounded.
_LEAST_PER_IMAGE = 1 / 16


@dataclass(frozen=True)
class Options:
    """Options of YOLO11, saved in its checkpoint.

    Args:
        depth: multiple of the number of blocks per stage.
        width: multiple of the number of channels.
        most_channels: channels before `width` are at most this.
        nested: C3k blocks inside every C3k2, not on the deepest level only.
        bins: length of the distribution of a distance.
        box_weight: of the overlap loss (CIoU, oriented: ProbIoU).
        class_weight: of the classification loss.
        distance_weight: of the distribution focal loss.
        angle_weight: of the angle loss (oriented).
        prototypes: number of prototype masks (instance).
        mask_weight: of the mask loss (instance).
        point_weight: of the OKS loss (keypoints).
        visibility_weight: of the loss of the points' visibility (keypoints).
        topk: cells that learn one object.
        alpha: exponent of the class score in the assignment.
        beta: exponent of the overlap in the assignment.
        backbone: `timm:NAME` puts a timm network in the place of stem and stages; empty for YOLO11's own.
    """

    depth: float = 0.5
    width: float = 0.25
    most_channels: int = 1024
    nested: bool = False
    bins: int = 16
    box_weight: float = 7.5
    class_weight: float = 0.5
    distance_weight: float = 1.5
    angle_weight: float = 1.0
    prototypes: int = 32
    mask_weight: float = 7.5
    point_weight: float = 12.0
    visibility_weight: float = 1.0
    topk: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    backbone: str = ""

    def __post_init__(self) -> None:
        for name in ("depth", "width", "most_channels", "prototypes", "topk"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} must be positive, got {getattr(self, name)}")
        if self.bins < 2:
            raise OptionError(f"bins must be at least 2, got {self.bins}")
        if self.backbone and not self.backbone.startswith("timm:"):
            raise OptionError(f"backbone must be empty or timm:NAME, got {self.backbone!r}")

    def channels(self, base: int) -> int:
        """`base` channels of the published table at this width, a multiple of 8."""
        return math.ceil(min(base, self.most_channels) * self.width / 8) * 8

    def blocks(self, base: int) -> int:
        """`base` blocks of the published table at this depth."""
        return max(round(base * self.depth), 1)


class Backbone(nn.Module):
    """Stem and four stages: images [B, 3, H, W] -> P3, P4, P5 at strides 8, 16, 32."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        c, depth = options.channels, options.blocks(2)
        self.stem = ConvNormAct(3, c(64), 3, 2)
        self.down2 = ConvNormAct(c(64), c(128), 3, 2)
        self.stage2 = C3k2(c(128), c(256), depth, nested=options.nested, expansion=0.25)
        self.down3 = ConvNormAct(c(256), c(256), 3, 2)
        self.stage3 = C3k2(c(256), c(512), depth, nested=options.nested, expansion=0.25)
        self.down4 = ConvNormAct(c(512), c(512), 3, 2)
        self.stage4 = C3k2(c(512), c(512), depth, nested=True)
        self.down5 = ConvNormAct(c(512), c(1024), 3, 2)
        self.stage5 = C3k2(c(1024), c(1024), depth, nested=True)
        self.channels = (c(512), c(512), c(1024))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stage2(self.down2(self.stem(x)))
        p3 = self.stage3(self.down3(x))
        p4 = self.stage4(self.down4(p3))
        p5 = self.stage5(self.down5(p4))
        return p3, p4, p5


class Head(nn.Module):
    """Separate branches for sides, classes and what the task adds, per level; raw outputs over all cells.

    Args:
        channels: of the three levels.
        classes: number of classes.
        bins: length of the distribution of a distance.
        extra: name of the task's own output over cells and its rows, such as `angles` and 1.
    """

    def __init__(self, channels: tuple[int, int, int], classes: int, bins: int, extra: Mapping[str, int]) -> None:
        super().__init__()
        side_width = max(16, channels[0] // 4, 4 * bins)
        class_width = max(channels[0], min(classes, 100))
        self.sides = nn.ModuleList(_plain_branch(c, side_width, 4 * bins) for c in channels)
        self.classes = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(c, c, 3, groups=c),
                ConvNormAct(c, class_width),
                ConvNormAct(class_width, class_width, 3, groups=class_width),
                ConvNormAct(class_width, class_width),
                nn.Conv2d(class_width, classes, 1),
            )
            for c in channels
        )
        self.extra = tuple(extra)
        for name, rows in extra.items():
            self.add_module(name, nn.ModuleList(_plain_branch(c, max(channels[0] // 4, rows), rows) for c in channels))

    def forward(self, *levels: Tensor) -> dict[str, Tensor]:
        outputs = {"boxes": _over_cells(self.sides, levels), "scores": _over_cells(self.classes, levels)}
        return outputs | {name: _over_cells(getattr(self, name), levels) for name in self.extra}

    @torch.no_grad()
    def set_priors(self, input_size: tuple[int, int]) -> None:
        """First biases: rare objects, boxes of a few strides, a tilted angle."""
        if _last_bias(self.classes[0]).is_meta:
            return  # nothing is drawn; and PyTorch has its compiler compute there, which takes two seconds and 180 MB to import
        for level, stride in enumerate(STRIDES):
            classes = _last_bias(self.classes[level])
            cells = input_size[0] * input_size[1] / stride**2
            chance = min(_PRIOR_OBJECTS / (len(classes) * cells), 0.1)
            classes.fill_(math.log(chance / (1 - chance)))
            sides = _last_bias(self.sides[level]).view(4, -1)
            sides.copy_(-torch.arange(sides.shape[1], dtype=sides.dtype) / _PRIOR_DISTANCE)
            if "angles" in self.extra:
                share = _PRIOR_ANGLE / math.pi + 0.25
                _last_bias(self.get_submodule(f"angles.{level}")).fill_(math.log(share / (1 - share)))


def _plain_branch(channels: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(ConvNormAct(channels, width, 3), ConvNormAct(width, width, 3), nn.Conv2d(width, out, 1))


def _last_bias(branch: nn.Module) -> Tensor:
    assert isinstance(branch, nn.Sequential)
    bias = branch[-1].bias
    assert isinstance(bias, Tensor)
    return bias


def _over_cells(branches: nn.ModuleList, levels: tuple[Tensor, ...]) -> Tensor:
    """[B, C, A]; in memory cell by cell, which is how the convolutions leave it and how the loss reads it."""
    maps = [branch(level) for branch, level in zip(branches, levels, strict=True)]
    return torch.cat([found.permute(0, 2, 3, 1).flatten(1, 2) for found in maps], dim=1).transpose(1, 2)


@final
class YOLO11(Model):
    """YOLO11 for the tasks `detect`, `oriented`, `instance` and `keypoints`."""

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        super().__init__()
        if task not in ("detect", "oriented", "instance", "keypoints"):
            raise ModelError(f"{name} answers the tasks detect, oriented, instance and keypoints, not {task!r}")
        if not categories:
            raise ModelError(f"{name} needs at least one class")
        grids_of(*input_size, STRIDES)
        self.options = options
        self.card = ModelCard(
            name=name, task=task, decoder="grids", categories=categories, input_size=input_size, options=asdict(options)
        )
        c = options.channels
        if options.backbone:
            self.backbone: nn.Module = TimmBackbone(options.backbone.removeprefix("timm:"))
            channels: tuple[int, ...] = self.backbone.channels
        else:
            self.backbone = Backbone(options)
            channels = self.backbone.channels
        self.pool = SPPF(channels[2], c(1024))
        self.attend = C2PSA(c(1024), options.blocks(2))
        depth = options.blocks(2)
        self.neck = PathAggregation(
            (channels[0], channels[1], c(1024)),
            (c(256), c(512), c(1024)),
            c(512),
            lambda enter, out, level: C3k2(enter, out, depth, nested=options.nested or level == 5),
        )
        extra: dict[Task, dict[str, int]] = {"oriented": {"angles": 1}, "instance": {"coefficients": options.prototypes}}
        if task == "keypoints":
            extra["keypoints"] = {"keypoints": 3 * point_count(categories, where=name)}
        self.head = Head((c(256), c(512), c(1024)), len(categories), options.bins, extra.get(task, {}))
        self.head.set_priors(input_size)
        self.prototypes = Prototypes(c(256), c(256), options.prototypes) if task == "instance" else None

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """`boxes` [B, 4 R, A] and `scores` [B, C, A]; oriented: `angles` [B, 1, A]; instance: `coefficients` [B, K, A] and
        `prototypes` [B, K, H/4, W/4]; keypoints: `keypoints` [B, 3 P, A]; all logits.

        Raises:
            ModelError: a side of the images is not a multiple of 32.
        """
        grids_of(images.shape[2], images.shape[3], STRIDES)
        p3, p4, p5 = self.backbone(images)
        levels = self.neck(p3, p4, self.attend(self.pool(p5)))
        outputs: dict[str, Tensor] = self.head(*levels)
        if self.prototypes is not None:
            outputs["prototypes"] = self.prototypes(levels[0])
        return outputs

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`box`, `class`, `distance`; oriented: `angle`; instance: `mask`; keypoints: `point` and `visibility`.

        Each is a sum over the batch, positive cells weighted by their soft target, over the sum of soft targets.
        """
        at_least = torch.float32  # half precision cannot hold the powers of the assignment
        raw = {name: value.to(torch.promote_types(value.dtype, at_least)) for name, value in outputs.items()}
        scores = raw["scores"]  # [B, C, A]
        cells = scores.shape[2]
        grids = grids_of_count(cells, self.card.input_size, STRIDES)
        centres, strides = cell_centres(grids, scores.device, scores.dtype)
        sides = raw["boxes"].transpose(1, 2).reshape(scores.shape[0], cells, 4, -1)  # [B, A, 4, R]
        angles = raw["angles"][:, 0] if "angles" in raw else None  # [B, A]

        oriented = self.card.task == "oriented"
        truth, known = (item.oriented if oriented else item.boxes for item in (targets, targets.on_host()))
        if truth is None or known is None:
            raise ModelError("the oriented task needs oriented truth in the targets", where=self.card.name)
        truth, known = truth.to(scores.dtype), known.to(scores.dtype)
        ignore = targets.on_host().ignore

        def inside(chosen: Tensor) -> Candidates:
            if oriented:
                return cells_inside_oriented(known, grids, centres, chosen)
            return cells_inside(known, grids, centres.device, chosen)

        pairs, shape = inside(~ignore), (scores.shape[0], cells)
        owner, cell = pairs.object, pairs.cell
        with torch.no_grad():
            place = (targets.batch[owner], cell)
            angle = None if angles is None else angles[place]
            found, wanted = _rectangles(expected_distances(sides)[place], angle, centres[cell], strides[cell]), truth[owner]
            # CIoU instead of the paper's IoU: among boxes of like overlap it prefers the centred and well shaped one.
            overlap = probiou(found, wanted) if oriented else upright.iou_aligned(found, wanted, "ciou").clamp(min=0.0)
            chance = scores[targets.batch[owner], targets.labels[owner], cell].sigmoid()
        options = self.options
        positive = task_aligned(
            pairs, targets.batch, chance, overlap, shape, topk=options.topk, alpha=options.alpha, beta=options.beta
        )
        ignored = ignored_cells(inside(ignore), targets.batch, positive, shape) if bool(ignore.any()) else None

        where = (positive.image, targets.labels[positive.object], positive.cell)
        total = positive.score.sum()
        normaliser = self.reduce(torch.stack((total, total.new_full((), targets.size * _LEAST_PER_IMAGE)))).max()
        terms = {"class": options.class_weight * binary_cross_entropy_sum(scores, where, positive.score, ignored)}
        terms |= self._box_terms(positive, truth, sides, angles, (centres, strides))
        if self.card.task == "instance":
            if targets.masks is None:
                raise ModelError("the instance task needs masks in the targets", where=self.card.name)
            chosen = raw["coefficients"].transpose(1, 2)[positive.image, positive.cell]  # [P, K]
            terms["mask"] = options.mask_weight * mask_loss(chosen, raw["prototypes"], positive, targets)
        if self.card.task == "keypoints":
            terms |= self._point_terms(positive, targets, raw["keypoints"], (centres, strides))
        return {name: value / normaliser for name, value in terms.items()}

    def _box_terms(
        self, positive: Assignment, truth: Tensor, sides: Tensor, angles: Tensor | None, cells: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Weighted sums over the positive cells; the soft target of a cell is its weight."""
        place = (positive.image, positive.cell)
        centre, stride = cells[0][positive.cell], cells[1][positive.cell]
        logits, wanted = sides[place], truth[positive.object]  # [P, 4, R], [P, 4 or 5]
        angle = None if angles is None else angles[place]
        found = _rectangles(expected_distances(logits), angle, centre, stride)
        if angle is None:
            overlap = upright.iou_aligned(found, wanted, "ciou")
            distances = torch.cat((centre - wanted[:, :2], wanted[:, 2:] - centre), dim=1)
        else:
            wanted = nearest_form(wanted, found[:, 4].detach())
            overlap = probiou(found, wanted)
            distances = _distances_oriented(wanted, centre)
        options, weight = self.options, positive.score
        terms = {
            "box": options.box_weight * torch.sum((1 - overlap) * weight),
            "distance": options.distance_weight * torch.sum(distribution_focal(logits, distances / stride[:, None]) * weight),
        }
        if angle is not None:
            terms["angle"] = options.angle_weight * torch.sum(angle_loss(found[:, 4], wanted) * weight)
        return terms

    def _point_terms(
        self, positive: Assignment, targets: Targets, raw: Tensor, cells: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Weighted sums over the positive cells, as `_box_terms`."""
        if targets.keypoints is None:
            raise ModelError("the keypoints task needs keypoints in the targets", where=self.card.name)
        logits = raw.transpose(1, 2)[positive.image, positive.cell]
        logits = logits.reshape(len(logits), logits.shape[1] // 3, 3)  # [P, K, 3]
        centre, stride = cells[0][positive.cell, None], cells[1][positive.cell, None, None]
        points = (2 * logits[..., :2] - 0.5) * stride + centre  # see `decode.grids`: twice the logit from the cell's corner
        wanted = targets.keypoints[positive.object].to(points.dtype)
        if wanted.shape[1] != points.shape[1]:
            raise ModelError(f"the targets have {wanted.shape[1]} keypoints, the model {points.shape[1]}", where=self.card.name)
        areas = upright.area(targets.boxes[positive.object].to(points.dtype))
        # The metric's sigmas are too narrow to learn from: a point some tenths of the object away would have no gradient.
        sigmas = send(torch.tensor(keypoint_sigmas(points.shape[1], other=1 / points.shape[1])).to(points.dtype), points.device)
        options, weight = self.options, positive.score
        near = keypoint_similarity_loss(points, wanted, areas, sigmas)
        seen = visibility_loss(logits[..., 2], wanted)
        return {
            "point": options.point_weight * torch.sum(near * weight),
            "visibility": options.visibility_weight * torch.sum(seen * weight),
        }


def _rectangles(distances: Tensor, angle: Tensor | None, centres: Tensor, strides: Tensor) -> Tensor:
    """Distances [K, 4] in strides (and angle logits [K]) -> boxes [K, 4] xyxy or oriented boxes [K, 5], in pixels."""
    distances = distances * strides[:, None]
    if angle is None:
        return torch.cat((centres - distances[:, :2], centres + distances[:, 2:]), dim=1)
    theta = (angle.sigmoid() - 0.25) * math.pi
    cos, sin = theta.cos(), theta.sin()
    left, top, right, bottom = distances.unbind(dim=1)
    along, across = (right - left) / 2, (bottom - top) / 2
    x = centres[:, 0] + along * cos - across * sin
    y = centres[:, 1] + along * sin + across * cos
    return torch.stack((x, y, left + right, top + bottom, theta), dim=1)


def _distances_oriented(oriented: Tensor, centres: Tensor) -> Tensor:
    """[P, 5] and cell centres [P, 2] -> [P, 4], left, top, right, bottom along the axes of the rectangle, in pixels."""
    away = centres - oriented[:, :2]
    cos, sin = oriented[:, 4].cos(), oriented[:, 4].sin()
    along, across = away[:, 0] * cos + away[:, 1] * sin, away[:, 1] * cos - away[:, 0] * sin
    w, h = oriented[:, 2] / 2, oriented[:, 3] / 2
    return torch.stack((w + along, h + across, w - along, h - across), dim=1)
