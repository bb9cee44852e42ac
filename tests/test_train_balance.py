"""Weights of classes counted over the training images: the definition, the card, a run that goes on, two processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pelagia.core import image as core_image
from pelagia.core.types import Category, Instances, MaskCrop
from pelagia.data.augment import AugmentOptions
from pelagia.data.dataset import Dataset
from pelagia.data.open import open_dataset
from pelagia.errors import OptionError
from pelagia.models import checkpoint
from pelagia.models.model import Model, Targets
from pelagia.models.registry import create, entry
from pelagia.train.balance import balance, balanced_weights, count_pixels
from pelagia.train.distributed import Group
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions
from pelagia.train.step import wrap
from test_train_ddp import launch
from training import assert_same_state

MODEL_OPTIONS = ("class_weights=balanced", "backbone=timm:test_efficientnet", "width=0.25")


def cells(folder: Path, images: int = 4) -> Dataset:
    """Label images of 64 x 64: mostly ground, a rarer class, some pixels without label."""
    rng = np.random.default_rng(5)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        labels = np.zeros((64, 64), dtype=np.uint8)
        x, y = rng.integers(0, 44, 2)
        labels[y : y + 12 + number, x : x + 20] = 1
        labels[:2] = 255
        image = np.where(labels == 1, 200, 60).astype(np.uint8) + rng.integers(0, 20, (64, 64)).astype(np.uint8)
        core_image.write(folder / "images" / f"{number}.png", image[..., None])
        core_image.write(folder / "masks" / f"{number}.png", labels[..., None])
    return open_dataset(folder, task="semantic")


def dense(categories: tuple[Category, ...], task: str, **options: object) -> Model:
    values = {**entry("unet-timm").tiny, "class_weights": "balanced", **options}
    return create("unet-timm", categories, task, input_size=64, options=values)  # type: ignore[arg-type]


def test_each_class_present_weighs_the_same_in_total() -> None:
    counts = torch.tensor([6.0, 0.0, 2.0])
    assert balanced_weights(counts).tolist() == pytest.approx([8 / 12, 0, 2])
    pairs = balanced_weights(torch.tensor([[3.0, 1.0], [4.0, 0.0]]))
    assert pairs.tolist() == [pytest.approx([4 / 6, 2]), pytest.approx([1, 0])]


@pytest.mark.parametrize("form", ["softmax", "binary", "sigmoid"])
def test_weights_are_those_of_all_training_pixels(form: str, tmp_path: Path) -> None:
    data = cells(tmp_path)
    model = dense(data.categories, "semantic", form=form)
    text = balance(model, data)
    labels = np.stack([data.semantic(index).labels for index in range(len(data))])
    n0, n1 = (labels == 0).sum(), (labels == 1).sum()
    total = n0 + n1
    expected = [total / (2 * n0), total / (2 * n1)]
    if form == "sigmoid":  # no and yes of class 0, no and yes of class 1
        expected = [expected[1], expected[0], expected[0], expected[1]]
    assert text is not None
    assert [float(value) for value in text.split(",")] == pytest.approx(expected, rel=1e-5)
    assert model.card.options["class_weights"] == text
    targets = Targets(
        batch=torch.zeros(0, dtype=torch.int64),
        labels=torch.zeros(0, dtype=torch.int64),
        boxes=torch.zeros(0, 4),
        size=1,
        semantic=torch.from_numpy(labels[:1].astype(np.int64)),
    )
    loss = model.loss(model(torch.rand(1, 3, 64, 64), targets=targets), targets)
    assert all(bool(value.isfinite()) for value in loss.values())


def test_objects_and_the_ground_between_them_are_counted_as_the_loss_sees_them(tmp_path: Path) -> None:
    boxes = np.array([[4, 4, 14, 14], [14, 4, 24, 14]], dtype=np.float64)
    masks = tuple(MaskCrop(int(x), int(y), np.ones((10, 10), dtype=np.bool_)) for x, y, _, _ in boxes)
    core_image.write(tmp_path / "a.png", np.zeros((40, 50, 1), dtype=np.uint8))
    truth = Instances(np.array([0, 1]), boxes=boxes, masks=masks)
    data = Dataset.from_instances(["a", "b"], [(tmp_path / "a.png", (50, 40), truth)], root=tmp_path, task="instance")
    model = dense(data.categories, "instance")
    options = model.options
    # The two touch along ten pixels; one column of each is the seam, which is ground.
    assert count_pixels(model, options, data).tolist() == [40 * 50 - 180, 90, 90]  # type: ignore[arg-type]


def test_nobody_has_counted() -> None:
    model = dense((Category(0, "a"), Category(1, "b")), "semantic")
    targets = Targets(
        batch=torch.zeros(0, dtype=torch.int64),
        labels=torch.zeros(0, dtype=torch.int64),
        boxes=torch.zeros(0, 4),
        size=1,
        semantic=torch.zeros(1, 64, 64, dtype=torch.int64),
    )
    with pytest.raises(OptionError, match="counted over the training images"):
        model.loss(model(torch.rand(1, 3, 64, 64), targets=targets), targets)
    plain = create("unet-timm", model.card.categories, "semantic", input_size=64, options=entry("unet-timm").tiny)
    assert balance(plain, None) is None  # type: ignore[arg-type]


def run_options(out: Path) -> TrainOptions:
    return TrainOptions(
        model="unet-timm",
        model_options=MODEL_OPTIONS,
        out=str(out),
        epochs=2,
        batch=2,
        imgsz=64,
        threads=1,
        val_fraction=0.0,
        augment=AugmentOptions(mosaic=0.0),
    )


class KilledError(Exception):
    pass


def test_a_run_that_goes_on_keeps_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = cells(tmp_path / "data")
    whole = train(run_options(tmp_path / "whole"), data, quiet=True)

    def kill(done: int) -> None:
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(run_options(tmp_path / "part"), data, quiet=True, on_step=kill)
    with monkeypatch.context() as patch:
        patch.setattr("pelagia.train.balance.count_pixels", lambda *_: pytest.fail("counted again"))
        resumed = train(TrainOptions(resume=str(tmp_path / "part")), data, quiet=True)
    assert_same_state(whole.last, resumed.last)
    text = checkpoint.load(whole.best).card.options["class_weights"]
    assert text == checkpoint.load(resumed.best).card.options["class_weights"]
    ground, cell = map(float, text.split(","))
    assert ground < 1 < cell
    assert f"they weigh {text}" in (whole.folder / "log.txt").read_text()


def gradients(root: Path, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Of every term of the loss over the images of one process."""

    data = cells(root)
    torch.manual_seed(0)
    model = dense(data.categories, "semantic", loss="ce+lovasz+dice").double().eval()
    balance(model, data)
    share = len(data) // world
    chosen = range(rank * share, (rank + 1) * share)
    targets = Targets(
        batch=torch.zeros(0, dtype=torch.int64),
        labels=torch.zeros(0, dtype=torch.int64),
        boxes=torch.zeros(0, 4),
        size=share,
        semantic=torch.from_numpy(np.stack([data.semantic(index).labels for index in chosen]).astype(np.int64)),
    )
    images = (
        torch.from_numpy(np.stack([data.image(index)[..., 0] for index in chosen])).double()[:, None].expand(-1, 3, -1, -1) / 255
    )
    step = wrap(model, Group(rank, world, rank, world))
    torch.stack(list(step(images, targets).values())).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_two_processes_learn_what_one_learns_of_all_pixels(tmp_path: Path) -> None:
    launch(f"""
import torch
from pelagia.train.distributed import join_group
from test_train_balance import gradients

group, root = join_group("cpu"), Path({str(tmp_path)!r})
torch.save(gradients(root / f"images{{group.rank}}", group.rank, group.world), root / f"{{group.rank}}.pt")
""")
    expected = gradients(tmp_path / "images", 0, 1)
    assert any(value.abs().max() > 1e-4 for value in expected.values())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-11)
