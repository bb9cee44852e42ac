"""The YAML files of data sets, read safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pelagia.data.formats.common import read_text
from pelagia.errors import FormatError

__all__ = ["load_yaml"]


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, by the safe loader.

    Raises:
        FormatError: not YAML, or not a mapping; with the line.
    """
    try:
        value = yaml.safe_load(read_text(path, limit_bytes=16 << 20))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise FormatError(f"not YAML: {error.problem}", where=f"{path}:{line}") from error
    except yaml.YAMLError as error:
        raise FormatError(f"not YAML: {error}", where=path) from error
    except RecursionError as error:
        raise FormatError("not usable YAML: nested too deeply", where=path) from error
    if not isinstance(value, dict):
        raise FormatError("expected a YAML mapping with names and train", where=path)
    return value
