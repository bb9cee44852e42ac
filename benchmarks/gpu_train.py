"""What a GPU gets out of training: YOLO11n in batches of 64, at 640 and 320 pixels.

    python benchmarks/gpu_train.py                               (all sections, about eight minutes on an H100; set --limit)
    python benchmarks/gpu_train.py --only peaks step graphs
    python benchmarks/gpu_train.py --device cpu --small          (a look at the script itself)

Sections, in the order in which they run; `gpu_bench.py` tells what they share:

    peaks    what the card does at its best, for the shares of it
    step     the step alone on one batch, and in bfloat16 where it makes the processor wait and what the device does meanwhile
    graphs   the same step with the network's passes, forward and back, recorded as CUDA graphs; the loss stays as it is
    compile  the same step with the network by torch.compile
    peer     Ultralytics through its public calls, on drawn JPEGs of 1280 x 960 pixels, if it is installed
    epochs   whole epochs of the same images
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpu_bench import Bench, ask, attempt, gflops, has_peer, main, peaks
from pelagia.data.convert import convert
from pelagia.infer.runtimes import cpu_count
from pelagia.models.model import Model, Targets
from pelagia.models.runtime import float32_products
from pelagia.nn.intensities import to_network
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


def sizes(bench: Bench) -> tuple[int, ...]:
    """Sides of the images, in pixels."""
    return (64,) if bench.args.small else (640, 320)


def batch_size(bench: Bench) -> int:
    """Images of a step, on both sides."""
    return 4 if bench.args.small else 64


def worker_count(bench: Bench) -> int:
    """Processes that make samples, on both sides."""
    return 2 if bench.args.small else max(cpu_count() - 2, 1)


def run_options(bench: Bench, size: int, amp: str, **changes: Any) -> TrainOptions:
    """Of a run of YOLO11n."""
    values: dict[str, Any] = {"model": "yolo11n", "imgsz": size, "batch": batch_size(bench), "amp": amp}
    values |= {"workers": worker_count(bench), "device": bench.args.device, "windows": "never"}
    return TrainOptions(**{**values, "out": str(bench.out / f"train-{size}-{amp}-{time.time_ns()}"), **changes})


# The step alone


def steps(bench: Bench) -> None:
    """In every precision."""
    for size in sizes(bench):
        for precision in ("bfloat16", "float32 with TF32", "float32") if bench.cuda else ("float32",):
            for searched in (False, True) if bench.cuda and precision == "bfloat16" else (False,):
                with attempt(f"step {size} {precision}", 60):
                    _step_row(bench, size, precision, searched)


@contextmanager
def _engine(bench: Bench, size: int, precision: str) -> Iterator[tuple[Engine, Batch, RunFolder]]:
    """A run before its first step, and a batch."""
    options = run_options(bench, size, "on" if precision == "bfloat16" else "off", epochs=1)
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
        try:
            with float32_products(tf32=False) if precision == "float32" else nullcontext():
                _rate_row(bench, "step", step, size, precision, {"searched": searched})
        finally:
            torch.backends.cudnn.benchmark = False
        if bench.cuda and precision == "bfloat16" and not searched:
            _waits(bench, step)
            _profile(bench, step)


def _rate_row(bench: Bench, section: str, step: Callable[[], object], size: int, precision: str, shown: dict[str, Any]) -> None:
    """Images/s of a step, its share of the peak, and its memory."""
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, images = bench.seconds(step), batch_size(bench)
    peak = {"float32 with TF32": "tf32"}.get(precision, precision)
    # Backward takes the products of the forward pass twice: by the weights and by the images.
    found = bench.rate(images, seconds, 3 * gflops("yolo11n", size), peak)
    memory = torch.cuda.max_memory_allocated() / 2**30 if bench.cuda else 0.0
    shown = {"size": size, "batch": images, "precision": precision, **shown}
    bench.tell(section, **shown, **found, ms=1000 * seconds, memory_gib=memory)


def _waits(bench: Bench, step: Callable[[], object]) -> None:
    """Where a step makes the processor wait for the device: once, for the terms of the loss."""
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
    busy = sum(item.self_device_time_total for item in kernels) / 3e6
    bench.tell(
        "step",
        device_ms=1000 * busy,
        busy_share_under_the_profiler=3 * busy / spent,
        kernels=sum(item.count for item in kernels) // 3,
    )
    for item in kernels[:12]:
        print(f"    {item.self_device_time_total / 3000:8.2f} ms {item.count // 3:5d} x {item.key[:100]}", flush=True)


# The step with fewer starts of kernels


class _Plain(nn.Module):
    """A model whose outputs are a tuple, which can be recorded."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.names: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(images)
        self.names = tuple(outputs)
        return tuple(outputs.values())


def graphs(bench: Bench) -> None:
    """The network's passes recorded as CUDA graphs."""
    if not bench.cuda:
        print("  a CPU records nothing", flush=True)
        return
    for size in sizes(bench)[::-1]:
        for precision in ("bfloat16", "float32 with TF32"):
            with attempt(f"graphs {size} {precision}", 60), _engine(bench, size, precision) as (engine, batch, folder):
                take_step(engine, batch, folder)  # the libraries are set up
                _record(engine, batch)
                _rate_row(bench, "graphs", partial(take_step, engine, batch, folder), size, precision, {})


def _record(engine: Engine, batch: Batch) -> None:
    """Put recorded passes in the place of the model's own."""
    model = engine.model
    images = to_network(batch.images, model.card.normalisation, engine.device)
    plain = _Plain(model).train()
    with torch.autocast(engine.device.type, engine.precision, enabled=engine.precision is not None, cache_enabled=False):
        recorded = torch.cuda.make_graphed_callables(plain, (images,))

    def forward(images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        return dict(zip(plain.names, recorded(images), strict=True))

    # The recorded passes are those of the original; the model's name for them now starts the recording.
    model.forward = forward  # type: ignore[method-assign]


def compiled(bench: Bench) -> None:
    """The network by torch.compile."""
    for size in sizes(bench)[::-1]:
        precision = "bfloat16" if bench.cuda else "float32"
        with attempt(f"compile {size}", 110), _engine(bench, size, precision) as (engine, batch, folder):
            torch.compiler.reset()
            engine.model.compile(dynamic=False)
            begin = time.perf_counter()
            take_step(engine, batch, folder)
            bench.wait()
            spent = time.perf_counter() - begin
            _rate_row(bench, "compile", partial(take_step, engine, batch, folder), size, precision, {"compiling_s": spent})


# Whole runs


def epochs(bench: Bench) -> None:
    """Twelve epochs, from files."""
    for amp in ("on", "off") if bench.cuda else ("off",):
        for size in sizes(bench):
            with attempt(f"epochs {size} {amp}", 100):
                _epochs_row(bench, size, amp)


def _epochs_row(bench: Bench, size: int, amp: str) -> None:
    count = 2 if bench.args.small else 12
    options = run_options(bench, size, amp, epochs=count, val_every=count, save_every=count, close_mosaic=0)
    run = train_run(options, bench.data, quiet=True)
    kept = run.history[len(run.history) // 2 :]  # by then each worker has the images in memory
    shown = {"size": size, "batch": options.batch, "amp": amp, "workers": options.workers or 0}
    rate = statistics.median(record["images_per_second"] for record in kept)
    waiting = statistics.median(record["waiting"] for record in kept)
    ap = run.history[-1].get("ap50")
    bench.tell("epochs", **shown, images_per_second=rate, waiting_share=waiting, loss=run.history[-1]["loss"], ap50=ap)


def peer(bench: Bench) -> None:
    """The same images, by Ultralytics."""
    if not has_peer():
        return
    folder = bench.out / "yolo"
    if not folder.exists():
        convert(bench.data, folder, "yolo")
    for amp in (True, False) if bench.cuda else (False,):
        for size in sizes(bench):
            with attempt(f"peer {size} {amp}", 100):
                _peer_row(bench, folder / "data.yaml", size, amp)


def _peer_row(bench: Bench, data: Path, size: int, amp: bool) -> None:
    request = {"action": "train", "architecture": "yolo11n.yaml", "data": str(data), "epochs": 2 if bench.args.small else 8}
    request |= {"imgsz": size, "batch": batch_size(bench), "seed": 0, "val": False, "device": 0 if bench.cuda else "cpu"}
    request |= {"out": str(bench.out / f"peer-train-{time.time_ns()}")}
    arguments = {"amp": amp, "workers": worker_count(bench), "cache": "ram", "save": False}
    found = ask(bench, {**request, "arguments": arguments}, 100)
    spent = found["epoch_seconds"]
    rate = len(bench.data.split("train")) / statistics.median(spent[len(spent) // 2 :])
    bench.tell("peer", size=size, batch=batch_size(bench), amp=amp, images_per_second=rate, seconds=found["seconds"])
    for line in found["log"].splitlines():
        if "AMP" in line:  # whether it believes in mixed precision
            print(f"    {line.strip()[:160]}", flush=True)


SECTIONS = {
    "peaks": (peaks, 30),
    "step": (steps, 150),
    "graphs": (graphs, 120),
    "compile": (compiled, 200),
    "peer": (peer, 240),
    "epochs": (epochs, 200),
}

if __name__ == "__main__":
    main(__doc__, SECTIONS, images=400)
