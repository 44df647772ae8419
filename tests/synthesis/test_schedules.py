"""Schedules: each against its formula or its rule, and a run that stopped against one that did not."""

import json
from math import cos, pi

import pytest
import torch

from dfqlab.errors import ConfigurationError
from dfqlab.synthesis.schedules import Constant, Cosine, Plateau, Rate, Schedule

STEPS, FIRST = 23, 0.4
LOSSES = [
    5.0,
    4.0,
    4.0,
    4.1,
    4.2,
    3.0,
    3.0,
    3.1,
    3.0,
    3.2,
    3.3,
    3.0,
    9.0,
    2.0,
    2.0,
    2.0,
    2.0,
    2.0,
    2.5,
    2.5,
    1.0,
    1.0,
    1.0,
]


class Run:
    """An optimizer whose gradients do not matter, and its rate."""

    def __init__(self, schedule: Schedule, steps: int = STEPS) -> None:
        parameter = torch.zeros(1, requires_grad=True)
        parameter.grad = torch.ones(1)
        self.optimizer = torch.optim.Adam([parameter], lr=FIRST)
        self.rate: Rate = schedule.start(self.optimizer, steps)

    @property
    def now(self) -> float:
        (group,) = self.optimizer.param_groups
        return float(group["lr"])

    def step(self, loss: float) -> float:
        """The rate that this step is taken with."""
        used = self.now
        self.optimizer.step()
        self.rate.step(loss)
        return used


def rates(schedule: Schedule, losses: list[float] = LOSSES) -> list[float]:
    run = Run(schedule, len(losses))
    return [run.step(loss) for loss in losses]


def by_rule(losses: list[float], patience: int, smallest: float) -> list[float]:
    """Tenfold down when more than `patience` steps in a row were no better than the best by one in ten thousand."""
    rate, best, waited, used = FIRST, float("inf"), 0, []
    for loss in losses:
        used.append(rate)
        better = loss < best * (1 - 1e-4)
        best, waited = (loss, 0) if better else (best, waited + 1)
        if waited > patience:
            rate, waited = max(rate / 10, smallest), 0
    return used


def test_cosine_begins_at_the_whole_rate_and_falls_as_half_a_cosine() -> None:
    expected = [FIRST * (1 + cos(pi * k / STEPS)) / 2 for k in range(STEPS)]
    assert rates(Cosine()) == pytest.approx(expected, rel=1e-12)
    assert expected[0] == FIRST


@pytest.mark.parametrize("warm_up", [1, 5, 22])
def test_cosine_with_a_warm_up_rises_in_equal_parts_first(warm_up: int) -> None:
    expected = [FIRST * (k + 1) / (warm_up + 1) for k in range(warm_up)]
    expected += [FIRST * (1 + cos(pi * k / (STEPS - warm_up))) / 2 for k in range(STEPS - warm_up)]
    assert rates(Cosine(warm_up)) == pytest.approx(expected, rel=1e-12)
    assert max(expected) == FIRST


def test_after_the_last_step_a_cosine_is_zero() -> None:
    run = Run(Cosine())
    for loss in LOSSES:
        run.step(loss)
    assert run.now == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("patience", "smallest"), [(2, 1e-4), (0, 1e-3), (1, 0.02), (3, 0.0), (100, 1e-4)])
def test_a_plateau_lowers_the_rate_by_its_rule(patience: int, smallest: float) -> None:
    found = rates(Plateau(patience, smallest))
    assert found == pytest.approx(by_rule(LOSSES, patience, smallest), rel=1e-9)
    assert (min(found) < FIRST) == (patience < 100)


def test_a_plateau_takes_no_fall_of_less_than_one_in_ten_thousand_for_one() -> None:
    slowly = [1 - 1e-6 * k for k in range(10)]
    assert rates(Plateau(patience=3), slowly)[-1] == pytest.approx(FIRST / 100)
    quickly = [1 - 1e-3 * k for k in range(10)]
    assert rates(Plateau(patience=3), quickly) == [FIRST] * 10


def test_a_constant_rate_stays() -> None:
    assert rates(Constant()) == [FIRST] * STEPS


SCHEDULES: list[Schedule] = [Constant(), Cosine(), Cosine(6), Plateau(1, 1e-3), Plateau(3, 1e-4)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_run_resumed_after_any_step_takes_the_rates_of_one_that_never_stopped(schedule: Schedule) -> None:
    whole, end = rates(schedule), rate_at_the_end(schedule).state()
    for stopped in range(STEPS + 1):
        first, second = Run(schedule), Run(schedule)
        used = [first.step(loss) for loss in LOSSES[:stopped]]
        second.rate.resume(json.loads(json.dumps(first.rate.state(), allow_nan=False)))
        assert second.now == first.now
        used += [second.step(loss) for loss in LOSSES[stopped:]]
        assert used == whole
        assert second.rate.state() == end


def rate_at_the_end(schedule: Schedule) -> Rate:
    run = Run(schedule)
    for loss in LOSSES:
        run.step(loss)
    return run.rate


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_state_is_a_picture_that_later_steps_do_not_change(schedule: Schedule) -> None:
    run = Run(schedule)
    run.step(1.0)
    state = run.rate.state()
    before = json.dumps(state)
    for loss in LOSSES:
        run.step(loss)
    assert json.dumps(state) == before


def test_every_group_of_an_optimizer_follows_and_resumes() -> None:
    def start() -> tuple[torch.optim.Optimizer, Rate]:
        groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 0.3)]
        optimizer = torch.optim.Adam(groups)
        return optimizer, Cosine().start(optimizer, 10)

    optimizer, rate = start()
    for _ in range(4):
        optimizer.step()
        rate.step(1.0)
    share = (1 + cos(pi * 4 / 10)) / 2
    other, resumed = start()
    resumed.resume(json.loads(json.dumps(rate.state(), allow_nan=False)))
    for found in (optimizer, other):
        assert [group["lr"] for group in found.param_groups] == pytest.approx([0.1 * share, 0.3 * share], rel=1e-12)


def test_a_negative_warm_up_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="warm_up=-1: expected a number of steps"):
        Cosine(-1)
