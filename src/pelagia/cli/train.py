"""`pelagia train`."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pelagia.api import open_dataset
from pelagia.cli.common import Json, print_json, say
from pelagia.cli.flags import flags_of, given
from pelagia.core.lazy import resolve
from pelagia.errors import OptionError
from pelagia.train.options import TrainOptions, defaults_of, load_options, resume_options

__all__ = ["train"]

_made = flags_of(TrainOptions, leave=("model", "data"), groups={"augment": "Augmentation"})
_NO_FLAGS = _made()
if TYPE_CHECKING:
    _Flags = Any
else:
    _Flags = _made


def train(
    model: str | None = None,
    data: str | None = None,
    /,
    *,
    config: Path | None = None,
    flags: Annotated[_Flags, Parameter(name="*")] = _NO_FLAGS,
    json: Json = False,
) -> int:
    """Train a model on labelled images.

    Ctrl-C saves the run and says how to go on with it.

    Args:
        model: Name of the model, see `pelagia models`.
        data: Annotation file or folder of the labelled images; its splits train and val are used where it has them.
        config: Take every option that is not given here from this config.json, or from the run folder that holds it.
    """
    values = given(flags, TrainOptions)
    if "resume" in values and config is not None:
        raise OptionError("--resume takes the options of the run; leave --config out")
    if config is not None:
        base = replace(load_options(config), out="", resume="")
    else:
        base = TrainOptions() if model is None else defaults_of(model)
    if "augment" in values:
        values["augment"] = replace(base.augment, **values["augment"])
    values |= {name: value for name, value in (("model", model), ("data", data)) if value is not None}
    options = replace(base, **values)
    if options.resume:
        options = resume_options(options, values)
    if not options.data:
        raise OptionError("which images? Name the labels: pelagia train MODEL DATA, or give --config or --resume")
    loop = resolve("pelagia.train.loop", purpose="train a model")
    dataset = open_dataset(options.data, **_reading(options))
    val = open_dataset(options.val, **_reading(options)) if options.val else None
    run = loop.train(options, dataset, val, quiet=json, explicit=frozenset(values))
    if json:
        print_json({item.name: getattr(run, item.name) for item in fields(run)})
    elif run.stopped != "interrupted":
        say(f"use it: pelagia predict {run.folder} IMAGES")
    return 130 if run.stopped == "interrupted" else 0


def _reading(options: TrainOptions) -> dict[str, Any]:
    values = asdict(options)
    return {name: values[name] for name in ("format", "images", "task", "angle", "classes") if values[name]}
