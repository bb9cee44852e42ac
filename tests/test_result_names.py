"""Names of results: stable while folders grow, one for each image, of letters and lengths that every table and disk can hold."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from colours import Colours, noise_picture
from pelagia.api import load
from pelagia.core.image import find_images, write
from pelagia.errors import ImageError
from pelagia.infer.folder import FolderRun
from pelagia.infer.match_images import ImageStems, match_files
from pelagia.infer.options import PredictOptions
from pelagia.infer.result_names import fitting, named_from, picture_names, portable, relative_names
from resuming import cells, content, run, silent
from tiny_onnx import write_tiny

#: e with an acute accent in Latin-1, as Python names such a file.
BROKEN = os.fsdecode(b"\xe9 1.png")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model, and scans of one cruise."""
    write_tiny(tmp_path / "m.onnx")
    for index in range(3):
        write(tmp_path / "scans" / "cruise1" / f"{index}.png", cells(np.random.default_rng(index), 64, 64, 4))
    return tmp_path


def predict(place: Path, capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> dict[str, Any]:
    """What `pelagia predict --json` tells."""
    capsys.readouterr()
    assert run("predict", place / "m.onnx", *words, "--out", place / "out", "--json") == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def files(told: dict[str, Any]) -> list[str]:
    return [item["file"] for item in told["images"]]


# Where a name begins


def test_a_folder_that_grows_keeps_its_results(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = predict(place, capsys, place / "scans")
    assert files(told) == ["cruise1/0.png", "cruise1/1.png", "cruise1/2.png"]
    write(place / "scans" / "cruise0" / "0.png", cells(np.random.default_rng(7), 64, 64, 4))
    write(place / "scans" / "0.png", cells(np.random.default_rng(8), 64, 64, 4))
    told = predict(place, capsys, place / "scans")
    assert (told["kept"], told["predicted"], told["anew"]) == (3, 2, {})
    assert files(told) == ["0.png", "cruise0/0.png", "cruise1/0.png", "cruise1/1.png", "cruise1/2.png"]
    assert {path.relative_to(place / "out" / "results").as_posix() for path in (place / "out" / "results").rglob("*.json")} == {
        f"{name}.json" for name in files(told)
    }


def test_more_places_keep_the_names_of_the_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "more" / "9.png", cells(np.random.default_rng(7), 64, 64, 4))
    write(place / "more" / "deep" / "0.png", cells(np.random.default_rng(8), 64, 64, 4))
    assert files(predict(place, capsys, place / "scans" / "cruise1")) == ["0.png", "1.png", "2.png"]
    told = predict(place, capsys, place / "scans" / "cruise1", place / "more" / "*", place / "scans" / "cruise1" / "0.png")
    assert (told["kept"], told["anew"]) == (3, {})
    assert files(told) == ["0.png", "1.png", "2.png", "9.png", "deep/0.png"]


def test_the_folder_of_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a" / "b[1].png", np.zeros((4, 4), np.uint8))
    (tmp_path / "a" / "c.zarr").mkdir()
    assert named_from(tmp_path / "a") == tmp_path / "a"
    assert named_from(tmp_path / "a" / "b[1].png") == tmp_path / "a"
    assert named_from(tmp_path / "a" / "c.zarr") == tmp_path / "a"
    assert named_from(str(tmp_path / "*" / "*.png")) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert named_from("*.png") == Path()
    assert named_from("a/../a/*.png") == Path("a/../a")
    assert named_from("a/b[1].png") == Path("a")


def test_images_that_would_share_a_name_take_folders_above(tmp_path: Path) -> None:
    def names(*pairs: tuple[str, str]) -> list[str]:
        return relative_names({tmp_path / path: tmp_path / folder for path, folder in pairs})

    assert relative_names({}) == []
    assert names(("x/a.png", "x"), ("y/a.png", "y"), ("y/b.png", "y")) == ["x/a.png", "y/a.png", "b.png"]
    assert names(("1/x/a.png", "1/x"), ("2/x/a.png", "2/x")) == ["1/x/a.png", "2/x/a.png"]
    # The longer name of one may be the name of another.
    found = names(("q/x/a.png", "q/x"), ("r/a.png", "r"), ("p/r/a.png", "p"))
    assert found == ["x/a.png", f"{tmp_path.name}/r/a.png", "p/r/a.png"]
    assert names(("x/a.png", "elsewhere"), ("x/../y/a.png", "x")) == ["x/a.png", "y/a.png"]


@given(st.lists(st.tuples(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), st.integers(0, 3)), max_size=8))
def test_every_image_has_a_name_of_its_own(drawn: list[tuple[list[str], int]]) -> None:
    images = {Path("/", *parts): Path("/", *parts[: min(depth, len(parts) - 1)]) for parts, depth in drawn}
    names = relative_names(images)
    assert len(set(names)) == len(images)
    assert all(path.as_posix().endswith(f"/{name}") for path, name in zip(images, names, strict=True))


def test_from_python(place: Path, tmp_path: Path) -> None:
    paths = find_images(place / "scans")
    model = load(place / "m.onnx")
    assert model.predict_folder(paths, tmp_path / "a").names == ["0.png", "1.png", "2.png"]
    assert model.predict_folder(paths, tmp_path / "b", base=place).names == [f"scans/cruise1/{index}.png" for index in range(3)]


# What names are made of


@given(st.text(st.characters() | st.sampled_from("%x25E9uD\ud83d\udce9"), max_size=12))
def test_escapes_can_be_read_back(name: str) -> None:
    """Hence no two names become one."""
    written = portable(name)
    written.encode()
    codes = {"x25": "%"} | {f"x{byte:02X}": chr(0xDC00 + byte) for byte in range(0x80, 0x100)}
    back = re.sub("%(x25|x[89A-F][0-9A-F]|uD[89A-F][0-9A-F]{2})", lambda at: codes.get(at[1]) or chr(int(at[1][1:], 16)), written)
    assert back == name


def test_escapes() -> None:
    assert portable("ä 漢字 50%25 caf%C3%A9.png") == "ä 漢字 50%25 caf%C3%A9.png"  # as it is
    assert portable(BROKEN) == "%xE9 1.png"
    assert portable("%xE9 1.png") == "%x25xE9 1.png"
    assert portable("\ud83d.png") == "%uD83D.png"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_any_bytes_in_tables_and_evaluation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "odd ä"
    names = ["ä b.png", "漢字.png", f"{BROKEN}", "%xE9 1.png", f"{os.fsdecode(bytes([0xFF]) * 80)}.png"]
    for index, name in enumerate(names):
        write(folder / name, cells(np.random.default_rng(index), 64, 64, 4))
    (folder / os.fsdecode(b"none\xe9.png")).write_text("no image")
    told = predict(place, capsys, folder, code=1)
    expected = [portable(path.name) for path in find_images(folder)]
    assert files(told) == expected
    assert {"ä b.png", "漢字.png", "%xE9 1.png", "%x25xE9 1.png", "%xFF" * 80 + ".png"} < set(expected)
    assert told["failed"] == [f"{folder}/none\udce9.png: not an image of a known kind; expected JPEG, PNG, TIFF, BMP or WebP"]
    with (place / "out" / "counts.csv").open(encoding="utf-8") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == [name for name in expected if name != "none%xE9.png"]
    assert len(list((place / "out" / "pictures").iterdir())) == 5
    told = predict(place, capsys, folder, code=1)
    assert (told["kept"], told["predicted"]) == (6, 0)
    # The truth is what was found, under the names that the files have.
    found = json.loads((place / "out" / "results.json").read_text(encoding="utf-8"))["images"]
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}],
    }
    for item in found:
        if "error" in item:
            continue
        name = names[[portable(name) for name in names].index(item["file"])]
        truth["images"].append({"id": len(truth["images"]) + 1, "file_name": name, "width": 64, "height": 64})
        for each in item["objects"]:
            x1, y1, x2, y2 = each["box"]
            entry = {"id": len(truth["annotations"]) + 1, "image_id": len(truth["images"]), "category_id": each["class_id"]}
            truth["annotations"].append(
                {**entry, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            )
    assert len(truth["annotations"]) >= 15
    (folder / "truth.json").write_text(json.dumps(truth))
    for source in (place / "out", place / "out" / "coco.json", place / "m.onnx"):
        capsys.readouterr()
        words = ("evaluate", source, folder / "truth.json", "--json", "--out", place / "scores")
        assert run(*words) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["ap50"] == pytest.approx(1)


def test_names_as_long_as_a_disk_allows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a" * 251 + ".png", "漢" * 83 + "a.png", "a" * 250 + "b.png", "ok.png"]
    for index, name in enumerate(names):
        write(place / "long" / name, cells(np.random.default_rng(index), 64, 64, 4))
    for kept in (0, 4):
        told = predict(place, capsys, place / "long")
        assert sorted(files(told)) == sorted(names)
        assert (told["kept"], told["predicted"]) == (kept, 4 - kept)
    assert len(list((place / "out" / "pictures").iterdir())) == 4
    before = content(place / "out")
    next((place / "out" / "results").glob("a*.json")).unlink()
    assert predict(place, capsys, place / "long")["predicted"] == 1
    assert content(place / "out") == before
    with pytest.raises(ImageError, match="no such file"):
        find_images("a" * 300)


def test_maps_have_names_as_long_as_a_disk_allows(tmp_path: Path) -> None:
    names = ["a" * 251 + ".png", "a" * 251 + ".tif", "漢" * 83 + "a.png"]
    for name in names:
        write(tmp_path / "in" / name, noise_picture(60, 50))
    (tmp_path / "m").write_text("weights")
    options = PredictOptions(probabilities=True)
    for kept in (0, 3):
        made = FolderRun(Colours(), [tmp_path / "in" / name for name in names], tmp_path / "out", options, model=tmp_path / "m")
        assert made.kept == kept
        made.go(silent)
    entries = json.loads((tmp_path / "out" / "results.json").read_text())["images"]
    assert [entry["file"] for entry in entries] == names
    assert len({entry["map"] for entry in entries}) == len({entry["probabilities"] for entry in entries}) == 3
    found = match_files((tmp_path / "out" / "semantic").iterdir(), tmp_path / "out" / "semantic", names[1:])
    assert found[0] == {index: tmp_path / "out" / entry["map"] for index, entry in enumerate(entries[1:])}


@given(st.text(st.sampled_from("a漢./"), min_size=1, max_size=700))
def test_names_of_files_have_room_for_endings(name: str) -> None:
    short = fitting(name)
    assert all(len(part.encode()) <= 240 for part in short.split("/"))
    assert fitting(short) == short
    assert short == name or "~" in short


def test_names_of_pictures() -> None:
    assert picture_names(["x/a.png", "y/a.png", "y/a.tif"]) == ["x/a.jpg", "y/a.png.jpg", "y/a.tif.jpg"]
    assert all(len(name) <= 255 for name in picture_names(["a" * 251 + ".png", "a" * 251 + ".tif"]))


def test_files_of_results_are_found_by_the_names_of_images(tmp_path: Path) -> None:
    names = ["x/" + "漢" * 83 + ".png", f"x/{BROKEN}", "x/c%xE9.png", "y/plain.png"]
    stems = ImageStems(names, tmp_path)
    made = [Path(fitting(portable(name))).with_suffix(".tif") for name in names]
    for index, file in enumerate(made):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
        assert stems.find(file.with_suffix("").as_posix()) == index
        assert stems.find(file.with_suffix("").name) == index
        assert stems.find(portable(names[index])) == index
    assert match_files(tmp_path.rglob("*.tif"), tmp_path, names) == ({i: tmp_path / file for i, file in enumerate(made)}, [])


# An extra that is missing


def test_without_the_extra_a_zarr_is_one_broken_image(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = cells(np.random.default_rng(9), 64, 64, 4)
    zarr.create_array(place / "scans" / "a.zarr", data=image, chunks=(32, 32, 3))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "zarr", None)
        told = predict(place, capsys, place / "scans", code=1)
        assert predict(place, capsys, place / "scans", code=1)["kept"] == 4
    assert told["predicted"] == 4
    assert len(told["failed"]) == 1
    assert re.search(r"a\.zarr: zarr is needed to read OME-Zarr.*pelagia\[zarr\]", told["failed"][0])
    assert ["error" in item for item in told["images"]] == [True, False, False, False]
    told = predict(place, capsys, place / "scans")
    assert (told["kept"], told["failed"]) == (3, [])
    assert told["anew"] == {"other limit, or other extras, for images that were refused": 1}
    assert told["images"][0]["count"] >= 1
