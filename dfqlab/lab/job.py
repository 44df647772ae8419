"""A long job in a thread of its own, beside the notebook: where it is, how to stop it, what came of it."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Literal, TypeVar

from dfqlab.errors import ConfigurationError
from dfqlab.progress import Cancelled, OnStep, Step

State = Literal["ready", "running", "done", "cancelled", "failed"]
Result = TypeVar("Result")


class Job(Generic[Result]):
    """Runs `work(on_step)` once, in a worker thread.

    It is right wherever `start` and `cancel` are called from: a cell, a widget's callback between two cells, or one
    that runs in a thread beside a busy cell, as JupyterLab 4.4 and later do.

    Args:
        work: a plain function that calls its `on_step` after every step; `Cancelled` comes out of that call.
        on_change: called in the worker thread, when the state changes and at most every `every` seconds between.
            An error in it stops the job and is the job's own.
        every: seconds between two calls of `on_change` while steps go by; the first and the last step are always told.
    """

    def __init__(
        self,
        work: Callable[[OnStep], Result],
        *,
        on_change: Callable[["Job[Result]"], None] | None = None,
        every: float = 0.1,
    ) -> None:
        self._work = work
        self._on_change = on_change
        self._every = every
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._state: State = "ready"
        self._step: Step | None = None
        self._told = -float("inf")
        self._began = False
        self._stopped = False
        self._result: Result | None = None
        self._error: BaseException | None = None

    @property
    def state(self) -> State:
        """ready, running, done, cancelled or failed."""
        return self._state

    @property
    def step(self) -> Step | None:
        """The last step that was done; None before the first."""
        return self._step

    @property
    def error(self) -> BaseException | None:
        """What the job failed with."""
        return self._error

    @property
    def sentence(self) -> str:
        """Where the job is, as a reader is told."""
        if self._state == "ready":
            return "not started"
        if self._state == "failed":
            return f"failed: {type(self._error).__name__}: {self._error}"
        where = "before its first step" if self._step is None else f"at step {self._step.index} of {self._step.total}"
        if self._state == "cancelled":
            return f"cancelled {where}" if self._began else "cancelled before it began"
        if self._state == "done":
            return "done" if self._step is None else f"done: {self._step.total} of {self._step.total} steps"
        return f"stopping {where}" if self._stop.is_set() else f"running, {where}"

    def start(self) -> "Job[Result]":
        """Begin.

        Raises:
            ConfigurationError: started or cancelled before; a job runs once, make another.
        """
        with self._lock:
            if self._state != "ready":
                raise ConfigurationError(
                    f"a job runs once, and this one is past that: {self.sentence}; make another one"
                )
            self._state = "running"
            try:
                threading.Thread(target=self._run, name="dfqlab job", daemon=True).start()
            except RuntimeError as error:  # no thread is left: nobody shall wait for this one
                self._error, self._state = error, "failed"
                self._ended.set()
                raise
        return self

    def cancel(self) -> None:
        """Ask the job to stop at its next step; nothing happens once it ended. Before `start`, it never begins."""
        self._stop.set()
        with self._lock:
            if self._state == "ready":
                self._state = "cancelled"
                self._error = Cancelled("cancelled before it began")
                self._ended.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the job ended, at most `timeout` seconds; whether it did."""
        return self._ended.wait(timeout)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the job and return what it made; of a cancelled one what it kept, where it keeps a part.

        Raises:
            TimeoutError: not ended after `timeout` seconds.
            Cancelled: cancelled, and nothing was kept.
            Exception: whatever the work raised.
        """
        if not self.join(timeout):
            raise TimeoutError(f"the job has not ended after {timeout} s: {self.sentence}")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        self._began = True
        state: State
        try:
            self._tell()
            self._result = self._work(self._on_step)
            state = "cancelled" if self._stopped else "done"
        except Cancelled as error:
            self._error, state = error, "cancelled"
        except BaseException as error:
            self._error, state = error, "failed"
        self._state = state
        try:
            self._tell()
        except BaseException as error:
            if state != "failed":
                self._error, self._state = error, "failed"
                with suppress(BaseException):  # it fails where it shows a result; it may still show that
                    self._tell()
        finally:
            self._ended.set()

    def _on_step(self, step: Step) -> None:
        first = self._step is None
        self._step = step
        if first or step.index >= step.total or time.monotonic() - self._told >= self._every:
            self._tell()
        if self._stop.is_set() and step.index < step.total:
            self._stopped = True
            raise Cancelled(f"cancelled at step {step.index} of {step.total}")

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._on_change is not None:
            self._on_change(self)
