"""The exercises of the lessons, by id. One file a lesson; the answers are the library's."""

from typing import Any

from dfqlab.errors import ConfigurationError, did_you_mean
from dfqlab.lab.checks import Exercise, examine
from dfqlab.lab.exercises import calibrate, deploy, diversity, integer_grid, inversion, kernels, memory, mixing
from dfqlab.lab.verdict import Verdict

EXERCISES: dict[str, Exercise] = {
    exercise.id: exercise
    for lesson in (integer_grid, memory, inversion, mixing, diversity, calibrate, kernels, deploy)
    for exercise in lesson.EXERCISES
}


def check(exercise: str, yours: Any) -> Verdict:
    """Try your function on the cases of an exercise: yours beside what is expected, and a hint. Keeps nothing.

    Whatever the function does, the check says it and never raises.

    Args:
        exercise: its id, such as "01.zero_point".
        yours: your function.

    Raises:
        ConfigurationError: no such exercise.
    """
    if exercise not in EXERCISES:
        raise ConfigurationError(f"no exercise {exercise!r}; {did_you_mean(exercise, EXERCISES)}")
    return examine(EXERCISES[exercise], yours)
