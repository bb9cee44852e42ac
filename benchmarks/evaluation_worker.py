"""One tool, one set, one process: `evaluation_worker.py TOOL TRUTH RESULTS bbox|segm [RUNS]` prints seconds, memory and the
twelve numbers."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any


def _peak_gb() -> float:
    """Largest memory of this process since it began (getrusage would count what its parent held when it was made)."""
    with open("/proc/self/status") as stream:
        line = next(line for line in stream if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def _cocoeval(coco: Any, evaluator: Any) -> Callable[[str, str, str], list[float]]:
    def run(gt: str, dt: str, kind: str) -> list[float]:
        truth = coco(gt)
        evaluation = evaluator(truth, truth.loadRes(dt), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return [float(value) for value in list(evaluation.stats)[:12]]

    return run


def _pelagia() -> Callable[[str, str, str], list[float]]:
    import numpy as np

    import pelagia.metrics.kernels  # noqa: F401  (imports are not timed)
    from pelagia.infer.evaluate import evaluate_file

    def run(gt: str, dt: str, kind: str) -> list[float]:
        stats = evaluate_file(dt, gt, "masks" if kind == "segm" else "boxes").stats
        return [float(value) for value in np.where(np.isnan(stats), -1, stats)]

    return run


def _tool(name: str) -> Callable[[str, str, str], list[float]]:
    if name == "pelagia":
        return _pelagia()
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return _cocoeval(COCO, COCOeval)
    if name == "faster-coco-eval":
        from faster_coco_eval import COCO as FastCOCO
        from faster_coco_eval import COCOeval_faster

        return _cocoeval(FastCOCO, COCOeval_faster)
    if name == "hotcoco":
        from hotcoco import COCO as HotCOCO
        from hotcoco import COCOeval as HotEval

        return _cocoeval(HotCOCO, HotEval)
    raise SystemExit(f"unknown tool {name}")


def main() -> None:
    """Import, score three times, print the first time, the better of the others (caches warm), and the peak memory of the
    first."""
    tool, gt, dt, kind, *runs = sys.argv[1:]
    run = _tool(tool)
    before = _peak_gb()
    with contextlib.redirect_stdout(io.StringIO()):
        times, peak = [], 0.0
        for _ in range(int(runs[0]) if runs else 1 if tool == "pycocotools" else 3):
            begin = time.perf_counter()
            stats = run(gt, dt, kind)
            times.append(time.perf_counter() - begin)
            peak = peak or _peak_gb()
    answer = {"first": times[0], "seconds": min(times[1:] or times), "stats": stats, "peak_gb": peak, "added_gb": peak - before}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
