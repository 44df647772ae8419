"""Lesson 01's exercises, as learners write them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lab.exercises.integer_grid import quantize_dequantize, zero_point

QUANTIZE, ZERO_POINT = "01.quantize_dequantize", "01.zero_point"
CLIP, NEAREST, BACK, AFTER = (hint.text for hint in EXERCISES[QUANTIZE].hints)
CONTAIN, ROUND, SIGN = (hint.text for hint in EXERCISES[ZERO_POINT].hints)


def exact_quantize(x: float, scale: float, zero: int, low: int, high: int) -> float:
    """In float64, with Python's own rounding, half to even."""
    return (min(max(round(x / scale) + zero, low), high) - zero) * scale


def test_quantize_dequantize_is_the_formula_in_float64() -> None:
    for x, scale, zero, low, high in EXERCISES[QUANTIZE].cases:
        expected = [exact_quantize(value, scale, zero, low, high) for value in x.flatten().tolist()]
        assert quantize_dequantize(x, scale, zero, low, high).flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_zero_point_is_the_formula_in_float64() -> None:
    for lows, highs, bits in EXERCISES[ZERO_POINT].cases:
        ranges = [(min(low, 0.0), max(high, 0.0)) for low, high in zip(lows.tolist(), highs.tolist(), strict=True)]
        assert zero_point(lows, highs, bits).tolist() == [round(-a * (2**bits - 1) / (b - a)) for a, b in ranges]


def test_no_case_depends_on_how_a_number_is_rounded_in_float32() -> None:
    """A learner may compute in another order or precision, and is right."""
    for x, scale, zero, low, high in EXERCISES[QUANTIZE].cases:
        for value in x.flatten().tolist():
            if low < round(value / scale) + zero < high:
                exact = math.log2(scale).is_integer()  # a half is a half then, in any precision
                half = abs(value / scale - math.floor(value / scale) - 0.5)
                assert exact or half > 1e-3, (value, scale)
    for lows, highs, bits in EXERCISES[ZERO_POINT].cases:
        for a, b in zip(lows.clamp(max=0).tolist(), highs.clamp(min=0).tolist(), strict=True):
            code = -a * (2**bits - 1) / (b - a)
            assert abs(code - math.floor(code) - 0.5) > 1e-3, (a, b)


def one_line(x, scale, zero_point, quant_min, quant_max):
    return (torch.clip(torch.round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale


def by_reciprocal(x, scale, zero_point, quant_min, quant_max):
    q = (x * (1 / scale)).round().add(zero_point)
    return q.clamp(quant_min, quant_max).sub(zero_point).mul(scale)


def with_minimum(x, scale, zero_point, quant_min, quant_max):
    q = torch.round(x / scale) + zero_point
    q = torch.minimum(torch.maximum(q, torch.tensor(quant_min)), torch.tensor(quant_max))
    return scale * (q - zero_point)


def with_tensors(x, scale, zero_point, quant_min, quant_max):
    scale, zero_point = torch.tensor(scale), torch.tensor(zero_point)
    q = (torch.round(x / scale) + zero_point).clamp(quant_min, quant_max).to(torch.int32)
    return (q - zero_point) * scale


def by_loop(x, scale, zero_point, quant_min, quant_max):
    out = []
    for value in x.flatten():
        q = round(float(value) / scale) + zero_point
        q = max(quant_min, min(quant_max, q))
        out.append((q - zero_point) * scale)
    return torch.tensor(out).reshape(x.shape)


def by_mask(x, scale, zero_point, quant_min, quant_max):
    q = torch.round(x / scale) + zero_point
    q[q < quant_min] = quant_min
    q[q > quant_max] = quant_max
    return (q - zero_point) * scale


def by_torch(x, scale, zero_point, quant_min, quant_max):
    # torch's own op asks for a grid that a byte can hold, so shift it to start at 0
    shift = quant_min
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point - shift, 0, quant_max - shift)


def with_gradient(x, scale, zero_point, quant_min, quant_max):
    x = x.clone().requires_grad_()
    return one_line(x, scale, zero_point, quant_min, quant_max)


def transposed(x, scale, zero_point, quant_min, quant_max):
    y = one_line(x.mT.contiguous() if x.dim() > 1 else x, scale, zero_point, quant_min, quant_max)
    return y.mT if x.dim() > 1 else y


@pytest.mark.parametrize(
    "yours",
    [one_line, by_reciprocal, with_minimum, with_tensors, by_loop, by_mask, by_torch, with_gradient, transposed],
)
def test_quantize_dequantize_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(QUANTIZE, yours)
    assert verdict.outcome == "passed", verdict


def forgets_the_ends(x, scale, zero_point, quant_min, quant_max):
    codes = np.rint(x.numpy() / np.float32(scale)) + zero_point
    return torch.from_numpy(((codes - zero_point) * np.float32(scale)).astype(np.float32))


def uses_int(x, scale, zero_point, quant_min, quant_max):
    codes = [max(quant_min, min(quant_max, int(v / scale) + zero_point)) for v in x.flatten().tolist()]
    return torch.tensor([(code - zero_point) * scale for code in codes]).view(x.shape)


def returns_the_codes(x, scale, zero_point, quant_min, quant_max):
    codes = np.clip(np.round(x.numpy() / np.float32(scale)) + zero_point, quant_min, quant_max)
    return torch.from_numpy(codes.astype(np.float32))


def adds_the_zero_point_too_early(x, scale, zero_point, quant_min, quant_max):
    codes = np.clip(np.rint(x.numpy() / np.float32(scale) + zero_point), quant_min, quant_max)
    return torch.from_numpy(((codes - zero_point) * np.float32(scale)).astype(np.float32))


@pytest.mark.parametrize(
    ("yours", "hint"),
    [
        (forgets_the_ends, CLIP),
        (uses_int, NEAREST),
        (returns_the_codes, BACK),
        (adds_the_zero_point_too_early, AFTER),
    ],
)
def test_quantize_dequantize_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(QUANTIZE, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_half_rounded_up_is_wrong_and_the_table_shows_where() -> None:
    def half_up(x, scale, zero_point, quant_min, quant_max):
        return ((torch.floor(x / scale + 0.5) + zero_point).clamp(quant_min, quant_max) - zero_point) * scale

    verdict = check(QUANTIZE, half_up)
    assert verdict.outcome == "wrong"
    assert [row[0] for row in verdict.rows if row[-1] == "≠"] == ["-0.75", "0.25"]


def test_half_rounded_away_from_zero_is_wrong() -> None:
    def half_away(x, scale, zero_point, quant_min, quant_max):
        steps = torch.sign(x) * torch.floor(x.abs() / scale + 0.5)
        return ((steps + zero_point).clamp(quant_min, quant_max) - zero_point) * scale

    assert check(QUANTIZE, half_away).outcome == "wrong"


def zero_by_formula(low, high, bits):
    low, high = torch.clamp(low, max=0), torch.clamp(high, min=0)
    return torch.round(-low / ((high - low) / (2**bits - 1)))


def zero_with_minimum(low, high, bits):
    zero = torch.zeros(1)
    low, high = torch.minimum(low, zero), torch.maximum(high, zero)
    return (-low * (2**bits - 1) / (high - low)).round()


def zero_by_loop(low, high, bits):
    codes = []
    for a, b in zip(low, high, strict=True):
        a, b = min(a.item(), 0), max(b.item(), 0)
        codes.append(float(round(-a / ((b - a) / (2**bits - 1)))))
    return torch.tensor(codes)


def zero_in_float64(low, high, bits):
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    return torch.round(-low / (high - low) * (2**bits - 1)).float()


def zero_clipped_afterwards(low, high, bits):  # another way, and right: outside the range the code ends at its ends
    return torch.round(-low / ((high - low) / (2**bits - 1))).clamp(0, 2**bits - 1)


@pytest.mark.parametrize(
    "yours", [zero_by_formula, zero_with_minimum, zero_by_loop, zero_in_float64, zero_clipped_afterwards]
)
def test_zero_point_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(ZERO_POINT, yours)
    assert verdict.outcome == "passed", verdict


def trusts_the_range(low, high, bits):
    scales = (high.numpy() - low.numpy()) / np.float32(2**bits - 1)
    return torch.from_numpy(np.rint(-low.numpy() / scales))


def keeps_the_fraction(low, high, bits):
    pairs = [(min(a, 0), max(b, 0)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return torch.tensor([-a * (2**bits - 1) / (b - a) for a, b in pairs])


def loses_the_sign(low, high, bits):
    pairs = [(min(a, 0), max(b, 0)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return torch.tensor([float(round(a / (b - a) * (2**bits - 1))) for a, b in pairs])


@pytest.mark.parametrize(
    ("yours", "hint"), [(trusts_the_range, CONTAIN), (keeps_the_fraction, ROUND), (loses_the_sign, SIGN)]
)
def test_zero_point_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(ZERO_POINT, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_codes_of_an_integer_type_are_told_how_to_become_floats() -> None:
    verdict = check(ZERO_POINT, lambda low, high, bits: zero_by_formula(low, high, bits).long())
    assert verdict.outcome == "wrong"
    assert "int64; expected float32" in verdict.sentence
    assert ".to(torch.float32)" in verdict.sentence
