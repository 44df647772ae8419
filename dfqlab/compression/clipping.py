"""Where to clip values of a known distribution, so that rounding and clipping together lose least (ACIQ)."""

import math
from collections.abc import Callable

_GAUSSIAN_SHARE = math.sqrt(2 / math.pi)  # mean absolute by standard deviation, of a Gaussian
_LAPLACE_SHARE = math.sqrt(1 / 2)  # and of a Laplace distribution


def aciq_clip(mean_absolute: float, standard_deviation: float, bits: int) -> float:
    """Where to clip a symmetric distribution of this spread for a symmetric grid of `bits` (ACIQ)."""
    if standard_deviation == 0:
        return 0.0
    share = mean_absolute / standard_deviation
    if abs(share - _GAUSSIAN_SHARE) <= abs(share - _LAPLACE_SHARE):
        return gaussian_clip(bits) * standard_deviation
    return laplace_clip(bits) * mean_absolute


def gaussian_clip(bits: int) -> float:
    """The α that loses least of N(0, 1): `α / (3 4^bits) = 2 (φ(α) - α (1 - Φ(α)))` (ACIQ, eq. 6).

    >>> [round(gaussian_clip(bits), 2) for bits in (2, 3, 4, 8)]
    [1.71, 2.15, 2.56, 3.92]
    """

    def slope(alpha: float) -> float:
        density = math.exp(-alpha * alpha / 2) / math.sqrt(2 * math.pi)
        return alpha / (3.0 * 4.0**bits) - 2 * (density - alpha * math.erfc(alpha / math.sqrt(2)) / 2)

    return _root(slope)


def laplace_clip(bits: int) -> float:
    """The α that loses least of a Laplace distribution with mean absolute deviation 1: `α e^α = 3 4^bits` (ACIQ).

    >>> [round(laplace_clip(bits), 2) for bits in (2, 3, 4, 8)]
    [2.83, 3.9, 5.03, 9.9]
    """
    return _root(lambda alpha: alpha + math.log(alpha) - math.log(3 * 4**bits))


def _root(slope: Callable[[float], float], low: float = 1e-6, high: float = 50.0) -> float:
    """Where an increasing function is zero, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2
