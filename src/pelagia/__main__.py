"""`python -m pelagia` is the command `pelagia`."""

from __future__ import annotations

from pelagia.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
