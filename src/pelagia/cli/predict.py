"""`pelagia predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pelagia.api import load
from pelagia.cli.common import Json, print_json, say, table
from pelagia.core.card import ModelCard
from pelagia.core.image import find_images
from pelagia.core.types import Instances
from pelagia.errors import ImageError
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import FileResult, predict_files
from pelagia.infer.progress import bar
from pelagia.infer.result_pictures import draw_result, picture_names, relative_names
from pelagia.infer.result_values import count_classes, count_pixels
from pelagia.infer.results import ResultWriter, image_dict
from pelagia.infer.runtimes import Precision, RuntimeKind

__all__ = ["predict"]


_OPTIONS = PredictOptions()


def predict(
    model: str,
    images: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    options: Annotated[PredictOptions, Parameter(name="*")] = _OPTIONS,
    out: Path = Path("predictions"),
    draw: bool = True,
    device: str = "auto",
    threads: int = 0,
    runtime: RuntimeKind = "auto",
    precision: Precision = "float32",
    json: Json = False,
) -> int:
    """Find and count objects in images and scans of any size, or label every pixel.

    Writes results.json, results.csv, counts.csv and annotated pictures; beside them coco.json for objects, and label images for
    masks, class maps (semantic/) and panoptic maps (panoptic.json). `evaluate` takes the folder. A file that cannot be read is
    reported, the rest goes on, and the exit code is 1.

    Args:
        model: A run folder, a checkpoint, an .onnx, an OpenVINO .xml, or another project's .pt.
        images: Files, folders (searched to every depth) and patterns such as 'scans/*.tif'.
        out: Folder for the results.
        draw: Write annotated pictures.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads; 0 for all cores.
        runtime: What runs the model; auto: torch for a checkpoint, ONNX Runtime for .onnx, OpenVINO for .xml.
        precision: bfloat16 is faster in torch and OpenVINO on processors that have it, and exact to 3 digits only.
    """
    paths, broken = _find(images)
    predictor = load(model, device=device, threads=threads, runtime=runtime, precision=precision)
    names = relative_names(paths)
    pictures = picture_names(names)
    totals = _Totals(predictor.card)
    found: list[dict[str, Any]] = []
    with (
        bar("predicting", len(paths), show=False if json else None) as advance,
        ResultWriter(out, predictor.card, model=Path(model).name) as writer,
    ):
        for name, picture, result in zip(names, pictures, predict_files(predictor.runtime, paths, options), strict=True):
            writer.add(result, name)
            advance(1, name)
            if json:
                found.append(image_dict(result, name, predictor.card))
            if result.found is None:
                broken.append(f"{result.path}: {result.error}")
            else:
                if draw:
                    draw_result(result, out / "pictures" / picture, predictor.card)
                totals.add(result)
    if json:
        told = {"out": str(out), "counts": totals.counts, **({"shares": totals.shares} if totals.shares else {})}
        print_json({**told, "failed": broken, "images": found})
    else:
        print("\n".join([*totals.lines(), "", f"{totals.sentence(writer.images)}. Results: {out}"]))
    for line in broken:
        say(f"pelagia: {line}")
    return 1 if broken else 0


class _Totals:
    """Objects and pixels of each class over all images."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._counts = [0] * len(card.categories)
        self._pixels = [0] * len(card.categories)
        self._size = 0

    def add(self, result: FileResult) -> None:
        """Count one image."""
        assert result.found is not None
        self._counts = [sum(pair) for pair in zip(self._counts, count_classes(result.found, self._card), strict=True)]
        if not isinstance(result.found, Instances):
            self._pixels = [sum(pair) for pair in zip(self._pixels, count_pixels(result.found, self._card), strict=True)]
            self._size += result.width * result.height

    @property
    def counts(self) -> dict[str, int]:
        """Class -> number of objects, for the classes that are counted."""
        task = self._card.task
        items = zip(self._card.categories, self._counts, strict=True)
        return {item.name: count for item, count in items if task != "semantic" and (item.is_thing or task != "panoptic")}

    @property
    def shares(self) -> dict[str, float]:
        """Class -> share of all pixels, for the classes of maps that are not counted."""
        counted = self.counts
        if self._card.task not in ("semantic", "panoptic"):
            return {}
        names = zip(self._card.class_names, self._pixels, strict=True)
        return {name: round(pixels / max(self._size, 1), 6) for name, pixels in names if name not in counted}

    def lines(self) -> list[str]:
        """A table of counts, a table of shares, or both."""
        parts = []
        if self.counts:
            parts.append(table(["class", "count"], [*self.counts.items(), ("total", sum(self.counts.values()))]))
        if self.shares:
            rows = [(name, f"{100 * share:.2f}") for name, share in self.shares.items()]
            parts.append(table(["class", "% of pixels"], rows))
        return ["\n\n".join(parts)]

    def sentence(self, images: int) -> str:
        """How much was found in so many images."""
        many = f"{images} image{'' if images == 1 else 's'}"
        return f"{sum(self.counts.values())} objects in {many}" if self.counts else f"{many} labelled"


def _find(places: list[str]) -> tuple[list[Path], list[str]]:
    """Image files, each once, and what was wrong with the places that hold none."""
    found: dict[Path, None] = {}
    broken = []
    for place in places:
        try:
            found.update(dict.fromkeys(find_images(place)))
        except ImageError as error:
            broken.append(str(error))
    return list(found), broken
