"""Calling a function of somebody else's: it may raise anything, or never return."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

_PATIENCE = 1.0


@dataclass(frozen=True)
class Call:
    """What became of a call.

    Attributes:
        end: "running" is a call that took too long and could not be stopped.
        value: what it returned.
        error: what it raised, KeyboardInterrupt and SystemExit included.
    """

    end: Literal["returned", "raised", "stopped", "running"]
    value: Any = None
    error: BaseException | None = None


def call(function: Callable[..., Any], arguments: Sequence[Any], time_limit: float) -> Call:
    """Call a function in a thread of its own, and stop it after `time_limit` seconds.

    A loop of Python is stopped, a bare `except:` around its body notwithstanding; what waits outside Python, as
    `time.sleep` does, is left behind.
    """
    ends: list[Call] = []

    def work() -> None:
        with suppress(SystemExit):  # one that _stop sent while the other was on its way out
            try:
                ends.append(Call("returned", function(*arguments)))
            except BaseException as error:
                ends.append(Call("raised", error=error))

    thread = threading.Thread(target=work, name="dfqlab check", daemon=True)
    thread.start()
    returned_in_time = False
    try:
        thread.join(time_limit)
        returned_in_time = not thread.is_alive()
    finally:  # who interrupts the kernel meanwhile does not want it to go on either
        stopped = returned_in_time or _stop(thread, ends)
    if returned_in_time or (ends and ends[0].end == "returned"):  # it may have come back just then
        return ends[0]
    return Call("stopped" if stopped else "running")


def _stop(thread: threading.Thread, ends: Sequence[Call]) -> bool:
    """Raise SystemExit in a thread until it ends; whether it did.

    Once is not enough: a bare `except:` swallows it, unless it comes between that and the next `try:`. Hence many
    times, and threads that take turns quickly. SystemExit, since threading stays silent about it.
    """
    ident = thread.ident or 0
    interval, until = sys.getswitchinterval(), time.monotonic() + _PATIENCE
    sys.setswitchinterval(1e-5)
    try:
        while thread.is_alive() and time.monotonic() < until:
            if not ends:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))
            thread.join(0.001)
    finally:
        sys.setswitchinterval(interval)
    return not thread.is_alive()
