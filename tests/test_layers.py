"""Blocks of networks against their definitions."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.decode.grids import anchors
from pelagia.errors import ModelError, OptionError
from pelagia.nn.attention import C2PSA, Attention
from pelagia.nn.backbones import TimmBackbone
from pelagia.nn.csp import SPPF, Bottleneck, C3k, C3k2
from pelagia.nn.grids import cell_centres, expected_distances, grids_of, grids_of_count
from pelagia.nn.layers import ConvNormAct, OneDnnConv2d, OneDnnConvNormAct, fuse, use_onednn
from pelagia.nn.necks import PathAggregation


def scrambled(module: nn.Module) -> nn.Module:
    """The module in float64 with batch statistics that are not the identity."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return module.double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("activate", [True, False])
def test_conv_norm_act_is_its_definition(groups: int, activate: bool) -> None:
    block = scrambled(ConvNormAct(4, 8, 3, 2, groups=groups, activate=activate))
    assert isinstance(block, ConvNormAct)
    norm = block.norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    x = images(2, 4, 9, 8)
    y = F.conv2d(x, block.conv.weight, stride=2, padding=1, groups=groups)
    y = (y - norm.running_mean[:, None, None]) / torch.sqrt(norm.running_var[:, None, None] + 1e-3)
    y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
    y = y / (1 + torch.exp(-y)) if activate else y
    torch.testing.assert_close(block(x), y)
    with torch.no_grad():  # the in-place branch
        torch.testing.assert_close(block(x), y)


def test_fuse_changes_no_value_and_leaves_the_model_alone() -> None:
    module = scrambled(nn.Sequential(C3k2(8, 16, 2, nested=True), SPPF(16, 16)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fused = fuse(module)
    x = images(2, 8, 12, 10)
    torch.testing.assert_close(fused(x), module(x))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    assert not any(value.requires_grad for value in fused.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_csp_blocks_are_their_definitions() -> None:
    block = scrambled(C3k2(8, 16, 2, nested=False, expansion=0.5))
    assert isinstance(block, C3k2)
    x = images(1, 8, 6, 6)
    a, b = block.enter(x).chunk(2, 1)
    c = b + block.blocks[0].second(block.blocks[0].first(b))
    d = c + block.blocks[1].second(block.blocks[1].first(c))
    torch.testing.assert_close(block(x), block.join(torch.cat((a, b, c, d), 1)))
    deep = scrambled(C3k(8, 2))
    assert isinstance(deep, C3k)
    torch.testing.assert_close(deep(x), deep.join(torch.cat((deep.blocks(deep.enter(x)), deep.bypass(x)), 1)))
    assert isinstance(deep.blocks[0], Bottleneck)


def test_sppf_pools_over_5_9_and_13_cells() -> None:
    block = scrambled(SPPF(6, 8))
    assert isinstance(block, SPPF)
    x = images(1, 6, 20, 20)
    first = block.enter(x)
    pooled = [F.max_pool2d(first, size, stride=1, padding=size // 2) for size in (5, 9, 13)]
    torch.testing.assert_close(block(x), block.join(torch.cat((first, *pooled), 1)))


def test_attention_is_its_definition() -> None:
    block = scrambled(Attention(128))
    assert isinstance(block, Attention)
    x = images(2, 128, 3, 5)
    qkv = block.qkv(x).flatten(2)  # [B, 2 * 128, N]
    mixed = torch.zeros(2, 128, 15, dtype=torch.float64)
    values = torch.zeros_like(mixed)
    for head in range(2):
        start = head * 128
        q, k, v = qkv[:, start : start + 32], qkv[:, start + 32 : start + 64], qkv[:, start + 64 : start + 128]
        for image in range(2):
            weight = torch.softmax(q[image].T @ k[image] / math.sqrt(32), dim=1)  # [N, N], over the keys
            mixed[image, head * 64 : head * 64 + 64] = v[image] @ weight.T
        values[:, head * 64 : head * 64 + 64] = v
    expected = block.project(mixed.view(2, 128, 3, 5) + block.position(values.view(2, 128, 3, 5)))
    torch.testing.assert_close(block(x), expected)


def test_attention_is_the_same_in_both_memory_layouts() -> None:
    block = scrambled(C2PSA(128, 1))
    x = images(2, 128, 4, 6)
    torch.testing.assert_close(block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), block(x))


def test_path_aggregation_shapes_and_reach() -> None:
    neck = PathAggregation((4, 8, 16), (8, 12, 16), 10, lambda enter, out, _: ConvNormAct(enter, out)).eval()
    levels = [torch.randn(1, c, 64 // s, 96 // s, requires_grad=True) for c, s in ((4, 8), (8, 16), (16, 32))]
    out = neck(*levels)
    assert [tuple(found.shape[1:]) for found in out] == [(8, 8, 12), (12, 4, 6), (16, 2, 3)]
    for found in out:  # every output sees every input
        gradients = torch.autograd.grad(found.sum(), levels, retain_graph=True)
        assert all(bool(value.abs().sum() > 0) for value in gradients)


def test_cells_are_those_of_the_decoder() -> None:
    centres, strides = cell_centres(grids_of(64, 96, (8, 16, 32)), torch.device("cpu"), torch.float64)
    expected_centres, expected_strides = anchors((64, 96))
    np.testing.assert_array_equal(centres.numpy(), expected_centres)
    np.testing.assert_array_equal(strides.numpy(), expected_strides)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (640, 640), (480, 640)])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_grids_of_a_count(size: tuple[int, int], scale: int) -> None:
    wanted = grids_of(size[0] * scale, size[1] * scale, (8, 16, 32))
    cells = sum(grid.rows * grid.columns for grid in wanted)
    assert grids_of_count(cells, size, (8, 16, 32)) == wanted


def test_grids_refuse_impossible_inputs() -> None:
    with pytest.raises(ModelError, match="multiples of 32"):
        grids_of(64, 100, (8, 16, 32))
    with pytest.raises(ModelError, match="22 cells"):
        grids_of_count(22, (32, 32), (8, 16, 32))


def test_expected_distances() -> None:
    logits = torch.full((3, 16), -50.0)
    logits[0, 3] = logits[1, 0] = logits[1, 1] = 50.0
    logits[2] = 0.0
    torch.testing.assert_close(expected_distances(logits), torch.tensor([3.0, 0.5, 7.5]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timm_backbone_gives_three_levels() -> None:
    backbone = TimmBackbone("resnet18").eval()
    levels = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(found.shape[1:]) for found in levels] == [(128, 8, 12), (256, 4, 6), (512, 2, 3)]
    assert backbone.channels == (128, 256, 512)


def test_timm_backbone_names_what_it_lacks() -> None:
    with pytest.raises(OptionError, match="timm:no_such_network"):
        TimmBackbone("no_such_network")
    with pytest.raises(OptionError, match="strides 8, 16 and 32"):
        TimmBackbone("vit_tiny_patch16_224")


def test_stages_that_cannot_be_told_apart_are_no_hindrance_where_all_learn() -> None:
    backbone = TimmBackbone("mobileone_s0", (4, 8, 16, 32))
    backbone.freeze_stages(5)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(OptionError, match="cannot be told apart"):
        backbone.freeze_stages(3)


def test_timm_networks_that_take_any_size_without_being_told() -> None:
    maps = TimmBackbone("twins_pcpvt_small", (4, 8, 16, 32)).eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in maps] == [(64 // stride, 96 // stride) for stride in (4, 8, 16, 32)]


@pytest.mark.parametrize("size", [(64, 96), (128, 64)])
def test_timm_networks_with_channels_last_and_of_one_size(size: tuple[int, int]) -> None:
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", (4, 8, 16, 32)).eval()
    images = torch.rand(1, 3, *size)
    with torch.inference_mode():
        maps, inner = backbone(images), backbone.network(images)
    assert [tuple(x.shape) for x in maps] == [
        (1, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip((96, 192, 384, 768), (4, 8, 16, 32), strict=True)
    ]
    assert all(torch.equal(x, y.permute(0, 3, 1, 2)) for x, y in zip(maps, inner, strict=True))


def test_convolutions_by_onednn_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
        nn.Conv2d(8, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
    ).eval()
    wide = copy.deepcopy(model)
    use_onednn(wide)
    turned = copy.deepcopy(wide)
    assert [type(module) is OneDnnConv2d for module in turned] == [True, True, True, False, False, False]
    assert all(type(module) is not OneDnnConv2d for module in model)
    assert torch.equal(wide.double()(images(2, 3, 20, 28)), copy.deepcopy(model).double()(images(2, 3, 20, 28)))
    first = images(2, 3, 20, 28).float().contiguous(memory_format=torch.channels_last)
    second = images(1, 3, 33, 16).float()  # of another size and layout than those for which the weights were laid out
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                for shown in (first, second):
                    assert torch.allclose(turned(shown), model(shown), atol=1e-5)
                    assert torch.equal(turned(shown), turned(shown))
                assert turned(first[:0]).shape == model(first[:0]).shape  # no region was proposed
                alone = turned[1](first.new_ones(8, 5, 5))
                assert torch.allclose(alone, turned[1](first.new_ones(1, 8, 5, 5))[0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("activate", [False, True])
def test_a_fused_block_in_one_call_answers_as_its_parts(activate: bool) -> None:
    torch.manual_seed(0)
    block = ConvNormAct(3, 8, 3, 2, activate=activate)
    block.norm.running_mean.copy_(torch.randn(8))
    block.norm.running_var.copy_(torch.rand(8) + 0.5)
    parts = fuse(block)
    whole, unfused = copy.deepcopy(parts), block.eval()
    for turned in (whole, unfused):
        use_onednn(turned)
    assert type(whole) is OneDnnConvNormAct
    assert type(unfused) is ConvNormAct  # its normalisation is still to be done
    shown = images(2, 3, 20, 28).float()
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(whole)(shown), whole(shown))
        assert torch.allclose(whole(shown), parts(shown), atol=1e-5)
        assert torch.allclose(unfused(shown), parts(shown), atol=1e-5)
