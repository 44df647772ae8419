"""Lesson 13's exercises, as learners write them."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lab.exercises.deploy import requantize, wilson_low

REQUANTIZE, WILSON = "13.requantize", "13.wilson_low"
CUT, EVEN, FIRST, CODES, CLIP, ZERO = (hint.text for hint in EXERCISES[REQUANTIZE].hints)
DOUBT, UPPER, DIVIDE, WIDE, ROOT = (hint.text for hint in EXERCISES[WILSON].hints)


def test_requantize_rounds_the_exact_product_half_to_even() -> None:
    for accumulator, multiplier, zero_point, low, high in EXERCISES[REQUANTIZE].cases:
        m = Fraction(torch.tensor(multiplier).item())  # the float32 that a runtime keeps
        expected = [min(max(round(m * total) + zero_point, low), high) for total in accumulator.tolist()]
        assert requantize(accumulator, multiplier, zero_point, low, high).tolist() == expected


def test_wilson_low_is_where_the_share_is_just_not_rejected() -> None:
    # Its definition: the p at which k/n lies z standard errors of p above p.
    for right, images in EXERCISES[WILSON].cases:
        for k, n, low in zip(right.tolist(), images.tolist(), wilson_low(right, images).tolist(), strict=True):
            assert k / n - low == pytest.approx(1.959964 * math.sqrt(low * (1 - low) / n), abs=1e-6)


def codes_in_one_line(accumulator, multiplier, zero_point, quant_min, quant_max):
    return (torch.round(accumulator * multiplier) + zero_point).clamp(quant_min, quant_max)


def codes_by_saturation(accumulator, multiplier, zero_point, quant_min, quant_max):
    scaled = (accumulator.double() * multiplier).round()
    return torch.minimum(torch.maximum(scaled + zero_point, torch.tensor(quant_min)), torch.tensor(quant_max)).float()


def codes_by_loop(accumulator, multiplier, zero_point, quant_min, quant_max):
    found = [min(max(round(total * multiplier) + zero_point, quant_min), quant_max) for total in accumulator.tolist()]
    return torch.tensor(found, dtype=torch.float32)


@pytest.mark.parametrize("yours", [codes_in_one_line, codes_by_saturation, codes_by_loop])
def test_requantize_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(REQUANTIZE, yours)
    assert verdict.outcome == "passed", verdict


def casts(accumulator, multiplier, zero_point, quant_min, quant_max):
    return ((accumulator * multiplier).int() + zero_point).clamp(quant_min, quant_max).float()


def adds_a_half(accumulator, multiplier, zero_point, quant_min, quant_max):
    return (torch.floor(accumulator * multiplier + 0.5) + zero_point).clip(quant_min, quant_max)


def adds_too_early(accumulator, multiplier, zero_point, quant_min, quant_max):
    return (accumulator * multiplier + zero_point).round().clamp(quant_min, quant_max)


def clips_too_early(accumulator, multiplier, zero_point, quant_min, quant_max):
    return (accumulator * multiplier).clamp(quant_min, quant_max).round() + zero_point


def never_clips(accumulator, multiplier, zero_point, quant_min, quant_max):
    return (accumulator * multiplier).round() + zero_point


def forgets_the_zero_point(accumulator, multiplier, zero_point, quant_min, quant_max):
    return (accumulator * multiplier).round().clamp(quant_min, quant_max)


@pytest.mark.parametrize(
    ("yours", "hint"),
    [
        (casts, CUT),
        (adds_a_half, EVEN),
        (adds_too_early, FIRST),
        (clips_too_early, CODES),
        (never_clips, CLIP),
        (forgets_the_zero_point, ZERO),
    ],
)
def test_requantize_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(REQUANTIZE, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_codes_that_stay_integers_are_told_their_type() -> None:
    assert (
        "have the type uint8; expected float32"
        in check(REQUANTIZE, lambda *case: codes_in_one_line(*case).to(torch.uint8)).sentence
    )


def low_by_formula(right, images):
    p, z = right / images, 1.96
    half = z * torch.sqrt(p * (1 - p) / images + z**2 / (4 * images**2))
    return (p + z**2 / (2 * images) - half) / (1 + z**2 / images)


def low_by_counts(right, images):
    z = 1.959963984540054
    wrong = images - right
    half = z / (images + z * z) * (right * wrong / images + z * z / 4).sqrt()
    return (right + z * z / 2) / (images + z * z) - half


def low_by_root(right, images):
    # The smaller root of (p - k/n)^2 = z^2 p (1 - p) / n.
    p, w = right.double() / images, 1.96**2 / images.double()
    a, b, c = 1 + w, -(2 * p + w), p**2
    return ((-b - (b**2 - 4 * a * c).clamp(min=0).sqrt()) / (2 * a)).float()


@pytest.mark.parametrize("yours", [low_by_formula, low_by_counts, low_by_root])
def test_wilson_low_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(WILSON, yours)
    assert verdict.outcome == "passed", verdict


def normal(right, images):
    p = right / images
    return p - 1.96 * torch.sqrt(p * (1 - p) / images)


def adds_the_root(right, images):
    p, z2 = right / images, 1.96**2
    root = torch.sqrt(p * (1 - p) / images + z2 / (4 * images**2))
    return (p + z2 / (2 * images) + 1.96 * root) / (1 + z2 / images)


def does_not_divide(right, images):
    p, z2 = right / images, 1.96**2
    return p + z2 / (2 * images) - 1.96 * torch.sqrt(p * (1 - p) / images + z2 / (4 * images**2))


def leaves_z_out(right, images):
    p = right / images
    return (p + 0.5 / images - torch.sqrt(p * (1 - p) / images + 0.25 / images**2)) / (1 + 1 / images)


def takes_no_root(right, images):
    p, z2 = right / images, 1.96**2
    return (p + z2 / (2 * images) - 1.96 * (p * (1 - p) / images + z2 / (4 * images**2))) / (1 + z2 / images)


@pytest.mark.parametrize(
    ("yours", "hint"),
    [(normal, DOUBT), (adds_the_root, UPPER), (does_not_divide, DIVIDE), (leaves_z_out, WIDE), (takes_no_root, ROOT)],
)
def test_wilson_low_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(WILSON, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)
