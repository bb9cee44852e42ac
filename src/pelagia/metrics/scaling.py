"""Maps that turn a model's scores into probabilities of being right, fitted on a validation set.

With z = logit(s) of a score s and the logistic function sigmoid:

- temperature: sigmoid(z / T) (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017);
- platt: sigmoid(a z + b) (Platt, "Probabilistic Outputs for Support Vector Machines", 1999);
- isotonic: the monotone function of least squares (Zadrozny and Elkan, KDD 2002), linear between its breakpoints.

All of them rise with s, so inside a class the ranking never reverses. A map is stored in the model's card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from pelagia.core.types import Float, Int, Mask
from pelagia.errors import CheckpointError, EvaluationError, OptionError
from pelagia.metrics.outcomes import check_labels, check_outcomes, check_scores

__all__ = ["MAP_KINDS", "MapKind", "ScoreMap", "fit_score_map", "temperature_for_logits"]

MapKind: TypeAlias = Literal["temperature", "platt", "isotonic"]

#: Every kind of map.
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)

#: Scores nearer to 0 or 1 are taken for this near before the logit: a float32 sigmoid resolves 6e-8 below 1.
_NEAREST = 1e-7

#: Range of temperatures, and of the inverse of Platt's slope. Separable samples would ask for 0, and scores that rank the wrong
#: way for a negative number, which would reverse the ranking.
_COLDEST, _HOTTEST = 0.05, 20.0

#: Largest absolute value of a parameter, and of its inverse where it divides or multiplies a logit; far beyond any fit.
_LARGEST = 1e6

_FIELDS: dict[MapKind, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "platt": ("slope", "offset"),
    "isotonic": ("scores", "values"),
}


@dataclass(frozen=True, slots=True)
class ScoreMap:
    """A monotone map of scores, one for all classes or one per class.

    Parameters are JSON values: {"temperature": T}; {"slope": a, "offset": b}; for isotonic {"scores": [K], "values": [K]} with
    scores strictly ascending and values not descending, both in [0, 1].

    Args:
        kind: temperature, platt or isotonic.
        common: parameters for all classes together.
        class_names: names in label order; empty when there is one map for all.
        per_class: parameters of the classes that have their own map, by name. The others use `common`.

    Raises:
        EvaluationError: the parameters are not those of this kind, or belong to an unknown class.
    """

    kind: MapKind
    common: dict[str, Any]
    class_names: tuple[str, ...] = ()
    per_class: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in MAP_KINDS:
            raise EvaluationError(f"unknown kind of score map {self.kind!r}, expected one of {', '.join(MAP_KINDS)}")
        if not all(isinstance(name, str) for name in self.class_names):
            raise EvaluationError("the class names of a score map must be text")
        if len(set(self.class_names)) < len(self.class_names):
            raise EvaluationError("two classes of a score map have the same name; rename one")
        unknown = [name for name in self.per_class if name not in self.class_names]
        if unknown:
            raise EvaluationError(f"the score map has parameters for {unknown[0]!r}, which is none of its classes")
        _check_parameters(self.kind, self.common, "all classes")
        for name, parameters in self.per_class.items():
            _check_parameters(self.kind, parameters, f"the class {name!r}")

    @property
    def fallback(self) -> tuple[str, ...]:
        """Classes without a map of their own, in label order: they had too few samples or one outcome only."""
        return tuple(name for name in self.class_names if name not in self.per_class)

    def apply(self, score: NDArray[Any], labels: NDArray[Any] | None = None) -> Float:
        """The mapped scores, in [0, 1] and of the shape of `score`.

        Inside a class a larger score never becomes the smaller one, up to rounding in the last digit. Scores may become equal: on
        the flat parts of an isotonic map, within 1e-7 of 0 and 1, and where a steep map saturates. Then AP may change; else it
        stays. A score threshold chosen for raw scores must be mapped as well, or be applied before.

        Args:
            score: [N] in [0, 1].
            labels: [N] class indices; needed when there are maps per class.

        Raises:
            EvaluationError: scores outside [0, 1], labels missing, of another shape, or without class.
        """
        values = check_scores(score).astype(np.float64)
        if not self.per_class:
            return _map(self.kind, self.common, values)
        if labels is None:
            raise EvaluationError("this score map differs by class; give the labels of the scores")
        classes = check_labels(labels, len(self.class_names))
        if classes.shape != values.shape:
            raise EvaluationError(f"labels have shape {list(classes.shape)} and scores {list(values.shape)}; give one for each")
        result = np.empty(values.size)
        flat = values.reshape(-1)
        for label, part in _groups(classes.reshape(-1)):
            parameters = self.per_class.get(self.class_names[label], self.common)
            result[part] = _map(self.kind, parameters, flat[part])
        return result.reshape(values.shape)

    def for_classes(self, class_names: Sequence[str]) -> ScoreMap:
        """The same map for labels in the order of `class_names`, matched by name; a new class uses the common map.

        A map fitted on a data set is so made fit for a model whose classes stand in another order.
        """
        kept = {name: self.per_class[name] for name in class_names if name in self.per_class}
        return ScoreMap(self.kind, self.common, tuple(class_names), kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as stored in `ModelCard.calibration`."""
        return {
            "kind": self.kind,
            "common": dict(self.common),
            "class_names": list(self.class_names),
            "per_class": {name: dict(parameters) for name, parameters in self.per_class.items()},
        }

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "model card") -> ScoreMap:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: not such a dictionary, a field missing or too many, or parameters that are no map.
        """
        expected = {"kind", "common", "class_names", "per_class"}
        if not isinstance(values, dict) or set(values) != expected:
            got = ", ".join(map(str, values)) or "nothing" if isinstance(values, dict) else type(values).__name__
            raise CheckpointError(
                f"the stored score map must have the fields {', '.join(sorted(expected))}, got {got}; fit it again", where=where
            )
        if not isinstance(values["class_names"], list | tuple) or not isinstance(values["per_class"], dict):
            raise CheckpointError("the stored score map must list its classes and map names to parameters", where=where)
        try:
            return cls(values["kind"], values["common"], tuple(values["class_names"]), values["per_class"])
        except EvaluationError as error:
            raise CheckpointError(f"{error.reason}; fit the score map again", where=where) from error


def fit_score_map(
    score: NDArray[Any],
    correct: NDArray[Any],
    kind: MapKind,
    *,
    labels: NDArray[Any] | None = None,
    classes: Sequence[str] | None = None,
    least: int = 100,
) -> ScoreMap:
    """The map of `kind` that makes these scores probabilities of being right.

    With `labels` and `classes` a map is fitted for each class beside the one for all. A class with fewer than `least` samples, or
    whose samples are all right or all wrong, uses the map of all classes; `ScoreMap.fallback` lists such classes.

    - temperature: T of maximum likelihood, in [0.05, 20].
    - platt: a, b of maximum likelihood for Platt's targets, (R + 1) / (R + 2) for the R right samples and 1 / (W + 2) for the W
      wrong ones, which keep few samples from being overfitted; a in [0.05, 20].
    - isotonic: by the pool-adjacent-violators algorithm on the mean outcome of each distinct score; constant beyond the first and
      last score. It needs more samples than the others, about a thousand (Niculescu-Mizil and Caruana, ICML 2005).

    A limit of temperature or slope is reached when the scores separate right from wrong, or do not rank them.

    Args:
        score: [N] in [0, 1], of predictions on images that the model was not trained on.
        correct: [N] bool, or 0 and 1: the true positives; leave out predictions that do not count.
        labels: [N] class indices.
        classes: names in label order.

    Raises:
        EvaluationError: no sample, one outcome only, or arrays that do not fit together.
        OptionError: an unknown kind, `least` below 1, or only one of `labels` and `classes`.
    """
    if kind not in MAP_KINDS:
        raise OptionError(f"unknown kind of score map {kind!r}, expected one of {', '.join(MAP_KINDS)}")
    if least < 1:
        raise OptionError(f"least must be at least 1 sample per class, got {least}")
    if (labels is None) != (classes is None):
        raise OptionError("labels and classes go together: give both for a map per class, or neither for one map")
    given, outcomes = check_outcomes(score, correct)
    values, right = given.reshape(-1).astype(np.float64), outcomes.reshape(-1)
    _check_fittable(right)
    common = _fit(kind, values, right)
    if labels is None or classes is None:
        return ScoreMap(kind, common)
    index = check_labels(labels, len(classes))
    if index.shape != given.shape:
        raise EvaluationError(f"labels have shape {list(index.shape)} and scores {list(given.shape)}; give one for each")
    per_class = {
        classes[label]: _fit(kind, values[part], right[part])
        for label, part in _groups(index.reshape(-1))
        if len(part) >= least and right[part].any() and not right[part].all()
    }
    return ScoreMap(kind, common, tuple(classes), per_class)


def temperature_for_logits(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """T of maximum likelihood for softmax(logits / T) (Guo et al. 2017), in [0.05, 20]; the largest class stays the largest.

    In 1 / T the negative log likelihood is convex, and its derivative, the mean over samples of
    sum over c of p_c l_c - l_truth with p = softmax(l / T), has at most one root.

    Args:
        logits: [N, C] finite.
        labels: [N] true classes, 0 to C - 1.

    Raises:
        EvaluationError: no sample, a label without class, other shapes, or logits that are not finite.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise EvaluationError(f"logits have shape {list(values.shape)} and labels {list(truth.shape)}; expected [N, C] and [N]")
    truth = check_labels(truth, values.shape[1])
    if len(values) == 0:
        raise EvaluationError("there is no sample to fit a temperature to; predict a labelled validation set first")
    if not np.isfinite(values).all():
        raise EvaluationError("a logit is NaN or infinite; the network's weights or its input are broken")
    shifted = values - values.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(truth)), truth]

    def derivative(inverse: float) -> float:
        weight = np.exp(inverse * shifted)
        return float(((weight * shifted).sum(axis=1) / weight.sum(axis=1) - chosen).mean())

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if derivative(low) >= 0:
        return _HOTTEST
    if derivative(high) <= 0:
        return _COLDEST
    return 1 / float(optimize.brentq(derivative, low, high, xtol=1e-12))


def _fit(kind: MapKind, score: Float, right: Mask) -> dict[str, Any]:
    """Parameters for scores [N] that hold both outcomes."""
    if kind == "isotonic":
        return _fit_isotonic(score, right)
    z = _logit(score)
    if kind == "platt":
        return _fit_platt(z, right)
    # A sigmoid is a softmax over the logits 0 and z.
    return {"temperature": temperature_for_logits(np.stack([np.zeros_like(z), z], axis=1), right.astype(np.int64))}


def _fit_platt(z: Float, right: Mask) -> dict[str, float]:
    positive = int(np.count_nonzero(right))
    target = np.where(right, (positive + 1) / (positive + 2), 1 / (len(right) - positive + 2))
    centre, scale = float(z.mean()), float(z.std())
    if np.ptp(z) == 0:  # one score for all: no slope can be seen, only the share that is right
        return {"slope": 1.0, "offset": float(_logit(target.mean()) - z[0])}
    unit = (z - centre) / scale

    def loss(parameters: Float) -> tuple[float, Float]:
        """Cross entropy of sigmoid(p0 unit + p1) and the targets, and its gradient."""
        u = parameters[0] * unit + parameters[1]
        error = _sigmoid(u) - target
        value = float((np.logaddexp(0, u) - target * u).mean())
        return value, np.array([(error * unit).mean(), error.mean()])

    found = optimize.minimize(
        loss,
        np.array([scale, centre]),  # the identity
        jac=True,
        method="L-BFGS-B",
        bounds=[(scale / _HOTTEST, scale / _COLDEST), (None, None)],
        options={"maxiter": 500, "ftol": 1e-15, "gtol": 1e-10},
    )
    slope = float(found.x[0]) / scale
    return {"slope": slope, "offset": float(found.x[1]) - slope * centre}


def _fit_isotonic(score: Float, right: Mask) -> dict[str, list[float]]:
    distinct, place, count = np.unique(score, return_inverse=True, return_counts=True)
    share = np.bincount(place, weights=right.astype(np.float64)) / count
    found = optimize.isotonic_regression(share, weights=count.astype(np.float64))
    first, last = found.blocks[:-1], found.blocks[1:] - 1
    # The ends of every block; one point where a block is a single score.
    ends = np.unique(np.concatenate([first, last]))
    return {"scores": distinct[ends].tolist(), "values": np.clip(found.x[ends], 0, 1).tolist()}


def _map(kind: MapKind, parameters: dict[str, Any], score: Float) -> Float:
    if kind == "isotonic":
        value: Float = np.clip(np.interp(score, parameters["scores"], parameters["values"]), 0, 1)
        return value
    if kind == "platt":
        return _sigmoid(parameters["slope"] * _logit(score) + parameters["offset"])
    return _sigmoid(_logit(score) / parameters["temperature"])


def _logit(score: Float) -> Float:
    inside = np.clip(score, _NEAREST, 1 - _NEAREST)
    z: Float = np.log(inside) - np.log1p(-inside)
    return z


def _sigmoid(z: Float) -> Float:
    """1 / (1 + exp(-z)) that neither overflows nor loses small values."""
    value: Float = np.exp(-np.logaddexp(0, -z))
    return value


def _groups(labels: Int) -> Iterator[tuple[int, Int]]:
    """Each label present and where it stands."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    for label, low, high in zip(present.tolist(), starts.tolist(), [*starts[1:].tolist(), len(order)], strict=False):
        yield label, order[low:high]


def _check_fittable(right: Mask) -> None:
    if len(right) == 0:
        raise EvaluationError("there is no prediction to fit a score map to; predict a labelled validation set first")
    if right.all() or not right.any():
        what = "right" if right.all() else "wrong"
        raise EvaluationError(
            f"all {len(right)} predictions are {what}, and a score map needs both outcomes; "
            "use more validation images, or keep predictions of lower score"
        )


def _check_parameters(kind: MapKind, parameters: Any, whose: str) -> None:
    names = _FIELDS[kind]
    if not isinstance(parameters, dict) or set(parameters) != set(names):
        raise EvaluationError(f"the {kind} map of {whose} must have the parameters {', '.join(names)}, got {parameters!r}")
    if kind == "isotonic":
        problem = _isotonic_problem(parameters["scores"], parameters["values"])
    elif not all(_is_number(parameters[name]) for name in names):
        problem = f"its parameters must be numbers of at most {_LARGEST:g}"
    else:
        problem = "" if parameters[names[0]] >= 1 / _LARGEST else f"its {names[0]} must be positive, or the ranking would reverse"
    if problem:
        raise EvaluationError(f"the {kind} map of {whose} cannot be used: {problem}")


def _isotonic_problem(scores: Any, values: Any) -> str:
    for name, column in (("scores", scores), ("values", values)):
        if not isinstance(column, list) or not all(_is_number(value) and 0 <= value <= 1 for value in column):
            return f"its {name} must be a list of numbers in 0 to 1"
    if len(scores) != len(values) or not scores:
        return f"it has {len(scores)} scores and {len(values)} values, expected one value for each of one score or more"
    if (np.diff(scores) <= 0).any():
        return "its scores must ascend strictly"
    return "its values must not descend" if (np.diff(values) < 0).any() else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST  # NaN fails
