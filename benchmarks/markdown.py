"""Tables and numbers as Markdown has them."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a cell that has a `|` would break it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(interval: dict[str, Any]) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * interval['value']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def points(interval: dict[str, Any]) -> str:
    """A difference of shares with its interval, in points."""
    return f"{100 * interval['value']:+.1f} [{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def spread(values: Sequence[float]) -> str:
    """The mean of a number over seeds, with the least and the largest where there is more than one."""
    if len(values) == 1:
        return short(values[0])
    return f"{short(fmean(values))} ({short(min(values))} to {short(max(values))})"


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def listed(names: Iterable[Any]) -> str:
    """Names in a row."""
    return ", ".join(map(str, names))
