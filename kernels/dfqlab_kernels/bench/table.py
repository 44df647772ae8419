"""What is printed as it goes: lines of less than a hundred columns."""

from collections.abc import Sequence

from dfqlab_kernels.bench.cases import OURS
from dfqlab_kernels.bench.machine import Machine
from dfqlab_kernels.bench.record import Row

COMPETITORS = ("eager", "function", "torch", "hook", "compile", "tap")
_SHORT = {"float32": "f32", "bfloat16": "bf16", "forward": "f", "both": "f+b"}


def rates(machine: Machine, found: dict[str, float]) -> str:
    """How fast memory is."""
    return f"{machine.name}: copies {found['copy'] / 1e9:.1f} GB/s, reads {found['read'] / 1e9:.1f} GB/s"


def columns(row: Row) -> list[str]:
    """Who competes."""
    return [who for who in COMPETITORS if who in row["times"] or who in row["failed"]]


def header(name: str, competitors: Sequence[str]) -> str:
    """The name of the op and what the columns are."""
    return f"\n{name:<48}{'ours/ms':>9}{'floor':>6}{''.join(f'{who:>9}' for who in competitors)}"


def line(row: Row, competitors: Sequence[str]) -> str:
    """Our time, the share of the byte floor in it, and how many times as long each competitor takes."""
    what = f"{_SHORT[row['dtype']]} {row['layout']} {_SHORT[row['direction']]}"
    ratios = "".join(f"{_ratio(row, who):>9}" for who in competitors)
    if OURS not in row["times"]:
        return f"{row['label'][:33]:<34}{what:<14} {row['failed'][OURS]}"[:99]
    share = f"{100 * floor_share(row):.0f}%"
    return f"{row['label'][:33]:<34}{what:<14}{1e3 * row['times'][OURS]['median']:>9.3f}{share:>6}{ratios}"


def floor_share(row: Row) -> float:
    """Which part of our time the fewest bytes would take at the measured rate."""
    return float(row["floor_bytes"] / row["rate"] / row["times"][OURS]["median"])


def ratio(row: Row, who: str, clock: str = "times") -> float | None:
    """How many times as long as ours a competitor takes; None where there is no such time."""
    times = row.get(clock, {})
    return float(times[who]["median"] / times[OURS]["median"]) if who in times and OURS in times else None


def _ratio(row: Row, who: str) -> str:
    found = ratio(row, who)
    return "fails" if who in row["failed"] else "" if found is None else f"{found:.2f}x"
