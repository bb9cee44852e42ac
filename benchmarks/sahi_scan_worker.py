"""Pelagia's half of `sahi_scan.py`, a process of its own, so that its memory holds nothing else.

    python sahi_scan_worker.py REQUEST.json ANSWER.json

The request names image, weights, threads, precision, score, batch, slice and overlap. The answer holds seconds, objects and
memory.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

import pelagia
from pelagia.core.scan import open_scan
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image


def peak() -> float:
    """The most memory that this process ever held, in MiB; `getrusage` would count that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Answer one request; the model is warm, reading the image counts."""
    request = json.loads(Path(sys.argv[1]).read_text())
    side = request["slice"]
    runtime = pelagia.load(request["weights"], threads=request["threads"], precision=request["precision"]).runtime
    options = PredictOptions(
        score=request["score"], tiling="always", tile=side, overlap=request["overlap"], batch=request["batch"]
    )
    predict_image(runtime, np.zeros((side, side, 3), dtype=np.uint8), options)
    before = peak()
    begin = time.perf_counter()
    with open_scan(request["image"]) as scan:
        found = predict_image(runtime, scan, options)
    answer = {"seconds": time.perf_counter() - begin, "objects": len(found), "peak_mib": peak(), "start_mib": before}
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
