"""Class maps of scans as OME-Zarr in a results folder: written, read again, replaced; and of TIFF too, what killed runs and full
disks leave.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from colours import Colours, noise_picture
from pelagia.cli import main as cli_main
from pelagia.core.image import find_images, read, write
from pelagia.core.scan import Scan, open_scan
from pelagia.core.types import SemanticMap
from pelagia.data.open import open_dataset
from pelagia.decode import DecodeOptions
from pelagia.errors import OptionError
from pelagia.infer import preview
from pelagia.infer.folder import FolderRun
from pelagia.infer.map_predictions import read_semantic_predictions
from pelagia.infer.map_writer import predict_map
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.result_maps import read_map
from resuming import no_file_above, no_space
from tiny_onnx import write_tiny

HERE = Path(__file__).parent

#: The process is killed at the n-th call of a function: of the network, or of the renaming of what is whole.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_map_zarr import Colours, start
real, left = {function}, [{n}]
def dying(*words):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words)
{function} = dying
start(Path({folder!r}), map_format={kind!r})
"""


def start(folder: Path, runtime: Any = None, **options: Any) -> FolderRun:
    """Predict the one scan of `folder`."""
    chosen = PredictOptions(**{"map_format": "zarr", "probabilities": True, "batch": 1, **options})
    run = FolderRun(runtime or Colours(), [folder / "scan.tif"], folder / "out", chosen, model=folder / "model")
    run.go(lambda steps, note="": None)
    return run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write(tmp_path / "scan.tif", noise_picture(300, 210))
    (tmp_path / "model").write_text("weights")
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and "results" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_map_is_an_ome_zarr_that_the_readers_open(tmp_path: Path) -> None:
    image = noise_picture(300, 210)
    expected = predict_image(Colours(), image, decoding=DecodeOptions(scores=True))
    assert isinstance(expected, SemanticMap)
    path = predict_map(Colours(), Scan.of(image), tmp_path / "map.zarr", probabilities="beside").path
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == 3
    about: Any = group.attrs["ome"]
    assert about["version"] == "0.5"
    (multiscale,) = about["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["y", "x"]
    array: Any = group[multiscale["datasets"][0]["path"]]
    assert array.metadata.dimension_names == ("y", "x")
    np.testing.assert_array_equal(group["probabilities"][:], expected.scores)
    assert find_images(tmp_path) == [path]
    np.testing.assert_array_equal(read(path)[..., 0], expected.labels)
    np.testing.assert_array_equal(read_map(path, "semantic"), expected.labels)
    with open_scan(path) as scan:
        np.testing.assert_array_equal(scan.read(50, 60, 100, 70)[..., 0], expected.labels[60:130, 50:150])


def test_a_results_folder_goes_on_and_changes_its_format(place: Path) -> None:
    assert start(place).predicted == 1
    out = place / "out"
    (entry,) = json.loads((out / "results.json").read_text())["images"]
    assert (entry["map"], entry["probabilities"]) == ("semantic/scan.zarr", "semantic/scan.zarr/probabilities")
    assert zarr.open_array(out / entry["probabilities"], mode="r").shape == (3, 210, 300)
    labels = noise_picture(300, 210).argmax(axis=2)
    np.testing.assert_array_equal(read_map(out / entry["map"], "semantic"), labels)
    assert (out / "pictures" / "scan.jpg").is_file()
    assert not (out / "probabilities").exists()
    before = content(out)
    assert start(place).predicted == 0
    assert content(out) == before
    chunks = [path for path in (out / entry["map"] / "0").rglob("*") if path.is_file() and path.name != "zarr.json"]
    chunks[0].unlink()
    mended = start(place)
    assert (mended.predicted, dict(mended.anew)) == (1, {"label image missing or changed": 1})
    assert content(out) == before
    (out / "pictures" / "scan.jpg").unlink()
    assert start(place).predicted == 0  # drawn again from the Zarr
    assert content(out) == before
    other = start(place, map_format="tiff")
    assert dict(other.anew) == {"other options (map_format)": 1}
    assert sorted(path.name for path in (out / "semantic").iterdir()) == ["scan.tif"]
    assert (out / "probabilities" / "scan.tif").is_file()
    start(place)
    assert [path.name for path in (out / "semantic").iterdir()] == ["scan.zarr"]
    assert not (out / "probabilities" / "scan.tif").exists()
    assert content(out) == before


def killed(place: Path, kind: str, function: str, n: int) -> list[Path]:
    """What a run leaves that is killed at that moment."""
    code = KILLED.format(tests=str(HERE), folder=str(place), kind=kind, function=function, n=n)
    env = {"PYTHONPATH": str(HERE.parent / "src"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == -9, done.stderr
    assert not (place / "out" / "results.json").exists()
    return [path for name in ("semantic", "probabilities") for path in sorted((place / "out" / name).glob("*"))]


def test_what_a_killed_run_left_is_gone_after_the_next(place: Path) -> None:
    left = killed(place, "zarr", "Colours.run", 6)
    assert left
    assert all(path.is_dir() and path.name.startswith(".") for path in left)
    assert start(place).predicted == 1
    after = content(place / "out")
    assert not [name for name in after if "/." in f"/{name}"]
    shutil.rmtree(place / "out")
    start(place)
    assert content(place / "out") == after


@pytest.mark.parametrize(
    ("function", "n", "left"),
    [
        ("Colours.run", 6, []),  # among the tiles: blocks are in a file without a name
        ("os.replace", 2, ["..scan.", ".scan."]),  # the probabilities are whole, the map is not
        ("os.replace", 4, [".scan.", "scan.tif"]),  # the map is in its place
    ],
)
def test_a_killed_run_that_writes_tiff_is_gone_on_with(place: Path, function: str, n: int, left: list[str]) -> None:
    """Maps, probabilities, pictures and tables are those of a run that nobody stopped."""
    start(place, map_format="tiff")
    whole = content(place / "out")
    assert {"semantic/scan.tif", "probabilities/scan.tif", "results.json"} <= whole.keys()
    shutil.rmtree(place / "out")
    found = killed(place, "tiff", function, n)
    assert [path.name[: len(name)] for path, name in zip(found, left, strict=True)] == left
    assert start(place, map_format="tiff").predicted == 1
    assert content(place / "out") == whole


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
@pytest.mark.parametrize(
    "full",
    [
        partial(no_space, 1),
        partial(no_space, 2),  # one of two TIFFs is whole, or one of the files of a Zarr
        partial(no_file_above, 300),
        partial(no_file_above, 2500),
    ],
)
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(place: Path, kind: str, full: Any) -> None:
    start(place, map_format=kind)
    whole = content(place / "out")
    shutil.rmtree(place / "out")
    told = r"\.scan\.[0-9a-f]{12}\.(tif|zarr): cannot write this (file|folder) \((No space left on device|File too large)\)"
    with pytest.raises(OptionError, match=told), full():
        start(place, map_format=kind)
    assert content(place / "out") == {}
    assert start(place, map_format=kind).predicted == 1
    assert content(place / "out") == whole


def test_a_picture_of_a_large_zarr_shows_the_pixels_of_the_tiff(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PICTURE_PIXELS", 3000)
    maps = []
    for kind in ("tiff", "zarr"):
        start(place, map_format=kind)
        (entry,) = json.loads((place / "out" / "results.json").read_text())["images"]
        maps.append(read_map(place / "out" / entry["map"], "semantic"))
    assert maps[0].size < 3200
    np.testing.assert_array_equal(maps[1], maps[0])


def test_evaluation_reads_the_maps(place: Path) -> None:
    start(place)
    labels = noise_picture(300, 210).argmax(axis=2).astype(np.uint8)
    write(place / "data" / "images" / "scan.tif", noise_picture(300, 210))
    write(place / "data" / "masks" / "scan.png", labels)
    (place / "data" / "x.yaml").write_text("train: {images: images, masks: masks}\nclasses: {0: rock, 1: sand, 2: alga}\n")
    dataset = open_dataset(place / "data" / "x.yaml")
    (found,), unknown = read_semantic_predictions(place / "out" / "semantic", dataset)
    assert not unknown
    np.testing.assert_array_equal(found.labels, labels)


def test_the_command_knows_the_formats(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(place / "m.onnx")
    for chosen, code in (("zarr", 0), ("png", 2)):
        words = ["predict", str(place / "m.onnx"), str(place / "scan.tif"), "--map-format", chosen]
        with pytest.raises(SystemExit) as stop:
            cli_main.main([*words, "--out", str(place / "found")])
        assert stop.value.code == code
    assert "--map-format" in capsys.readouterr().err
    with pytest.raises(OptionError, match="tiff or zarr"):
        PredictOptions(map_format="png")  # type: ignore[arg-type]
