"""A check says what a learner's function does, whatever that is; it never raises, and never waits for long."""

import html
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqlab.lab import bounded
from dfqlab.lab.checks import CannotTry, Complaint, Exercise, Hint, examine
from dfqlab.lab.verdict import Verdict

LIMIT = 0.3


def double(x: Tensor, offset: float) -> Tensor:
    return 2 * x + offset


def off_by(amount: float) -> Callable[..., Tensor]:
    return lambda x, offset: 2 * x + offset + amount


EXERCISE = Exercise(
    id="99.double",
    answer=double,
    cases=((torch.tensor([1.0, 2.0, 3.0]), 0.0), (torch.tensor([4.0, 5.0]), 0.5)),
    drawn=("x",),
    hints=(
        Hint("One <too> much.", off_by(1)),
        Hint("Two too much.", off_by(2)),
        Hint("Three too much.", off_by(3)),
    ),
    library="torch.add",
)


def look(yours: Any) -> Verdict:
    """Check, and read the verdict in both forms: neither may fail, whatever `yours` is."""
    verdict = examine(EXERCISE, yours, time_limit=LIMIT)
    for text in (str(verdict), verdict._repr_html_()):
        assert verdict.sentence[:20] in html.unescape(text)
    return verdict


def threads_of_checks() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dfqlab check"]


class Subclass(torch.Tensor):
    pass


class Stubborn(torch.Tensor):
    """A subclass that computes nothing."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("no")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("speechless")


class Liar:
    """An object that is callable, and whose signature cannot be read."""

    @property
    def __signature__(self) -> Any:
        raise RuntimeError("none of your business")

    def __call__(self, x: Tensor, offset: float) -> Tensor:
        return 2 * x + offset


class Group(nn.Module):
    def forward(self, x: Tensor, offset: float) -> Tensor:
        return 2 * x + offset


def raising(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    def raises(x: Tensor, offset: float) -> Any:
        raise error

    return raises


def resizes(x: Tensor, offset: float) -> Tensor:
    x.resize_(0)
    return x


def writes_nan(x: Tensor, offset: float) -> Tensor:
    x[0] = torch.nan
    return 2 * x


def swaps_its_data(x: Tensor, offset: float) -> Tensor:
    x.data = torch.zeros(3, dtype=torch.int64)
    return x


def generates(x: Tensor, offset: float) -> Iterator[Tensor]:
    yield x


def recurses(x: Tensor, offset: float) -> Tensor:
    return recurses(x, offset)


def asks_torch_for_what_it_cannot(x: Tensor, offset: float) -> Tensor:
    return torch.linalg.det(torch.ones(2, 2, dtype=torch.int64))


def wants_more(x: Tensor, offset: float, bits: int) -> Tensor:
    return x


def wants_less(x: Tensor) -> Tensor:
    return x


def wants_names(*, x: Tensor, offset: float) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("yours", "said"),
    [
        pytest.param(None, "Expected a function, got an object of type NoneType", id="None"),
        pytest.param(torch.ones(3), "Expected a function, got an object of type Tensor", id="a tensor"),
        pytest.param("double", "Expected a function", id="its name"),
        pytest.param(Subclass, "Expected a function, got the class Subclass", id="a class"),
        pytest.param(int, "Expected a function, got the class int", id="a built-in class"),
        pytest.param(wants_less, "takes (x); expected (x, offset)", id="too few parameters"),
        pytest.param(wants_more, "takes (x, offset, bits); expected (x, offset)", id="too many parameters"),
        pytest.param(lambda: None, "takes (); expected (x, offset)", id="no parameters"),
        pytest.param(wants_names, "takes (*, x, offset); expected (x, offset)", id="keyword-only parameters"),
        pytest.param(min, "It raised RuntimeError: Boolean value of Tensor", id="a built-in function"),
        pytest.param(print, "returns None", id="print"),
        pytest.param(lambda x, offset: None, "returns None. Is there a return", id="returns None"),
        pytest.param(lambda x, offset: x.tolist(), "type list; expected a tensor", id="returns a list"),
        pytest.param(lambda x, offset: 1.5, "type float; expected a tensor", id="returns a float"),
        pytest.param(lambda x, offset: (x, x), "type tuple; expected a tensor", id="returns a tuple"),
        pytest.param(lambda x, offset: x.numpy(), "type ndarray; expected a tensor", id="returns an array"),
        pytest.param(generates, "type generator; expected a tensor", id="yields"),
        pytest.param(lambda x, offset: x[:1], "shape (1,); expected (3,)", id="too short"),
        pytest.param(lambda x, offset: x[None], "shape (1, 3); expected (3,)", id="one dimension more"),
        pytest.param(lambda x, offset: x.sum(), "shape (); expected (3,)", id="no dimension"),
        pytest.param(lambda x, offset: x[:0], "shape (0,); expected (3,)", id="empty"),
        pytest.param(
            lambda x, offset: torch.zeros(1).expand(10**12), "shape (1000000000000,); expected (3,)", id="huge"
        ),
        pytest.param(lambda x, offset: torch.zeros(2000, 1000), "shape (2000, 1000); expected (3,)", id="large"),
        pytest.param(lambda x, offset: (2 * x).long(), "type int64; expected float32", id="integers"),
        pytest.param(lambda x, offset: 2 * x.double() + offset, "type float64; expected float32", id="float64"),
        pytest.param(lambda x, offset: (2 * x + offset).half(), "type float16; expected float32", id="float16"),
        pytest.param(lambda x, offset: x > 0, "type bool; expected float32", id="booleans"),
        pytest.param(lambda x, offset: x + 1j, "type complex64; expected float32", id="complex"),
        pytest.param(
            lambda x, offset: torch.quantize_per_tensor(x, 0.5, 0, torch.qint8),
            "cannot be compared",
            id="quantized by torch",
            marks=pytest.mark.filterwarnings("ignore"),
        ),
        pytest.param(lambda x, offset: x.to_sparse(), "sparse_coo tensor on the device cpu; expected", id="sparse"),
        pytest.param(lambda x, offset: x.to("meta"), "on the device meta; expected", id="on the meta device"),
        pytest.param(lambda x, offset: x * torch.nan, "3 of 3 values are NaN", id="NaN"),
        pytest.param(lambda x, offset: x / 0, "element 0 is inf, expected 2 for x = 1", id="infinite"),
        pytest.param(lambda x, offset: Stubborn(), "cannot be compared", id="a tensor that computes nothing"),
        pytest.param(lambda x, offset: x.mul_(2), "changes its input 'x' in place", id="in place"),
        pytest.param(resizes, "changes its input 'x' in place", id="resizes"),
        pytest.param(writes_nan, "changes its input 'x' in place", id="writes NaN into its input"),
        pytest.param(swaps_its_data, "", id="swaps the data of its input"),
        pytest.param(recurses, "It raised RecursionError", id="endless recursion"),
        pytest.param(asks_torch_for_what_it_cannot, "It raised ", id="what torch does not do"),
        pytest.param(raising(ValueError("a <b> & c")), "It raised ValueError: a <b> & c, at “raise", id="ValueError"),
        pytest.param(raising(KeyboardInterrupt), "It raised KeyboardInterrupt, at “raise", id="KeyboardInterrupt"),
        pytest.param(raising(SystemExit(3)), "It raised SystemExit: 3", id="SystemExit"),
        pytest.param(raising(StopIteration), "It raised StopIteration", id="StopIteration"),
        pytest.param(raising(GeneratorExit), "It raised GeneratorExit", id="GeneratorExit"),
        pytest.param(raising(Mute()), "It raised Mute", id="an error that cannot be printed"),
        pytest.param(raising(ValueError("long " * 10_000)), "It raised ValueError: long long", id="a long error"),
    ],
)
def test_a_function_that_is_wrong_is_told_how(yours: Any, said: str) -> None:
    verdict = look(yours)
    assert verdict.outcome == "wrong"
    assert said in verdict.sentence
    assert len(verdict.sentence) < 500


@pytest.mark.parametrize(
    "yours",
    [
        pytest.param(lambda x, offset: 2 * x + offset, id="a lambda"),
        pytest.param(lambda *args: 2 * args[0] + args[1], id="any arguments"),
        pytest.param(lambda x, offset, extra=0: 2 * x + offset, id="a default"),
        pytest.param(Group(), id="a module"),
        pytest.param(Liar(), id="an object whose signature cannot be read"),
        pytest.param(lambda x, offset: (2 * x + offset).requires_grad_(), id="requires a gradient"),
        pytest.param(lambda x, offset: nn.Parameter(2 * x + offset), id="a parameter"),
        pytest.param(lambda x, offset: (2 * x + offset).as_subclass(Subclass), id="a subclass"),
        pytest.param(lambda x, offset: (2 * x + offset).repeat_interleave(2)[::2], id="not contiguous"),
        pytest.param(lambda x, offset: 2 * x + offset + 1e-6, id="almost"),
    ],
)
def test_a_function_that_is_right_passes_however_it_is_made(yours: Any) -> None:
    assert look(yours).outcome == "passed"


def test_what_a_function_prints_is_no_reason_to_fail_it(capsys: pytest.CaptureFixture[str]) -> None:
    def prints(x: Tensor, offset: float) -> Tensor:
        print("x is", x.tolist())
        return 2 * x + offset

    assert look(prints).outcome == "passed"
    assert "x is [1.0, 2.0, 3.0]" in capsys.readouterr().out


def test_a_result_that_the_next_case_overwrites_was_right_when_it_came() -> None:
    buffer = torch.zeros(3)

    def into_one_buffer(x: Tensor, offset: float) -> Tensor:
        return torch.add(offset, x, alpha=2, out=buffer[: len(x)])

    assert look(into_one_buffer).outcome == "passed"


@pytest.mark.parametrize("error", [NotImplementedError, NotImplementedError("write me")])
def test_a_stub_is_not_yet_written(error: Any) -> None:
    verdict = look(raising(error))
    assert verdict.outcome == "not yet"
    assert "double is still to be written" in verdict.sentence
    assert verdict.rows == (
        ("x", "expected", "yours", ""), ("1", "2", "", ""), ("2", "4", "", ""), ("3", "6", "", "")
    )  # fmt: skip


def test_what_torch_does_not_implement_is_no_stub() -> None:
    def rounds_booleans(x: Tensor, offset: float) -> Tensor:
        return torch.round(x > 0)

    with pytest.raises(NotImplementedError):
        rounds_booleans(torch.ones(1), 0)
    verdict = look(rounds_booleans)
    assert verdict.outcome == "wrong"
    assert "It raised NotImplementedError: " in verdict.sentence


def test_an_error_names_the_line_of_the_learner_and_not_of_torch() -> None:
    def breaks_inside_torch(x: Tensor, offset: float) -> Tensor:
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(2, 2))(x)

    assert "at “return nn.Sequential(" in look(breaks_inside_torch).sentence


def spins(x: Tensor, offset: float) -> Tensor:
    while True:
        pass


def spins_and_swallows(x: Tensor, offset: float) -> Tensor:
    while True:
        try:
            sum(range(10))
        except:  # noqa: E722
            x = x + 1


def spins_in_torch(x: Tensor, offset: float) -> Tensor:
    while True:
        try:
            x = x + 1
        except BaseException:
            continue


@pytest.mark.parametrize("yours", [spins, spins_and_swallows, spins_in_torch])
def test_a_function_that_never_returns_is_stopped(yours: Callable[..., Tensor]) -> None:
    began = time.monotonic()
    verdict = look(yours)
    assert time.monotonic() - began < LIMIT + 2
    assert verdict.outcome == "wrong"
    assert f"not back after {LIMIT} s, and was stopped" in verdict.sentence
    assert threads_of_checks() == []


def test_a_function_that_waits_outside_python_is_left_and_the_learner_is_told() -> None:
    release = threading.Event()

    def waits(x: Tensor, offset: float) -> Tensor:
        while not release.is_set():
            with suppress(BaseException):
                release.wait(60)
        return x

    began = time.monotonic()
    try:
        verdict = look(waits)
        assert time.monotonic() - began < LIMIT + 2
        assert "not back after 0.3 s, and does not let itself be stopped" in verdict.sentence
        assert "Restart Kernel" in verdict.sentence
        assert len(threads_of_checks()) == 1
    finally:
        release.set()
        for thread in threads_of_checks():
            thread.join(5)


def test_a_wait_that_ends_late_ends_silently(capsys: pytest.CaptureFixture[str]) -> None:
    def sleeps(x: Tensor, offset: float) -> Tensor:
        time.sleep(1)
        return x

    assert "not back" in look(sleeps).sentence
    for thread in threads_of_checks():
        thread.join(5)
    assert threads_of_checks() == []
    assert capsys.readouterr() == ("", "")


def test_who_interrupts_a_check_stops_the_function_too(monkeypatch: pytest.MonkeyPatch) -> None:
    joined, began = threading.Thread.join, threading.Event()

    def begins_and_spins(x: Tensor, offset: float) -> Tensor:
        began.set()
        return spins(x, offset)

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if timeout == 60:
            assert began.wait(20)
            raise KeyboardInterrupt
        joined(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        examine(EXERCISE, begins_and_spins, time_limit=60)
    assert threads_of_checks() == []


def test_stopping_gives_threads_their_turns_as_before() -> None:
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.004)
        bounded.call(spins, (torch.ones(1), 0), 0.05)
        assert sys.getswitchinterval() == 0.004
    finally:
        sys.setswitchinterval(before)


def test_cases_are_copies_that_a_function_cannot_spoil() -> None:
    before = [case[0].clone() for case in EXERCISE.cases]
    look(lambda x, offset: x.zero_())
    assert all(torch.equal(case[0], x) for case, x in zip(EXERCISE.cases, before, strict=True))
    assert look(double).outcome == "passed"


@pytest.mark.parametrize("amount", [1, 2, 3])
def test_a_known_mistake_is_told_its_hint_only(amount: int) -> None:
    verdict = look(lambda x, offset: torch.stack([2 * value + offset + amount for value in x]))
    assert verdict.hint == EXERCISE.hints[amount - 1].text
    assert verdict.hints == ()
    assert str(verdict).count("too much") + str(verdict).count("<too> much") == 1


def test_a_mistake_in_a_case_below_the_first_is_not_hinted_at_from_the_first_alone() -> None:
    verdict = look(lambda x, offset: 2 * x + offset + (1 if len(x) == 3 else 7))
    assert verdict.hint == ""
    assert len(verdict.hints) == 3


def test_the_table_shows_the_first_case_that_goes_wrong() -> None:
    verdict = look(lambda x, offset: 2 * x)
    assert verdict.sentence == "2 of 2 values differ: element 0 is 8, expected 8.5 for x = 4."
    assert verdict.given == "offset = 0.5"
    assert [row[-1] for row in verdict.rows[1:]] == ["≠"] * 2


def test_yours_stands_beside_expected() -> None:
    verdict = look(lambda x, offset: torch.where(x == 2, 5.0, 2 * x + offset))
    assert str(verdict).split("\n") == [
        "✗ 1 of 3 values differs: element 1 is 5, expected 4 for x = 2.",
        "What often goes wrong:",
        "  1. One <too> much.",
        "  2. Two too much.",
        "  3. Three too much.",
        "With offset = 0:",
        "x  expected  yours",
        "1         2      2  ✓",
        "2         4      5  ≠",
        "3         6      6  ✓",
    ]


def test_html_says_what_the_text_says_and_hides_what_often_goes_wrong() -> None:
    page = look(lambda x, offset: torch.where(x == 2, 5.0, 2 * x + offset))._repr_html_()
    assert re.search(r"<details><summary>What often goes wrong</summary><ol>.*Three too much.*</ol></details>", page)
    assert "<caption>With offset = 0:</caption>" in page
    assert "<td>2</td><td>4</td><td>5</td><td>≠</td>" in page
    assert page.count("<tr>") == 4


def test_html_escapes_what_came_from_the_learner_and_from_us() -> None:
    page = look(raising(ValueError("<script>alert(1)</script>")))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    page = look(off_by(1))._repr_html_()
    assert "<too>" not in page
    assert "One &lt;too&gt; much." in page


def test_what_passed_names_the_library_and_gives_no_hint() -> None:
    verdict = look(double)
    assert str(verdict).startswith("✓ Right, in all 2 cases. The library does it in torch.add.")
    assert "often goes wrong" not in str(verdict)
    assert "<details>" not in verdict._repr_html_()


def test_a_verdict_alone_in_a_cell_reads_as_its_text() -> None:
    verdict = look(double)
    assert repr(verdict) == str(verdict)


def attempted(attempt: Callable[..., Any]) -> Exercise:
    return replace(EXERCISE, attempt=attempt)


def test_an_exercise_may_say_how_a_function_is_tried() -> None:
    exercise = attempted(lambda yours, arguments: yours(*arguments)["result"])
    assert examine(exercise, lambda x, offset: {"result": 2 * x + offset}).outcome == "passed"
    assert examine(exercise, lambda x, offset: {"result": 2 * x + offset + 1}).hint == "One <too> much."
    assert examine(exercise, raising(NotImplementedError())).outcome == "not yet"


def test_a_complaint_of_who_tries_it_is_told_with_its_hint_and_its_case() -> None:
    def attempt(yours: Callable[..., Any], arguments: tuple[Any, ...]) -> Tensor:
        if len(arguments[0]) == 2:
            raise Complaint("It knocks things over.", "Mind the shelf.")
        return yours(*arguments)

    verdict = examine(attempted(attempt), double)
    assert (verdict.outcome, verdict.sentence, verdict.hint) == ("wrong", "It knocks things over.", "Mind the shelf.")
    assert verdict.given == "offset = 0.5"
    assert verdict.hints == ()


def test_where_nothing_can_be_tried_that_is_said_and_nothing_is_wrong() -> None:
    def attempt(yours: Callable[..., Any], arguments: tuple[Any, ...]) -> Tensor:
        raise CannotTry("there is no workbench")

    verdict = examine(attempted(attempt), double)
    assert verdict.outcome == "not yet"
    assert verdict.sentence == "Not checked: there is no workbench. What it should give:"
    assert verdict.hint == ""


def test_a_decorated_kernel_is_looked_at_under_its_decorator() -> None:
    class Decorated:
        fn = staticmethod(double)

        def __call__(self) -> None:
            raise AssertionError

    assert examine(attempted(lambda yours, arguments: yours(*arguments)), Decorated()).outcome == "passed"
