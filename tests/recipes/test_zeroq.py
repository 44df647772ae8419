"""The recipe `zeroq`."""

from collections.abc import Callable
from typing import Any

import pytest

from dfqlab.errors import TeacherError
from dfqlab.recipes import synthesize
from dfqlab.recipes import zeroq as module_of_zeroq
from dfqlab.recipes.zeroq import ZeroQ
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.schedules import Plateau
from dfqlab.synthesis.terms import Alignment
from dfqlab.teachers import Teacher


def test_the_settings_are_those_of_the_released_code() -> None:
    """Adam at 0.5 for 500 steps, ReduceLROnPlateau with patience 100 down to 1e-4."""
    assert ZeroQ() == ZeroQ(learning_rate=0.5, steps=500, patience=100, smallest_rate=1e-4)


def test_it_is_inversion_with_statistics_of_single_images_and_of_the_input(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    invert = module_of_zeroq.invert

    def spy(teachers: Any, objective: Any, descent: Any, **request: Any) -> Any:
        asked.update(request, teachers=teachers, objective=objective, descent=descent)
        return invert(teachers, objective, descent, **request)

    monkeypatch.setattr(module_of_zeroq, "invert", spy)
    ZeroQ(steps=2, patience=7, smallest_rate=0.1, learning_rate=0.2).synthesize([teacher], count=3, seed=4)
    assert asked["teachers"] == [teacher]
    assert asked["descent"] == Descent(steps=2, learning_rate=0.2, schedule=Plateau(7, 0.1))
    assert (asked["count"], asked["seed"], asked.get("labels")) == (3, 4, None)
    assert not asked["objective"].image_terms
    ((name, term),) = asked["objective"].terms.items()
    assert asked["objective"].weights == {name: 1}
    assert term == Alignment(per="sample", distance="squared", spread="std", match_input=True)


def test_it_makes_images_for_no_class(teacher: Teacher) -> None:
    assert synthesize(teacher, "zeroq", count=2, seed=0, steps=1).labels is None


def test_a_teacher_without_batch_norm_is_told_what_the_recipe_wanted(make_teacher: Callable[..., Teacher]) -> None:
    said = r"'mine' has no BatchNorm layer.*recipe 'zeroq' aligns BatchNorm statistics.*2 GroupNorm layers:.*lesson 02"
    with pytest.raises(TeacherError, match=said):
        synthesize(make_teacher(norm="group"), "zeroq", count=1, seed=0)
