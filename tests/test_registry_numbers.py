"""The numbers of `pelagia models` are those of the networks: parameters, and operations counted on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pelagia.core.types import Category, Task
from pelagia.models import registry
from pelagia.models.regions import faster_rcnn

#: Builder -> fixed weights that the published count of parameters includes: YOLO11 turns a distribution into its mean by a
#: convolution with the weights 0 to 15.
FIXED = {"pelagia.models.grids.yolo11:YOLO11": 16}

#: Options that the numbers of two-stage detectors are stated with.
REGIONS: dict[str, Any] = {"detections": 100}


def _cases() -> list[Any]:
    """All models with all tasks. A network that is the same for another task is counted again by the slow tests only."""
    cases = []
    for entry in registry.entries():
        seen = set()
        for task in entry.tasks:
            numbers = (entry.parameters[task], entry.gflops[task])
            marks = pytest.mark.slow if numbers in seen else ()
            cases.append(pytest.param(entry.name, task, id=f"{entry.name}-{task}", marks=marks))
            seen.add(numbers)
    return cases


def pooled(levels: tuple[Tensor, ...], strides: tuple[int, ...], regions: Tensor, size: int) -> Tensor:
    """The shape of `pool_regions`, which reads each region from a level that depends on its size."""
    return levels[0].new_empty(len(regions), levels[0].shape[1], size, size)


@pytest.mark.parametrize(("name", "task"), _cases())
def test_parameters_and_operations_are_those_stated(name: str, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.entry(name)
    options = {}
    if entry.builder.startswith("pelagia.models.regions."):
        # How many regions there are depends on values, of which the meta device has none: the path of exported graphs, whose
        # sizes are fixed, and RoIAlign, which multiplies no matrices, by its shape.
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        monkeypatch.setattr(faster_rcnn, "pool_regions", pooled)
        options = REGIONS
    points = tuple(f"point {number}" for number in range(17)) if task == "keypoints" else ()
    categories = [Category(number, f"class {number}", keypoints=points) for number in range(entry.classes)]
    side = entry.input_size[task]
    with torch.device("meta"):
        model = (
            registry.create(name, categories, task, input_size=side, options=options).eval().requires_grad_(requires_grad=False)
        )
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, side, side))
    fixed = FIXED.get(entry.builder, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) + fixed == entry.parameters[task]
    assert counter.get_total_flops() / 1e9 == pytest.approx(entry.gflops[task], rel=0.01)


def test_every_model_states_its_numbers() -> None:
    for entry in registry.entries():
        for numbers in (entry.parameters, entry.gflops, entry.input_size):
            assert set(numbers) == set(entry.tasks), entry.name
