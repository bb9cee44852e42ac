"""Groups, automatic settings, schedule, clipping and the moving average, against their definitions."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pelagia.core.types import Category
from pelagia.errors import OptionError
from pelagia.models.model import Model
from pelagia.models.registry import create
from pelagia.train.ema import Average
from pelagia.train.optim import Schedule, Settings, build_optimizer, choose_settings, clip_gradients, parameter_groups
from pelagia.train.options import TrainOptions
from training import TINY, register_tiny

ADAMW = Settings("adamw", 0.001, 0.05, 4)


@pytest.fixture(scope="module")
def model() -> Model:
    register_tiny()
    torch.manual_seed(0)
    return create(TINY, [Category(1, "a")], "detect", input_size=64)


def test_decay_spares_biases_and_norms_and_every_parameter_is_in_one_group(model: Model) -> None:
    groups = parameter_groups(model, ADAMW, {})
    named = dict(model.named_parameters())
    assert sorted(name for group in groups for name in group["names"]) == sorted(named)
    norms = {f"{name}.{p}" for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) for p in ("weight", "bias")}
    for group in groups:
        assert all(named[name] is parameter for name, parameter in zip(group["names"], group["params"], strict=True))
        for name in group["names"]:
            spared = name in norms or name.endswith(".bias")
            assert group["weight_decay"] == (0.0 if spared else 0.05), name


def test_the_backbone_can_have_its_own_rate(model: Model) -> None:
    groups = parameter_groups(model, ADAMW, {"backbone.": 0.1})
    for group in groups:
        assert all(name.startswith("backbone.") == (group["factor"] == 0.1) for name in group["names"])
    with pytest.raises(OptionError, match="--backbone-lr"):
        parameter_groups(nn.Linear(2, 2), ADAMW, {"backbone.": 0.1})


def test_the_longest_prefix_sets_the_rate(model: Model) -> None:
    factors = TrainOptions(backbone_lr=0.1, lr_factors=("backbone.stem=0.01", "head=2")).rate_factors()
    found = {name: group["factor"] for group in parameter_groups(model, ADAMW, factors) for name in group["names"]}
    for name, factor in found.items():
        expected = 0.01 if name.startswith("backbone.stem") else 0.1 if name.startswith("backbone.") else 1.0
        assert factor == (2.0 if name.startswith("head") else expected), name


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(OptionError, match="--freeze"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), ADAMW, {})


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_one_step_is_that_of_the_textbook(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    chosen = Settings(kind, 0.01, 0.1, 1)  # type: ignore[arg-type]
    optimizer = build_optimizer(layer, chosen, TrainOptions(momentum=0.9))
    layer(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    if kind == "sgd":  # Nesterov, first step: g + momentum * g, with g = gradient + decay * weight
        expected = weight - 0.01 * 1.9 * (1.0 + 0.1 * weight)
        free = bias - 0.01 * 1.9
    else:  # the first step of Adam is the sign; decay is decoupled
        expected = weight * (1 - 0.01 * 0.1) - 0.01
        free = bias - 0.01
    assert torch.allclose(layer.weight, expected, atol=1e-9)
    assert torch.allclose(layer.bias, free, atol=1e-9)


def test_automatic_choices() -> None:
    short, long = choose_settings(TrainOptions(), 16, 400), choose_settings(TrainOptions(), 64, 100_000)
    assert (short.optimizer, short.lr, short.weight_decay) == ("adamw", 0.002, 0.05)
    assert (long.optimizer, long.lr, long.weight_decay) == ("sgd", 0.01, 0.0005)
    assert choose_settings(TrainOptions(), 4, 400).lr == pytest.approx(0.001)
    given = choose_settings(TrainOptions(optimizer="sgd", lr=0.5, weight_decay=0.0), 16, 400)
    assert (given.optimizer, given.lr, given.weight_decay) == ("sgd", 0.5, 0.0)


@settings(max_examples=50, deadline=None)
@given(epochs=st.integers(1, 300), steps=st.integers(1, 500), warmup=st.floats(0, 10), final=st.floats(0, 1))
def test_schedule_rises_then_falls_to_the_end(epochs: int, steps: int, warmup: float, final: float) -> None:
    schedule = Schedule.of(TrainOptions(epochs=epochs, warmup_epochs=warmup, lr_final=final), steps)
    total = epochs * steps
    assert schedule.warmup <= total / 10
    rates = [schedule.factor(step) for step in range(min(total, 2000))]
    assert all(0 <= rate <= 1 + 1e-12 for rate in rates)
    rising = rates[: schedule.warmup]
    assert rising == sorted(rising)
    falling = rates[schedule.warmup :]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(falling))
    if total - schedule.warmup > 1:
        assert schedule.factor(total - 1) == pytest.approx(final, abs=1e-9)


def test_clipping_scales_to_the_limit_and_no_further() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    for parameter, value in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.full_like(parameter, value)
    whole = torch.cat([p.grad for p in parameters if p.grad is not None])
    length = whole.norm()
    assert clip_gradients(parameters, 0.0) == pytest.approx(float(length))
    assert clip_gradients(parameters, 100.0) == pytest.approx(float(length))
    assert torch.equal(torch.cat([p.grad for p in parameters if p.grad is not None]), whole)
    clip_gradients(parameters, 2.0)
    clipped = torch.cat([p.grad for p in parameters if p.grad is not None])
    assert torch.allclose(clipped, whole * 2 / length, atol=1e-5)


def test_average_follows_its_recursion_buffers_included(model: Model) -> None:
    network = copy.deepcopy(model)
    average = Average(network, 0.95)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in (1, 2, 200):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.add_(1)
        average.update(network, step)
        decay = min(0.95, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for name, value in average.model.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-6), name
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


def test_decay_of_zero_is_a_copy(model: Model) -> None:
    network = copy.deepcopy(model)
    average = Average(network, 0.0)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(1)
    average.update(network, 5)
    assert all(torch.equal(a, b) for a, b in zip(average.model.state_dict().values(), network.state_dict().values(), strict=True))
