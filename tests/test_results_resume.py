"""Prediction that goes on where it stopped: killed, interrupted, on a full disk, divided among processes, the tables are equal.

What concerns the process (SIGKILL, Ctrl-C, a limit on the size of files) runs in a fresh one; there the n-th renaming of a
finished file, or the n-th run of the network, is replaced by the end of the process.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from pelagia.api import load
from pelagia.cli import main as cli_main
from pelagia.core.card import ModelCard
from pelagia.core.files import remove_leftovers
from pelagia.core.image import find_images, read, warp, write
from pelagia.core.scan import Scan
from pelagia.core.types import Category, Instances, Prediction, Task
from pelagia.data.label_pixels import read_label_pixels
from pelagia.errors import FormatError, OptionError
from pelagia.infer import folder as infer_folder
from pelagia.infer import preview, result_maps, result_pictures
from pelagia.infer.folder import FolderRun, Shard
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import FileResult
from pelagia.infer.result_files import ResultFolder
from pelagia.infer.runtimes import OnnxRuntime
from pelagia.infer.stamps import Stamp
from test_results_tasks import CLASSES, PANOPTIC, SEMANTIC, class_map, panoptic_map, some
from tiny_onnx import tiny_card, write_tiny

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
run, left = OnnxRuntime.run_session, [{n}]
def stop(self, session, *shown):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    return run(self, session, *shown)
OnnxRuntime.run_session = stop
"""

#: No file may grow beyond so many bytes, as on a disk that is full.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({n}, {n}))"


def silent(steps: int, note: str = "") -> None:
    """Nobody watches."""


def cells(rng: np.random.Generator, height: int, width: int, count: int) -> NDArray[np.uint8]:
    image = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    for _ in range(count):
        y, x = int(rng.integers(0, height // 8)), int(rng.integers(0, width // 8))
        image[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8, rng.integers(0, 2)] = 255
    return image


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a folder of ten small images and three scans that are predicted in tiles, one file of each kind broken."""
    folder = tmp_path_factory.mktemp("resume")
    write_tiny(folder / "m.onnx")
    fill(folder / "scans")
    return folder


def fill(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(10):
        write(folder / "ab"[index % 2] / f"{index}.png", cells(rng, 64, 56 + 8 * (index % 3), 4))
    (folder / "b" / "3.png").write_text("no image")
    for index in range(3):
        write(folder / f"scan{index}.tif", cells(rng, 200, 240, 30))
    (folder / "scan1.tif").write_bytes((folder / "scan1.tif").read_bytes()[:4000])


def fresh(*words: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nfrom pelagia.cli.main import main\nmain({[str(word) for word in words]!r})"
    env = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli_main.main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def content(folder: Path) -> dict[str, bytes]:
    """Every file that a user looks at; what results are made from holds times."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("results/")}


def finished(folder: Path) -> int:
    """How many images have a result file."""
    return len(list((folder / "results").rglob("[!.]*.json")))


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
def test_no_space_left_at_any_file(
    place: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    left = [count]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    words = ["predict", place / "m.onnx", place / "scans", "--batch", "4", "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert run(*words) == 1
    assert left[0] <= 0
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


# What is used again, and what is made anew


@pytest.fixture
def own(place: Path, tmp_path: Path) -> Path:
    """A place that a test may change, with finished results."""
    fill(tmp_path / "scans")
    write_tiny(tmp_path / "m.onnx")
    run("predict", tmp_path / "m.onnx", tmp_path / "scans", "--out", tmp_path / "out")
    return tmp_path


def again(own: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run("predict", own / "m.onnx", own / "scans", "--out", own / "out", "--json", *words) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] + told["predicted"] == 13
    fresh_run = own / "fresh"
    assert run("predict", own / "m.onnx", own / "scans", "--out", fresh_run, *words) == 1
    assert content(own / "out") == content(fresh_run)
    return {"predicted": told["predicted"], **told["anew"]}


def test_nothing_has_changed(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(own, capsys) == {"predicted": 0}
    for path in [*(own / "scans").rglob("*.*"), *(own / "out").rglob("*.*")]:
        os.utime(path, (1, 1))  # as a copy without times has
    assert again(own, capsys) == {"predicted": 0}
    assert again(own, capsys, "--batch", "3") == {"predicted": 0}


def test_other_options(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--score", "0.5", "--most", "2")
    assert again(own, capsys, *words) == {"predicted": 13, "other options (most, score)": 13}
    assert again(own, capsys, *words) == {"predicted": 0}


def test_another_limit_of_pixels(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own / "out")
    assert run("predict", own / "m.onnx", own / "scans", "--out", own / "out", "--max-pixels", "4000") == 1
    assert finished(own / "out") == 13
    assert again(own, capsys) == {"predicted": 10, "other limit for images that were refused": 10}
    assert again(own, capsys) == {"predicted": 0}


def test_another_model(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(own / "m.onnx", tiny_card(thresholds={"red": 0.9}))
    assert again(own, capsys) == {"predicted": 13, "other model": 13}


def test_another_runtime(own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "name", "int8", raising=False)
    (reason,) = set(again(own, capsys)) - {"predicted"}
    assert reason.startswith("other runtime")


def test_other_images(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(own / "scans" / "b" / "3.png", cells(np.random.default_rng(5), 64, 64, 4))  # broken before
    (own / "scans" / "a" / "4.png").write_text("broken now")
    assert again(own, capsys) == {"predicted": 2, "image changed": 2}
    assert not (own / "out" / "pictures" / "a" / "4.jpg").exists()


def test_files_that_are_gone_or_spoilt(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "out" / "results" / "a" / "0.png.json").unlink()
    for name in ("a/2.png", "scan0.tif"):
        path = own / "out" / "results" / f"{name}.json"
        path.write_text(path.read_text()[:-40])
    (own / "out" / "pictures" / "b" / "1.jpg").unlink()
    (own / "out" / "pictures" / "b" / "5.jpg").write_bytes(b"x")
    assert again(own, capsys) == {"predicted": 3, "broken result file": 2}


def test_pictures_later(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(own, capsys, "--score", "0.4", "--no-draw") == {"predicted": 13, "other options (score)": 13}
    assert not any(path.is_file() for path in (own / "out" / "pictures").rglob("*"))
    assert again(own, capsys, "--score", "0.4") == {"predicted": 0}


def test_an_image_that_changes_while_it_is_predicted_is_not_finished(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxRuntime.run_session

    def grow(self: OnnxRuntime, *shown: Any) -> dict[str, NDArray[Any]]:
        with open(own / "scans" / "scan2.tif", "ab") as stream:
            stream.write(b"x")
        return real(self, *shown)

    monkeypatch.setattr(OnnxRuntime, "run_session", grow)
    words = ["predict", own / "m.onnx", own / "scans", "--out", own / "out", "--score", "0.5"]
    assert run(*words, "--shard", "1/1") == 1
    assert not (own / "out" / "results.json").exists()
    monkeypatch.setattr(OnnxRuntime, "run_session", real)
    run(*words, "--shard", "1/1")
    assert (own / "out" / "results.json").exists()


# Every task


def card_of(task: Task) -> ModelCard:
    categories: dict[Task, tuple[Category, ...]] = {"semantic": SEMANTIC, "panoptic": PANOPTIC}
    return tiny_card(task=task, categories=categories.get(task, CLASSES))


def answer(name: str, task: Task) -> Prediction:
    seed = int(Path(name).stem)
    if task == "semantic":
        return class_map(seed)
    if task == "panoptic":
        return panoptic_map(seed)
    if task == "oriented":
        rng = np.random.default_rng(seed)
        found = some(seed, 5, "instance")
        return Instances(
            labels=found.labels,
            oriented=np.column_stack([rng.uniform(20, 60, (5, 2)), [[20, 7]] * 5, rng.uniform(-1, 1, 5)]),
            scores=found.scores,
        )
    return some(seed, seed % 4, task)


@pytest.mark.parametrize("task", ["oriented", "instance", "keypoints", "semantic", "panoptic"])
def test_overlays_label_images_and_maps_of_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    """Stopped after every second image, then in shards: every file is that of one run."""
    card, left = card_of(task), [1000]

    def predict(runtime: Any, paths: Iterable[Path], options: PredictOptions, **_: Any) -> Iterator[FileResult]:
        for path in paths:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            yield FileResult(path, 100, 80, answer(path.name, task), seconds=float(np.random.default_rng().random()))

    monkeypatch.setattr(infer_folder, "predict_files", predict)
    (tmp_path / "m").write_text("weights")
    runtime = type("Nothing", (), {"card": card})()
    paths = []
    for index in range(7):
        # Two have one stem, so that their label images and pictures must get other names.
        paths.append(tmp_path / "images" / (f"{index}.png" if index < 6 else "5.tif"))
        write(paths[-1], np.random.default_rng(index).integers(0, 255, (80, 100, 3)).astype(np.uint8))
    options = PredictOptions(batch=1)

    def start(out: str, shard: Shard | None = None) -> FolderRun:
        run = FolderRun(runtime, paths, tmp_path / out, options, model=tmp_path / "m", shard=shard)
        run.go(silent)
        return run

    assert start("whole").complete
    expected = content(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("pictures/")]) == 7
    for stopped in range(3):
        left[0] = 3
        with pytest.raises(KeyboardInterrupt):
            start("stopped")
        assert len(json.loads((tmp_path / "stopped" / "results.json").read_text())["images"]) == 2 * stopped + 2
    left[0] = 1000
    assert start("stopped").kept == 6
    assert content(tmp_path / "stopped") == expected
    assert [start("shards", Shard(index, 3)).complete for index in (2, 1, 3)] == [False, False, True]
    assert content(tmp_path / "shards") == expected
    if task in ("instance", "semantic", "panoptic"):
        folder = {"instance": "labels"}.get(task, task)
        (tmp_path / "shards" / folder / "2.png").write_bytes(b"x")
        (tmp_path / "shards" / folder / "5.tif.png").unlink()
        mended = start("shards")
        assert mended.anew == {"label image missing or changed": 2}
    for path in (tmp_path / "shards" / "pictures").iterdir():
        path.unlink()
    left[0] = 1  # nothing may be predicted
    assert start("shards").predicted == 0
    assert content(tmp_path / "shards") == expected


def test_a_label_image_whose_name_another_run_gave_away_is_made_anew(tmp_path: Path) -> None:
    card, made = card_of("instance"), {"model": "m", "runtime": "r", "options": {}}
    for name in ("1.png", "1.tif"):
        write(tmp_path / name, np.zeros((80, 100), np.uint8))

    def add(names: list[str], name: str) -> None:
        result = FileResult(tmp_path / name, 100, 80, some(len(name) + ord(name[-1]), 3, "instance"))
        ResultFolder(tmp_path / "out", card, made=made, names=names).add(result, name, image=Stamp.of(tmp_path / name))

    def reasons(names: list[str]) -> list[str | None]:
        files = ResultFolder(tmp_path / "out", card, made=made, names=names)
        return [files.why_anew(name, tmp_path / name) for name in names]

    add(["1.tif"], "1.tif")
    assert reasons(["1.tif"]) == [None]
    assert reasons(["1.png", "1.tif"]) == ["", "label image missing or changed"]  # its name is the first image's now
    add(["1.png"], "1.png")
    assert reasons(["1.tif"]) == ["label image missing or changed"]
    assert ResultFolder(tmp_path / "out", card, names=["1.png"]).why_anew("1.png", tmp_path / "1.png") == "other model"


def test_a_result_file_that_is_no_longer_whole_is_named(tmp_path: Path) -> None:
    files = ResultFolder(tmp_path, card_of("instance"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.png.json").write_text('{"made":{},\n"result":{"file"')
    with pytest.raises(FormatError, match=r"a\.png\.json: not a whole result file"):
        files.read("a.png")


# Parts


def test_a_label_image_as_tiled_tiff_has_the_pixels_of_the_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (1100, 700)
    found = some(3, 9, "instance")
    masks = tuple(
        type(mask)(mask.x * 20 - 30, mask.y * 11 - 7, np.kron(mask.bitmap, np.ones((9, 9), bool))) for mask in found.masks or ()
    )
    found = found.replace(masks=masks)
    assert result_maps.map_suffix(found, size) == "png"
    result_maps.write_map(tmp_path / "a.png", found, size)
    monkeypatch.setattr(result_maps, "_PNG_PIXELS", 1000)
    assert result_maps.map_suffix(found, size) == "tif"
    result_maps.write_map(tmp_path / "a.tif", found, size)
    expected = read_label_pixels(tmp_path / "a.png")
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(read_label_pixels(tmp_path / "a.tif"), expected)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].is_tiled


@pytest.mark.parametrize("scale", [0.9, 0.5, 0.37, 0.21])
def test_a_scan_shrunk_in_bands_is_the_scan_shrunk_at_once(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    monkeypatch.setattr(result_pictures, "_BAND", 50)
    image = np.random.default_rng(0).integers(0, 65535, (333, 241, 1)).astype(np.uint16)
    size = (round(241 * scale), round(333 * scale))
    at_once = warp(image, np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]]), size)
    in_bands = result_pictures._shrunk(Scan.of(image), scale, size)
    # OpenCV rounds positions to 1/32 pixel, from the corner of what it is given.
    assert np.abs(in_bands.astype(int) - at_once).mean() < 0.02 * 65535
    assert np.corrcoef(in_bands.ravel(), at_once.ravel())[0, 1] > 0.99


def test_stamps(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.tif", tmp_path / "b.zarr"
    file.write_bytes(b"abc")
    for name in ("0/0", "0/1", ".zattrs"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    for path, part in ((file, file), (folder, folder / "0" / "1")):
        stamp = Stamp.of(path)
        assert stamp is not None
        assert Stamp.from_dict(json.loads(json.dumps(stamp.to_dict()))) == stamp
        assert stamp.holds(path)
        os.utime(part, (5, 5))
        assert stamp.holds(path)  # read again: the same
        old = part.read_bytes()
        part.write_bytes(old[::-1])
        assert not stamp.holds(path)  # of the same size
        part.write_bytes(old)
        assert stamp.holds(path)
        part.write_bytes(old + b"x")
        assert not stamp.holds(path)
        part.write_bytes(old)
    (folder / "0" / "0").rename(folder / "0" / "2")
    renamed = Stamp.of(folder)
    assert renamed is not None
    assert not stamp.holds(folder)
    assert Stamp.of(tmp_path / "absent") is None
    assert Stamp.of(file, before=(3, 7)) is None  # changed since
    assert Stamp.from_dict({"size": 3}) is None


def test_leftovers_are_told_from_files_of_the_user(tmp_path: Path) -> None:
    kept = [".hidden.png", "a.0123456789ab.png", ".a.0123456789.png", ".a.0123456789ab/b.png"]
    for name in (*kept, ".a.0123456789ab.png", "x/.b.png.0123456789ab.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert remove_leftovers(tmp_path) == 2
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_large_picture_is_drawn_from_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PICTURE_PIXELS", 2000)
    write(tmp_path / "a.png", np.full((80, 100), 90, np.uint8))
    result = FileResult(tmp_path / "a.png", 100, 80, some(1, 3, "instance"))
    picture = read(result_pictures.draw_result(result, tmp_path / "a.jpg", card_of("instance")))
    assert picture.shape == (40, 50, 3)


def test_from_python(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    model = load(place / "m.onnx")
    paths = find_images(place / "scans")
    first = model.predict_folder(paths, tmp_path, batch=4, shard="1/2")
    assert not first.complete
    second = model.predict_folder(paths, tmp_path, batch=4)
    assert (second.kept, second.predicted, second.complete) == (first.predicted, 13 - first.predicted, True)
    assert content(tmp_path) == whole
    with pytest.raises(OptionError, match="unknown option"):
        model.predict_folder(paths, tmp_path, scores=3)


def test_pictures_of_an_earlier_run_are_no_images(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "scans" / "nowhere.png").symlink_to(own / "absent.png")
    words = [
        "predict",
        own / "m.onnx",
        own / "scans",
        str(own / "scans" / ".." / "scans" / "*.tif"),
        "--out",
        own / "scans" / "out",
    ]
    for kept in (0, 13):
        capsys.readouterr()
        assert run(*words, "--json") == 1
        told = json.loads(capsys.readouterr().out)
        assert len(told["images"]) == 14  # the scans are named twice
        assert told["kept"] >= kept
        assert any("nowhere.png: this image does not exist" in line for line in told["failed"])


def test_a_log_file_gets_a_line_now_and_then(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pelagia.cli.predict._LOG_SECONDS", 0)
    run("predict", own / "m.onnx", own / "scans", "--out", own / "new")
    assert "13 of 13 images predicted, the last scan2.tif" in capsys.readouterr().err
