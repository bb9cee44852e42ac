"""A step of training on a GPU does not make the processor wait, shown on the CPU; tests/test_gpu.py shows it on a GPU."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from answers import crowd, disturbed_outputs, loss_and_slopes
from pelagia.assign import dynamic
from pelagia.core.types import Task
from pelagia.models import targets as truths
from pelagia.models.grids import prototypes, yolo11
from pelagia.models.model import Targets
from test_models_battery import batch, make
from waits import Waits, waits_of

SIZE = (64, 96)


def copied(truth: Targets) -> Targets:
    """As on another device: the same values, which remember where they came from."""
    values = {item.name: getattr(truth, item.name) for item in fields(truth) if item.init}
    there = replace(truth, **{name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})
    if truth.masks is not None:
        there.masks = replace(truth.masks, bits=truth.masks.bits.clone(), windows=truth.masks.windows.clone())
    there.host = truth
    return there


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("task", ["detect", "oriented", "instance", "keypoints"])
def test_a_step_waits_for_nothing(task: Task, regions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("yolo11n", task, SIZE).train()
    images, here = batch(3, SIZE), crowd(task, SIZE, regions)
    there = copied(here)

    def step(mode: Waits) -> None:
        mode.mark(images, *model.state_dict().values(), *(getattr(there, item.name) for item in fields(there) if item.init))
        if there.masks is not None:
            mode.mark(there.masks.bits, there.masks.windows)
        for module in (dynamic, yolo11, prototypes, truths):
            monkeypatch.setattr(module, "send", mode.send)
        monkeypatch.setattr(dynamic, "answers_late", lambda device: True)
        terms = model.loss(model(images, None, there), there)
        torch.stack(list(terms.values())).sum().backward()

    assert waits_of(step) == []
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("task", ["detect", "oriented", "instance", "keypoints"])
def test_weights_of_zero_teach_what_a_selection_teaches(task: Task, regions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that answers late nothing is selected; the loss and its gradients are the same."""
    model, truth = make("yolo11n", task, SIZE).train().double(), crowd(task, SIZE, regions)
    outputs = disturbed_outputs(model, SIZE, truth)
    answers = []
    for late in (False, True):
        monkeypatch.setattr(dynamic, "answers_late", lambda device, late=late: late)
        answers.append(loss_and_slopes(model, outputs, truth))
    assert any(bool(grad.any()) for grad in answers[0][1].values())
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        torch.nonzero,
        lambda x: x.repeat_interleave(x.long().abs()),
        lambda x: x * x.new_tensor([1.0, 2.0, 3.0]),
        lambda x: bool((x > 0).any()),
        torch.unique,
        lambda x: torch.bincount(x.long().abs()),
        lambda x: x.tolist(),
    ],
)
def test_what_waits_is_found(work: object) -> None:
    values = torch.randn(3)

    def marked(mode: Waits) -> None:
        mode.mark(values)
        work(values)  # type: ignore[operator]

    assert len(waits_of(marked)) >= 1


def test_what_does_not_wait_is_not_found() -> None:
    values = torch.randn(3)

    def marked(mode: Waits) -> None:
        mode.mark(values)
        first = torch.arange(3, device=values.device) + values.long()
        (2 * values.masked_fill(values > 0, 0.0) + 1)[first.clamp(0, 2)].sum()
        torch.tensor([1, 2]).tolist()  # of the processor's own

    assert waits_of(marked) == []
