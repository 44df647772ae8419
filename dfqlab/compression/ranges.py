"""How the range of a tensor follows from what was seen of it: one rule, one class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.clipping import aciq_clip
from dfqlab.compression.quantizers import affine_scales
from dfqlab.compression.spec import Grid
from dfqlab.errors import QuantizationError
from dfqlab_kernels import fake_quantize

Range = tuple[float, float]

BINS = 2048
_EXACT_COUNTS = 2**24  # torch.histc counts in float32
_ONE_SIDED = 100
_TWO_SIDED = 32
_AT_ONCE = 64  # ranges that are tried side by side: half a megabyte, which stays in a cache
_NOTHING_SEEN = (math.inf, -math.inf)


@dataclass
class Seen:
    """What calibration saw of one tensor.

    Attributes:
        extremes: smallest and largest value of all.
        batches: smallest and largest value of each batch, in their order.
        images: sums of the smallest and of the largest value of each image.
        count: how many images.
        histogram: how many values fall into each of 2,048 equally wide bins between the extremes; zero everywhere
            unless the rule reads it.
    """

    extremes: Range = _NOTHING_SEEN
    batches: list[Range] = field(default_factory=list)
    images: Range = (0.0, 0.0)
    count: int = 0
    histogram: Float[Tensor, "bins"] = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def watch(self, x: Float[Tensor, "n *shape"]) -> None:
        """Note the extremes of a batch; NaN where it holds one."""
        self.extremes = widened(self.extremes, x)
        self.batches.append(widened(_NOTHING_SEEN, x))
        low, high = (ends.double().sum() for ends in torch.aminmax(x.flatten(1), dim=1))
        self.images = (self.images[0] + float(low), self.images[1] + float(high))
        self.count += len(x)

    def count_values(self, x: Float[Tensor, "n *shape"]) -> None:
        """Add a batch to the histogram, when the extremes of all batches are known."""
        low, high = self.extremes
        if high > low:
            for part in x.float().flatten().split(_EXACT_COUNTS):
                self.histogram += torch.histc(part, BINS, low, high).cpu()


@runtime_checkable
class RangeRule(Protocol):
    """From what was seen of a tensor to the range that its grid spans."""

    reads_histogram: ClassVar[bool]

    def __call__(self, seen: Seen, grid: Grid) -> Range:
        """The range, inside the extremes that were seen."""
        ...


@dataclass(frozen=True)
class MinMax:
    """The extremes of all images: nothing is clipped, and one outlier widens every step."""

    reads_histogram: ClassVar[bool] = False

    def __call__(self, seen: Seen, grid: Grid) -> Range:
        return seen.extremes


@dataclass(frozen=True)
class Percentile:
    """The range that leaves out as many of the largest values, and of the smallest, as a percentile says.

    Attributes:
        percent: above 50, up to 100, as `QuantizationSpec` checks. DSG's released code takes 99.999.
    """

    percent: float = 99.99
    reads_histogram: ClassVar[bool] = True

    def __call__(self, seen: Seen, grid: Grid) -> Range:
        """The ends are interpolated inside their bins.

        Raises:
            QuantizationError: both ends fall into one bin while there are values elsewhere.
        """
        low, high = seen.extremes
        if high <= low:
            return low, high
        share = seen.histogram.cumsum(0) / seen.histogram.sum()
        lower, upper = (self._position(share, at) for at in (1 - self.percent / 100, self.percent / 100))
        if int(lower) == int(upper - 1e-9) and int((seen.histogram > 0).sum()) > 1:
            raise QuantizationError(
                f"a percentile of {self.percent} leaves nothing of a tensor whose values are nearly all the same; "
                "raise it, or take another calibration"
            )
        width = (high - low) / len(share)
        return low + lower * width, low + upper * width

    @staticmethod
    def _position(share: Tensor, at: float) -> float:
        """Where the cumulative share reaches `at`, in bins from the left."""
        index = min(int(torch.searchsorted(share, torch.tensor(at, dtype=share.dtype))), len(share) - 1)
        before = float(share[index - 1]) if index else 0.0
        inside = float(share[index]) - before
        return index + ((at - before) / inside if inside > 0 else 0.0)


@dataclass(frozen=True)
class MovingAverage:
    """The average of the batches' extremes, the last ones counting most: `m <- decay m + (1 - decay) x`.

    The average itself is kept as it is and divided by `1 - decay^t` when it is read (Adam's correction), so that two
    batches give a mean of both, not of both and zero. The code of the GDFQ family stores the corrected value instead
    and corrects it again, which is off by a factor of thousands for a hundred steps.
    """

    decay: float = 0.9
    reads_histogram: ClassVar[bool] = False

    def __call__(self, seen: Seen, grid: Grid) -> Range:
        low, high = (self._average([batch[end] for batch in seen.batches]) for end in (0, 1))
        return low, high

    def _average(self, values: Sequence[float]) -> float:
        average = 0.0
        for value in values:
            average = self.decay * average + (1 - self.decay) * value
        return average / (1 - self.decay ** len(values))


@dataclass(frozen=True)
class ImageMean:
    """The mean over images of each image's extremes. DSG's released code calls it "ema", and takes it by default."""

    reads_histogram: ClassVar[bool] = False

    def __call__(self, seen: Seen, grid: Grid) -> Range:
        return seen.images[0] / seen.count, seen.images[1] / seen.count


@dataclass(frozen=True)
class SquaredError:
    """The range that loses least when the histogram is quantized, each end searched where it is not 0.

    The search of DSG's and BRECQ's code, which move one end or both together; here each moves for itself.
    """

    reads_histogram: ClassVar[bool] = True

    def __call__(self, seen: Seen, grid: Grid) -> Range:
        return least_squared_error_range(seen.histogram, *seen.extremes, grid)


@dataclass(frozen=True)
class Divergence:
    """The range whose quantized histogram has the least Kullback-Leibler divergence from the clipped one.

    The entropy calibration that TensorRT made known: what is clipped counts at the ends of the range, and each code's
    share is spread over the bins of that code that are not empty. Both ends are moved inwards together. Behind a ReLU
    the bin of the zeros counts like its neighbour, as there: the peak, which every grid holds exactly, would otherwise
    decide alone.
    """

    reads_histogram: ClassVar[bool] = True

    def __call__(self, seen: Seen, grid: Grid) -> Range:
        low, high = seen.extremes
        if high <= low or float(seen.histogram.sum()) == 0:
            return low, high
        histogram = seen.histogram.clone()
        if low == 0:
            histogram[0] = histogram[1]
        fractions = torch.linspace(1, 0.01, _ONE_SIDED, dtype=torch.float64)
        found = [self._divergence(histogram, low, high, float(fraction), grid) for fraction in fractions]
        best = float(fractions[int(torch.tensor(found).argmin())])
        return _shrunk(low, high, best)

    @staticmethod
    def _divergence(histogram: Tensor, low: float, high: float, fraction: float, grid: Grid) -> float:
        bins = len(histogram)
        centres = low + (torch.arange(bins, dtype=torch.float64) + 0.5) * ((high - low) / bins)
        ends = torch.tensor(_shrunk(low, high, fraction), dtype=torch.float64)
        inside = (centres >= ends[0]) & (centres <= ends[1])
        kept = histogram[inside]
        if len(kept) <= grid.quant_max - grid.quant_min or not kept.any():
            return math.inf  # fewer bins than codes, or all of them empty: nothing is left to tell apart
        clipped = kept.clone()
        before, after = int(inside.nonzero()[0]), int(inside.nonzero()[-1]) + 1
        clipped[0] += histogram[:before].sum()
        clipped[-1] += histogram[after:].sum()
        scale, zero_point = affine_scales(ends[0], ends[1], grid)
        codes = (torch.round(centres[inside] / scale.double()) + zero_point).clamp(grid.quant_min, grid.quant_max)
        codes = (codes - grid.quant_min).long()
        levels = grid.quant_max - grid.quant_min + 1
        filled = (kept > 0).double()
        mass = torch.zeros(levels, dtype=torch.float64).index_add(0, codes, kept)
        spread = torch.zeros(levels, dtype=torch.float64).index_add(0, codes, filled)
        quantized = (mass / spread.clamp(min=1))[codes] * filled
        p, q = clipped / clipped.sum(), quantized / quantized.sum()
        return float((p * (p / q.clamp(min=1e-12)).clamp(min=1e-300).log()).sum())


@dataclass(frozen=True)
class Aciq:
    """The range that is best for the Gaussian or the Laplace distribution that the tensor resembles (ACIQ).

    Banner et al. 2019: clipping at α loses `α² / (3 4^bits)` to rounding and the tails to clipping; the best α is the
    distribution's own multiple of its spread. Which of both it is, the mean absolute deviation says: 0.80 standard
    deviations of a Gaussian, 0.71 of a Laplace distribution. What stands behind a ReLU is taken for one half of such
    a distribution around zero, with one bit more for the half that is not there.
    """

    reads_histogram: ClassVar[bool] = True

    def __call__(self, seen: Seen, grid: Grid) -> Range:
        low, high = seen.extremes
        total = float(seen.histogram.sum())
        if high <= low or total == 0:
            return low, high
        centres = low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * ((high - low) / BINS)
        one_sided = low >= 0 or high <= 0
        mean = 0.0 if one_sided else float((seen.histogram * centres).sum()) / total
        halves = 2 if one_sided else 1
        deviation = halves * float((seen.histogram * (centres - mean).abs()).sum()) / total
        spread = math.sqrt(halves * float((seen.histogram * (centres - mean).square()).sum()) / total)
        reach = aciq_clip(deviation, spread, grid.bits + (1 if one_sided else 0))
        return max(low, mean - reach), min(high, mean + reach)


def least_squared_error_range(histogram: Float[Tensor, "bins"], low: float, high: float, grid: Grid) -> Range:
    """The range inside [low, high] at which quantizing the histogram loses least, each end searched where it is not 0.

    Args:
        histogram: how many values fall into each of equally wide bins from low to high.
    """
    centres = low + (torch.arange(len(histogram), dtype=torch.float32) + 0.5) * ((high - low) / len(histogram))
    one_sided = low >= 0 or high <= 0
    fractions = torch.linspace(0, 1, (_ONE_SIDED if one_sided else _TWO_SIDED) + 1)[1:].flip(0).double()
    whole = fractions[:1]
    lows, highs = (
        end.flatten()
        for end in torch.meshgrid(
            low * (fractions if low < 0 else whole), high * (fractions if high > 0 else whole), indexing="ij"
        )
    )
    errors = []
    for some_low, some_high in zip(lows.split(_AT_ONCE), highs.split(_AT_ONCE), strict=True):
        scale, zero_point = affine_scales(some_low, some_high, grid)
        pretended = fake_quantize(
            centres.expand(len(scale), -1),
            scale,
            zero_point,
            quant_min=grid.quant_min,
            quant_max=grid.quant_max,
            axis=0,
            clip_gradient=False,
        )
        errors.append((histogram * (centres - pretended).square()).sum(1))
    best = torch.cat(errors).argmin()
    return float(lows[best]), float(highs[best])


def widened(seen: tuple[float, float], x: Float[Tensor, "*shape"]) -> tuple[float, float]:
    """The smallest range that holds the range seen so far and every value of x; NaN where x holds one.

    >>> widened((-1.0, 2.0), torch.tensor([0.5, 2.5]))
    (-1.0, 2.5)
    """
    low, high = (float(end) for end in torch.aminmax(x))
    return min(low, seen[0]), max(high, seen[1])


def _shrunk(low: float, high: float, fraction: float) -> Range:
    """Both ends that lie beyond 0 moved towards it."""
    return low * (fraction if low < 0 else 1), high * (fraction if high > 0 else 1)
