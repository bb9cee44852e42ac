"""What prediction leaves behind: JSON, CSV, COCO, counts, label images and annotated pictures.

A results folder holds

    results/       one file per image, written when the image is finished: what a run goes on from (`infer.result_files`)
    results.json   model, classes, and per image what was found or the reason why it could not be read
    results.csv    one row per object, segment or class of an image, for R, pandas and spreadsheets
    counts.csv     objects per image (row) and class (column); for maps also pixels or shares
    coco.json      objects: images, categories and annotations with `score`, for annotation tools
    labels/        instance: images whose pixels are the numbers of objects in results.csv, 0 = background
    semantic/      class maps: the value of a pixel is a position in categories.json beside the folder, 255 = no class
    panoptic.json  panoptic: COCO's list of segments, and `panoptic/` with its PNG
    pictures/      the images with what was found

`pelagia evaluate` takes the folder or its results.json. All coordinates are pixels of the original image, (0, 0) its outer
top-left corner; angles are radians, clockwise on the screen. Files of images are written as they are finished, tables
(`infer.result_tables`) at the end from the files in `results/`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from pelagia.core.card import ModelCard
from pelagia.infer.predict import FileResult
from pelagia.infer.result_files import ResultFolder
from pelagia.infer.result_tables import write_tables

__all__ = ["ResultWriter"]


class ResultWriter:
    """Writes a results folder while predictions come in; tables appear whole when it is left, files of an image at once.

    Interrupted by the user, it still writes what is there and marks it `"complete": false`; any other exception leaves no table.
    """

    def __init__(self, folder: str | Path, card: ModelCard, *, model: str = "") -> None:
        self._files = ResultFolder(folder, card)
        self._names: list[str] = []
        self._model = model

    def __enter__(self) -> Self:
        self._files.remove_tables()
        return self

    def add(self, result: FileResult, name: str) -> None:
        """Write what came of one file under `name`.

        Raises:
            ModelError: it is not what the model's task answers with.
        """
        self._files.add(result, name)
        self._names.append(name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            files = self._files
            write_tables(files.folder, files.card, files.items(self._names), model=self._model, complete=kind is None)
