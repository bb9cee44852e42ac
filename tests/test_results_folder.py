"""Results folders of every task, stopped and divided; and the parts: label images, pictures of scans, stamps, leftovers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pelagia.core.card import ModelCard
from pelagia.core.files import remove_leftovers
from pelagia.core.image import read, warp, write
from pelagia.core.scan import Scan
from pelagia.core.types import Category, Instances, Prediction, Task
from pelagia.data.label_pixels import read_label_pixels
from pelagia.errors import FormatError
from pelagia.infer import folder as infer_folder
from pelagia.infer import preview, result_maps, result_pictures
from pelagia.infer.folder import FolderRun, Shard
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import FileResult
from pelagia.infer.result_files import ResultFolder
from pelagia.infer.stamps import Stamp
from resuming import content, silent
from test_results_tasks import CLASSES, PANOPTIC, SEMANTIC, class_map, panoptic_map, some
from tiny_onnx import tiny_card

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
    monkeypatch.setattr(result_pictures, "_BAND", 50 * 241)
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
    kept = [".hidden.png", "a.0123456789ab.png", ".a.0123456789.png", ".a.0123456789ab/b.png", "a.0123456789ab.zarr/0"]
    for name in (*kept, ".a.0123456789ab.png", "x/.b.png.0123456789ab.json", "y/.c.0123456789ab.zarr/0/c/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert remove_leftovers(tmp_path) == 3
    assert list((tmp_path / "y").iterdir()) == []
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_large_picture_is_drawn_from_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PICTURE_PIXELS", 2000)
    write(tmp_path / "a.png", np.full((80, 100), 90, np.uint8))
    result = FileResult(tmp_path / "a.png", 100, 80, some(1, 3, "instance"))
    picture = read(result_pictures.draw_result(result, tmp_path / "a.jpg", card_of("instance")))
    assert picture.shape == (40, 50, 3)
