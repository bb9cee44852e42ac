"""Scans: a window equals the same cut of the whole image, whatever the layout of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.core import scan as scan_module
from pelagia.core.image import read, write
from pelagia.core.scan import Scan, open_scan
from pelagia.core.tiff_pieces import TiffPieces
from pelagia.errors import ImageError, OptionError


@pytest.fixture(autouse=True)
def _pieces_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "WHOLE_PIXELS", 0)


def noise(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (32, 48)},
    "tiles, deflate": {"tile": (32, 32), "compression": "zlib", "predictor": True},
    "tiles, lzw": {"tile": (64, 16), "compression": "lzw"},
    "strips": {"rowsperstrip": 7},
    "strips, deflate": {"rowsperstrip": 16, "compression": "zlib"},
    "one strip": {"rowsperstrip": 100_000},
    "big": {"tile": (32, 32), "bigtiff": True},
    "big-endian": {"tile": (32, 32), "byteorder": ">"},
    "orientation": {"tile": (32, 32), "extratags": [(274, 3, 1, 6, True)]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (1, np.uint16), (3, np.uint16)])
def test_windows_equal_cuts_of_the_whole(tmp_path: Path, layout: str, channels: int, dtype: Any) -> None:
    path = tmp_path / "a.tif"
    image = noise(101, 150, channels, dtype=dtype)
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(path, image if channels == 3 else image[..., 0], photometric=photometric, metadata=None, **LAYOUTS[layout])
    whole = read(path)
    with open_scan(path) as scan:
        assert scan.shape == whole.shape
        assert scan.dtype == dtype
        rng = np.random.default_rng(0)
        for _ in range(20):
            x, y = int(rng.integers(scan.width)), int(rng.integers(scan.height))
            width, height = int(rng.integers(1, scan.width - x + 1)), int(rng.integers(1, scan.height - y + 1))
            found = scan.read(x, y, width, height)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, whole[y : y + height, x : x + width])


@pytest.mark.parametrize("photometric", ["miniswhite", "palette", "separated", "jpeg", "planar", "alpha"])
def test_meanings_of_samples_are_those_of_the_whole(tmp_path: Path, photometric: str) -> None:
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": (32, 32), "photometric": photometric}
    image = noise(70, 90)
    if photometric == "palette":
        options["colormap"] = noise(3, 256, dtype=np.uint16)
    elif photometric == "separated":
        image = noise(70, 90, 4)
    elif photometric == "jpeg":
        image = noise(70, 90, 3)
        options |= {"photometric": "ycbcr", "compression": "jpeg"}
    elif photometric == "planar":
        image = noise(3, 70, 90)
        options |= {"photometric": "rgb", "planarconfig": "separate"}
    elif photometric == "alpha":
        image = noise(70, 90, 4)
        options |= {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(path, image, metadata=None, **options)
    with open_scan(path) as scan:
        np.testing.assert_array_equal(scan.read(10, 20, 60, 45), read(path)[20:65, 10:70])


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_other_formats_are_held_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, noise(40, 60, 3))
    with open_scan(path) as scan:
        np.testing.assert_array_equal(scan.read(5, 6, 20, 10), read(path)[6:16, 5:25])


@settings(deadline=None, max_examples=20)
@given(x=st.integers(-2, 12), y=st.integers(-2, 12), width=st.integers(-1, 12), height=st.integers(-1, 12))
def test_windows_outside_are_refused(x: int, y: int, width: int, height: int) -> None:
    scan = Scan.of(noise(8, 10))
    if x >= 0 and y >= 0 and 1 <= width <= 10 - x and 1 <= height <= 8 - y:
        assert scan.read(x, y, width, height).shape == (height, width, 1)
    else:
        with pytest.raises(OptionError, match="window"):
            scan.read(x, y, width, height)


def test_the_cache_is_bounded_and_a_piece_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(256, 256), tile=(32, 32), compression="zlib")
    calls: list[tuple[int, int]] = []
    original = TiffPieces.piece

    def counted(pieces: TiffPieces, row: int, column: int) -> NDArray[Any]:
        calls.append((row, column))
        return original(pieces, row, column)

    monkeypatch.setattr(TiffPieces, "piece", counted)
    with open_scan(path) as scan:
        for _ in range(3):
            scan.read(0, 0, 256, 256)
        assert len(calls) == 64
    monkeypatch.setattr(scan_module, "CACHE_BYTES", 5 * 1024)
    with open_scan(path) as scan:
        scan.read(0, 0, 256, 256)
        assert len(scan._pieces) == 5


def test_a_huge_file_is_never_decoded_whole(tmp_path: Path) -> None:
    """40,000 x 30,000 pixels, all pieces but two left out of the file."""
    path = tmp_path / "a.tif"

    def tiles() -> Any:
        for index in range(30 * 40):
            yield np.full((1024, 1024), 7 if index == 41 else 0, np.uint8) if index in (0, 41) else None

    tifffile.imwrite(path, tiles(), shape=(30_000, 40_000), dtype=np.uint8, tile=(1024, 1024), photometric="minisblack")
    with pytest.raises(ImageError, match="limit"):
        read(path)
    with open_scan(path) as scan:
        assert (scan.width, scan.height) == (40_000, 30_000)
        window = scan.read(1000, 1000, 100, 100)[..., 0]
    assert (window[24:, 24:] == 7).all()
    assert (window[:24] == 0).all()


def test_broken_pieces_closed_scans_and_one_piece_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(128, 128), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[5]  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(bytes(data))
    scan = open_scan(path)
    with pytest.raises(ImageError, match="piece 5"):
        scan.read(0, 0, 128, 128)
    scan.close()
    with pytest.raises(OptionError, match="closed"):
        scan.read(0, 0, 1, 1)
    tifffile.imwrite(path, noise(50, 50), rowsperstrip=50, compression="zlib")
    with pytest.raises(ImageError, match="tiled TIFF"):
        open_scan(path, max_pixels=100)
    with pytest.raises(ImageError, match="does not exist"):
        open_scan(tmp_path / "absent.tif")
