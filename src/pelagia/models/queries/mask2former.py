"""Mask2Former (Cheng, Misra, Schwing, Kirillov and Girdhar, "Masked-attention Mask Transformer for Universal Image Segmentation",
CVPR 2022, arXiv:2112.01527): semantic, instance and panoptic segmentation as one set of masks with classes.

Reference weights: `facebook/mask2former-*` on the Hugging Face Hub, converted from the authors' release (code: MIT; the weights'
cards state "other"); `mask2former_weights.py` reads them. The network equals that of `transformers` in every output and loss.

Where this departs from the reference:

- Pixels that the truth leaves open (label 255, crowd and ignore regions) count for nothing in matching and in mask losses, and a
  query without object whose mask lies mostly in them is not punished. The reference takes them for background.
- ResNet-50 has trainable batch norm unless `frozen_norm`; the authors freeze that of ImageNet, which fresh weights do not have.

Padding is looked at as image, as in the reference: `valid` changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.assign.hungarian import Matching, hungarian
from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError
from pelagia.losses.masks import dice
from pelagia.losses.points import read_points, uncertain_points
from pelagia.models.model import Model, Targets
from pelagia.models.queries.mask_truth import MaskTruth, mask_truth
from pelagia.nn.backbones import TimmBackbone
from pelagia.nn.deformable import DeformableLayer, centres_of
from pelagia.nn.swin import SWINS, Swin
from pelagia.nn.transformer import FeedForward, MultiHeadAttention, Perceptron, sine_positions

__all__ = ["LEVELS", "NORMALISATION", "POINTS", "Mask2Former", "Options"]

#: Maps that queries and the pixel decoder attend to: strides 32, 16 and 8.
LEVELS = 3
#: Places that a cell looks at on each of them.
POINTS = 4
#: Mean and standard deviation of ImageNet's channels, with which the authors' weights and most backbones were trained.
NORMALISATION = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_STRIDES = (4, 8, 16, 32)
_GROUPS = 32  # of group normalisation


@dataclass(frozen=True)
class Options:
    """Options of Mask2Former, saved in its checkpoint.

    Args:
        backbone: `timm:NAME`, a network of timm with maps at strides 4, 8, 16 and 32, or a Swin Transformer of `nn.swin`.
        swin_width: channels of the first stage of a Swin; 0 for those of its name.
        swin_depths: blocks of each stage of a Swin; empty for those of its name.
        drop_path: chance that the last block of a Swin is left out in training.
        frozen_norm: fixed batch norm in a backbone that has it, as the authors fine-tune ImageNet weights.
        width: channels of maps, masks and queries; a multiple of 32 and of `heads`.
        heads: of every attention.
        pixel_layers: of the pixel decoder.
        pixel_hidden: channels of its feed-forward parts.
        layers: of the transformer decoder, a multiple of 3.
        hidden: channels of its feed-forward parts.
        queries: number of masks that an image can have.
        class_weight: of the cross-entropy of classes.
        mask_weight: of the binary cross-entropy of masks.
        dice_weight: of the Dice loss of masks.
        no_object_weight: of queries without object in the cross-entropy.
        points: at which a mask is compared with its truth.
        oversample: random points per point, of which the least certain are taken.
        importance: share of the points that are chosen by uncertainty.
    """

    backbone: str = "timm:resnet50"
    swin_width: int = 0
    swin_depths: tuple[int, ...] = ()
    drop_path: float = 0.3
    frozen_norm: bool = False
    width: int = 256
    heads: int = 8
    pixel_layers: int = 6
    pixel_hidden: int = 1024
    layers: int = 9
    hidden: int = 2048
    queries: int = 100
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self) -> None:
        object.__setattr__(self, "swin_depths", tuple(self.swin_depths))  # a list after JSON
        if not self.backbone.startswith("timm:"):
            raise OptionError(f"backbone must be timm:NAME, got {self.backbone!r}")
        if self.width <= 0 or self.width % _GROUPS or self.width % self.heads:
            raise OptionError(f"width must be a multiple of {_GROUPS} and of the {self.heads} heads, got {self.width}")
        for name in ("pixel_layers", "pixel_hidden", "layers", "hidden", "queries", "points"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.oversample < 1 or not 0 <= self.importance <= 1 or not 0 <= self.drop_path < 1:
            raise OptionError(
                "oversample must be at least 1, importance in 0 to 1 and drop_path in 0 to below 1, got "
                f"{self.oversample}, {self.importance} and {self.drop_path}"
            )


class PixelDecoder(nn.Module):
    """Maps of a backbone -> maps at strides 32, 16, 8 that have seen each other, and features of every pixel at stride 4.

    Deformable attention over the three coarse maps at once, then one step of a feature pyramid down to stride 4.
    """

    def __init__(self, channels: tuple[int, ...], options: Options) -> None:
        super().__init__()
        width = options.width
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(_GROUPS, width)) for c in channels[:0:-1]
        )  # coarsest first
        self.level = nn.Parameter(torch.randn(LEVELS, width))
        self.layers = nn.ModuleList(
            DeformableLayer(width, options.heads, options.pixel_hidden, LEVELS, POINTS) for _ in range(options.pixel_layers)
        )
        self.lateral = nn.Sequential(nn.Conv2d(channels[0], width, 1, bias=False), nn.GroupNorm(_GROUPS, width))
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(_GROUPS, width), nn.ReLU())
        self.pixels = nn.Conv2d(width, width, 1)
        for layer in self.enter:
            nn.init.xavier_uniform_(layer[0].weight)  # type: ignore[index]
            nn.init.zeros_(layer[0].bias)  # type: ignore[index]

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The maps [B, D, h, w], coarsest first, the codes of their places [1, h w, D], and the pixels [B, D, H / 4, W / 4]."""
        entered = [enter(x) for enter, x in zip(self.enter, maps[:0:-1], strict=True)]
        shapes = [(x.shape[2], x.shape[3]) for x in entered]
        places = [_places(x) for x in entered]
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in entered], dim=1)  # [B, S, D]
        codes = torch.cat([place + self.level[level] for level, place in enumerate(places)], dim=1)  # [1, S, D]
        centres = centres_of(shapes, cells)
        for layer in self.layers:
            cells = layer(cells, codes, centres, shapes)
        parts = torch.split(cells, [height * width for height, width in shapes], dim=1)
        levels = [part.transpose(1, 2).reshape(*x.shape) for part, x in zip(parts, entered, strict=True)]
        fine = self.lateral(maps[0])
        fine = fine + F.interpolate(levels[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
        return levels, places, self.pixels(self.smooth(fine))


def _places(x: Tensor) -> Tensor:
    """[1, h w, D], the codes of the places of a map [B, D, h, w]."""
    everywhere = torch.ones(1, *x.shape[2:], dtype=torch.bool, device=x.device)
    return sine_positions(everywhere, x.shape[1]).flatten(2).transpose(1, 2).to(x.dtype)


class MaskedLayer(nn.Module):
    """Masked attention of queries to cells, self-attention of queries, feed-forward; x [B, Q, D] -> [B, Q, D] (section 3.2)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross = MultiHeadAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.feed = FeedForward(width, hidden)
        self.feed_norm = nn.LayerNorm(width)
        for part in (self.cross, self.attention, self.feed):
            part.reset()

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, places: Tensor, allowed: Tensor) -> Tensor:
        """`queries` [1, Q, D] codes which query is which, `memory` [B, N, D] are cells, `allowed` [B, 1, Q, N] who sees which."""
        x = self.cross_norm(x + self.cross(x + queries, memory + places, memory, allowed))
        coded = x + queries
        x = self.attention_norm(x + self.attention(coded, coded, x))
        out: Tensor = self.feed_norm(x + self.feed(x))
        return out


class MaskedDecoder(nn.Module):
    """Queries that look, layer by layer, at strides 32, 16 and 8 in turn, each inside the mask that it has drawn so far.

    Attributes:
        shift: added to the logits that decide what lies inside; not 0 only where their rounding is examined.
    """

    shift = 0.0

    def __init__(self, classes: int, options: Options) -> None:
        super().__init__()
        width = options.width
        self.queries = nn.Parameter(torch.randn(options.queries, width))
        self.codes = nn.Parameter(torch.randn(options.queries, width))
        self.level = nn.Parameter(torch.randn(LEVELS, width))
        self.layers = nn.ModuleList(MaskedLayer(width, options.heads, options.hidden) for _ in range(options.layers))
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, classes + 1)
        self.masks = Perceptron(width, width, width, 3)

    def forward(self, levels: list[Tensor], places: list[Tensor], pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits [B, Q, C + 1] and mask logits [B, Q, h, w] of the first queries and after each layer."""
        memories = [x.flatten(2).transpose(1, 2) + self.level[index] for index, x in enumerate(levels)]  # [B, N, D]
        x = self.queries[None].expand(pixels.shape[0], -1, -1)  # [B, Q, D]
        logits, masks = [], []
        for index, layer in enumerate([*self.layers, None]):
            answer = self.norm(x)
            logits.append(self.classes(answer))
            masks.append(torch.einsum("bqd,bdhw->bqhw", self.masks(answer), pixels))
            if layer is not None:
                level = index % LEVELS
                drawn = masks[-1] + self.shift if self.shift else masks[-1]
                allowed = _inside(drawn, levels[level].shape[2:])
                x = layer(x, self.codes[None], memories[level], places[level], allowed)
        return logits, masks


def _inside(masks: Tensor, size: torch.Size) -> Tensor:
    """[B, 1, Q, N] bool: a query sees the cells inside its mask of logits [B, Q, h, w] (eq. 4), and all where it is empty."""
    seen = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False).flatten(2).sigmoid() >= 0.5
    return (seen | ~seen.any(dim=2, keepdim=True))[:, None]


@final
class Mask2Former(Model):
    """Mask2Former for the tasks `panoptic`, `instance` and `semantic`."""

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        super().__init__()
        if task not in ("panoptic", "instance", "semantic"):
            raise ModelError(f"{name} answers the tasks panoptic, instance and semantic, not {task!r}")
        if not categories:
            raise ModelError(f"{name} needs at least one class")
        self.options = options
        self.card = ModelCard(
            name=name,
            task=task,
            decoder="masks",
            categories=categories,
            input_size=input_size,
            options={**asdict(options), "swin_depths": list(options.swin_depths)},  # JSON has no tuples
            normalisation=NORMALISATION,
        )
        self.backbone = _backbone(options)
        self.pixel_decoder = PixelDecoder(self.backbone.channels, options)
        self.decoder = MaskedDecoder(len(categories), options)

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """`logits` [B, Q, C + 1], the last class meaning no object, and mask logits `masks` [B, Q, ceil(H / 4), ceil(W / 4)].

        With `targets` also the answers of the first queries and of all layers but the last, `earlier_logits` [B, L, Q, C + 1] and
        `earlier_masks` [B, L, Q, h, w].
        """
        logits, masks = self.decoder(*self.pixel_decoder(self.backbone(images)))
        outputs = {"logits": logits[-1], "masks": masks[-1]}
        if targets is not None:
            outputs |= {"earlier_logits": torch.stack(logits[:-1], 1), "earlier_masks": torch.stack(masks[:-1], 1)}
        return outputs

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`class`, `mask` and `dice`, weighted, each summed over the layers of the decoder."""
        return {name: value.sum() for name, value in self.layer_losses(outputs, targets).items()}

    def layer_losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The weighted terms of the first queries and of each layer [L + 1], the last layer last; each has its own matching.

        `class`: cross-entropy of all queries with the class that they are matched to, or with "no object" at its weight, over the
        sum of weights. `mask`, `dice`: binary cross-entropy (a mean over points) and Dice loss of the matched masks, over the
        number of masks in the truth.
        """
        raw = {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in outputs.items()}
        truth = mask_truth(targets, self.card.task, self.card.name)
        last = self._layer_terms(raw["logits"], raw["masks"], truth)  # first: it draws the same random points as the reference
        earlier = zip(raw["earlier_logits"].unbind(1), raw["earlier_masks"].unbind(1), strict=True)
        layers = [*(self._layer_terms(logits, masks, truth) for logits, masks in earlier), last]
        return {name: torch.stack([terms[name] for terms in layers]) for name in last}

    def _layer_terms(self, logits: Tensor, masks: Tensor, truth: MaskTruth) -> dict[str, Tensor]:
        """The three weighted terms of one layer's answers, with a matching of its own."""
        options = self.options
        found, spared = match(logits, masks, truth, options)
        labels = torch.full(logits.shape[:2], logits.shape[2] - 1, device=logits.device)  # [B, Q]
        weights = torch.full_like(logits[..., 0], options.no_object_weight).masked_fill(spared, 0.0)
        labels[found.image, found.query] = truth.labels[found.object]
        weights[found.image, found.query] = 1.0
        errors = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * weights
        total, count = self.reduce(torch.stack((weights.sum(), weights.new_tensor(float(len(truth)))))).unbind()
        mask, overlap = mask_losses(masks, found, truth, options)
        some = torch.where(count > 0, count, 1.0)
        return {
            "class": options.class_weight * errors.sum() / total.clamp(min=torch.finfo(total.dtype).tiny),
            "mask": options.mask_weight * mask / some,
            "dice": options.dice_weight * overlap / some,
        }


@torch.no_grad()
def match(logits: Tensor, masks: Tensor, truth: MaskTruth, options: Options) -> tuple[Matching, Tensor]:
    """Pairs of queries and masks, ordered by image and query, and [B, Q] bool, which queries an ignored region spares.

    The cost of a pair adds, with the weights of the losses, -p(class), the binary cross-entropy and the Dice loss at random
    points that all masks of an image share (section 3.3; the probability in place of its logarithm, as in DETR). Spared are
    queries more than half of whose mask lies in pixels that count for nothing.
    """
    queries, count = logits.shape[1], options.points
    costs, spared = [], torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
    for image, (classes, drawn) in enumerate(zip(logits.softmax(dim=2), masks, strict=True)):
        points = torch.rand(1, count, 2, device=masks.device)
        x = read_points(drawn[None], points.to(masks.dtype))[0]  # [Q, P]
        weight = torch.ones_like(x[0])
        if truth.ignored:
            weight = (~truth.ignored_at(points, torch.tensor([image], device=masks.device))[0]).to(x.dtype)
            inside = (x > 0).to(x.dtype)
            spared[image] = 2 * (inside @ weight) < inside.sum(1)
        own = (truth.batch == image).nonzero()[:, 0]
        t = truth.at(points, own).to(x.dtype) * weight  # [M, P]
        p = x.sigmoid() * weight
        entropy = ((F.softplus(x) @ weight)[None] - t @ x.T) / weight.sum().clamp(min=1.0)  # [M, Q]
        overlap = 1 - (2 * t @ p.T + 1) / (t.sum(1)[:, None] + p.sum(1)[None] + 1)
        chance = classes[:, truth.labels[own]].T
        costs.append(options.mask_weight * entropy + options.dice_weight * overlap - options.class_weight * chance)
    found = hungarian(torch.cat(costs), truth.batch)
    # In this order random points meet the same pairs as in the reference.
    order = (found.image * queries + found.query).argsort()
    return Matching(found.image[order], found.query[order], found.object[order]), spared


def mask_losses(masks: Tensor, found: Matching, truth: MaskTruth, options: Options) -> tuple[Tensor, Tensor]:
    """Sums over the pairs of the binary cross-entropy, a mean over points, and of the Dice loss."""
    if not len(found.query):
        nothing = masks.sum() * 0  # the parameters behind the masks still get a gradient
        return nothing, nothing
    matched = masks[found.image, found.query]  # [N, h, w]
    points = uncertain_points(
        matched.detach(), options.points, oversample=options.oversample, importance=options.importance
    )  # [N, P, 2]
    x = read_points(matched[:, None], points.to(masks.dtype))[:, 0]  # [N, P]
    t = truth.at(points, found.object).to(x.dtype)
    weight = (~truth.ignored_at(points, found.image)).to(x.dtype) if truth.ignored else torch.ones_like(x)
    entropy = F.binary_cross_entropy_with_logits(x, t, weight, reduction="none").sum(1) / weight.sum(1).clamp(min=1.0)
    return entropy.sum(), dice(x.sigmoid() * weight, t * weight).sum()


def _backbone(options: Options) -> TimmBackbone | Swin:
    name = options.backbone.removeprefix("timm:")
    if name.partition(".")[0] in SWINS:
        return Swin(name, options.swin_width, options.swin_depths, drop_path=options.drop_path)
    if options.swin_width or options.swin_depths:
        raise OptionError(f"swin_width and swin_depths are for a Swin Transformer, not for {options.backbone}")
    return TimmBackbone(name, _STRIDES, frozen_norm=options.frozen_norm)
