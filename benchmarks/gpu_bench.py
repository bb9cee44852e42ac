"""What the benchmarks of a GPU share: the device and its peaks, the clock, drawn images, the peer's half, the command line.

`gpu_parts.py`, `gpu_predict.py` and `gpu_train.py` are the scripts. A section that fails prints why, and the next one begins.
Times are medians; the device has finished before a clock is read.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch

from pelagia.core.types import Category
from pelagia.data.dataset import Dataset
from pelagia.infer.runtimes import Precision, cpu_count
from pelagia.models import registry
from pelagia.models.model import Model
from pelagia.models.runtime import float32_products
from pictures import draw_jpegs

__all__ = ["Bench", "Section", "ask", "attempt", "build", "gflops", "has_peer", "main", "peaks", "peer_weights"]

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

    @property
    def trained(self) -> Path | None:
        """The last checkpoint that `gpu_train.py --only epochs` left here."""
        return next(iter(sorted(self.out.glob("train-*/best.safetensors"), reverse=True)), None)

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


def build(name: str, size: int = 640) -> Model:
    """A detector of 80 classes with random weights."""
    torch.manual_seed(0)
    return registry.create(name, tuple(Category(k + 1, f"class {k}") for k in range(80)), "detect", input_size=size)


def gflops(name: str, size: int = 640) -> float:
    """Of one image of `size` pixels square."""
    found = registry.entry(name)
    return found.gflops["detect"] * (size / found.input_size["detect"]) ** 2


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


# The peer


def has_peer() -> bool:
    """Whether Ultralytics is installed; tells where it is not."""
    found = importlib.util.find_spec("ultralytics") is not None
    if not found:
        print("  the peer is not installed", flush=True)
    return found


def ask(bench: Bench, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the peer's half of the benchmarks answers, from a process of its own; `log` is what it printed."""
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
    return {**found, "log": log.read_text()}


def peer_weights(bench: Bench) -> Path:
    """Random weights that both sides read."""
    path = bench.out / "peer" / "yolo11n.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        request = {"action": "export", "architecture": "yolo11n.yaml", "imgsz": 640, "formats": [], "data": ""}
        ask(bench, {**request, "out": str(path.parent)}, 60)
    return path


# The command line

#: What measures, and the seconds that it may take.
Section = tuple[Callable[[Bench], None], float]


def main(description: str | None, sections: Mapping[str, Section], *, images: int = 0) -> None:
    """Run the sections and keep their figures; with `images` so many JPEGs are drawn first."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(sections), default=list(sections))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--scan", type=int, nargs=2, default=(12_000, 9_000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement of a repeated call")
    parser.add_argument("--limit", type=float, default=230.0, help="of the whole run, in seconds")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-gpu"))
    args = parser.parse_args()
    if args.small:
        args.images, args.scan, args.seconds = min(args.images, 24), (400, 300), 0.02
    bench, begin = Bench(args), time.perf_counter()
    bench.out.mkdir(parents=True, exist_ok=True)
    if images:
        with attempt("drawing", args.limit):  # before the device is in use, since processes are forked
            assert len(bench.data) == args.images
    name = torch.cuda.get_device_name() if bench.cuda else "CPU"
    print(f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, OpenCV {cv2.__version__}", flush=True)
    for section, (run, seconds) in sections.items():
        left = args.limit - (time.perf_counter() - begin)
        if section not in args.only:
            continue
        if left < 5:
            print(f"{section}: left out, no time is left", flush=True)
            continue
        print(f"== {section}, after {time.perf_counter() - begin:.0f} s", flush=True)
        with attempt(section, min(seconds, left)):
            run(bench)
        (bench.out / f"{Path(sys.argv[0]).stem}.json").write_text(json.dumps(bench.figures, indent=1))
        if bench.cuda:
            torch.cuda.empty_cache()
    print(f"== done after {time.perf_counter() - begin:.0f} s", flush=True)
