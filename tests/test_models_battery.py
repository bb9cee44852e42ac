"""What every model must do, over the registry, on each model's tiny options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagia.core.frame import Frame
from pelagia.core.types import Category, Instances, Task
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError, OptionError
from pelagia.models import checkpoint, registry
from pelagia.models.model import Model, Targets
from pelagia.models.runtime import TorchRuntime

CATEGORIES = (Category(3, "disc"), Category(7, "bar"), Category(90, "ring"))
CASES = [pytest.param(entry.name, task, id=f"{entry.name}-{task}") for entry in registry.entries() for task in entry.tasks]
#: Models of one family differ in size only: the slow properties are shown on one of each family.
FAMILIES = [pytest.param("yolo11n", "detect", id="yolo11-detect"), pytest.param("yolo11n", "oriented", id="yolo11-oriented")]


def make(name: str, task: Task, size: tuple[int, int] = (64, 96)) -> Model:
    torch.manual_seed(0)
    return registry.create(name, CATEGORIES, task, input_size=size, options=registry.entry(name).tiny)


def targets(counts: list[int], size: tuple[int, int] = (64, 96), seed: int = 0) -> Targets:
    """`counts` objects per image."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    centre = torch.rand(total, 2, generator=generator) * torch.tensor([size[1], size[0]])
    long = 10 + 40 * torch.rand(total, generator=generator)
    short = long * (0.3 + 0.7 * torch.rand(total, generator=generator))
    angle = (torch.rand(total, generator=generator) - 0.5) * np.pi
    half = torch.stack((long, short), 1) / 2
    return Targets(
        batch=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        labels=torch.randint(0, len(CATEGORIES), (total,), generator=generator),
        boxes=torch.cat((centre - half, centre + half), 1),
        oriented=torch.cat((centre, long[:, None], short[:, None], angle[:, None]), 1),
        size=len(counts),
    )


def batch(count: int, size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count))


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_forward_and_backward_are_finite_and_reach_every_parameter(name: str, task: Task) -> None:
    model = make(name, task).train()
    terms = model.loss(model(batch(2)), targets([1, 4]))
    assert all(value.ndim == 0 and bool(value.isfinite()) for value in terms.values())
    total(terms).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name
        assert bool((parameter.grad != 0).any()), parameter_name


@pytest.mark.parametrize("counts", [[0, 0], [0, 1], [60, 0]])
@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_zero_one_and_many_objects(name: str, task: Task, counts: list[int]) -> None:
    model = make(name, task).train()
    terms = model.loss(model(batch(2)), targets(counts))
    total(terms).backward()
    assert all(bool(value.isfinite()) for value in terms.values())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("size", [(32, 32), (32, 160), (96, 64)])
@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_odd_sizes(name: str, task: Task, size: tuple[int, int]) -> None:
    model = make(name, task, size).train()
    outputs = model(batch(2, size))
    assert total(model.loss(outputs, targets([1, 2], size))).isfinite()
    found = model.decode(outputs, [Frame.identity(size[1], size[0])] * 2, DecodeOptions(score=0.0))
    assert len(found) == 2


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_refuses_impossible_sizes(name: str, task: Task) -> None:
    with pytest.raises(ModelError, match="multiples of 32"):
        make(name, task, (64, 70))
    with pytest.raises(ModelError, match="multiples of 32"):
        make(name, task)(torch.zeros(1, 3, 64, 90))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_an_image_alone_equals_the_same_image_in_a_batch(name: str, task: Task) -> None:
    model = make(name, task).eval()
    images = batch(3)
    with torch.inference_mode():
        together, alone = model(images), model(images[1:2])
    for key, value in alone.items():
        torch.testing.assert_close(value, together[key][1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_the_same_outputs_whether_training_or_not(name: str, task: Task) -> None:
    model = make(name, task)
    training, evaluation = model.train()(batch(2)), model.eval()(batch(2))
    assert {key: value.shape for key, value in training.items()} == {key: value.shape for key, value in evaluation.items()}


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_decode_stays_in_the_original_frame(name: str, task: Task) -> None:
    model = make(name, task).eval()
    frame = Frame.letterbox(300, 100, 96, 64)
    with torch.inference_mode():
        found = model.decode(model(batch(1)), [frame], DecodeOptions(score=0.0, most=50))[0]
    assert isinstance(found, Instances)
    assert 0 < len(found) <= 50
    if task == "detect":
        boxes = found.box_array
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= 300
        assert boxes[:, 3].max() <= 100


def drawn(size: int = 64) -> tuple[Tensor, Targets]:
    """Four images with a bright bar each, of two classes by its colour."""
    y, x = np.mgrid[:size, :size] + 0.5
    images, rows = [], []
    for index, (cx, cy, angle) in enumerate([(20.0, 24.0, 0.0), (40.0, 30.0, 0.5), (30.0, 40.0, -0.6), (34.0, 20.0, 1.2)]):
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        image = np.full((3, size, size), 0.2, dtype=np.float32)
        image[index % 2, (np.abs(along) < 15) & (np.abs(across) < 5)] = 1.0
        images.append(image)
        rows.append([cx, cy, 30.0, 10.0, angle])
    oriented = torch.tensor(rows)
    boxes = torch.from_numpy(Instances(labels=np.arange(4), oriented=oriented.numpy()).box_array).float()
    labels = torch.arange(4) % 2
    return torch.from_numpy(np.stack(images)), Targets(torch.arange(4), labels, boxes, 4, oriented=oriented)


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_learns_four_drawn_images(name: str, task: Task) -> None:
    model = make(name, task, (64, 64)).train()
    images, truth = drawn()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        value = total(model.loss(model(images), truth))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        history.append(value.item())
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_loss_is_the_same_to_the_bit_when_computed_again(name: str, task: Task) -> None:
    gradients = []
    for _ in range(2):
        model = make(name, task).train()
        total(model.loss(model(batch(2)), targets([3, 30]))).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_save_and_load_give_the_same_outputs(name: str, task: Task, tmp_path: Path) -> None:
    model = make(name, task)
    model.train()(batch(2))  # moves the running statistics
    model.eval()
    checkpoint.save(tmp_path / "model.safetensors", model, model.card)
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    assert loaded.card == model.card
    assert not loaded.training
    with torch.inference_mode():
        for key, value in model(batch(1)).items():
            assert torch.equal(loaded(batch(1))[key], value)


@pytest.mark.parametrize(("name", "task"), FAMILIES)
def test_runtime_equals_the_model(name: str, task: Task) -> None:
    model = make(name, task)
    model.train()(batch(2))
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runtime = TorchRuntime(model)
    found = runtime.run(batch(2).numpy())
    with torch.inference_mode():
        for key, value in model(batch(2)).items():
            np.testing.assert_allclose(found[key], value.numpy(), rtol=1e-3, atol=1e-4)
    assert runtime.card is model.card or runtime.card == model.card
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ModelError, match="shape"):
        runtime.run(np.zeros((1, 1, 64, 64), dtype=np.float32))


def test_registry_names_what_is_wrong() -> None:
    with pytest.raises(OptionError, match="did you mean yolo11n"):
        registry.entry("yolo11nn")
    with pytest.raises(OptionError, match="known are yolo11n"):
        registry.entry("zzz")
    with pytest.raises(OptionError, match="detect, oriented"):
        registry.create("yolo11n", CATEGORIES, "semantic")
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
    assert registry.entries("panoptic") == ()
