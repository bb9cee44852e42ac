"""OME-Zarr 0.4 and 0.5: pixels, windows, axes, missing chunks, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pelagia.core import scan as scan_module
from pelagia.core.image import find_images, image_size, read
from pelagia.core.scan import open_scan
from pelagia.data.label_pixels import read_label_pixels
from pelagia.errors import ImageError, MissingExtraError


@pytest.fixture(autouse=True)
def _pieces_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "WHOLE_PIXELS", 0)


def noise(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(1).integers(1, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def write_ome(
    path: Path, data: NDArray[Any], axes: str, chunks: tuple[int, ...], version: Literal["0.4", "0.5"], **options: Any
) -> Path:
    """An OME-Zarr of one image with a pyramid of two levels."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    for level, pixels in enumerate([data, data[..., ::2, ::2]]):
        array = group.create_array(str(level), shape=pixels.shape, dtype=pixels.dtype, chunks=chunks, **options)
        array[...] = pixels
    kinds = {"c": "channel", "t": "time"}
    multiscale = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": [1.0] * (len(axes) - 2) + [2**level] * 2}],
            }
            for level in (0, 1)
        ],
    }
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": "0.4", **multiscale}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("axes", "shape", "chunks"),
    [
        ("yx", (101, 150), (32, 48)),
        ("cyx", (3, 101, 150), (1, 32, 48)),
        ("cyx", (3, 101, 150), (3, 64, 64)),
        ("cyx", (1, 101, 150), (1, 101, 150)),
        ("tczyx", (1, 3, 1, 101, 150), (1, 1, 1, 50, 50)),
        ("zyx", (1, 101, 150), (1, 32, 32)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.dtype(">u2")])
def test_windows_equal_cuts_of_the_array(tmp_path: Path, version: Any, axes: str, shape: Any, chunks: Any, dtype: Any) -> None:
    data = noise(*shape, dtype=np.dtype(dtype).newbyteorder("=")).astype(dtype)
    path = write_ome(tmp_path / "a.ome.zarr", data, axes, chunks, version)
    channels = 3 if 3 in shape else 1
    expected = data.reshape(channels, 101, 150).transpose(1, 2, 0)
    assert image_size(path) == (150, 101)
    whole = read(path)
    assert whole.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(whole, expected)
    with open_scan(path) as scan:
        assert scan.shape == (101, 150, channels)
        assert scan.dtype == whole.dtype
        rng = np.random.default_rng(0)
        for _ in range(12):
            x, y = int(rng.integers(150)), int(rng.integers(101))
            width, height = int(rng.integers(1, 151 - x)), int(rng.integers(1, 102 - y))
            np.testing.assert_array_equal(scan.read(x, y, width, height), expected[y : y + height, x : x + width])


def test_codecs_and_shards(tmp_path: Path) -> None:
    data = noise(3, 128, 160)
    expected = data.transpose(1, 2, 0)
    blosc, gzip = zarr.codecs.BloscCodec(), zarr.codecs.GzipCodec()
    for number, options in enumerate(
        [{"compressors": None}, {"compressors": blosc}, {"compressors": gzip}, {"shards": (3, 64, 64), "compressors": gzip}]
    ):
        path = write_ome(tmp_path / f"{number}.zarr", data, "cyx", (1, 32, 32), "0.5", **options)
        with open_scan(path) as scan:
            np.testing.assert_array_equal(scan.read(30, 20, 90, 70), expected[20:90, 30:120])


def test_plain_arrays_and_containers(tmp_path: Path) -> None:
    data = noise(40, 60, 3)
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(16, 16, 3))
    np.testing.assert_array_equal(read(tmp_path / "a.zarr"), data)
    turned = np.ascontiguousarray(data.transpose(2, 1, 0))
    zarr.create_array(tmp_path / "b.zarr", data=turned, chunks=(1, 16, 16), dimension_names=["c", "x", "y"])
    np.testing.assert_array_equal(read(tmp_path / "b.zarr"), data)
    container = zarr.open_group(tmp_path / "c.zarr", mode="w", zarr_format=2)
    container.attrs["bioformats2raw.layout"] = 3
    write_ome(tmp_path / "c.zarr" / "0", data.transpose(2, 0, 1), "cyx", (1, 32, 32), "0.4")
    np.testing.assert_array_equal(read(tmp_path / "c.zarr"), data)
    np.testing.assert_array_equal(read(tmp_path / "c.zarr" / "0"), data)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("fill", [0, 9])
def test_a_missing_chunk_has_the_fill_value(tmp_path: Path, version: Any, fill: int) -> None:
    data = noise(64, 64)
    path = write_ome(tmp_path / "a.zarr", data, "yx", (32, 32), version, fill_value=fill)
    chunk = path / ("0/1.0" if version == "0.4" else "0/c/1/0")
    if not chunk.exists():
        chunk = path / "0/1/0"  # nested keys of version 2
    chunk.unlink()
    expected = data.copy()
    expected[32:, :32] = fill
    np.testing.assert_array_equal(read(path)[..., 0], expected)
    with open_scan(path) as scan:
        np.testing.assert_array_equal(scan.read(10, 20, 40, 40)[..., 0], expected[20:60, 10:50])


def damaged(path: Path, how: str) -> None:
    """Break the metadata of a version 0.5 image."""
    group, array = path / "zarr.json", path / "0" / "zarr.json"
    content = json.loads(group.read_text())
    inner = json.loads(array.read_text())
    multiscale = content["attributes"]["ome"]["multiscales"][0]
    if how == "no json":
        group.write_text("{")
        return
    if how == "array gone":
        array.unlink()
        return
    if how == "codec":
        inner["codecs"][0]["name"] = "no such codec"
    elif how == "shape":
        inner["shape"] = [-5, "x"]
    elif how == "chunks":
        inner["chunk_grid"]["configuration"]["chunk_shape"] = [0, 32]
    elif how == "datasets":
        multiscale["datasets"] = []
    elif how == "axes":
        multiscale["axes"] = [{"name": "y"}]
    elif how == "axes of another kind":
        multiscale["axes"] = 7
    group.write_text(json.dumps(content))
    array.write_text(json.dumps(inner))


@pytest.mark.parametrize("how", ["no json", "array gone", "codec", "shape", "chunks", "datasets", "axes", "axes of another kind"])
def test_broken_metadata_are_named(tmp_path: Path, how: str) -> None:
    path = write_ome(tmp_path / "broken.zarr", noise(40, 40), "yx", (32, 32), "0.5")
    damaged(path, how)
    for call in (read, image_size, open_scan):
        with pytest.raises(ImageError, match=r"broken\.zarr.*(copy or save it again|expected y, x)"):
            call(path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 30, b"no chunk at all, but long enough to look like one" * 3])
def test_a_broken_chunk_is_named(tmp_path: Path, version: Any, content: bytes) -> None:
    path = write_ome(tmp_path / "broken.zarr", noise(64, 64), "yx", (32, 32), version)
    chunks = sorted(file for file in (path / "0").rglob("*") if file.is_file() and not file.name.startswith((".", "zarr")))
    chunks[-1].write_bytes(content)
    with open_scan(path) as scan:
        scan.read(0, 0, 32, 32)
        with pytest.raises(ImageError, match=r"broken\.zarr.*rows 32 to 64, columns 32 to 64.*copy or save"):
            scan.read(0, 0, 64, 64)
    with pytest.raises(ImageError, match=r"broken\.zarr"):
        read(path)


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        ("zyx", (4, 20, 20), r"stack of planes \(z 4\)"),
        ("tcyx", (2, 3, 20, 20), r"stack of planes \(t 2\)"),
        ("cyx", (2, 20, 20), "2 channels"),
        ("cyx", (5, 20, 20), "5 channels"),
    ],
)
def test_stacks_and_other_channels_are_refused_with_the_remedy(tmp_path: Path, axes: str, shape: Any, message: str) -> None:
    path = write_ome(tmp_path / "a.zarr", noise(*shape), axes, (1,) * (len(axes) - 2) + (16, 16), "0.4")
    with pytest.raises(ImageError, match=message + r".*[Ss]ave"):
        open_scan(path)


def test_other_samples_plates_and_folders_are_refused(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "f.zarr", np.zeros((20, 20), np.float32), "yx", (16, 16), "0.5")
    with pytest.raises(ImageError, match="float32; expected 8 or 16 bit"):
        read(path)
    group = zarr.open_group(tmp_path / "plate.zarr", mode="w", zarr_format=2)
    with pytest.raises(ImageError, match="states no image"):
        read(tmp_path / "plate.zarr")
    group.attrs["plate"] = {"rows": [], "columns": [], "wells": []}
    with pytest.raises(ImageError, match="plate or a well"):
        read(tmp_path / "plate.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ImageError, match=r"empty\.zarr"):
        read(tmp_path / "empty.zarr")
    with pytest.raises(ImageError, match="a folder is no image"):
        read(tmp_path)


def test_limits(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.zarr", noise(100, 100), "yx", (50, 50), "0.5")
    with pytest.raises(ImageError, match="100 x 100 pixels"):
        read(path, max_pixels=9_999)
    with pytest.raises(ImageError, match=r"pieces of 50 x 50 pixels.*--max-pixels"):
        open_scan(path, max_pixels=2_499)
    with open_scan(path, max_pixels=2_500) as scan:
        assert scan.read(0, 0, 100, 100).shape == (100, 100, 1)
    bomb = json.loads((path / "0" / "zarr.json").read_text())
    bomb["shape"] = [1_000_000_000, 1_000_000_000]
    (path / "0" / "zarr.json").write_text(json.dumps(bomb))
    with pytest.raises(ImageError, match="100 times the limit"):
        open_scan(path)


def test_listing_takes_a_zarr_as_one_image(tmp_path: Path) -> None:
    image = write_ome(tmp_path / "scans" / "a.zarr", noise(20, 20), "yx", (16, 16), "0.4")
    other = write_ome(tmp_path / "scans" / "deep" / "without_ending", noise(20, 20), "yx", (16, 16), "0.5")
    (image / "0" / "hidden.png").write_bytes(b"")
    (tmp_path / "scans" / "z.png").write_bytes(b"")
    assert find_images(tmp_path / "scans") == [image, other, tmp_path / "scans" / "z.png"]
    assert find_images(image) == [image]
    assert find_images(str(tmp_path / "scans" / "*.zarr")) == [image]


def test_without_zarr_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_ome(tmp_path / "a.zarr", noise(20, 20), "yx", (16, 16), "0.5")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtraError, match=r"pelagia\[zarr\]"):
        read(path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("axes", "shape", "chunks", "told"),
    [
        ("yx", (16, 16), (60_000, 60_000), "60000 x 60000"),
        ("tczyx", (1, 1, 1, 16, 16), (60_000, 1, 60_000, 16, 16), "16 x 16 x 60000 x 60000"),
        ("cyx", (3, 16, 16), (60_000_000, 16, 16), "16 x 16 x 20000000"),
    ],
)
def test_a_small_image_in_a_chunk_that_is_stated_to_be_huge_is_a_bomb(
    tmp_path: Path, version: Any, axes: str, shape: Any, chunks: Any, told: str
) -> None:
    path = write_ome(tmp_path / "bomb.zarr", noise(*shape), axes, shape, version)
    read(path, max_pixels=256)  # channels count as one
    open_scan(path, max_pixels=256).close()
    file = path / "0" / (".zarray" if version == "0.4" else "zarr.json")
    content = json.loads(file.read_text())
    if version == "0.4":
        content["chunks"] = chunks
    else:
        content["chunk_grid"]["configuration"]["chunk_shape"] = chunks
    file.write_text(json.dumps(content))
    for call in (read, open_scan):
        with pytest.raises(ImageError, match=rf"bomb\.zarr: stored in pieces of {told} pixels.*1,000,000,000.*--max-pixels"):
            call(path)
    if axes == "yx":
        with pytest.raises(ImageError, match=r"bomb\.zarr: the label image is stored in pieces of 60000 x 60000 pixels"):
            read_label_pixels(path)
