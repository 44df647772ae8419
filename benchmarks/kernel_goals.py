"""What the kernels are meant to reach, and what the results files say of it: always the worst row."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from dfqlab_kernels.bench.cases import DTYPES, OURS
from dfqlab_kernels.bench.table import floor_share, ratio

Row = dict[str, Any]
LARGE = 64 << 20  # bytes of x


@dataclass(frozen=True)
class Goal:
    """A number to reach.

    Attributes:
        what: the op and the rows.
        measure: what the number is.
        wanted: at least, or at most where `most`.
        kind: of device.
        rows: whether a row counts.
        value: of a row.
    """

    what: str
    measure: str
    wanted: float
    kind: Literal["cpu", "cuda"]
    rows: Callable[[Row], bool]
    value: Callable[[Row], float | None]
    most: bool = False

    @property
    def wish(self) -> str:
        """The number as a sentence has it."""
        return f"{'at most' if self.most else 'at least'} {self.wanted:g}"

    def verdict(self, rows: Iterable[Row]) -> str:
        """The worst value and whether it is good enough, or "not measured"."""
        found = [value for row in rows if self.rows(row) and (value := self.value(row)) is not None]
        if not found:
            return "not measured"
        worst = max(found) if self.most else min(found)
        reached = worst <= self.wanted if self.most else worst >= self.wanted
        of = f" (worst of {len(found)})" if len(found) > 1 else ""
        return f"{worst:.3g}{of}, {'reached' if reached else 'missed'}"


def is_large(row: Row) -> bool:
    """Whether x has 64 MiB or more."""
    return bool(row["elements"] * DTYPES[row["dtype"]].itemsize >= LARGE)


def times_as_fast(who: str, clock: str = "times") -> Callable[[Row], float | None]:
    """How many times as long a competitor takes."""
    return lambda row: ratio(row, who, clock)


def against_best_captured(row: Row) -> float | None:
    """Our time in a CUDA graph over that of the fastest competitor in one."""
    times = {who: time["median"] for who, time in row.get("captured", {}).items()}
    others = [time for who, time in times.items() if who != OURS]
    return times[OURS] / min(others) if OURS in times and others else None


def _is(op: str, direction: str = "both", dtype: str = "float32", label: str = "", layout: str = "") -> Any:
    def matches(row: Row) -> bool:
        return (
            (row["op"], row["direction"], row["dtype"]) == (op, direction, dtype)
            and label in row["label"]
            and layout in row["layout"]
        )

    return matches


def _all(*conditions: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: all(condition(row) for condition in conditions)


def _plain(row: Row) -> bool:
    """The gradient stops where clipped, and a mask says where: no variant."""
    return "," not in row["label"]


def _large_quantizers(dtype: str) -> Callable[[Row], bool]:
    return _all(lambda row: row["op"] == _FQ and row["dtype"] == dtype, _plain, is_large)


def _large(matches: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return _all(matches, is_large)


_COPY, _READ = "share of copy bandwidth", "share of read rate"
_FQ, _LSQ = "fake_quantize", "learned_step_quantize"
_PER_CHANNEL = _all(_is(_FQ, label="per channel"), _plain)
_SMALL_SET = "ResNet-20 at 32x32, all layers, forward and backward"

GOALS = [
    Goal("fake_quantize from 64 MiB, float32", _COPY, 0.90, "cuda", _large_quantizers("float32"), floor_share),
    Goal("fake_quantize from 64 MiB, bfloat16", _COPY, 0.85, "cuda", _large_quantizers("bfloat16"), floor_share),
    Goal(
        "channel_stats from 64 MiB, float32", _READ, 0.85, "cuda", _large(_is("channel_stats", "forward")), floor_share
    ),
    *[
        Goal(f"{what} of ResNet-18, forward and backward", f"times as fast as {who}", wanted, "cuda", _is(op), _value)
        for what, op, wishes in (
            ("statistics loss", "statistics_loss_resnet18", {"eager": 2.5, "compile": 1.2}),
            ("fused layer", "fused_layer_resnet18", {"eager": 3.0, "compile": 1.3}),
        )
        for who, wanted in wishes.items()
        for _value in [times_as_fast(who)]
    ],
    *[
        Goal(
            "LSQ per channel, NCHW, from 64 MiB, float32", f"times as fast as {who}", wanted, "cuda",
            _large(_is(_LSQ, label="per channel", layout="NCHW")), times_as_fast(who),
        )
        for who, wanted in {"compile": 1.25, "eager": 5.0}.items()
    ],
    Goal(
        "LSQ per tensor, from 64 MiB, float32", "times as fast as torch", 1.6, "cuda",
        _large(_is(_LSQ, label="per tensor")), times_as_fast("torch"),
    ),
    *[
        goal
        for op in ("statistics_loss_resnet20", "fused_layer_resnet20")
        for what in [f"{op.rsplit('_', 1)[0].replace('_', ' ')}: {_SMALL_SET}"]
        for goal in (
            Goal(what, "launches", 45, "cuda", _is(op), lambda row: row.get("launches", {}).get(OURS), most=True),
            Goal(what, "times as fast as eager, launches included", 4, "cuda", _is(op), times_as_fast("eager", "wall")),
            Goal(what, "times as long as the best captured", 2, "cuda", _is(op), against_best_captured, most=True),
        )
    ],
    *[
        Goal(
            f"fake_quantize per channel, forward and backward, float32, gradient {where}", "times as fast as eager",
            1.5, "cpu", rows, times_as_fast("eager"),
        )
        for where, rows in {"where not clipped": _PER_CHANNEL, "everywhere": _is(_FQ, label="whole dy")}.items()
    ],
]  # fmt: skip
