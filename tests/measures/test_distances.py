"""Ratios and distances, against closed forms and numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dfqlab.measures import batch_norm_distance, sqnr
from dfqlab.statistics import ObservedTeacher, remembered
from dfqlab.teachers import Teacher


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
