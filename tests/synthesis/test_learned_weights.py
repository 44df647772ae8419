"""Weights that move with the descent: how far, where to, and never to zero."""

from math import exp, log, tanh

import pytest
import torch
from torch import Tensor

from dfqlab.objective import Objective, Weighted
from dfqlab.synthesis.descent import LearnedWeights
from dfqlab.synthesis.terms import L2Prior, LowPassPrior, TotalVariation

GIVEN = {"size": 2.0, "smooth": 0.1, "low": 1.0}
REACH = log(100)


@pytest.fixture
def learned() -> LearnedWeights:
    objective = Objective(
        size=Weighted(2.0, L2Prior()), smooth=Weighted(0.1, TotalVariation()), low=Weighted(1.0, LowPassPrior())
    )
    return LearnedWeights(objective, torch.device("cpu"))


def losses(*values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(GIVEN, values, strict=True)}


def place(learned: LearnedWeights, *t: float) -> None:
    with torch.no_grad():
        learned.t.copy_(torch.tensor(t))


def test_at_the_start_the_total_is_the_plain_weighted_sum(learned: LearnedWeights) -> None:
    values = losses(3.0, 5.0, 0.25)
    total, plain = (float(sum_of(values).detach()) for sum_of in (learned.total, learned.objective.total))
    assert total == pytest.approx(2 * 3 + 0.1 * 5 + 0.25, rel=1e-6)
    assert total == pytest.approx(plain, rel=1e-6)


def test_the_total_is_each_term_at_its_weight_plus_what_the_weight_costs(learned: LearnedWeights) -> None:
    t, values = (-0.7, 0.3, 1.5), (3.0, 5.0, 0.25)
    place(learned, *t)
    s = [REACH * tanh(x) for x in t]
    expected = sum(exp(-a) * w * v + a for a, w, v in zip(s, GIVEN.values(), values, strict=True))
    assert float(learned.total(losses(*values)).detach()) == pytest.approx(expected, rel=1e-5)


def test_terms_are_told_apart_by_name_and_not_by_order(learned: LearnedWeights) -> None:
    place(learned, -0.7, 0.3, 1.5)
    values = losses(3.0, 5.0, 0.25)
    turned = dict(reversed(values.items()))
    assert float(learned.total(turned).detach()) == float(learned.total(values).detach())


def test_the_gradient_of_a_weight_is_one_less_its_term_as_it_counts_now(learned: LearnedWeights) -> None:
    t, values = (-0.7, 0.3, 1.5), (3.0, 5.0, 0.25)
    place(learned, *t)
    (gradient,) = torch.autograd.grad(learned.total(losses(*values)), learned.t)
    expected = [
        (1 - exp(-REACH * tanh(x)) * w * v) * REACH * (1 - tanh(x) ** 2)
        for x, w, v in zip(t, GIVEN.values(), values, strict=True)
    ]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("t", [-1e6, -50.0, -3.0, 0.0, 3.0, 50.0, 1e6])
def test_no_weight_goes_farther_than_a_hundredfold(learned: LearnedWeights, t: float) -> None:
    """What a term counts is the gradient of the total in it."""
    place(learned, t, t, t)
    values = losses(3.0, 5.0, 0.25)
    counted = torch.autograd.grad(learned.total(values), list(values.values()))
    for name, weight in zip(GIVEN, counted, strict=True):
        assert GIVEN[name] / 100.01 <= float(weight) <= GIVEN[name] * 100.01
        assert float(weight) == pytest.approx(GIVEN[name] * 100 ** -tanh(t), rel=1e-4)


def test_descent_on_weights_alone_makes_each_term_count_one_and_none_vanish(learned: LearnedWeights) -> None:
    """Where `exp(s) = w L`; with w L of 4,000 and 0.0004 that is out of reach: not past a hundredfold."""
    fixed = dict(zip(GIVEN, map(torch.tensor, (6.0, 4e4, 4e-4)), strict=True))
    optimizer = torch.optim.Adam([learned.t], lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        learned.total(fixed).backward()
        optimizer.step()
    scales = (REACH * torch.tanh(learned.t.detach())).exp().tolist()
    assert scales[0] == pytest.approx(2.0 * 6.0, rel=1e-3)  # w L
    assert 80 < scales[1] <= 100.001
    assert 0.00999 <= scales[2] < 1 / 80
