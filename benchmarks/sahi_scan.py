"""A scan of 12,000 x 9,000 pixels with YOLO11n in PyTorch: Pelagia's `predict_image` against SAHI over Ultralytics, same weights.

    python benchmarks/sahi_scan.py --peer-python PEER_ENV/bin/python

Both look at slices of 640 pixels that overlap by a fifth (432 on 12,000 x 9,000), count from the same score, and use all cores.
SAHI runs with each of `--batches`, and the best counts. The scan is drawn, and written as JPEG and as tiled TIFF. The weights are
the peer's own file, read by both: `--weights`, or else those of a short training of the peer on a drawn survey. Every
measurement is a process of its own, warm before the clock starts; from the file to the objects, the best of `--rounds`. Printed
are seconds, the ratio to SAHI at its best, the most memory that the process ever held (on Linux), and the objects found.

    python benchmarks/sahi_scan.py --peer-python PEER_ENV/bin/python --size 2000 1500 --rounds 1 --epochs 1     # a short look
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from pelagia.core.image import write
from pelagia.data.convert import convert
from pelagia.data.open import open_dataset
from pelagia.data.synthetic import draw_survey
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import PRECISIONS
from pictures import draw_scan
from training import ask_peer

SLICE, OVERLAP = 640, 0.2
PEER = Path(__file__).with_name("peer_sahi.py")
WORKER = Path(__file__).with_name("sahi_scan_worker.py")


def train_peer(python: str, out: Path, epochs: int) -> str:
    """A YOLO11n of the peer that has seen a drawn survey; its checkpoint."""
    survey = draw_survey(out / "survey", 40, 0, width=SLICE, height=SLICE)
    if not (out / "yolo").exists():
        convert(open_dataset(survey, task="detect"), out / "yolo", "yolo")
        with (out / "yolo" / "data.yaml").open("a") as stream:
            stream.write("val: images\n")  # the peer wants one, though it does not validate
    request = {"action": "train", "architecture": "yolo11n.yaml", "data": str(out / "yolo" / "data.yaml"), "epochs": epochs}
    request |= {"imgsz": SLICE, "batch": 4, "seed": 0, "out": str(out), "val": False}
    return str(ask_peer(python, request, out)["weights"]).replace("best.pt", "last.pt")


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest."""
    return min(rounds, key=lambda answer: float(answer["seconds"]))


def line(name: str, answer: dict[str, Any], peer: float) -> None:
    """Print one row."""
    seconds, memory = f"{answer['seconds']:7.1f} s", f"{answer['peak_mib']:6.0f} MiB ({answer['start_mib']:.0f} at the start)"
    print(f"  {name:18} {seconds} {answer['seconds'] / peer:6.2f} x {memory} {answer['objects']:6d} objects", flush=True)


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="Python of an environment with SAHI and Ultralytics")
    parser.add_argument("--size", type=int, nargs=2, default=(12_000, 9_000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--formats", nargs="+", default=["jpg", "tif"])
    parser.add_argument("--weights", help="a checkpoint of the peer's YOLO11n; without it one is trained")
    parser.add_argument("--epochs", type=int, default=20, help="of the training without --weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16], help="batch sizes to try with SAHI")
    parser.add_argument("--batch", type=int, default=PredictOptions().batch, help="batch size of Pelagia")
    parser.add_argument("--score", type=float, default=0.25)
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of Pelagia; SAHI computes in float32 on a CPU"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-sahi-scan"))
    args = parser.parse_args()
    out, threads = args.out.resolve(), os.cpu_count() or 1
    out.mkdir(parents=True, exist_ok=True)
    weights = str(Path(args.weights).resolve()) if args.weights else train_peer(args.peer_python, out, args.epochs)
    scan = draw_scan(*args.size)
    for suffix in args.formats:
        path = out / f"scan-{args.size[0]}x{args.size[1]}.{suffix}"
        write(path, scan)
        request = {"action": "scan", "image": str(path), "weights": weights, "batches": args.batches, "threads": threads}
        request |= {"score": args.score, "slice": SLICE, "overlap": OVERLAP}
        ours: list[dict[str, Any]] = []
        theirs: dict[str, list[dict[str, Any]]] = {str(batch): [] for batch in args.batches}
        for _ in range(args.rounds):
            ours.append(ask_peer(sys.executable, {**request, "batch": args.batch, "precision": args.precision}, out, WORKER))
            for batch, answer in ask_peer(args.peer_python, request, out, PEER).items():
                if batch in theirs:
                    theirs[batch].append(answer)
        peer = min(best(answers)["seconds"] for answers in theirs.values())
        print(f"{args.size[0]} x {args.size[1]} pixels, {suffix}, {threads} cores")
        line(f"pelagia, {args.precision}", best(ours), peer)
        for batch, answers in theirs.items():
            line(f"sahi, batch {batch}", best(answers), peer)


if __name__ == "__main__":
    main()
