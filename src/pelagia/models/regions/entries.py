"""The models that propose regions, then classify them, as the registry lists them."""

from __future__ import annotations

from pelagia.models.registry import register

__all__: list[str] = []

register()
