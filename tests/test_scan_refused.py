"""Scans that are broken, cut short, too large or not what they state: named and refused, before their memory is taken."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from noise import noise
from pelagia.core import scan as scan_module
from pelagia.core import tiff_pieces
from pelagia.core.image import read, write
from pelagia.core.scan import open_scan
from pelagia.data.label_pixels import read_label_pixels
from pelagia.errors import ImageError, OptionError
from scans import windows


@pytest.fixture(autouse=True)
def _pieces_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "WHOLE_PIXELS", 0)


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
