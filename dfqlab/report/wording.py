"""How the page writes numbers."""

import math
import re

from dfqlab.measures import Interval

MISSING = "–"
_EQUAL = 200.0  # dB: what `dfqlab.measures.sqnr` calls no difference at all


def percent(share: float | None) -> str:
    """A share in 0..1.

    >>> percent(0.978), percent(None)
    ('97.8 %', '–')
    """
    return MISSING if share is None else f"{100 * share:.1f} %"


def interval(share: Interval) -> str:
    """The interval of a share, in percent.

    >>> interval(Interval(0.978, 0.97, 0.984))
    '[97.0, 98.4]'
    """
    return f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"


def size(count: int) -> str:
    """Bytes, in powers of a thousand.

    >>> size(987), size(13_140), size(44_600_000)
    ('987 B', '13.1 kB', '44.6 MB')
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 999_950 else f"{count / 1e6:.1f} MB"


def milliseconds(value: float) -> str:
    """A time in ms.

    >>> milliseconds(0.0714), milliseconds(12.34)
    ('0.071 ms', '12.3 ms')
    """
    return f"{value:.3f} ms" if value < 1 else f"{value:.1f} ms"


def seconds(value: float) -> str:
    """A time in s.

    >>> seconds(21.34), seconds(250)
    ('21.3 s', '4 min 10 s')
    """
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if value >= 90 else f"{value:.1f} s"


def decibels(value: float | None) -> str:
    """A signal-to-noise ratio.

    >>> decibels(24.31), decibels(200.0), decibels(None)
    ('24.3 dB', 'equal', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    return "equal" if value >= _EQUAL else f"{value:.1f} dB"


def loss(value: float | None) -> str:
    """A loss in three digits."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3g}"


def unbroken(text: str) -> str:
    """The text, a share and its interval never apart at the end of a line."""
    return re.sub(r"(?<=\d) (?=%)|(?<=%) (?=\[)|(?<=\d,) (?=[\d.]+\])", "\u00a0", text)
