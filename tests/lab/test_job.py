"""A job is right wherever it is started and cancelled from, and tells where it is without ever holding anybody up."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from dfqlab.errors import ConfigurationError
from dfqlab.lab.job import Job
from dfqlab.progress import Cancelled, OnStep, Step

SOON = 20.0


def steps(total: int, *, pause: float = 0.0) -> Callable[[OnStep], str]:
    def work(on_step: OnStep) -> str:
        for index in range(1, total + 1):
            time.sleep(pause)
            on_step(Step("count", index, total))
        return "counted"

    return work


class Gate:
    """Work that waits at each step until it is let on."""

    def __init__(self, total: int, *, keeps: bool = False) -> None:
        self.total, self.keeps = total, keeps
        self.go = threading.Semaphore(0)
        self.at = 0
        self.done: list[int] = []

    def __call__(self, on_step: OnStep) -> list[int]:
        try:
            for index in range(1, self.total + 1):
                self.at = index
                assert self.go.acquire(timeout=SOON)
                self.done.append(index)
                on_step(Step("gate", index, self.total))
        except Cancelled:
            if not self.keeps:
                raise
        return self.done


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_job_is_ready_then_running_then_done() -> None:
    gate = Gate(2)
    job = Job(gate)
    assert (job.state, job.step, job.sentence) == ("ready", None, "not started")
    assert job.join(0) is False
    job.start()
    assert (job.state, job.sentence) == ("running", "running, before its first step")
    gate.go.release()
    wait_for(lambda: job.step is not None)
    assert job.sentence == "running, at step 1 of 2"
    gate.go.release()
    assert job.result(SOON) == [1, 2]
    assert (job.state, job.sentence, job.error) == ("done", "done: 2 of 2 steps", None)


def test_a_job_is_started_once() -> None:
    job = Job(steps(1)).start()
    with pytest.raises(ConfigurationError, match=r"runs once.*make another"):
        job.start()
    job.join(SOON)
    with pytest.raises(ConfigurationError, match=r"done: 1 of 1 steps.*make another"):
        job.start()


def test_a_job_without_a_step_is_done() -> None:
    job = Job(lambda on_step: 7).start()
    assert job.result(SOON) == 7
    assert (job.state, job.step, job.sentence) == ("done", None, "done")


def test_cancelled_before_its_start_a_job_never_begins() -> None:
    began: list[bool] = []
    job = Job(lambda on_step: began.append(True))
    job.cancel()
    assert (job.state, job.sentence) == ("cancelled", "cancelled before it began")
    assert job.join(0) is True
    with pytest.raises(Cancelled, match="before it began"):
        job.result()
    with pytest.raises(ConfigurationError, match="cancelled before it began; make another"):
        job.start()
    assert began == []


def test_cancelled_on_its_way_a_job_stops_at_its_next_step_and_names_it() -> None:
    gate = Gate(9)
    job = Job(gate).start()
    gate.go.release(2)
    wait_for(lambda: gate.at == 3)
    job.cancel()
    assert (job.state, job.sentence) == ("running", "stopping at step 2 of 9")
    gate.go.release()
    assert job.join(SOON)
    assert (job.state, job.sentence) == ("cancelled", "cancelled at step 3 of 9")
    assert gate.done == [1, 2, 3]
    with pytest.raises(Cancelled, match="cancelled at step 3 of 9"):
        job.result()


def test_cancelled_before_its_first_step_a_job_says_that_it_stops() -> None:
    gate = Gate(2)
    job = Job(gate).start()
    job.cancel()
    assert job.sentence == "stopping before its first step"
    gate.go.release()
    assert job.join(SOON)
    assert job.sentence == "cancelled at step 1 of 2"


def test_cancelled_after_its_end_a_job_stays_done() -> None:
    job = Job(steps(3)).start()
    job.join(SOON)
    job.cancel()
    assert (job.state, job.sentence, job.result()) == ("done", "done: 3 of 3 steps", "counted")


def test_cancelled_at_its_last_step_a_job_is_done() -> None:
    gate = Gate(2)
    job = Job(gate).start()
    gate.go.release()
    wait_for(lambda: gate.at == 2)
    job.cancel()
    gate.go.release()
    assert job.result(SOON) == [1, 2]
    assert job.state == "done"


def test_what_a_cancelled_job_kept_is_its_result() -> None:
    gate = Gate(9, keeps=True)
    job = Job(gate).start()
    gate.go.release()
    wait_for(lambda: gate.at == 2)
    job.cancel()
    gate.go.release()
    assert job.result(SOON) == [1, 2]
    assert (job.state, job.error) == ("cancelled", None)


def test_a_job_that_swallows_a_cancellation_is_told_again_at_every_step() -> None:
    swallowed: list[int] = []
    first = threading.Event()

    def stubborn(on_step: OnStep) -> None:
        assert first.wait(SOON)
        for index in range(1, 4):
            try:
                on_step(Step("stubborn", index, 9))
            except Cancelled:
                swallowed.append(index)

    job = Job(stubborn).start()
    job.cancel()
    first.set()
    assert job.join(SOON)
    assert (swallowed, job.state) == ([1, 2, 3], "cancelled")


@pytest.mark.parametrize("error", [ValueError("no <images>"), KeyboardInterrupt(), SystemExit(2)])
def test_what_the_work_raises_is_said_and_raised_again(error: BaseException) -> None:
    def fails(on_step: OnStep) -> None:
        on_step(Step("fail", 1, 2))
        raise error

    job = Job(fails).start()
    assert job.join(SOON)
    assert (job.state, job.error) == ("failed", error)
    assert job.sentence == f"failed: {type(error).__name__}: {error}"
    with pytest.raises(type(error)) as raised:
        job.result()
    assert raised.value is error


def test_who_does_not_want_to_wait_is_told_where_the_job_is() -> None:
    gate = Gate(1)
    job = Job(gate).start()
    with pytest.raises(TimeoutError, match=r"not ended after 0.01 s: running, before its first step"):
        job.result(0.01)
    gate.go.release()
    job.join(SOON)


class Witness:
    """An `on_change` that writes down what it saw."""

    def __init__(self) -> None:
        self.saw: list[tuple[str, int | None]] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, job: Job[Any]) -> None:
        self.saw.append((job.state, job.step.index if job.step else None))
        self.threads.add(threading.current_thread())


def test_changes_are_told_in_order_and_from_the_worker_only() -> None:
    witness = Witness()
    job = Job(steps(3), on_change=witness, every=0).start()
    job.join(SOON)
    assert witness.saw == [("running", None), ("running", 1), ("running", 2), ("running", 3), ("done", 3)]
    assert threading.current_thread() not in witness.threads
    assert len(witness.threads) == 1


def test_quick_steps_are_not_all_told_but_the_first_and_the_last_are() -> None:
    witness = Witness()
    began = time.monotonic()
    Job(steps(2000, pause=0.0002), on_change=witness, every=0.1).start().join(SOON)
    told = [index for state, index in witness.saw if state == "running" and index is not None]
    assert told[0] == 1
    assert told[-1] == 2000
    assert 3 <= len(told) <= 2 + (time.monotonic() - began) / 0.1


def test_ten_changes_a_second_are_the_most_unless_asked_for_more() -> None:
    assert Job(steps(1))._every == 0.1


def test_the_last_change_is_told_before_join_returns() -> None:
    saw: list[str] = []

    def slow(job: Job[Any]) -> None:
        if job.state == "done":
            time.sleep(0.05)
            saw.append(job.sentence)

    assert Job(steps(1), on_change=slow).start().join(SOON)
    assert saw == ["done: 1 of 1 steps"]


@pytest.mark.parametrize("when", ["running", "step", "done"])
def test_an_error_in_on_change_fails_the_job_and_nobody_waits_forever(when: str) -> None:
    told: list[str] = []

    def fails(job: Job[Any]) -> None:
        told.append(job.state)
        if when == "step" and job.step is not None and job.state == "running":
            raise RuntimeError("cannot draw")
        if job.state == when:
            raise RuntimeError("cannot draw")

    job = Job(steps(5), on_change=fails).start()
    assert job.join(SOON)
    assert (job.state, str(job.error)) == ("failed", "cannot draw")
    assert told[-1] == "failed"
    with pytest.raises(RuntimeError, match="cannot draw"):
        job.result()


def test_an_on_change_that_always_fails_does_not_hide_what_the_work_failed_with() -> None:
    def fails(job: Job[Any]) -> None:
        if job.state != "running":
            raise RuntimeError("cannot draw")

    def work(on_step: OnStep) -> None:
        raise ValueError("cannot work")

    job = Job(work, on_change=fails).start()
    assert job.join(SOON)
    assert str(job.error) == "cannot work"


def test_a_cancelled_job_whose_last_picture_fails_says_what_failed() -> None:
    gate = Gate(3)

    def fails(job: Job[Any]) -> None:
        if job.state == "cancelled":
            raise RuntimeError("cannot draw")

    job = Job(gate, on_change=fails).start()
    job.cancel()
    gate.go.release()
    assert job.join(SOON)
    assert job.sentence == "failed: RuntimeError: cannot draw"


def test_on_change_may_cancel_its_own_job() -> None:
    job = Job(steps(1000), on_change=lambda job: job.cancel()).start()
    assert job.join(SOON)
    assert job.sentence == "cancelled at step 1 of 1000"


def test_many_threads_start_a_job_once() -> None:
    for _ in range(30):
        runs: list[int] = []
        refused: list[ConfigurationError] = []
        job = Job(lambda on_step, runs=runs: runs.append(1))  # type: ignore[misc]
        together = threading.Barrier(6)

        def start(job: Job[Any] = job, refused: Any = refused, together: threading.Barrier = together) -> None:
            together.wait()
            try:
                job.start()
            except ConfigurationError as error:
                refused.append(error)

        threads = [threading.Thread(target=start) for _ in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert job.join(SOON)
        assert (runs, len(refused), job.state) == ([1], 5, "done")


def test_start_and_cancel_from_many_threads_leave_one_clear_end() -> None:
    ends = set()
    for _ in range(60):
        began: list[int] = []

        def work(on_step: OnStep, began: list[int] = began) -> None:
            began.append(1)
            for index in range(1, 1000):
                on_step(Step("race", index, 1000))
                time.sleep(0.0005)

        job = Job(work)
        together = threading.Barrier(4)

        def start(job: Job[Any] = job, together: threading.Barrier = together) -> None:
            together.wait()
            with suppress(ConfigurationError):
                job.start()

        def cancel(job: Job[Any] = job, together: threading.Barrier = together) -> None:
            together.wait()
            job.cancel()

        threads = [threading.Thread(target=target) for target in (start, cancel, start, cancel)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert job.join(SOON)
        assert job.state == "cancelled"
        assert job.sentence.startswith("cancelled ")
        assert began == ([1] if job.step else [])
        ends.add(bool(began))
    assert ends  # either is right; which of them came is up to the machine


def test_a_job_is_right_while_the_main_thread_is_busy_and_another_one_cancels_it() -> None:
    gate = Gate(10**6)
    gate.go.release(10**6)
    job = Job(gate).start()
    threading.Timer(0.05, job.cancel).start()
    until = time.monotonic() + SOON
    while job.state == "running" and time.monotonic() < until:
        sum(range(1000))  # a cell that never gives way
    assert job.join(SOON)
    assert job.state == "cancelled"
    assert job.step is not None
    assert job.step.index < 10**6


def test_a_machine_without_a_thread_to_spare_lets_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    job = Job(steps(1))
    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        job.start()
    assert job.join(0)
    assert job.state == "failed"
