"""Class maps that are written while they are predicted: the bytes, the counts, the picture, and what is held."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from colours import Colours, noise_picture
from pelagia.api import Predictor
from pelagia.core.files import read_json
from pelagia.core.image import write
from pelagia.core.scan import Scan
from pelagia.core.types import SemanticMap
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError, OptionError
from pelagia.infer import map_writer, preview
from pelagia.infer.folder import FolderRun
from pelagia.infer.map_writer import open_map_writer, predict_map
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.result_maps import read_map


@pytest.mark.parametrize("blend", ["exact", "hann", "cut"])
@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_what_is_written_is_the_map(tmp_path: Path, blend: Any, suffix: str) -> None:
    image, runtime = noise_picture(333, 217), Colours()
    options = PredictOptions(tiling="always", blend=blend)
    expected = predict_image(runtime, image, options, decoding=DecodeOptions(scores=True))
    assert isinstance(expected, SemanticMap)
    target = tmp_path / "deep" / f"map{suffix}"
    stored = predict_map(runtime, Scan.of(image), target, options, probabilities=tmp_path / "deep" / "chances.tif")
    if suffix == ".tif":
        labels, chances = tifffile.imread(target), tifffile.imread(stored.probabilities)
    else:
        group = zarr.open_group(target, mode="r")
        labels, chances = group["0"][:], group["probabilities"][:]
        assert group.attrs["classes"] == ["rock", "sand", "alga"]
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_array_equal(chances, expected.scores)
    np.testing.assert_array_equal(stored.picture.labels, expected.labels)
    assert stored.pixels == tuple(np.bincount(expected.labels.ravel(), minlength=3).tolist())
    assert (stored.way, stored.width, stored.height) == (blend, 333, 217)
    assert len(list(target.parent.iterdir())) == (2 if suffix == ".tif" else 1)  # no temporary file is left


def test_a_large_map_is_a_tiled_tiff_and_its_picture_is_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PICTURE_PIXELS", 3000)
    monkeypatch.setattr(map_writer, "_CLASSIC_BYTES", 1000)  # so that this one needs BigTIFF
    image = noise_picture(300, 200)
    stored = predict_map(Colours(), Scan.of(image), tmp_path / "map.tif", PredictOptions(tiling="always"))
    with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
        assert tiff.is_bigtiff
        assert tiff.pages[0].is_tiled
        assert tiff.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE
    scale, size = preview.picture_size(300, 200)
    rows, columns = preview.nearest((200, 300), scale, size)
    expected = image.argmax(axis=2)[np.ix_(rows, columns)]
    np.testing.assert_array_equal(stored.picture.labels, expected)
    # A picture that is drawn later reads the same pixels from the file.
    np.testing.assert_array_equal(read_map(tmp_path / "map.tif", "semantic"), expected)


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_a_broken_run_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"map{suffix}"
    with pytest.raises(ModelError, match="failed"):
        predict_map(Colours(breaks_at=3), Scan.of(noise_picture(300, 200)), target, PredictOptions(tiling="always", batch=1))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\.tif, \.tiff or \.zarr"):
        predict_map(Colours(), Scan.of(noise_picture(100, 100)), tmp_path / "map.png")
    with (
        pytest.raises(OptionError, match="block of the map is missing"),
        open_map_writer(tmp_path / "map.tif", (64, 32), (32, 32), 1, np.uint8) as put,
    ):
        put(0, 0, np.zeros((1, 32, 32), dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_results_folder_with_streamed_maps(tmp_path: Path) -> None:
    """Scans beside small images: maps, counts and shares, probabilities, pictures; and a second run that has nothing to do."""
    images = {"scan.tif": noise_picture(300, 210), "small.png": noise_picture(60, 50)}
    for name, image in images.items():
        write(tmp_path / "in" / name, image)
    (tmp_path / "model").write_text("weights")

    def run() -> FolderRun:
        return FolderRun(
            Colours(),
            [tmp_path / "in" / name for name in images],
            tmp_path / "out",
            PredictOptions(probabilities=True),
            model=tmp_path / "model",
        )

    first = run()
    first.go(lambda steps, note="": None)
    assert first.predicted == 2
    entries = read_json(tmp_path / "out" / "results.json")["images"]
    assert [(entry["map"], entry.get("blend")) for entry in entries] == [
        ("semantic/scan.tif", "exact"),
        ("semantic/small.png", None),
    ]
    for entry, image in zip(entries, images.values(), strict=True):
        labels = image.argmax(axis=2)
        found = read_map(tmp_path / "out" / entry["map"], "semantic")
        np.testing.assert_array_equal(found, labels)
        assert [each["pixels"] for each in entry["classes"]] == np.bincount(labels.ravel(), minlength=3).tolist()
        chances = tifffile.imread(tmp_path / "out" / entry["probabilities"])
        assert chances.shape == (3, *labels.shape)
        np.testing.assert_allclose(chances.sum(axis=0), 1, atol=1e-5)
        np.testing.assert_array_equal(chances.argmax(axis=0), labels)
    assert sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir()) == ["scan.jpg", "small.jpg"]
    assert [path for path in (tmp_path / "out").rglob(".*") if path.is_file()] == []
    assert run().to_do == 0
    (tmp_path / "out" / "probabilities" / "scan.tif").unlink()
    again = run()
    assert (again.to_do, again.kept) == (1, 1)
    assert dict(again.anew) == {"probabilities missing or changed": 1}


class Wide(Scan):
    """A scan that is made while it is read."""

    def __init__(self, side: int) -> None:
        super().__init__(None, np.zeros((1, 1, 3), dtype=np.uint8))
        self.width = self.height = side

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        rows, columns = np.ogrid[y : y + height, x : x + width]
        return np.stack(np.broadcast_arrays((rows + columns) % 256, (rows * 3) % 256, (columns * 5) % 256), axis=2).astype(
            np.uint8
        )


def peak(path: Path, side: int) -> int:
    tracemalloc.start()
    predict_map(Colours(256), Wide(side), path, PredictOptions(batch=2), probabilities=path.with_name("chances.tif"))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held


def test_memory_does_not_grow_with_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PICTURE_PIXELS", 10_000)
    small, large = (peak(tmp_path / "map.tif", side) for side in (768, 2304))
    assert large < 1.2 * small
    assert large < 3 * 4 * 2304 * 2304  # what the probabilities alone would take


def test_from_python(tmp_path: Path) -> None:
    image = noise_picture(200, 150)
    write(tmp_path / "scan.tif", image)
    stored = Predictor(Colours()).predict_map(tmp_path / "scan.tif", tmp_path / "map.tif", blend="cut")
    assert (stored.way, stored.probabilities) == ("cut", None)
    np.testing.assert_array_equal(tifffile.imread(stored.path), image.argmax(axis=2))
