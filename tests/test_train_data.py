"""Plan, samples, batches, cache and normalisation: all functions of the step, whoever prepares them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagia.core import image as core_image
from pelagia.core.card import Normalisation
from pelagia.core.types import Instances
from pelagia.data.augment import AugmentOptions
from pelagia.data.sample import Sample
from pelagia.errors import DataError, ImageError
from pelagia.nn.intensities import to_network
from pelagia.train.batch import Batch, collate
from pelagia.train.data import CachedDataset, ImageCache, Loader, Maker, Plan, measure_window
from training import draw

EVERYTHING = AugmentOptions(mosaic=0.5, mixup=0.3, cutmix=0.3, rotate_deg=20.0, noise=0.5, blur=0.5)


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 60), share=st.integers(1, 9), world=st.integers(1, 4), seed=st.integers(0, 9), epoch=st.integers(0, 5)
)
def test_an_epoch_shows_every_image_and_processes_share_the_batch(
    images: int, share: int, world: int, seed: int, epoch: int
) -> None:
    plan = Plan(images, share * world, seed)
    slots = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        whole = plan.step(step)
        parts = [slot for rank in range(world) for slot in plan.step(step, rank, world)]
        assert parts == whole
        assert len(whole) == share * world
        slots += whole
    assert {slot.epoch for slot in slots} == {epoch}
    assert [slot.position for slot in slots] == list(range(len(slots)))
    assert sorted(slot.index for slot in slots[:images]) == list(range(images))
    assert [slot.index for slot in slots[images:]] == [slots[i % images].index for i in range(images, len(slots))]


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = Plan(30, 30, seed)
        return [slot.index for slot in plan.step(epoch)]

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) == order(0, 0)


def maker(folder: Path, **changes: object) -> Maker:
    values = {"dataset": draw(folder), "augment": EVERYTHING, "input_size": (64, 64), "seed": 5, "plain_from": 1}
    return Maker(**{**values, **changes})  # type: ignore[arg-type]


def same(a: Batch, b: Batch) -> bool:
    return a.names == b.names and torch.equal(a.images, b.images) and torch.equal(a.targets.boxes, b.targets.boxes)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_batches_do_not_depend_on_who_prepares_them(tmp_path: Path) -> None:
    make, plan = maker(tmp_path), Plan(8, 4, 5)
    alone = [make.batch(plan.step(step)) for step in range(5)]
    before = torch.get_rng_state()
    for workers, ahead in ((0, False), (0, True), (2, False)):
        prepared = list(Loader(make, plan, workers=workers, ahead=ahead).batches(0, 5))
        assert all(same(a, b) for a, b in zip(alone, prepared, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    late = list(Loader(make, plan).batches(3, 5))
    assert same(late[0], alone[3])
    shares = [next(Loader(make, plan, rank=rank, world=2).batches(0, 1)) for rank in range(2)]
    assert torch.equal(torch.cat([share.images for share in shares]), alone[0].images)


def test_samples_differ_between_epochs_and_positions(tmp_path: Path) -> None:
    make, plan = maker(tmp_path, plain_from=99), Plan(8, 8, 5)
    first, second = make.batch(plan.step(0)), make.batch(plan.step(1))
    by_name = dict(zip(second.names, second.images, strict=True))
    assert all(not torch.equal(image, by_name[name]) for name, image in zip(first.names, first.images, strict=True))


def test_the_last_epochs_are_without_mosaic(tmp_path: Path) -> None:
    only_mosaic = AugmentOptions(
        flip_lr=0, flip_ud=0, scale=0, translate=0, hsv_h=0, hsv_s=0, hsv_v=0, blur=0, noise=0, mosaic=1.0, mixup=1.0
    )
    make, plan = maker(tmp_path, augment=only_mosaic, plain_from=1), Plan(8, 8, 5)
    plain = Maker(make.dataset, make.augment, make.input_size, make.seed, make.plain_from, varied=False)
    late, letterboxed = make.batch(plan.step(1)), plain.batch(plan.step(1))
    # Scaled by other roundings of the weights.
    assert (late.images.int() - letterboxed.images.int()).abs().max() <= 1
    assert torch.equal(late.targets.boxes, letterboxed.targets.boxes)
    assert not torch.equal(make.batch(plan.step(0)).images, plain.batch(plan.step(0)).images)


def test_a_closed_loader_leaves_no_thread(tmp_path: Path) -> None:
    batches = Loader(maker(tmp_path), Plan(8, 4, 5), ahead=True).batches(0, 1000)
    next(batches)
    batches.close()
    assert list(batches) == []


def test_unreadable_images_are_replaced_and_named(tmp_path: Path) -> None:
    make, plan = maker(tmp_path), Plan(8, 8, 5)
    victim = make.dataset.image_paths[2]
    victim.write_bytes(victim.read_bytes()[:60])
    batches = list(Loader(make, plan).batches(0, 2))
    assert [name for batch in batches for name, _ in batch.skipped] == ["002.png"]
    assert batches[0].images.shape == (8, 3, 64, 64)
    again = Maker(make.dataset, make.augment, make.input_size, make.seed, make.plain_from)
    assert same(again.batch(plan.step(1)), batches[1])


def test_nothing_but_unreadable_images_is_an_error(tmp_path: Path) -> None:
    make = maker(tmp_path)
    for path in make.dataset.image_paths:
        path.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="pelagia doctor"):
        list(Loader(make, Plan(8, 4, 5)).batches(0, 1))


def test_collate_keeps_truth_and_memory_order() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    first = Instances(np.array([1, 0]), boxes=np.array([[0, 0, 2, 2], [1, 1, 3, 3]]), crowd=np.array([False, True]))
    second = Instances.empty()
    third = Instances(np.array([2]), boxes=np.array([[1, 0, 2, 4]]), ignore=np.array([True]))
    batch = collate([Sample(image + i, truth, f"{i}", i) for i, truth in enumerate((first, second, third))])
    assert batch.images.shape == (3, 3, 4, 6)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images[1, 2], torch.from_numpy(image[..., 2] + 1))
    assert batch.targets.batch.tolist() == [0, 0, 2]
    assert batch.targets.labels.tolist() == [1, 0, 2]
    assert batch.targets.ignore.tolist() == [False, True, True]
    assert batch.targets.boxes.tolist() == [[0, 0, 2, 2], [1, 1, 3, 3], [1, 0, 2, 4]]
    assert (batch.targets.size, batch.targets.oriented, batch.names) == (3, None, ("0", "1", "2"))


def test_oriented_truth_travels(tmp_path: Path) -> None:
    data = draw(tmp_path, oriented=True)
    plan = Plan(8, 8, 0)
    batch = Maker(data, AugmentOptions(), (64, 64), 0, 9, varied=False).batch(plan.step(0))
    assert batch.targets.oriented is not None
    assert batch.targets.oriented.shape == (len(batch.targets.labels), 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "window",
    [
        Normalisation(),
        Normalisation(low=10, high=200),
        Normalisation(high=65535),
        Normalisation(low=-5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    ],
)
def test_network_input_is_that_of_prediction(dtype: type[np.generic], window: Normalisation) -> None:
    top = np.iinfo(dtype).max  # type: ignore[type-var]
    image = np.random.default_rng(0).integers(0, top + 1, (8, 8, 3)).astype(dtype)
    batch = collate([Sample(image, Instances.empty(), "x", 0)])
    found = to_network(batch.images, window, torch.device("cpu"))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), core_image.normalise(image, window), atol=2e-6)
    assert to_network(batch.images, window, torch.device("cpu"), torch.float64).dtype == torch.float64


def test_cache_keeps_what_fits_and_the_same_pixels(tmp_path: Path) -> None:
    data = draw(tmp_path)
    size = data.image(0).nbytes
    cache = ImageCache(3 * size)
    cached = CachedDataset.wrap(data, cache)
    for _ in range(2):
        for index in range(len(data)):
            assert np.array_equal(cached.image(index), data.image(index))
    assert len(cache) == 3
    assert cached.image(0) is cached.image(0)
    assert not cached.image(0).flags.writeable
    part = cached.subset([2, 0])
    assert part.image(1) is cached.image(0)
    assert len(pickle.loads(pickle.dumps(cache))) == 0  # noqa: S301 (its own bytes)


def test_window_of_deep_images_is_measured_once(tmp_path: Path) -> None:
    assert measure_window(draw(tmp_path / "plain"), Normalisation()) == Normalisation()
    deep = draw(tmp_path / "deep", deep=True)
    window = measure_window(deep, Normalisation(mean=(0.5, 0.5, 0.5)))
    pixels = np.concatenate([deep.image(index).ravel() for index in range(len(deep))])
    assert window.low == pytest.approx(np.quantile(pixels, 0.001, method="inverted_cdf"))
    assert window.high == pytest.approx(np.quantile(pixels, 0.999, method="inverted_cdf"))
    assert window.mean == (0.5, 0.5, 0.5)


def test_samples_of_deep_images_stay_within_the_window(tmp_path: Path) -> None:
    data = draw(tmp_path, deep=True)
    window = measure_window(data, Normalisation())
    colours = AugmentOptions(hsv_v=1.0, noise=0.0, scale=0.0, translate=0.0)
    make = Maker(data, colours, (48, 64), 5, 9, levels=(window.low, window.high))
    images = make.batch(Plan(8, 8, 5).step(0)).images.numpy()
    assert images.max() <= window.high == 23000
    burnt = Maker(data, colours, (48, 64), 5, 9).batch(Plan(8, 8, 5).step(0)).images.numpy()
    assert burnt.max() > 30000  # a power of the share of all 16 bits


def test_mixed_depths_are_refused(tmp_path: Path) -> None:
    data = draw(tmp_path)
    core_image.write(data.image_paths[1], data.image(1).astype(np.uint16) * 100)
    with pytest.raises(DataError, match=r"uint16 \(001.png\)"):
        measure_window(data, Normalisation())
