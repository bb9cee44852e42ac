"""Options: torch-free, with help, checked, written and read back, merged on resume."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pelagia.data.augment import AugmentOptions
from pelagia.errors import OptionError
from pelagia.models import registry
from pelagia.train.options import TrainOptions, defaults_of, load_options, options_from_dict, resume_options


def test_options_need_no_torch() -> None:
    code = "import sys, pelagia.train.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_option_has_a_help_text_that_is_a_sentence() -> None:
    for item in fields(TrainOptions):
        assert item.metadata["help"].endswith("."), item.name


def test_json_round_trip() -> None:
    options = TrainOptions(
        model="yolo11s", epochs=7, lr=0.003, track=("wandb",), classes=("x", "y"), augment=AugmentOptions(mosaic=0.25, hsv_h=0.0)
    )
    assert options_from_dict(json.loads(json.dumps(options.to_dict()))) == options


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"imgsz": 10}, "--imgsz"),
        ({"lr_factors": ["backbone"]}, "NAME=VALUE"),
        ({"lr_factors": ["backbone=fast"]}, "number"),
        ({"lr_factors": ["backbone=-1"]}, "--lr-factors"),
        ({"model_options": ["=3"]}, "NAME=VALUE"),
        ({"val_fraction": 0.95}, "--val-fraction"),
        ({"track": ("mlflow",)}, "tensorboard and wandb"),
        ({"optimizer": "adam"}, "--optimizer"),
        ({"task": "segment"}, "--task"),
        ({"lr": -1.0}, "--lr"),
        ({"epochs": "ten"}, "--epochs"),
        ({"epochs": True}, "--epochs"),
        ({"lr": float("nan")}, "--lr"),
    ],
)
def test_values_that_cannot_be_used_are_named(values: dict[str, object], hint: str) -> None:
    with pytest.raises(OptionError, match=hint):
        options_from_dict(values)


def test_the_models_own_options_are_json_or_text() -> None:
    options = TrainOptions(backbone="timm:resnet18", model_options=("queries=50", "loss=dice", "sizes=[[8],[16]]", "name=a=b"))
    expected = {"queries": 50, "loss": "dice", "sizes": ((8,), (16,)), "name": "a=b"}
    assert options.own_options() == {"backbone": "timm:resnet18", **expected}


@pytest.mark.parametrize("values", [{"epoch": 3}, {"augment": {"mosaik": 1}}, {"augment": 3}])
def test_unknown_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"unknown option|keys among"):
        options_from_dict(values)


def test_a_missing_or_broken_configuration_is_an_option_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such configuration"):
        load_options(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(OptionError, match="JSON object"):
        load_options(tmp_path)


def saved(folder: Path, options: TrainOptions) -> None:
    (folder / "config.json").write_text(json.dumps(options.to_dict()))


def test_resume_keeps_the_runs_options_and_takes_more_epochs(tmp_path: Path) -> None:
    run = TrainOptions(model="yolo11s", data="d", epochs=30, batch=8, lr=0.01, augment=AugmentOptions(mosaic=0.0))
    saved(tmp_path, run)
    merged = resume_options(TrainOptions(resume=str(tmp_path), epochs=50, workers=2))
    assert merged == replace(run, epochs=50, workers=2, resume=str(tmp_path))
    assert resume_options(merged) == merged


def test_resume_takes_an_explicit_default(tmp_path: Path) -> None:
    saved(tmp_path, TrainOptions(epochs=30))
    given = TrainOptions(resume=str(tmp_path))
    assert resume_options(given).epochs == 30
    assert resume_options(given, explicit={"epochs"}).epochs == given.epochs


def test_resume_with_the_model_named_does_not_ask_for_its_defaults(tmp_path: Path) -> None:
    """The command line and `pelagia.train` begin with the defaults of the model that is named."""
    saved(tmp_path, replace(defaults_of("unet"), imgsz=380, augment=AugmentOptions(mosaic=0.5)))
    merged = resume_options(replace(defaults_of("unet"), resume=str(tmp_path), epochs=200), {"model", "epochs", "resume"})
    assert (merged.imgsz, merged.augment.mosaic, merged.epochs) == (380, 0.5, 200)
    with pytest.raises(OptionError, match=r"--imgsz \(380 in the run, 572 now\)"):
        resume_options(replace(defaults_of("unet"), resume=str(tmp_path)), {"imgsz"})
    saved(tmp_path, replace(defaults_of("detr-r50"), lr=5e-5))
    assert resume_options(replace(defaults_of("detr-r50"), resume=str(tmp_path))).lr == 5e-5
    assert resume_options(TrainOptions(resume=str(tmp_path))).lr == 5e-5
    with pytest.raises(OptionError, match="--model"):
        resume_options(replace(defaults_of("unet"), resume=str(tmp_path)))


def test_resume_refuses_what_would_change_the_weights(tmp_path: Path) -> None:
    saved(tmp_path, TrainOptions(batch=8))
    with pytest.raises(OptionError, match=r"--batch \(8 in the run, 4 now\)"):
        resume_options(TrainOptions(resume=str(tmp_path), batch=4))


def test_a_model_has_training_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert defaults_of("yolo11n") == TrainOptions(model="yolo11n")
    own = replace(registry.entry("yolo11n"), name="slow", training={"lr": 1e-4, "augment": {"mosaic": 0.0}})
    monkeypatch.setitem(registry._entries, "slow", own)
    chosen = defaults_of("slow")
    assert (chosen.model, chosen.lr, chosen.augment.mosaic, chosen.augment.flip_lr) == ("slow", 1e-4, 0.0, 0.5)


def test_training_options_of_every_model_can_be_used() -> None:
    for entry in registry.entries():
        assert defaults_of(entry.name).model == entry.name
