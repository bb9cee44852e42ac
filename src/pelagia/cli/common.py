"""What commands share: one JSON document on standard output, or text for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

__all__ = ["Json", "print_json", "say", "table"]

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON document instead of text.")]


def print_json(value: Any) -> None:
    """The only thing that a command with `--json` writes to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def say(text: str) -> None:
    """A sentence for people, on standard error, where it disturbs neither tables nor pipes."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under a header; the first is left aligned, and so is text, numbers are right aligned."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(text.rjust(width) if flag else text.ljust(width) for text, width, flag in zip(row, widths, right, strict=True))
        for row in [list(header), *cells]
    ]
    return "\n".join(line.rstrip() for line in lines)


def _is_number(text: str) -> bool:
    return text in ("", "-") or text.replace(",", "").replace(".", "", 1).lstrip("+-").isdigit()
