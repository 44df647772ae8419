"""Lesson 09's exercises, as learners write them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfqlab.compression.equalization import scale_pair
from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lab.exercises.calibrate import cancel, equalize, range_errors

ERRORS, EQUALIZE, CANCEL = "09.range_errors", "09.equalize", "09.cancel"
CLAMP, BEYOND, SQUARE, STEPS = (hint.text for hint in EXERCISES[ERRORS].hints)
ROUND, ROOT, MAGNITUDE = (hint.text for hint in EXERCISES[EQUALIZE].hints)
NEAREST, LARGEST, WAY, SIGN, SUM = (hint.text for hint in EXERCISES[CANCEL].hints)


def exact_error(x: list[float], end: float, bits: int) -> float:
    """In float64, with Python's own rounding, half to even."""
    scale = end / (2**bits - 1)
    return math.fsum((value - min(round(value / scale), 2**bits - 1) * scale) ** 2 for value in x) / len(x)


def test_range_errors_are_the_formula_in_float64() -> None:
    for x, ends, bits in EXERCISES[ERRORS].cases:
        expected = [exact_error(x.tolist(), end, bits) for end in ends.tolist()]
        assert range_errors(x, ends, bits).tolist() == pytest.approx(expected, rel=1e-5)


def test_no_range_depends_on_how_a_number_is_rounded_in_float32() -> None:
    for x, ends, bits in EXERCISES[ERRORS].cases:
        for end in ends.tolist():
            inside = [value * (2**bits - 1) / end for value in x.tolist() if value <= end]
            assert all(abs(value - math.floor(value) - 0.5) > 1e-3 for value in inside), (end, inside)


def test_equalized_layers_reach_equally_far_and_their_product_is_the_same() -> None:
    for a, b in EXERCISES[EQUALIZE].cases:
        first, second = nn.Linear(*reversed(a.shape), bias=False), nn.Linear(*reversed(b.shape), bias=False)
        first.weight.data, second.weight.data = a.clone(), b.clone()
        scale_pair(first, second, equalize(a, b))
        torch.testing.assert_close(first.weight.abs().amax(1), second.weight.abs().amax(0))
        torch.testing.assert_close(second.weight @ first.weight, b @ a)


def cancelled_exactly(steps: list[float]) -> list[int]:
    """The task's words in Python numbers: round, sum, turn the largest errors of the sum's sign."""
    codes = [round(step) for step in steps]
    errors = [code - step for code, step in zip(codes, steps, strict=True)]
    total = math.fsum(errors)
    sign = 1 if total > 0 else -1
    for at in sorted(range(len(steps)), key=lambda at: -errors[at] * sign)[: round(abs(total))]:
        codes[at] -= sign
    return codes


def test_cancel_does_what_the_task_says_and_leaves_half_a_step_at_most() -> None:
    for (steps,) in EXERCISES[CANCEL].cases:
        assert cancel(steps).tolist() == cancelled_exactly(steps.tolist())
        assert abs(float((cancel(steps) - steps).sum())) <= 0.5


def errors_by_loop(x, ends, bits):
    found = []
    for end in ends:
        scale = end / (2**bits - 1)
        found.append(((x - (x / scale).round().clamp(0, 2**bits - 1) * scale) ** 2).mean())
    return torch.stack(found)


def errors_by_broadcasting(x, ends, bits):
    scale = ends[:, None] / (2**bits - 1)
    return torch.nn.functional.mse_loss(
        torch.minimum((x / scale).round() * scale, ends[:, None]), x.expand(len(ends), -1), reduction="none"
    ).mean(1)


def errors_in_numpy(x, ends, bits):
    scale = ends.numpy() / (2**bits - 1)
    codes = np.clip(np.rint(x.numpy()[:, None] / scale), 0, 2**bits - 1)
    return torch.from_numpy(((codes * scale - x.numpy()[:, None]) ** 2).mean(0))


def factors_by_formula(first, second):
    r1, r2 = first.abs().max(dim=1).values, second.abs().max(dim=0).values
    return torch.sqrt(r1 * r2) / r2


def factors_shorter(first, second):
    return (first.abs().amax(1) / second.abs().amax(0)).sqrt()


def factors_by_loop(first, second):
    found = []
    for channel in range(len(first)):
        r1 = max(abs(weight) for weight in first[channel].tolist())
        r2 = max(abs(weight) for weight in second[:, channel].tolist())
        found.append((r1 * r2) ** 0.5 / r2)
    return torch.tensor(found)


def cancel_by_topk(steps):
    codes = torch.round(steps)
    error = codes - steps
    sign = error.sum().sign()
    chosen = (error * sign).topk(round(abs(error.sum().item()))).indices
    codes[chosen] = codes[chosen] - sign
    return codes


def cancel_in_numbers(steps):
    return torch.tensor(cancelled_exactly(steps.tolist()), dtype=torch.float32)


@pytest.mark.parametrize(
    ("exercise", "yours"),
    [
        (ERRORS, errors_by_loop), (ERRORS, errors_by_broadcasting), (ERRORS, errors_in_numpy),
        (EQUALIZE, factors_by_formula), (EQUALIZE, factors_shorter), (EQUALIZE, factors_by_loop),
        (CANCEL, cancel_by_topk), (CANCEL, cancel_in_numbers),
    ],
)  # fmt: skip
def test_an_answer_as_learners_write_it_passes(exercise: str, yours: Callable[..., Tensor]) -> None:
    verdict = check(exercise, yours)
    assert verdict.outcome == "passed", verdict


def rounds_without_end(x, ends, bits):
    scale = ends[:, None] / (2**bits - 1)
    return ((x / scale).round() * scale - x).pow(2).mean(1)


def drops_what_is_beyond(x, ends, bits):
    found = []
    for end in ends.tolist():
        kept, scale = x[x <= end], end / (2**bits - 1)
        found.append(((kept / scale).round() * scale - kept).square().mean())
    return torch.stack(found)


def takes_magnitudes(x, ends, bits):
    scale = ends[:, None] / (2**bits - 1)
    return ((x / scale).round().clamp(max=2**bits - 1) * scale - x).abs().mean(1)


def divides_by_the_codes(x, ends, bits):
    scale = ends[:, None] / 2**bits
    return ((x / scale).round().clamp(max=2**bits - 1) * scale - x).pow(2).mean(1)


def inverts(first, second):
    return (second.abs().amax(0) / first.abs().amax(1)).sqrt()


def forgets_the_root(first, second):
    return first.abs().max(1).values / second.abs().max(0).values


def forgets_the_sign(first, second):
    return (first.max(1).values / second.max(0).values).sqrt()


def rounds_only(steps):
    return torch.from_numpy(np.rint(steps.numpy()))


def turns_the_surest(steps):
    codes = steps.round()
    error = codes - steps
    sign, flips = error.sum().sign(), int(error.sum().abs().round())
    same = [at for at in error.abs().argsort().tolist() if error[at] * sign > 0]
    codes[same[:flips]] -= sign
    return codes


def turns_them_further(steps):
    codes = steps.round()
    error = codes - steps
    sign = error.sum().sign()
    codes[(error * sign).topk(int(error.sum().abs().round())).indices] += sign
    return codes


def turns_any(steps):
    codes = steps.round()
    error = codes - steps
    codes[error.abs().topk(int(error.sum().abs().round())).indices] -= error.sum().sign()
    return codes


def moves_too_many(steps):
    return cancelled(steps, math.ceil)


def moves_one_more(steps):
    return cancelled(steps, lambda total: int(total) + 1)


def cancelled(steps, count):
    codes = steps.round()
    error = codes - steps
    sign = error.sum().sign()
    codes[(error * sign).topk(count(float(error.sum().abs()))).indices] -= sign
    return codes


@pytest.mark.parametrize(
    ("exercise", "yours", "hint"),
    [
        (ERRORS, rounds_without_end, CLAMP),
        (ERRORS, drops_what_is_beyond, BEYOND),
        (ERRORS, takes_magnitudes, SQUARE),
        (ERRORS, divides_by_the_codes, STEPS),
        (EQUALIZE, inverts, ROUND),
        (EQUALIZE, forgets_the_root, ROOT),
        (EQUALIZE, forgets_the_sign, MAGNITUDE),
        (CANCEL, rounds_only, NEAREST),
        (CANCEL, turns_the_surest, LARGEST),
        (CANCEL, turns_them_further, WAY),
        (CANCEL, turns_any, SIGN),
        (CANCEL, moves_too_many, SUM),
        (CANCEL, moves_one_more, SUM),
    ],
)
def test_an_answer_written_wrong_is_told_why(exercise: str, yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(exercise, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)
