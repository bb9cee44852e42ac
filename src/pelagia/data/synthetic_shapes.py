"""The outlines of drawn organisms: plankton and diatoms as lists of strokes.

A shape lives in its body's frame: x along the body, the head at x = +1 and the tail at x = -1, y across it within +-half, where
`half` is the half-width that the caller asks for, in half-lengths. Strokes are painted in order, later ones over earlier ones;
a density is the optical density relative to the rest of the body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pelagia.core.types import Float

__all__ = ["DIATOM_SHAPES", "PLANKTON_SHAPES", "Draw", "Shape", "Stroke", "aggregate", "fibre", "speck"]


@dataclass(frozen=True, slots=True)
class Stroke:
    """A filled polygon (`width` 0) or a line of that width, in half-lengths; `points` [P, 2]."""

    points: Float
    width: float
    density: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Strokes in painting order, and where head and tail lie."""

    strokes: list[Stroke]
    head: tuple[float, float] = (1.0, 0.0)
    tail: tuple[float, float] = (-1.0, 0.0)


#: Generator and half-width in half-lengths -> shape.
Draw: TypeAlias = Callable[[np.random.Generator, float], Shape]


def _ellipse(x: float, y: float, a: float, b: float, count: int = 40) -> Float:
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + a * np.cos(t), y + b * np.sin(t)], axis=1)


def _line(*points: tuple[float, float]) -> Float:
    return np.array(points, dtype=np.float64)


def _curve(start: tuple[float, float], control: tuple[float, float], end: tuple[float, float], count: int = 14) -> Float:
    """Quadratic Bezier curve."""
    t = np.linspace(0, 1, count)[:, None]
    curve: Float = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(control) + t**2 * np.array(end)
    return curve


def _closed(points: Float) -> Float:
    return np.concatenate([points, points[:1]])


def _ribbon(path: Float, width: Float) -> Float:
    """Outline of a band of `width` [P] around `path` [P, 2]."""
    normal = _normals(path) * (width / 2)[:, None]
    return np.concatenate([path + normal, (path - normal)[::-1]])


def _normals(path: Float) -> Float:
    slope = np.gradient(path, axis=0)
    slope /= np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
    return np.stack([-slope[:, 1], slope[:, 0]], axis=1)


def _jitter(rng: np.random.Generator, spread: float) -> float:
    return float(1 + rng.uniform(-spread, spread))


def copepod(rng: np.random.Generator, half: float) -> Shape:
    """Oval body with segments, a narrow forked tail and two long antennae swept back."""
    wide = 0.48 * half * _jitter(rng, 0.1)
    t = np.linspace(0, np.pi, 24)
    x = 0.32 + 0.56 * np.cos(t)
    y = wide * np.sin(t) ** 0.75 * (1 - 0.22 * np.cos(t))
    body = np.concatenate([np.stack([x, y], 1), np.stack([x, -y], 1)[::-1]])
    strokes = []
    for side in (-1.0, 1.0):
        reach = side * half
        bend = 0.75 * _jitter(rng, 0.15)
        antenna = _curve((0.8, side * wide * 0.5), (0.95, reach * 1.25), (0.3 - bend, reach * 0.95))
        strokes.append(Stroke(antenna, 0.055, 1.1))
        strokes += [
            Stroke(_line((leg, side * wide * 0.8), (leg - 0.22, side * wide * 1.45)), 0.035, 0.8) for leg in (0.5, 0.3, 0.1)
        ]
        strokes.append(Stroke(_line((-0.66, 0.0), (-1.0, side * 0.22 * half)), 0.05, 1.0))
    tail = _line((-0.2, 0.0), (-0.7, 0.0))
    strokes.append(Stroke(_ribbon(tail, np.array([0.24, 0.15]) * max(half, 0.5) * 1.4), 0.0, 1.0))
    strokes.append(Stroke(body, 0.0, 0.75))
    strokes.append(Stroke(_ellipse(0.38, 0.0, 0.32, wide * 0.4), 0.0, 1.5))
    strokes += [Stroke(_line((cut, -wide * 0.75), (cut, wide * 0.75)), 0.03, 1.9) for cut in (0.02, -0.08, 0.14)]
    strokes.append(Stroke(_closed(body), 0.04, 1.5))
    strokes.append(Stroke(_ellipse(0.76, 0.0, 0.06, 0.06), 0.0, 3.0))
    return Shape(strokes, head=(0.88, 0.0))


def medusa(rng: np.random.Generator, half: float) -> Shape:
    """A pale bell with radial canals and a dark rim, trailing wavy tentacles."""
    edge = 0.1 * rng.uniform(-1, 1)
    t = np.linspace(-np.pi / 2, np.pi / 2, 30)
    dome = np.stack([edge + (1 - edge) * np.cos(t) ** 0.8, half * np.sin(t)], axis=1)
    margin = np.linspace(half, -half, 25)[1:-1]
    lobes = int(rng.integers(5, 8))
    scallop = edge + 0.07 * np.abs(np.sin(np.linspace(0, lobes * np.pi, 25)))[1:-1]
    bell = np.concatenate([dome, np.stack([scallop, margin], axis=1)])
    strokes = []
    for base in np.linspace(-0.9, 0.9, lobes + 1) * half:
        length = 1 + edge - 0.25 * rng.random()
        s = np.linspace(0, 1, 18)
        sway = 0.1 * half * np.sin(s * 2 * np.pi * rng.uniform(1.2, 2.0) + rng.uniform(0, 6)) * s
        strokes.append(Stroke(np.stack([edge - s * length, base * (1 - 0.25 * s) + sway], axis=1), 0.045, 0.9))
    strokes.append(Stroke(bell, 0.0, 0.55))
    inner = bell * 0.78 + np.array([0.06, 0.0])
    strokes.append(Stroke(inner, 0.0, 0.4))
    strokes += [
        Stroke(_curve((0.85, y * half * 0.3), (0.6, y * half), (edge + 0.05, y * half * 1.15)), 0.035, 1.1)
        for y in (-0.55, -0.2, 0.2, 0.55)
    ]
    strokes.append(Stroke(_ribbon(_line((0.55, 0.0), (edge - 0.12, 0.0)), np.array([0.16, 0.1])), 0.0, 1.7))
    strokes.append(Stroke(_closed(bell), 0.05, 1.3))
    return Shape(strokes, tail=(min(float(stroke.points[:, 0].min()) for stroke in strokes), 0.0))


def chain(rng: np.random.Generator, half: float) -> Shape:
    """Round cells in a winding row, each with a dark wall and a nucleus."""
    count = int(rng.integers(7, 10))
    bends = float(rng.choice([1.0, 1.5]))
    s = np.linspace(0, 1, 400)
    radius_guess = 0.16
    path = np.stack([(1 - 2 * s) * (1 - radius_guess), (half - radius_guess) * np.sin(2 * np.pi * bends * s + 0.6)], axis=1)
    steps = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    radius = min(steps[-1] / (count - 1) / 2 * 1.02, 0.8 * half)
    centres = np.stack([np.interp(np.linspace(0, steps[-1], count), steps, path[:, axis]) for axis in (0, 1)], axis=1)
    strokes = [Stroke(centres, 0.05, 1.2)]
    for x, y in centres:
        cell = _ellipse(x, y, radius, radius, 24)
        strokes += [Stroke(cell, 0.0, 0.5), Stroke(_closed(cell), 0.06, 1.6)]
        strokes.append(Stroke(_ellipse(x, y, radius * 0.36, radius * 0.36, 12), 0.0, 2.2))
    return Shape(strokes, head=(float(centres[0, 0]), float(centres[0, 1])), tail=(float(centres[-1, 0]), float(centres[-1, 1])))


def radiolarian(rng: np.random.Generator, half: float) -> Shape:
    """A perforated ball with a ring inside and straight spines all around."""
    count, turn = int(rng.integers(11, 16)), rng.uniform(0, np.pi)
    strokes = []
    for angle in turn + np.arange(count) * 2 * np.pi / count:
        x, y = np.cos(angle), np.sin(angle)
        reach = rng.uniform(0.9, 1.0)
        strokes.append(Stroke(_line((0.5 * x, 0.5 * half * y), (reach * x, reach * half * y)), 0.055, 1.2))
    shell = _ellipse(0, 0, 0.58, 0.58 * half)
    strokes += [Stroke(shell, 0.0, 0.75), Stroke(_closed(shell), 0.06, 1.5)]
    ring = _ellipse(0, 0, 0.3, 0.3 * half)
    strokes += [Stroke(ring, 0.0, 1.5), Stroke(_closed(ring), 0.05, 2.4)]
    for angle in np.arange(9) * 2 * np.pi / 9 + turn:
        x, y = 0.44 * np.cos(angle), 0.44 * half * np.sin(angle)
        strokes.append(Stroke(_ellipse(x, y, 0.05, 0.05, 10), 0.0, 0.25))
    return Shape(strokes, head=(0.58, 0.0), tail=(-0.58, 0.0))


def polychaete(rng: np.random.Generator, half: float) -> Shape:
    """A bent, ringed worm with bristles on both sides of every segment."""
    s = np.linspace(0, 1, 60)
    bends, thick = float(rng.choice([0.75, 1.0])), 0.3 + 0.1 * half
    amplitude = max(half - thick * 0.75, 0.05)
    path = np.stack([(1 - 2 * s) * 0.88, amplitude * np.sin(2 * np.pi * bends * s * _jitter(rng, 0.1))], axis=1)
    width = thick * np.minimum(1.0, np.minimum(0.55 + 3 * s, 0.3 + 1.8 * (1 - s)))
    normal, body = _normals(path), _ribbon(path, width)
    strokes = []
    segments = int(rng.integers(10, 14))
    at = np.linspace(4, 56, segments).astype(int)
    for index in at:
        for side in (-1.0, 1.0):
            root = path[index] + side * normal[index] * width[index] * 0.4
            tip = path[index] + side * normal[index] * (width[index] * 0.5 + 0.11)
            strokes.append(Stroke(np.stack([root, tip]), 0.045, 1.0))
    strokes += [Stroke(np.stack([path[1], path[0] + np.array([0.16, side * 0.12])]), 0.04, 1.1) for side in (-1.0, 1.0)]
    strokes.append(Stroke(body, 0.0, 0.7))
    for index in at:
        rim = normal[index] * width[index] * 0.45
        strokes.append(Stroke(np.stack([path[index] - rim, path[index] + rim]), 0.06, 1.8))
    strokes.append(Stroke(_ellipse(path[2, 0], path[2, 1], 0.06, 0.06, 12), 0.0, 2.6))
    head, tail = path[0], path[-1]
    return Shape(strokes, head=(float(head[0]), float(head[1])), tail=(float(tail[0]), float(tail[1])))


def cladoceran(rng: np.random.Generator, half: float) -> Shape:
    """An egg-shaped carapace with one large black eye, a clutch of round eggs, and a tail spine."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    carapace = np.stack([0.12 + 0.76 * np.cos(t), 0.9 * half * np.sin(t) * (1 - 0.22 * np.cos(t))], axis=1)
    back = float(rng.choice([-1.0, 1.0]))
    strokes = [Stroke(_line((-0.5, back * 0.2 * half), (-1.0, back * 0.35 * half)), 0.06, 1.2)]
    strokes += [
        Stroke(_curve((0.62, -back * 0.4 * half), (0.7, -back * half * 1.1), (bend, -back * half)), 0.05, 1.1)
        for bend in (0.2, 0.5)
    ]
    strokes += [Stroke(carapace, 0.0, 0.55), Stroke(_closed(carapace), 0.05, 1.2)]
    gut = _curve((0.62, 0.0), (0.2, -back * 0.55 * half), (-0.45, -back * 0.1 * half))
    strokes.append(Stroke(gut, 0.11, 1.0))
    for _ in range(int(rng.integers(4, 7))):
        x, y = rng.uniform(-0.42, 0.12), back * rng.uniform(0.12, 0.5) * half
        egg = _ellipse(x, y, 0.12, 0.12, 16)
        strokes += [Stroke(egg, 0.0, 1.2), Stroke(_closed(egg), 0.035, 1.9)]
    strokes.append(Stroke(_ellipse(0.66, 0.0, 0.13, 0.13, 18), 0.0, 3.2))
    return Shape(strokes, head=(0.88, 0.0))


def _valve(upper: Float, lower: Float, x: Float, striae: int, ribs: float, density: float) -> list[Stroke]:
    """A diatom valve between two edges y(x): fill, transverse striae, wall."""
    outline = np.concatenate([np.stack([x, upper], axis=1), np.stack([x, lower], axis=1)[::-1]])
    strokes = [Stroke(outline, 0.0, density)]
    for at in np.linspace(-0.88, 0.88, striae):
        top, bottom = np.interp(at, x, upper), np.interp(at, x, lower)
        strokes.append(Stroke(_line((at, bottom * 0.9), (at, top * 0.9)), ribs, density * 2.0))
    strokes.append(Stroke(_closed(outline), 0.035, 2.0))
    return strokes


_X = np.linspace(-1, 1, 61)


def navicula(rng: np.random.Generator, half: float) -> Shape:
    """Boat-shaped: fine striae, a clear line (raphe) along the middle with a central knot."""
    edge = half * (1 - np.abs(_X) ** 2.2)
    strokes = _valve(edge, -edge, _X, 15, 0.028, 0.6)
    strokes.append(Stroke(_line((-0.9, 0.0), (0.9, 0.0)), 0.07, 0.3))
    strokes.append(Stroke(_line((-0.85, 0.0), (0.85, 0.0)), 0.022, 2.2))
    strokes.append(Stroke(_ellipse(0.0, 0.0, 0.08, half * 0.4, 16), 0.0, 0.3))
    return Shape(strokes)


def gomphonema(rng: np.random.Generator, half: float) -> Shape:
    """Club-shaped: broad head, narrow foot, striae."""
    wide = 0.32 + 0.68 / (1 + np.exp(-(_X - 0.0) * 5))
    edge = half * wide * np.clip(1 - np.abs(_X) ** 8, 0, None) ** 0.5
    strokes = _valve(edge, -edge, _X, 13, 0.03, 0.6)
    strokes.append(Stroke(_line((-0.85, 0.0), (0.85, 0.0)), 0.05, 0.3))
    strokes.append(Stroke(_ellipse(0.45, 0.0, 0.2, half * 0.45, 20), 0.0, 2.4))
    return Shape(strokes)


def cymbella(rng: np.random.Generator, half: float) -> Shape:
    """Half-moon: one arched and one nearly straight side, chloroplasts along the arch."""
    arch = half * (2 * (1 - _X**2) - 1)
    flat = half * (-1 + 0.25 * (1 - _X**2))
    strokes = _valve(arch, np.minimum(flat, arch), _X, 11, 0.025, 0.5)
    strokes.append(Stroke(np.stack([_X * 0.85, 0.45 * arch - 0.35 * half], axis=1), 0.05, 2.4))
    return Shape(strokes, head=(1.0, -half), tail=(-1.0, -half))


def nitzschia(rng: np.random.Generator, half: float) -> Shape:
    """Straight-sided with drawn-out tips; a row of dots (keel) along one edge."""
    edge = half * np.clip((1 - np.abs(_X)) / 0.35, 0.08, 1.0)
    strokes = _valve(edge, -edge, _X, 0, 0.03, 0.5)
    side = float(rng.choice([-1.0, 1.0]))
    for at in np.linspace(-0.68, 0.68, 11):
        strokes.append(Stroke(_ellipse(at, side * half * 0.72, 0.035, 0.05, 10), 0.0, 3.0))
    for centre in (-0.32, 0.32):
        strokes.append(Stroke(_ellipse(centre, -side * half * 0.2, 0.22, half * 0.4, 20), 0.0, 1.2))
    return Shape(strokes)


def surirella(rng: np.random.Generator, half: float) -> Shape:
    """Oblong with few, bold ribs from both margins that leave the middle free."""
    edge = half * np.clip(1 - np.abs(_X) ** 5, 0, None) ** 0.5
    strokes = _valve(edge, -edge, _X, 0, 0.03, 0.45)
    for at in np.linspace(-0.82, 0.82, 8):
        for side in (-1.0, 1.0):
            top = float(np.interp(at, _X, edge))
            strokes.append(Stroke(_line((at, side * top), (at * 0.9, side * top * 0.3)), 0.07, 2.2))
    return Shape(strokes)


def tabellaria(rng: np.random.Generator, half: float) -> Shape:
    """A rod swollen in the middle and at both ends."""
    swell = np.exp(-((_X / 0.17) ** 2)) + 0.8 * np.exp(-(((np.abs(_X) - 0.84) / 0.15) ** 2))
    edge = half * np.clip(0.38 + 0.66 * swell, 0, 1) * np.clip(1 - np.abs(_X) ** 14, 0, None) ** 0.5
    strokes = _valve(edge, -edge, _X, 0, 0.03, 0.7)
    strokes.append(Stroke(_line((-0.75, 0.0), (0.75, 0.0)), 0.03, 1.8))
    for x in (-0.84, 0.0, 0.84):
        strokes.append(Stroke(_ellipse(x, 0.0, 0.1, half * 0.42, 16), 0.0, 2.0))
    return Shape(strokes)


def aggregate(rng: np.random.Generator, half: float) -> Shape:
    """Marine snow: a heap of irregular flakes."""
    strokes = []
    for _ in range(int(rng.integers(6, 14))):
        t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        wave = sum(rng.uniform(-0.3, 0.3) / k**0.5 * np.cos(k * t + rng.uniform(0, 6)) for k in (1, 2, 3, 5))
        radius = rng.uniform(0.12, 0.42) * (1 + wave)
        x, y = rng.normal(0, 0.33), rng.normal(0, 0.33) * half
        flake = np.stack([x + radius * np.cos(t), y + radius * np.sin(t) * half], axis=1)
        strokes.append(Stroke(flake, 0.0, float(rng.uniform(0.4, 1.6))))
    return Shape(strokes)


def fibre(rng: np.random.Generator, half: float) -> Shape:
    """A curved thread."""
    s = np.linspace(-1, 1, 30)
    y = half * np.sin(s * rng.uniform(1, 3) + rng.uniform(0, 6))
    return Shape([Stroke(np.stack([s, y], axis=1), 0.06, 1.0)])


def speck(rng: np.random.Generator, half: float) -> Shape:
    """A crumb."""
    t = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    radius = rng.uniform(0.5, 1.0, 9)
    return Shape([Stroke(np.stack([radius * np.cos(t), radius * np.sin(t) * half], axis=1), 0.0, 1.0)])


PLANKTON_SHAPES: dict[str, Draw] = {
    "copepod": copepod,
    "medusa": medusa,
    "chain": chain,
    "radiolarian": radiolarian,
    "polychaete": polychaete,
    "cladoceran": cladoceran,
}

DIATOM_SHAPES: dict[str, Draw] = {
    "navicula": navicula,
    "gomphonema": gomphonema,
    "cymbella": cymbella,
    "nitzschia": nitzschia,
    "surirella": surirella,
    "tabellaria": tabellaria,
}
