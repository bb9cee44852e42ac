"""Scans: a window equals the same cut of the whole image, whatever the layout of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from noise import noise
from pelagia.core import scan as scan_module
from pelagia.core import tiff_pieces
from pelagia.core.image import image_size, orient, read, write
from pelagia.core.scan import Scan, open_scan
from pelagia.core.tiff_pieces import TiffPieces
from pelagia.errors import ImageError, OptionError
from scans import windows


@pytest.fixture(autouse=True)
def _pieces_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "WHOLE_PIXELS", 0)


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (32, 48)},
    "tiles, deflate": {"tile": (32, 32), "compression": "zlib", "predictor": True},
    "tiles, lzw": {"tile": (64, 16), "compression": "lzw"},
    "tiles, lzw, predictor": {"tile": (64, 16), "compression": "lzw", "predictor": True},
    "tiles, zstd": {"tile": (64, 64), "compression": "zstd"},
    "strips": {"rowsperstrip": 7},
    "strips, deflate": {"rowsperstrip": 16, "compression": "zlib"},
    "strips, lzw, predictor": {"rowsperstrip": 5, "compression": "lzw", "predictor": True},
    "strips, packbits": {"rowsperstrip": 1, "compression": "packbits"},
    "one strip": {"rowsperstrip": 100_000},
    "one strip, deflate": {"rowsperstrip": 100_000, "compression": "zlib"},
    "big": {"tile": (32, 32), "bigtiff": True},
    "big, strips, big-endian": {"rowsperstrip": 3, "bigtiff": True, "byteorder": ">"},
    "big-endian": {"tile": (32, 32), "byteorder": ">"},
    "big-endian, deflate": {"rowsperstrip": 9, "byteorder": ">", "compression": "zlib", "predictor": True},
}

#: Decoded whole, as nothing else can be done.
WHOLE = {"one strip, deflate"}


@pytest.mark.parametrize("rows", [4, 256])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, "3, separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_equal_cuts_of_the_whole(
    tmp_path: Path, layout: str, channels: int | str, dtype: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_pieces, "_BLOCK_ROWS", rows)
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"photometric": "minisblack" if channels == 1 else "rgb", "metadata": None, **LAYOUTS[layout]}
    image = noise(101, 150, 1 if channels == 1 else 3, dtype=dtype)
    stored = image[..., 0] if channels == 1 else image
    if channels == "3, separate":
        options["planarconfig"] = "separate"
        stored = np.ascontiguousarray(image.transpose(2, 0, 1))
    tifffile.imwrite(path, stored, **options)
    np.testing.assert_array_equal(read(path), image)
    with open_scan(path) as scan:
        assert isinstance(scan._source, TiffPieces) is (layout not in WHOLE)
        windows(scan, image)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_scans_are_read_in_windows(tmp_path: Path, orientation: int, tiled: bool) -> None:
    path = tmp_path / "a.tif"
    layout: dict[str, Any] = {"tile": (32, 16)} if tiled else {"rowsperstrip": 7, "compression": "zlib"}
    image = noise(70, 90, 3)
    tifffile.imwrite(path, image, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], metadata=None, **layout)
    with open_scan(path) as scan:
        assert isinstance(scan._source, TiffPieces) is (tiled or orientation < 5)
        windows(scan, orient(image, orientation))
        scan.forget(above=40)
        windows(scan, orient(image, orientation), 3)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("kind", ["miniswhite", "palette", "separated", "planar inks", "alpha", "bits", "bits, white is zero"])
def test_meanings_of_samples_are_those_of_the_whole(tmp_path: Path, kind: str, tiled: bool) -> None:
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": (32, 32)} if tiled else {"rowsperstrip": 11}
    options["photometric"] = kind
    image = noise(70, 90)
    if kind == "palette":
        options["colormap"] = noise(3, 256, dtype=np.uint16)
    elif kind == "separated":
        image = noise(70, 90, 4)
    elif kind == "planar inks":
        image = noise(4, 70, 90)
        options |= {"photometric": "separated", "planarconfig": "separate"}
    elif kind == "alpha":
        image = noise(70, 90, 4)
        options |= {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    elif kind.startswith("bits"):
        image = noise(70, 90) > 127
        options["photometric"] = "miniswhite" if "white" in kind else "minisblack"
    tifffile.imwrite(path, image, metadata=None, **options)
    with open_scan(path) as scan:
        assert isinstance(scan._source, TiffPieces)
        windows(scan, read(path))


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("kind", ["grey", "rgb", "ycbcr", "ycbcr 2x2", "ycbcr 2x1", "separate"])
def test_jpeg_in_tiff_is_what_tifffile_decodes(tmp_path: Path, kind: str, tiled: bool) -> None:
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": (32, 48)} if tiled else {"rowsperstrip": 16}
    y, x = np.mgrid[0:101, 0:150]
    image = np.stack([x + y, 200 - x, 2 * y], axis=2).astype(np.uint8)
    if kind.startswith("ycbcr"):
        options |= {"photometric": "ycbcr", "subsampling": {"ycbcr 2x2": (2, 2), "ycbcr 2x1": (2, 1)}.get(kind, (1, 1))}
    elif kind == "separate":
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
        options |= {"photometric": "rgb", "planarconfig": "separate"}
    elif kind == "grey":
        image = image[..., 0]
        options["photometric"] = "minisblack"
    else:
        options["photometric"] = "rgb"
    # tifffile wants what is stored: brightness and colour differences.
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]] if kind.startswith("ycbcr") else image
    tifffile.imwrite(path, stored, compression="jpeg", compressionargs={"level": 95}, metadata=None, **options)
    decoded = tifffile.imread(path)
    expected = decoded.transpose(1, 2, 0) if kind == "separate" else decoded.reshape(101, 150, -1)
    original = image.transpose(1, 2, 0) if kind == "separate" else image.reshape(101, 150, -1)
    assert np.abs(expected.astype(int) - original).mean() < 4  # colours, not brightness and differences
    np.testing.assert_array_equal(read(path), expected)
    with open_scan(path) as scan:
        assert isinstance(scan._source, TiffPieces)
        windows(scan, expected)


# OME-TIFF


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("YX", (70, 90)),
        ("CYX", (1, 70, 90)),
        ("CYX", (3, 70, 90)),
        ("TCZYX", (1, 3, 1, 70, 90)),
        ("YXS", (70, 90, 3)),
        ("SYX", (3, 70, 90)),
    ],
)
@pytest.mark.parametrize(
    "layout", [{"tile": (32, 32), "compression": "zlib"}, {"rowsperstrip": 9, "compression": "lzw"}, {"rowsperstrip": 9}]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ome_tiff_of_one_or_three_channels(tmp_path: Path, axes: str, shape: Any, layout: dict[str, Any], dtype: Any) -> None:
    path = tmp_path / "a.ome.tif"
    data = noise(*shape, dtype=dtype)
    options = dict(layout)
    options["photometric"] = "rgb" if "S" in axes else "minisblack"
    if axes == "SYX":
        options["planarconfig"] = "separate"
    tifffile.imwrite(path, data, ome=True, metadata={"axes": axes}, **options)
    expected = data if axes == "YXS" else data.reshape(-1, 70, 90).transpose(1, 2, 0)
    assert image_size(path) == (90, 70)
    np.testing.assert_array_equal(read(path), expected)
    with open_scan(path) as scan:
        assert isinstance(scan._source, TiffPieces)
        windows(scan, expected)


def test_of_a_pyramid_the_full_resolution_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    data = noise(3, 128, 160)
    with tifffile.TiffWriter(path, ome=True) as writer:
        options: dict[str, Any] = {"tile": (32, 32), "photometric": "minisblack"}
        writer.write(data, subifds=1, metadata={"axes": "CYX"}, **options)
        writer.write(data[:, ::2, ::2], subfiletype=1, **options)
    np.testing.assert_array_equal(read(path), data.transpose(1, 2, 0))
    with open_scan(path) as scan:
        windows(scan, data.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        ("ZYX", (4, 40, 40), r"stack of planes \(z 4\)"),
        ("TCYX", (2, 3, 40, 40), r"stack of planes \(t 2\)"),
        ("TZYX", (2, 5, 40, 40), r"stack of planes \(t 2, z 5\)"),
        ("CYX", (2, 40, 40), "2 channels"),
        ("CYX", (7, 40, 40), "7 channels"),
    ],
)
def test_ome_stacks_and_other_channels_are_refused_with_the_remedy(tmp_path: Path, axes: str, shape: Any, message: str) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, noise(*shape), ome=True, metadata={"axes": axes}, photometric="minisblack")
    for call in (read, image_size, open_scan):
        with pytest.raises(ImageError, match=r"a\.ome\.tif.*" + message + r".*[Ss]ave"):
            call(path)


def test_the_part_of_a_set_of_files_is_its_own_first_page(tmp_path: Path) -> None:
    """The XML names another file for the second channel; it is not opened."""
    path = tmp_path / "a.ome.tif"
    data = noise(2, 40, 40)
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="40" SizeY="40" SizeC="4" SizeZ="1" SizeT="1">'
        '<TiffData FirstC="0" IFD="0" PlaneCount="2"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstC="2" IFD="0" PlaneCount="2"><UUID FileName="../b.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(path, data, description=xml, metadata=None, photometric="minisblack")
    np.testing.assert_array_equal(read(path)[..., 0], data[0])


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


def test_what_lies_above_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = noise(256, 256)
    tifffile.imwrite(path, image, tile=(32, 32), compression="zlib")
    with open_scan(path) as scan:
        scan.read(0, 0, 256, 256)
        scan.forget(above=31)
        assert len(scan._pieces) == 64
        scan.forget(above=100)
        assert len(scan._pieces) == 40
        assert scan._held == 40 * 1024
        np.testing.assert_array_equal(scan.read(0, 0, 256, 256)[..., 0], image)
    Scan.of(image).forget(above=10)
