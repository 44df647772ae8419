"""A run: rates first, then op by op what the results file does not hold yet."""

import gc
from collections.abc import Callable, Sequence
from datetime import date

import torch

from dfqlab_kernels.backends import backend
from dfqlab_kernels.bench import table
from dfqlab_kernels.bench.cases import DIRECTIONS, Bench, Call, Case, Direction
from dfqlab_kernels.bench.counting import ByteCounter
from dfqlab_kernels.bench.machine import Machine, copy_and_sum
from dfqlab_kernels.bench.record import KEY, Record, Row
from dfqlab_kernels.bench.timing import Measured, Stopwatch, captured, launches, reason

Say = Callable[[str], None]


class Session:
    """Measures on one machine, into one results file."""

    def __init__(self, machine: Machine, record: Record, stopwatch: Stopwatch, *, say: Say = print) -> None:
        self.machine, self.record, self.stopwatch, self.say = machine, record, stopwatch, say
        self._columns: list[str] = []  # of the table that is being printed

    def measure_rates(self, size: int) -> None:
        """Copy bandwidth and read rate of a large tensor, in bytes a second."""
        calls, moved = copy_and_sum(self.machine, size)
        times = self.stopwatch.measure(calls).times
        rates = {name: moved[name] / times[name]["median"] for name in moved}
        self.record.add_rates({**rates, "bytes": size, "times": times, "date": date.today().isoformat()})
        self.say(table.rates(self.machine, rates))

    def run(self, benches: dict[str, Bench], *, named: bool) -> None:
        """Measure what is missing; what is complete and was asked for by name, anew."""
        with backend("auto"):
            for name, bench in benches.items():
                cases = bench.cases(self.machine.gpu)
                keys = [_key(name, case, direction) for case in cases for direction in DIRECTIONS]
                missing = [key for key in keys if not self.record.holds(key)]
                if not missing and not named:
                    self.say(f"{name}: nothing new since it was measured")
                    continue
                self.record.keep(name, keys if missing else [])
                self._columns = []
                for case in cases:
                    self._measure(name, case, [d for d in DIRECTIONS if not self.record.holds(_key(name, case, d))])

    def _measure(self, name: str, case: Case, directions: Sequence[Direction]) -> None:
        if not directions:
            return
        torch.compiler.reset()  # or a compiler would take the next shape for a dynamic one
        calls = case.build(self.machine.kind)
        for direction in directions:
            row = self._row(name, case, direction, calls)
            self.record.add(row)
            if not self._columns:
                self._columns = table.columns(row)
                self.say(table.header(name, self._columns))
            self.say(table.line(row, self._columns))
        del calls
        gc.collect()
        if self.machine.gpu:
            torch.cuda.empty_cache()

    def _row(self, name: str, case: Case, direction: Direction, calls: dict[str, Call]) -> Row:
        k = DIRECTIONS.index(direction)
        actions = {who: call.both if direction == "both" else call.forward for who, call in calls.items()}
        limit = "read" if case.reads_only and direction == "forward" else "copy"
        row: Row = {
            **dict(zip(KEY, _key(name, case, direction), strict=True)),
            "elements": case.elements,
            "floor_bytes": case.floor[k],
            "floor_rate": limit,
            "rate": self.record.rates[-1][limit],
            "operations": case.operations[k] * case.elements,
            "counted_bytes": {who: _counted(action) for who, action in actions.items() if who != "compile"},
            "date": date.today().isoformat(),
        }
        measured = self.stopwatch.measure(actions)
        row |= {"times": measured.times, "failed": measured.failed}
        if self.machine.gpu and case.small:
            working = {who: action for who, action in actions.items() if who in measured.times}
            row |= self._launch_bound(working)
        return row

    def _launch_bound(self, actions: dict[str, Callable[[], object]]) -> Row:
        """Wall clock, CUDA graph and launches: what counts where a kernel takes less time than to start it."""
        graphs, refused = {}, Measured()
        for who, action in actions.items():
            try:
                graphs[who] = captured(action)
            except Exception as error:  # what cannot be captured is said in its place
                refused.failed[who] = reason(error)
        replayed = self.stopwatch.measure(graphs)
        return {
            "wall": self.stopwatch.measure(actions, "wall").times,
            "captured": replayed.times,
            "not_captured": refused.failed | replayed.failed,
            "launches": {who: launches(action) for who, action in actions.items()},
        }


def _key(name: str, case: Case, direction: Direction) -> tuple[str, ...]:
    return name, case.label, case.dtype, case.layout, direction


def _counted(action: Callable[[], object]) -> int | None:
    """Bytes, operator by operator; None where it does not run."""
    try:
        with ByteCounter() as counter:
            action()
    except Exception:  # the measurement that follows says why
        return None
    found: int = counter.bytes
    return found
