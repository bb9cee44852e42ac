"""Starting from weights that know something: which tensors fit, which are learnt anew, which stay fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pelagia.errors import CheckpointError, OptionError
from pelagia.models.model import Model

__all__ = ["Transfer", "freeze", "frozen_norms", "layers", "transfer"]


@dataclass(frozen=True)
class Transfer:
    """What became of a checkpoint's tensors.

    Args:
        loaded: names that were copied.
        new: names of the model that the checkpoint does not have or has in another shape; initialised as without weights.
        unused: names of the checkpoint that the model does not have.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people: the count, then the names of what was not copied."""
        text = [f"{len(self.loaded)} tensors loaded, {len(self.new)} initialised anew, {len(self.unused)} unused"]
        text += [f"  anew: {name}" for name in self.new]
        return text + [f"  unused: {name}" for name in self.unused]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"loaded": list(self.loaded), "new": list(self.new), "unused": list(self.unused)}


def transfer(model: Model, tensors: Mapping[str, Tensor], classes: tuple[str, ...] = (), *, where: str = "weights") -> Transfer:
    """Copy every tensor whose name and shape fit.

    `classes` are the names of the checkpoint's classes. A tensor that depends on the classes fits by shape also when there are
    as many but other ones; it is then initialised anew nonetheless, since what a class's weights mean is the class.

    Raises:
        CheckpointError: nothing fits.
    """
    own = model.state_dict()
    other_classes = bool(classes) and classes != model.card.class_names
    per_class = _class_tensors(model) if other_classes else set()
    fitting = [
        name for name, value in own.items() if name in tensors and tensors[name].shape == value.shape and name not in per_class
    ]
    if not fitting:
        raise CheckpointError(f"no tensor fits {model.card.name}; is this a checkpoint of another architecture?", where=where)
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(tensors[name])
    loaded = set(fitting)
    return Transfer(
        loaded=tuple(fitting),
        new=tuple(name for name in own if name not in loaded),
        unused=tuple(name for name in tensors if name not in loaded),
    )


def _class_tensors(model: Model) -> set[str]:
    """Names of the tensors with one slice per class (and one of "no object" perhaps): the last layers under a `classes`."""
    count = len(model.card.categories)
    chosen: set[str] = set()
    for name, module in model.named_modules():
        if "classes" in name.split(".") and isinstance(module, nn.Conv2d | nn.Linear):
            out = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
            # With four offsets per class and background in two-stage detectors. Before a norm there is no bias.
            if out in (count, count + 1, 4 * (count + 1)) and module.bias is not None:
                chosen |= {f"{name}.weight", f"{name}.bias"}
    return chosen


def layers(model: nn.Module) -> list[str]:
    """Names of the layers that `--freeze N` counts, from the input on: the parts of `backbone` and `neck`, and the other children
    of the model."""
    names: list[str] = []
    for name, child in model.named_children():
        inner = [f"{name}.{part}" for part, _ in child.named_children()] if name in ("backbone", "neck") else []
        names += inner or [name]
    return names


def freeze(model: nn.Module, what: str) -> tuple[str, ...]:
    """Take the gradient from the parameters that `what` names; returns their names.

    `what` is empty, a number of leading `layers`, or prefixes of parameter names joined by commas.

    Raises:
        OptionError: a prefix that no parameter has, or more layers than there are.
    """
    if not what:
        return ()
    if what.strip().isdigit():
        known, count = layers(model), int(what)
        if count > len(known):
            raise OptionError(f"--freeze {count}, but the model has {len(known)} layers: {', '.join(known)}")
        prefixes = [name + "." for name in known[:count]]
    else:
        prefixes = [part.strip() for part in what.split(",") if part.strip()]
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name, _ in model.named_parameters()):
                raise OptionError(f"--freeze {prefix}: no parameter begins so; the layers are {', '.join(layers(model))}")
    chosen = []
    for name, parameter in model.named_parameters():
        if any(name.startswith(prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
            chosen.append(name)
    return tuple(chosen)


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Batch norms without a trainable parameter: they stay in evaluation mode, or their statistics would go on learning."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if not any(parameter.requires_grad for parameter in norm.parameters())]
