"""Intervals around shares, and around what two models differ by."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import DataError

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A share in 0..1 with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self._in("%")

    def _in(self, unit: str) -> str:
        return f"{100 * self.value:.1f} {unit} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of shares, in -1..1, with its 95 % interval. It is counted in points: 97 % are 6 more than 91 %."""

    def __str__(self) -> str:
        return self._in("points")


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927), 95 %.

    Raises:
        DataError: no trials, or successes outside 0..trials.

    >>> wilson(90, 100)
    Interval(value=0.9, low=0.8256..., high=0.9447...)
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"wilson({successes}, {trials}): expected 0 <= successes <= trials, and at least one trial")
    share = successes / trials
    z2 = _Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> Difference:
    """Mean of `a - b` over the same items, with its normal 95 % interval.

    Args:
        a, b: one number an item, e.g. 1.0 where a model was right; averaged over seeds first where there are several.

    Raises:
        DataError: fewer than two items.
    """
    if len(a) < 2:
        raise DataError(f"a difference over {len(a)} items has no interval; expected at least two")
    difference = (a - b).double()
    mean = float(difference.mean())
    half = _Z95 * float(difference.std(correction=1)) / math.sqrt(len(difference))
    return Difference(mean, mean - half, mean + half)
