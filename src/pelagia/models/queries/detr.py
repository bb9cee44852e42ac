"""DETR: detection as the prediction of a set.

Carion, Massa, Synnaeve, Usunier, Kirillov, Zagoruyko, "End-to-End Object Detection with Transformers", ECCV 2020,
arXiv:2005.12872. Published weights: the authors' (Meta), Apache-2.0; `models.queries.huggingface` reads the files of
`facebook/detr-resnet-50` and its like.

    images -> backbone (stride 32) -> 1 x 1 convolution -> encoder over all cells -> decoder of Q queries -> class, box each

Each of Q learnt queries answers with a class or with "no object", and with one box. Truth is matched to queries one to one at the
least cost (`assign.hungarian`), so that no two queries are rewarded for one object and nothing has to be suppressed afterwards.
Every layer of the decoder answers, through the same heads, and learns.

Where it departs from the authors' code: objects in ignore regions are not matched, and a query that answers there without being
matched is not punished; the weights of matching and loss are one set of options.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Final, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.assign.hungarian import Matching, hungarian
from pelagia.core import boxes as upright
from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError
from pelagia.models.model import Model, Targets
from pelagia.nn.backbones import TimmBackbone
from pelagia.nn.transformer import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    Perceptron,
    sine_positions,
    valid_cells,
)

__all__ = ["DETR", "NORMALISATION", "Options"]

#: Mean and standard deviation of ImageNet's channels, with which the authors' weights and most backbones were trained.
NORMALISATION: Final = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
#: Layers of the perceptron that answers with a box.
_BOX_LAYERS = 3
#: A query answers in an ignore region if more than this share of its box lies in it.
_IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class Options:
    """Options of DETR, saved in its checkpoint.

    Args:
        width: channels of a cell and of a query in the transformer, a multiple of 4 and of `heads`.
        heads: of each attention.
        encoder_layers: of the transformer.
        decoder_layers: of the transformer.
        hidden: channels of the feed-forward parts.
        queries: the most objects that an image can hold.
        dropout: in training, in the transformer.
        norm_first: norms before attention and feed-forward parts (and one after the last layer) instead of after them.
        backbone: `timm:NAME`, a timm network with a map of stride 32.
        norm: batch norms of the backbone: `frozen` scales and shifts, or `batch`, which a backbone without weights needs.
        dilated: the last stage of the backbone dilates instead of striding (DC5): four times the cells.
        class_weight: of the classes, in the matching cost and in the loss.
        l1_weight: of the distance between boxes, in both.
        giou_weight: of the overlap of boxes, in both.
        empty_weight: of the class "no object" in the loss.
        auxiliary: every layer of the decoder learns, not the last one only.
    """

    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    hidden: int = 2048
    queries: int = 100
    dropout: float = 0.1
    norm_first: bool = False
    backbone: str = "timm:resnet50"
    norm: Literal["frozen", "batch"] = "frozen"
    dilated: bool = False
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    empty_weight: float = 0.1
    auxiliary: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "heads", "decoder_layers", "hidden", "queries", "empty_weight"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("encoder_layers", "class_weight", "l1_weight", "giou_weight"):
            if getattr(self, name) < 0:
                raise OptionError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.width % 4 or self.width % self.heads:
            raise OptionError(f"width must be a multiple of 4 and of heads, got {self.width} with {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout must lie in 0 to 1, got {self.dropout}")
        if not self.backbone.startswith("timm:"):
            raise OptionError(f"backbone must be timm:NAME, got {self.backbone!r}")
        if self.norm not in ("frozen", "batch"):
            raise OptionError(f"norm must be frozen or batch, got {self.norm!r}")


class Encoder(nn.Module):
    """Layers of self-attention over the cells, [B, N, D] -> [B, N, D]."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(options.width, options.heads, options.hidden, dropout=options.dropout, norm_first=options.norm_first)
            for _ in range(options.encoder_layers)
        )
        self.norm = nn.LayerNorm(options.width) if options.norm_first else nn.Identity()

    def forward(self, cells: Tensor, positions: Tensor, allowed: Tensor | None) -> Tensor:
        for layer in self.layers:
            cells = layer(cells, positions, allowed)
        out: Tensor = self.norm(cells)
        return out


class Decoder(nn.Module):
    """Layers in which queries look at each other and at the cells; the state of the queries after each, [B, Q, D]."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(options.width, options.heads, options.hidden, dropout=options.dropout, norm_first=options.norm_first)
            for _ in range(options.decoder_layers)
        )
        self.norm = nn.LayerNorm(options.width)

    def forward(self, queries: Tensor, cells: Tensor, positions: Tensor, allowed: Tensor | None) -> list[Tensor]:
        """What a query knows is zero at first; `queries` [1, Q, D], which tells them apart, is added in every layer."""
        state = cells.new_zeros(cells.shape[0], *queries.shape[1:])
        states = []
        for layer in self.layers:
            state = layer(state, queries, cells, positions, allowed)
            states.append(state)
        return [self.norm(state) for state in states]


@final
class DETR(Model):
    """DETR for the task `detect`."""

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        super().__init__()
        if task != "detect":
            raise ModelError(f"{name} answers the task detect, not {task!r}")
        if not categories:
            raise ModelError(f"{name} needs at least one class")
        self.options = options
        self.card = ModelCard(
            name=name,
            task=task,
            decoder="queries",
            categories=categories,
            input_size=input_size,
            masks_padding=True,
            options=asdict(options),
            normalisation=NORMALISATION,
        )
        self.backbone = TimmBackbone(
            options.backbone.removeprefix("timm:"),
            (32,),
            output_stride=16 if options.dilated else 32,
            frozen_norm=options.norm == "frozen",
        )
        self.project = nn.Conv2d(self.backbone.channels[0], options.width, 1)
        self.encoder, self.decoder = Encoder(options), Decoder(options)
        self.queries = nn.Embedding(options.queries, options.width)
        self.classes = nn.Linear(options.width, len(categories) + 1)
        self.boxes = Perceptron(options.width, options.width, 4, _BOX_LAYERS)
        for module in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(module, MultiHeadAttention | FeedForward):
                module.reset()

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """`logits` [B, Q, C + 1], the last "no object", and `boxes` [B, Q, 4]: cx, cy, w, h as shares of the valid image.

        With `valid` or `targets` also `valid` [B, 2], the heights and widths that the boxes are shares of. With `targets` also
        the answers of the layers before the last, `earlier_logits` [B, L - 1, Q, C + 1] and `earlier_boxes` [B, L - 1, Q, 4],
        empty unless `auxiliary`. Images may have any size.
        """
        found = self.backbone(images)[0]  # [B, C, h, w]
        size, cells = images.shape[2:], found.shape[2:]
        if valid is None:
            image, allowed = torch.ones(1, *cells, dtype=torch.bool, device=images.device), None
        else:
            image = valid_cells(valid, (size[0], size[1]), (cells[0], cells[1]))  # [B, h, w]
            allowed = image.flatten(1)[:, None, None]  # [B, 1, 1, N]
        positions = sine_positions(image, self.options.width).flatten(2).transpose(1, 2).to(found.dtype)  # [B or 1, N, D]
        memory = self.encoder(self.project(found).flatten(2).transpose(1, 2), positions, allowed)  # [B, N, D]
        states = self.decoder(self.queries.weight[None], memory, positions, allowed)
        learnt = len(states) if targets is not None and self.options.auxiliary else 1
        logits, boxes = self._answer(torch.stack(states[-learnt:], dim=1))  # [B, L, Q, C + 1], [B, L, Q, 4]
        outputs = {"logits": logits[:, -1], "boxes": boxes[:, -1]}
        if targets is not None:
            outputs |= {"earlier_logits": logits[:, :-1], "earlier_boxes": boxes[:, :-1]}
            valid = images.new_tensor(size).expand(images.shape[0], 2) if valid is None else valid
        return outputs if valid is None else {**outputs, "valid": valid}

    def _answer(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States of queries [..., D] -> class logits [..., C + 1] and boxes [..., 4].

        Boxes are made in full precision: the eight bits of bfloat16 would place them to a two-hundredth of the image.
        """
        logits: Tensor = self.classes(states)
        kind = states.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            boxes: Tensor = self.boxes(states.to(self.queries.weight.dtype)).sigmoid()
        return logits, boxes

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`class`, `l1` and `giou`, weighted, each summed over the layers of the decoder."""
        return {name: value.sum() for name, value in self.layer_losses(outputs, targets).items()}

    def layer_losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The weighted terms of each layer of the decoder [L], the last layer last; every layer has a matching of its own.

        `class`: cross-entropy of all queries with the class that they are matched to, or with "no object" at its weight, over the
        sum of weights. `l1` and `giou`: sums over matched pairs of |b - b*| (in shares of the image) and of 1 - GIoU, over the
        number of objects.
        """
        logits = torch.cat((outputs["earlier_logits"], outputs["logits"][:, None]), dim=1)  # [B, L, Q, C + 1]
        boxes = torch.cat((outputs["earlier_boxes"], outputs["boxes"][:, None]), dim=1)  # [B, L, Q, 4]
        images, layers = logits.shape[:2]
        # The layers are further images: one copy to the host serves the matching of all.
        logits, boxes = (value.transpose(0, 1).flatten(0, 1).float() for value in (logits, boxes))  # [L B, Q, .]
        shares = targets.boxes / outputs["valid"].flip(1).repeat(1, 2)[targets.batch]  # [M, 4] xyxy
        place = torch.arange(layers, device=boxes.device)[:, None] * images + targets.batch  # [L, M]

        def repeated(chosen: Tensor) -> _Truth:
            rows = chosen.nonzero()[:, 0]
            return _Truth(place[:, rows].flatten(), targets.labels[rows].repeat(layers), shares[rows].repeat(layers, 1))

        truth = repeated(~targets.ignore)
        matching = hungarian(self._cost(logits, boxes, truth), truth.batch)
        ignored = _answering_in(boxes, repeated(targets.ignore))
        count = self.reduce(boxes.new_tensor(len(truth.batch) / layers)).clamp(min=1)
        found, wanted = boxes[matching.image, matching.query], truth.boxes[matching.object]  # [P, 4]
        distance = torch.sum((found - upright.convert(wanted, "xyxy", "cxcywh")).abs(), dim=1)
        overlap = upright.iou_aligned(upright.convert(found, "cxcywh", "xyxy"), wanted, "giou")
        options, pairs = self.options, (layers, len(distance) // layers)
        return {
            "class": options.class_weight * self._class_losses(logits, truth.labels, matching, ignored, layers),
            "l1": options.l1_weight * distance.view(pairs).sum(dim=1) / count,
            "giou": options.giou_weight * (1 - overlap).view(pairs).sum(dim=1) / count,
        }

    @torch.no_grad()
    def _cost(self, logits: Tensor, boxes: Tensor, truth: _Truth) -> Tensor:
        """[M, Q], what it costs to match an object to a query of its image: its improbability and the two losses of its box."""
        chance = logits.softmax(dim=2)[truth.batch, :, truth.labels]
        found, wanted = boxes[truth.batch], truth.boxes[:, None]  # [M, Q, 4], [M, 1, 4]
        distance = torch.sum((found - upright.convert(wanted, "xyxy", "cxcywh")).abs(), dim=2)
        overlap = upright.iou_aligned(upright.convert(found, "cxcywh", "xyxy"), wanted, "giou")
        options = self.options
        return options.l1_weight * distance - options.class_weight * chance - options.giou_weight * overlap

    def _class_losses(self, logits: Tensor, labels: Tensor, matching: Matching, ignored: Tensor, layers: int) -> Tensor:
        """[L], weighted mean cross-entropies over all queries of all images."""
        empty = logits.shape[2] - 1
        wanted = torch.full(logits.shape[:2], empty, device=logits.device)  # [L B, Q]
        wanted[matching.image, matching.query] = labels[matching.object]
        free = wanted == empty
        weight = torch.where(free, self.options.empty_weight, 1.0).masked_fill(free & ignored, 0.0)
        value = weight * F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(weight)
        value, weight = (item.view(layers, -1).sum(dim=1) for item in (value, weight))
        return value / self.reduce(weight).clamp(min=self.options.empty_weight)


@dataclass(frozen=True)
class _Truth:
    """Objects of the images of all layers: image [M], class [M] and box [M, 4] xyxy in shares of the valid image."""

    batch: Tensor
    labels: Tensor
    boxes: Tensor


@torch.no_grad()
def _answering_in(boxes: Tensor, regions: _Truth) -> Tensor:
    """[B, Q] bool, whether most of the box of a query, boxes [B, Q, 4] cxcywh, lies in one of the regions of its image."""
    found = upright.convert(boxes, "cxcywh", "xyxy")[regions.batch]  # [K, Q, 4]
    low = torch.maximum(found[..., :2], regions.boxes[:, None, :2])
    high = torch.minimum(found[..., 2:], regions.boxes[:, None, 2:])
    inside = (high - low).clamp(min=0).prod(dim=2) > _IGNORED_SHARE * upright.area(found)
    region, query = inside.nonzero().unbind(1)
    answering = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    answering[regions.batch[region], query] = True
    return answering
