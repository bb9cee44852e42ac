"""Which image of a data set a file of predictions belongs to, and lists of maps that are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar, overload

from pelagia.core.image import image_size
from pelagia.core.types import Int
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError, FormatError
from pelagia.infer.result_names import fitting, portable

__all__ = ["ImageStems", "MapList", "check_folder", "known_sizes", "match_files", "refuse_all", "refuse_size", "stem_of"]

_T = TypeVar("_T")

_SEVERAL = -1


def stem_of(name: str) -> str:
    """A file name with forward slashes without its ending: `a/b.c.png` -> `a/b.c`."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.rpartition('.')[0] or last}"


class ImageStems:
    """Images found by their names without ending, which files of predictions are called by.

    A name means the image of the same name, else the only one whose name ends with it, else the one that its own end names: `b`,
    `a/b` and `x/a/b` all mean `a/b.png`, where no other image ends so. Only whole folders are taken away. A whole name
    with its ending (`a/b.png`) means its image, whatever others there are.

    Args:
        names: N image names with forward slashes.
        where: the file or folder of predictions, for errors.
    """

    def __init__(self, names: Sequence[str], where: str | Path) -> None:
        self._where = where
        self._names = {name: index for index, name in enumerate(names)}
        self._whole: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        for index, name in enumerate(names):
            for form in dict.fromkeys((name, portable(name), fitting(portable(name)))):  # as `pelagia predict` calls its files
                self._names.setdefault(form, index)
                stem = stem_of(form)
                _note(self._whole, stem, index)
                while "/" in stem:
                    stem = stem.partition("/")[2]
                    _note(self._ends, stem, index)

    def find(self, stem: str) -> int | None:
        """Index of the image that `stem` means, None if there is none.

        Raises:
            EvaluationError: it means several.
        """
        rest = stem
        index = self._names.get(rest, self._whole.get(rest, self._ends.get(rest)))
        while index is None and "/" in rest:
            rest = rest.partition("/")[2]
            index = self._whole.get(rest)
        if index == _SEVERAL:
            raise EvaluationError(
                f"{stem!r} is the name of several images of the truth, in other folders or with other endings; keep the "
                "predictions in folders like the images', or give each image a name of its own",
                where=self._where,
            )
        return index


def _note(images: dict[str, int], stem: str, index: int) -> None:
    images[stem] = index if images.get(stem, index) == index else _SEVERAL


def match_files(
    files: Iterable[Path], base: Path, names: Sequence[str], *, endings: Sequence[str] = ()
) -> tuple[dict[int, Path], list[str]]:
    """Index of an image in `names` -> its file of predictions, ascending; and the names (without ending) of all other files.

    Args:
        files: files below the folder `base`.
        names: N image names with forward slashes.
        endings: what a file's name may have after the image's, such as `_mask`.

    Raises:
        EvaluationError: no file is called after an image, two files are called after one, or a name means several images.
    """
    stems = ImageStems(names, base)
    found: dict[int, Path] = {}
    others: list[str] = []
    for file in sorted(files):
        stem = stem_of(file.relative_to(base).as_posix())
        index = stems.find(stem)
        for ending in endings:
            if index is None and stem.endswith(ending):
                index = stems.find(stem.removesuffix(ending))
        if index is None:
            others.append(stem)
        elif index in found:
            both = f"{found[index].relative_to(base).as_posix()} and {file.relative_to(base).as_posix()}"
            raise EvaluationError(f"{both} could both be for {names[index]}; keep one of them here", where=base)
        else:
            found[index] = file
    if not found:
        refuse_all(others, names, base)
    return dict(sorted(found.items())), others


def refuse_all(unknown: Sequence[str], names: Sequence[str], where: str | Path) -> NoReturn:
    """Raise an EvaluationError: none of the `unknown` images with predictions is among `names`."""
    if not unknown:
        raise EvaluationError("there is no file of predictions here; check the folder", where=where)
    raise EvaluationError(
        f"none of the {len(unknown)} images with predictions, such as {unknown[0]}, is in the truth, which has {len(names)} "
        f"images, such as {next(iter(names), 'none')}",
        where=where,
    )


def refuse_size(shape: tuple[int, ...], right: tuple[int, ...], image: str, where: Path) -> NoReturn:
    """Raise an EvaluationError: a map [H, W] of that `shape` is predicted for an image of the `right` one."""
    raise EvaluationError(
        f"the prediction has {shape[1]} x {shape[0]} pixels, its image {image} {right[1]} x {right[0]}; predict at the size of "
        "the labelled images",
        where=where,
    )


def check_folder(folder: Path) -> None:
    """Refuse a folder that does not exist.

    Raises:
        FormatError: there is none.
    """
    if not folder.is_dir():
        raise FormatError("this folder does not exist; check the path", where=folder)


def known_sizes(dataset: Dataset, images: Iterable[int]) -> Int:
    """[N, 2] width, height in pixels as `dataset` states them; where it does not, those of `images` come from their files.

    Raises:
        ImageError: such a file is missing or broken.
    """
    sizes = dataset.sizes.copy()
    for index in images:
        if (sizes[index] <= 0).any():
            sizes[index] = image_size(dataset.image_paths[index])
    return sizes


class MapList(Sequence[_T]):
    """N maps, each made by `make(index)` when it is asked for, and every time anew."""

    def __init__(self, make: Callable[[int], _T], count: int) -> None:
        self._make, self._places = make, range(count)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> list[_T]: ...
    def __getitem__(self, index: int | slice) -> _T | list[_T]:
        if isinstance(index, slice):
            return [self._make(place) for place in self._places[index]]
        return self._make(self._places[index])
