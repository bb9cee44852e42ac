"""Prediction that goes on where it stopped: killed, interrupted, on a full disk, divided among processes, the tables are equal.

What concerns the process (SIGKILL, Ctrl-C, a limit on the size of files) runs in a fresh one; there the n-th renaming of a
finished file, or the n-th run of the network, is replaced by the end of the process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pelagia.api import load
from pelagia.core.image import find_images
from pelagia.errors import OptionError
from pelagia.infer import folder as infer_folder
from pelagia.infer.folder import Shard
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import OnnxRuntime
from resuming import content, fill, finished, no_space, run
from tiny_onnx import write_tiny

SOURCE = Path(__file__).parents[1] / "src"
TABLES = ("results.json", "results.csv", "counts.csv", "coco.json")

#: The n-th renaming of a file that is whole kills the process.
KILLED = """
import os, signal
rename, left = os.replace, [{n}]
def replace(*names):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names)
os.replace = replace
"""

#: During the n-th run of the network the user presses Ctrl-C.
STOPPED = """
import os, signal, time
from pelagia.infer.runtimes import OnnxRuntime
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it without one
run, left = OnnxRuntime.run_session, [{n}]
def stop(self, session, *shown):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    return run(self, session, *shown)
OnnxRuntime.run_session = stop
"""

#: A shard waits at its first run of the network until the other has come as far, and is killed at its n-th.
TOGETHER = """
import os, signal, time
from pathlib import Path
from pelagia.infer.runtimes import OnnxRuntime
run, done, end = OnnxRuntime.run_session, [], time.monotonic() + 60
def meet(self, session, *shown):
    done.append(None)
    Path({own!r}).touch()
    while not Path({other!r}).exists():
        assert time.monotonic() < end, "the other shard did not begin"
        time.sleep(0.01)
    if 0 < {n} <= len(done):
        while not Path({out!r}, "results", "a", "0.png.json").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, session, *shown)
OnnxRuntime.run_session = meet
"""

#: No file may grow beyond so many bytes, as on a disk that is full.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({n}, {n}))"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a folder of ten small images and three scans that are predicted in tiles, one file of each kind broken."""
    folder = tmp_path_factory.mktemp("resume")
    write_tiny(folder / "m.onnx")
    fill(folder / "scans")
    return folder


def begin(*words: str | Path, before: str = "") -> subprocess.Popen[str]:
    """The command in a process of its own."""
    code = f"{before}\nfrom pelagia.cli.main import main\nmain({[str(word) for word in words]!r})"
    env = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PATH": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=env)


def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fresh(*words: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    return end(begin(*words, before=before))


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, bytes]:
    """What a run leaves that nobody stopped."""
    assert run("predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", place / "whole") == 1
    found = content(place / "whole")
    assert {*TABLES} <= found.keys()
    assert len([name for name in found if name.startswith("pictures/")]) == 11
    return found


# Killed, stopped, full


def test_killed_at_any_moment_and_run_again(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    words = ["predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", tmp_path]
    kept = []
    # 28 renamings: a picture and a result for each image, but no picture of two broken ones, and four tables.
    for count in (4, 5, 20, 2):
        done = fresh(*words, before=KILLED.format(n=count))
        assert done.returncode == -9, done.stderr
        kept.append(finished(tmp_path))
        assert any(path.name.startswith(".") for path in tmp_path.rglob("*"))  # what was being written, under another name
    assert kept == sorted(kept)
    assert kept[1] < 13
    assert kept[2] > 4
    done = fresh(*words)
    assert done.returncode == 1
    assert f"{kept[-1]} of 13 images are finished; {13 - kept[-1]} to predict" in done.stderr
    assert content(tmp_path) == whole  # what was half written is gone, too


def test_ctrl_c_keeps_what_is_finished(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    words = ["predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", tmp_path]
    done = fresh(*words, before=STOPPED.format(n=8))
    assert done.returncode == 130
    count = finished(tmp_path)
    assert 0 < count < 13
    assert f"{count} of 13 images are finished" in done.stderr
    assert "stopped by Ctrl-C" in done.stderr
    assert "Traceback" not in done.stderr
    tables = json.loads((tmp_path / "results.json").read_text())
    assert tables["complete"] is False
    names = [item["file"] for item in tables["images"]]
    assert tables["images"] == [item for item in json.loads(whole["results.json"])["images"] if item["file"] in names]
    assert len(names) == count
    done = fresh(*words)
    assert done.returncode == 1
    assert f"{count} of 13 images are finished; {13 - count} to predict" in done.stderr
    assert content(tmp_path) == whole


def test_a_full_disk_is_one_clear_error(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    small = max(len(data) for name, data in whole.items() if name.startswith(("pictures/a/", "pictures/b/")))
    assert len(whole["pictures/scan0.jpg"]) > small + 100
    words = ["predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", tmp_path]
    done = fresh(*words, before=FULL.format(n=small + 100))
    assert done.returncode == 1
    assert "scan0.jpg: cannot write this file (File too large)" in done.stderr
    assert f"{finished(tmp_path)} of 13 images are finished" in done.stderr
    assert 9 < finished(tmp_path) < 13
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.name in TABLES]
    assert fresh(*words).returncode == 1
    assert content(tmp_path) == whole


@pytest.mark.parametrize("count", [1, 6, 27, 28])
def test_no_space_left_at_any_file(place: Path, whole: dict[str, bytes], tmp_path: Path, count: int) -> None:
    words = ["predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", tmp_path]
    with no_space(count):
        assert run(*words) == 1
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert run(*words) == 1
    assert content(tmp_path) == whole


# Shards


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_write_what_one_run_writes(
    place: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], order: tuple[int, ...]
) -> None:
    words = ["predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", tmp_path, "--json"]
    files: list[str] = []
    for number, index in enumerate(order):
        run(*words, "--shard", f"{index}/3")
        told = json.loads(capsys.readouterr().out)
        assert told["complete"] is (number == 2)
        assert (tmp_path / "results.json").exists() is (number == 2)
        if number < 2:
            files += [item["file"] for item in told["images"]]
            assert sum(told["counts"].values()) == sum(item.get("count", 0) for item in told["images"])
    assert len(files) == len(set(files))
    assert 5 < len(files) < 13
    assert content(tmp_path) == whole


def test_a_run_without_shard_makes_the_tables_of_shards(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    words = ["predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", tmp_path]
    assert run(*words, "--shard", "2/2") == 1
    (tmp_path / "results" / "a" / "1.png.json").unlink(missing_ok=True)
    assert run(*words) == 1
    assert content(tmp_path) == whole


def test_shards_end_although_one_was_killed_beside_the_other(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Two processes at a time, of which one is killed among the tiles of a scan."""
    words = ["predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", tmp_path / "out"]

    def start(own: int, other: int, n: int) -> subprocess.Popen[str]:
        places = {name: str(tmp_path / str(path)) for name, path in (("own", own), ("other", other), ("out", "out"))}
        return begin(*words, "--shard", f"{own}/2", before=TOGETHER.format(n=n, **places))

    killed, other = [end(process) for process in [start(1, 2, 12), start(2, 1, 0)]]
    assert (killed.returncode, other.returncode) == (-9, 1), killed.stderr + other.stderr
    assert not (tmp_path / "out" / "results.json").exists()
    count = finished(tmp_path / "out") - 6  # of the seven images of the killed shard
    assert 0 < count < 7
    done = fresh(*words, "--shard", "1/2")
    assert f"{count} of 7 images of shard 1/2 are finished; {7 - count} to predict" in done.stderr
    found = content(tmp_path / "out")
    assert {name: data for name, data in found.items() if not Path(name).name.startswith(".")} == whole
    assert run(*words) == 1
    assert content(tmp_path / "out") == whole  # without a shard, what was half written is gone, too


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
@pytest.mark.parametrize("kind", ["dangling", "forbidden"])
def test_shards_end_although_a_file_cannot_be_opened(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], order: tuple[int, int], kind: str
) -> None:
    shutil.copytree(place / "scans" / "a", tmp_path / "scans")
    bad, absent = tmp_path / "scans" / "9.png", tmp_path / "absent.png"
    shutil.copy(place / "scans" / "a" / "0.png", absent)
    if kind == "dangling":
        absent.rename(tmp_path / "later.png")
        bad.symlink_to(absent)
    else:
        absent.rename(bad)
        bad.chmod(0)
        if os.access(bad, os.R_OK):
            pytest.skip("nothing is forbidden to this user")
    words = ["predict", place / "m.onnx", tmp_path / "scans", "--json"]

    def told(out: str, *more: str) -> dict[str, Any]:
        run(*words, "--out", tmp_path / out, *more)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert [told("out", "--shard", f"{index}/2")["complete"] for index in order] == [False, True]
    assert told("alone")["complete"]
    assert content(tmp_path / "out") == content(tmp_path / "alone")
    kept = told("out")
    assert (kept["kept"], kept["anew"], len(kept["failed"])) == (6, {}, 1)
    if kind == "dangling":
        (tmp_path / "later.png").rename(absent)
    else:
        bad.chmod(0o600)
    mended = told("out", "--shard", "2/2")
    assert (mended["anew"], mended["failed"], mended["complete"]) == ({"image changed": 1}, [], True)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_an_impossible_shard_is_a_wrong_command_line(place: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", place / "m.onnx", place / "scans", f"--shard={text}") == 2
    assert "I/N" in capsys.readouterr().err
    with pytest.raises(OptionError):
        Shard.parse(text)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_network_sees_each_image_alone(place: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Else the last digits would depend on where a run was stopped, on the shard, and on the number of cores."""
    seen: list[int] = []
    real = OnnxRuntime.run_session

    def watched(self: OnnxRuntime, session: Any, images: NDArray[np.float32], *more: Any) -> dict[str, NDArray[Any]]:
        seen.append(len(images))
        return real(self, session, images, *more)

    monkeypatch.setattr(OnnxRuntime, "run_session", watched)
    runtime = OnnxRuntime(place / "m.onnx", threads=threads)
    paths = find_images(place / "scans" / "a")
    assert len(list(infer_folder.predict_files(runtime, paths, PredictOptions(batch=4)))) == 5
    assert seen == [1] * 5


def test_from_python(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    model = load(place / "m.onnx")
    paths = find_images(place / "scans")
    first = model.predict_folder(paths, tmp_path, base=place / "scans", batch=4, shard="1/2")
    assert not first.complete
    second = model.predict_folder(paths, tmp_path, base=place / "scans", batch=4)
    assert (second.kept, second.predicted, second.complete) == (first.predicted, 13 - first.predicted, True)
    assert content(tmp_path) == whole
    with pytest.raises(OptionError, match="unknown option"):
        model.predict_folder(paths, tmp_path, scores=3)
