"""Start-up times and sizes of the two sides.

    python benchmarks/startup.py --model MODEL.onnx --image IMAGE [--predictions DT.json --truth GT.json]
                                  [--python BASE_ENV/bin/python] [--peer-python PEER_ENV/bin/python --peer-model PEER.onnx]

Whole processes, wall seconds, median of `--rounds` after one that warms the disk: `import pelagia`, `pelagia --help`, the first
prediction of an exported model, scoring a file of predictions, and a prediction of the peer with its own export. `--python` names
the environment of Pelagia to measure, such as one with the base dependencies alone; its size and the peer's are printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = "import sys; from ultralytics import YOLO; YOLO(sys.argv[1], task='detect').predict(sys.argv[2], device='cpu')"


def seconds(command: list[str], rounds: int) -> float:
    """Median wall time of a process."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def size_mb(python: str) -> float:
    """Size of the environment's installed packages in MB (10^6 bytes)."""
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    folder = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an .onnx that Pelagia exported")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--peer-python")
    parser.add_argument("--peer-model", type=Path, help="the .onnx that the peer exported of the same architecture")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model, image = str(args.model.resolve()), str(args.image.resolve())
    pelagia = [args.python, "-m", "pelagia"]
    print(f"environment: {size_mb(args.python):.0f} MB")
    print(f"python -c pass          {seconds([args.python, '-c', 'pass'], args.rounds):.3f} s")
    print(f"import pelagia          {seconds([args.python, '-c', 'import pelagia'], args.rounds):.3f} s")
    print(f"pelagia --help          {seconds([*pelagia, '--help'], args.rounds):.3f} s")
    ours = seconds([*pelagia, "predict", model, image], args.rounds)
    print(f"pelagia predict .onnx   {ours:.3f} s")
    if args.predictions and args.truth:
        files = [str(path.resolve()) for path in (args.predictions, args.truth)]
        print(f"pelagia evaluate        {seconds([*pelagia, 'evaluate', *files], args.rounds):.3f} s")
    if args.peer_python and args.peer_model:
        peer = seconds([args.peer_python, "-c", PEER, str(args.peer_model.resolve()), image], args.rounds)
        print(f"peer environment: {size_mb(args.peer_python):.0f} MB")
        print(f"peer predict .onnx      {peer:.3f} s, ratio {peer / ours:.1f}")


if __name__ == "__main__":
    main()
