"""What a GPU gets out of prediction: a folder of images from files to boxes, and a scan in tiles.

    python benchmarks/gpu_predict.py                             (all sections, about three minutes on an H100)
    python benchmarks/gpu_predict.py --only predict peer
    python benchmarks/gpu_predict.py --device cpu --small        (a look at the script itself)

Sections, in the order in which they run; `gpu_bench.py` tells what they share:

    predict  YOLO11n on a folder of drawn JPEGs of 1280 x 960 pixels, from files to boxes, and each part by itself; the weights
             are random, and those of `gpu_train.py --only epochs` where it ran before
    tiles    YOLO11n on a drawn scan of 12,000 x 9,000 pixels in tiles of 640 that overlap by a fifth
    peer     Ultralytics through its public calls, on the same folder, if it is installed
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpu_bench import Bench, ask, attempt, build, has_peer, main, peer_weights
from pelagia.core.image import letterbox, read, write
from pelagia.core.scan import Scan, open_scan
from pelagia.core.types import Instances
from pelagia.decode import decode
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files, predict_image
from pelagia.infer.runtimes import cpu_count
from pelagia.infer.views import lay, tile_size, views
from pelagia.models.foreign import load_any
from pelagia.models.runtime import TorchRuntime
from pictures import draw_scan


def predict(bench: Bench) -> None:
    """From files to boxes, and the parts."""
    same = has_peer() and not bench.args.small  # both sides read one file
    size = 64 if bench.args.small else 640
    model = load_any(peer_weights(bench)) if same else build("yolo11n", size)
    for precision in bench.precisions:
        for batch in (8, 32):
            with attempt(f"predict {precision} {batch}", 60):
                _folder_row(bench, TorchRuntime(model, device=bench.device, precision=precision), batch, "random weights")
    if bench.trained is not None:
        with attempt("predict with trained weights", 60):
            _folder_row(bench, TorchRuntime(load_any(bench.trained), device=bench.device), 32, "trained weights")
    with attempt("predict, the parts", 90):
        _parts(bench, TorchRuntime(model, device=bench.device, precision="bfloat16"), 32)


def _folder_row(bench: Bench, runtime: TorchRuntime, batch: int, note: str) -> None:
    options = PredictOptions(score=0.25, batch=batch, tiling="never")
    objects, rates = 0, []
    for turn in range(4):
        begin = time.perf_counter()
        results = list(predict_files(runtime, bench.paths, options))
        if turn:  # the first one records
            rates.append(len(results) / (time.perf_counter() - begin))
        objects = sum(len(item.found) for item in results if isinstance(item.found, Instances))
        assert all(item.error is None for item in results)
    name = runtime.precision
    bench.tell("predict", precision=name, batch=batch, weights=note, images_per_second=statistics.median(rates), objects=objects)


def _parts(bench: Bench, runtime: TorchRuntime, batch: int) -> None:
    card, decoding = runtime.card, PredictOptions().decoding(runtime.card)

    def fit(path: Path) -> Any:
        return letterbox(read(path), card.input_size)

    for threads in sorted({1, cpu_count()}):
        chosen = bench.paths[: max(len(bench.paths) * threads // cpu_count(), 8)]
        with ThreadPoolExecutor(threads) as pool:
            begin = time.perf_counter()
            fitted = list(pool.map(fit, chosen))
            rate = len(chosen) / (time.perf_counter() - begin)
        bench.tell("predict", part="reading and fitting", threads=threads, images_per_second=rate)
    shown = fitted[:batch]
    images, frames = [image for image, _ in shown], [frame for _, frame in shown]
    seconds = bench.seconds(lambda: runtime.run_pixels(images, decoding))
    bench.tell("predict", part="stored pixels to chosen outputs", batch=len(images), images_per_second=len(images) / seconds)
    outputs = runtime.run_pixels(images, decoding)
    normalised = np.random.default_rng(0).random((len(images), 3, *card.input_size), dtype=np.float32)
    seconds = bench.seconds(lambda: runtime.run(normalised))
    everything = runtime.run(normalised)
    bench.tell("predict", part="normalised images to all outputs", batch=len(images), images_per_second=len(images) / seconds)
    travelled = [sum(value.nbytes for value in found.values()) / len(images) / 1e3 for found in (everything, outputs)]
    bench.tell("predict", part="kB of an image that travel back", all_outputs=travelled[0], chosen_outputs=travelled[1])
    for name, found in (("all outputs", everything), ("chosen outputs", outputs)):
        seconds = bench.seconds(partial(decode, found, frames, card, decoding))
        bench.tell("predict", part=f"decoding {name}, one thread", images_per_second=len(images) / seconds)


def tiles(bench: Bench) -> None:
    """In memory, and from files."""
    side = 64 if bench.args.small else 640
    image = draw_scan(*bench.args.scan)
    scans: dict[str, Path | None] = {"in memory": None, "JPEG": bench.out / "scan.jpg", "tiled TIFF": bench.out / "scan.tif"}
    for path in scans.values():
        if path is not None:
            write(path, image)
    model = load_any(bench.trained) if bench.trained is not None else build("yolo11n", side)
    for precision in bench.precisions:
        for place, path in scans.items():
            if precision == "tf32" and path is not None:
                continue
            with attempt(f"tiles {precision} {place}", 60):
                _scan_row(bench, TorchRuntime(model, device=bench.device, precision=precision), side, place, path or image)


def _scan_row(bench: Bench, runtime: TorchRuntime, side: int, place: str, source: Path | np.ndarray) -> None:
    options = PredictOptions(score=0.25, tiling="always", tile=side, overlap=0.2, batch=32)
    size = tile_size(runtime.card, options)
    laid = lay(runtime.card, tuple(bench.args.scan), size, options)
    spent, objects, reading = [], 0, 0.0
    for turn in range(3):
        begin = time.perf_counter()
        with Scan.of(source) if isinstance(source, np.ndarray) else open_scan(source) as scan:
            if turn < 2:
                found = predict_image(runtime, scan, options)
                spent.append(time.perf_counter() - begin)
                objects = len(found) if isinstance(found, Instances) else 0
            else:
                for _ in views(scan, laid, runtime.card, local=False, most=64):
                    pass
                reading = time.perf_counter() - begin
    seconds = min(spent)
    shown = {"precision": runtime.precision, "scan": place, "tiles": len(laid), "objects": objects}
    bench.tell("tiles", **shown, seconds=seconds, tiles_per_second=len(laid) / seconds, reading_alone_s=reading)


def peer(bench: Bench) -> None:
    """The same folder."""
    if not has_peer():
        return
    base = {"action": "folder", "images": str(bench.paths[0].parent), "imgsz": 64 if bench.args.small else 640}
    base |= {"weights": str(peer_weights(bench)), "device": bench.args.device}
    for batch, half, square in ((1, False, True), (32, False, True), (1, True, True), (32, True, True), (32, True, False)):
        if half and not bench.cuda:
            continue
        with attempt(f"peer batch {batch}", 60):
            found = ask(bench, {**base, "batch": batch, "half": half, **({"rect": False} if square else {})}, 60)
            shown = {"batch": batch, "half": half, "square": square}
            bench.tell("peer", **shown, images_per_second=found["images_per_second"], processor_ms=found["processor_ms"])


if __name__ == "__main__":
    main(__doc__, {"predict": (predict, 150), "tiles": (tiles, 150), "peer": (peer, 240)}, images=400)
