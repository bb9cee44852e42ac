"""What every model must do, over the registry, on each model's tiny options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagia.core.frame import Frame
from pelagia.core.image import letterbox
from pelagia.core.types import Category, Instances, PanopticMap, SemanticMap, Task
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError, OptionError
from pelagia.models import checkpoint, registry
from pelagia.models.model import MaskCrops, Model, Targets
from pelagia.models.runtime import TorchRuntime

CATEGORIES = (Category(3, "disc"), Category(7, "bar"), Category(90, "ring"))
CASES = [pytest.param(entry.name, task, id=f"{entry.name}-{task}") for entry in registry.entries() for task in entry.tasks]


def _families() -> list[Any]:
    """One entry of each architecture with each of its tasks: models of one family differ in size only."""
    first = {entry.builder: entry.name for entry in reversed(registry.entries())}
    chosen = [(entry, task) for entry in registry.entries() if first[entry.builder] == entry.name for task in entry.tasks]
    return [pytest.param(entry.name, task, id=f"{entry.name}-{task}") for entry, task in chosen]


FAMILIES = _families()


def categories(task: Task) -> tuple[Category, ...]:
    """Three classes; with three keypoints each, or the last of them stuff, where the task has such."""
    if task == "keypoints":
        points = {"keypoints": ("left", "right", "tail"), "skeleton": ((0, 2), (1, 2)), "flip": (1, 0, 2)}
        return tuple(replace(item, **points) for item in CATEGORIES)
    return (*CATEGORIES[:2], replace(CATEGORIES[2], is_thing=False)) if task == "panoptic" else CATEGORIES


def make(name: str, task: Task, size: tuple[int, int] | None = None) -> Model:
    torch.manual_seed(0)
    entry = registry.entry(name)
    return registry.create(name, categories(task), task, input_size=size or entry.tiny_input, options=entry.tiny)


def targets(counts: list[int], task: Task, size: tuple[int, int], seed: int = 0) -> Targets:
    """`counts` objects per image, with what the task needs of them."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    centre = torch.rand(total, 2, generator=generator) * torch.tensor([size[1], size[0]])
    long = 10 + 40 * torch.rand(total, generator=generator)
    short = long * (0.3 + 0.7 * torch.rand(total, generator=generator))
    angle = (torch.rand(total, generator=generator) - 0.5) * np.pi
    half = torch.stack((long, short), 1) / 2
    truth = Targets(
        batch=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        labels=torch.randint(0, len(CATEGORIES), (total,), generator=generator),
        boxes=torch.cat((centre - half, centre + half), 1),
        oriented=torch.cat((centre, long[:, None], short[:, None], angle[:, None]), 1),
        size=len(counts),
    )
    return complete(truth, task, size)


def complete(truth: Targets, task: Task, size: tuple[int, int]) -> Targets:
    """Masks, keypoints and label maps that fit the boxes."""
    limits = torch.tensor([size[1], size[0]]).repeat(2)
    windows = torch.minimum(truth.boxes.round().long().clamp(min=0), limits)
    windows[(windows[:, 2:] <= windows[:, :2]).any(1)] = 0
    crops = MaskCrops(torch.ones(int((windows[:, 2:] - windows[:, :2]).prod(1).sum()), dtype=torch.bool), windows, *size)
    if task == "semantic":
        labels = torch.full((truth.size, *size), 2)
        for row, bitmap in enumerate(crops.dense()):
            labels[truth.batch[row]][bitmap] = truth.labels[row]
        labels[:, :4] = 255
        return replace(truth, semantic=labels)
    if task in ("instance", "panoptic"):
        return replace(truth, masks=crops)
    if task == "keypoints":
        middle = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2
        points = torch.stack((truth.boxes[:, :2], truth.boxes[:, 2:], middle), 1)
        visible = torch.tensor([2.0, 1.0, 2.0]).expand(len(points), 3)[..., None]
        return replace(truth, keypoints=torch.cat((points, visible), 2))
    return truth


def input_size(name: str) -> tuple[int, int]:
    return registry.entry(name).tiny_input


def batch(count: int, size: tuple[int, int]) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count))


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


#: Builder -> beginnings of names that nothing can reach: the queries of DETR know nothing before the first layer of the decoder,
#: which therefore attends among equal values, whatever its queries, keys and values are made with.
UNREACHED = {"pelagia.models.queries.detr:DETR": ("decoder.layers.0.attention.",)}


@pytest.mark.parametrize(("name", "task"), CASES)
def test_forward_and_backward_are_finite_and_reach_every_parameter(name: str, task: Task) -> None:
    model, size = make(name, task).train(), input_size(name)
    truth = targets([1, 4], task, size)
    with torch.no_grad():
        for parameter in model.parameters():  # the last norm of a residual block begins with weights of zero
            parameter.add_(0.01 * torch.rand_like(parameter))
    terms = model.loss(model(batch(2, size), targets=truth), truth)
    assert all(value.ndim == 0 and bool(value.isfinite()) for value in terms.values())
    total(terms).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert bool(parameter.grad.isfinite().all()), parameter_name
            unreached = parameter_name.startswith(UNREACHED.get(registry.entry(name).builder, ()))
            assert unreached or bool((parameter.grad != 0).any()), parameter_name


@pytest.mark.parametrize("counts", [[0, 0], [0, 1], [60, 0]])
@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_zero_one_and_many_objects(name: str, task: Task, counts: list[int]) -> None:
    model, size = make(name, task).train(), input_size(name)
    truth = targets(counts, task, size)
    terms = model.loss(model(batch(2, size), targets=truth), truth)
    total(terms).backward()
    assert all(bool(value.isfinite()) for value in terms.values())
    # Data parallel training waits for the gradient of every parameter, whatever the batch holds.
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", [(32, 32), (32, 160), (96, 64)])
@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_odd_sizes(name: str, task: Task, size: tuple[int, int]) -> None:
    if make(name, task).card.margin:
        pytest.skip("valid convolutions answer for a part of the input, whose size is bound")
    model = make(name, task, size).train()
    truth = targets([1, 2], task, size)
    assert total(model.loss(model(batch(2, size), targets=truth), truth)).isfinite()
    found = model.decode(model.eval()(batch(2, size)), [Frame.identity(size[1], size[0])] * 2, DecodeOptions(score=0.0, most=50))
    assert len(found) == 2


@pytest.mark.parametrize("name", ["yolo11n"])
def test_refuses_impossible_sizes(name: str) -> None:
    with pytest.raises(ModelError, match="multiples of 32"):
        make(name, "detect", (64, 70))
    with pytest.raises(ModelError, match="multiples of 32"):
        make(name, "detect")(torch.zeros(1, 3, 64, 90))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_an_image_alone_equals_the_same_image_in_a_batch(name: str, task: Task) -> None:
    model = make(name, task).eval()
    images = batch(3, input_size(name))
    with torch.inference_mode():
        together, alone = model(images), model(images[1:2])
    for key, value in alone.items():
        torch.testing.assert_close(value, together[key][1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_the_same_outputs_whether_training_or_not(name: str, task: Task) -> None:
    model, images = make(name, task), batch(2, input_size(name))
    training, evaluation = model.train()(images), model.eval()(images)
    assert {key: value.shape for key, value in training.items()} == {key: value.shape for key, value in evaluation.items()}
    truth = targets([1, 2], task, input_size(name))
    training, evaluation = model.train()(images, targets=truth), model.eval()(images, targets=truth)
    assert training.keys() == evaluation.keys()


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_decode_stays_in_the_original_frame(name: str, task: Task) -> None:
    model, size = make(name, task).eval(), input_size(name)
    _, frame = letterbox(np.zeros((100, 300, 3), dtype=np.uint8), size, margin=model.card.margin)
    with torch.inference_mode():
        found = model.decode(model(batch(1, size)), [frame], DecodeOptions(score=0.0, most=50))[0]
    if task == "semantic":
        assert isinstance(found, SemanticMap)
        assert found.labels.shape == (100, 300)
        assert set(np.unique(found.labels).tolist()) <= {0, 1, 2}
        return
    if task == "panoptic":
        assert isinstance(found, PanopticMap)
        assert found.ids.shape == (100, 300)
        assert set(np.unique(found.ids).tolist()) - {0} == {segment.id for segment in found.segments}
        return
    assert isinstance(found, Instances)
    assert len(found) <= 50
    assert found.scores is not None
    assert (np.diff(found.scores) <= 0).all()
    if task != "oriented" and len(found):
        boxes = found.box_array
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= 300
        assert boxes[:, 3].max() <= 100
    if task == "instance":
        assert found.masks is not None
        assert all(mask.x >= 0 and mask.y >= 0 for mask in found.masks)
        assert all(mask.x + mask.bitmap.shape[1] <= 300 and mask.y + mask.bitmap.shape[0] <= 100 for mask in found.masks)
    if task == "keypoints":
        assert found.keypoints is not None
        assert found.keypoints.shape == (len(found), 3, 3)


def drawn(task: Task, size: tuple[int, int]) -> tuple[Tensor, Targets]:
    """Four images with a bright bar each, of two classes by its colour."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    images, rows = [], []
    places = [(0.31, 0.38, 0.0), (0.62, 0.47, 0.5), (0.47, 0.62, -0.6), (0.53, 0.31, 1.2)]
    for index, (right, down, angle) in enumerate(places):
        cx, cy = right * width, down * height
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        image = np.full((3, height, width), 0.2, dtype=np.float32)
        image[index % 2, (np.abs(along) < 15) & (np.abs(across) < 5)] = 1.0
        images.append(image)
        rows.append([cx, cy, 30.0, 10.0, angle])
    oriented = torch.tensor(rows)
    boxes = torch.from_numpy(Instances(labels=np.arange(4), oriented=oriented.numpy()).box_array).float()
    truth = Targets(torch.arange(4), torch.arange(4) % 2, boxes, 4, oriented=oriented)
    return torch.from_numpy(np.stack(images)), complete(truth, task, size)


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_learns_four_drawn_images(name: str, task: Task) -> None:
    model = make(name, task, None if make(name, task).card.margin else (64, 64)).train()
    images, truth = drawn(task, model.card.input_size)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(40):
        value = total(model.loss(model(images, targets=truth), truth))
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        history.append(value.item())
    assert min(history[-5:]) < 0.5 * history[0]


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_loss_is_the_same_to_the_bit_when_computed_again(name: str, task: Task) -> None:
    gradients = []
    truth = targets([3, 30], task, input_size(name))
    for _ in range(2):
        model = make(name, task).train()
        torch.manual_seed(1)
        total(model.loss(model(batch(2, input_size(name)), targets=truth), truth)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_save_and_load_give_the_same_outputs(name: str, task: Task, tmp_path: Path) -> None:
    model, images = make(name, task), batch(2, input_size(name))
    model.train()(images)  # moves the running statistics
    model.eval()
    checkpoint.save(tmp_path / "model.safetensors", model, model.card)
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    assert loaded.card == model.card
    assert not loaded.training
    with torch.inference_mode():
        for key, value in model(images).items():
            assert torch.equal(loaded(images)[key], value)


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_runtime_equals_the_model(name: str, task: Task) -> None:
    model, images = make(name, task), batch(2, input_size(name))
    model.train()(images)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runtime = TorchRuntime(model)
    found = runtime.run(images.numpy())
    with torch.inference_mode():
        for key, value in model(images).items():
            np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-3, atol=1e-4)
    assert runtime.card is model.card or runtime.card == model.card
    last = np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)  # the same in another order in memory
    for key, again in runtime.run(last).items():
        np.testing.assert_array_equal(again, found[key])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ModelError, match="shape"):
        runtime.run(np.zeros((1, 1, *input_size(name)), dtype=np.float32))


def test_registry_names_what_is_wrong() -> None:
    with pytest.raises(OptionError, match="did you mean yolo11n"):
        registry.entry("yolo11nn")
    with pytest.raises(OptionError, match="known are yolo11n"):
        registry.entry("zzz")
    with pytest.raises(OptionError, match="detect, "):
        registry.create("yolo11n", CATEGORIES, "panoptic")
    with pytest.raises(OptionError, match="no option 'wdith'"):
        registry.create("yolo11n", CATEGORIES, options={"wdith": 1})
    with pytest.raises(OptionError, match="width must be positive"):
        registry.create("yolo11n", CATEGORIES, options={"width": 0})
    with pytest.raises(OptionError, match="wrong type"):
        registry.create("yolo11n", CATEGORIES, options={"width": "wide"})
    with pytest.raises(ModelError, match="at least one class"):
        registry.create("yolo11n", ())
    with pytest.raises(ModelError, match="registered already"):
        registry.register(registry.entry("yolo11n"))


def test_registry_lists_by_task() -> None:
    assert {entry.name for entry in registry.entries("oriented")} >= {"yolo11n", "yolo11x"}
