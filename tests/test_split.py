"""Splits: shares, classes and groups are what was asked for, and the seed decides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagia.core.image import write
from pelagia.core.types import Instances
from pelagia.data.dataset import Dataset
from pelagia.data.split import read_splits, split, split_table, write_splits
from pelagia.errors import FormatError, OptionError


def dataset_of(labels: list[list[int]], names: list[str] | None = None, classes: int = 4, root: Path | None = None) -> Dataset:
    """One image for each list of labels; the files need not exist."""
    items = []
    for index, own in enumerate(labels):
        boxes = np.tile([0.0, 0, 10, 10], (len(own), 1))
        name = f"{index:04}.png" if names is None else names[index]
        items.append((name, (64, 64), Instances(labels=np.array(own, dtype=int), boxes=boxes)))
    return Dataset.from_instances([f"c{i}" for i in range(classes)], items, root=root or Path("absent"))


def random_dataset(seed: int, count: int) -> Dataset:
    rng = np.random.default_rng(seed)
    chance = [0.6, 0.3, 0.1, 0.04]
    return dataset_of([[c for c in range(4) if rng.random() < chance[c]] for _ in range(count)])


def worst_class_error(dataset: Dataset, splits: dict[str, np.ndarray], shares: dict[str, float]) -> float:
    """Largest difference in images between what a split has of a class and its share."""
    worst = 0.0
    for label in range(len(dataset.categories)):
        has = np.array([label in dataset.truth(i).labels for i in range(len(dataset))])
        worst = max(worst, *(abs(has[splits[name]].sum() - share * has.sum()) for name, share in shares.items()))
    return worst


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(5, 120),
    shares=st.sampled_from([{"train": 0.8, "val": 0.2}, {"train": 0.7, "val": 0.2, "test": 0.1}, {"a": 0.5, "b": 0.5}]),
    stratify=st.booleans(),
)
def test_every_image_is_in_one_split_of_its_share(seed: int, count: int, shares: dict[str, float], stratify: bool) -> None:
    splits = split(random_dataset(seed, count), shares, seed, stratify, copies=False)
    assert list(splits) == list(shares)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(count))
    for name, share in shares.items():
        assert len(splits[name]) >= 1
        assert abs(len(splits[name]) - share * count) < len(shares)
        assert (np.diff(splits[name]) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_balanced_better_than_by_chance(seed: int) -> None:
    shares = {"train": 0.7, "val": 0.2, "test": 0.1}
    dataset = random_dataset(seed, 300)
    stratified = worst_class_error(dataset, split(dataset, shares, seed, copies=False), shares)
    chance = [worst_class_error(dataset, split(dataset, shares, s, False, copies=False), shares) for s in range(10)]
    assert stratified <= 3
    assert stratified < np.median(chance)


def test_a_rare_class_reaches_every_split() -> None:
    dataset = dataset_of([[0]] * 90 + [[0, 3]] * 10)
    for seed in range(10):
        splits = split(dataset, {"train": 0.8, "val": 0.1, "test": 0.1}, seed, copies=False)
        assert [int((chosen >= 90).sum()) for chosen in splits.values()] == [8, 1, 1]


def test_the_seed_decides() -> None:
    dataset = random_dataset(0, 80)
    shares = {"train": 0.8, "val": 0.2}
    first, again, other = (split(dataset, shares, seed, copies=False) for seed in (1, 1, 2))
    for name in shares:
        np.testing.assert_array_equal(first[name], again[name])
    assert any(first[name].tolist() != other[name].tolist() for name in shares)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), cruises=st.integers(6, 20))
def test_groups_stay_together(seed: int, cruises: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"cruise{c:02}_img{i}.png" for c in range(cruises) for i in range(int(rng.integers(1, 8)))]
    dataset = dataset_of([rng.integers(0, 4, 2).tolist() for _ in names], names)
    splits = split(dataset, {"train": 0.6, "val": 0.4}, seed, group=r"^(cruise\d+)_", copies=False)
    sides = [{names[i].split("_")[0] for i in chosen.tolist()} for chosen in splits.values()]
    assert not sides[0] & sides[1]
    largest = max(sum(name.startswith(f"cruise{c:02}_") for name in names) for c in range(cruises))
    assert abs(len(splits["train"]) - 0.6 * len(names)) < largest + 1


def test_the_whole_match_counts_where_the_pattern_has_no_group() -> None:
    names = [f"{station}{i}.png" for station in "abcdef" for i in range(3)]
    splits = split(dataset_of([[0]] * 18, names), {"train": 0.5, "val": 0.5}, group="^[a-f]", copies=False)
    assert {names[i][0] for i in splits["train"].tolist()}.isdisjoint(names[i][0] for i in splits["val"].tolist())


def test_copies_of_one_picture_stay_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = []
    for picture in range(8):
        image = np.kron(rng.integers(40, 200, (8, 8)), np.ones((8, 8))).astype(np.uint8)
        for copy in range(3):
            names.append(f"{copy}{picture}.png")
            write(tmp_path / names[-1], (image * (1 - 0.1 * copy)).astype(np.uint8))
    dataset = dataset_of([[0]] * 24, names, root=tmp_path)
    for seed in range(5):
        splits = split(dataset, {"train": 0.75, "val": 0.25}, seed)
        assert {names[i][1] for i in splits["train"].tolist()}.isdisjoint(names[i][1] for i in splits["val"].tolist())
        assert len(splits["val"]) == 6


@pytest.mark.parametrize(
    "fractions",
    [
        {},
        {"train": 1.0},
        {"train": 0.8, "val": 0.1},
        {"train": 1.2, "val": -0.2},
        {"train": 80, "val": 20},
        {"../x": 0.5, "val": 0.5},
    ],
)
def test_senseless_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=r"fractions must be|name must be"):
        split(random_dataset(0, 10), fractions, copies=False)


def test_bad_groups_are_named() -> None:
    dataset = random_dataset(0, 10)
    shares = {"train": 0.8, "val": 0.2}
    with pytest.raises(OptionError, match="regular expression"):
        split(dataset, shares, group="(", copies=False)
    with pytest.raises(OptionError, match="does not match 10 of 10"):
        split(dataset, shares, group="cruise", copies=False)
    with pytest.raises(OptionError, match="'val' would be empty"):
        split(dataset, shares, group="png", copies=False)


def test_few_images_still_reach_every_split() -> None:
    splits = split(dataset_of([[0]] * 3), {"train": 0.8, "val": 0.1, "test": 0.1}, copies=False)
    assert [len(chosen) for chosen in splits.values()] == [1, 1, 1]


def test_crowds_and_ignored_regions_do_not_steer() -> None:
    plain = dataset_of([[0]] * 20)
    ignored = [
        (name, (64, 64), Instances(labels=np.array([0, i % 4]), boxes=np.zeros((2, 4)) + 5, ignore=np.array([False, True])))
        for i, name in enumerate(plain.names)
    ]
    dataset = Dataset.from_instances(plain.categories, ignored, root=Path("absent"))
    shares = {"train": 0.8, "val": 0.2}
    np.testing.assert_array_equal(split(plain, shares, copies=False)["val"], split(dataset, shares, copies=False)["val"])


def test_writing_and_reading(tmp_path: Path) -> None:
    dataset = random_dataset(0, 20)
    splits = split(dataset, {"train": 0.8, "val": 0.2}, copies=False)
    (path,) = write_splits(dataset, splits, tmp_path / "splits.json")
    assert sorted(json.loads(path.read_text())["splits"]) == ["train", "val"]
    again = read_splits(dataset, path)
    for name, chosen in splits.items():
        np.testing.assert_array_equal(again[name], chosen)
    files = write_splits(dataset, splits, tmp_path / "lists")
    assert [file.name for file in files] == ["train.txt", "val.txt"]
    lines = files[1].read_text().splitlines()
    assert lines == [str(dataset.image_paths[i].resolve()) for i in splits["val"].tolist()]
    with pytest.raises(FormatError, match="not in the data set"):
        read_splits(dataset.subset(splits["train"]), path)
    for content in ("[]", '{"splits": {"a": 5}}', '{"splits": {"a": [5]}}'):
        path.write_text(content)
        with pytest.raises(FormatError):
            read_splits(dataset, path)


def test_the_table_counts_images_and_objects() -> None:
    dataset = dataset_of([[0, 0], [1], [0]], classes=2)
    table = split_table(dataset, {"train": np.array([0, 1]), "val": np.array([2])})
    assert table.rows == (("images", 2, 1), ("c0", 2, 1), ("c1", 1, 0))
