"""Scans: a window equals the same cut of the whole image, whatever the layout of the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pelagia.core import scan as scan_module
from pelagia.core import tiff_pieces
from pelagia.core.image import image_size, orient, read, write
from pelagia.core.scan import Scan, open_scan
from pelagia.core.tiff_pieces import TiffPieces
from pelagia.data.label_pixels import read_label_pixels
from pelagia.errors import ImageError, OptionError


@pytest.fixture(autouse=True)
def _pieces_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "WHOLE_PIXELS", 0)


def noise(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def windows(scan: Scan, whole: NDArray[Any], count: int = 20) -> None:
    """Random windows of a scan equal the cuts of the whole image."""
    assert scan.shape == whole.shape
    assert scan.dtype == whole.dtype
    rng = np.random.default_rng(0)
    for _ in range(count):
        x, y = int(rng.integers(scan.width)), int(rng.integers(scan.height))
        width, height = int(rng.integers(1, scan.width - x + 1)), int(rng.integers(1, scan.height - y + 1))
        found = scan.read(x, y, width, height)
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole[y : y + height, x : x + width])


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


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg", "zstd"])
@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 8}])
def test_a_broken_piece_in_the_middle_is_named(tmp_path: Path, compression: str, layout: dict[str, Any]) -> None:
    path = tmp_path / "broken.tif"
    tifffile.imwrite(path, noise(128, 128), compression=compression, metadata=None, **layout)
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes([255 if compression == "lzw" else 0]) * count
    path.write_bytes(bytes(data))
    with open_scan(path) as scan, pytest.raises(ImageError, match=r"broken\.tif: piece 5 .*(copy|save)"):
        scan.read(0, 0, 128, 128)
    with pytest.raises(ImageError, match=r"broken\.tif.*(copy|save)"):
        read(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 8}, {"rowsperstrip": 128}])
@pytest.mark.parametrize("ome", [False, True])
def test_a_truncated_file_is_named_and_what_is_there_is_read(
    tmp_path: Path, compression: str | None, layout: dict[str, Any], ome: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_pieces, "_BLOCK_ROWS", 16)
    path = tmp_path / "short.tif"
    image = noise(3, 128, 128) if ome else noise(128, 128)
    options: dict[str, Any] = {"ome": True, "metadata": {"axes": "CYX"}} if ome else {"metadata": None}
    tifffile.imwrite(path, image, compression=compression, photometric="minisblack", **options, **layout)
    with tifffile.TiffFile(path) as file:
        ends = [page.dataoffsets[-1] + page.databytecounts[-1] for page in file.pages]  # type: ignore[union-attr]
    path.write_bytes(path.read_bytes()[: max(ends) - 50])
    with pytest.raises(ImageError, match=r"short\.tif.*(cut short|broken|not a readable)"):
        read(path)
    if ome or (layout == {"rowsperstrip": 128} and compression):
        with pytest.raises(ImageError, match=r"short\.tif.*(cut short|broken|not a readable)"):
            open_scan(path)
        return
    with open_scan(path) as scan:
        np.testing.assert_array_equal(scan.read(0, 0, 128, 40)[..., 0], image[:40])
        with pytest.raises(ImageError, match=r"short\.tif.*cut short.*copy the file again"):
            scan.read(0, 0, 128, 128)


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "png", "webp"])
def test_a_piece_that_states_more_pixels_than_the_file_is_a_bomb(tmp_path: Path, codec: str) -> None:
    """The tile says 64 x 64; what stands in it says much more."""
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, noise(128, 128, 3), tile=(64, 64), photometric="rgb", compression=codec, metadata=None)
    windows_before = read(path)
    with open_scan(path) as scan:
        windows(scan, windows_before, 3)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[2], page.databytecounts[2]  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    piece = bytes(data[offset : offset + count])
    if codec == "jpeg":
        at = piece.index(b"\xff\xc0") + 5
        data[offset + at : offset + at + 4] = struct.pack(">HH", 60_000, 60_000)
    elif codec == "jpeg2000":
        at = piece.index(b"\xff\x4f\xff\x51") + 8
        data[offset + at : offset + at + 8] = struct.pack(">II", 60_000, 60_000)
    elif codec == "png":
        data[offset + 16 : offset + 24] = struct.pack(">II", 60_000, 60_000)
    else:
        assert piece[12:16] == b"VP8L"
        bits = int.from_bytes(piece[21:25], "little") & ~((1 << 28) - 1)
        data[offset + 21 : offset + 25] = (bits | 16_000 | 16_000 << 14).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with open_scan(path) as scan:
        scan.read(0, 0, 64, 64)
        with pytest.raises(
            ImageError, match=r"bomb\.tif: piece 2 .*(60000 x 60000|16001 x 16001) pixels where the file states 64 x 64"
        ):
            scan.read(0, 64, 64, 64)
    with pytest.raises(ImageError, match="states 64 x 64"):
        read(path)


def test_limits_of_pieces_and_of_scans(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(128, 160), tile=(64, 64), compression="zlib")
    with pytest.raises(ImageError, match=r"a\.tif: stored in pieces of 64 x 64 pixels.*4,095.*--max-pixels"):
        open_scan(path, max_pixels=4_095)
    with open_scan(path, max_pixels=4_096) as scan:
        assert scan.read(0, 0, 160, 128).shape == (128, 160, 1)
    tifffile.imwrite(path, noise(640, 640), tile=(16, 16), compression="zlib")
    with pytest.raises(ImageError, match=r"640 x 640 pixels, more than 100 times the limit of 4,095.*--max-pixels"):
        open_scan(path, max_pixels=4_095)
    write(tmp_path / "a.png", noise(30, 40))
    with pytest.raises(ImageError, match=r"30 pixels, more than the limit of 1,199.*--max-pixels"):
        open_scan(tmp_path / "a.png", max_pixels=1_199)
    assert open_scan(tmp_path / "a.png", max_pixels=1_200).shape == (30, 40, 1)


def test_unknown_compression_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 64, 3), photometric="rgb", compression="jpegxl", tile=(32, 32))
    with pytest.raises(ImageError, match=r"compression JPEGXL is not supported; save the image with deflate"):
        open_scan(path)


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


@pytest.mark.parametrize("whole", [0, 1 << 22])
@pytest.mark.parametrize("side", [4096, 65_536])
@pytest.mark.parametrize("tile", [(64, 64), (16, 16)])
def test_a_small_image_in_a_tile_that_is_stated_to_be_huge_is_a_bomb(
    tmp_path: Path, tile: tuple[int, int], side: int, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "WHOLE_PIXELS", whole)
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, noise(64, 64), tile=tile, compression="zlib", metadata=None)
    limit = 1_000_000 if side == 4096 else 1_000_000_000
    read(path, max_pixels=limit)
    open_scan(path, max_pixels=limit).close()
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag in (322, 323):  # TileWidth, TileLength
            file.pages[0].tags[tag].overwrite(side)  # type: ignore[union-attr]
    for open_it in (read, open_scan):
        with pytest.raises(ImageError, match=rf"bomb\.tif: stored in pieces of {side} x {side} pixels.*{limit:,}.*--max-pixels"):
            open_it(path, max_pixels=limit)
    if side == 65_536:
        with pytest.raises(ImageError, match=r"bomb\.tif: the label image is stored in pieces of 65536 x 65536 pixels"):
            read_label_pixels(path)


def test_planes_of_a_tile_count(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    depth = [(65000, 4, 1, 100_000, True)]
    tifffile.imwrite(path, noise(64, 64), tile=(64, 64), compression="zlib", metadata=None, extratags=depth)
    data = path.read_bytes()
    assert data.count(struct.pack("<HHI", 65000, 4, 1)) == 1
    path.write_bytes(data.replace(struct.pack("<HHI", 65000, 4, 1), struct.pack("<HHI", 32998, 4, 1)))  # TileDepth
    for open_it in (read, open_scan):
        with pytest.raises(
            ImageError, match=r"bomb\.tif: stored in pieces of 64 x 64 x 100000 pixels.*409,599,999.*--max-pixels"
        ):
            open_it(path, max_pixels=409_599_999)


def test_rows_of_a_strip_beyond_the_image_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = noise(64, 64)
    tifffile.imwrite(path, image, rowsperstrip=64, compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[278].overwrite(2**32 - 1)  # type: ignore[union-attr]
    np.testing.assert_array_equal(read(path, max_pixels=4096)[..., 0], image)
    np.testing.assert_array_equal(open_scan(path, max_pixels=4096).read(0, 0, 64, 64)[..., 0], image)
