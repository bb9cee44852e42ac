"""The models that label every pixel, as the registry lists them."""

from __future__ import annotations

from pelagia.models.registry import register

__all__: list[str] = []

register()
