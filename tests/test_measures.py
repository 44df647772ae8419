"""Intervals and ratios, against closed forms and printed tables."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dfqlab.errors import DataError
from dfqlab.measures import Interval, batch_norm_distance, paired_difference, sqnr, wilson
from dfqlab.statistics import ObservedTeacher, remembered
from dfqlab.teachers import Teacher

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
    assert paired_difference(torch.ones(5), torch.ones(5)) == Interval(0, 0, 0)


@pytest.mark.parametrize("count", [0, 1])
def test_a_difference_needs_two_items(count: int) -> None:
    with pytest.raises(DataError, match=f"over {count} items"):
        paired_difference(torch.ones(count), torch.ones(count))


@pytest.mark.parametrize(("share", "decibels"), [(1, 0), (0.1, 20), (0.01, 40), (10, -20)])
def test_sqnr_counts_a_tenfold_error_as_20_decibels(share: float, decibels: float) -> None:
    reference = torch.tensor([[3.0, -4], [1, 0]], dtype=torch.float64)
    error = share * reference[:, [1, 0]] * torch.tensor([[1, -1], [1, -1]])  # as long as the reference, and across it
    assert sqnr(reference, reference + error) == pytest.approx(decibels, abs=1e-9)


def test_sqnr_is_numpys_in_float64() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(7, 5)), random.normal(size=(7, 5))
    expected = 10 * np.log10((x**2).sum() / ((x - y) ** 2).sum())
    assert sqnr(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-12)


def test_sqnr_stays_finite_for_a_json_file() -> None:
    x = torch.tensor([1.0, 2.0])
    zeros = torch.zeros(2)
    assert sqnr(x, x) == sqnr(zeros, zeros) == 200
    assert sqnr(x, x.double() + torch.tensor([1e-13, 0], dtype=torch.float64)) == 200
    assert sqnr(zeros, x) == -200
    tiny, huge = torch.tensor([1e-160], dtype=torch.float64), torch.tensor([1e150], dtype=torch.float64)
    assert sqnr(tiny, huge) == -200


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_sqnr_of_what_is_not_finite_is_the_worst(broken: float) -> None:
    x = torch.tensor([1.0, 2.0])
    for pair in ((x, torch.tensor([1.0, broken])), (torch.tensor([1.0, broken]), x)):
        assert sqnr(*pair) == -200


def batch_norm_teacher() -> Teacher:
    module = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    first, second = module[0], module[1]
    first.running_mean, first.running_var = torch.tensor([0.0, 2.0]), torch.tensor([4.0, 1.0])
    first.eps = 0.0
    second.running_mean, second.running_var = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    return Teacher.from_module(module, size=(2, 2, 2), mean=[0, 0], std=[1, 1], classes=2)


@pytest.mark.traces
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_batch_norm_distance_counts_remembered_deviations(per: str) -> None:
    teacher = batch_norm_teacher()
    # Channel 0 has mean 6, three deviations of 2 above 0; channel 1 has mean 1, one deviation below 2.
    images = torch.stack([torch.full((2, 2), 6.0), torch.tensor([[0.0, 2.0], [0.5, 1.5]])]).expand(3, 2, 2, 2)
    found = batch_norm_distance(ObservedTeacher(teacher, per)(images).statistics, remembered(teacher))  # type: ignore[arg-type]
    # The first layer's output has means 3 and -1, and the second remembers zeros and ones: the same distance.
    distance = math.sqrt((3**2 + 1**2) / 2)
    assert found == {"0": pytest.approx(distance), "1": pytest.approx(distance, rel=1e-4)}


@pytest.mark.traces
def test_batch_norm_distance_of_what_is_remembered_is_nothing() -> None:
    statistics = remembered(batch_norm_teacher())
    assert batch_norm_distance(statistics, statistics) == {"0": 0, "1": 0}
