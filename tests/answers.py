"""What the tests of runtimes and of devices share: networks whose answers vary, files of all kinds, and what must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pelagia.core.frame import Frame
from pelagia.core.image import write
from pelagia.core.types import Instances, Task
from pelagia.infer.predict import FileResult
from pelagia.models import registry
from pelagia.models.model import Model, Targets
from test_models_battery import FAMILIES, batch, targets

#: Networks that decide nothing on their way; on a GPU they are recorded.
STRAIGHT = [case for case in FAMILIES if registry.entry(case.values[0]).builder.split(".")[2] in ("grids", "pixels")]


def scrambled(model: Model) -> Model:
    """The same weights, disturbed, so that answers differ from place to place."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 * parameter.std(correction=0) + 0.02
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and parameter.ndim == 1:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def frames_for(model: Model, count: int) -> list[Frame]:
    """Images twice as large as the input."""
    height, width = model.card.input_size
    return [Frame.letterbox(2 * width, height, width, height)] * count


def same(found: Any, expected: Any) -> int:
    """Asserts that two lists of objects are equal to the bit, and counts them."""
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Instances)
        assert isinstance(other, Instances)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.scores, other.scores)  # type: ignore[arg-type]
        np.testing.assert_array_equal(one.box_array, other.box_array)
        if other.keypoints is not None:
            np.testing.assert_array_equal(one.keypoints, other.keypoints)  # type: ignore[arg-type]
        if other.masks is not None:
            assert one.masks is not None
            for a, b in zip(one.masks, other.masks, strict=True):
                assert (a.x, a.y) == (b.x, b.y)
                np.testing.assert_array_equal(a.bitmap, b.bitmap)
    return sum(len(item) for item in expected)


def mixed_files(folder: Path, draw: Callable[[int, int], NDArray[np.uint8]]) -> list[Path]:
    """Images of several sizes (height and width are given to `draw`), a broken one and a scan between them."""
    sizes = [(64, 64)] * 9 + [(150, 200)] + [(70, 50)] * 4
    paths = [folder / f"{number:02}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        write(path, draw(*size))
    paths[3].write_bytes(b"no image")
    return paths


def answered(paths: list[Path], found: Sequence[FileResult], expected: Sequence[FileResult]) -> list[tuple[Instances, Instances]]:
    """What was found in each of `mixed_files` and what was to be, at least twenty objects; order and errors agree."""
    assert [item.path for item in found] == paths
    assert [item.error for item in found] == [item.error for item in expected]
    assert found[3].error
    assert [(item.width, item.height) for item in found] == [(item.width, item.height) for item in expected]
    pairs = [(one.found, other.found) for one, other in zip(found, expected, strict=True) if other.error is None]
    chosen = [(one, other) for one, other in pairs if isinstance(one, Instances) and isinstance(other, Instances)]
    assert len(chosen) == len(pairs)
    assert sum(len(other) for _, other in chosen) >= 20
    return chosen


def disturbed_outputs(model: Model, size: tuple[int, int], truth: Targets) -> dict[str, Tensor]:
    """What the loss reads, with noise, in the precision of the model."""
    generator = torch.Generator().manual_seed(0)
    images = batch(truth.size, size).to(next(model.parameters()).dtype)
    outputs = model(images, None, truth)
    return {name: value.detach() + torch.randn(value.shape, generator=generator) for name, value in outputs.items()}


def loss_and_slopes(model: Model, outputs: dict[str, Tensor], truth: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of the loss, and the gradient of their sum by every output."""
    leaves = {name: value.clone().requires_grad_() for name, value in outputs.items()}
    terms = model.loss(leaves, truth)
    torch.stack(list(terms.values())).sum().backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {name: value.detach() for name, value in terms.items()}, gradients


def crowd(task: Task, size: tuple[int, int], regions: bool) -> Targets:
    """32 objects in three images, none in the second; with `regions` every eighth is an ignore region."""
    truth = targets([12, 0, 20], task, size)
    return replace(truth, ignore=torch.arange(32) % 8 == 1) if regions else truth
