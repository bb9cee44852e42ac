"""Every model of the package, as the registry lists it: importing this module registers all wings."""

from __future__ import annotations

from pelagia.models.grids import entries as grids
from pelagia.models.pixels import entries as pixels
from pelagia.models.queries import entries as queries
from pelagia.models.regions import entries as regions

__all__ = ["grids", "pixels", "queries", "regions"]
