"""Where to clip: the published multiples, and the best of what integrals say."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from dfqlab.compression.clipping import gaussian_clip, laplace_clip

GAUSSIAN = [1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92]  # the table of ACIQ, 2 to 8 bits
LAPLACE = [2.83, 3.89, 5.03, 6.2, 7.41, 8.64, 9.89]
CLIPS = [(gaussian_clip, stats.norm, GAUSSIAN), (laplace_clip, stats.laplace, LAPLACE)]


@pytest.mark.parametrize(("clip", "distribution", "table"), CLIPS, ids=["gaussian", "laplace"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_clips_are_the_published_ones_and_lose_least(clip, distribution, table, bits: int) -> None:  # type: ignore[no-untyped-def]
    def loss(alpha: float) -> float:
        """Rounding noise of 2^bits steps, and both tails."""
        density = distribution.pdf
        tail, _ = integrate.quad(lambda x: (x - alpha) ** 2 * density(x), alpha, alpha + 30, epsabs=1e-14)
        return float(alpha**2 / (3 * 4**bits) + 2 * tail)

    best = optimize.minimize_scalar(loss, bounds=(0.5, 15), method="bounded", options={"xatol": 1e-7}).x
    assert clip(bits) == pytest.approx(best, rel=1e-3)
    assert clip(bits) == pytest.approx(table[bits - 2], abs=0.02)


@pytest.mark.parametrize(("clip", "distribution", "table"), CLIPS, ids=["gaussian", "laplace"])
@pytest.mark.parametrize("bits", [4, 6])
def test_clips_lose_hardly_more_than_the_best_when_values_are_really_rounded(  # type: ignore[no-untyped-def]
    clip, distribution, table, bits: int
) -> None:
    def loss(alpha: float) -> float:
        """Step by step, with a code in the middle of each step."""
        edges = np.linspace(-alpha, alpha, 2**bits + 1)
        edges[0], edges[-1] = -40, 40
        total = 0.0
        for code, (low, high) in enumerate(pairwise(edges)):
            value = -alpha + (2 * code + 1) * alpha / 2**bits
            x = np.linspace(low, high, 2001)
            total += integrate.simpson((x - value) ** 2 * distribution.pdf(x), x=x)
        return total

    best = min(loss(alpha) for alpha in np.linspace(0.7, 1.3, 31) * table[bits - 2])
    assert loss(clip(bits)) <= 1.05 * best
