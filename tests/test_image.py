"""Images: every kind is read right, and broken ones are named."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from noise import noise
from pelagia.core import image as core_image
from pelagia.core.image import decode, encode, find_images, image_size, to_rgb, write
from pelagia.errors import ImageError, OptionError


def read(path: str | Path, **limits: int) -> Any:
    """The image in a file, which its bytes give as well; or the error, of which they have the same."""
    data = None
    with contextlib.suppress(OSError):
        data = Path(path).read_bytes()
    try:
        found = core_image.read(path, **limits)
    except ImageError:
        if data is not None:
            with pytest.raises(ImageError):
                decode(data, **limits)
        raise
    assert data is not None
    np.testing.assert_array_equal(decode(data, **limits), found)
    return found


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)]
    return np.stack(planes, axis=2).astype(np.uint8)


# Reading


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = Image.fromarray(smooth(24, 40))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a{suffix}"
    image.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    found = read(path)
    assert image_size(path) == (found.shape[1], found.shape[0]) == ((40, 24) if orientation < 5 else (24, 40))
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=3 if suffix == ".jpg" else 0)


def test_orientation_in_a_big_endian_png_behind_the_pixels(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(4, 6)).save(stream, "PNG")
    data = stream.getvalue()
    exif = b"MM\0*\0\0\0\x08" + struct.pack(">H", 1) + struct.pack(">HHIHH", 274, 3, 1, 6, 0) + b"\0\0\0\0"
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    path = tmp_path / "a.png"
    path.write_bytes(data[:-12] + chunk + data[-12:])
    np.testing.assert_array_equal(read(path)[..., 0], np.rot90(noise(4, 6), -1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(17, 23, 1), (17, 23, 3), (600, 530, 3), (1, 1, 1)])
def test_what_is_written_lossless_is_read_back(tmp_path: Path, suffix: str, dtype: Any, shape: tuple[int, ...]) -> None:
    image = noise(*shape, dtype=dtype)
    path = tmp_path / f"a{suffix}"
    write(path, image)
    found = read(path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)
    assert image_size(path) == (shape[1], shape[0])


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_are_written_and_read(tmp_path: Path, suffix: str, channels: int) -> None:
    image = np.ascontiguousarray(smooth(40, 60)[..., :channels])
    path = tmp_path / f"a{suffix}"
    write(path, image)
    found = to_rgb(read(path))
    assert image_size(path) == (60, 40)
    assert np.abs(found.astype(int) - to_rgb(image)).max() <= (0 if suffix == ".bmp" else 12)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_modes_of_pillow_over_white(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(noise(30, 20, 4)).convert(mode)
    path = tmp_path / f"a{suffix}"
    image.save(path)
    with Image.open(path) as stored:
        rgba = stored.convert("RGBA")
        expected = np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    found = read(path)
    assert found.shape[2] == (1 if mode in ("1", "L", "LA") else 3)
    assert np.abs(to_rgb(found).astype(int) - expected).max() <= 1


def test_a_palette_with_transparency_is_expanded_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(noise(9, 9) % 3).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = tmp_path / "a.png"
    image.save(path, transparency=1)
    found = read(path)
    colours = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    np.testing.assert_array_equal(found, colours[np.asarray(image)])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "options", [{"subsampling": 0, "quality": 95}, {"subsampling": 1}, {"subsampling": 2, "quality": 30}, {"keep_rgb": True}]
)
def test_a_jpeg_has_the_pixels_that_opencv_gives(tmp_path: Path, progressive: bool, options: dict[str, Any]) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth(97, 131)).save(path, progressive=progressive, **options)
    np.testing.assert_array_equal(read(path), cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))
    Image.fromarray(smooth(97, 131)).convert("L").save(path, progressive=progressive)
    np.testing.assert_array_equal(read(path)[..., 0], cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def test_cmyk_jpeg_looks_as_in_pillow(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth(32, 48)).convert("CMYK").save(path, quality=98)
    with Image.open(path) as stored:
        expected = np.asarray(stored.convert("RGB"))
    assert np.abs(read(path).astype(int) - expected).max() <= 4


def test_tiff_white_is_zero_planar_and_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = noise(12, 10, dtype=np.uint16)
    tifffile.imwrite(path, image, photometric="miniswhite")
    np.testing.assert_array_equal(read(path)[..., 0], 65535 - image)
    planes = noise(3, 12, 10)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read(path), planes.transpose(1, 2, 0))
    tifffile.imwrite(path, np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8), photometric="separated")
    np.testing.assert_array_equal(read(path), [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]])


def test_of_a_stack_the_first_page_is_read(tmp_path: Path) -> None:
    stack = noise(5, 12, 10, dtype=np.uint16)
    for options in ({"imagej": True}, {"photometric": "minisblack"}):
        tifffile.imwrite(tmp_path / "a.tif", stack, **options)
        np.testing.assert_array_equal(read(tmp_path / "a.tif")[..., 0], stack[0])


# Refusing


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9])
def test_a_file_cut_short_is_refused_in_silence(
    tmp_path: Path, suffix: str, keep: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, noise(64, 64, 3))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_embedded_thumbnail_does_not_hide_that_a_jpeg_is_cut(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(thumbnail, "JPEG")
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(64, 64, 3)).save(path, exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail.getvalue())
    assert read(path).shape == (64, 64, 3)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match="cut short"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(50), b"hello", b"\xff\xd8\xff", b"BM", b"II*\0\xff\xff\xff\xff"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for function in (read, image_size):
        with pytest.raises(ImageError, match=r"a\.jpg"):
            function(path)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), suffix=st.sampled_from([".jpg", ".png", ".webp", ".tif", ".bmp"]))
def test_flipped_bytes_never_give_another_exception(
    data: st.DataObject, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    write(path, noise(16, 16, 3))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 300)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    for function in (read, image_size):
        with contextlib.suppress(ImageError):
            function(path)


def test_a_tiff_with_a_tag_of_several_values_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, noise(16, 16, 3))
    content = bytearray(path.read_bytes())
    content[62] = 0  # the number of values of the photometric interpretation
    path.write_bytes(bytes(content))
    with pytest.raises(ImageError):
        read(path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    with pytest.raises(ImageError, match="limit"):
        read(path)
    assert image_size(path) == (60_000, 60_000)
    with pytest.raises(ImageError, match=r"decoded up to 1,073,741,824.*tiled TIFF"):  # whatever the user allows
        read(path, max_pixels=4_000_000_000)
    write(tmp_path / "b.tif", noise(20, 20))
    with pytest.raises(ImageError, match="20 x 20 pixels"):
        read(tmp_path / "b.tif", max_pixels=399)
    assert read(tmp_path / "b.tif", max_pixels=400).shape == (20, 20, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint32])
def test_other_samples_are_refused_with_the_remedy(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 4), dtype))
    with pytest.raises(ImageError, match="save as 16 bit"):
        read(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        read(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="a folder is no image"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_writing_from_the_memory_of_the_image_gives_the_same_file(tmp_path: Path, suffix: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (700, 40, channels), dtype=np.uint8)
    before = image.copy()
    write(tmp_path / f"a{suffix}", image)
    np.testing.assert_array_equal(image, before)
    write(tmp_path / f"b{suffix}", image, overwrite=True)
    assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


def test_writing_refuses_what_a_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="8 bits"):
        write(tmp_path / "a.jpg", noise(4, 4, dtype=np.uint16))
    with pytest.raises(OptionError, match="use one of"):
        write(tmp_path / "a.xyz", noise(4, 4))
    with pytest.raises(OptionError, match="must be"):
        write(tmp_path / "a.png", noise(4, 4, 2))
    with pytest.raises(OptionError, match=r"fit \.jpg"):
        write(tmp_path / "a.jpg", np.zeros((1, 70_000), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_finding_images(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.tif", "b/.hidden.png", ".c/x.png", "note.txt", "b/deep/3.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"")
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert names == ["a.tif", "b/1.jpg", "b/2.PNG", "b/deep/3.webp"]
    assert find_images([str(tmp_path / "b" / "*.jpg"), tmp_path / "b" / "1.jpg"]) == [tmp_path / "b" / "1.jpg"]
    assert find_images(tmp_path / "note.txt") == [tmp_path / "note.txt"]
    assert len(find_images(str(tmp_path / "**" / "*"))) == 4
    with pytest.raises(ImageError, match="no such"):
        find_images(tmp_path / "absent")
    with pytest.raises(ImageError, match="no image"):
        find_images(str(tmp_path / "*.bmp"))


# In memory


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_encoded_bytes_are_those_of_the_file(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    write(tmp_path / f"a{suffix}", image)
    assert encode(image, suffix) == (tmp_path / f"a{suffix}").read_bytes()
    np.testing.assert_array_equal(image, noise(*shape))


def test_what_cannot_be_encoded_is_refused() -> None:
    for image, suffix in (
        (noise(4, 4), ".tif"),
        (noise(4, 4), ".gif"),
        (noise(4, 4, dtype=np.uint16), ".jpg"),
        (noise(4, 4, 2), ".png"),
    ):
        with pytest.raises(OptionError):
            encode(image, suffix)


def test_errors_of_bytes_have_the_name_that_is_given() -> None:
    for data in (b"", b"no image", b"\x89PNG\r\n\x1a\n", b"II*\0", encode(noise(30, 40))[:-20]):
        with pytest.raises(ImageError, match=r"^slide\.png: "):
            decode(data, name="slide.png")
    with pytest.raises(ImageError, match="more than the limit of 1,199"):
        decode(encode(noise(30, 40)), max_pixels=1199)
