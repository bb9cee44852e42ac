"""Finding the images that an annotation file speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pelagia.core.image import IMAGE_SUFFIXES
from pelagia.core.ome_zarr import is_zarr
from pelagia.data.formats.common import Collector, image_files
from pelagia.errors import OptionError

__all__ = ["ImageFinder"]

#: How many names are tried in each folder before one is chosen.
_PROBES = 50

#: The search by bare name ends after this many files.
_INDEX_LIMIT = 500_000


@dataclass(slots=True)
class ImageFinder:
    """Finds image files by the names that annotations give them.

    Args:
        folder: the folder that most names were found in, or the first candidate.
        folders: all candidates, `folder` first.
        search: folder that is searched by bare file name when a name is in none of them.
        avoid: folder whose files are no images to find: label images may be called as the images are.
    """

    folder: Path
    folders: list[Path]
    search: Path
    avoid: Path | None = None
    _index: dict[str, dict[Path, None]] | None = field(default=None)

    @classmethod
    def beside(cls, path: Path, names: Sequence[str], images: Path | None, *, avoid: Path | None = None) -> ImageFinder:
        """A finder for the `names` in the annotation file `path`.

        Candidates are `images` if given; otherwise the file's folder, its `images` and `JPEGImages`, the same of the folder
        above, and folders named after the file (`instances_train2017.json`: `train2017`, `images/train2017`).

        Raises:
            OptionError: `images` is no folder.
        """
        if images is not None and not images.is_dir():
            raise OptionError("images= is no folder", where=images)
        here = path.parent
        candidates = [images] if images is not None else []
        if images is None:
            tokens = [path.stem, *path.stem.split("_"), *path.stem.split("-")]
            for base in (here, here.parent):
                for middle in (base, base / "images", base / "JPEGImages", base / "data"):
                    candidates += [middle, *(middle / token for token in tokens)]
        folders = [folder for folder in dict.fromkeys(candidates) if folder.is_dir() and folder != avoid]
        step = max(1, len(names) // _PROBES)
        probes = [_native(name) for name in names[::step]]
        hits = [sum(_is_there(folder / probe) for probe in probes) for folder in folders]
        if not any(hits):  # names without ending, or with another one
            wanted = {Path(probe).name.lower() for probe in probes} | {Path(probe).stem.lower() for probe in probes}
            hits = [sum(file.stem.lower() in wanted for file in folder.iterdir() if _is_image(file)) for folder in folders]
        order = sorted(range(len(folders)), key=lambda i: -hits[i])
        folders = [folders[i] for i in order] or [here]
        return cls(folders[0], folders, images if images is not None else here, avoid)

    def find(self, name: str, out: Collector) -> Path | None:
        """The file called `name`, or None; see `find_any`."""
        return self.find_any((name,), out)

    def find_any(self, names: Sequence[str], out: Collector) -> Path | None:
        """The first file called by one of `names`, or None.

        A name that no folder holds as it stands is looked up by its last part, whatever its case, folder and ending, if exactly
        one image of that name exists; a finding says so where more than the ending differs.
        """
        for name in names:
            for folder in self.folders:
                candidate = folder / _native(name)
                if _is_there(candidate):
                    return candidate
        if self._index is None:
            self._index = {}
            for place in dict.fromkeys((self.folder, self.search)):
                for file in image_files(place, most=_INDEX_LIMIT):
                    if self.avoid is not None and file.is_relative_to(self.avoid):
                        continue
                    for key in {file.name.lower(), file.stem.lower()}:
                        self._index.setdefault(key, {})[file] = None
        for name in names:
            matches = list(self._index.get(Path(_native(name)).name.lower(), ()))
            if len(matches) == 1:
                if matches[0].stem != Path(_native(name)).stem and matches[0].stem != Path(_native(name)).name:
                    out.note("info", "image.found_elsewhere", f"image {name!r} is taken from {matches[0]}", out.root)
                return matches[0]
        return None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES or (path.is_dir() and is_zarr(path))


def _is_there(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and is_zarr(path))


def _native(name: str) -> str:
    """Forward slashes; the part after the drive letter of a Windows path."""
    plain = name.replace("\\", "/")
    return plain[2:].lstrip("/") if len(plain) > 1 and plain[1] == ":" else plain
