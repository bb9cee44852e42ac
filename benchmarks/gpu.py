"""What a GPU gets out of Pelagia: the network alone, a folder of images, a scan, training, and what is left of the card's peak.

    python benchmarks/gpu.py                                     (all sections, about five minutes on an H100)
    python benchmarks/gpu.py --only predict train
    python benchmarks/gpu.py --device cpu --small                (a look at the script itself)

Sections, in the order in which they run:

    peaks    what the card does at its best: matrix products of 8192 in each precision, copies in its memory and to it
    network  YOLO11n and YOLO11x at 640 pixels, the network alone: images/s, TFLOP/s and the share of the measured peak, kernel
             by kernel and replayed as a CUDA graph
    predict  YOLO11n on a folder of drawn JPEGs of 1280 x 960 pixels, from files to boxes, and each part by itself
    tiles    YOLO11n on a drawn scan of 12,000 x 9,000 pixels in tiles of 640 that overlap by a fifth
    nms      50,000 boxes
    train    YOLO11n at 640 and 320 pixels, batch 64, whole epochs; the step alone on one batch
    peer     Ultralytics through its public calls, on the same folder and the same images, if it is installed
    compile  torch.compile instead of a CUDA graph, and of the training step

A section that fails prints why, and the next one begins. Times are medians; the device has finished before a clock is read.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision

from pelagia.core.image import letterbox, read, write
from pelagia.core.nms import nms
from pelagia.core.scan import Scan, open_scan
from pelagia.core.types import Category, Instances
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.decode import decode
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files, predict_image
from pelagia.infer.runtimes import Precision, cpu_count
from pelagia.infer.views import lay, tile_size, views
from pelagia.models import registry
from pelagia.models.foreign import load_any
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime, float32_products
from pelagia.nn.suppression import suppress
from pelagia.train.batch import Batch
from pelagia.train.checkpoint import Progress
from pelagia.train.data import Maker, Plan
from pelagia.train.distributed import Group
from pelagia.train.loop import train as train_run
from pelagia.train.optim import Schedule, choose_settings
from pelagia.train.options import TrainOptions
from pelagia.train.prepare import machine, start_model
from pelagia.train.run import RunFolder
from pelagia.train.step import Engine, build_engine, take_step
from pictures import draw_jpegs, draw_scan

PEER = Path(__file__).with_name("peer_ultralytics.py")
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")


class Bench:
    """What the sections share: the device, the sizes, the measured peaks, and the figures found so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        self.precisions = PRECISIONS if self.cuda else ("float32", "bfloat16")
        self.out: Path = args.out.resolve()
        self.figures: dict[str, list[dict[str, Any]]] = {}
        self.peaks: dict[str, float] = {}
        self._data: Dataset | None = None

    @property
    def data(self) -> Dataset:
        """Drawn JPEGs and their truth."""
        if self._data is None:
            begin = time.perf_counter()
            size = (320, 240) if self.args.small else (1280, 960)
            self._data = draw_jpegs(self.out / "images", self.args.images, size, processes=cpu_count())
            print(f"drew {len(self._data)} JPEGs of {size[0]} x {size[1]} in {time.perf_counter() - begin:.1f} s", flush=True)
        return self._data

    @property
    def paths(self) -> list[Path]:
        """Of the JPEGs."""
        return list(self.data.image_paths)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], *, warm: int = 3, least: int = 3) -> float:
        """Of one call: the median of five blocks of calls."""
        for _ in range(warm):
            work()
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        count = max(round(self.args.seconds / 5 / max(time.perf_counter() - begin, 1e-6)), 1)
        blocks = []
        for _ in range(5 if count > 1 else least):
            begin = time.perf_counter()
            for _ in range(count):
                work()
            self.wait()
            blocks.append((time.perf_counter() - begin) / count)
        return statistics.median(blocks)

    def tell(self, section: str, **figures: Any) -> None:
        """Print a row and keep it."""
        self.figures.setdefault(section, []).append(figures)
        cells = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items())
        print(f"  {section}: " + ", ".join(cells), flush=True)

    def rate(self, images: int, seconds: float, gflops: float, peak: str) -> dict[str, float]:
        """Images/s, TFLOP/s and the share of the measured peak."""
        rate = images / seconds
        found = {"images_per_second": rate, "tflops": rate * gflops / 1000}
        return {**found, "share_of_peak": found["tflops"] / self.peaks[peak]} if peak in self.peaks else found


@contextmanager
def attempt(name: str, seconds: float = 240.0) -> Iterator[None]:
    """A part that may fail or take too long: then it says so, and the next one begins."""

    def late(*_: object) -> None:
        raise TimeoutError(f"{name} took more than {seconds:.0f} s")

    begin = time.perf_counter()
    before = signal.signal(signal.SIGALRM, late)
    left = signal.alarm(0)  # of the section around this part
    signal.alarm(max(min(int(seconds), left or int(seconds)), 1))
    try:
        yield
    except Exception:  # noqa: BLE001  one part must not take the others with it
        print(f"FAILED: {name}\n{traceback.format_exc()}", flush=True)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.alarm(max(int(left - (time.perf_counter() - begin)), 1))
        print(f"  ({name}: {time.perf_counter() - begin:.1f} s)", flush=True)


# Limits of the card


def peaks(bench: Bench) -> None:
    """Matrix products and copies."""
    side = 512 if bench.args.small else 8192
    for precision in bench.precisions:
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = (torch.randn(side, side, device=bench.device, dtype=kind) for _ in range(2))
        with float32_products(tf32=precision == "tf32"):
            seconds = bench.seconds(partial(torch.matmul, a, b))
        bench.peaks[precision] = 2 * side**3 / seconds / 1e12
        bench.tell("peaks", precision=precision, tflops=bench.peaks[precision])
    count = 1 << (24 if bench.args.small else 30)
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.tell("peaks", copy_gb_per_s=2 * count / bench.seconds(lambda: target.copy_(source)) / 1e9)
    host = torch.empty(count // 8, dtype=torch.uint8, pin_memory=bench.cuda)
    part = target[: count // 8]
    bench.tell("peaks", to_device_gb_per_s=len(host) / bench.seconds(lambda: part.copy_(host, non_blocking=True)) / 1e9)
    bench.tell("peaks", to_host_gb_per_s=len(host) / bench.seconds(lambda: host.copy_(part, non_blocking=True)) / 1e9)


# The network alone


def build(name: str, size: int = 640) -> Model:
    """A detector of 80 classes with random weights."""
    torch.manual_seed(0)
    return registry.create(name, tuple(Category(k + 1, f"class {k}") for k in range(80)), "detect", input_size=size)


def gflops(name: str, size: int = 640) -> float:
    """Of one image of `size` pixels square."""
    found = registry.entry(name)
    return found.gflops["detect"] * (size / found.input_size["detect"]) ** 2


def network(bench: Bench) -> None:
    """YOLO11n in every precision, YOLO11x in those that matter."""
    small = bench.args.small
    size = 64 if small else 640
    for name, batches in (("yolo11n", (1, 2) if small else (1, 8, 32, 128)), ("yolo11x", () if small else (1, 8, 32, 128))):
        model = build(name, size)
        for precision in bench.precisions:
            with attempt(f"network {name} {precision}", 90):
                _network_rows(bench, model, name, size, precision, batches)
    if bench.cuda:
        with attempt("network with the algorithms that cuDNN finds fastest", 60):
            torch.backends.cudnn.benchmark = True
            try:
                _network_rows(bench, build("yolo11n", size), "yolo11n", size, "bfloat16", (8, 32), note="cudnn.benchmark")
            finally:
                torch.backends.cudnn.benchmark = False


def _network_rows(
    bench: Bench, model: Model, name: str, size: int, precision: Precision, batches: tuple[int, ...], note: str = ""
) -> None:
    runtime = TorchRuntime(model, device=bench.device, precision=precision)
    ways: dict[str, Callable[[torch.Tensor], object]] = {"eager": runtime._network}
    if runtime._replayed is not None:
        ways["replayed"] = runtime._replayed
    with torch.inference_mode():
        for batch in batches:
            images = torch.rand(batch, 3, size, size, device=bench.device).contiguous(memory_format=torch.channels_last)
            for way, run in ways.items():
                if name == "yolo11x" and way == "eager" and batch not in (1, 32):
                    continue
                seconds = bench.seconds(partial(run, images))
                shown = {"model": name, "precision": precision, "batch": batch, "way": way + (f", {note}" if note else "")}
                bench.tell("network", **shown, **bench.rate(batch, seconds, gflops(name, size), precision))
    if runtime._replayed is not None and not runtime._replayed._works:
        print("  this network could not be recorded", flush=True)


# A folder of images


def predict(bench: Bench) -> None:
    """From files to boxes, and the parts."""
    peer_weights = bench.out / "peer" / "yolo11n.pt"
    size = 64 if bench.args.small else 640
    model = load_any(peer_weights) if peer_weights.is_file() else build("yolo11n", size)
    trained = next(iter(sorted(bench.out.glob("train-*/best.safetensors"), reverse=True)), None)
    for precision in bench.precisions:
        for batch in (8, 32):
            with attempt(f"predict {precision} {batch}", 60):
                _folder_row(bench, TorchRuntime(model, device=bench.device, precision=precision), batch, "random weights")
    if trained is not None:
        with attempt("predict with trained weights", 60):
            _folder_row(bench, TorchRuntime(load_any(trained), device=bench.device), 32, "trained weights")
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


# A scan


def tiles(bench: Bench) -> None:
    """In memory, and from files."""
    side = 64 if bench.args.small else 640
    image = draw_scan(*bench.args.scan)
    scans: dict[str, Path | None] = {"in memory": None, "JPEG": bench.out / "scan.jpg", "tiled TIFF": bench.out / "scan.tif"}
    for path in scans.values():
        if path is not None:
            write(path, image)
    trained = next(iter(sorted(bench.out.glob("train-*/best.safetensors"), reverse=True)), None)
    model = load_any(trained) if trained is not None else build("yolo11n", side)
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


# Suppression


def suppression(bench: Bench) -> None:
    """Sparse and crowded boxes of one class."""
    rng = np.random.default_rng(0)
    count = 500 if bench.args.small else 50_000
    for name, extent in (("sparse", 12_000.0), ("crowded", 1_500.0)):
        corner, size = rng.uniform(0, extent, (count, 2)), rng.uniform(20, 60, (count, 2))
        boxes, scores = np.hstack([corner, corner + size]).astype(np.float32), rng.random(count).astype(np.float32)
        there, values = torch.from_numpy(boxes).to(bench.device), torch.from_numpy(scores).to(bench.device)
        kept = nms(boxes.astype(np.float64), scores.astype(np.float64), 0.5)
        on_device = torchvision.ops.nms(there, values, 0.5)
        ours = bench.seconds(lambda b=boxes, s=scores: nms(b.astype(np.float64), s.astype(np.float64), 0.5))
        device = bench.seconds(lambda b=there, s=values: torchvision.ops.nms(b, s, 0.5))
        grouped = bench.seconds(lambda b=there, s=values: suppress(b[None], s[None], 0.5))
        same = np.array_equal(np.sort(kept), np.sort(on_device.cpu().numpy()))
        shown = {"boxes": count, "how": name, "kept": len(kept), "same": same, "array_side_cpu_ms": 1000 * ours}
        bench.tell("nms", **shown, torchvision_device_ms=1000 * device, suppress_device_ms=1000 * grouped)


# Training


def train(bench: Bench) -> None:
    """Whole epochs, then the step alone."""
    small = bench.args.small
    for size in (64,) if small else (640, 320):
        for amp in ("on", "off") if bench.cuda else ("off",):
            with attempt(f"train {size} {amp}", 100):
                _epochs(bench, size, amp)
    for size in (64,) if small else (640, 320):
        for precision in ("bfloat16", "float32 with TF32", "float32") if bench.cuda else ("float32",):
            for searched in (False, True) if bench.cuda and precision == "bfloat16" else (False,):
                with attempt(f"step {size} {precision}", 60):
                    _step_row(bench, size, precision, searched)


def _batch(bench: Bench) -> int:
    return 4 if bench.args.small else 64


def _options(bench: Bench, size: int, amp: str, **changes: Any) -> TrainOptions:
    workers = 2 if bench.args.small else max(cpu_count() - 2, 1)
    values: dict[str, Any] = {"model": "yolo11n", "imgsz": size, "batch": _batch(bench), "amp": amp, "workers": workers}
    return TrainOptions(
        **{**values, "device": bench.args.device, "out": str(bench.out / f"train-{size}-{amp}-{time.time_ns()}"), **changes}
    )


def _epochs(bench: Bench, size: int, amp: str) -> None:
    epochs = 2 if bench.args.small else 12
    options = _options(bench, size, amp, epochs=epochs, val_every=epochs, save_every=epochs, close_mosaic=0)
    run = train_run(options, bench.data, quiet=True)
    kept = run.history[len(run.history) // 2 :]  # by then each worker has the images in memory
    shown = {"size": size, "batch": options.batch, "amp": amp, "workers": options.workers or 0}
    rate = statistics.median(record["images_per_second"] for record in kept)
    waiting = statistics.median(record["waiting"] for record in kept)
    ap = run.history[-1].get("ap50")
    bench.tell("train", **shown, images_per_second=rate, waiting_share=waiting, loss=run.history[-1]["loss"], ap50=ap)


@contextmanager
def _engine(bench: Bench, size: int, precision: str) -> Iterator[tuple[Engine, Batch, RunFolder]]:
    """A run before its first step, and a batch."""
    options = _options(bench, size, "on" if precision == "bfloat16" else "off", epochs=1)
    data = bench.data.split("train")
    with machine(options, Group()) as device:
        start = start_model(options, data, device)
        progress = Progress(choose_settings(options, options.batch, 100))
        engine = build_engine(options, Group(), start.model, progress, Schedule.of(options, 100))
        maker = Maker(data, options.augment, (size, size), 0, plain_from=10)
        batch = maker.batch(Plan(len(data), options.batch, 0).step(0))
        yield engine, batch.pin_memory() if bench.cuda else batch, RunFolder(bench.out / "step", quiet=True)


def _step_row(bench: Bench, size: int, precision: str, searched: bool) -> None:
    with _engine(bench, size, precision) as (engine, batch, folder):
        step = partial(take_step, engine, batch, folder)
        if bench.cuda:
            torch.backends.cudnn.benchmark = searched
            torch.cuda.reset_peak_memory_stats()
        try:
            if precision == "float32":
                with float32_products(tf32=False):
                    seconds = bench.seconds(step)
            else:
                seconds = bench.seconds(step)
        finally:
            torch.backends.cudnn.benchmark = False
        peak = {"float32 with TF32": "tf32"}.get(precision, precision)
        # Backward takes the products of the forward pass twice: by the weights and by the images.
        found = bench.rate(len(batch.names), seconds, 3 * gflops("yolo11n", size), peak)
        memory = torch.cuda.max_memory_allocated() / 2**30 if bench.cuda else 0.0
        shown = {"size": size, "batch": len(batch.names), "precision": precision, "searched": searched}
        bench.tell("step", **shown, **found, ms=1000 * seconds, memory_gib=memory)
        if bench.cuda and precision == "bfloat16" and not searched:
            _waits(bench, step)
            _profile(bench, step)


def _waits(bench: Bench, step: Callable[[], object]) -> None:
    """Where a step makes the processor wait for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = Counter(f"{Path(item.filename).name}:{item.lineno}" for item in caught if "synchroniz" in str(item.message).lower())
    bench.tell("step", waits=sum(lines.values()), where=dict(lines.most_common(12)))


def _profile(bench: Bench, step: Callable[[], object]) -> None:
    """Time on the device by kernel, and how long the device had nothing to do."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]) as found:
        begin = time.perf_counter()
        for _ in range(3):
            step()
        bench.wait()
        spent = time.perf_counter() - begin
    kernels = [item for item in found.key_averages() if item.self_device_time_total > 0 and item.device_type.name == "CUDA"]
    kernels.sort(key=lambda item: -item.self_device_time_total)
    busy = sum(item.self_device_time_total for item in kernels) / 1e6
    bench.tell("step", busy_share_under_the_profiler=busy / spent, kernels=sum(item.count for item in kernels) // 3)
    for item in kernels[:12]:
        print(f"    {item.self_device_time_total / 3000:8.2f} ms {item.count // 3:5d} x {item.key[:100]}", flush=True)


# The peer


def ask(bench: Bench, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the peer's half of the benchmarks answers, from a process of its own."""
    folder = bench.out / f"peer-{time.time_ns()}"
    folder.mkdir(parents=True)
    question, answer, log = folder / "request.json", folder / "answer.json", folder / "log.txt"
    question.write_text(json.dumps(request))
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, str(PEER), str(question), str(answer)],
            check=False,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            timeout=seconds,
        )
    if done.returncode or not answer.is_file():
        raise RuntimeError(f"the peer failed:\n{log.read_text()[-2000:]}")
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def peer(bench: Bench) -> None:
    """The same folder, the same images."""
    if importlib.util.find_spec("ultralytics") is None:
        print("  the peer is not installed", flush=True)
        return
    weights = peer_weights(bench)
    size = 64 if bench.args.small else 640
    base = {"action": "folder", "images": str(bench.paths[0].parent), "imgsz": size, "weights": str(weights)}
    base |= {"device": bench.args.device}
    for batch, half, square in ((1, False, True), (32, False, True), (1, True, True), (32, True, True), (32, True, False)):
        if half and not bench.cuda:
            continue
        with attempt(f"peer batch {batch}", 60):
            found = ask(bench, {**base, "batch": batch, "half": half, **({"rect": False} if square else {})}, 60)
            shown = {"batch": batch, "half": half, "square": square}
            bench.tell("peer", **shown, images_per_second=found["images_per_second"], processor_ms=found["processor_ms"])
    yolo = bench.out / "yolo"
    if not yolo.exists():
        convert(bench.data, yolo, "yolo")
    for side in (size,) if bench.args.small else (640, 320):
        for amp in (True, False) if bench.cuda else (False,):
            with attempt(f"peer training {side} {amp}", 100):
                _peer_training(bench, yolo / "data.yaml", side, amp)


def peer_weights(bench: Bench) -> Path:
    """Random weights that both sides read."""
    path = bench.out / "peer" / "yolo11n.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "action": "export",
            "architecture": "yolo11n.yaml",
            "imgsz": 640,
            "formats": [],
            "data": "",
            "out": str(path.parent),
        }
        ask(bench, request, 60)
    return path


def _peer_training(bench: Bench, data: Path, size: int, amp: bool) -> None:
    epochs = 2 if bench.args.small else 8
    workers = 2 if bench.args.small else max(cpu_count() - 2, 1)
    request = {"action": "train", "architecture": "yolo11n.yaml", "data": str(data), "epochs": epochs, "imgsz": size}
    request |= {"batch": _batch(bench), "seed": 0, "out": str(bench.out / f"peer-train-{time.time_ns()}"), "val": False}
    arguments = {"amp": amp, "workers": workers, "cache": "ram", "save": False}
    found = ask(bench, {**request, "device": bench.args.device, "arguments": arguments}, 100)
    spent = found["epoch_seconds"]
    images = len(bench.data.split("train"))
    bench.tell(
        "peer",
        training=size,
        batch=_batch(bench),
        amp=amp,
        images_per_second=images / statistics.median(spent[len(spent) // 2 :]),
    )


# torch.compile


def compiled(bench: Bench) -> None:
    """The network by torch.compile, then the training step with a compiled network."""
    size = 64 if bench.args.small else 640
    runtime = TorchRuntime(build("yolo11n", size), device=bench.device, precision="bfloat16")
    for batch in (2,) if bench.args.small else (32,):
        for mode in ("default", "reduce-overhead") if bench.cuda else ("default",):
            with attempt(f"compile batch {batch} {mode}", 75):
                torch.compiler.reset()
                begin = time.perf_counter()
                network = torch.compile(runtime.model, mode=mode, dynamic=False)
                images = torch.rand(batch, 3, size, size, device=bench.device).contiguous(memory_format=torch.channels_last)
                with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16):
                    network(images, None)
                    bench.wait()
                    spent = time.perf_counter() - begin
                    seconds = bench.seconds(partial(network, images, None))
                found = bench.rate(batch, seconds, gflops("yolo11n", size), "bfloat16")
                bench.tell("compile", batch=batch, mode=mode, **found, compiling_s=spent)
    with attempt("compile the training step", 110):
        side = 64 if bench.args.small else 640
        with _engine(bench, side, "bfloat16" if bench.cuda else "float32") as (engine, batch_, folder):
            torch.compiler.reset()
            engine.model.compile(dynamic=False)
            begin = time.perf_counter()
            take_step(engine, batch_, folder)
            bench.wait()
            spent = time.perf_counter() - begin
            seconds = bench.seconds(partial(take_step, engine, batch_, folder))
            found = bench.rate(len(batch_.names), seconds, 3 * gflops("yolo11n", side), "bfloat16")
            bench.tell("compile", training=side, **found, compiling_s=spent)


SECTIONS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "peaks": (peaks, 60),
    "network": (network, 150),
    "train": (train, 200),
    "predict": (predict, 150),
    "tiles": (tiles, 150),
    "nms": (suppression, 40),
    "peer": (peer, 240),
    "compile": (compiled, 300),
}


def main() -> None:
    """Run the sections and keep their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--scan", type=int, nargs=2, default=(12_000, 9_000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement of a repeated call")
    parser.add_argument("--limit", type=float, default=600.0, help="begin no section after so many seconds")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-gpu"))
    args = parser.parse_args()
    if args.small:
        args.images, args.scan, args.seconds = min(args.images, 24), (400, 300), 0.02
    bench = Bench(args)
    bench.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    if set(args.only) & {"train", "predict", "peer", "compile"}:
        with attempt("drawing", 120):  # before the device is in use, since processes are forked
            assert len(bench.data) == args.images
    name = torch.cuda.get_device_name() if bench.cuda else "CPU"
    print(f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, OpenCV {cv2.__version__}", flush=True)
    if "peer" in args.only and importlib.util.find_spec("ultralytics") is not None:
        with attempt("weights of the peer", 90):
            peer_weights(bench)
    for section, (run, seconds) in SECTIONS.items():
        if section not in args.only:
            continue
        if time.perf_counter() - begin > args.limit:
            print(f"{section}: left out, no time is left", flush=True)
            continue
        print(f"== {section}, after {time.perf_counter() - begin:.0f} s", flush=True)
        with attempt(section, seconds):
            run(bench)
        (bench.out / "figures.json").write_text(json.dumps(bench.figures, indent=1))
        if bench.cuda:
            torch.cuda.empty_cache()
    print(f"== done after {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
