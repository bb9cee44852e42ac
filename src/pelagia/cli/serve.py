"""`pelagia serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pelagia.api import load
from pelagia.cli.common import Json, print_json, say
from pelagia.cli.flags import flags_of, given
from pelagia.core.lazy import resolve
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Precision, RuntimeKind, runtime_name
from pelagia.serve.options import ServeOptions

__all__ = ["serve"]

_OPTIONS = ServeOptions()

#: Maps go by the request, and `max_pixels` is the service's own.
_made = flags_of(PredictOptions, leave=("probabilities", "map_format", "max_pixels"))
_NO_FLAGS = _made()
if TYPE_CHECKING:
    _Flags = Any
else:
    _Flags = _made


def serve(
    model: str,
    /,
    *,
    options: Annotated[ServeOptions, Parameter(name="*")] = _OPTIONS,
    flags: Annotated[_Flags, Parameter(name="*")] = _NO_FLAGS,
    device: str = "auto",
    threads: int = 0,
    runtime: RuntimeKind = "auto",
    precision: Precision = "float32",
    json: Json = False,
) -> int:
    """Answer predictions over HTTP, and show a page to try the model on images and the camera.

    POST /predict takes the bytes of an image file and answers with the JSON document that `predict` writes, with the annotated
    picture (?answer=picture) or with the map (?answer=map); GET /model tells what the model is, GET /health that the service
    runs, GET /openapi.json all of it. No file is written, nothing is sent elsewhere, and by default only this machine reaches
    the service.

    Runs until Ctrl-C or SIGTERM; requests in work are answered first, and the exit code is 0.

    Args:
        model: A run folder, a checkpoint, an .onnx, an OpenVINO .xml, or another project's .pt.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads; 0 for all cores.
        runtime: What runs the model; auto: torch for a checkpoint, ONNX Runtime for .onnx, OpenVINO for .xml.
        precision: bfloat16 is faster in torch and OpenVINO on processors that have it, and exact to 3 digits only; tf32, of torch
            on an NVIDIA GPU, is between float32 and bfloat16.
    """
    service = resolve("pelagia.serve.service", purpose="serve a model")
    server = resolve("pelagia.serve.server", purpose="serve a model")
    guard = resolve("pelagia.serve.guard", purpose="serve a model")
    chosen = PredictOptions(**given(flags, PredictOptions))
    with server.listen(options.host, options.port) as listening:
        predictor = load(model, device=device, threads=threads, runtime=runtime, precision=precision)
        app = service.create_service(predictor.runtime, options, chosen, tell=say)
        url, name = server.address_of(listening), Path(model).name
        if json:
            print_json({"url": url, "model": name, "task": predictor.card.task, "runtime": runtime_name(predictor.runtime)})
        else:
            print(f"{name} ({predictor.card.task}, {runtime_name(predictor.runtime)}) answers at {url} until Ctrl-C")
        sys.stdout.flush()
        if not guard.is_loopback(options.host):
            say("whoever reaches this machine can use the service: there is no password")
        server.serve(app, listening)
    say("stopped")
    return 0
