"""The command line: names of commands and where their functions live.

A command is resolved by its import path when it is called, so `pelagia --help` imports nothing heavy and `pelagia predict`
nothing of training.

Exit codes: 0 done; 1 something failed, or a check found errors; 2 the command line was wrong; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence

from cyclopts import App

from pelagia import __version__
from pelagia.errors import OptionError, PelagiaError

__all__ = ["COMMANDS", "app", "main"]

#: Command -> function and the line of help that the overview shows.
COMMANDS = {
    "demo": ("pelagia.cli.demo:demo", "Draw a plankton survey, train on it, count a scan, write a report."),
    "models": ("pelagia.cli.models:models", "List the models: paper, tasks, parameters, GFLOPs."),
    "doctor": ("pelagia.cli.data:doctor", "Examine labelled images and report what is wrong."),
    "convert": ("pelagia.cli.data:convert", "Write labels in another format."),
    "split": ("pelagia.cli.data:split", "Divide images into training, validation and test."),
    "train": ("pelagia.cli.train:train", "Train a model on labelled images."),
    "evaluate": ("pelagia.cli.evaluate:evaluate", "Score a model or predictions against the truth."),
    "predict": ("pelagia.cli.predict:predict", "Find and count objects in images and scans of any size."),
    "serve": ("pelagia.cli.serve:serve", "Answer predictions over HTTP, with a page to try a model on images and a camera."),
    "export": ("pelagia.cli.export:export", "Write a model as ONNX or for OpenVINO and prove that it answers alike."),
    "benchmark": ("pelagia.cli.benchmark:benchmark", "Measure each installed runtime on this machine."),
}

app = App(
    name="pelagia",
    help="Object detection for ocean imaging: train on your labels, measure exactly, predict on scans of any size.",
    version=__version__,
    help_format="plaintext",
)
for _position, (_name, (_path, _help)) in enumerate(COMMANDS.items()):
    app.command(_path, name=_name, help=_help, sort_key=_position)


def main(tokens: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    try:
        code = _run(tokens)
        sys.stdout.flush()
        if not {"torch", "onnx"} & sys.modules.keys():
            # The interpreter would spend a fifth of a second on looking for cycles once more. Libraries that report leaks at exit
            # would take this for one.
            gc.freeze()
    except KeyboardInterrupt:
        print("\npelagia: stopped by Ctrl-C; files that were being written are whole or absent", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Whoever read our output has closed it (`pelagia models | head`); python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(tokens: Sequence[str] | None) -> int:
    try:
        command, bound, _ = app.parse_args(tokens)
    except OptionError as error:
        # A value that an options dataclass refused while the command line was read.
        print(f"pelagia: {error}", file=sys.stderr)
        return 2
    try:
        code = command(*bound.args, **bound.kwargs)
    except PelagiaError as error:
        print(f"pelagia: {error}", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0
