"""What a run leaves behind, what it refuses, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagia.core import image as core_image
from pelagia.core.types import Category, Instances, Task
from pelagia.data import colour
from pelagia.data.augment import AugmentOptions
from pelagia.data.dataset import Dataset
from pelagia.errors import CheckpointError, DataError, NonFiniteLossError, OptionError, TrainingError
from pelagia.models import checkpoint
from pelagia.models.grids.yolo11 import YOLO11
from pelagia.models.model import Model, Targets
from pelagia.models.registry import create, entry
from pelagia.nn.backbones import TimmBackbone
from pelagia.nn.swin import Swin
from pelagia.train.data import Plan
from pelagia.train.loop import train
from pelagia.train.memory import available_bytes, fitting_batch, step_bytes
from pelagia.train.options import TrainOptions, load_options
from pelagia.train.prepare import start_model
from pelagia.train.run import Run
from pelagia.train.transfer import freeze, frozen_norms, layers, transfer
from training import SIDE, TINY, draw, options, register_tiny, state


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return draw(tmp_path_factory.mktemp("data"), 10)


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(options(tmp_path_factory.mktemp("runs") / "run"), data, quiet=True)


def test_a_run_folder_is_complete(run: Run, data: Dataset) -> None:
    assert (run.stopped, run.epochs, len(run.history)) == ("finished", 2, 2)
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        *("config.json", "run.json", "split.json", "metrics.jsonl", "log.txt", "last.safetensors", "best.safetensors"),
        *("curves.png", "train_batch.png", "val_predictions.png"),
    }
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert records == run.history
    assert {"epoch", "step", "lr", "loss", "losses", "ap", "ap50", "seconds", "images_per_second"} <= records[0].keys()
    assert records[0]["loss"] == pytest.approx(sum(records[0]["losses"].values()), rel=1e-5)
    facts = json.loads((run.folder / "run.json").read_text())
    split = json.loads((run.folder / "split.json").read_text())
    assert sorted(split["train"] + split["val"]) == sorted(data.names)
    assert len(split["val"]) == 2
    held = data.subset([data.names.index(name) for name in split["val"]])
    assert facts["data"]["val"] == held.content_hash
    assert facts["versions"]["torch"] == torch.__version__
    for name in ("curves.png", "train_batch.png", "val_predictions.png"):
        assert core_image.read(run.folder / name).std() > 10, name


def test_checkpoints_load_as_models_and_the_best_knows_its_run(run: Run) -> None:
    best, last = checkpoint.load(run.best), checkpoint.load(run.last)
    assert best.card.name == last.card.name == TINY
    assert best.card.manifest["data"] == json.loads((run.folder / "run.json").read_text())["data"]
    assert best.card.manifest["metrics"]["ap"] == max(record["ap"] for record in run.history)
    assert set(best.card.thresholds) <= {"a", "b"}
    assert "random weights" in best.card.licence


def test_the_configuration_repeats_the_run(run: Run, data: Dataset, tmp_path: Path) -> None:
    again = train(replace(load_options(run.folder), out=str(tmp_path / "again")), data, quiet=True)
    first, second = state(run.last), state(again.last)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_that_holds_a_run_is_not_overwritten(run: Run, data: Dataset) -> None:
    with pytest.raises(OptionError, match="holds a run already"):
        train(options(run.folder), data, quiet=True)


def test_default_folders_are_numbered(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = replace(options(tmp_path), out="", data="some/diatoms.json", epochs=1, val_fraction=0.0)
    folders = [train(chosen, data, quiet=True).folder for _ in range(2)]
    assert folders == [Path(f"runs/{TINY}-diatoms"), Path(f"runs/{TINY}-diatoms-2")]


def test_without_validation_the_last_weights_are_the_best(data: Dataset, tmp_path: Path) -> None:
    found = train(options(tmp_path / "run", val_fraction=0.0, epochs=1), data, quiet=True)
    first, second = state(found.best), state(found.last)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "ap" not in found.metrics


def test_validation_images_can_be_given(data: Dataset, tmp_path: Path) -> None:
    found = train(options(tmp_path / "run", epochs=1), data.subset(range(6)), data.subset(range(6, 10)), quiet=True)
    split = json.loads((found.folder / "split.json").read_text())
    assert split == {"train": list(data.names[:6]), "val": list(data.names[6:])}


def test_early_stopping(data: Dataset, tmp_path: Path) -> None:
    found = train(options(tmp_path / "run", epochs=50, patience=2, lr=1e-9), data, quiet=True)
    assert found.stopped == "early"
    best = max(found.history, key=lambda record: record["ap"])["epoch"]
    assert found.epochs == best + 2
    assert "stopped early" in (found.folder / "log.txt").read_text()


def test_oriented_boxes_train(tmp_path: Path) -> None:
    found = train(options(tmp_path / "run", epochs=1), draw(tmp_path / "data", 6, oriented=True), quiet=True)
    assert "angle" in found.history[0]["losses"]
    assert checkpoint.load(found.best).card.task == "oriented"


def test_deep_images_train_with_a_measured_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift, noise = colour.shift_hsv, colour.add_noise
    seen: list[tuple[str, colour.Levels | None]] = []

    def shifted(*given: Any) -> colour.Image:
        seen.append(("shift", given[5]))
        return shift(*given)

    def noisy(*given: Any, levels: colour.Levels | None) -> colour.Image:
        seen.append(("noise", levels))
        return noise(*given, levels=levels)

    monkeypatch.setattr(colour, "shift_hsv", shifted)
    monkeypatch.setattr(colour, "add_noise", noisy)
    chosen = options(tmp_path / "run", epochs=1, augment=AugmentOptions(noise=1.0))
    found = train(chosen, draw(tmp_path / "data", 6, deep=True), quiet=True)
    window = checkpoint.load(found.best).card.normalisation
    assert (window.low, window.high) == (2000.0, 23000.0)
    assert set(seen) == {("shift", (2000.0, 23000.0)), ("noise", (2000.0, 23000.0))}  # augmentation is told


def test_the_loss_falls_and_the_drawn_objects_are_found(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 4)
    plain = AugmentOptions(mosaic=0, scale=0, translate=0, hsv_h=0, hsv_s=0, hsv_v=0, blur=0, noise=0)
    chosen = options(tmp_path / "run", epochs=60, val_every=60, save_every=60, lr=0.01, augment=plain)
    found = train(chosen, data, data, quiet=True)
    assert found.history[-1]["loss"] < 0.5 * found.history[0]["loss"]
    assert found.metrics["ap50"] > 0.5


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_batch(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = YOLO11.loss

    def poisoned(self: YOLO11, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        calls.append(targets.size)
        terms = real(self, outputs, targets)
        # Two calls belong to the memory check, the third is the first step.
        return {**terms, "box": terms["box"] * float("nan")} if len(calls) == 4 else terms

    monkeypatch.setattr(YOLO11, "loss", poisoned)
    seen: list[int] = []
    with pytest.raises(NonFiniteLossError, match="box, gradient became NaN or infinite at step 1") as caught:
        train(options(tmp_path / "run", val_fraction=0.0), data, quiet=True, on_step=seen.append)
    assert seen == [1]
    assert caught.value.where is not None
    with np.load(caught.value.where) as saved:
        expected = [data.names[slot.index] for slot in Plan(len(data), 4, 3).step(1)]
        assert saved["names"].tolist() == expected
        assert all(name in str(caught.value) for name in expected)
        assert (saved["images"].dtype, saved["images"].shape) == (np.uint8, (4, SIDE, SIDE, 3))
    assert Path(caught.value.where).with_suffix(".png").is_file()


def test_images_that_cannot_be_read_are_listed_and_left_out(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 8)
    data.image_paths[0].unlink()
    data.image_paths[1].write_bytes(b"not a picture")
    found = train(options(tmp_path / "run", epochs=1, val_fraction=0.0), data, quiet=True)
    listed = json.loads((found.folder / "skipped.json").read_text())
    assert sorted(item["where"] for item in listed) == ["000.png", "001.png"]
    assert "2 items were skipped" in (found.folder / "log.txt").read_text()
    assert len(json.loads((found.folder / "split.json").read_text())["train"]) == 6


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 3)
    empty = Dataset.from_instances(["a"], [(path, (64, 48), Instances.empty()) for path in data.image_paths])
    with pytest.raises(DataError, match="no labelled object"):
        train(options(tmp_path / "a", val_fraction=0.0), empty, quiet=True)
    for path in data.image_paths:
        path.unlink()
    with pytest.raises(DataError, match="no readable training image"):
        train(options(tmp_path / "b", val_fraction=0.0), data, quiet=True)


# Memory


@pytest.fixture(scope="module")
def model() -> Model:
    register_tiny()
    torch.manual_seed(1)
    return create(TINY, [Category(1, "a"), Category(2, "b")], "detect", input_size=SIDE)


def test_the_batch_is_halved_until_it_fits(model: Model) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    fixed, image = step_bytes(model, SIDE)
    assert fixed == 4 * sum(p.numel() * 4 for p in model.parameters())
    assert fitting_batch(model, SIDE, 16, free_bytes=10**12) == 16
    assert fitting_batch(model, SIDE, 16, free_bytes=int((fixed + 5 * image) / 0.85) + 1) == 4
    assert fitting_batch(model, SIDE, 12, free_bytes=int((fixed + 3 * image) / 0.85) + 1) == 3
    with pytest.raises(TrainingError, match="--imgsz"):
        fitting_batch(model, SIDE, 16, free_bytes=fixed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert available_bytes() > 10_000_000


def test_an_estimate_grows_with_the_area(model: Model) -> None:
    small, large = (step_bytes(model, side)[1] for side in (64, 128))
    assert large == pytest.approx(4 * small, rel=0.15)


# Transfer


def test_transfer_copies_what_fits_and_lists_the_rest(model: Model) -> None:
    torch.manual_seed(2)
    source = create(TINY, [Category(i, f"c{i}") for i in range(5)], "detect", input_size=SIDE)
    target = create(TINY, list(model.card.categories), "detect", input_size=SIDE)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    report = transfer(target, {**source.state_dict(), "surplus": torch.zeros(1)}, source.card.class_names)
    assert {*report.loaded, *report.new} == set(before)
    assert "surplus" in report.unused
    assert report.new
    assert all(name.startswith("head.classes") for name in report.new)
    for name, value in target.state_dict().items():
        assert torch.equal(value, (source.state_dict() if name in report.loaded else before)[name]), name


def test_as_many_other_classes_are_learnt_anew(model: Model) -> None:
    target = create(TINY, [Category(1, "x"), Category(2, "y")], "detect", input_size=SIDE)
    anew = transfer(target, model.state_dict(), model.card.class_names).new
    assert len(anew) == 6
    assert all(name.startswith("head.classes.") for name in anew)
    assert transfer(target, model.state_dict(), target.card.class_names).new == ()
    with pytest.raises(CheckpointError, match="no tensor fits"):
        transfer(target, {"other": torch.zeros(3)})


def test_weights_of_a_run_are_taken_over_with_their_licence(run: Run, data: Dataset, tmp_path: Path) -> None:
    tensors, card, _ = checkpoint.read(run.best)
    checkpoint.save(tmp_path / "w.safetensors", tensors, replace(card, licence="CC-BY-4.0"))
    found = train(
        options(tmp_path / "run", weights=str(tmp_path / "w.safetensors"), epochs=1, lr=1e-12, ema_decay=0.0), data, quiet=True
    )
    card = checkpoint.load(found.best).card
    assert card.licence == "CC-BY-4.0"
    assert card.manifest["weights"]["new"] == []
    learnt = state(found.best)
    assert all(
        torch.allclose(learnt[name], tensors[name], atol=1e-6) for name in tensors if "running" not in name and "num" not in name
    )
    assert "tensors loaded" in (found.folder / "log.txt").read_text()


def test_a_timm_backbone_and_its_weights(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(self: TimmBackbone) -> str:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.125)
        return "Apache-2.0"

    monkeypatch.setattr(TimmBackbone, "load_pretrained", fetched)
    chosen = options(tmp_path / "run", epochs=1, val_fraction=0.0, freeze="backbone", pretrained=True)
    found = train(replace(chosen, backbone="timm:mobilenetv3_small_050"), data, quiet=True)
    card = checkpoint.load(found.best).card
    assert card.licence == "Apache-2.0"
    assert card.normalisation.mean == pytest.approx((0.485, 0.456, 0.406))
    names = [name for name in state(found.last) if name.startswith("backbone") and name.endswith("conv_pw.weight")]
    assert names
    assert all((state(found.last)[name] == 0.125).all() for name in names)
    with pytest.raises(OptionError, match="--backbone timm:NAME"):
        train(options(tmp_path / "other", pretrained=True), data, quiet=True)


@pytest.mark.parametrize(
    ("name", "task", "own", "backbone"),
    [
        ("detr-r50", "detect", ("backbone=timm:test_resnet",), "timm:test_resnet"),  # no published file has this backbone
        ("mask2former-swin-t", "instance", ("swin_width=32", "swin_depths=[2,1,1,1]"), "timm:swin_tiny_patch4_window7_224"),
    ],
)
def test_pretrained_is_the_models_own_backbone(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, name: str, task: Task, own: tuple[str, ...], backbone: str
) -> None:
    """Whether `--backbone`, `--model-options` or nobody names it."""
    for kind in (TimmBackbone, Swin):
        monkeypatch.setattr(kind, "load_pretrained", lambda self: "MIT")
    tiny = tuple(f"{key}={json.dumps(value)}" for key, value in entry(name).tiny.items() if key not in ("backbone", "swin_width"))
    chosen = TrainOptions(model=name, imgsz=64, pretrained=True, model_options=(*tiny, *own))
    start = start_model(chosen, replace(data, task=task), torch.device("cpu"))
    assert start.weights == {"file": backbone, "licence": "MIT"}
    assert start.model.card.source == f"backbone {backbone}"
    assert start.transfer is None


def test_frozen_parts_keep_weights_and_statistics(data: Dataset, tmp_path: Path) -> None:
    found = train(options(tmp_path / "run", freeze="backbone,neck.", epochs=1, ema_decay=0.0, lr=0.01), data, quiet=True)
    torch.manual_seed(3)
    fresh = create(TINY, data.categories, "detect", input_size=SIDE).state_dict()
    learnt = state(found.last)
    fixed = [name for name in fresh if name.startswith(("backbone.", "neck."))]
    assert fixed
    assert all(torch.equal(learnt[name], fresh[name]) for name in fixed)
    assert any(not torch.equal(learnt[name], fresh[name]) for name in fresh if name.startswith("head."))


def test_freeze_counts_layers_or_takes_prefixes(model: Model) -> None:
    names = layers(model)
    assert names[0] == "backbone.stem"
    for what, prefixes in (("2", names[:2]), ("backbone.stem", names[:1]), ("", [])):
        fresh = create(TINY, list(model.card.categories), "detect", input_size=SIDE)
        frozen = freeze(fresh, what)
        expected = [name for name, _ in fresh.named_parameters() if any(name.startswith(prefix + ".") for prefix in prefixes)]
        assert list(frozen) == expected
        assert [name for name, p in fresh.named_parameters() if not p.requires_grad] == expected
        assert bool(frozen_norms(fresh)) == bool(expected)
    with pytest.raises(OptionError, match="no parameter begins so"):
        freeze(model, "spine")
    with pytest.raises(OptionError, match="layers"):
        freeze(model, "999")
