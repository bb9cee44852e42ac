"""Everything that a training run can be told, as one frozen dataclass without torch.

The command line builds its flags from it (`metadata["help"]` is a flag's text), a run folder stores it as `config.json`, and
`pelagia train --config run/config.json` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pelagia.core.files import read_json
from pelagia.core.types import TASKS, Task
from pelagia.data.augment import AugmentOptions
from pelagia.errors import OptionError
from pelagia.models.registry import entry

__all__ = ["CONFIG_NAME", "RESUMABLE", "TrainOptions", "defaults_of", "load_options", "options_from_dict", "resume_options"]

#: The file of a run folder that repeats the run.
CONFIG_NAME = "config.json"
_CONFIG_LIMIT_BYTES = 10_000_000

#: Options that may differ when a run goes on; all others shape the weights from the first step.
RESUMABLE = frozenset(
    {
        "device",
        "epochs",
        "patience",
        "workers",
        "threads",
        "track",
        "save_every",
        "cache_bytes",
        "images",
        "data",
        "val",
        "resume",
        "out",
    }
)


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class TrainOptions:
    """The options of one training run. None and 0 mean "chosen automatically" where the help says so.

    Raises:
        OptionError: a value cannot be used.
    """

    model: str = field(default="yolo11n", metadata=_help("Name of the model, see `pelagia models`."))
    data: str = field(default="", metadata=_help("Annotation file or folder with the labelled images."))
    val: str = field(default="", metadata=_help("Other data to validate on; else the data's own split, else --val-fraction."))
    task: Task | None = field(default=None, metadata=_help("What to learn; by default what the labels hold."))
    format: str | None = field(default=None, metadata=_help("Format of the annotations, when it should not be sniffed."))
    images: str | None = field(default=None, metadata=_help("Folder of the images, when the annotations do not tell."))
    angle: str | None = field(default=None, metadata=_help("Meaning of the angle in 5-number COCO boxes: rad-cw or deg-ccw."))
    classes: tuple[str, ...] = field(default=(), metadata=_help("Names of the classes, where the labels only number them."))
    splits: str = field(
        default="", metadata=_help("File of splits that `pelagia split` wrote; its names decide what is held out.")
    )
    out: str = field(default="", metadata=_help("Folder of the run; by default runs/<model>-<data>, numbered if taken."))

    epochs: int = field(default=100, metadata=_help("Passes over the training images."))
    batch: int = field(default=16, metadata=_help("Images per step, over all processes together."))
    imgsz: int = field(default=640, metadata=_help("Side in pixels of the square that the network sees."))
    optimizer: Literal["auto", "sgd", "adamw"] = field(
        default="auto", metadata=_help("auto: AdamW for runs under 10,000 steps, SGD with Nesterov momentum beyond.")
    )
    lr: float | None = field(default=None, metadata=_help("Peak learning rate; by default chosen from optimizer and batch."))
    lr_final: float = field(default=0.01, metadata=_help("Learning rate at the end of the cosine, as a fraction of the peak."))
    weight_decay: float | None = field(
        default=None, metadata=_help("Weight decay of all but biases and norms; by default 0.05 for AdamW, 0.0005 for SGD.")
    )
    momentum: float = field(default=0.9, metadata=_help("Momentum of SGD, first beta of AdamW."))
    warmup_epochs: float = field(
        default=3.0, metadata=_help("Epochs in which the rate rises linearly; at least 100 steps, at most a tenth of the run.")
    )
    clip_norm: float = field(default=10.0, metadata=_help("Gradients longer than this are scaled down to it; 0 for no limit."))
    ema_decay: float = field(default=0.9999, metadata=_help("Decay of the weights' average, reached by a ramp; 0 for none."))
    amp: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata=_help(
            "Mixed precision: auto uses bfloat16 or float16 on a GPU and float32 on the CPU; off is float32, in "
            "which PyTorch lets the convolutions of an NVIDIA GPU use TF32."
        ),
    )
    channels_last: bool = field(default=True, metadata=_help("Keep tensors as [B, H, W, C] in memory: faster on most devices."))

    augment: AugmentOptions = field(default_factory=AugmentOptions, metadata=_help("How training samples are varied."))
    windows: Literal["auto", "always", "never"] = field(
        default="auto",
        metadata=_help(
            "Learn from windows of images at full resolution, half of them around objects (crop 1, rare 0.5), or never; auto: "
            "as the model does by itself, and where whole images, shrunk to the input, leave the typical object under 16 pixels."
        ),
    )
    windows_per_image: int = field(
        default=0, metadata=_help("Windows of each image in an epoch; 0 for one, and of scans for as many as cover them.")
    )
    close_mosaic: int = field(
        default=10, metadata=_help("Last epochs without mosaic, mixup, cutmix and copy-paste; at most a third of the run.")
    )

    weights: str = field(default="", metadata=_help("Start from this checkpoint: a run folder, .safetensors, or a foreign .pt."))
    freeze: str = field(
        default="", metadata=_help("Keep weights fixed: a number of leading layers, or comma-separated prefixes of names.")
    )
    backbone_lr: float = field(
        default=1.0, metadata=_help("Factor on the backbone's learning rate, such as 0.1 for fine tuning.")
    )
    lr_factors: tuple[str, ...] = field(
        default=(),
        metadata=_help("PREFIX=FACTOR on the rate of parameters whose names begin so; the longest prefix counts."),
    )
    backbone: str = field(default="", metadata=_help("Another backbone for the model, such as timm:resnet18.a1_in1k."))
    pretrained: bool = field(
        default=False,
        metadata=_help("Fetch published weights, the model's or the timm backbone's: the one option that asks the network."),
    )

    model_options: tuple[str, ...] = field(
        default=(), metadata=_help("NAME=VALUE of the model's own options, such as queries=50 or loss=dice; may be repeated.")
    )

    val_fraction: float = field(default=0.2, metadata=_help("Share of the images held out when the data have no such split."))
    val_every: int = field(default=1, metadata=_help("Validate every so many epochs; the last epoch always is."))
    patience: int = field(default=50, metadata=_help("Stop after so many epochs without a better score; 0 never stops early."))
    save_every: int = field(default=1, metadata=_help("Write last.safetensors every so many epochs."))

    seed: int = field(default=0, metadata=_help("Seed of weights, order, augmentation and the validation split."))
    deterministic: bool = field(
        default=False, metadata=_help("Use only deterministic kernels on a GPU too (slower); the CPU always does.")
    )
    device: str = field(default="auto", metadata=_help("auto, cpu, cuda, cuda:1 or mps."))
    workers: int | None = field(
        default=None,
        metadata=_help("Processes that prepare batches; 0, the default on a CPU, prepares them in turn with the steps."),
    )
    threads: int = field(default=0, metadata=_help("CPU threads of the network; 0 for all cores."))
    cache_bytes: int | None = field(
        default=None, metadata=_help("Memory for decoded images; by default a quarter of what is free, 0 for no cache.")
    )
    track: tuple[str, ...] = field(default=(), metadata=_help("Also log to tensorboard or wandb; may be given twice."))
    resume: str = field(default="", metadata=_help("Go on with this run: its folder or its last.safetensors."))

    def __post_init__(self) -> None:
        for item in fields(self):
            value, kinds = getattr(self, item.name), _KINDS.get(str(item.type).removesuffix(" | None"))
            absent = value is None and str(item.type).endswith(" | None")
            if kinds and not absent and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
                raise OptionError(f"--{item.name.replace('_', '-')} must be of type {item.type}, got {value!r}")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptionError(f"--{name.replace('_', '-')} must lie in {low:g} to {high:g}, got {value}")
        if self.task is not None and self.task not in TASKS:
            raise OptionError(f"--task must be one of {', '.join(TASKS)}, got {self.task!r}")
        allowed_values = (
            ("optimizer", ("auto", "sgd", "adamw")),
            ("amp", ("auto", "on", "off")),
            ("windows", ("auto", "always", "never")),
        )
        for name, allowed in allowed_values:
            if getattr(self, name) not in allowed:
                raise OptionError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, texts in (("lr-factors", self.lr_factors), ("model-options", self.model_options)):
            for text in texts:
                if not text.partition("=")[0].strip() or "=" not in text:
                    raise OptionError(f"--{name} takes NAME=VALUE, got {text!r}")
        if any(not 0 <= value <= 1000 for value in self.rate_factors().values()):  # NaN too
            raise OptionError(f"--lr-factors must lie in 0 to 1000, got {', '.join(self.lr_factors)}")
        unknown = [name for name in self.track if name not in ("tensorboard", "wandb")]
        if unknown:
            raise OptionError(f"--track knows tensorboard and wandb, got {', '.join(unknown)}")

    def rate_factors(self) -> dict[str, float]:
        """Prefix of a parameter's name -> factor on its learning rate, `backbone_lr` among them.

        Raises:
            OptionError: a factor is not a number.
        """
        found = {"backbone.": self.backbone_lr} if self.backbone_lr != 1.0 else {}
        for text in self.lr_factors:
            prefix, _, value = text.partition("=")
            try:
                found[prefix.strip()] = float(value)
            except ValueError as error:
                raise OptionError(f"--lr-factors takes PREFIX=FACTOR with a number, got {text!r}") from error
        return found

    def own_options(self) -> dict[str, Any]:
        """The model's own options: values are JSON where they can be read so, else text; lists become tuples."""
        found: dict[str, Any] = {"backbone": self.backbone} if self.backbone else {}
        for text in self.model_options:
            name, _, value = text.partition("=")
            try:
                parsed = json.loads(value)
            except ValueError:
                parsed = value
            found[name.strip()] = _tuples(parsed)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values of every option."""
        return asdict(self)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


#: Declared type -> what a value from a configuration file may be.
_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "tuple[str, ...]": (tuple,),
    "AugmentOptions": (AugmentOptions,),
}

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, 1_000_000),
    ("batch", 1, 65_536),
    ("windows_per_image", 0, 65_536),
    ("imgsz", 32, 8192),
    ("lr", 1e-12, 1e3),
    ("lr_final", 0, 1),
    ("weight_decay", 0, 10),
    ("momentum", 0, 0.9999),
    ("warmup_epochs", 0, 1_000_000),
    ("clip_norm", 0, 1e9),
    ("ema_decay", 0, 0.999999),
    ("close_mosaic", 0, 1_000_000),
    ("backbone_lr", 0, 10),
    ("val_fraction", 0, 0.9),
    ("val_every", 1, 1_000_000),
    ("patience", 0, 1_000_000),
    ("save_every", 1, 1_000_000),
    ("seed", 0, 2**63 - 1),
    ("workers", 0, 1024),
    ("threads", 0, 4096),
    ("cache_bytes", 0, 2**63 - 1),
)


def options_from_dict(values: dict[str, Any], *, where: str = CONFIG_NAME) -> TrainOptions:
    """Read what `TrainOptions.to_dict` wrote; options that are absent keep their defaults.

    Raises:
        OptionError: an unknown option, or a value of the wrong kind or range.
    """
    known = {item.name for item in fields(TrainOptions)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise OptionError(f"{where}: unknown option {', '.join(unknown)}; remove it or check the spelling")
    prepared = dict(values)
    for name in ("track", "classes", "lr_factors", "model_options"):
        if isinstance(prepared.get(name), list):
            prepared[name] = tuple(prepared[name])
    if "augment" in prepared:
        inner = prepared["augment"]
        names = {item.name for item in fields(AugmentOptions)}
        if not isinstance(inner, dict) or not set(inner) <= names:
            raise OptionError(f"{where}: augment must be an object with keys among {', '.join(sorted(names))}")
        prepared["augment"] = AugmentOptions(**inner)
    try:
        return TrainOptions(**prepared)
    except TypeError as error:
        raise OptionError(f"{where}: an option has a value of the wrong kind ({error})") from error


def defaults_of(model: str) -> TrainOptions:
    """The options of a run of `model` for which nothing is stated: those of every run, but for what the model has of its own.

    Raises:
        OptionError: no model has this name.
    """
    own = dict(entry(model).training)
    return TrainOptions(**{**own, "model": model, "augment": AugmentOptions(**own.get("augment", {}))})


def load_options(path: str | Path) -> TrainOptions:
    """The options in a `config.json`, or in the run folder that holds one.

    Raises:
        OptionError: no such file, or not a configuration.
    """
    file = Path(path)
    file = file / CONFIG_NAME if file.is_dir() else file
    if not file.is_file():
        raise OptionError("no such configuration; expected a run's config.json", where=file)
    values = read_json(file, _CONFIG_LIMIT_BYTES)
    if not isinstance(values, dict):
        raise OptionError("a configuration is a JSON object of options", where=file)
    return options_from_dict(values, where=str(file))


def resume_options(options: TrainOptions, explicit: Collection[str] = ()) -> TrainOptions:
    """The options with which the run at `options.resume` goes on.

    The run's own configuration is the base. An option of `RESUMABLE` is replaced where `options` differs from the defaults or
    `explicit` names it. Any other option must keep a default or agree with the run. Defaults are those of every run and those of
    the run's model (`defaults_of`).

    Raises:
        OptionError: an option that shapes the weights was changed, the run has no configuration, or its model is unknown.
    """
    place = Path(options.resume)
    saved = load_options(place if place.is_dir() else place.parent)
    own = defaults_of(saved.model)
    changes: dict[str, Any] = {"resume": options.resume}
    refused: list[str] = []
    for item in fields(TrainOptions):
        given, before = getattr(options, item.name), getattr(saved, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if given == before or (given in (default, getattr(own, item.name)) and item.name not in explicit):
            continue
        if item.name in RESUMABLE:
            changes[item.name] = given
        else:
            refused.append(f"--{item.name.replace('_', '-')} ({before!r} in the run, {given!r} now)")
    if refused:
        raise OptionError(
            f"a resumed run keeps {', '.join(refused)}. Leave these out, or start a new run with --weights {options.resume}",
            where=place,
        )
    return replace(saved, **changes)
