"""Names of models -> how to build them, and what the table of `pelagia models` says of them.

This module and `models.entries` import no torch, so that models can be listed without it; a builder is named by its import path
and resolved when a model is made.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pelagia.core.lazy import resolve
from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError

if TYPE_CHECKING:
    from pelagia.models.model import Model

__all__ = ["Entry", "create", "entries", "entry", "register"]


@dataclass(frozen=True)
class Entry:
    """A model that can be built by name.

    Args:
        name: what the user types.
        builder: `module:Class`; the class is called with name, categories, task, input size and options.
        options: `module:Class` of the options, a frozen dataclass.
        defaults: option values of this size.
        training: training options that differ for this model from those of `train.options.TrainOptions`, such as its paper's
            learning rate; `augment` holds those of augmentation.
        tiny: option values for tests, small enough for seconds on one core.
        tiny_input: height and width of the input in tests.
        title: of the paper, or what else to cite.
        authors: first author and others.
        year: of publication.
        url: of the paper or the project.
        tasks: that it answers, the first is the default.
        classes: with how many `parameters` and `gflops` are stated.
        parameters: published count, by task.
        gflops: 2 x multiply-additions / 1e9 of one forward pass at `input_size`, by task.
        input_size: side in pixels that its authors train with, by task.
        weights: whose files are read; empty if there are none.
        weights_licence: of those that are published; empty where none are known.
        exports: whether it can be written as ONNX: `yes`; `not for the web` where the graph holds its own suppression and
            RoIAlign, which runtimes in browsers lack; or `no: ` and the reason.
    """

    name: str
    builder: str
    options: str
    tasks: tuple[Task, ...]
    title: str
    authors: str
    year: int
    url: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_input: tuple[int, int] = (64, 96)
    classes: int = 80
    parameters: Mapping[str, int] = field(default_factory=dict)
    gflops: Mapping[str, float] = field(default_factory=dict)
    input_size: Mapping[str, int] = field(default_factory=dict)
    weights: str = ""
    weights_licence: str = ""
    exports: str = "yes"


_entries: dict[str, Entry] = {}


def register(*new: Entry) -> None:
    """Make models known.

    Raises:
        ModelError: a name is taken.
    """
    for item in new:
        if item.name in _entries:
            raise ModelError(f"a model called {item.name!r} is registered already ({_entries[item.name].builder})")
        _entries[item.name] = item


def entries(task: Task | None = None) -> tuple[Entry, ...]:
    """All models, or those that answer `task`, in the order of registration."""
    resolve("pelagia.models.entries", purpose="list the models")
    return tuple(item for item in _entries.values() if task is None or task in item.tasks)


def entry(name: str) -> Entry:
    """The model called `name`.

    Raises:
        OptionError: there is none; the message proposes similar names.
    """
    names = [item.name for item in entries()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
        raise OptionError(f"no model is called {name!r}; {hint}")
    return _entries[name]


def create(
    name: str,
    categories: Sequence[Category],
    task: Task | None = None,
    *,
    input_size: int | tuple[int, int] = 640,
    options: Mapping[str, Any] | Any = None,
) -> Model:
    """Build a model with fresh weights drawn from torch's global generator.

    Args:
        name: of a registered model.
        categories: the classes, in label order.
        task: None for the model's first.
        input_size: side in pixels, or height and width.
        options: values that differ from the defaults of this size, or a whole options object.

    Raises:
        OptionError: an unknown model, task or option, or a value that cannot be used.
        ModelError: the model cannot be built so.
        MissingExtraError: torch is not installed.
    """
    found = entry(name)
    task = found.tasks[0] if task is None else task
    if task not in found.tasks:
        raise OptionError(f"{name} answers {', '.join(found.tasks)}, not {task!r}")
    size = (input_size, input_size) if isinstance(input_size, int) else (int(input_size[0]), int(input_size[1]))
    model: Model = _resolve(found.builder)(found.name, tuple(categories), task, size, _options(found, options))
    return model


def _resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(resolve(module, purpose="build a model"), name)


def _options(found: Entry, given: Mapping[str, Any] | Any) -> Any:
    kind = _resolve(found.options)
    if isinstance(given, kind):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise OptionError(f"options of {found.name} must be a mapping or {kind.__qualname__}, got {type(given).__name__}")
    values = {**found.defaults, **(given or {})}
    known = [item.name for item in dataclasses.fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise OptionError(f"{found.name} has no option {', '.join(map(repr, unknown))}; its options are {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise OptionError(f"an option of {found.name} has the wrong type ({error})") from error
