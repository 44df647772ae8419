"""How a long job tells where it is: a plain loop calls `on_step(Step)`; whoever watches may raise `Cancelled`."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of a long job.

    Attributes:
        job: what is being done, e.g. "synthesize".
        index: steps done, from 1.
        total: steps in the whole job.
        values: what the job measures at this step, e.g. {"loss": 0.3, "alignment": 0.3}.
        note: what to tell once, such as how the job is executed.
        images: gives a copy of the images as they are now, (n, c, h, w) in pixel units, where the job makes images.
        seconds_left: how long the rest takes at the pace so far, or None where nobody can tell yet.
    """

    job: str
    index: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    images: Callable[[], Any] | None = None
    seconds_left: float | None = None


OnStep = Callable[[Step], None]


class Cancelled(Exception):
    """Raised by an `on_step` callback to stop a job; the job keeps what it has and calls it partial."""


def ignore(step: Step) -> None:
    """The callback of those who do not watch."""


@contextmanager
def terminal_progress() -> Iterator[OnStep]:
    """One progress line on stderr, with values and the time left; Ctrl-C becomes `Cancelled` at the next step.

    A second Ctrl-C stops at once. Outside the main thread, where Python takes no signals, there is only the line.
    """
    import signal
    import threading

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        progress.console.print("stopping at the next step; Ctrl-C once more stops at once", highlight=False)

    progress = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True, soft_wrap=False),
    )
    tasks: dict[str, int] = {}
    shown = 0.0

    def on_step(step: Step) -> None:
        nonlocal shown
        if interrupted:
            raise Cancelled
        if step.note:
            progress.console.print(f"{step.job}: {step.note}", highlight=False)
        now = time.monotonic()
        if step.job not in tasks:
            tasks[step.job] = progress.add_task(step.job, total=step.total, values="")
        elif now - shown < 0.1 and step.index < step.total:
            return
        shown = now
        values = "  ".join(f"{name} {value:.4g}" for name, value in step.values.items())
        progress.update(tasks[step.job], completed=step.index, total=step.total, values=values)  # type: ignore[arg-type]

    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, interrupt) if in_main_thread else None
    try:
        with progress:
            yield on_step
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
