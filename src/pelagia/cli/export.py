"""`pelagia export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pelagia.api import load
from pelagia.cli.common import Json, print_json, table
from pelagia.core.lazy import resolve
from pelagia.errors import ExportError

__all__ = ["export"]


def export(
    model: Path,
    /,
    *,
    onnx: Annotated[
        Path | None, Parameter(help="File to write; by default beside the checkpoint, with the ending .onnx.")
    ] = None,
    tolerance: float = 1e-3,
    json: Json = False,
) -> int:
    """Write a model as ONNX and prove that it answers alike.

    Classes, sizes, normalisation, thresholds and licence go into the file; `pelagia predict` takes it without PyTorch. The
    largest difference from the model is printed, and nothing is written if it is too large.

    Args:
        model: A run folder, a checkpoint, or another project's .pt.
        tolerance: Largest |exported - model| / (1 + |model|) over the raw outputs.
    """
    predictor = load(model, device="cpu")
    if predictor.model is None or predictor.path is None:
        raise ExportError("this is an exported file already; export from the checkpoint", where=model)
    module = resolve("pelagia.export.onnx", purpose="export a model")
    report = module.export_onnx(predictor.model, onnx or predictor.path.with_suffix(".onnx"), tolerance=tolerance)
    if json:
        print_json(report.to_dict())
        return 0
    rows = [[name, f"{item.absolute:.2e}", f"{item.relative:.2e}"] for name, item in report.outputs.items()]
    print(table(["output", "largest difference", "relative"], rows))
    height, width = predictor.card.input_size
    print(
        f"\nagrees with the model within {tolerance:g}: {report.path} ({report.size_bytes / 1e6:.1f} MB, opset {report.opset}, "
        f"input {height} x {width}, any batch, licence of the weights: {predictor.card.licence})"
    )
    return 0
