"""OME-Zarr (NGFF 0.4, which is Zarr 2, and 0.5, which is Zarr 3) at full resolution, in pieces as stored.

The image of a group is its first multiscale, of which the first dataset has the full resolution; of a container of several images
(the layout of bioformats2raw) the first is taken. One channel is grey, three are red, green and blue in that order; a
stack along z or time is refused. A Zarr array without OME metadata is read if it is [H, W] or [H, W, C]. A chunk that is absent
has the fill value, as the Zarr specification says.
"""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.lazy import resolve
from pelagia.errors import ImageError

__all__ = ["ZarrPieces", "is_zarr", "open_zarr"]

#: Names of which one lies in the folder of every Zarr group and array.
_MARKS = ("zarr.json", ".zgroup", ".zarray")

#: What zarr and its codecs raise on broken metadata and chunks.
_BROKEN = (
    ValueError,
    RuntimeError,
    OSError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    MemoryError,
    zlib.error,
    lzma.LZMAError,
)


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array, or is called like one."""
    return folder.suffix.lower() == ".zarr" or any((folder / name).is_file() for name in _MARKS)


@dataclass(frozen=True)
class ZarrPieces:
    """An array in chunks of `rows` x `columns` pixels, cut at the image's border.

    `axes` are the names of the array's axes: `x`, `y`, at most `c`, and others of length 1.
    """

    path: Path
    array: Any
    axes: tuple[str, ...]
    width: int
    height: int
    channels: int
    dtype: np.dtype[Any]
    rows: int
    columns: int

    @property
    def stated(self) -> tuple[int, ...]:
        """Columns, rows and lengths along the other axes of a chunk as the metadata state it; channels count in images."""
        sizes = dict(zip(self.axes, self.array.chunks, strict=True))
        more = {axis: size for axis, size in sizes.items() if axis not in ("y", "x")}
        return (self.columns, self.rows, *(-(-size // self.channels) if axis == "c" else size for axis, size in more.items()))

    def piece(self, row: int, column: int) -> NDArray[Any]:
        """The pixels [h, w, C] of a chunk, or of the chunks of all channels.

        Raises:
            ImageError: its data is broken.
        """
        y, x = row * self.rows, column * self.columns
        return self.window(slice(y, min(y + self.rows, self.height)), slice(x, min(x + self.columns, self.width)))

    def window(self, rows: slice, columns: slice) -> NDArray[Any]:
        """The pixels [h, w, C] of some rows and columns.

        Raises:
            ImageError: the data of a chunk is broken.
        """
        kept = {"y": rows, "x": columns, "c": slice(None)}
        try:
            found = np.asarray(self.array[tuple(kept.get(axis, 0) for axis in self.axes)])
        except _BROKEN as error:
            raise ImageError(
                f"a chunk of rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop} cannot be decoded "
                f"({_told(error)}); copy or save the image again",
                where=self.path,
            ) from error
        left = [axis for axis in self.axes if axis in kept]
        if "c" not in left:
            found, left = found[..., None], [*left, "c"]
        upright = found.transpose([left.index(axis) for axis in "yxc"])
        return np.ascontiguousarray(upright, dtype=self.dtype)


def open_zarr(path: Path) -> ZarrPieces:
    """The image of an OME-Zarr folder, not yet decoded.

    Raises:
        ImageError: no image, a stack, a plate of images, broken metadata, or samples of a kind that is not supported.
        MissingExtraError: the extra `zarr` is not installed.
    """
    if not is_zarr(path):
        raise ImageError("a folder is no image; expected a file, or the folder of an OME-Zarr", where=path)
    zarr = resolve("zarr", purpose="read OME-Zarr")
    try:
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            named = getattr(node.metadata, "dimension_names", None)
            axes = tuple(named) if named and None not in named else ("y", "x", "c")[: node.ndim]
            return _pieces(path, node, axes)
        node, multiscale = _image(zarr, node, path)
        array = node[multiscale["datasets"][0]["path"]]
        listed = multiscale.get("axes") or [*"tczyx"]  # fixed before version 0.3
        axes = tuple(str(axis["name"] if isinstance(axis, dict) else axis) for axis in listed)
        return _pieces(path, array, axes)
    except _BROKEN as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"the metadata of this OME-Zarr are broken ({_told(error)}); copy or save it again", where=path
        ) from error


def _image(zarr: Any, group: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """The group of the image, and its first multiscale."""
    facts = dict(group.attrs)
    facts = facts.get("ome", facts)  # since version 0.5
    if "plate" in facts or "well" in facts:
        raise ImageError(
            "this OME-Zarr is a plate or a well of many images; name one of them, such as plate.zarr/A/1/0", where=path
        )
    if "multiscales" not in facts and "bioformats2raw.layout" in facts:
        group = group["0"]
        facts = dict(group.attrs)
        facts = facts.get("ome", facts)
    if not facts.get("multiscales"):
        inside = ", ".join(sorted(group.keys())[:5]) or "nothing"
        raise ImageError(f"this Zarr group states no image (no 'multiscales'); it holds {inside}", where=path)
    multiscale: dict[str, Any] = facts["multiscales"][0]
    return group, multiscale


def _pieces(path: Path, array: Any, axes: tuple[str, ...]) -> ZarrPieces:
    shape = dict(zip(axes, array.shape, strict=True))
    if not {"y", "x"} <= set(shape) or len(shape) != len(axes):
        raise ImageError(f"its axes are {', '.join(axes) or 'none'}; expected y, x, and c for channels", where=path)
    stack = {axis: size for axis, size in shape.items() if axis not in "cyx" and size != 1}
    if stack:
        told = ", ".join(f"{axis} {size}" for axis, size in stack.items())
        raise ImageError(
            f"this Zarr is a stack of planes ({told}), and flat images are read; save the plane or the projection that you mean "
            "as an image of its own, for example tifffile.imwrite('plane.tif', zarr.open('stack.zarr')['0'][0, :, 0])",
            where=path,
        )
    channels = shape.get("c", 1)
    if channels not in (1, 3):
        raise ImageError(
            f"{channels} channels; one (grey) or three (red, green, blue) are read. Save those that you need as an image of "
            "their own",
            where=path,
        )
    kind = np.dtype(array.dtype)
    if kind.kind != "u" or kind.itemsize > 2:
        raise ImageError(
            f"samples are {kind}; expected 8 or 16 bit unsigned integers. Choose an intensity window and save as 16 bit, "
            "for example np.clip((v - low) / (high - low) * 65535, 0, 65535).astype('uint16')",
            where=path,
        )
    if min(shape["y"], shape["x"]) < 1:
        raise ImageError(f"the metadata state {shape['x']} x {shape['y']} pixels", where=path)
    chunks = dict(zip(axes, array.chunks, strict=True))
    if min(chunks.values()) < 1:
        raise ImageError(f"the metadata state chunks of {list(array.chunks)}; copy or save it again", where=path)
    native = kind.newbyteorder("=")
    return ZarrPieces(path, array, axes, shape["x"], shape["y"], channels, native, chunks["y"], chunks["x"])


def _told(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
