"""Training on images larger than the input: windows of scans, read as windows, and when they are chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pelagia.api import load
from pelagia.core import scan as core_scan
from pelagia.core.card import Normalisation
from pelagia.core.types import Instances
from pelagia.data.augment import AugmentOptions, augment
from pelagia.data.dataset import Dataset
from pelagia.errors import ImageError
from pelagia.train.data import Loader, Maker, Plan, measure_window
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions, load_options
from pelagia.train.prepare import choose_windows
from training import options

WIDTH, HEIGHT = 300, 220


def scans(folder: Path, images: int = 3, *, channels: int = 3, deep: bool = False, objects: int = 12) -> Dataset:
    """Tiled TIFFs of noise with bright rectangles of 6 to 12 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(images):
        rng = np.random.default_rng([11, number])
        image = rng.integers(60, 160, (HEIGHT, WIDTH, channels)).astype(np.uint16 if deep else np.uint8)
        corners = rng.integers(0, (WIDTH - 12, HEIGHT - 12), (objects, 2))
        boxes = np.concatenate([corners, corners + rng.integers(6, 13, (objects, 2))], axis=1)
        for x1, y1, x2, y2 in boxes.tolist():
            image[y1:y2, x1:x2] = 240
        path = folder / f"{number}.tif"
        shown = image if channels == 3 else image[..., 0]
        tifffile.imwrite(path, shown, tile=(32, 48), compression="deflate", photometric="rgb" if channels == 3 else "minisblack")
        truth = Instances(np.arange(objects) % 2, boxes=boxes.astype(np.float64))
        items.append((path, (WIDTH, HEIGHT), truth))
    return Dataset.from_instances(["a", "b"], items, root=folder)


@pytest.fixture(autouse=True)
def small_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of this size would be decoded whole."""
    monkeypatch.setattr(core_scan, "WHOLE_PIXELS", 0)


TURNED = AugmentOptions(crop=1.0, rare=0.5, rotate_deg=180.0, shear_deg=10.0, elastic_px=4.0, blur=0.0, noise=0.0)


@pytest.mark.parametrize(("channels", "deep"), [(3, False), (1, False), (3, True)])
@pytest.mark.parametrize("variation", [AugmentOptions(crop=1.0, scale=0.9, translate=0.5, blur=0.0, noise=0.0), TURNED])
def test_a_window_is_that_of_the_whole_image(tmp_path: Path, channels: int, deep: bool, variation: AugmentOptions) -> None:
    data = scans(tmp_path, channels=channels, deep=deep)
    shown = 0
    for seed in range(40):
        whole, window = (
            augment(data, seed % 3, np.random.default_rng(seed), variation, (64, 96), look=look) for look in (None, data.scan)
        )
        assert whole.image.dtype == window.image.dtype
        # The position in the window is a difference of two numbers, which rounds otherwise.
        far = np.abs(whole.image.astype(np.int64) - window.image.astype(np.int64))
        assert np.quantile(far, 0.999) <= 1
        np.testing.assert_array_equal(whole.truth.box_array, window.truth.box_array)
        assert whole.shown == window.shown
        shown += len(window.truth)
    assert shown > 20


def test_no_image_is_decoded_whole_and_the_samples_are_those_of_any_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = scans(tmp_path)

    def refuse(self: Dataset, index: int) -> Any:
        raise AssertionError("decoded whole")

    monkeypatch.setattr(Dataset, "image", refuse)
    maker = Maker(data, AugmentOptions(crop=1.0, rare=0.5), (64, 64), 5, 9)
    plan = Plan(len(data), 4, 5, windows=6)
    assert (plan.samples, plan.steps_per_epoch) == (18, 5)
    first = [slot.index for step in range(4) for slot in plan.step(step)] + [slot.index for slot in plan.step(4)[:2]]
    assert sorted(first) == sorted([*range(3)] * 6)
    alone = [batch.images for batch in Loader(maker, plan).batches(0, 3)]
    beside = [batch.images for batch in Loader(maker, plan, workers=2).batches(0, 3)]
    assert all(np.array_equal(one, other) for one, other in zip(alone, beside, strict=True))
    assert measure_window(data, Normalisation()) == Normalisation()


def test_a_broken_scan_is_replaced_and_named(tmp_path: Path) -> None:
    data = scans(tmp_path)
    for name in ("0.tif", "1.tif"):
        whole = (tmp_path / name).read_bytes()
        with tifffile.TiffFile(tmp_path / name) as file:
            places = file.pages[0].dataoffsets  # type: ignore[union-attr]  # a page, not a frame
        broken = bytearray(whole)
        for place in places:
            broken[place : place + 8] = b"\0" * 8
        (tmp_path / name).write_bytes(broken)
    maker = Maker(data, AugmentOptions(crop=1.0), (64, 64), 5, 9)
    batch = maker.batch(Plan(3, 3, 5).step(0))
    assert {name for name, _ in batch.skipped} == {"0.tif", "1.tif"}
    (tmp_path / "2.tif").write_bytes(b"II*\0")
    with pytest.raises(ImageError, match="images in a row cannot be read"):
        maker.batch(Plan(3, 3, 5).step(0))


def of_size(side: int, length: float, count: int = 4) -> Dataset:
    """Images that need not exist, with objects of one length."""
    truth = Instances(np.zeros(2, dtype=np.int64), boxes=np.array([[5, 5, 5 + length, 8], [50, 50, 53, 50 + length]]))
    return Dataset.from_instances(["a"], [(Path(f"{n}.png"), (side, side // 2), truth) for n in range(count)], root=Path())


def test_windows_are_chosen_where_shrunk_objects_would_be_too_small() -> None:
    chosen = TrainOptions(imgsz=640)
    for side, length, windows in ((960, 20.0, False), (1280, 31.0, True), (1280, 33.0, False), (14000, 100.0, True)):
        found, told = choose_windows(chosen, of_size(side, length))
        assert (found.augment.crop, found.augment.rare) == ((1.0, 0.5) if windows else (0.0, 0.0))
        assert bool(told) is windows
        # 14,000 x 7,000 is 239 times the input, 1,280 x 640 twice.
        assert found.windows_per_image == (239 if side == 14000 else 1)
    scan = of_size(14000, 100.0)
    assert choose_windows(replace(chosen, windows="never"), scan)[0].augment.crop == 0
    assert choose_windows(replace(chosen, windows="always"), of_size(640, 300.0))[0].augment.crop == 1
    assert choose_windows(replace(chosen, windows_per_image=7), scan)[0].windows_per_image == 7
    dense = replace(chosen, augment=AugmentOptions(crop=0.7, rare=0.1))
    assert choose_windows(dense, scan)[0].augment == dense.augment
    assert choose_windows(replace(dense, windows="never"), scan)[0].augment == AugmentOptions()
    again = choose_windows(chosen, scan)[0]
    assert choose_windows(again, scan) == (again, [])


def test_a_detector_learns_from_scans_and_tiles_them(tmp_path: Path) -> None:
    """By itself: windows in training, tiles in validation and prediction; and the run goes on as it began."""
    data = scans(tmp_path / "data", 5)
    run = train(options(tmp_path / "run", epochs=1), data, quiet=True)
    log = (run.folder / "log.txt").read_text()
    assert "learning from windows at full resolution" in log.replace("\n", " ")
    assert "an epoch shows 16 windows of each image" in log
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["full_resolution"] is True
    assert "image_size" not in facts
    kept = load_options(run.folder)
    assert (kept.augment.crop, kept.windows_per_image) == (1.0, 16)
    on = train(TrainOptions(model=kept.model, resume=str(run.folder), epochs=2), data, quiet=True)
    assert on.epochs == 2
    assert load(run.last).predict(data.image_paths[0]) is not None
