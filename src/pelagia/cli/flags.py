"""Flags whose absence is known: for options that have another source too, a stored configuration or a run that goes on.

`flags_of(Options)` makes a dataclass with the fields of `Options`, each optional and None unless given on the command line; help,
types and the default that is shown come from `Options`, where they are declared once. A field that is itself a dataclass is
replaced by its fields.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_type_hints

from cyclopts import Group, Parameter

__all__ = ["flags_of", "given"]


def flags_of(options: type, *, leave: tuple[str, ...] = (), groups: dict[str, str] | None = None) -> type:
    """The dataclass of flags; `leave` names fields to leave out, `groups` gives a nested dataclass's heading in the help."""
    columns: list[tuple[str, Any, Any]] = []
    for item, hint, group in _flat(options, None, groups or {}):
        if item.name not in leave:
            parameter = Parameter(help=item.metadata.get("help"), show_default=_default_text(item))
            notes = parameter if group is None else Parameter.combine(parameter, Parameter(group=group))
            columns.append((item.name, Annotated[hint | None, notes], None))
    # The command line's library takes a class of the standard library, where make_dataclass would put it, for a plain value.
    return make_dataclass(f"{options.__name__}Flags", columns, frozen=True, namespace={"__module__": __name__})


def given(flags: Any, options: type) -> dict[str, Any]:
    """The values that stand on the command line, those of a nested dataclass in a dictionary under its name."""
    hints = get_type_hints(options)
    values: dict[str, Any] = {}
    for item in fields(options):
        if is_dataclass(hints[item.name]):
            inner = given(flags, hints[item.name])
            if inner:
                values[item.name] = inner
        elif getattr(flags, item.name, None) is not None:
            values[item.name] = getattr(flags, item.name)
    return values


def _flat(options: type, group: Group | None, groups: dict[str, str]) -> list[tuple[Field[Any], Any, Group | None]]:
    hints = get_type_hints(options)
    found: list[tuple[Field[Any], Any, Group | None]] = []
    for item in fields(options):
        if is_dataclass(hints[item.name]):
            title = groups.get(item.name, item.name)
            found += _flat(hints[item.name], Group(title, sort_key=1), groups)
        else:
            found.append((item, hints[item.name], group))
    return found


def _default_text(item: Field[Any]) -> Any:
    """What the help shows as default; nothing where the help text explains what absence means."""
    if item.default is MISSING or item.default in (None, "", ()):
        return False
    text = str(item.default)
    return lambda _: text
