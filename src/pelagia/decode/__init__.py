"""From a network's raw arrays to objects: pure numpy functions, one module a wing, used by every runtime."""

from __future__ import annotations

from pelagia.decode.options import DecodeOptions
from pelagia.decode.registry import decode

__all__ = ["DecodeOptions", "decode"]
