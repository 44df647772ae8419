"""Clocks: competitors in turn within each round, caches flushed before each call, medians with 20/80 quantiles."""

import logging
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dfqlab_kernels.bench.machine import Kind, flush_bytes

Action = Callable[[], Any]
Clock = Literal["device", "wall"]

_WATCHED = 5  # launches of a call on a GPU before it is measured: a host is not as fast each time
_QUEUE = 400  # writes that may wait before a call: a GPU takes some thousand launches before its host must wait


@dataclass
class Measured:
    """Seconds of each competitor, and why some have none.

    Attributes:
        times: median, low (20 % quantile), high (80 %) and rounds of each.
        failed: the reason, by competitor.
    """

    times: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class Stopwatch:
    """Measures calls on one kind of device.

    On a CPU both clocks are `time.perf_counter`. On a GPU "device" is the time between two CUDA events with a queue
    that is already full when the first comes, so what Python needs to launch is not in it; "wall" is from an idle
    device to an idle device, so it is.

    Attributes:
        rounds: at most.
        seconds: no new round begins after these, once there have been `fewest`.
        run_up: how often a call is made right before it is timed, so that it finds caches and memory as it leaves them
            itself, and not as another one does.
    """

    kind: Kind
    rounds: int = 40
    fewest: int = 9
    seconds: float = 3.0
    flush: int | None = None
    run_up: int = 0

    def __post_init__(self) -> None:
        size = flush_bytes(self.kind) if self.flush is None else self.flush
        self._buffer = torch.zeros(max(size // 4, 1), dtype=torch.int32, device=self.kind)

    def measure(self, calls: Mapping[str, Action], clock: Clock = "device") -> Measured:
        """The time of every call that works; one that raises is out, with its reason."""
        measured = Measured()
        working: dict[str, tuple[Action, int]] = {}
        for name, call in calls.items():
            try:
                working[name] = call, self._warm_up(call)
            except Exception as error:  # whatever a competitor cannot do: it is said in its place, and the rest go on
                measured.failed[name] = reason(error)
        found: dict[str, list[float]] = {name: [] for name in working}
        start = time.perf_counter()
        for done in range(self.rounds):
            if done >= self.fewest and time.perf_counter() - start > self.seconds:
                break
            for name, (call, head_start) in working.items():
                for _ in range(self.run_up):
                    call()
                found[name].append(self._once(call, clock, head_start))
        measured.times = {name: summary(times) for name, times in found.items()}
        return measured

    def _warm_up(self, call: Action) -> int:
        """Compile and allocate; then how often the buffer is written to keep a GPU busy while the call is launched."""
        for _ in range(2):
            call()
        if self.kind == "cpu":
            return 1
        torch.cuda.synchronize()
        launching = 0.0
        for _ in range(_WATCHED):
            launching = max(launching, _elapsed(call))
            torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self._write()
        end.record()
        torch.cuda.synchronize()
        writing: float = start.elapsed_time(end) / 1e3
        return min(math.ceil(2 * launching / writing) + 1, _QUEUE)

    def _once(self, call: Action, clock: Clock, head_start: int) -> float:
        if self.kind == "cpu":
            self._write()
            return _elapsed(call)
        if clock == "wall":
            self._write()
            torch.cuda.synchronize()
            return _elapsed(call, torch.cuda.synchronize)
        for _ in range(head_start):
            self._write()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        elapsed: float = start.elapsed_time(end) / 1e3
        return elapsed

    def _write(self) -> Tensor:
        return self._buffer.add_(1)


def summary(times: list[float]) -> dict[str, float]:
    """Median, quantiles and how many.

    >>> summary([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    {'median': 3.5, 'low': 2.0, 'high': 5.0, 'rounds': 6}
    """
    low, median, high = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double())
    return {"median": median.item(), "low": low.item(), "high": high.item(), "rounds": len(times)}


def captured(call: Action) -> Action:
    """The call as a CUDA graph, to be replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def launches(call: Action) -> int | None:
    """How many kernels the call starts on a GPU, copies and fills not counted; None where the profiler sees none."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    kernels = [
        event
        for event in found.events() or []
        if event.device_type == DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
        and not event.name.startswith(("Memcpy", "Memset"))
    ]
    return len(kernels) or None


def quiet() -> None:
    """Only the table is to be read: torch's warnings about itself, and the compiler's that there is no CUDA, go."""
    warnings.filterwarnings("ignore", module="torch")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def reason(error: Exception) -> str:
    """What went wrong, in one short line that names no place on this machine.

    >>> reason(RuntimeError("cannot open /tmp/x/y.so\\nbecause"))
    'RuntimeError: cannot open ...'
    """
    line = str(error).strip().split("\n")[0]
    return re.sub(r"/\S+", "...", f"{type(error).__name__}: {line}")[:120]


def _elapsed(*calls: Action) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start
