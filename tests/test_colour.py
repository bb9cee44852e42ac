"""Changes of intensity against their formulas."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from pelagia.data import colour

#: The window of a sensor of 12 bits whose images are stored in 16.
WINDOW = (200.0, 4000.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_no_shift_of_colour_changes_next_to_nothing(dtype: type, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (16, 16, channels), dtype=dtype)
    same = colour.shift_hsv(image, np.random.default_rng(0), 0.0, 0.0, 0.0)
    assert np.abs(same.astype(int) - image).max() <= np.iinfo(dtype).max * (0.03 if channels == 3 else 0.0)


def test_brightness_is_a_power_without_burning_out() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None, :, None]
    for seed in range(10):
        power = float(np.exp(np.random.default_rng(seed).uniform(size=3)[2] * 2 * np.log(1.4) - np.log(1.4)))
        found = colour.shift_hsv(ramp, np.random.default_rng(seed), 0.0, 0.0, 0.4)[0, :, 0]
        np.testing.assert_allclose(found, 255 * (np.arange(256) / 255) ** power, atol=0.51)
        assert np.count_nonzero(found == 255) <= 3


def test_hue_turns_and_saturation_scales() -> None:
    red = np.full((1, 1, 3), (200, 100, 100), dtype=np.uint8)
    drawn = [colour.shift_hsv(red, np.random.default_rng(seed), 0.1, 0.5, 0.0).reshape(3) for seed in range(30)]
    seen = np.array(drawn, dtype=int)
    assert (seen.max(axis=1) >= 198).all()  # value stays
    saturation = 1 - seen.min(axis=1) / seen.max(axis=1)
    assert saturation.min() < 0.35
    assert saturation.max() > 0.65
    assert (seen[:, 1] != seen[:, 2]).any()


def test_noise_has_the_stated_sigma_and_blur_keeps_the_mean() -> None:
    flat = np.full((200, 200, 3), 128, dtype=np.uint8)
    sigma = np.random.default_rng(4).uniform(0, 0.03) * 255
    noisy = colour.add_noise(flat, np.random.default_rng(4))
    assert noisy[..., 0].std() == pytest.approx(sigma, rel=0.05, abs=0.1)
    np.testing.assert_array_equal(noisy[..., 0], noisy[..., 2])
    spots = np.random.default_rng(0).integers(0, 255, (64, 64, 1), dtype=np.uint8)
    blurred = colour.blur(spots, np.random.default_rng(0))
    assert blurred.shape == spots.shape
    assert blurred.mean() == pytest.approx(spots.mean(), abs=1)
    assert blurred.std() < spots.std()


@pytest.mark.parametrize("seed", range(6))
def test_hue_saturation_and_value_follow_their_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (12, 31, 3), dtype=np.uint8)
    image[:2] = image[:2, :, :1]  # greys
    image[2:4, :, 1] = image[2:4, :, 0]  # two channels alike
    image[4, :, rng.integers(3)] = 0
    image[0, :2] = [[0], [255]]
    found = colour.shift_hsv(image, np.random.default_rng(seed), 0.5, 0.9, 1.0)
    drawn = np.random.default_rng(seed)
    turn, gain = drawn.uniform(-0.5, 0.5), drawn.uniform(0.1, 1.9)
    power = np.exp(drawn.uniform(-1, 1) * np.log(2))
    for before, after in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        value = np.round(255 * value**power)
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, min(saturation * gain, 1), value)
        np.testing.assert_allclose(after, expected, atol=0.501)
    assert np.count_nonzero(found != image) > 0.9 * image[2:].size


@pytest.mark.parametrize(
    ("dtype", "levels", "span"), [(np.uint8, None, 255), (np.uint16, None, 65535), (np.uint16, WINDOW, 3800)]
)
def test_noise_equals_its_formula(dtype: type, levels: colour.Levels | None, span: int) -> None:
    top = np.iinfo(dtype).max
    image = np.random.default_rng(1).integers(0, top, (20, 30, 3), dtype=dtype, endpoint=True)
    rng = np.random.default_rng(2)
    sigma = rng.uniform(0, 0.03) * span
    plane = rng.standard_normal((20, 30), dtype=np.float32) * np.float32(sigma)
    expected = np.clip(np.rint(image.astype(np.float32) + plane[..., None]), 0, top)
    found = colour.add_noise(image, np.random.default_rng(2), levels=levels)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_in_sixteen_stay_within_their_window(channels: int) -> None:
    image = np.random.default_rng(3).integers(200, 4001, (24, 24, channels), dtype=np.uint16)
    for seed in range(20):
        found = colour.shift_hsv(image, np.random.default_rng(seed), 0.1, 0.5, 0.4, WINDOW)
        assert found.dtype == np.uint16
        assert found.min() >= 200
        assert found.max() <= 4000
        assert np.count_nonzero(found >= 3990) < 0.05 * found.size  # nothing burns out


def test_brightness_of_deep_images_is_a_power_of_the_share_of_the_window() -> None:
    ramp = np.array([0, 199, 200, 201, 1000, 2000, 3999, 4000, 4001, 6000, 65535], dtype=np.uint16)[None, :, None]
    for seed in range(10):
        power = float(np.exp(np.random.default_rng(seed).uniform(size=3)[2] * 2 * np.log(1.4) - np.log(1.4)))
        share = np.maximum(ramp[0, :, 0].astype(np.float64) - 200, 0) / 3800
        found = colour.shift_hsv(ramp, np.random.default_rng(seed), 0.0, 0.0, 0.4, WINDOW)[0, :, 0]
        np.testing.assert_allclose(found, np.minimum(200 + 3800 * share**power, 65535), rtol=1e-6, atol=0.51)
        assert (found[8:] > 4000).all()  # what lies above the window stays above
        assert (np.diff(found.astype(int)) >= 0).all()


def test_images_of_eight_bits_have_the_window_of_their_type() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for one, other in (
        [colour.shift_hsv(image, np.random.default_rng(1), 0.1, 0.5, 0.4, levels) for levels in (None, (0.0, 4095.0))],
        [colour.add_noise(image, np.random.default_rng(1), levels=levels) for levels in (None, (0.0, 4095.0))],
    ):
        np.testing.assert_array_equal(one, other)
