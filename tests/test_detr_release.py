"""The authors' files of DETR, against their network written down from the paper's appendix with PyTorch's attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from pelagia.errors import CheckpointError
from pelagia.models.foreign import load_any
from pelagia.models.queries.detr import NORMALISATION
from pelagia.models.weights import PUBLISHED
from pelagia.nn.transformer import sine_positions

WIDTH, HEADS, HIDDEN, CLASSES = 32, 8, 48, 4


class Layer(nn.Module):
    """One layer, its parts called as the authors call them; with `memory` that of the decoder."""

    def __init__(self, decoder: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS)
        if decoder:
            self.multihead_attn = nn.MultiheadAttention(WIDTH, HEADS)
            self.norm3 = nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, own: Tensor, memory: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.self_attn(x + own, x + own, x)[0])
        if memory is not None:
            assert places is not None
            x = self.norm2(x + self.multihead_attn(x + own, memory + places, memory)[0])
        last = self.norm2 if memory is None else self.norm3
        out: Tensor = last(x + self.linear2(self.linear1(x).relu()))
        return out


class Authors(nn.Module):
    """Sequence first, as theirs."""

    def __init__(self) -> None:
        super().__init__()
        body = timm.layers.freeze_batch_norm_2d(timm.create_model("resnet18", features_only=True, out_indices=[4]))
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": body})])
        self.transformer = nn.ModuleDict(
            {
                "encoder": nn.ModuleDict({"layers": nn.ModuleList(Layer(False) for _ in range(2))}),
                "decoder": nn.ModuleDict({"layers": nn.ModuleList(Layer(True) for _ in range(2)), "norm": nn.LayerNorm(WIDTH)}),
            }
        )
        self.query_embed = nn.Embedding(12, WIDTH)
        self.input_proj = nn.Conv2d(512, WIDTH, 1)
        self.class_embed = nn.Linear(WIDTH, CLASSES + 1)
        self.bbox_embed = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(WIDTH, out) for out in (WIDTH, WIDTH, 4))})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.input_proj(self.backbone[0]["body"](images)[0])  # type: ignore[index, operator]
        places = sine_positions(torch.ones(1, *found.shape[2:], dtype=torch.bool), WIDTH).flatten(2).permute(2, 0, 1)
        cells = found.flatten(2).permute(2, 0, 1)
        for layer in self.transformer["encoder"]["layers"]:  # type: ignore[index, union-attr]
            cells = layer(cells, places)
        own = self.query_embed.weight[:, None].expand(-1, images.shape[0], -1)
        state = torch.zeros_like(own)
        for layer in self.transformer["decoder"]["layers"]:  # type: ignore[index, union-attr]
            state = layer(state, own, cells, places)
        state = self.transformer["decoder"]["norm"](state).transpose(0, 1)  # type: ignore[index, operator]
        box = state
        for number, layer in enumerate(self.bbox_embed["layers"]):
            box = layer(box).relu() if number < 2 else layer(box).sigmoid()
        return self.class_embed(state), box


def authors() -> Authors:
    torch.manual_seed(0)
    model = Authors().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.8, 1.2)
            elif value.ndim == 1:
                value.add_(0.2 * torch.randn_like(value))
            elif value.ndim > 1:
                value.normal_(0, (8.0 if "in_proj" in name or "query" in name else 1.5) * value[0].numel() ** -0.5)
    return model


def test_answers_are_those_of_the_authors_network(tmp_path: Path) -> None:
    theirs = authors()
    torch.save({"model": theirs.state_dict(), "epoch": 499}, tmp_path / "detr.pth")
    ours = load_any(tmp_path / "detr.pth")
    images = torch.randn(2, 3, 96, 160)
    with torch.inference_mode():
        logits, boxes = theirs(images)
        found = ours(images)
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found["boxes"], boxes, rtol=0, atol=1e-4)
    assert logits.std(dim=1).mean() > 0.01  # a hundred times the tolerance: the queries differ
    assert (ours.card.licence, ours.card.normalisation, len(ours.card.categories)) == ("unknown", NORMALISATION, CLASSES)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    state = authors().state_dict()
    name = "transformer.encoder.layers.0.self_attn.in_proj_bias"
    torch.save({"model": {**state, name: torch.zeros(95)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="joins three matrices"):
        load_any(tmp_path / "a.pth")
    del state["transformer.decoder.norm.weight"]
    torch.save({"model": state}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="1 missing"):
        load_any(tmp_path / "b.pth")


def test_published_files_are_known_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest is all that tells a dilated network from one that is not."""
    monkeypatch.setattr("pelagia.models.weights.sha256", lambda _path: PUBLISHED["detr-r50-dc5"].digest + "00")
    torch.save({"model": authors().state_dict()}, tmp_path / "detr.pth")
    card = load_any(tmp_path / "detr.pth").card
    assert card.options["dilated"]
    assert card.licence == "Apache-2.0"
    assert card.source == PUBLISHED["detr-r50-dc5"].source
