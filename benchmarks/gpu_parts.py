"""What a GPU gets out of the network alone and of suppression, and what is left of its peak.

    python benchmarks/gpu_parts.py                               (all sections, about three minutes on an H100)
    python benchmarks/gpu_parts.py --only peaks network
    python benchmarks/gpu_parts.py --device cpu --small          (a look at the script itself)

Sections, in the order in which they run; `gpu_bench.py` tells what they share:

    peaks    what the card does at its best: matrix products of 8192 in each precision, copies in its memory and to it
    network  YOLO11n and YOLO11x at 640 pixels, the network alone: images/s, TFLOP/s and the share of the measured peak, kernel
             by kernel and replayed as a CUDA graph
    compile  YOLO11n by torch.compile instead of a CUDA graph
    nms      50,000 boxes
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torchvision

from gpu_bench import Bench, attempt, build, gflops, main, peaks
from pelagia.core.nms import nms
from pelagia.infer.runtimes import Precision
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from pelagia.nn.suppression import suppress


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


def compiled(bench: Bench) -> None:
    """The network by torch.compile."""
    size = 64 if bench.args.small else 640
    runtime = TorchRuntime(build("yolo11n", size), device=bench.device, precision="bfloat16")
    batch = 2 if bench.args.small else 32
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


if __name__ == "__main__":
    main(__doc__, {"peaks": (peaks, 60), "network": (network, 150), "compile": (compiled, 120), "nms": (suppression, 40)})
