"""The query of a request: options of prediction, checked as `PredictOptions` checks them, and the kind of answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

import msgspec

from pelagia.errors import OptionError
from pelagia.infer.options import PredictOptions

__all__ = ["Asked", "Kind", "describe", "read_query"]

Kind: TypeAlias = Literal["json", "picture", "map"]

#: Options that a request may choose. Sizes and overlaps of tiles are the operator's: small ones cost any time.
_OPEN = ("score", "nms_iou", "most", "agnostic", "tiling", "blend", "coarse", "calibrated")

#: Longest name of an image.
_NAME_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Args:
        options: of prediction.
        answer: json, what was found; picture, the annotated image; map, the label image, class map or panoptic map.
        map: put the map into the JSON document, too, as a data URL.
        name: of the image, in the document.
    """

    options: PredictOptions
    answer: Kind = "json"
    map: bool = False
    name: str = "image"


_OWN: dict[str, tuple[Any, str]] = {
    "answer": (Kind, "json: what was found; picture: a PNG of the image with it; map: a PNG as `pelagia predict` writes it."),
    "map": (bool, "Of instance, semantic and panoptic models: put the map into the JSON document, as a data URL."),
    "name": (str, "What the document calls the image."),
}
_HINTS = get_type_hints(PredictOptions)
_KNOWN: dict[str, tuple[Any, str]] = {
    **_OWN,
    **{item.name: (_HINTS[item.name], item.metadata["help"]) for item in fields(PredictOptions) if item.name in _OPEN},
}


def read_query(query: Sequence[tuple[str, str]], base: PredictOptions) -> Asked:
    """The names and values of a query; options that it does not name are those of `base`.

    Raises:
        OptionError: an unknown name, one given twice, or a value that cannot be used.
    """
    values: dict[str, Any] = {}
    for name, text in query:
        if name not in _KNOWN:
            raise OptionError(f"unknown parameter {name!r}; known are {', '.join(_KNOWN)}")
        if name in values:
            raise OptionError(f"the parameter {name} is given twice")
        values[name] = _value(name, text)
    own = {name: values.pop(name) for name in _OWN if name in values}
    if len(own.get("name", "")) > _NAME_LENGTH:
        raise OptionError(f"name must have at most {_NAME_LENGTH} characters")
    return Asked(options=replace(base, **values), **own)


def describe() -> list[dict[str, Any]]:
    """The parameters as OpenAPI lists them."""
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": _schema(kind)}
        for name, (kind, text) in _KNOWN.items()
    ]


def _value(name: str, text: str) -> Any:
    kind = _KNOWN[name][0]
    if kind is str:
        return text
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise OptionError(f"{name} must be {_told(kind)}, got {text[:100]!r}") from error


def _told(kind: Any) -> str:
    if get_args(kind) and all(isinstance(item, str) for item in get_args(kind)):
        return "one of " + ", ".join(get_args(kind))
    return {bool: "true or false", int: "a whole number"}.get(kind, "a number")


def _schema(kind: Any) -> dict[str, Any]:
    if get_args(kind) and all(isinstance(item, str) for item in get_args(kind)):
        return {"type": "string", "enum": list(get_args(kind))}
    return {"type": {bool: "boolean", int: "integer", str: "string"}.get(kind, "number")}
