"""Lesson 12's exercises without Triton: what a kernel should leave behind, and what is said where none can run."""

import math

import pytest

from dfqlab.lab.exercises import EXERCISES, check, kernels
from dfqlab.lab.exercises.kernels import channel_mean, fake_quantize_tile

TILE, MEAN = "12.fake_quantize_tile", "12.channel_mean"


def test_fake_quantize_tile_is_the_formula_in_float64() -> None:
    for x, y, scale, low, high, n, block in EXERCISES[TILE].cases:
        expected = [min(max(round(value / scale), low), high) * scale for value in x.tolist()]
        assert fake_quantize_tile(x, y, scale, low, high, n, block).tolist() == pytest.approx(expected, rel=1e-6)
        assert n == len(x) == len(y)


def test_channel_mean_is_the_mean_in_float64() -> None:
    for x, mean, n, c, hw, block in EXERCISES[MEAN].cases:
        assert x.shape == (n, c, hw)
        assert channel_mean(x, mean, n, c, hw, block).tolist() == pytest.approx(x.double().mean((0, 2)).tolist())


def test_no_case_depends_on_how_a_number_is_rounded_in_float32() -> None:
    """A learner may multiply with the inverse or divide, clamp before or after rounding, and is right."""
    for x, _, scale, low, high, _, _ in EXERCISES[TILE].cases:
        for value in x.tolist():
            if low < round(value / scale) < high:
                exact = math.log2(scale).is_integer()  # a half is a half then, in any precision
                assert exact or abs(value / scale - math.floor(value / scale) - 0.5) > 1e-3, (value, scale)


def test_every_case_has_a_ragged_last_tile() -> None:
    assert all(n % block for *_, n, block in EXERCISES[TILE].cases)
    assert all(hw % block for *_, hw, block in EXERCISES[MEAN].cases)


def test_a_half_is_among_the_cases_and_so_is_what_lies_beyond_either_end() -> None:
    codes = [(value / scale, low, high) for x, _, scale, low, high, *_ in EXERCISES[TILE].cases for value in x.tolist()]
    assert any(code % 1 == 0.5 and low < code < high for code, low, high in codes)
    assert any(code < low - 1 for code, low, _ in codes)
    assert any(code > high + 1 for code, _, high in codes)


@pytest.mark.parametrize("exercise", [TILE, MEAN])
def test_where_no_kernel_can_run_the_check_says_so_and_shows_what_is_expected(
    exercise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "triton_obstacle", lambda device: "triton is not installed")
    verdict = check(exercise, EXERCISES[exercise].answer)
    assert verdict.outcome == "not yet"
    assert verdict.sentence == "Not checked: triton is not installed. What it should give:"
    assert all(row[-3] and not row[-2] for row in verdict.rows[1:])
