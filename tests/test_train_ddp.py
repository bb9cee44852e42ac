"""Two gloo processes learn what one process with the whole batch learns."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pelagia.data.augment import AugmentOptions
from pelagia.data.dataset import Dataset
from pelagia.models.registry import create
from pelagia.nn.intensities import to_network
from pelagia.train.data import Maker, Plan
from pelagia.train.distributed import Group, join_group
from pelagia.train.loop import train
from pelagia.train.step import wrap
from training import TINY, assert_same_state, draw, options, register_tiny

BATCH = 6


def gradients(data: Dataset, group: Group) -> dict[str, torch.Tensor]:
    """Gradients of one step in float64, batch norm in evaluation mode, augmentation off."""
    register_tiny()
    torch.manual_seed(0)
    model = create(TINY, data.categories, data.task, input_size=64).double().eval()
    step = wrap(model, group)
    slots = Plan(len(data), BATCH, 0).step(0, group.rank, group.world)
    batch = Maker(data, AugmentOptions(), (64, 64), 0, 0, varied=False).batch(slots)
    images = to_network(batch.images, model.card.normalisation, torch.device("cpu"), torch.float64)
    torch.stack(list(step(images, batch.targets).values())).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def launch(code: str, world: int = 2) -> None:
    """Run `code` in `world` processes with the environment that torchrun sets."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\n"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    running = []
    for rank in range(world):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen([sys.executable, "-c", head + code], env=environment))
    try:
        assert [process.wait(timeout=200) for process in running] == [0] * world
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_gradients_are_those_of_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    launch(f"""
import torch
from test_train_ddp import BATCH, draw, gradients
from pelagia.train.distributed import join_group

root, group = Path({str(tmp_path)!r}), join_group("cpu")
for oriented in (False, True):
    data = draw(root / f"images{{group.rank}}", BATCH, oriented=oriented)
    torch.save(gradients(data, group), root / f"{{oriented}}{{group.rank}}.pt")
""")
    for oriented in (False, True):
        expected = gradients(draw(tmp_path / "images", BATCH, oriented=oriented), Group())
        assert any(value.abs().max() > 1e-3 for value in expected.values())
        for rank in range(2):
            found = torch.load(tmp_path / f"{oriented}{rank}.pt", weights_only=True)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-12), name


def test_a_run_of_two_processes_is_written_once_and_resumes(tmp_path: Path) -> None:
    launch(f"""
from training import draw, options
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions
import os

class KilledError(Exception):
    pass

def kill(done):
    if done == 3:
        raise KilledError

root = Path({str(tmp_path)!r})
data = draw(root / os.environ["RANK"], 6, splits={{"train": [0, 1, 2, 3], "val": [4, 5]}})
run = train(options(root / "whole", batch=2), data, quiet=True)
assert run.epochs == 2 and run.metrics, run
try:
    train(options(root / "part", batch=2), data, quiet=True, on_step=kill)
except KilledError:
    train(TrainOptions(resume=str(root / "part")), data, quiet=True)
else:
    raise SystemExit("not killed")
""")
    assert_same_state(tmp_path / "whole" / "last.safetensors", tmp_path / "part" / "last.safetensors")
    assert len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()) == 2


def test_one_process_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = join_group("cpu")
    assert (group.rank, group.world, group.first, group.share(3), group.lowest(4)) == (0, 1, True, 3, 4)
    value = torch.ones(2, requires_grad=True)
    assert group.mean(value) is value


def test_a_batch_is_a_multiple_of_the_processes(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 3)
    run = train(options(tmp_path / "run", batch=64, epochs=1, val_fraction=0.0), data, quiet=True)
    assert "a batch of 3 instead of 64" in (run.folder / "log.txt").read_text()
