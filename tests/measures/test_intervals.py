"""Intervals, against closed forms and printed tables."""

import math

import pytest
import torch

from dfqlab.errors import DataError
from dfqlab.measures import Difference, Interval, paired_difference, wilson

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (Wilson's score interval).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_what_newcombe_printed(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson(successes, trials)
    assert found.value == successes / trials
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(1, 2), (7, 10), (88, 100), (4405, 5000)])
def test_the_ends_of_wilson_are_where_the_score_test_gives_z(successes: int, trials: int) -> None:
    found = wilson(successes, trials)
    for end in (found.low, found.high):
        score = (successes / trials - end) / math.sqrt(end * (1 - end) / trials)
        assert abs(score) == pytest.approx(Z, rel=1e-9)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("trials", [1, 5, 1000])
def test_wilson_at_none_and_at_all_stays_inside_and_keeps_a_width(trials: int) -> None:
    none, every = wilson(0, trials), wilson(trials, trials)
    width = Z**2 / (trials + Z**2)  # the closed form there
    assert (none.value, none.low) == (0, pytest.approx(0, abs=1e-12))
    assert none.high == pytest.approx(width)
    assert (every.value, every.high) == (1, pytest.approx(1, abs=1e-12))
    assert every.low == pytest.approx(1 - width)
    assert none.low >= 0
    assert every.high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 10), (11, 10), (1, -1)])
def test_wilson_refuses_what_is_no_share(successes: int, trials: int) -> None:
    with pytest.raises(DataError, match="0 <= successes <= trials"):
        wilson(successes, trials)


def test_an_interval_prints_in_percent() -> None:
    assert str(Interval(0.978, 0.97, 0.984)) == "97.8 % [97.0, 98.4]"
    assert str(Difference(0.06, -0.011, 0.1)) == "6.0 points [-1.1, 10.0]"


def test_a_paired_difference_has_the_interval_of_its_mean() -> None:
    # Differences 1 0 0 -1 1 1: mean 1/3, sum of squares 4 - 6/9 = 10/3 around it, standard error sqrt(10/3 / 5 / 6).
    a, b = torch.tensor([1.0, 1, 0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1, 0, 0])
    found = paired_difference(a, b)
    half = Z * math.sqrt(10 / 3 / 5 / 6)
    assert found.value == pytest.approx(1 / 3)
    assert (found.low, found.high) == (pytest.approx(1 / 3 - half), pytest.approx(1 / 3 + half))


def test_a_paired_difference_changes_sign_with_its_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(50, generator=generator), torch.rand(50, generator=generator)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_pairing_counts() -> None:
    """What two models get wrong together says nothing of their difference."""
    a = torch.tensor([1.0, 0] * 50)
    b = a.clone()
    b[:4:2] = 0
    paired, unpaired = paired_difference(a, b), paired_difference(a, b.roll(1))
    assert paired.value == pytest.approx(unpaired.value) == pytest.approx(0.02)
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)


def test_equal_sides_differ_by_nothing() -> None:
    assert paired_difference(torch.ones(5), torch.ones(5)) == Difference(0, 0, 0)


@pytest.mark.parametrize("count", [0, 1])
def test_a_difference_needs_two_items(count: int) -> None:
    with pytest.raises(DataError, match=f"over {count} items"):
        paired_difference(torch.ones(count), torch.ones(count))
