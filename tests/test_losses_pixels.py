"""Losses of dense prediction against naive loops over pixels, and the border weights against their formula."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pelagia.losses.borders import border_weights, components
from pelagia.losses.pixels import FORMS, TERMS, Form, Processes, jaccard_slopes, lovasz_loss, membership, pixel_loss

CLASSES = {"softmax": 3, "binary": 2, "sigmoid": 3}


def example(seed: int, form: str) -> tuple[Tensor, Tensor]:
    """Logits [2, K, 3, 4] and labels with some ignored."""
    generator = torch.Generator().manual_seed(seed)
    channels = 1 if form == "binary" else 3
    logits = 2 * torch.randn(2, channels, 3, 4, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, CLASSES[form], (2, 3, 4), generator=generator)
    labels[torch.rand(2, 3, 4, generator=generator) < 0.2] = 255
    return logits, labels


def pixels(labels: Tensor) -> list[tuple[int, int, int]]:
    """The places that are not ignored."""
    return [(b, y, x) for b in range(2) for y in range(3) for x in range(4) if labels[b, y, x] != 255]


def chances(logits: Tensor, place: tuple[int, int, int], form: str) -> list[float]:
    values = logits[place[0], :, place[1], place[2]].tolist()
    if form == "softmax":
        powers = [math.exp(value) for value in values]
        return [power / sum(powers) for power in powers]
    return [1 / (1 + math.exp(-value)) for value in values]


def naive_elementwise(
    logits: Tensor, labels: Tensor, form: str, gamma: float, weights: list[float] | None, pixel_weights: Tensor | None
) -> float:
    """sum w (1 - q)^gamma (-log q) / sum w over pixels, or over pixels and classes."""
    above = below = 0.0
    for place in pixels(labels):
        label, p = int(labels[place]), chances(logits, place, form)
        scale = 1.0 if pixel_weights is None else pixel_weights[place].item()
        if form == "softmax":
            terms = [(p[label], 1.0 if weights is None else weights[label])]
        elif form == "binary":
            terms = [(p[0] if label == 1 else 1 - p[0], 1.0 if weights is None else weights[label])]
        else:
            terms = [(p[c] if label == c else 1 - p[c], 1.0 if weights is None else weights[c]) for c in range(3)]
        for q, weight in terms:
            above += scale * weight * (1 - q) ** gamma * -math.log(q)
            below += scale * weight
    return above / below


@given(seed=st.integers(0, 1000), form=st.sampled_from(FORMS), weighted=st.booleans(), placed=st.booleans())
@settings(deadline=None, max_examples=60)
def test_cross_entropy_and_focal_are_their_formulas(seed: int, form: Form, weighted: bool, placed: bool) -> None:
    logits, labels = example(seed, form)
    weights = [0.5, 2.0, 1.25][: CLASSES[form]] if weighted else None
    tensor = None if weights is None else torch.tensor(weights)
    extra = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 5 if placed else None
    for name, gamma in (("ce", 0.0), ("focal", 2.0), ("focal", 1.0)):
        found = pixel_loss(name, logits, labels, form, class_weights=tensor, pixel_weights=extra, gamma=gamma)
        assert found.item() == pytest.approx(naive_elementwise(logits, labels, form, gamma, weights, extra))


@given(seed=st.integers(0, 1000), form=st.sampled_from(FORMS))
@settings(deadline=None, max_examples=40)
def test_dice_is_its_formula(seed: int, form: Form) -> None:
    logits, labels = example(seed, form)
    values = []
    for channel in range(logits.shape[1]):
        both = either = held = 0.0
        for place in pixels(labels):
            p, t = chances(logits, place, form)[channel], float(labels[place] == (1 if form == "binary" else channel))
            both, either, held = both + 2 * p * t, either + p + t, held + t
        if held:
            values.append(1 - both / either)
    expected = sum(values) / len(values) if values else 0.0
    assert pixel_loss("dice", logits, labels, form).item() == pytest.approx(expected)


def jaccard_loss(mistaken: set[int], flags: list[bool]) -> float:
    """1 - |truth and prediction| / |truth or prediction| when the pixels `mistaken` are predicted wrongly."""
    predicted = [flag != (index in mistaken) for index, flag in enumerate(flags)]
    both = sum(a and b for a, b in zip(flags, predicted, strict=True))
    either = sum(a or b for a, b in zip(flags, predicted, strict=True))
    return 1 - both / either if either else 0.0


def naive_lovasz(errors: list[float], flags: list[bool]) -> float:
    """The Lovász extension from its definition: sum over the errors, largest first, times what each adds to the set function."""
    order = sorted(range(len(errors)), key=lambda index: -errors[index])
    value, before, taken = 0.0, 0.0, set[int]()
    for index in order:
        taken.add(index)
        now = jaccard_loss(taken, flags)
        value += errors[index] * (now - before)
        before = now
    return value


@given(seed=st.integers(0, 1000), form=st.sampled_from(FORMS))
@settings(deadline=None, max_examples=40)
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed: int, form: Form) -> None:
    logits, labels = example(seed, form)
    values = []
    for channel in range(logits.shape[1]):
        flags = [bool(labels[place] == (1 if form == "binary" else channel)) for place in pixels(labels)]
        if form == "softmax":
            found = [chances(logits, place, form)[channel] for place in pixels(labels)]
            errors = [abs(flag - p) for flag, p in zip(flags, found, strict=True)]
        else:
            raw = [logits[b, channel, y, x].item() for b, y, x in pixels(labels)]
            errors = [max(0.0, 1 - value * (1 if flag else -1)) for flag, value in zip(flags, raw, strict=True)]
        if form != "softmax" or any(flags):
            values.append(naive_lovasz(errors, flags))
    expected = sum(values) / len(values) if values else 0.0
    assert pixel_loss("lovasz", logits, labels, form).item() == pytest.approx(expected)


def test_at_whole_errors_the_extension_is_the_jaccard_loss() -> None:
    """A Lovász extension agrees with its set function at the corners of the cube (Berman et al., section 2)."""
    flags = torch.tensor([[True, True, False, False, True, False]])
    for mistaken in ({0}, {2}, {0, 1, 3}, {0, 1, 2, 3, 4, 5}, set()):
        errors = torch.tensor([[float(index in mistaken) for index in range(6)]], dtype=torch.float64)
        value = (errors * jaccard_slopes(errors, flags, torch.ones_like(flags))).sum().item()
        assert value == pytest.approx(jaccard_loss(mistaken, flags[0].tolist()))


def test_the_gradient_of_the_lovasz_losses_is_that_of_the_sorted_sum() -> None:
    for form in FORMS:
        logits, labels = example(3, form)
        kept, flags = membership(labels, logits.shape[1], form)
        assert torch.autograd.gradcheck(
            lambda x, flags=flags, kept=kept, form=form: lovasz_loss(x, flags, kept, form), logits.requires_grad_()
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TERMS)
def test_where_all_is_ignored_the_loss_is_zero_with_a_gradient(name: str, form: Form) -> None:
    logits, labels = example(0, form)
    logits.requires_grad_()
    value = pixel_loss(name, logits, torch.full_like(labels, 255), form)
    assert value.item() == 0
    assert bool((torch.autograd.grad(value, logits)[0] == 0).all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TERMS)
def test_sure_answers_give_finite_gradients(name: str, form: Form) -> None:
    logits, labels = example(1, form)
    logits = (logits.sign() * 200).float().requires_grad_()
    value = pixel_loss(name, logits, labels, form)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TERMS)
def test_ignored_pixels_do_not_matter(name: str, form: Form) -> None:
    logits, labels = example(2, form)
    other = torch.where((labels == 255)[:, None], -3 * logits, logits)
    torch.testing.assert_close(pixel_loss(name, other, labels, form), pixel_loss(name, logits, labels, form))


def test_labels_beyond_the_classes_are_not_taken_for_another() -> None:
    logits, labels = example(2, "softmax")
    with pytest.raises(IndexError):
        pixel_loss("ce", logits, torch.where(labels == 255, labels, 3), "softmax")


def test_several_classes_at_a_pixel() -> None:
    """Flags [B, C, H, W] are the truth of multi-label data; with one class each they are labels."""
    logits, labels = example(4, "sigmoid")
    labels[labels == 255] = 0
    flags = labels[:, None] == torch.arange(3)[:, None, None]
    for name in TERMS:
        torch.testing.assert_close(pixel_loss(name, logits, flags, "sigmoid"), pixel_loss(name, logits, labels, "sigmoid"))
    every = pixel_loss("ce", logits, torch.ones_like(flags), "sigmoid")
    torch.testing.assert_close(every, torch.nn.functional.softplus(-logits).mean())


def test_no_and_yes_of_a_class_may_weigh_differently() -> None:
    logits, labels = example(5, "sigmoid")
    weights = torch.tensor([[0.5, 2.0], [1.0, 3.0], [0.25, 0.0]], dtype=torch.float64)
    above = below = 0.0
    for place in pixels(labels):
        for c, p in enumerate(chances(logits, place, "sigmoid")):
            held = int(labels[place]) == c
            weight = weights[c, int(held)].item()
            above, below = above - weight * math.log(p if held else 1 - p), below + weight
    found = pixel_loss("ce", logits, labels, "sigmoid", class_weights=weights)
    assert found.item() == pytest.approx(above / below, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TERMS)
def test_two_processes_equal_one(name: str, form: Form) -> None:
    logits, labels = example(6, form)
    logits = logits.round(decimals=0).requires_grad_()  # equal errors in both, whose order must not depend on the process
    weights = torch.linspace(0.5, 2, CLASSES[form], dtype=torch.float64)
    whole = pixel_loss(name, logits, labels, form, class_weights=weights)
    expected = torch.autograd.grad(whole, logits)[0]

    def part(rank: int, asked: list[Tensor], known: list[list[Tensor]]) -> Tensor:
        """The loss of one process, which notes what it asks of the others; what they once answered is `known`."""

        def all_of(value: Tensor) -> list[Tensor]:
            asked.append(value.detach())
            return [values[len(asked) - 1] for values in known] if known else [value, value]

        across = Processes(
            lambda value: torch.stack(all_of(value)).mean(dim=0),
            lambda value: (torch.cat(all_of(value), dim=-1), rank * value.shape[-1]),
        )
        chosen = slice(rank, rank + 1)
        return pixel_loss(name, logits[chosen], labels[chosen], form, class_weights=weights, across=across)

    known: list[list[Tensor]] = [[], []]
    for rank in (0, 1):
        part(rank, known[rank], [])
    values = [part(rank, [], known) for rank in (0, 1)]
    gradients = [torch.autograd.grad(value, logits)[0] for value in values]
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, expected)
    if name != "dice":  # whose value is that of the whole in either process
        torch.testing.assert_close((values[0] + values[1]) / 2, whole)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TERMS)
def test_the_same_to_the_bit(name: str, form: Form) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1 if form == "binary" else 3, 64, 64, generator=generator).round(decimals=1).requires_grad_()
    labels = torch.randint(0, CLASSES[form], (2, 64, 64), generator=generator)
    gradients = [torch.autograd.grad(pixel_loss(name, logits, labels, form), logits)[0] for _ in range(3)]
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


# The border weights


def naive_borders(ids: np.ndarray, weight: float, sigma: float) -> np.ndarray:
    """Equation 2 by distances to every pixel of every object."""
    height, width = ids.shape
    objects = [np.argwhere(ids == number) for number in np.unique(ids[ids > 0])]
    found = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            if ids[y, x] > 0 or len(objects) < 2:
                continue
            d1, d2 = sorted(float(np.sqrt(((places - [y, x]) ** 2).sum(axis=1)).min()) for places in objects)[:2]
            if d2 <= math.ceil(4 * sigma):
                found[y, x] = weight * math.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    return found


@given(seed=st.integers(0, 1000), sigma=st.sampled_from([1.0, 2.5, 5.0]))
@settings(deadline=None, max_examples=15)
def test_border_weights_are_equation_2(seed: int, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    ids = np.zeros((24, 30), dtype=np.int64)
    for number in range(1, int(rng.integers(1, 7))):
        y, x = rng.integers(0, 24), rng.integers(0, 30)
        ids[y : y + int(rng.integers(1, 8)), x : x + int(rng.integers(1, 8))] = 2 * number
    found = border_weights(ids, weight=10.0, sigma=sigma)
    np.testing.assert_allclose(found, naive_borders(ids, 10.0, sigma), rtol=1e-4, atol=1e-5)


def test_the_gap_between_two_cells_weighs_most() -> None:
    ids = np.zeros((20, 40), dtype=np.int64)
    ids[5:15, 5:18], ids[5:15, 20:35] = 1, 2
    found = border_weights(ids)
    assert found[10, 18] == pytest.approx(10 * math.exp(-(3**2) / 50), rel=1e-5)  # distances 1 and 2
    assert found[10, 18] == pytest.approx(found.max())
    assert found[10, 18] > 3 * found[1, 18] > 0
    assert found[ids > 0].max() == 0
    assert border_weights(np.zeros((4, 5), dtype=np.int64)).max() == 0


def test_components_of_every_class_but_the_ground() -> None:
    labels = np.array([[0, 1, 1, 0, 2], [0, 1, 2, 2, 2], [255, 0, 0, 0, 0], [1, 0, 0, 0, 1]])
    ids = cast("np.ndarray", components(labels))
    assert ids[2, 0] == -1
    assert (ids[labels == 0] == 0).all()
    assert len(np.unique(ids[(labels > 0) & (labels < 255)])) == 4
    assert ids[0, 1] == ids[1, 1] != ids[1, 2] == ids[0, 4]
