"""The terminal's progress line, and what Ctrl-C does to it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from dfqlab.progress import Cancelled, Step, ignore, terminal_progress


@pytest.fixture(autouse=True)
def handler() -> Iterator[object]:
    """Ours must give back the handler that was there, whatever it was."""

    def own(number: int, frame: object) -> None:
        raise AssertionError("a signal reached the handler from before")

    before = signal.signal(signal.SIGINT, own)
    try:
        yield own
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def step(index: int, total: int = 10, **values: float) -> Step:
    return Step("synthesize", index, total, values)


def test_ctrl_c_cancels_at_the_next_step_and_not_before() -> None:
    with terminal_progress() as on_step:
        on_step(step(1))
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Cancelled):
            on_step(step(2))
        with pytest.raises(Cancelled):  # and whatever comes after it stops too
            on_step(Step("ranges", 1, 5))


def test_a_second_ctrl_c_stops_at_once() -> None:
    with terminal_progress():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handler_from_before_comes_back_after_a_normal_end(handler: object) -> None:
    with terminal_progress() as on_step:
        assert signal.getsignal(signal.SIGINT) is not handler
        on_step(step(10))
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt, ValueError])
def test_the_handler_from_before_comes_back_after_an_error(handler: object, error: type[BaseException]) -> None:
    with pytest.raises(error), terminal_progress():
        raise error
    assert signal.getsignal(signal.SIGINT) is handler


def test_outside_the_main_thread_it_shows_progress_and_takes_no_signal(handler: object) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with terminal_progress() as on_step:
                for index in range(1, 11):
                    on_step(step(index, loss=0.5))
                assert signal.getsignal(signal.SIGINT) is handler
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_the_line_names_the_job_and_its_values_and_stands_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with terminal_progress() as on_step:
        on_step(step(1, loss=2.5, alignment=0.12345))
        on_step(step(10, loss=1.25, alignment=0.5))
        on_step(Step("histograms", 1, 1))
    out, err = capfd.readouterr()
    assert out == ""
    for part in ("synthesize", "100%", "loss 1.25", "alignment 0.5", "histograms"):
        assert part in err


def test_the_last_step_of_a_job_is_always_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """Steps closer than a tenth of a second are skipped, but not the end of the job."""
    with terminal_progress() as on_step:
        for index in range(1, 1001):
            on_step(step(index, 1000, loss=1000.0 - index))
    assert "100%" in capfd.readouterr().err


INTERRUPTED = """
import os, signal
from dfqlab.progress import Cancelled, Step, terminal_progress
kept = []
try:
    with terminal_progress() as on_step:
        for index in range(1, 1000):
            kept.append(index)
            if index == 5:
                os.kill(os.getpid(), signal.SIGINT)
            on_step(Step("work", index, 1000))
except Cancelled:
    print(len(kept))
"""


def test_a_process_that_is_interrupted_keeps_what_it_has() -> None:
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert found.stdout.strip() == "5"
    assert "Traceback" not in found.stderr


def test_whoever_does_not_watch_is_not_asked() -> None:
    assert ignore(step(1)) is None  # type: ignore[func-returns-value]
