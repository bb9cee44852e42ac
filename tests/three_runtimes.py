"""One model behind every runtime, and images for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.runtimes import OnnxRuntime, Runtime
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from small_models import SIZE


def all_runtimes(model: Model, exported: Path) -> list[Runtime]:
    """`model` itself, and the file that was exported of it in the two others."""
    return [TorchRuntime(model), OnnxRuntime(exported, threads=2), OpenVinoRuntime(exported, threads=2)]


def images(count: int) -> Any:
    """[count, 3, H, W] of standard normal numbers; the same for the same count."""
    return np.random.default_rng(count).normal(0, 1, (count, 3, *SIZE)).astype(np.float32)
