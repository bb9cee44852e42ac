"""The categories of a COCO file: ids, names, keypoints, skeletons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelagia.core.types import Category
from pelagia.data.formats.common import number, numbers
from pelagia.errors import FormatError

__all__ = ["flip_partners", "list_of", "read_categories"]


def list_of(document: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    """The list under `key`.

    Raises:
        FormatError: there is none.
    """
    value = document.get(key)
    if not isinstance(value, list):
        raise FormatError(f"the key {key!r} must hold a list", where=path)
    return value


def read_categories(document: Mapping[str, Any], path: Path) -> list[Category]:
    """The classes in the order of the file, with their keypoints and skeletons (0-based).

    Raises:
        FormatError: an entry without id or name, or an id that occurs twice.
    """
    found: dict[int, Category] = {}
    for position, entry in enumerate(list_of(document, "categories", path)):
        where = f"{path}: categories[{position}]"
        if not isinstance(entry, dict) or "id" not in entry or "name" not in entry:
            raise FormatError("a category needs id and name", where=where)
        identity = int(number(entry["id"], "category id", where))
        if identity in found:
            raise FormatError(f"category id {identity} occurs twice ({found[identity].name!r}, {entry['name']!r})", where=where)
        keypoints = tuple(str(name) for name in _listed(entry, "keypoints", where))
        skeleton = []
        for pair in _listed(entry, "skeleton", where):
            first, second = numbers(pair, "skeleton pair", where).astype(int).tolist()
            skeleton.append((first - 1, second - 1))
        found[identity] = Category(
            id=identity,
            name=str(entry["name"]),
            supercategory=str(entry.get("supercategory") or ""),
            keypoints=keypoints,
            skeleton=tuple(skeleton),
            flip=flip_partners(keypoints),
            is_thing=bool(entry.get("isthing", 1)),
        )
    return list(found.values())


def _listed(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = entry.get(key) or []
    if not isinstance(value, list):
        raise FormatError(f"{key} of a category must be a list, got {str(value)[:40]!r}", where=where)
    return value


def flip_partners(names: tuple[str, ...]) -> tuple[int, ...]:
    """For each point the point it becomes when the image is mirrored: `left_x` and `right_x` swap, others stay."""
    place = {name: index for index, name in enumerate(names)}
    swap = {"left": "right", "right": "left"}
    partners = []
    for index, name in enumerate(names):
        words = name.replace("-", "_").split("_")
        other = [swap.get(word, word) for word in words]
        partners.append(place.get("_".join(other), place.get("-".join(other), index)))
    return tuple(partners)
