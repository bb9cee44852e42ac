"""KilledError equals unkilled: a run stopped anywhere and resumed ends with the same bits as one never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import pelagia
from pelagia.data.dataset import Dataset
from pelagia.errors import CheckpointError, OptionError, TrainingError
from pelagia.models import registry
from pelagia.models.registry import entry
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions, load_options
from pelagia.train.run import Run
from training import assert_same_state, draw, options


class KilledError(Exception):
    """Stands for a power cut: nothing of the package catches it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return draw(tmp_path_factory.mktemp("data"), 8, splits={"train": list(range(6)), "val": [6, 7]})


def run_options(out: Path, **changes: object) -> TrainOptions:
    return options(out, **{"batch": 2, "optimizer": "adamw", **changes})


@pytest.fixture(scope="module")
def whole(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(run_options(tmp_path_factory.mktemp("whole") / "run"), data, quiet=True)


def kill_at(step: int) -> Callable[[int], None]:
    def hook(done: int) -> None:
        if done == step:
            raise KilledError

    return hook


def assert_same_run(first: Run, second: Run) -> None:
    assert_same_state(first.last, second.last)
    assert_same_state(first.best, second.best)
    timeless = [
        [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second", "waiting")} for record in run.history]
        for run in (first, second)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("step", [4, 5, 6])
def test_killed_at_a_step(step: int, data: Dataset, whole: Run, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(run_options(tmp_path / "run"), data, quiet=True, on_step=kill_at(step))
    resumed = train(TrainOptions(resume=str(tmp_path / "run")), data, quiet=True)
    assert_same_run(resumed, whole)


def test_killed_before_the_first_checkpoint_starts_again(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(run_options(tmp_path / "run"), data, quiet=True, on_step=kill_at(2))
    with pytest.raises(CheckpointError, match="no such file"):
        train(TrainOptions(resume=str(tmp_path / "run")), data, quiet=True)


def test_ctrl_c_saves_and_the_run_goes_on_with_another_number_of_workers(data: Dataset, whole: Run, tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    stopped = train(run_options(tmp_path / "run"), data, quiet=True, on_step=interrupt)
    assert (stopped.stopped, stopped.epochs) == ("interrupted", 0)
    assert signal.getsignal(signal.SIGINT) is before
    assert "pelagia train --resume" in (tmp_path / "run" / "log.txt").read_text()
    resumed = train(TrainOptions(resume=str(tmp_path / "run"), workers=1), data, quiet=True)
    assert_same_run(resumed, whole)


def test_a_second_ctrl_c_stops_at_once(data: Dataset, tmp_path: Path) -> None:
    def twice(done: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(run_options(tmp_path / "run"), data, quiet=True, on_step=twice)


def test_killed_by_the_system(data: Dataset, whole: Run, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from training import draw, options
from pelagia.train.loop import train
data = draw(Path({str(data.root)!r}), 8, splits={{"train": list(range(6)), "val": [6, 7]}})
def kill(done):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
train(options(Path({str(tmp_path / "run")!r}), batch=2, optimizer="adamw"), data, quiet=True, on_step=kill)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not list((tmp_path / "run").glob(".*")), "half-written files"
    resumed = train(TrainOptions(resume=str(tmp_path / "run")), data, quiet=True)
    assert_same_run(resumed, whole)


def test_more_epochs_go_on_where_the_run_ended(data: Dataset, tmp_path: Path) -> None:
    first = train(run_options(tmp_path / "run", epochs=1), data, quiet=True)
    more = train(TrainOptions(resume=str(first.folder), epochs=3), data, quiet=True)
    assert [record["epoch"] for record in more.history] == [1, 2, 3]
    assert more.history[0] == first.history[0]
    lines = (first.folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    finished = train(TrainOptions(resume=str(first.folder)), data, quiet=True)
    assert finished.history == more.history


def test_resume_refuses_other_labels_other_options_and_files_without_state(data: Dataset, whole: Run, tmp_path: Path) -> None:
    run = train(run_options(tmp_path / "run", epochs=1), data, quiet=True)
    other = draw(tmp_path / "other", 8, splits={"train": [0, 1, 2, 3, 4, 5], "val": [6, 7]}, oriented=True).with_task("detect")
    with pytest.raises(TrainingError, match="labels have changed"):
        train(TrainOptions(resume=str(run.folder)), other, quiet=True)
    with pytest.raises(OptionError, match="--batch"):
        train(TrainOptions(resume=str(run.folder), batch=4), data, quiet=True)
    with pytest.raises(CheckpointError, match="no training state"):
        train(TrainOptions(resume=str(run.best)), data, quiet=True)


def test_sgd_and_a_frozen_part_resume_too(data: Dataset, tmp_path: Path) -> None:
    changes = {"optimizer": "sgd", "freeze": "backbone.stem", "ema_decay": 0.5}
    straight = train(run_options(tmp_path / "a", **changes), data, quiet=True)
    with pytest.raises(KilledError):
        train(run_options(tmp_path / "b", **changes), data, quiet=True, on_step=kill_at(4))
    assert_same_run(train(TrainOptions(resume=str(tmp_path / "b")), data, quiet=True), straight)


def test_resume_with_the_model_named(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(entry(run_options(tmp_path).model), name="slow-for-tests", training={"lr": 1e-4, "momentum": 0.8})
    monkeypatch.setitem(registry._entries, own.name, own)
    run = train(run_options(tmp_path / "run", model=own.name, epochs=1, lr=5e-5), data, quiet=True)
    more = pelagia.train(own.name, data, resume=str(run.folder), epochs=2)
    assert load_options(run.folder).lr == 5e-5
    assert more.epochs == 2
    with pytest.raises(OptionError, match="--lr"):
        pelagia.train(own.name, data, resume=str(run.folder), lr=1e-4)
    with pytest.raises(OptionError, match="--model"):
        pelagia.train("yolo11n", data, resume=str(run.folder))
