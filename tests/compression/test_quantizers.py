"""A range becomes a scale and a zero point."""

import pytest
import torch
from torch import Tensor

from dfqlab.compression.quantizers import SMALLEST_SCALE, ActivationQuantizer, affine_parameters, symmetric_scale
from dfqlab.compression.spec import Grid
from dfqlab.errors import QuantizationError

WIDTHS = range(2, 9)
RANGES = [(0.0, 1.0), (-1.0, 1.0), (-0.3, 2.0), (-5.0, 0.0), (-1e-3, 7e4), (-2.0, 1e-6), (0.2, 0.9), (-0.9, -0.2)]


def affine(bits: int) -> Grid:
    return Grid(bits, symmetric=False, granularity="per_tensor")


def symmetric(bits: int) -> Grid:
    return Grid(bits, symmetric=True, granularity="per_channel")


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_the_range_is_covered_to_half_a_step_and_holds_zero_exactly(low: float, high: float, bits: int) -> None:
    p = affine_parameters(low, high, affine(bits))
    assert p.scale.dtype == torch.float32
    assert (p.quant_min, p.quant_max) == (0, 2**bits - 1)
    assert 0 <= p.zero_point <= p.quant_max  # zero is a code
    ends = [(code - p.zero_point) * float(p.scale) for code in (p.quant_min, p.quant_max)]
    assert p.range == pytest.approx(tuple(ends))
    half = float(p.scale) / 2 * (1 + 1e-4)
    assert ends[0] == pytest.approx(min(low, 0), abs=half)
    assert ends[1] == pytest.approx(max(high, 0), abs=half)
    assert float(p.scale) == pytest.approx((max(high, 0) - min(low, 0)) / (2**bits - 1), rel=1e-6)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_range_of_nothing_still_has_a_positive_scale(bits: int) -> None:
    p = affine_parameters(0.0, 0.0, affine(bits))
    assert (float(p.scale), p.zero_point) == (pytest.approx(SMALLEST_SCALE), 0)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_symmetric_scale_covers_both_ends_and_is_the_smallest_that_does(bits: int) -> None:
    grid = symmetric(bits)
    low = torch.tensor([-1.0, -1.0, -3.0, 0.0, -2.0, 0.5, 0.0])
    high = torch.tensor([1.0, 0.1, 1.0, 2.0, -1.0, 2.0, 0.0])
    scale = symmetric_scale(low, high, grid)
    assert (scale >= SMALLEST_SCALE * 0.999).all()
    assert (scale * grid.quant_max >= high * (1 - 1e-6)).all()
    assert (scale * grid.quant_min <= low + 1e-6 * low.abs()).all()
    smaller = scale * 0.999
    wide = (high - low).abs() > 0
    assert ((smaller * grid.quant_max < high) | (smaller * grid.quant_min > low))[wide].all()


def test_a_quantizer_without_a_range_says_where_it_stands() -> None:
    with pytest.raises(QuantizationError, match=r"quantizer after 'layer1\.0\.conv' has no range yet; calibrate first"):
        _ = ActivationQuantizer("layer1.0.conv", affine(8)).quantization


def test_a_forward_pass_changes_no_value_and_sets_no_range() -> None:
    quantizer = ActivationQuantizer("a", affine(8))
    seen: list[Tensor] = []
    quantizer.observer = seen.append
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert quantizer(x) is x
    assert seen[0] is x
    with pytest.raises(QuantizationError):
        _ = quantizer.quantization


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("high", [0.5, 3.0, 5.99, 6.0])
def test_behind_relu6_the_last_code_is_that_of_six_or_of_the_grid(high: float, bits: int) -> None:
    quantizer = ActivationQuantizer("a", affine(bits), 0.0, 6.0)
    quantizer.set_range(0.0, high)
    p = quantizer.quantization
    assert p.quant_max == min(2**bits - 1, round(6 / float(p.scale)) + p.zero_point)
    assert p.quant_max == 2**bits - 1  # a range within 0..6 ends before six


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_range_beyond_six_is_clipped_at_six(bits: int) -> None:
    quantizer = ActivationQuantizer("a", affine(bits), 0.0, 6.0)
    quantizer.set_range(0.0, 12.0)
    p = quantizer.quantization
    assert p.quant_max == round(6 / float(p.scale)) < 2**bits - 1
    assert (p.quant_max - p.zero_point) * float(p.scale) == pytest.approx(6, abs=float(p.scale) / 2 * 1.001)
