"""The result file of each image: whole or absent, and with what it was made from, so that a run can go on where another stopped.

`results/<name of the image>.json` has two lines of one JSON object:

    {"made": {"version", "model", "runtime", "options", "limits", "image", "map", "picture", "seconds", "failed"},
    "result": {...}}

`result` is the image's entry in results.json. `made` holds the hash of the model, the name of the runtime, the options on which
the result depends, and the stamps (`infer.stamps`) of the image, the label image and the picture. The file is written last, when
what belongs to it is on the disk: where it is, the image is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pelagia.core.card import ModelCard
from pelagia.core.files import remove, write_text
from pelagia.core.types import Instances, PanopticMap, Prediction, SemanticMap
from pelagia.errors import FormatError, ImageError, ModelError, OptionError
from pelagia.infer.map_writer import StoredMap
from pelagia.infer.panoptic_writer import Stored, StoredPanoptic
from pelagia.infer.predict import FileResult
from pelagia.infer.result_maps import has_probabilities, map_suffix, pixels_of, read_map, write_map, write_probabilities
from pelagia.infer.result_names import fitting, portable
from pelagia.infer.result_pictures import draw_result
from pelagia.infer.result_tables import TABLES, dump
from pelagia.infer.result_values import found_in, image_dict, numbered
from pelagia.infer.stamps import Stamp, readable

__all__ = ["OWN_FOLDERS", "RESULTS_FOLDER", "RESULT_VERSION", "ResultFolder"]

#: Raised when a result made by an older Pelagia is no longer what this one would find.
RESULT_VERSION = 1

#: Where the result files lie.
RESULTS_FOLDER = "results"

#: What a task's answers are.
_KINDS: dict[str, tuple[type[Prediction | Stored], ...]] = {
    "semantic": (SemanticMap, StoredMap),
    "panoptic": (PanopticMap, StoredPanoptic),
}

#: Where the maps of a task lie.
_MAP_FOLDERS = {"instance": "labels", "semantic": "semantic", "panoptic": "panoptic"}

#: What a run makes in its folder beside the tables.
OWN_FOLDERS = (RESULTS_FOLDER, "pictures", "probabilities", *_MAP_FOLDERS.values())

_HEAD, _BODY = '{"made":', '"result":'


class ResultFolder:
    """The result files in a folder, and the label images and pictures that belong to them.

    Args:
        folder: where they lie; made when something is written.
        card: of the model.
        made: hash of the model, name of the runtime and options, which a result must have been made with to be used again.
        names: of all images of the run, in order: where two label images would have one name, the first image has it. Names that
            are not among them follow as they come.
    """

    def __init__(self, folder: str | Path, card: ModelCard, *, made: dict[str, Any] | None = None, names: Sequence[str] = ()):
        self.folder = Path(folder)
        self.card = card
        self._made = {"version": RESULT_VERSION, **json.loads(dump(made or {}))}  # as it is read back: lists, not tuples
        self._stems: dict[str, str] = {}
        self._taken: set[str] = set()
        for name in names:
            self._stem(name)

    # Reading

    def why_anew(self, name: str, image: Path) -> str | None:
        """Why the result file of an image cannot be used; None if it can, an empty text if there is none."""
        if not os.path.exists(self._path(name)):
            return ""
        head = self._head(name)
        if head is None:
            return "broken result file"
        if head.get("version") != RESULT_VERSION:
            return "other version of Pelagia"
        if not self._made.get("model") or head.get("model") != self._made["model"]:
            return "other model"
        if head.get("runtime") != self._made.get("runtime"):
            return f"other runtime ({head.get('runtime')})"
        before, now = (found.get("options") or {} for found in (head, self._made))
        differ = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if differ:
            return f"other options ({', '.join(differ)})"
        if head.get("failed") and head.get("limits") != self._made.get("limits"):
            return "other limit, or other extras, for images that were refused"
        stamp = Stamp.from_dict(head.get("image"))
        if stamp is None and head.get("failed") and not readable(image):
            return None  # what cannot be opened has no stamp, and keeps its error while that lasts
        if stamp is None or not stamp.holds(image):
            return "image changed"
        if not self._holds(head.get("probabilities"), "probabilities/"):
            return "probabilities missing or changed"
        return None if self._holds(head.get("map"), self._map_prefix(name)) else "label image missing or changed"

    def lacks_picture(self, name: str, picture: str) -> bool:
        """Whether there was something to draw, and the annotated picture is not the one that was drawn."""
        stored = (self._head(name) or {}).get("picture")
        return "error" not in self.read(name)[0] and (stored is None or not self._holds(stored, f"pictures/{picture}"))

    def read(self, name: str) -> tuple[dict[str, Any], str]:
        """The entry in results.json of an image that has a result file, as values and as text.

        Raises:
            FormatError: the file cannot be read.
        """
        path = self._path(name)
        try:
            text = path.read_text(encoding="utf-8").partition("\n")[2].removeprefix(_BODY)[:-2]
            item: dict[str, Any] = json.loads(text)
        except (OSError, ValueError) as error:
            raise FormatError("not a whole result file; delete it and run again", where=path) from error
        return item, text

    def items(self, names: Iterable[str]) -> Iterator[tuple[dict[str, Any], str]]:
        """`read`, one by one."""
        return map(self.read, names)

    # Writing

    def add(self, result: FileResult, name: str, *, image: Stamp | None = None, picture: str | None = None) -> str | None:
        """Write what came of one file under `name`; returns why there is no picture, if one was wanted and cannot be drawn.

        Args:
            image: the stamp of the image before it was read; without it, the result is not used by later runs.
            picture: where in `pictures/` to draw the result.

        Raises:
            ModelError: it is not what the model's task answers with.
            OptionError: something cannot be written; the image then counts as not finished.
        """
        before = self._head(name) or {}
        head: dict[str, Any] = {**self._made, "image": None if image is None else image.to_dict(), "map": None, "picture": None}
        head |= {"seconds": round(result.seconds, 3), "failed": result.found is None}
        problem = None
        if result.found is None:
            item: dict[str, Any] = {"file": name, "error": portable(result.error or "")}
        else:
            found = self._checked(result.found)
            size = (result.width, result.height)
            item = image_dict(found, name, size, self.card)
            if self.card.task in _MAP_FOLDERS:
                item["map"] = self._map_prefix(name) + map_suffix(found, size)
                write_map(self.folder / item["map"], found, size)
                head["map"] = self._stamped(item["map"])
            if isinstance(found, StoredMap) and found.probabilities == found.path:
                item["probabilities"] = f"{item['map']}/probabilities"  # an array in the Zarr of the map
            elif has_probabilities(found):
                item["probabilities"] = f"probabilities/{self._stem(name)}.tif"
                write_probabilities(self.folder / item["probabilities"], found, size)
                head["probabilities"] = self._stamped(item["probabilities"])
            if picture is not None:
                # From the numbers that are stored, so that a picture drawn later is the same.
                masks = found.masks if isinstance(found, Instances) else None
                drawn = found_in(item, self.card, pixels_of(found), masks=masks)
                head["picture"], problem = self._drawn(replace(result, found=drawn), picture)
        self._write(name, head, dump(item))
        self._remove_replaced(name, before, head)
        return problem

    def draw(self, name: str, image: Path, picture: str) -> str | None:
        """Draw the annotated picture of a finished image; returns why not, if it cannot be drawn."""
        item, text = self.read(name)
        before = self._head(name) or {}
        pixels = read_map(self.folder / item["map"], self.card.task) if self.card.task in ("semantic", "panoptic") else None
        result = FileResult(image, item["width"], item["height"], found_in(item, self.card, pixels))
        drawn, problem = self._drawn(result, picture)
        head = {**before, "picture": drawn}
        self._write(name, head, text)
        self._remove_replaced(name, before, head)
        return problem

    def remove_tables(self) -> None:
        """Take away the tables of an earlier run, which would speak of other results."""
        for name in TABLES:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise OptionError(f"cannot replace this file ({error.strerror or error})", where=self.folder / name) from error

    @property
    def map_folder(self) -> Path | None:
        """Where the maps of the model's task lie; None where it has none."""
        return self.folder / _MAP_FOLDERS[self.card.task] if self.card.task in _MAP_FOLDERS else None

    # Parts

    def _path(self, name: str) -> Path:
        return self.folder / RESULTS_FOLDER / f"{fitting(name)}.json"

    def _head(self, name: str) -> dict[str, Any] | None:
        """What a result was made from; None if the file is missing, cut short or of something else."""
        try:
            with open(self._path(name), "rb") as stream:
                line = stream.readline().decode("utf-8")
                start = stream.read(len(_BODY)).decode("utf-8")
                stream.seek(-3, 2)
                whole = line.startswith(_HEAD) and line.endswith(",\n") and start == _BODY and stream.read() == b"}}\n"
            head = json.loads(line.removeprefix(_HEAD)[:-2]) if whole else None
        except (OSError, ValueError):
            return None
        return head if isinstance(head, dict) else None

    def _write(self, name: str, head: dict[str, Any], text: str) -> None:
        write_text(self._path(name), f"{_HEAD}{dump(head)},\n{_BODY}{text}}}\n")

    def _checked(self, found: Prediction | Stored) -> Prediction | Stored:
        if not isinstance(found, _KINDS.get(self.card.task, (Instances,))):
            raise ModelError(f"the task {self.card.task!r} does not answer with {type(found).__name__}", where=self.card.name)
        return numbered(found)[0] if isinstance(found, PanopticMap) else found

    def _drawn(self, result: FileResult, picture: str) -> tuple[dict[str, Any] | None, str | None]:
        try:
            draw_result(result, self.folder / "pictures" / picture, self.card)
        except ImageError as error:
            return None, f"{result.path}: no picture: {error.reason}"
        return self._stamped(f"pictures/{picture}"), None

    def _stamped(self, file: str) -> dict[str, Any]:
        stamp = Stamp.of(self.folder / file)
        return {"file": file, "stamp": None if stamp is None else stamp.to_dict()}

    def _holds(self, stored: Any, prefix: str) -> bool:
        """Whether a file that belongs to a result is where this run would put it, and as it was written."""
        if stored is None:
            return True
        stamp = Stamp.from_dict(stored.get("stamp"))
        return stored["file"].startswith(prefix) and stamp is not None and stamp.holds(self.folder / stored["file"])

    def _map_prefix(self, name: str) -> str:
        folder = _MAP_FOLDERS.get(self.card.task)
        return "" if folder is None else f"{folder}/{self._stem(name)}."

    def _stem(self, name: str) -> str:
        """The image's own name without its ending; with it where another image has taken the name."""
        if name not in self._stems:
            whole = fitting(name)
            stem = PurePosixPath(whole).with_suffix("").as_posix()
            while stem in self._taken:
                stem = whole if stem != whole and whole not in self._taken else f"{stem}_"
            self._taken.add(stem)
            self._stems[name] = stem
        return self._stems[name]

    def _remove_replaced(self, name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Take away what an earlier result of the image had under another name, or has no more."""
        for kind, prefix in (("map", self._map_prefix(name)), ("probabilities", "probabilities/"), ("picture", "pictures/")):
            old, new = ((head.get(kind) or {}).get("file") for head in (before, now))
            if old and old != new and old.startswith(prefix):  # a map of another stem may be another image's by now
                remove(self.folder / old)
