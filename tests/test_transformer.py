"""Attention, layers and place codes against PyTorch's, transformers' and their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

from pelagia.nn.transformer import DecoderLayer, EncoderLayer, MultiHeadAttention, Perceptron, sine_positions, valid_cells


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.join.state_dict())


def test_attention_equals_that_of_pytorch() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(32, 4).eval(), nn.MultiheadAttention(32, 4, batch_first=True).eval()
    copy_attention(ours, theirs)
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    padded = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0])
    masked = theirs(query, key, value, key_padding_mask=padded)[0]
    torch.testing.assert_close(ours(query, key, value, ~padded[:, None, None]), masked)


def test_first_weights_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(256, 4), nn.MultiheadAttention(256, 4)
    ours.reset()
    assert ours.query.weight.std().item() == pytest.approx(theirs.in_proj_weight.std().item(), rel=0.02)
    assert ours.join.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert not ours.value.bias.any()


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_equal_those_of_pytorch_without_places(norm_first: bool) -> None:
    torch.manual_seed(0)
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    encoder = EncoderLayer(32, 4, 64, norm_first=norm_first).eval()
    other = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=norm_first).eval()
    copy_attention(encoder.attention, other.self_attn)
    other.linear1.load_state_dict(encoder.feed.enter.state_dict())
    other.linear2.load_state_dict(encoder.feed.leave.state_dict())
    torch.testing.assert_close(encoder(x, torch.zeros(1, 5, 32)), other(x))

    decoder = DecoderLayer(32, 4, 64, norm_first=norm_first).eval()
    wanted = nn.TransformerDecoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=norm_first).eval()
    copy_attention(decoder.attention, wanted.self_attn)
    copy_attention(decoder.cross, wanted.multihead_attn)
    wanted.linear1.load_state_dict(decoder.feed.enter.state_dict())
    wanted.linear2.load_state_dict(decoder.feed.leave.state_dict())
    found = decoder(x, torch.zeros(1, 5, 32), memory, torch.zeros(1, 7, 32))
    torch.testing.assert_close(found, wanted(x, memory))


def test_places_enter_queries_and_keys_but_not_values() -> None:
    """With one cell the softmax is 1 whatever the keys are, so that places cannot matter; with two they do."""
    torch.manual_seed(0)
    layer = EncoderLayer(32, 4, 64).eval()
    one, two = torch.randn(1, 1, 32), torch.randn(1, 2, 32)
    torch.testing.assert_close(layer(one, torch.randn(1, 1, 32)), layer(one, torch.zeros(1, 1, 32)))
    assert not torch.allclose(layer(two, torch.randn(1, 2, 32)), layer(two, torch.zeros(1, 2, 32)), atol=1e-3)


def test_dropout_acts_in_training_only() -> None:
    layer = EncoderLayer(32, 4, 64, dropout=0.5)
    x, places = torch.randn(1, 6, 32), torch.zeros(1, 6, 32)
    assert not torch.allclose(layer(x, places), layer(x, places))
    layer.eval()
    assert torch.equal(layer(x, places), layer(x, places))


@pytest.mark.parametrize("cells", [(3, 5), (8, 2)])
def test_sine_positions_equal_those_of_transformers(cells: tuple[int, int]) -> None:
    image = valid_cells(torch.tensor([[64, 96], [33, 50], [1, 1]]), (64, 96), cells)
    theirs = DetrSinePositionEmbedding(16, normalize=True)(
        torch.Size([3, 32, *cells]), torch.device("cpu"), torch.float32, mask=image
    )
    found = sine_positions(image, 32)
    assert found.shape == (3, 32, *cells)
    torch.testing.assert_close(found, theirs)


def test_sine_positions_are_their_definition() -> None:
    found = sine_positions(torch.ones(1, 2, 4, dtype=torch.bool), 8)[0]
    for row in range(2):
        for column in range(4):
            for half, place in enumerate(((row + 1) / 2, (column + 1) / 4)):
                for k in range(4):
                    angle = 2 * math.pi * place / 10_000 ** (2 * (k // 2) / 4)
                    wanted = math.cos(angle) if k % 2 else math.sin(angle)
                    assert found[4 * half + k, row, column].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (70, 97)])
def test_valid_cells_are_the_nearest_pixels(size: tuple[int, int]) -> None:
    """Against PyTorch's nearest-neighbour interpolation of the mask of pixels."""
    cells = (-(-size[0] // 32), -(-size[1] // 32))
    valid = torch.tensor([[size[0], size[1]], [33, 40], [64, 1], [32, 32]])
    pixels = torch.zeros(len(valid), *size)
    for mask, (height, width) in zip(pixels, valid.tolist(), strict=True):
        mask[:height, :width] = 1
    wanted = nn.functional.interpolate(pixels[None], size=cells)[0].bool()
    assert torch.equal(valid_cells(valid, size, cells), wanted)


def test_a_perceptron_is_its_layers() -> None:
    torch.manual_seed(0)
    layers = Perceptron(6, 8, 4, 3)
    x = torch.randn(2, 6)
    wanted = nn.Sequential(layers.layers[0], nn.ReLU(), layers.layers[1], nn.ReLU(), layers.layers[2])(x)
    assert torch.equal(layers(x), wanted)
