"""Panoptic maps of scans in bands of rows: equal to the map that is held whole, on the disk, in results, in bounded memory."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.card import ModelCard
from pelagia.core.files import read_json
from pelagia.core.frame import Frame
from pelagia.core.image import read, write
from pelagia.core.scan import Scan
from pelagia.core.types import Category, Instances, MaskCrop, PanopticMap, Segment
from pelagia.data.panoptic_png import read_ids, write_ids
from pelagia.decode import DecodeOptions
from pelagia.decode.registry import DECODERS
from pelagia.errors import FormatError, ModelError, OptionError
from pelagia.infer import preview, result_maps
from pelagia.infer.folder import FolderRun
from pelagia.infer.joining import CUT_MARGIN, join
from pelagia.infer.options import PredictOptions
from pelagia.infer.panoptic_files import read_panoptic
from pelagia.infer.panoptic_writer import predict_panoptic
from pelagia.infer.predict import predict_image
from pelagia.infer.result_maps import read_map
from pelagia.infer.tiles import Tile, lay_tiles, owned
from resuming import content, no_file_above, no_space

CATEGORIES = (
    Category(3, "copepod"),
    Category(5, "sand", is_thing=False),
    Category(6, "diatom"),
    Category(9, "water", is_thing=False),
)


class Scribbles:
    """Segments that no two tiles agree on: rectangles of random classes, some above others, and void; by what a tile shows."""

    def __init__(self, side: int = 64, *, breaks_at: int = 0) -> None:
        self.card = ModelCard(
            name="scribbles",
            task="panoptic",
            decoder="scribbles",
            categories=CATEGORIES,
            input_size=(side, side),
            stride=1,
            manifest={"full_resolution": True},
        )
        self._breaks_at = breaks_at
        self.seen: list[PanopticMap] = []

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"images": images}

    def decode(
        self, outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
    ) -> list[Any]:
        return [self._one(frame, image) for frame, image in zip(frames, outputs["images"], strict=True)]

    def _one(self, frame: Frame, image: NDArray[Any]) -> PanopticMap:
        if self._breaks_at and len(self.seen) + 1 == self._breaks_at:
            raise ModelError("the network failed", where="scribbles")
        rng = np.random.default_rng(zlib.crc32(image.tobytes()))
        ids = np.zeros((frame.height, frame.width), dtype=np.int32)
        segments = []
        for number in rng.permutation(9)[:7].tolist():
            x, y = rng.integers(0, frame.width), rng.integers(0, frame.height)
            ids[y : y + rng.integers(5, frame.height), x : x + rng.integers(5, frame.width)] = number + 1
            segments.append(Segment(number + 1, number % len(CATEGORIES), float(rng.uniform(0.3, 0.9))))
        self.seen.append(PanopticMap(ids, tuple(segments)))
        return self.seen[-1]


@pytest.fixture(autouse=True)
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "scribbles", _decode)


_RUNTIMES: list[Scribbles] = []


def _decode(*args: Any) -> list[Any]:
    return _RUNTIMES[-1].decode(*args)


def scribbles(*args: Any, **options: Any) -> Scribbles:
    _RUNTIMES.append(Scribbles(*args, **options))
    return _RUNTIMES[-1]


def things_of(part: PanopticMap, tile: Tile, size: tuple[int, int]) -> Instances:
    labels, scores, crops = [], [], []
    for segment in part.segments:
        whole = np.zeros(size[::-1], dtype=np.bool_)
        shown = (part.ids == segment.id)[: size[1] - tile.y, : size[0] - tile.x]
        whole[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width][: shown.shape[0], : shown.shape[1]] = shown
        if CATEGORIES[segment.label].is_thing and whole.any():
            labels.append(segment.label)
            scores.append(segment.score)
            crops.append(core_masks.crop_from_bitmap(whole))
    if not crops:
        return Instances.empty(scores=True)
    boxes = np.array([core_masks.bounds(crop) for crop in crops])
    return Instances(labels=np.array(labels), boxes=boxes, scores=np.array(scores), masks=tuple(crops))


def held_whole(seen: Sequence[PanopticMap], tiles: list[Tile], size: tuple[int, int], side: int) -> list[tuple[Any, ...]]:
    """The rule, on the whole map: (label, score, pixels) of each segment, things by score, then stuff by class."""
    codes = np.zeros(size[::-1], dtype=np.int64)  # stuff -1 - label, things 1 + position
    sums = {label: [0.0, 0.0] for label in range(len(CATEGORIES))}
    windows = owned(tiles, size)
    for part, ((x1, y1, x2, y2), tile) in zip(seen, windows, strict=True):
        for segment in part.segments:
            here = part.ids[y1 - tile.y : y2 - tile.y, x1 - tile.x : x2 - tile.x] == segment.id
            if not CATEGORIES[segment.label].is_thing:
                codes[y1:y2, x1:x2][here] = -1 - segment.label
                sums[segment.label][0] += here.sum()
                sums[segment.label][1] += here.sum() * (segment.score or 0)
    parts = [things_of(part, tile, size) for part, tile in zip(seen, tiles, strict=True)]
    things = join(parts, tiles, size, margin=CUT_MARGIN * side)
    masks = [core_masks.paste(mask, *size[::-1]) for mask in things.masks or ()]
    for position in reversed(range(len(masks))):
        codes[masks[position]] = 1 + position
    for part, ((x1, y1, x2, y2), _) in zip(parts, windows, strict=True):
        for row, crop in enumerate(part.masks or ()):
            view = core_masks.paste(crop, *size[::-1])
            rest = np.zeros_like(view)
            rest[y1:y2, x1:x2] = view[y1:y2, x1:x2] & (codes[y1:y2, x1:x2] == 0)
            under = np.bincount(codes[view & (codes > 0)], minlength=len(masks) + 1)
            under[1:][things.labels != part.labels[row]] = 0
            if rest.any() and under.any():
                codes[rest] = under.argmax()
    found: list[tuple[Any, ...]] = []
    for position in range(len(masks)):
        if (codes == 1 + position).any():
            assert things.scores is not None
            found.append((int(things.labels[position]), things.scores[position], codes == 1 + position))
    for label, (pixels, total) in sums.items():
        if (codes == -1 - label).any():
            found.append((label, total / pixels, codes == -1 - label))
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(65, 300),
    height=st.integers(65, 300),
    side=st.integers(40, 64),
    overlap=st.sampled_from([0.0, 0.2, 0.5, 0.75]),
)
@settings(max_examples=25, deadline=None)
def test_bands_equal_the_map_that_is_held_whole(seed: int, width: int, height: int, side: int, overlap: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        runtime = Scribbles(side)
        patch.setitem(DECODERS, "scribbles", runtime.decode)
        image = np.random.default_rng(seed).integers(0, 256, (height, width, 1), dtype=np.uint8)
        found = predict_image(runtime, image, PredictOptions(tiling="always", overlap=overlap, batch=3))
    assert isinstance(found, PanopticMap)
    tiles = lay_tiles((width, height), (side, side), round(overlap * side))
    assert len(tiles) == len(runtime.seen)
    expected = held_whole(runtime.seen, tiles, (width, height), side)
    assert [(item.id, item.label) for item in found.segments] == [(k, label) for k, (label, _, _) in enumerate(expected, 1)]
    np.testing.assert_allclose([item.score or 0 for item in found.segments], [score for _, score, _ in expected])
    whole = np.zeros((height, width), dtype=np.int32)
    for number, (_, _, pixels) in enumerate(expected, start=1):
        whole[pixels] = number
    np.testing.assert_array_equal(found.ids, whole)


SIZE = (700, 1100)
OPTIONS = PredictOptions(overlap=0.3, batch=3)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)


def whole_map() -> PanopticMap:
    found = predict_image(scribbles(), IMAGE, OPTIONS)
    assert isinstance(found, PanopticMap)
    assert len(found.segments) > 256  # more than one colour channel holds
    return found


def test_what_is_written_is_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PICTURE_PIXELS", 20_000)
    expected = whole_map()
    stored = predict_panoptic(scribbles(), Scan.of(IMAGE), tmp_path / "a.tif", OPTIONS)
    assert (stored.path, stored.width, stored.height) == (tmp_path / "a.tif", *SIZE)
    np.testing.assert_array_equal(read_ids(tmp_path / "a.tif"), expected.ids)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert (file.pages[0].tile, file.pages[0].compression) == ((512, 512), 8)
    assert stored.segments == expected.segments
    assert stored.areas.tolist() == np.bincount(expected.ids.ravel(), minlength=len(expected.segments) + 1)[1:].tolist()
    for segment, box in zip(expected.segments, stored.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(expected.ids == segment.id)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    scale, shrunk = preview.picture_size(*SIZE)
    assert shrunk[0] * shrunk[1] <= 21_000
    places = np.ix_(*preview.nearest(SIZE[::-1], scale, shrunk))
    np.testing.assert_array_equal(stored.picture.ids, expected.ids[places])
    np.testing.assert_array_equal(read_map(tmp_path / "a.tif", "panoptic"), expected.ids[places])


def test_a_broken_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="failed"):
        predict_panoptic(scribbles(breaks_at=5), Scan.of(np.zeros((300, 300, 1), np.uint8)), tmp_path / "a.tif", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def folder_run(tmp_path: Path, name: str) -> FolderRun:
    paths = [tmp_path / "in" / file for file in ("scan.tif", "small.png")]
    return FolderRun(scribbles(), paths, tmp_path / name, OPTIONS, model=tmp_path / "model")


def test_a_results_folder_with_written_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PNG up to a size, as TIFF above: the same tables, the same pictures, also when these are drawn again."""
    monkeypatch.setattr(preview, "PICTURE_PIXELS", 50_000)
    write(tmp_path / "in" / "scan.tif", IMAGE)
    write(tmp_path / "in" / "small.png", np.ascontiguousarray(IMAGE[:50, :60]))
    (tmp_path / "model").write_text("weights")
    folder_run(tmp_path, "png").go(lambda steps, note="": None)
    monkeypatch.setattr(result_maps, "_PNG_PIXELS", 100_000)
    folder_run(tmp_path, "tiff").go(lambda steps, note="": None)
    entries = [read_json(tmp_path / name / "results.json")["images"] for name in ("png", "tiff")]
    assert [item.pop("map") for item in entries[0]] == ["panoptic/scan.png", "panoptic/small.png"]
    assert [item.pop("map") for item in entries[1]] == ["panoptic/scan.tif", "panoptic/small.png"]
    assert entries[0] == entries[1]
    expected = whole_map()
    write_ids(tmp_path / "whole.png", expected.ids)
    assert (tmp_path / "png" / "panoptic" / "scan.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    for name in ("png", "tiff"):
        found = read_panoptic(tmp_path / name / "panoptic.json").map(0)
        np.testing.assert_array_equal(found.ids, expected.ids)
        assert [segment.label for segment in found.segments] == [segment.label for segment in expected.segments]
        assert sum(path.is_file() for path in (tmp_path / name).rglob(".*")) == 0
    pictures = [tmp_path / name / "pictures" / "scan.jpg" for name in ("png", "tiff")]
    first = pictures[0].read_bytes()
    assert read(pictures[0]).shape[1] < SIZE[0]
    assert pictures[1].read_bytes() == first
    pictures[1].unlink()
    again = folder_run(tmp_path, "tiff")
    again.go(lambda steps, note="": None)
    assert again.predicted == 0
    assert pictures[1].read_bytes() == first


@pytest.mark.parametrize("most", [10_000, 1 << 26])
@pytest.mark.parametrize(
    "full", [partial(no_space, 1), partial(no_space, 2), partial(no_file_above, 300), partial(no_file_above, 5000)]
)
def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, full: Any
) -> None:
    """As TIFF and as the PNG that is made from it."""
    monkeypatch.setattr(result_maps, "_PNG_PIXELS", most)
    write(tmp_path / "in" / "scan.tif", np.ascontiguousarray(IMAGE[:200, :260]))
    write(tmp_path / "in" / "small.png", np.ascontiguousarray(IMAGE[:50, :60]))
    (tmp_path / "model").write_text("weights")
    folder_run(tmp_path, "whole").go(lambda steps, note="": None)
    whole = content(tmp_path / "whole")
    with pytest.raises(OptionError, match=r"cannot write this file \((No space left on device|File too large)\)"), full():
        folder_run(tmp_path, "out").go(lambda steps, note="": None)
    left = content(tmp_path / "out")
    assert left.items() <= whole.items()
    assert "results.json" not in left
    assert list((tmp_path / "out").rglob(".*")) == []
    folder_run(tmp_path, "out").go(lambda steps, note="": None)
    assert content(tmp_path / "out") == whole


def test_a_tiff_that_is_no_panoptic_map_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "grey.tif", np.zeros((20, 30), dtype=np.uint8))
    with pytest.raises(FormatError, match="RGB with 8 bits"):
        read_ids(tmp_path / "grey.tif")


class High(Scan):
    """A scan that is made while it is read."""

    def __init__(self, height: int) -> None:
        super().__init__(None, np.zeros((1, 1, 3), dtype=np.uint8))
        self.width, self.height = 300, height

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        return np.zeros((height, width, 3), dtype=np.uint8)


class Dots(Scribbles):
    """Ground, and a few small things in each tile: what is held of them is little."""

    def _one(self, frame: Frame, image: NDArray[Any]) -> PanopticMap:
        ids = np.ones((frame.height, frame.width), dtype=np.int32)
        ids[40:50, 60:70] = 2
        return PanopticMap(ids, (Segment(1, 1, 0.5), Segment(2, 0, 0.5)))


def test_memory_does_not_grow_with_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PICTURE_PIXELS", 10_000)

    def peak(height: int) -> int:
        _RUNTIMES.append(Dots(128))
        tracemalloc.start()
        predict_panoptic(_RUNTIMES[-1], High(height), tmp_path / "a.tif", PredictOptions(batch=2))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    small, large = peak(6000), peak(30_000)
    assert large < 1.7 * small  # what is known of the segments grows
    assert large < 4 * 300 * 30_000 / 2  # of the map alone


def test_a_thing_over_many_rows_of_tiles_is_one(tmp_path: Path) -> None:
    """A crop that reaches over several bands is painted in each of them."""
    mask = MaskCrop(3, 5, np.ones((400, 7), dtype=np.bool_))

    class Long(Scribbles):
        def _one(self, frame: Frame, image: NDArray[Any]) -> PanopticMap:
            y = self._tops[len(self.seen)]
            rows = np.arange(y, y + frame.height)[:, None]
            columns = np.arange(frame.width)
            ids = ((rows >= 5) & (rows < 405) & (columns >= 3) & (columns < 10)).astype(np.int32)
            self.seen.append(PanopticMap(ids, (Segment(1, 0, 0.8),)))
            return self.seen[-1]

        _tops: list[int]

    runtime = Long()
    runtime._tops = [tile.y for tile in lay_tiles((64, 500), (64, 64), 16)]
    _RUNTIMES.append(runtime)
    scan = Scan.of(np.zeros((500, 64, 1), np.uint8))
    stored = predict_panoptic(runtime, scan, tmp_path / "a.tif", PredictOptions(overlap=0.25))
    np.testing.assert_array_equal(read_ids(tmp_path / "a.tif"), core_masks.paste(mask, 500, 64).astype(np.int32))
    assert (stored.areas.tolist(), stored.boxes.tolist()) == ([2800], [[3, 5, 10, 405]])
