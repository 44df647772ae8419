"""What holds for every recipe, and what one is made of another's parts."""

from collections.abc import Callable
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqlab.errors import ConfigurationError, DataError, TeacherError
from dfqlab.images import SyntheticSet, as_source
from dfqlab.objective import Objective
from dfqlab.progress import Cancelled, Step
from dfqlab.recipes import synthesize
from dfqlab.recipes.deepinversion import DeepInversion
from dfqlab.recipes.dsg import DSG
from dfqlab.recipes.knowledge_within import KnowledgeWithin
from dfqlab.recipes.mixmix import MixMix
from dfqlab.recipes.names import RECIPES
from dfqlab.recipes.zeroq import ZeroQ
from dfqlab.synthesis import plan as planning
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import invert
from dfqlab.synthesis.mixing import DataMixing
from dfqlab.synthesis.plan import plan_for
from dfqlab.synthesis.schedules import Plateau
from dfqlab.synthesis.terms import SlackAlignment
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]
CLASSES: dict[str, type[Any]] = {
    "zeroq": ZeroQ,
    "knowledge_within": KnowledgeWithin,
    "deepinversion": DeepInversion,
    "mixmix": MixMix,
    "dsg": DSG,
}
LABELLED = ("knowledge_within", "deepinversion", "mixmix")
UNLABELLED = ("zeroq", "dsg")
CLIPPING = ("mixmix",)
each_recipe = pytest.mark.parametrize("recipe", CLASSES)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_SIZE", 4)


def quick(teachers: Any, recipe: str, *, count: int = 6, seed: int = 0, steps: int = 3, **more: Any) -> SyntheticSet:
    return synthesize(teachers, recipe, count=count, seed=seed, steps=steps, **more)


def losses_of(teachers: Any, recipe: str, *, steps: int = 60, **more: Any) -> list[float]:
    losses: list[float] = []
    quick(teachers, recipe, steps=steps, on_step=lambda step: losses.append(step.values["loss"]), **more)
    return losses


def watched(teacher: Teacher, seen: list[tuple[int, ...]]) -> Teacher:
    """A teacher that torch.fx cannot follow, and that notes the size of what it is shown."""

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher.module

        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                seen.append(tuple(x.shape[2:]))
            found: Tensor = self.inner(x)
            return found

    size, classes = teacher.input.size, len(teacher.classes)
    noting = Teacher.from_module(Noting(), size=size, mean=(0.4,), std=(0.3,), classes=classes, leaves=["inner"])
    return noting


# Names


def test_every_name_leads_to_its_recipe_and_all_are_tested_here() -> None:
    for name, (module, cls) in RECIPES.items():
        recipe = getattr(import_module(module), cls)
        assert recipe.__doc__, name
        assert recipe is CLASSES[name]
    assert set(RECIPES) == set(CLASSES) == {*LABELLED, *UNLABELLED}


@pytest.mark.parametrize(
    ("recipe", "said"), [("zeroc", "unknown recipe 'zeroc'; did you mean 'zeroq'?"), ("xyz", "known: .*zeroq")]
)
def test_an_unknown_recipe_gets_the_near_ones(teacher: Teacher, recipe: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        synthesize(teacher, recipe, count=1, seed=0)


@each_recipe
def test_an_unknown_setting_gets_the_near_ones(teacher: Teacher, recipe: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{recipe!r} has no setting 'step'; did you mean 'steps'"):
        synthesize(teacher, recipe, count=1, seed=0, step=3)


@each_recipe
def test_called_by_its_name_it_gives_the_same_images_as_by_its_class(teacher: Teacher, recipe: str) -> None:
    direct = CLASSES[recipe](steps=3, learning_rate=0.2).synthesize([teacher], count=2, seed=1)
    by_name = quick(teacher, recipe, count=2, seed=1, learning_rate=0.2)
    assert torch.equal(by_name.images, direct.images)
    assert not torch.equal(by_name.images, quick(teacher, recipe, count=2, seed=1, learning_rate=0.1).images)


@each_recipe
def test_one_teacher_is_a_zoo_of_one(teacher: Teacher, recipe: str) -> None:
    alone, *zoos = (quick(teachers, recipe).images for teachers in (teacher, [teacher], (teacher,)))
    assert all(torch.equal(zoo, alone) for zoo in zoos)


# The set


@each_recipe
def test_one_seed_gives_the_same_bytes_and_another_gives_others(teacher: Teacher, recipe: str) -> None:
    first = quick(teacher, recipe, seed=3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again, other = quick(teacher, recipe, seed=3), quick(teacher, recipe, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.images, again.images)
    assert all(not torch.equal(other.images[k], first.images[k]) for k in range(6))


@each_recipe
def test_a_set_says_where_it_comes_from(teacher: Teacher, recipe: str) -> None:
    made = quick(teacher, recipe, count=6, seed=5)
    assert (made.recipe, made.seed, made.partial) == (recipe, 5, False)
    assert made.settings == asdict(CLASSES[recipe](steps=3))
    assert set(made.settings) == {field.name for field in fields(CLASSES[recipe])}
    assert made.plan == plan_for([teacher], steps=3, count=6).as_dict()
    assert made.teachers == (teacher.fingerprint,)
    assert (made.images.shape, made.images.dtype) == ((6, 1, 6, 6), torch.float32)


@each_recipe
def test_a_set_that_was_stored_is_the_set_that_was_made(teacher: Teacher, recipe: str, tmp_path: Path) -> None:
    made = quick(teacher, recipe)
    made.save(tmp_path / "images.safetensors")
    found = SyntheticSet.load(tmp_path / "images.safetensors")
    assert torch.equal(found.images, made.images)
    assert found.facts == {**made.facts, "settings": {**made.settings, **_as_lists(made.settings)}}
    assert (found.labels is None) == (made.labels is None)


def _as_lists(settings: Any) -> dict[str, list[Any]]:
    """JSON knows no tuples."""
    return {name: list(value) for name, value in settings.items() if isinstance(value, tuple)}


@each_recipe
def test_the_loss_falls(teacher: Teacher, recipe: str) -> None:
    losses = losses_of(teacher, recipe)
    early, late = sum(losses[:5]) / 5, sum(losses[-5:]) / 5  # MixMix's is another one at every step
    assert late < 0.75 * early


@each_recipe
def test_every_term_of_the_recipe_is_told(teacher: Teacher, recipe: str) -> None:
    told: list[Step] = []
    quick(teacher, recipe, on_step=told.append)
    expected = {
        "zeroq": ["alignment"],
        "dsg": ["alignment"],
        "knowledge_within": ["alignment", "label", "prior"],
        "deepinversion": ["alignment", "label", "total_variation"],
        "mixmix": ["alignment", "label", "total_variation", "l2"],
    }
    assert [list(step.values) for step in told] == [["loss", *expected[recipe]]] * 3


@each_recipe
def test_a_cancelled_recipe_keeps_what_it_has_and_calls_it_partial(teacher: Teacher, recipe: str) -> None:
    def stop(step: Step) -> None:
        if step.index == 2:
            raise Cancelled

    made = quick(teacher, recipe, steps=5, on_step=stop)
    assert made.partial
    assert len(made) == 6
    assert (made.labels is None) == (recipe in UNLABELLED)


@each_recipe
def test_images_stay_in_the_valid_range_where_the_recipe_clips(teacher: Teacher, recipe: str) -> None:
    images = quick(teacher, recipe, steps=12).images
    inside = bool((images >= -1e-6).all() and (images <= 1 + 1e-6).all())
    assert inside == (recipe in CLIPPING)


@pytest.mark.parametrize("recipe", CLIPPING)
@pytest.mark.parametrize(("mean", "std"), [(0.4, 0.3), (0.4914, 0.2023), (0.4465, 0.201)])  # the latter of CIFAR-10
def test_images_of_a_recipe_that_clips_pass_for_valid_pixels_to_the_last_bit(
    make_teacher: MakeTeacher, recipe: str, mean: float, std: float
) -> None:
    teacher = make_teacher(mean=(mean,), std=(std,))
    images = quick(teacher, recipe, learning_rate=3.0).images
    assert int((images < 1e-6).sum()) > 20
    assert int((images > 1 - 1e-6).sum()) > 20
    assert as_source(images, teacher.input) is not None


# Labels


@each_recipe
@pytest.mark.usefixtures("small_batches")
def test_recipes_that_ask_for_a_class_balance_them_over_the_whole_set(teacher: Teacher, recipe: str) -> None:
    labels = quick(teacher, recipe, count=11).labels
    if recipe in UNLABELLED:
        assert labels is None
        return
    assert labels is not None
    assert (labels.dtype, len(labels)) == (torch.int64, 11)
    counted = torch.bincount(labels, minlength=4)
    assert int(counted.max() - counted.min()) <= 1


@each_recipe
def test_labels_that_the_user_gives_are_those_of_the_set_and_of_the_loss(teacher: Teacher, recipe: str) -> None:
    given = torch.tensor([3, 3, 0, 1, 3, 3])
    made = quick(teacher, recipe, labels=given)
    assert made.labels is not None
    assert torch.equal(made.labels, given)
    same = torch.equal(made.images, quick(teacher, recipe).images)
    assert same == (recipe in UNLABELLED)


@pytest.mark.parametrize(
    ("recipe", "still"),
    [("knowledge_within", {}), ("deepinversion", {"jitter": 0}), ("mixmix", {"jitter": 0, "mixing": False})],
)
def test_the_teacher_takes_images_for_what_their_labels_say(
    teacher: Teacher, recipe: str, still: dict[str, Any]
) -> None:
    given = torch.tensor([3, 0, 1, 2, 3, 0])
    made = quick(teacher, recipe, labels=given, steps=40, alignment=0.01, **still)
    assert teacher(made.images).argmax(1).tolist() == given.tolist()


@pytest.mark.parametrize("recipe", ["zeroq", "mixmix"])
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 2, 3, 4, 0], r"labels 0 to 4: the teachers know classes 0 to 3"),
        ([0, -1, 2, 3, 1, 0], r"labels -1 to 3: the teachers know classes 0 to 3"),
        ([0, 1], r"expected 6 class indices, one an image; got labels of \(2,\)"),
        ([[0], [1], [2], [3], [0], [1]], r"expected 6 class indices.*\(6, 1\)"),
        ([0.0, 1.0, 2.0, 3.0, 0.0, 1.0], "expected 6 class indices"),
        ("random", "labels='random': give class indices, or 'balanced'"),
    ],
    ids=str,
)
@pytest.mark.traces  # some of these a shape check would catch before we answer
def test_labels_that_cannot_be_are_refused(teacher: Teacher, recipe: str, labels: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        quick(teacher, recipe, labels=labels if isinstance(labels, str) else torch.tensor(labels))


# What is refused


@each_recipe
@pytest.mark.parametrize(("changes", "said"), [({"count": 0}, "count=0"), ({"steps": 0}, "steps=0")])
def test_a_job_of_nothing_is_refused(teacher: Teacher, recipe: str, changes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        synthesize(teacher, recipe, **{"count": 1, "seed": 0, **changes})


@each_recipe
def test_no_teacher_is_refused(recipe: str) -> None:
    with pytest.raises(TeacherError, match="no teacher"):
        quick([], recipe)


@each_recipe
def test_a_teacher_without_batch_norm_is_refused(make_teacher: MakeTeacher, recipe: str) -> None:
    with pytest.raises(TeacherError, match=r"'mine' has no BatchNorm layer.*2 GroupNorm layers:.*lesson 02"):
        quick(make_teacher(norm="group"), recipe)


@pytest.mark.parametrize("recipe", ["zeroq", "mixmix"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("cat", "dog", "elk", "fox"), ("cat", "dog", "elk", "gnu")),
        (("cat", "dog", "elk", "fox"), ("cat", "dog", "elk")),
        (4, 3),
        (4, ("cat", "dog", "elk")),
    ],
    ids=str,
)
def test_a_zoo_that_disagrees_on_classes_is_refused(
    make_teacher: MakeTeacher, recipe: str, ours: Any, theirs: Any
) -> None:
    zoo = [_with_classes(make_teacher, names, name) for names, name in ((ours, "ours"), (theirs, "theirs"))]
    with pytest.raises(TeacherError, match=r"'ours' knows 4 classes .*'theirs' .*a zoo agrees on classes"):
        quick(zoo, recipe)


def _with_classes(make_teacher: MakeTeacher, names: Any, name: str) -> Teacher:
    if isinstance(names, int):
        return make_teacher(classes=names, name=name)
    module = make_teacher(classes=len(names)).module
    return Teacher.from_module(module, size=(1, 6, 6), mean=(0.4,), std=(0.3,), classes=names, name=name)


def test_classes_that_are_numbers_agree_with_as_many_names(make_teacher: MakeTeacher) -> None:
    zoo = [_with_classes(make_teacher, names, "") for names in (4, ("cat", "dog", "elk", "fox"))]
    assert len(quick(zoo, "mixmix")) == 6


# A zoo


@pytest.mark.parametrize(
    ("first", "other"), [((6, 6), (9, 8)), ((9, 8), (6, 6)), ((6, 6), (12, 12)), ((12, 12), (6, 6))]
)
@pytest.mark.parametrize("recipe", ["zeroq", "mixmix"])
def test_teachers_of_several_sizes_each_see_their_own(
    make_teacher: MakeTeacher, recipe: str, first: tuple[int, int], other: tuple[int, int]
) -> None:
    seen: list[tuple[int, ...]] = []
    zoo = [make_teacher(0, size=(1, *first)), watched(make_teacher(1, size=(1, *other)), seen)]
    made = quick(zoo, recipe)
    assert made.images.shape == (6, 1, *first)
    assert made.teachers == tuple(teacher.fingerprint for teacher in zoo)
    assert set(seen) == {other}


def test_coarse_steps_show_each_teacher_half_its_size_first(make_teacher: MakeTeacher) -> None:
    seen: list[tuple[int, ...]] = []
    zoo = [make_teacher(0), watched(make_teacher(1), seen)]
    quick(zoo, "deepinversion", steps=5, coarse_steps=2)
    assert seen == [(3, 3)] * 2 + [(6, 6)] * 3


@each_recipe
def test_what_a_zoo_says_of_the_first_images_is_the_mean_of_what_its_teachers_say(
    make_teacher: MakeTeacher, recipe: str
) -> None:
    def first(*zoo: Teacher) -> float:
        told: list[Step] = []
        quick(zoo, recipe, steps=1, on_step=told.append)
        return told[0].values["alignment"]

    one, other = make_teacher(0), make_teacher(1)
    assert first(one) != pytest.approx(first(other), rel=0.05)
    assert first(one, other) == pytest.approx((first(one) + first(other)) / 2, rel=1e-5)


@each_recipe
def test_a_zoo_gives_other_images_than_either_of_its_teachers(make_teacher: MakeTeacher, recipe: str) -> None:
    one, other = make_teacher(0), make_teacher(1)
    both, alone, turned = (quick(zoo, recipe).images for zoo in ([one, other], one, [other, one]))
    assert not torch.equal(both, alone)
    torch.testing.assert_close(turned, both, rtol=1e-3, atol=1e-3)  # the mean does not know an order


@pytest.mark.parametrize(("asked", "available", "shown"), [(1, 3, 1), (2, 3, 2), (3, 3, 3), (5, 3, 3), (3, 1, 1)])
@pytest.mark.usefixtures("small_batches")
def test_mixmix_takes_so_many_teachers_a_batch_and_of_a_smaller_zoo_all(
    make_teacher: MakeTeacher, asked: int, available: int, shown: int
) -> None:
    seen: list[list[tuple[int, ...]]] = [[] for _ in range(available)]
    zoo = [watched(make_teacher(k), seen[k]) for k in range(available)]
    asked_of: list[tuple[bool, ...]] = []

    def note(step: Step) -> None:
        asked_of.append(tuple(bool(sizes) for sizes in seen))
        for sizes in seen:
            sizes.clear()

    quick(zoo, "mixmix", count=16, steps=2, teachers_per_batch=asked, on_step=note)
    assert {sum(step) for step in asked_of} == {shown}
    assert asked_of[0::2] == asked_of[1::2]  # drawn once for a batch, not at every step
    assert (len(set(asked_of)) > 1) == (shown < available)


@pytest.mark.parametrize("asked", [0, -1])
def test_mixmix_without_a_teacher_for_a_batch_is_refused(teacher: Teacher, asked: int) -> None:
    with pytest.raises(ConfigurationError, match=f"teachers_per_batch={asked}: the zoo has 1"):
        quick(teacher, "mixmix", teachers_per_batch=asked)


def test_a_descent_that_asks_for_more_teachers_than_there_are_is_refused(teacher: Teacher) -> None:
    how = Descent(2, 0.1, Plateau(), teachers_per_batch=2)
    with pytest.raises(ConfigurationError, match="teachers_per_batch=2: the zoo has 1"):
        invert([teacher], Objective(a=SlackAlignment()), how, recipe="", settings={}, count=2, seed=0)


# Compositions


def test_dsg_without_its_three_parts_is_zeroq_to_the_byte(teacher: Teacher) -> None:
    bare = quick(teacher, "dsg", steps=20, slack=False, emphasis=False, correlation=0.0)
    assert torch.equal(bare.images, quick(teacher, "zeroq", steps=20).images)


@pytest.mark.parametrize("part", [{"slack": True}, {"emphasis": True}, {"correlation": 0.5}], ids=str)
def test_each_part_of_dsg_changes_the_images(teacher: Teacher, part: dict[str, Any]) -> None:
    bare = {"slack": False, "emphasis": False, "correlation": 0.0}
    one, none = (quick(teacher, "dsg", **settings).images for settings in (bare | part, bare))
    assert not torch.equal(one, none)


def test_a_correlation_needs_two_images(teacher: Teacher) -> None:
    with pytest.raises(DataError, match="at least two samples"):
        quick(teacher, "dsg", count=1, correlation=0.5)


def test_mixmix_without_mixing_gives_other_images(teacher: Teacher) -> None:
    assert not torch.equal(quick(teacher, "mixmix").images, quick(teacher, "mixmix", mixing=False).images)


def test_mixmix_moves_its_weights_where_asked(teacher: Teacher) -> None:
    fixed, learned = (quick(teacher, "mixmix", steps=10, learned_weights=learn).images for learn in (False, True))
    assert not torch.equal(fixed, learned)


def test_dsgs_slack_on_mixmixs_mixed_images_takes_three_lines_and_trains(make_teacher: MakeTeacher) -> None:
    objective = Objective(alignment=SlackAlignment(0.9))
    descent = Descent(50, 0.1, Plateau(), mixing=DataMixing(), teachers_per_batch=2)
    losses: list[float] = []
    zoo = [make_teacher(k) for k in range(3)]
    made = invert(
        zoo, objective, descent, recipe="mine", settings={}, count=6, seed=0,
        on_step=lambda step: losses.append(step.values["alignment"]),
    )  # fmt: skip
    assert len(made) == 6
    assert sum(losses[-10:]) < sum(losses[:10]) / 2
