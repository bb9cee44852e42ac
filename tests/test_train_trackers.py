"""Numbers and pictures arrive in TensorBoard and in Weights & Biases, and a missing one is named before the first step."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pelagia.errors import MissingExtraError
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions
from pelagia.train.trackers import open_trackers
from training import draw, options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class FakeWandB:
    """Remembers what a run would have sent."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []
        self.finished = False

    def init(self, **arguments: Any) -> SimpleNamespace:
        self.started = arguments
        return SimpleNamespace(log=self.logged.append, finish=self.finish)

    def finish(self) -> None:
        self.finished = True

    def Image(self, path: str) -> str:  # noqa: N802 (wandb's name)
        return path


def test_both_trackers_get_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    data = draw(tmp_path / "data", 6)
    run = train(options(tmp_path / "run", track=("tensorboard", "wandb")), data, quiet=True)
    more = train(TrainOptions(resume=str(run.folder), epochs=3), data, quiet=True)

    assert fake.started["mode"] == "offline"
    assert fake.started["config"]["epochs"] == 3
    assert fake.finished
    numbers = [entry for entry in fake.logged if "loss" in entry]
    assert [entry["epoch"] for entry in numbers] == [1, 2, 3]
    assert [entry["loss"] for entry in numbers] == [record["loss"] for record in more.history]
    assert "losses/box" in numbers[0]
    assert any("val_predictions" in entry for entry in fake.logged)

    board = events.EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("ap")] == [
        (record["epoch"], pytest.approx(record["ap"])) for record in more.history
    ]
    assert "train_batch" in board.Tags()["images"]


def test_a_missing_tracker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pelagia\[track\]"):
        open_trackers(("tensorboard", "wandb"), tmp_path, {}, 0)
