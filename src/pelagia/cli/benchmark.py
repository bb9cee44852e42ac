"""`pelagia benchmark`."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pelagia.api import Predictor, load
from pelagia.cli.common import Json, print_json, say, table
from pelagia.core.image import find_images
from pelagia.core.lazy import resolve
from pelagia.errors import ExportError, MissingExtraError
from pelagia.infer.benchmark import Timing, measure
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Precision, RuntimeKind

__all__ = ["benchmark"]

#: What takes a file of each kind.
_KINDS: dict[str, tuple[RuntimeKind, ...]] = {".onnx": ("onnx", "openvino"), ".xml": ("openvino",)}
_TORCH: tuple[RuntimeKind, ...] = ("torch",)
_EXACT: tuple[Precision, ...] = ("float32",)

#: What the file that is exported for the time of the measurement is called.
_EXPORTED = "EXPORTED.onnx"

#: Drawn images where none are given: how many, and their width and height.
_DRAWN, _DRAWN_SIZE = 8, (1280, 960)


def benchmark(
    model: Path,
    images: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    also: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    batch: Annotated[tuple[int, ...], Parameter(negative=())] = (1, 8),
    precision: Annotated[tuple[Precision, ...], Parameter(negative=())] = ("float32",),
    seconds: float = 5.0,
    device: str = "auto",
    threads: int = 0,
    json: Json = False,
) -> int:
    """Measure each installed runtime on this machine and advise which to use.

    A checkpoint is exported for the time of the measurement, so that ONNX Runtime and OpenVINO can be measured too; the table
    says so if it cannot be. Images per second are those of `predict`, from files to objects, large images in tiles; milliseconds
    those of one image, or tile, by itself.

    Args:
        model: A run folder, a checkpoint, an .onnx, an .xml, or another project's .pt.
        images: Files, folders and patterns; by default drawn JPEGs of 1280 x 960 pixels.
        also: Other files of the same model, such as an int8 .onnx or .xml.
        batch: Images per step, tried in turn on a GPU. On a CPU each core works on an image of its own.
        precision: float32, bfloat16 or (torch on an NVIDIA GPU) tf32, tried in turn in torch and OpenVINO.
        seconds: Length of each measurement; a large image is predicted to its end.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads; 0 for all cores.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = find_images(list(images)) if images else _draw(Path(folder))
        found: list[tuple[str, RuntimeKind, Precision, Timing]] = []
        first = load(model, device=device, threads=threads)
        files, refused = _files(first, model, also, Path(folder))
        for name, predictor, kind, how in _candidates(files, precision, device, threads):
            tried: set[int] = set()
            for size in batch:
                timing = measure(predictor.runtime, paths, PredictOptions(batch=size), seconds=seconds)
                if timing.batch not in tried:
                    tried.add(timing.batch)
                    found.append((name, kind, how, timing))
                    say(f"{name}, {timing.runtime}, batch {timing.batch}: {timing.images_per_second:.1f} images/s")
                if timing.at_once > timing.batch:
                    break  # each core works on an image of its own, whatever the batch
    best = max(found, key=lambda item: item[3].images_per_second)
    if json:
        rows = [{"file": name, "kind": kind, "precision": how, **timing.to_dict()} for name, kind, how, timing in found]
        told = {"images": len(paths), "measured": rows, "refused": refused}
        print_json({**told, "fastest": rows[found.index(best)], "advice": _advice(best)})
        return 0
    header = ["file", "runtime", "batch", "images/s", "reading ms", "network ms", "decoding ms", "network %"]
    print(table(header, [_row(name, timing) for name, _, _, timing in found]))
    for name, reason in refused.items():
        print(f"{name}  cannot be exported: {reason}")
    if any(timing.tiled for *_, timing in found):
        print("\nLarge images were predicted in tiles, as `predict` does; their milliseconds are those of one tile.")
    print(f"\n{_advice(best)}")
    return 0


def _row(name: str, timing: Timing) -> list[object]:
    parts = [f"{value:.1f}" for value in (timing.read_ms, timing.network_ms, timing.decode_ms)]
    return [
        name,
        timing.runtime,
        timing.batch,
        f"{timing.images_per_second:.1f}",
        *parts,
        f"{100 * timing.shares['network']:.0f}",
    ]


def _advice(best: tuple[str, RuntimeKind, Precision, Timing]) -> str:
    name, kind, how, timing = best
    part, share = max(timing.shares.items(), key=lambda item: item[1])
    flags = f" --runtime {kind}" + ("" if how == "float32" else f" --precision {how}")
    return (
        f"Fastest here: pelagia predict {name} IMAGES{flags} with {timing.images_per_second:.1f} images/s; "
        f"{part} is {100 * share:.0f} % of the time of one {'tile' if timing.tiled else 'image'}."
    )


def _draw(folder: Path) -> list[Path]:
    synthetic = resolve("pelagia.data.synthetic", purpose="draw images")
    image = resolve("pelagia.core.image", purpose="write images")
    numpy = resolve("numpy", purpose="draw images")
    paths = [folder / f"{number}.jpg" for number in range(_DRAWN)]
    for number, path in enumerate(paths):
        image.write(path, synthetic.draw_image(numpy.random.default_rng(number), *_DRAWN_SIZE).image)
    return paths


def _files(first: Predictor, model: Path, also: tuple[Path, ...], folder: Path) -> tuple[list[tuple[str, Path]], dict[str, str]]:
    """Names and files to measure, the model exported among them; and names of what cannot be exported -> why."""
    files = [(str(model), first.path or model), *((str(path), path) for path in also)]
    refused: dict[str, str] = {}
    if first.model is not None:
        exported = folder / "model.onnx"
        try:
            resolve("pelagia.export.onnx", purpose="measure other runtimes").export_onnx(first.model, exported)
            files.insert(1, (_EXPORTED, exported))
        except MissingExtraError as error:
            say(f"pelagia: only torch is measured: {error}")
        except ExportError as error:
            refused[_EXPORTED] = error.reason
    return files, refused


def _candidates(
    files: list[tuple[str, Path]], precisions: tuple[Precision, ...], device: str, threads: int
) -> Iterator[tuple[str, Predictor, RuntimeKind, Precision]]:
    """Each file with each runtime that takes it and is installed; the name is what `predict` would be given."""
    for name, path in files:
        for kind in _KINDS.get(path.suffix, _TORCH):
            if kind == "openvino" and importlib.util.find_spec("openvino") is None:
                say("OpenVINO is not installed and not measured: pip install 'pelagia[openvino]'")
                continue
            for how in _EXACT if kind == "onnx" else precisions:
                if how == "tf32" and kind != "torch":
                    continue
                where = device if kind == "torch" or device in ("cpu", "cuda") else "auto"
                yield name, load(path, device=where, threads=threads, runtime=kind, precision=how), kind, how
