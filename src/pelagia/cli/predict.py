"""`pelagia predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pelagia.api import load
from pelagia.cli.common import Json, print_json, say, table
from pelagia.core.image import find_images
from pelagia.errors import ImageError
from pelagia.infer.predict import PredictOptions, objects_of, predict_files
from pelagia.infer.progress import bar
from pelagia.infer.results import ResultWriter, count_classes, draw_result, image_dict, picture_names, relative_names

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
    json: Json = False,
) -> int:
    """Find and count objects in images and scans of any size.

    Writes results.json, results.csv, counts.csv, coco.json and annotated pictures. A file that cannot be read is reported, the
    rest goes on, and the exit code is 1.

    Args:
        model: A run folder, a checkpoint, an .onnx file, or another project's .pt.
        images: Files, folders (searched to every depth) and patterns such as 'scans/*.tif'.
        out: Folder for the results.
        draw: Write annotated pictures.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads; 0 for all cores.
    """
    paths, broken = _find(images)
    predictor = load(model, device=device, threads=threads)
    names = relative_names(paths)
    pictures = picture_names(names)
    totals = [0] * len(predictor.card.categories)
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
                objects = objects_of(result.found, predictor.card)
                totals = [sum(pair) for pair in zip(totals, count_classes(objects, predictor.card), strict=True)]
    counts = dict(zip(predictor.card.class_names, totals, strict=True))
    if json:
        print_json({"out": str(out), "counts": counts, "failed": broken, "images": found})
    else:
        total, done = sum(totals), writer.images
        print(table(["class", "count"], [*counts.items(), ("total", total)]))
        print(f"\n{total} objects in {done} image{'' if done == 1 else 's'}. Results: {out}")
    for line in broken:
        say(f"pelagia: {line}")
    return 1 if broken else 0


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
