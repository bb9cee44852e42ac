"""What an image file says of itself before its pixels: kind, size, channels, depth, EXIF orientation.

Read by hand for JPEG (ITU-T T.81), PNG (third edition, W3C), BMP and WebP (RFC 9649), so that a size costs a few reads, a
decompression bomb is refused before a byte of it is inflated, and the answer never depends on a codec's build options.
TIFF is left to tifffile (`pelagia.core.tiff`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

__all__ = ["Header", "HeaderError", "is_complete", "kind_of", "parse"]

Kind = Literal["jpeg", "png", "bmp", "webp", "tiff"]

#: A metadata segment larger than this is not looked into (EXIF in JPEG is at most 64 KiB).
_EXIF_LIMIT = 1 << 20
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class HeaderError(ValueError):
    """The header is broken or cut short; `pelagia.core.image` turns it into an `ImageError` that names the file."""


@dataclass(frozen=True, slots=True)
class Header:
    """Facts of an image file; `width` and `height` as stored, before the orientation (EXIF 1 to 8) is applied.

    `grey` says that colours are absent, whatever a decoder makes of it, `inks` that a JPEG has four components (CMYK).
    `start` is the offset of a JPEG's first coded data, `length` the least number of bytes that a BMP or WebP must have; 0 where
    they are not known.
    """

    kind: Kind
    width: int
    height: int
    orientation: int = 1
    grey: bool = False
    bits: int = 8
    start: int = 0
    length: int = 0
    inks: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as seen, after the orientation."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file by its first 12 bytes, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "bmp" if head.startswith(b"BM") else None


def parse(stream: BinaryIO, kind: Kind) -> Header:
    """Read the header of a JPEG, PNG, BMP or WebP from its beginning.

    Raises:
        HeaderError: broken or cut short.
    """
    stream.seek(0)
    try:
        header = {"jpeg": _jpeg, "png": _png, "bmp": _bmp, "webp": _webp}[kind](stream)
    except (struct.error, IndexError) as error:
        raise HeaderError("the header is cut short") from error
    if header.width < 1 or header.height < 1:
        raise HeaderError(f"the header states {header.width} x {header.height} pixels")
    return header


def _read(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise HeaderError("the header is cut short")
    return data


def _orientation(tiff: bytes) -> int:
    """Tag 274 of the first directory of an EXIF block, 1 where it is absent or senseless (as every viewer does)."""
    tiff = tiff.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 274 and kind == 3:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _jpeg(stream: BinaryIO) -> Header:
    orientation, frame = 1, (0, 0, 0, 8)
    _read(stream, 2)
    while True:
        byte = _read(stream, 1)[0]
        if byte != 0xFF:  # stray bytes between segments: decoders skip them
            continue
        while byte == 0xFF:
            byte = _read(stream, 1)[0]
        if byte == 0 or byte in _STANDALONE:
            continue
        if byte == 0xD9:
            raise HeaderError("the file ends before any image data")
        (length,) = struct.unpack(">H", _read(stream, 2))
        if length < 2:
            raise HeaderError("a segment states an impossible length")
        if byte in _FRAMES:
            bits, height, width, components = struct.unpack(">BHHB", _read(stream, 6))
            frame = (width, height, components, bits)
            stream.seek(length - 8, 1)
        elif byte == 0xE1 and orientation == 1:
            payload = _read(stream, length - 2)
            if payload.startswith(b"Exif\0\0"):
                orientation = _orientation(payload)
        elif byte == 0xDA:
            if frame[0] == 0:
                raise HeaderError("image data begins before the size is stated")
            width, height, components, bits = frame
            return Header("jpeg", width, height, orientation, components == 1, bits, stream.tell(), inks=components == 4)
        else:
            stream.seek(length - 2, 1)


def _png(stream: BinaryIO) -> Header:
    _read(stream, 8)
    length, name = struct.unpack(">I4s", _read(stream, 8))
    if name != b"IHDR" or length != 13:
        raise HeaderError("the first chunk is not IHDR")
    width, height, bits, colour = struct.unpack(">IIBB", _read(stream, 10))
    stream.seek(7, 1)
    orientation = 1
    while len(head := stream.read(8)) == 8:  # eXIf may follow the pixels, so every chunk's name is looked at
        length, name = struct.unpack(">I4s", head)
        if name == b"IEND":
            break
        if name == b"eXIf" and length <= _EXIF_LIMIT:
            orientation = _orientation(stream.read(length))
            break
        stream.seek(length + 4, 1)
    return Header("png", width, height, orientation, colour in (0, 4), bits)


def _bmp(stream: BinaryIO) -> Header:
    head = _read(stream, 34)
    offset, size = struct.unpack_from("<II", head, 10)
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", head, 18)
    packed = size > 12 and struct.unpack_from("<I", head, 30)[0] not in (0, 3)  # run lengths, or JPEG inside
    row = (width * bits + 31) // 32 * 4
    return Header("bmp", width, abs(height), length=0 if packed else offset + row * abs(height))


def _webp(stream: BinaryIO) -> Header:
    total = 8 + struct.unpack("<4sI4s", _read(stream, 12))[1]
    width = height = 0
    orientation = 1
    while len(head := stream.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        after = stream.tell() + length + (length & 1)
        if name == b"VP8X":
            data = _read(stream, 10)
            width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (4, 7))
            if not data[0] & 0x08:  # no EXIF announced
                break
        elif name == b"EXIF" and length <= _EXIF_LIMIT:
            orientation = _orientation(stream.read(length))
            break
        elif name == b"VP8 " and not width:
            width, height = (value & 0x3FFF for value in struct.unpack("<HH", _read(stream, 10)[6:]))
            break
        elif name == b"VP8L" and not width:
            bits = int.from_bytes(_read(stream, 5)[1:], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            break
        stream.seek(after)
    return Header("webp", width, height, orientation, length=total)


def is_complete(data: bytes, header: Header) -> bool:
    """Whether a file's content reaches its end: JPEG to the end-of-image marker, PNG to IEND, BMP and WebP to their length.

    Decoders fill what is missing with grey and only print a warning, so this is looked at before decoding.
    """
    if header.kind == "jpeg":
        return data.rfind(b"\xff\xd9", header.start) >= 0
    if header.kind != "png":
        return len(data) >= header.length
    offset = 8
    while offset + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        if name == b"IEND":
            return True
        offset += 12 + length
    return False
