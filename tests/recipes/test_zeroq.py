"""The recipe `zeroq`, and recipes by their names."""

from typing import Any

import pytest
import torch
from torch import nn

from dfqlab.errors import ConfigurationError, TeacherError
from dfqlab.progress import Cancelled, Step
from dfqlab.recipes import synthesize
from dfqlab.recipes import zeroq as module_of_zeroq
from dfqlab.recipes.names import RECIPES
from dfqlab.recipes.zeroq import ZeroQ
from dfqlab.synthesis.inversion import Plateau
from dfqlab.synthesis.terms import Alignment
from dfqlab.teachers import Teacher


def make(*, size: tuple[int, int, int] = (1, 6, 6), norm: type[nn.Module] = nn.BatchNorm2d) -> Teacher:
    middle = nn.GroupNorm(2, 4) if norm is nn.GroupNorm else norm(4)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    return Teacher.from_module(module, size=size, mean=(0.4,), std=(0.3,), classes=4, name="mine")


@pytest.fixture
def teacher() -> Teacher:
    return make()


def test_the_settings_are_those_of_the_released_code() -> None:
    """Adam at 0.5 for 500 steps, ReduceLROnPlateau with patience 100 down to 1e-4."""
    assert ZeroQ() == ZeroQ(learning_rate=0.5, steps=500, patience=100, smallest_rate=1e-4)


def test_it_is_inversion_with_statistics_of_single_images_and_of_the_input(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    invert = module_of_zeroq.invert

    def spy(*arguments: Any, **settings: Any) -> Any:
        asked.update(settings, teachers=arguments[0], objective=arguments[1])
        return invert(*arguments, **settings)

    monkeypatch.setattr(module_of_zeroq, "invert", spy)
    ZeroQ(steps=2, patience=7, smallest_rate=0.1, learning_rate=0.2).synthesize([teacher], 3, seed=4)
    assert asked["schedule"] == Plateau(7, 0.1)
    assert (asked["steps"], asked["learning_rate"], asked["count"], asked["seed"]) == (2, 0.2, 3, 4)
    (weighted,) = asked["objective"].terms.values()
    assert weighted.weight == 1
    assert weighted.term == Alignment(per="sample", match_input=True)


def test_called_by_its_name_it_gives_the_same_images(teacher: Teacher) -> None:
    direct = ZeroQ(steps=3).synthesize([teacher], 2, seed=1)
    for zoo in (teacher, [teacher], (teacher,)):
        by_name = synthesize(zoo, "zeroq", count=2, seed=1, steps=3)
        assert torch.equal(by_name.images, direct.images)
    assert by_name.recipe == "zeroq"
    assert by_name.settings == {"learning_rate": 0.5, "steps": 3, "patience": 100, "smallest_rate": 1e-4}
    assert (by_name.seed, len(by_name), by_name.teachers) == (1, 2, (teacher.fingerprint,))


def test_its_images_are_calmer_than_the_noise_they_came_from(teacher: Teacher) -> None:
    losses: list[float] = []
    synthesize(teacher, "zeroq", count=2, seed=0, steps=60, on_step=lambda step: losses.append(step.values["loss"]))
    assert losses[-1] < losses[0] / 3


def test_progress_and_cancelling_go_through(teacher: Teacher) -> None:
    def stop(step: Step) -> None:
        if step.index == 2:
            raise Cancelled

    made = synthesize(teacher, "zeroq", count=2, seed=0, steps=5, on_step=stop)
    assert made.partial


@pytest.mark.parametrize(
    ("recipe", "said"), [("zeroc", "unknown recipe 'zeroc'; did you mean 'zeroq'?"), ("xyz", "known: .*zeroq")]
)
def test_an_unknown_recipe_gets_the_near_ones(teacher: Teacher, recipe: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        synthesize(teacher, recipe, count=1, seed=0)


def test_an_unknown_setting_gets_the_near_ones(teacher: Teacher) -> None:
    with pytest.raises(ConfigurationError, match="'zeroq' has no setting 'step'; did you mean 'steps'"):
        synthesize(teacher, "zeroq", count=1, seed=0, step=3)


@pytest.mark.parametrize(("changes", "said"), [({"count": 0}, "count=0"), ({"steps": 0}, "steps=0")])
def test_a_job_of_nothing_is_refused(teacher: Teacher, changes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        synthesize(teacher, "zeroq", **{"count": 1, "seed": 0, **changes})


def test_a_teacher_without_batch_norm_is_told_what_the_recipe_wanted() -> None:
    said = r"'mine' has no BatchNorm layer.*recipe 'zeroq' aligns BatchNorm statistics.*1 GroupNorm layer:.*lesson 02"
    with pytest.raises(TeacherError, match=said):
        synthesize(make(norm=nn.GroupNorm), "zeroq", count=1, seed=0)


def test_no_teacher_and_teachers_of_two_sizes_are_refused(teacher: Teacher) -> None:
    with pytest.raises(TeacherError, match="no teacher"):
        synthesize([], "zeroq", count=1, seed=0)
    with pytest.raises(TeacherError, match="different sizes"):
        synthesize([teacher, make(size=(1, 8, 8))], "zeroq", count=1, seed=0)


def test_every_name_leads_to_a_recipe() -> None:
    from importlib import import_module

    for name, (module, cls) in RECIPES.items():
        recipe = getattr(import_module(module), cls)
        assert recipe.__doc__, name
        assert callable(recipe().synthesize)
