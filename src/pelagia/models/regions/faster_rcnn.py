"""Faster R-CNN with a feature pyramid: propose regions, then classify each.

Ren, He, Girshick & Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", PAMI 2017
(arXiv:1506.01497), over the feature pyramid of Lin et al., CVPR 2017 (arXiv:1612.03144). `faster-rcnn-v2` has batch norms in
pyramid and head, a deeper proposal network and a head of convolutions, after Li et al., "Benchmarking Detection Transfer Learning
with Vision Transformers", 2021 (arXiv:2111.11429).

    images -> backbone (strides 4 to 32) -> pyramid P2 to P6 -> RPN: objectness and offsets per anchor -> proposals
           -> RoIAlign 7 x 7 -> class logits, offsets per class -> suppression per class

Reference weights: torchvision, BSD-3-Clause (`models.regions.torchvision_files` reads them). Departures: an object without
overlap to any anchor does not turn all anchors positive; background inside an ignored region is not learnt; normalisers count
over all processes. `TwoStage` holds what Mask and Keypoint R-CNN share.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import functional as F

from pelagia.assign.overlap import NEITHER, match_by_overlap, sample_balanced
from pelagia.core.card import ModelCard
from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError
from pelagia.models.model import Model, Targets
from pelagia.nn.anchors import decode_offsets, encode_offsets, grid_anchors
from pelagia.nn.backbones import TimmBackbone
from pelagia.nn.grids import grids_of
from pelagia.nn.necks import FeaturePyramid
from pelagia.nn.roi import BoxHead, pool_regions, regions_of
from pelagia.nn.rpn import RegionProposals, clip_to, propose, strongest
from pelagia.nn.suppression import suppress

__all__ = ["FasterRCNN", "Options", "Stage", "TwoStage"]

#: Of the backbone's maps, on which regions are looked up; the fifth level of the pyramid has anchors only.
STRIDES: Final = (4, 8, 16, 32)

#: Scales of the offsets: about one over their standard deviation (Girshick, "Fast R-CNN", 2015), so that both losses are alike.
_ANCHOR_WEIGHTS: Final = (1.0, 1.0, 1.0, 1.0)
_REGION_WEIGHTS: Final = (10.0, 10.0, 5.0, 5.0)
#: Where smooth L1 turns from quadratic to linear, in units of the offsets.
_BETA: Final = 1 / 9
#: Side of the regions that the box head sees.
_POOLED: Final = 7
#: Detections with a side below, in input pixels, are left out.
_SMALLEST: Final = 1e-2


@dataclass(frozen=True)
class Options:
    """Options of Faster R-CNN, saved in its checkpoint.

    Args:
        backbone: `timm:NAME` of a network with maps at strides 4, 8, 16 and 32.
        norm: of the backbone: `batch`, or `frozen` to fix scales, shifts and statistics, as with batches of few images.
        norm_epsilon: of the backbone's batch norms; 0 in the first published weights.
        trainable_stages: of the backbone, counted from the end: 5 is all, 3 leaves stem and first stage as they are.
        channels: of every level of the pyramid.
        hidden: units of the box head's fully connected layers.
        rpn_convs: 3 x 3 convolutions of the proposal network.
        box_convs: convolutions of the box head; 0 for two fully connected layers.
        norm_heads: batch norms in pyramid and mask head.
        anchor_sizes: side of the anchors of each of the five levels, in input pixels.
        anchor_scales: multiples of `anchor_sizes`, each with every ratio.
        anchor_ratios: height over width.
        rpn_high: an anchor is an object's from this IoU on.
        rpn_low: an anchor is background below.
        rpn_samples: anchors that an image's loss draws.
        rpn_positive: share of them that may be objects'.
        rpn_iou: suppression of proposals.
        rpn_before: anchors per level before suppression.
        rpn_after: proposals per image.
        rpn_before_train: as `rpn_before`, when learning.
        rpn_after_train: as `rpn_after`, when learning.
        roi_iou: a proposal is an object's from this IoU on, else background.
        roi_samples: proposals that an image's loss draws.
        roi_positive: share of them that may be objects'.
        score: detections below leave the graph; `DecodeOptions.score` chooses among the rest.
        nms_iou: suppression of detections, class by class.
        detections: that leave the graph per image, the strongest.
    """

    backbone: str = "timm:resnet50"
    norm: str = "batch"
    norm_epsilon: float = 1e-5
    trainable_stages: int = 5
    channels: int = 256
    hidden: int = 1024
    rpn_convs: int = 1
    box_convs: int = 0
    norm_heads: bool = False
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    anchor_scales: tuple[float, ...] = (1.0,)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_high: float = 0.7
    rpn_low: float = 0.3
    rpn_samples: int = 256
    rpn_positive: float = 0.5
    rpn_iou: float = 0.7
    rpn_before: int = 1000
    rpn_after: int = 1000
    rpn_before_train: int = 2000
    rpn_after_train: int = 2000
    roi_iou: float = 0.5
    roi_samples: int = 512
    roi_positive: float = 0.25
    score: float = 0.01
    nms_iou: float = 0.5
    detections: int = 300

    def __post_init__(self) -> None:
        for name in ("anchor_sizes", "anchor_scales", "anchor_ratios"):
            values = tuple(float(value) for value in getattr(self, name))  # a checkpoint holds lists
            if not values or min(values) <= 0:
                raise OptionError(f"{name} must be positive numbers, got {values}")
            object.__setattr__(self, name, values)
        if len(self.anchor_sizes) != len(STRIDES) + 1:
            raise OptionError(f"anchor_sizes must be {len(STRIDES) + 1} numbers, one a level, got {len(self.anchor_sizes)}")
        whole = ("channels", "hidden", "rpn_convs", "rpn_samples", "rpn_before", "rpn_after", "rpn_before_train")
        for name in (*whole, "rpn_after_train", "roi_samples", "detections"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        shares = ("rpn_high", "rpn_low", "rpn_positive", "rpn_iou", "roi_iou", "roi_positive", "score", "nms_iou")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} must lie in 0 to 1, got {getattr(self, name)}")
        if self.rpn_low > self.rpn_high:
            raise OptionError(f"rpn_low must be at most rpn_high, got {self.rpn_low} and {self.rpn_high}")
        if self.norm not in ("batch", "frozen"):
            raise OptionError(f"norm must be batch or frozen, got {self.norm!r}")
        if not 0 <= self.trainable_stages <= len(STRIDES) + 1:
            raise OptionError(f"trainable_stages must be 0 to {len(STRIDES) + 1}, got {self.trainable_stages}")
        if self.box_convs < 0 or self.norm_epsilon < 0:
            raise OptionError("box_convs and norm_epsilon must not be negative")
        if not self.backbone.startswith("timm:"):
            raise OptionError(f"backbone must be timm:NAME, got {self.backbone!r}")


@dataclass(frozen=True)
class Stage:
    """What the first stage hands on.

    Args:
        levels: of the pyramid, P2 to P6.
        logits: objectness per level, [B, h w A].
        offsets: per level, [B, h w A, 4].
        anchors: per level, [h w A, 4].
        limits: [B, 2], width and height of each image without padding.
        proposals: [B, P, 4], strongest first, in input pixels.
        some: [B, P] bool, which of them are proposals and not padding.
    """

    levels: tuple[Tensor, ...]
    logits: list[Tensor]
    offsets: list[Tensor]
    anchors: list[Tensor]
    limits: Tensor
    proposals: Tensor
    some: Tensor


class TwoStage(Model):
    """Backbone, pyramid, proposal network and box head: what the detectors of this family share."""

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        super().__init__()
        if not categories:
            raise ModelError(f"{name} needs at least one class")
        grids_of(*input_size, STRIDES)
        self.options = options
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
        self.card = ModelCard(
            name=name,
            task=task,
            decoder="regions",
            categories=categories,
            input_size=input_size,
            masks_padding=True,
            options=plain,
        )
        self.backbone = TimmBackbone(options.backbone.removeprefix("timm:"), STRIDES, frozen_norm=options.norm == "frozen")
        self.backbone.set_norm_epsilon(options.norm_epsilon)
        self.backbone.freeze_stages(options.trainable_stages)
        self.neck = FeaturePyramid(self.backbone.channels, options.channels, norm=options.norm_heads)
        anchors = len(options.anchor_scales) * len(options.anchor_ratios)
        self.rpn = RegionProposals(options.channels, anchors, options.rpn_convs)
        self.box_head = BoxHead(options.channels, _POOLED, options.hidden, len(categories), options.box_convs)

    def first_stage(self, images: Tensor, valid: Tensor | None, *, learning: bool) -> Stage:
        """Maps and proposals of `images`; `learning` keeps as many proposals as the options give for training.

        Raises:
            ModelError: a side of the images is not a multiple of 32.
        """
        size = (images.shape[2], images.shape[3])
        grids_of(*size, STRIDES)
        options = self.options
        levels = self.neck(self.backbone(images))
        logits, offsets = self.rpn(levels)
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        sides = [[side * scale for scale in options.anchor_scales] for side in options.anchor_sizes]
        anchors = grid_anchors(shapes, size, sides, options.anchor_ratios, images.device)
        if valid is None:
            limits = torch.tensor([size[1], size[0]], device=images.device).expand(images.shape[0], 2)
        else:
            limits = valid.flip(1)
        proposals, some = propose(
            logits,
            offsets,
            anchors,
            limits,
            before=options.rpn_before_train if learning else options.rpn_before,
            after=options.rpn_after_train if learning else options.rpn_after,
            iou=options.rpn_iou,
        )
        return Stage(levels, logits, offsets, anchors, limits, proposals, some)

    def pool(self, stage: Stage, regions: Tensor, size: int) -> Tensor:
        """Regions [R, 5] -> [R, C, size, size]."""
        return pool_regions(stage.levels[: len(STRIDES)], STRIDES, regions, size)

    def detect(self, stage: Stage) -> tuple[dict[str, Tensor], Tensor]:
        """The outputs `boxes` [B, D, 4], `scores` [B, D], `labels` [B, D], strongest first, and [B, D] bool which are some.

        A proposal may answer with several classes. Suppression is per class; padding is zero throughout.
        """
        batch, count = stage.some.shape
        logits, offsets = self.box_head(self.pool(stage, regions_of(stage.proposals), _POOLED))
        chance = logits.float().softmax(dim=1)[:, 1:].unflatten(0, (batch, count)).transpose(1, 2)  # [B, C, P]
        offsets = offsets.float()[:, 1:].unflatten(0, (batch, count)).transpose(1, 2)  # [B, C, P, 4]
        boxes = clip_to(decode_offsets(offsets, stage.proposals[:, None], _REGION_WEIGHTS), stage.limits)
        large = ((boxes[..., 2:] - boxes[..., :2]) >= _SMALLEST).all(-1)
        chance = torch.where(large & stage.some[:, None] & (chance > self.options.score), chance, 0.0)
        kept = suppress(boxes.flatten(0, 1), chance.flatten(0, 1), self.options.nms_iou).view(chance.shape)
        scores = torch.where(kept, chance, 0.0).flatten(1)
        boxes, scores, place = strongest(boxes.flatten(1, 2), scores, self.options.detections)
        some = scores > 0
        return {"boxes": boxes, "scores": scores, "labels": torch.where(some, place // count, 0)}, some

    def rows_of(self, some: Tensor) -> Tensor:
        """Rows of the flattened detections [B D] that a further head need look at: those that are some, one if there is none.

        A traced graph has a fixed number of rows: it looks at all.
        """
        if torch.compiler.is_exporting():
            return torch.arange(some.numel(), device=some.device)
        rows = torch.nonzero(some.flatten())[:, 0]
        return rows if len(rows) else rows.new_zeros(1)

    def padded(self, found: Tensor, rows: Tensor, some: Tensor) -> Tensor:
        """Answers [R, ...] about the rows that `rows_of` gave -> float32 [B, D, ...], zeros where nothing was detected."""
        whole = torch.zeros(some.numel(), *found.shape[1:], device=found.device).index_copy(0, rows, found.float())
        whole = whole.view(*some.shape, *found.shape[1:])
        return torch.where(some.view(*some.shape, *[1] * (found.ndim - 1)), whole, 0.0)

    def sample(self, stage: Stage, targets: Targets) -> dict[str, Tensor]:
        """What the loss reads: drawn anchors and proposals of all images, flat, and the answers about them.

        `anchors` [S, 4], `anchor_objects` [S], `objectness` [S], `anchor_offsets` [S, 4]; `regions` [R, 5] (image number, box),
        `region_objects` [R], `classes` [R, C + 1], `offsets` [R, C + 1, 4]. An object is a row of `targets`, or negative as in
        `assign.overlap`. Proposals are drawn with the objects' own boxes among them.
        """
        options = self.options
        anchors = torch.cat(stage.anchors)
        logits, offsets = torch.cat(stage.logits, dim=1), torch.cat(stage.offsets, dim=1)
        drawn: dict[str, list[Tensor]] = {name: [] for name in ("places", "owners", "regions", "objects")}
        for image in range(targets.size):
            rows, ignored = _rows(targets, image)
            truth = targets.boxes[rows].float()
            low, high = options.rpn_low, options.rpn_high
            matched = match_by_overlap(anchors, truth, low=low, high=high, every_object=True, ignored=ignored)
            chosen = sample_balanced(matched, options.rpn_samples, options.rpn_positive)
            drawn["places"].append(chosen + image * len(anchors))
            drawn["owners"].append(_in_batch(matched[chosen], rows))

            boxes = torch.cat((stage.proposals[image], truth))
            some = torch.cat((stage.some[image], torch.ones_like(rows, dtype=torch.bool)))
            matched = match_by_overlap(boxes, truth, low=options.roi_iou, high=options.roi_iou, ignored=ignored)
            chosen = sample_balanced(torch.where(some, matched, NEITHER), options.roi_samples, options.roi_positive)
            drawn["regions"].append(F.pad(boxes[chosen], (1, 0), value=float(image)))
            drawn["objects"].append(_in_batch(matched[chosen], rows))
        places, regions, objects = (torch.cat(drawn[name]) for name in ("places", "regions", "objects"))
        if len(regions) == 0:  # a head must see something, or its parameters have no gradient and its norms no statistics
            regions = F.pad(anchors.new_zeros(1, 4), (1, 0))
            objects = places.new_full((1,), NEITHER)
        classes, region_offsets = self.box_head(self.pool(stage, regions, _POOLED))
        return {
            "anchors": anchors[places % len(anchors)],
            "anchor_objects": torch.cat(drawn["owners"]),
            "objectness": logits.flatten()[places],
            "anchor_offsets": offsets.flatten(0, 1)[places],
            "regions": regions,
            "region_objects": objects,
            "classes": classes,
            "offsets": region_offsets,
        }

    def learnt_rows(self, outputs: dict[str, Tensor]) -> Tensor:
        """Rows of `regions` with an object, for a head that learns of objects only; one other row if there is none."""
        rows = torch.nonzero(outputs["region_objects"] >= 0)[:, 0]
        return rows if len(rows) else rows.new_zeros(1)

    def box_terms(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`objectness` and `proposals` of the first stage, `class` and `box` of the second (Ren et al., eq. 1).

        Cross-entropies, and smooth L1 of the offsets of what has an object, summed over the batch, over the number drawn.
        """
        boxes = targets.boxes.float()
        owners = outputs["anchor_objects"]
        positive = owners >= 0
        drawn = self.counted(owners > NEITHER)
        objectness = F.binary_cross_entropy_with_logits(outputs["objectness"].float(), positive.float(), reduction="sum")
        wanted = encode_offsets(boxes[owners[positive]], outputs["anchors"][positive], _ANCHOR_WEIGHTS)
        proposals = F.smooth_l1_loss(outputs["anchor_offsets"].float()[positive], wanted, reduction="sum", beta=_BETA)

        objects, offsets = outputs["region_objects"], outputs["offsets"].float()
        positive = objects >= 0
        labels = torch.where(positive, targets.labels[objects.clamp(min=0)] + 1, 0) if len(boxes) else objects.clamp(min=0, max=0)
        entropy = F.cross_entropy(outputs["classes"].float(), labels, reduction="none")
        looked = self.counted(objects > NEITHER)
        wanted = encode_offsets(boxes[objects[positive]], outputs["regions"][positive, 1:], _REGION_WEIGHTS)
        found = offsets[positive, labels[positive]]
        return {
            "objectness": objectness / drawn,
            "proposals": proposals / drawn,
            "class": torch.where(objects > NEITHER, entropy, 0.0).sum() / looked,
            "box": F.smooth_l1_loss(found, wanted, reduction="sum", beta=_BETA) / looked,
        }

    def counted(self, chosen: Tensor) -> Tensor:
        """How many are true, the mean over processes, at least 1: the normaliser of a loss."""
        return self.reduce(chosen.sum().float()).clamp(min=1.0)


def _rows(targets: Targets, image: int) -> tuple[Tensor, Tensor]:
    """Rows of the image's objects to learn, and the boxes of its ignored regions."""
    mine = targets.batch == image
    return torch.nonzero(mine & ~targets.ignore)[:, 0], targets.boxes[mine & targets.ignore].float()


def _in_batch(matched: Tensor, rows: Tensor) -> Tensor:
    """Objects counted within an image -> rows of the batch; what is negative stays."""
    return torch.where(matched >= 0, rows[matched.clamp(min=0)], matched) if len(rows) else matched


@final
class FasterRCNN(TwoStage):
    """Faster R-CNN for the task `detect`."""

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        if task != "detect":
            raise ModelError(f"{name} answers the task detect, not {task!r}")
        super().__init__(name, categories, task, input_size, options)

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """`boxes` [B, D, 4], `scores` [B, D] and `labels` [B, D] as `detect`; with `targets` what `sample` draws.

        Raises:
            ModelError: a side of the images is not a multiple of 32.
        """
        stage = self.first_stage(images, valid, learning=targets is not None)
        return self.detect(stage)[0] if targets is None else self.sample(stage, targets)

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The four terms of `box_terms`."""
        return self.box_terms(outputs, targets)
