"""The models that ask an image with attention, as the registry lists them."""

from __future__ import annotations

from pelagia.models.registry import register

__all__: list[str] = []

register()
