"""`pelagia split`: training, validation and test images that are alike in classes and share nothing else.

Images of one group (a sample, a cruise, copies of one picture) never stand on two sides. Classes are balanced by iterative
stratification: Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011, with groups in the
place of single examples and with the rule that a full side takes no more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pelagia.core.files import read_json, write_json, write_text
from pelagia.core.types import Float, Int
from pelagia.data.checks import is_object
from pelagia.data.dataset import Dataset
from pelagia.data.doctor import Table
from pelagia.data.fingerprint import fingerprints, near_groups
from pelagia.errors import FormatError, OptionError

__all__ = ["read_splits", "split", "split_table", "write_splits"]

#: Names that a split may have: they become file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def split(
    dataset: Dataset,
    fractions: Mapping[str, float],
    seed: int = 0,
    stratify: bool = True,
    group: str | None = None,
    *,
    copies: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Int]:
    """Split a data set's images at random: name -> sorted image indices; every image is in exactly one split.

    Args:
        dataset: what to split; splits that it already has are not looked at.
        fractions: name -> share of the images; positive, together 1.
        seed: the same seed, images and options give the same splits.
        stratify: give each split its share of the images of every class.
        group: a regular expression searched in the images' names; images whose first group (or whole match) is equal stay
            together, for example `^(cruise\\d+)_`.
        copies: keep equal and nearly equal images together; reads all images once. Unreadable ones count as unlike any other.
        progress: told how many of how many images are read.

    Without groups a split is larger than its share by less than one image; with groups, by less than its largest group.

    Raises:
        OptionError: fractions that are not shares, a bad expression or one that a name does not match, or a split left empty.
    """
    names, shares = _check(fractions)
    units = _units(dataset, group, copies, progress)
    sizes = np.array([len(unit) for unit in units], dtype=np.float64)
    presence = _presence(dataset, units) if stratify else np.zeros((len(units), 0))
    side = _stratify(presence, sizes, shares, np.random.default_rng(seed))
    result = {}
    for number, name in enumerate(names):
        members = [index for unit, where in zip(units, side.tolist(), strict=True) if where == number for index in unit]
        if not members:
            raise OptionError(
                f"the split {name!r} would be empty: {len(dataset)} images form {len(units)} groups that must stay together; "
                "take a finer group pattern, fewer splits, or more images",
                where=dataset.root,
            )
        result[name] = np.array(sorted(members), dtype=np.int64)
    return result


def _check(fractions: Mapping[str, float]) -> tuple[list[str], Float]:
    names = list(fractions)
    shares = np.array([float(fractions[name]) for name in names])
    for name in names:
        if not _NAME.fullmatch(name):
            raise OptionError(f"a split's name must be letters, digits, '.', '_' and '-', got {name!r}")
    if len(names) < 2 or not np.isfinite(shares).all() or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-3:
        text = ", ".join(f"{name} {value:g}" for name, value in fractions.items()) or "none"
        raise OptionError(
            f"split fractions must be two or more positive numbers with the sum 1, such as train 0.8, val 0.2; got {text}"
        )
    return names, shares / shares.sum()


def _units(dataset: Dataset, group: str | None, copies: bool, progress: Callable[[int, int], None] | None) -> list[list[int]]:
    """The images that must stay together, as lists of indices, ordered by their first image."""
    parent = list(range(len(dataset)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(members: Sequence[int]) -> None:
        for other in members[1:]:
            a, b = sorted((root(members[0]), root(other)))
            parent[b] = a

    if group is not None:
        for members in _by_name(dataset, group).values():
            join(members)
    if copies:
        paths = [dataset.image_paths[index] for index in range(len(dataset))]
        for members in near_groups(fingerprints(paths, progress=progress)):
            join(members)
    units: dict[int, list[int]] = {}
    for index in range(len(dataset)):
        units.setdefault(root(index), []).append(index)
    return list(units.values())


def _by_name(dataset: Dataset, pattern: str) -> dict[str, list[int]]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"the group pattern {pattern!r} is not a regular expression: {error}") from error
    groups: dict[str, list[int]] = {}
    missed = []
    for index, name in enumerate(dataset.names):
        match = expression.search(name)
        key = None if match is None else match.group(min(expression.groups, 1))
        if key is None:
            missed.append(name)
        else:
            groups.setdefault(key, []).append(index)
    if missed:
        raise OptionError(
            f"the group pattern {pattern!r} does not match {len(missed)} of {len(dataset)} image names, such as {missed[0]!r}; "
            "let it match all of them",
            where=dataset.root,
        )
    return groups


def _presence(dataset: Dataset, units: Sequence[Sequence[int]]) -> Float:
    """[U, C]: how many images of a unit hold an object of a class."""
    flat = dataset.annotations
    unit_of = np.zeros(len(dataset), dtype=np.int64)
    for number, unit in enumerate(units):
        unit_of[list(unit)] = number
    objects = is_object(dataset)
    pairs = np.unique(np.stack([flat.images[objects], flat.labels[objects]], axis=1), axis=0)
    counts = np.zeros((len(units), len(dataset.categories)))
    np.add.at(counts, (unit_of[pairs[:, 0]], pairs[:, 1]), 1)
    return counts


def _stratify(presence: Float, sizes: Float, shares: Float, rng: np.random.Generator) -> Int:
    """[U], the side of each unit.

    Repeatedly, the class with the fewest remaining images is taken, and each of its units, the largest first, goes to the side
    that wants most of this class; ties go to the side that wants most images, then to chance. Units without any class come last.
    A side that has its share takes no more; every side's share is at least one image.
    """
    wanted_class = presence.sum(axis=0)[:, None] * shares  # [C, S]
    wanted = sizes.sum() * shares  # [S]
    missing = np.maximum(1 - wanted, 0).sum()
    wanted = np.maximum(wanted, 1)
    wanted[np.argmax(wanted)] -= missing
    side = np.full(len(sizes), -1, dtype=np.int64)

    def give(unit: int, wish: Float | None) -> None:
        room = wanted > 1e-9
        if not room.any():
            room[:] = True
        best = np.flatnonzero(room)
        for values in (wish, wanted) if wish is not None else (wanted,):
            best = best[values[best] >= values[best].max() - 1e-9]
        chosen = int(best[0] if len(best) == 1 else rng.choice(best))
        side[unit] = chosen
        wanted[chosen] -= sizes[unit]
        wanted_class[:, chosen] -= presence[unit]

    def shuffled(members: Int) -> list[int]:
        mixed = rng.permutation(members)
        ordered: list[int] = mixed[np.argsort(-sizes[mixed], kind="stable")].tolist()
        return ordered

    while True:
        remaining = presence[side < 0].sum(axis=0)
        if not (remaining > 0).any():
            break
        label = int(np.argmin(np.where(remaining > 0, remaining, np.inf)))
        for unit in shuffled(np.flatnonzero((side < 0) & (presence[:, label] > 0))):
            give(unit, wanted_class[label])
    for unit in shuffled(np.flatnonzero(side < 0)):
        give(unit, None)
    return side


def split_table(dataset: Dataset, splits: Mapping[str, Int]) -> Table:
    """Images and objects of each class in each split."""
    flat = dataset.annotations
    objects, images = is_object(dataset), flat.images
    rows: list[tuple[str | int | float, ...]] = [("images", *(len(chosen) for chosen in splits.values()))]
    for label, name in enumerate(dataset.class_names):
        own = images[objects & (flat.labels == label)]
        rows.append((name, *(int(np.isin(own, chosen).sum()) for chosen in splits.values())))
    return Table("Splits", ("objects of", *splits), tuple(rows))


def write_splits(dataset: Dataset, splits: Mapping[str, Int], out: str | Path) -> list[Path]:
    """Write splits; returns the files.

    A name that ends with `.json` gets one JSON object, `{"splits": {"train": [image names], ...}}`. Any other name is a folder
    that gets one list per split, `train.txt` and so on, with an absolute image path a line (YOLO's list files).
    """
    target = Path(out)
    if target.suffix.lower() == ".json":
        names = {name: [dataset.names[index] for index in chosen.tolist()] for name, chosen in splits.items()}
        write_json(target, {"splits": names}, indent=1)
        return [target]
    written = []
    for name, chosen in splits.items():
        if not _NAME.fullmatch(name):
            raise OptionError(f"a split's name must be letters, digits, '.', '_' and '-', got {name!r}")
        paths = [str(dataset.image_paths[index].resolve()) for index in chosen.tolist()]
        write_text(target / f"{name}.txt", "\n".join(paths) + "\n")
        written.append(target / f"{name}.txt")
    return written


def read_splits(dataset: Dataset, path: str | Path) -> dict[str, Int]:
    """The splits that `write_splits` wrote as JSON, as indices of `dataset`.

    Raises:
        FormatError: not such a file, or a name that the data set does not have.
    """
    value = read_json(path)
    splits = value.get("splits") if isinstance(value, dict) else None
    if not isinstance(splits, dict) or not all(isinstance(names, list) for names in splits.values()):
        raise FormatError('expected {"splits": {"train": [image names], ...}}', where=path)
    index = {name: number for number, name in enumerate(dataset.names)}
    result = {}
    for split_name, names in splits.items():
        unknown = [name for name in names if name not in index] if all(isinstance(name, str) for name in names) else names[:1]
        if unknown:
            text = f"{len(unknown)} images of the split {split_name!r} are not in the data set, such as {unknown[0]!r}"
            raise FormatError(text, where=path)
        result[split_name] = np.array([index[name] for name in names], dtype=np.int64)
    return result
