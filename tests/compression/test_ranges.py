"""Rules for ranges, each held to a closed form, to numpy, to scipy or to a slow search in float64."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dfqlab.compression import ranges
from dfqlab.compression.calibration import rule_of
from dfqlab.compression.clipping import gaussian_clip, laplace_clip
from dfqlab.compression.quantizers import affine_parameters
from dfqlab.compression.ranges import (
    BINS,
    Aciq,
    Divergence,
    ImageMean,
    MinMax,
    MovingAverage,
    Percentile,
    Range,
    RangeRule,
    Seen,
    SquaredError,
)
from dfqlab.compression.spec import Calibration, Grid, QuantizationSpec
from dfqlab.errors import ConfigurationError, QuantizationError

RULES = [MinMax(), Percentile(), MovingAverage(), ImageMean(), SquaredError(), Divergence(), Aciq()]


def affine(bits: int) -> Grid:
    return Grid(bits, symmetric=False, granularity="per_tensor")


def seen(*batches: Tensor) -> Seen:
    """What calibration notes of these batches."""
    found = Seen()
    for batch in batches:
        found.watch(batch)
    for batch in batches:
        found.count_values(batch)
    return found


def drawn(kind: str, count: int = 20_000) -> Tensor:
    """Values in 20 images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, count // 20, generator=generator)
    match kind:
        case "behind a relu":
            return x.relu()
        case "laplace":
            uniform = torch.rand(x.shape, generator=generator)
            return x.sign() * -torch.log(uniform.clamp(min=1e-7))
        case "heavy tails":
            return x**5
        case "heavy tails, behind a relu":
            return x.relu() ** 5
        case "uniform":
            return torch.rand(x.shape, generator=generator)
        case "all positive":
            return x.exp() + 0.5
        case "all negative":
            return -x.exp() - 0.5
        case "two heaps":
            return x.sign() * (10 + x.abs())
        case "zeros and a heap":
            return torch.where(x > 0, 10 + x, 0)
    return x


KINDS = ["normal", "behind a relu", "laplace", "heavy tails", "uniform", "all positive", "all negative"]


def test_extremes_are_noted_of_all_of_each_batch_and_of_each_image() -> None:
    batches = [torch.tensor([[[1.0, -2.0]], [[5.0, 0.5]]]), torch.tensor([[[-7.0, -6.0]]])]
    found = seen(*batches)
    assert found.extremes == (-7.0, 5.0)
    assert found.batches == [(-2.0, 5.0), (-7.0, -6.0)]
    assert found.images == (-2.0 + 0.5 - 7.0, 1.0 + 5.0 - 6.0)
    assert found.count == 3


def test_every_value_is_counted_in_its_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_EXACT_COUNTS", 1000)  # more values than are counted at once
    times = torch.randint(1, 9, (BINS,), generator=torch.Generator().manual_seed(0))
    middles = (torch.arange(BINS) + 0.5 - 1024).repeat_interleave(times)
    found = seen(middles[None], torch.tensor([[-1024.0, 1024.0]]))
    times[0] += 1
    times[-1] += 1
    assert torch.equal(found.histogram, times.double())


def test_a_batch_with_nan_says_so() -> None:
    found = seen(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, math.nan]]))
    assert all(map(math.isnan, (*found.extremes, *found.batches[-1], *found.images)))


@pytest.mark.parametrize("name", get_args(Calibration))
def test_every_calibration_has_its_rule(name: Calibration) -> None:
    rule = rule_of(QuantizationSpec(calibration=name, percentile=98.0))
    assert isinstance(rule, RangeRule)
    assert rule == Percentile(98.0) or name != "percentile"
    assert rule.reads_histogram == (name not in ("minmax", "ema", "image_mean"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e6])
def test_a_constant_keeps_its_value(rule: RangeRule, value: float) -> None:
    low, high = rule(seen(torch.full((4, 5), value)), affine(4))
    assert (low, high) == pytest.approx((value, value), rel=1e-6)
    assert math.isfinite(affine_parameters(low, high, affine(4)).scale)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_no_range_leaves_the_extremes(rule: RangeRule, kind: str) -> None:
    x = drawn(kind)
    low, high = rule(seen(*x.split(8)), affine(4))
    assert float(x.min()) <= low < high <= float(x.max())
    if isinstance(rule, MinMax):
        assert (low, high) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("percent", [51.0, 75.0, 99.0, 99.9, 99.999, 100.0])
@pytest.mark.parametrize("kind", ["normal", "behind a relu", "uniform", "all negative"])
def test_a_percentile_is_numpys_to_one_bin(kind: str, percent: float) -> None:
    x = drawn(kind)
    found = Percentile(percent)(seen(*x.split(8)), affine(8))
    expected = np.percentile(x.double().numpy(), (100 - percent, percent), method="inverted_cdf")
    assert found == pytest.approx(tuple(expected), abs=float(x.max() - x.min()) / BINS * 1.001)


@pytest.mark.parametrize("percent", [50, 101, 0, -3, math.nan])
def test_a_percentile_that_keeps_nothing_is_refused(percent: float) -> None:
    with pytest.raises(ConfigurationError, match=r"expected more than 50 and at most 100, as 99\.99"):
        QuantizationSpec(calibration="percentile", percentile=percent)


def test_a_percentile_of_values_nearly_all_the_same_is_refused() -> None:
    x = torch.full((1, 10_000), 0.5)
    x[0, 0] = 100
    with pytest.raises(QuantizationError, match=r"99\.9 leaves nothing .* nearly all the same"):
        Percentile(99.9)(seen(x), affine(8))
    assert Percentile(100)(seen(x), affine(8)) == pytest.approx((0.5, 100))


@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_moving_average_is_the_weighted_mean_of_the_batches(count: int) -> None:
    batches = (drawn("normal") + 5).split(1)[:count]
    weights = np.array([0.9 ** (count - 1 - i) for i in range(count)])
    expected = [np.average([float(end(b)) for b in batches], weights=weights) for end in (torch.min, torch.max)]
    assert MovingAverage()(seen(*batches), affine(8)) == pytest.approx(tuple(expected), rel=1e-9)
    steeper = MovingAverage(decay=0.1)(seen(*batches), affine(8))
    assert steeper == pytest.approx((float(batches[-1].min()), float(batches[-1].max())), rel=0.2)


@pytest.mark.parametrize("size", [1, 7, 20])
def test_the_mean_over_images_minds_no_batches(size: int) -> None:
    x = drawn("normal")
    expected = (float(x.double().amin(1).mean()), float(x.double().amax(1).mean()))
    assert ImageMean()(seen(*x.split(size)), affine(8)) == pytest.approx(expected, rel=1e-9)


def test_the_squared_error_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(histogram: Tensor, low: float, high: float, grid: Grid) -> Range:
        assert histogram.sum() == 6
        return low / 2, high / grid.bits

    monkeypatch.setattr(ranges, "least_squared_error_range", search)
    assert SquaredError()(seen(torch.arange(6.0)[None] - 1), affine(4)) == (-0.5, 1.0)


def slow_divergence(found: Seen, grid: Grid) -> Range:
    """The least by scipy, bin by bin: what is clipped counts at the ends, each code's share is spread evenly."""
    low, high = found.extremes
    counts = found.histogram.numpy().copy()
    counts[0] = counts[1] if low == 0 else counts[0]
    centres = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    best, least = (low, high), math.inf
    for percent in range(100, 0, -1):
        ends = low * percent / 100 if low < 0 else low, high * percent / 100 if high > 0 else high
        kept = [i for i in range(BINS) if ends[0] <= centres[i] <= ends[1]]
        if len(kept) < 2**grid.bits or not counts[kept].any():
            continue
        real = counts[kept]
        real[0] += counts[: kept[0]].sum()
        real[-1] += counts[kept[-1] + 1 :].sum()
        step = (max(ends[1], 0) - min(ends[0], 0)) / (2**grid.bits - 1)
        codes = np.round(centres[kept] / step) + np.round(-min(ends[0], 0) / step)
        codes = np.clip(codes, 0, 2**grid.bits - 1)
        spread = np.zeros(len(kept))
        for code in set(codes):
            filled = (codes == code) & (counts[kept] > 0)
            spread[filled] = counts[kept][filled].mean() if filled.any() else 0
        divergence = stats.entropy(real, np.maximum(spread / spread.sum(), 1e-12))
        if divergence < least:
            best, least = ends, divergence
    return best


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("normal", 2), ("normal", 8), ("laplace", 4), ("heavy tails", 4), ("behind a relu", 4), ("all negative", 4),
     ("two heaps", 4), ("zeros and a heap", 4)],
)  # fmt: skip
def test_the_divergence_is_least_by_scipy(kind: str, bits: int) -> None:
    found = seen(drawn(kind))
    assert Divergence()(found, affine(bits)) == pytest.approx(slow_divergence(found, affine(bits)), rel=1e-5)


def test_the_divergence_clips_heavy_tails_and_keeps_what_is_evenly_filled() -> None:
    tails, even = seen(drawn("heavy tails, behind a relu")), seen(torch.linspace(0, 1, 20_481)[None])
    widths = [Divergence()(tails, affine(bits))[1] / tails.extremes[1] for bits in (4, 8)]
    assert widths[0] <= widths[1] < 0.9
    assert Divergence()(even, affine(4)) == pytest.approx((0, 1), abs=0.05)


@pytest.mark.parametrize("bits", [3, 4])
def test_a_gaussian_and_a_laplace_distribution_are_told_apart(bits: int) -> None:
    normal, laplace = 2 * drawn("normal") + 3, 0.5 * drawn("laplace")
    reach = 2 * gaussian_clip(bits)
    assert Aciq()(seen(normal), affine(bits)) == pytest.approx((3 - reach, 3 + reach), abs=0.1)
    reach = 0.5 * laplace_clip(bits)
    assert Aciq()(seen(laplace), affine(bits)) == pytest.approx((-reach, reach), abs=0.1)


@pytest.mark.parametrize("bits", [2, 3])
def test_behind_a_relu_the_missing_half_is_worth_one_bit_more(bits: int) -> None:
    for kind, clip in (("normal", gaussian_clip), ("laplace", laplace_clip)):
        half = 2 * drawn(kind).relu()
        low, high = Aciq()(seen(half), affine(bits))
        assert (low, high) == (0, pytest.approx(2 * clip(bits + 1), rel=0.03))
        assert Aciq()(seen(-half), affine(bits)) == pytest.approx((-high, 0), rel=1e-6)
