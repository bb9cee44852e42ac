"""What the files of Hugging Face transformers have in common: the configuration beside the weights, and the names of a ResNet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pelagia.core.files import read_json
from pelagia.core.types import Category
from pelagia.errors import CheckpointError, FormatError

__all__ = ["categories_of", "read_configuration", "renamed", "resnet_of", "timm_resnet_name"]

_CONFIGURATION = "config.json"
_LIMIT_BYTES = 10_000_000

#: Theirs -> timm's, applied in turn; stages and convolutions count from 0 there and from 1 here.
_RESNET = (
    (re.compile(r"^embedder\.embedder\.convolution\."), "conv1."),
    (re.compile(r"^embedder\.embedder\.normalization\."), "bn1."),
    (re.compile(r"\.shortcut\.convolution\."), ".downsample.0."),
    (re.compile(r"\.shortcut\.normalization\."), ".downsample.1."),
)
_STAGE = re.compile(r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.")
_INNER = re.compile(r"\.layer\.(\d+)\.(convolution|normalization)\.")

#: Blocks per stage, and whether they are bottlenecks -> the ResNet.
_DEPTHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


def read_configuration(weights: Path) -> dict[str, Any]:
    """The values of `config.json` in the folder of `weights`; empty where there is none.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    path = weights.with_name(_CONFIGURATION)
    if not path.is_file():
        return {}
    try:
        values = read_json(path, _LIMIT_BYTES)
    except FormatError as error:
        raise CheckpointError(f"the configuration beside the weights cannot be read ({error.reason})", where=path) from error
    if not isinstance(values, dict):
        raise CheckpointError("the configuration beside the weights must be a JSON object", where=path)
    return values


def categories_of(configuration: Mapping[str, Any], count: int) -> tuple[Category, ...]:
    """`count` classes, id and place alike, named by `id2label` of the configuration where it names them."""
    names = configuration.get("id2label")
    known: Mapping[Any, Any] = names if isinstance(names, Mapping) else {}
    return tuple(Category(index, str(known.get(str(index), f"class {index}"))) for index in range(count))


def renamed(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    """`name` after every rule (what to find, what to put there), in turn."""
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


def timm_resnet_name(name: str) -> str:
    """Name of a tensor in a `ResNetBackbone` of transformers -> its name in timm's ResNet; timm's own names stay."""
    name = _STAGE.sub(lambda found: f"layer{int(found[1]) + 1}.{found[2]}.", name)
    name = _INNER.sub(lambda found: f".{'conv' if found[2] == 'convolution' else 'bn'}{int(found[1]) + 1}.", name)
    return renamed(name, _RESNET)


def resnet_of(names: Iterable[str]) -> str | None:
    """The ResNet whose blocks the `names` of tensors, in timm's words, have; None if there is no such."""
    found = {name for name in names if re.match(r"layer[1-4]\.\d+\.conv", name)}
    depths = tuple(len({name.split(".")[1] for name in found if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4))
    return _DEPTHS.get((depths, any(".conv3." in name for name in found)))
