"""What holds of every exercise.

A kernel's answer and mistakes are plain torch, and are called here like any other; tests/lab/interpreted launches some.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pydoc import locate
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.lab.checks import Exercise, Hint, examine
from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lessons import read_lessons

CALLED = {id: replace(exercise, attempt=None) for id, exercise in EXERCISES.items()}

every_exercise = pytest.mark.parametrize("exercise", CALLED.values(), ids=list(CALLED))
every_hint = pytest.mark.parametrize(
    ("exercise", "hint"),
    [pytest.param(e, hint, id=f"{e.id}-{number}") for e in CALLED.values() for number, hint in enumerate(e.hints, 1)],
)


def stub_of(exercise: Exercise) -> Callable[..., Any]:
    """The function as the lesson has it, before anybody wrote anything."""
    name, parameters = exercise.id.split(".")[1], ", ".join(inspect.signature(exercise.answer).parameters)
    made: dict[str, Any] = {}
    exec(f"def {name}({parameters}):\n    raise NotImplementedError", made)
    function: Callable[..., Any] = made[name]
    return function


@every_exercise
def test_the_librarys_answer_passes(exercise: Exercise) -> None:
    verdict = examine(exercise, exercise.answer)
    assert verdict.outcome == "passed"
    assert exercise.library in verdict.sentence
    assert [row[-1] for row in verdict.rows[1:]] == ["✓"] * (len(verdict.rows) - 1)


@every_exercise
def test_a_stub_is_not_yet_written_and_shows_what_is_expected(exercise: Exercise) -> None:
    verdict = examine(exercise, stub_of(exercise))
    assert verdict.outcome == "not yet"
    assert exercise.id.split(".")[1] in verdict.sentence
    assert (verdict.hint, verdict.hints) == ("", ())
    assert all(row[-3] and not row[-2] for row in verdict.rows[1:])


@every_hint
def test_a_mistake_is_told_its_own_hint_and_no_other(exercise: Exercise, hint: Hint) -> None:
    verdict = examine(exercise, hint.mistake)
    assert verdict.outcome == "wrong"
    assert verdict.hint == hint.text
    assert verdict.hints == ()


@every_exercise
def test_a_mistake_that_nobody_foresaw_is_told_what_often_goes_wrong(exercise: Exercise) -> None:
    def far_off(*arguments: Any) -> Tensor:
        return exercise.answer(*arguments) + 1234

    verdict = examine(exercise, far_off)
    assert verdict.outcome == "wrong"
    assert verdict.hint == ""
    assert verdict.hints == tuple(hint.text for hint in exercise.hints)
    assert {row[-1] for row in verdict.rows[1:]} == {"≠"}


@every_exercise
def test_the_drawn_case_can_be_held_in_the_head(exercise: Exercise) -> None:
    drawn = dict(zip(inspect.signature(exercise.answer).parameters, exercise.cases[0], strict=True))
    expected = exercise.answer(*exercise.cases[0])
    assert 1 < expected.numel() <= 8
    assert all(drawn[name].numel() == expected.numel() for name in exercise.drawn)


@every_exercise
def test_a_check_says_every_argument_of_the_case_that_it_draws(exercise: Exercise) -> None:
    verdict = examine(exercise, exercise.answer)
    named = {part.split(" = ")[0] for part in verdict.given.split(", ") if " = " in part} | set(verdict.rows[0])
    assert set(inspect.signature(exercise.answer).parameters) <= named


@every_exercise
def test_an_answer_leaves_its_arguments_and_the_random_numbers_alone(exercise: Exercise) -> None:
    state = torch.get_rng_state()
    for case in exercise.cases:
        before = [value.clone() if isinstance(value, Tensor) else value for value in case]
        exercise.answer(*case)
        assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(case, before, strict=True))
    examine(exercise, exercise.answer)
    assert torch.equal(torch.get_rng_state(), state)


@every_exercise
def test_an_exercise_belongs_to_a_lesson_and_to_something_in_the_library(exercise: Exercise) -> None:
    lesson, name = exercise.id.split(".")
    assert lesson in {known.id for known in read_lessons()}
    assert name == exercise.answer.__name__
    assert callable(locate(exercise.library))


@every_exercise
def test_no_hint_gives_the_whole_solution_away(exercise: Exercise) -> None:
    for hint in exercise.hints:
        assert "return" not in hint.text
        assert len(hint.text) < 120


def test_an_unknown_exercise_is_told_its_neighbours() -> None:
    with pytest.raises(ConfigurationError, match=r"no exercise '01\.zero'.*01\.zero_point"):
        check("01.zero", lambda x: x)


def test_check_finds_the_exercise_by_its_id() -> None:
    answer = EXERCISES["01.zero_point"].answer
    assert check("01.zero_point", answer).outcome == "passed"
    assert check("02.widen", answer).outcome == "wrong"
