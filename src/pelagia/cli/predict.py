"""`pelagia predict`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pelagia.api import load
from pelagia.cli.common import Json, print_json, say, table
from pelagia.core.image import find_images
from pelagia.errors import ImageError, PelagiaError
from pelagia.infer.folder import FolderRun, Shard
from pelagia.infer.options import PredictOptions
from pelagia.infer.progress import bar
from pelagia.infer.result_files import OWN_FOLDERS
from pelagia.infer.result_names import named_from
from pelagia.infer.result_tables import Totals
from pelagia.infer.runtimes import Precision, RuntimeKind

__all__ = ["predict"]


_OPTIONS = PredictOptions()

#: Seconds between two lines of progress where standard error is no terminal.
_LOG_SECONDS = 60


def _shard(_: Any, tokens: Sequence[Any]) -> Shard:
    return Shard.parse(tokens[0].value)


def predict(
    model: str,
    images: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    options: Annotated[PredictOptions, Parameter(name="*")] = _OPTIONS,
    out: Path = Path("predictions"),
    draw: bool = True,
    shard: Annotated[Shard | None, Parameter(converter=_shard, accepts_keys=False, n_tokens=1)] = None,
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

    Each finished image has a file in results/. Stopped at any moment and called again, the command goes on from there; what was
    made with another model, other options or from another image is made anew. The tables come last and are the same to the byte
    as those of a run that was never stopped.

    Args:
        model: A run folder, a checkpoint, an .onnx, an OpenVINO .xml, or another project's .pt.
        images: Files, folders (searched to every depth) and patterns such as 'scans/*.tif'.
        out: Folder for the results.
        draw: Write annotated pictures.
        shard: Predict only part I of N, given as I/N. All parts write into the same folder; the last one writes the tables.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads; 0 for all cores.
        runtime: What runs the model; auto: torch for a checkpoint, ONNX Runtime for .onnx, OpenVINO for .xml.
        precision: bfloat16 is faster in torch and OpenVINO on processors that have it, and exact to 3 digits only; tf32, of torch
            on an NVIDIA GPU, is between float32 and bfloat16.
    """
    found, broken = _find(images, out)
    predictor = load(model, device=device, threads=threads, runtime=runtime, precision=precision)
    run = FolderRun(predictor.runtime, found, out, options, model=predictor.path, label=Path(model).name, draw=draw, shard=shard)
    for line in _beginning(run):
        say(line)
    try:
        with bar("predicting", run.to_do, show=False if json else None) as advance:
            run.go(advance if json or sys.stderr.isatty() else _Log(run.to_do), say)
    except (KeyboardInterrupt, PelagiaError) as error:
        if isinstance(error, KeyboardInterrupt):
            say("")  # below the ^C of the terminal
        say(f"{run.kept + run.predicted} of {_many(run.own)} are finished in {out}; the same command goes on from there")
        raise
    broken += run.broken
    for line in broken:
        say(f"pelagia: {line}")
    if json:
        _print_json(run, out, broken)
    else:
        print("\n".join([*_count_tables(run.totals), *_ending(run, out)]))
    return 1 if broken else 0


def _print_json(run: FolderRun, out: Path, broken: list[str]) -> None:
    told: dict[str, Any] = {"out": str(out), "complete": run.complete, "predicted": run.predicted, "kept": run.kept}
    told |= {"anew": dict(run.anew), "counts": run.totals.counts}
    if run.totals.shares:
        told["shares"] = run.totals.shares
    print_json({**told, "failed": broken, "images": [item for item, _ in run.files.items(run.told)]})


def _beginning(run: FolderRun) -> list[str]:
    """What of an earlier run is used."""
    lines = []
    if run.kept:
        part = "" if run.shard is None else f" of shard {run.shard}"
        lines.append(f"{run.kept} of {_many(run.own)}{part} are finished; {run.to_do} to predict")
    return lines + [f"{_many(count, 'result')} to make anew: {reason}" for reason, count in sorted(run.anew.items())]


def _ending(run: FolderRun, out: Path) -> list[str]:
    """How much was found, and where it is."""
    images, counts = _many(run.totals.images), run.totals.counts
    sentence = f"{sum(counts.values())} objects in {images}" if counts else f"{images} labelled"
    if run.totals.failed:
        sentence += f", {_many(run.totals.failed, 'more file')} could not be read"
    if run.complete:
        return ["", f"{sentence}. Results: {out}"]
    return [
        "",
        f"{sentence}. Shard {run.shard}, results: {out}",
        f"{run.left} of {_many(len(run.names))} have no result yet; the shard that finishes the last of them writes the tables",
    ]


def _count_tables(totals: Totals) -> list[str]:
    """A table of counts, a table of shares, or both."""
    parts = []
    if totals.counts:
        parts.append(table(["class", "count"], [*totals.counts.items(), ("total", sum(totals.counts.values()))]))
    if totals.shares:
        parts.append(table(["class", "% of pixels"], [(name, f"{100 * share:.2f}") for name, share in totals.shares.items()]))
    return ["\n\n".join(parts)]


def _many(count: int, what: str = "image") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


class _Log:
    """Progress for a log file, where no bar can move: a line a minute."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._said = time.monotonic()

    def __call__(self, steps: int, note: str = "") -> None:
        self._done += steps
        if time.monotonic() - self._said >= _LOG_SECONDS:
            self._said = time.monotonic()
            say(f"{self._done} of {_many(self._total)} predicted, {'the last' if steps else 'now at'} {note}")


def _find(places: list[str], out: Path) -> tuple[dict[Path, Path], list[str]]:
    """Image files, each once, with the folder that each is named from, and what was wrong with the places that hold none.

    Pictures in the results folder are no images.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    broken = []
    own = [out.resolve() / name for name in OWN_FOLDERS]
    for place in places:
        try:
            images = find_images(place)
            folder = named_from(place)
            for path in images:
                whole = path.parent.resolve() / path.name  # a link is an image of its own
                if not any(whole.is_relative_to(made) for made in own):
                    found.setdefault(whole, (path, folder))
        except ImageError as error:
            broken.append(str(error))
    return dict(found.values()), broken
