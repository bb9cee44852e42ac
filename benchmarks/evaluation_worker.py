"""One tool, one set, one process: `evaluation_worker.py TOOL TRUTH RESULTS bbox|segm` prints seconds, memory and the twelve
numbers."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


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
    from pelagia.data.open import open_dataset
    from pelagia.infer.evaluate import gather_evidence
    from pelagia.infer.read_predictions import read_predictions

    def run(gt: str, dt: str, kind: str) -> list[float]:
        dataset = open_dataset(gt, format="coco")
        predictions = read_predictions(dt, dataset, "masks" if kind == "segm" else "boxes")
        stats = gather_evidence(dataset, predictions.objects).result().stats
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
    """Import, time, print."""
    tool, gt, dt, kind = sys.argv[1:]
    run = _tool(tool)
    before = _peak_gb()
    with contextlib.redirect_stdout(io.StringIO()):
        begin = time.perf_counter()
        stats = run(gt, dt, kind)
        seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "stats": stats, "peak_gb": _peak_gb(), "added_gb": _peak_gb() - before}))


if __name__ == "__main__":
    main()
