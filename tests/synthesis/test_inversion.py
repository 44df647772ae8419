"""Inversion: a loss that falls, bytes that repeat, and a job that can be stopped."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfqlab.errors import ConfigurationError, SynthesisError, TeacherError
from dfqlab.images import Batch, SyntheticSet
from dfqlab.objective import Objective, PreparedTerm, Weighted
from dfqlab.progress import Cancelled, OnStep, Step, ignore
from dfqlab.statistics import ObservedTeacher, Per, TeacherOutputs
from dfqlab.synthesis import plan as planning
from dfqlab.synthesis.checkpointing import Checkpoint
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import Labels, invert
from dfqlab.synthesis.mixing import DataMixing
from dfqlab.synthesis.plan import Execution, Plan, generator_for, plan_for
from dfqlab.synthesis.schedules import Cosine, Plateau, Schedule
from dfqlab.synthesis.terms import Alignment
from dfqlab.synthesis.zoo import Zoo
from dfqlab.teachers import Teacher


def make(seed: int = 0, **changes: Any) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    classes = changes.get("classes", 3)
    module = nn.Sequential(
        nn.Conv2d(changes.get("size", (1,))[0], 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes if isinstance(classes, int) else len(classes)),
    )
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    module[1].running_mean.normal_(generator=generator)  # type: ignore[union-attr, operator]
    module[1].running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr, operator]
    arguments = {"size": (1, 6, 6), "mean": (0.4,), "std": (0.3,), "classes": 3, **changes}
    return Teacher.from_module(module, **arguments)  # type: ignore[arg-type]


def run(
    *teachers: Teacher,
    count: int = 4,
    steps: int = 5,
    seed: int = 0,
    on_step: OnStep = ignore,
    objective: Objective | None = None,
    learning_rate: float = 0.5,
    schedule: Schedule | None = None,
    labels: Labels = None,
    checkpoint: Checkpoint | None = None,
    **how: Any,
) -> SyntheticSet:
    return invert(
        teachers or (make(),),
        objective or Objective(alignment=Alignment(per="sample")),
        Descent(steps, learning_rate, schedule or Plateau(), **how),
        recipe="mine",
        settings={"steps": steps},
        count=count,
        seed=seed,
        labels=labels,
        checkpoint=checkpoint,
        on_step=on_step,
    )


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_SIZE", 4)


def test_the_loss_falls_far() -> None:
    losses: list[float] = []
    run(steps=60, learning_rate=0.1, on_step=lambda step: losses.append(step.values["loss"]))
    assert losses[-1] < losses[0] / 5


def test_images_match_what_the_teacher_remembers_better_than_the_noise_they_came_from() -> None:
    teacher, objective = make(), Objective(alignment=Alignment(per="sample"))

    def judge(images: Tensor) -> float:
        outputs = ObservedTeacher(teacher, "sample")(images)
        return float(objective.total(objective.prepare(teacher, seed=0)(Batch(images), outputs)))

    noise = teacher.input.denormalize(torch.randn(4, 1, 6, 6, generator=generator_for(0, 0)))
    assert judge(run(steps=60, learning_rate=0.1).images) < judge(noise) / 5


def test_one_seed_gives_the_same_bytes_and_another_gives_others() -> None:
    first = run(seed=3).images
    torch.manual_seed(99)
    assert torch.equal(run(seed=3).images, first)
    for k in range(4):
        assert not torch.equal(run(seed=4).images[k], first[k])


def test_nothing_but_the_seed_is_drawn_from() -> None:
    teacher = make()
    before = torch.get_rng_state()
    run(teacher)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("small_batches")
def test_a_batch_does_not_depend_on_those_before_it() -> None:
    short, long = run(count=8), run(count=11)
    assert len(long) == 11
    assert torch.equal(long.images[:8], short.images)
    assert not torch.equal(long.images[:4], long.images[4:8])


@pytest.mark.usefixtures("small_batches")
def test_each_batch_starts_over_with_its_learning_rate_and_its_moments() -> None:
    values: dict[int, float] = {}
    run(count=8, steps=3, on_step=lambda step: values.update({step.index: step.values["loss"]}))
    teacher = make()
    noise = teacher.input.denormalize(torch.randn(4, 1, 6, 6, generator=generator_for(0, 1)))
    outputs = ObservedTeacher(teacher, "sample")(noise)
    start = Alignment(per="sample").prepare(teacher, seed=0)(Batch(noise), outputs)
    assert values[4] == pytest.approx(float(start), rel=1e-6)


def test_a_step_is_one_of_adam_in_normalised_space() -> None:
    teacher = make()
    x = torch.randn(4, 1, 6, 6, generator=generator_for(0, 0)).requires_grad_()
    images = teacher.input.denormalize(x)
    Alignment(per="sample").prepare(teacher, seed=0)(
        Batch(images), ObservedTeacher(teacher, "sample")(images)
    ).backward()
    assert x.grad is not None
    expected = x.detach() - 0.5 * x.grad / (x.grad.abs() + 1e-8)  # Adam's first step, bias corrected
    found = teacher.input.normalize(run(steps=1).images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_rate_falls_on_a_plateau_down_to_the_smallest() -> None:
    class Flat:
        per: Per = "batch"

        def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
            return lambda batch, outputs: batch.images.mean() - batch.images.mean().detach() + 1

    def moved(steps: int) -> float:
        flat = Objective(flat=Flat())
        start = run(steps=steps, objective=flat, schedule=Plateau(patience=2, smallest=0.01)).images
        end = run(steps=steps + 1, objective=flat, schedule=Plateau(patience=2, smallest=0.01)).images
        return float((end - start).abs().max()) / 0.3  # Adam moves each pixel by its rate, in normalised space

    assert moved(1) == pytest.approx(0.5, rel=1e-3)
    assert moved(5) == pytest.approx(0.05, rel=1e-3)  # the loss stood still for more than two steps
    assert moved(30) == pytest.approx(0.01, rel=1e-2)


def test_two_teachers_are_averaged_and_each_normalises_for_itself() -> None:
    one, other = make(0), make(1, mean=(0.6,), std=(0.2,))
    noise = one.input.denormalize(torch.randn(4, 1, 6, 6, generator=generator_for(0, 0)))
    terms = []
    for teacher in (one, other):
        outputs = ObservedTeacher(teacher, "sample")(noise)
        terms.append(float(Alignment(per="sample").prepare(teacher, seed=0)(Batch(noise), outputs)))
    values: list[float] = []
    made = run(one, other, steps=1, on_step=lambda step: values.extend(step.values.values()))
    assert values == pytest.approx([sum(terms) / 2] * 2, rel=1e-5)
    assert terms[0] != pytest.approx(terms[1], rel=0.01)
    assert made.teachers == (one.fingerprint, other.fingerprint)


def test_a_teacher_twice_is_that_teacher() -> None:
    torch.testing.assert_close(run(make(), make()).images, run(make()).images)


def test_a_teacher_of_another_size_sees_the_images_resized() -> None:
    one, other = make(0), make(1, size=(1, 9, 12))
    noise = one.input.denormalize(torch.randn(4, 1, 6, 6, generator=generator_for(0, 0)))
    larger = F.interpolate(noise, (9, 12), mode="bilinear", align_corners=False, antialias=True)
    terms = []
    for teacher, images in ((one, noise), (other, larger)):
        outputs = ObservedTeacher(teacher, "sample")(images)
        terms.append(float(Alignment(per="sample").prepare(teacher, seed=0)(Batch(images), outputs)))
    values: list[float] = []
    made = run(one, other, steps=1, on_step=lambda step: values.append(step.values["loss"]))
    assert values == pytest.approx([sum(terms) / 2], rel=1e-5)
    assert made.images.shape == (4, 1, 6, 6)


class Spy:
    """Keeps what it is shown."""

    per: Per = "batch"

    def __init__(self) -> None:
        self.seen: list[tuple[str, Batch]] = []

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        def term(batch: Batch, outputs: TeacherOutputs) -> Tensor:
            self.seen.append((teacher.name, Batch(batch.images.detach().clone(), batch.labels)))
            return batch.images.square().mean() + outputs.logits.square().mean()

        return term


@pytest.mark.usefixtures("small_batches")
def test_each_batch_is_made_from_teachers_of_its_own_drawing() -> None:
    spy, zoo = Spy(), [make(k, name=str(k)) for k in range(4)]
    run(*zoo, count=40, steps=2, objective=Objective(spy=spy), teachers_per_batch=2)
    by_batch = [{name for name, _ in spy.seen[4 * k : 4 * k + 4]} for k in range(10)]
    assert all(len(names) == 2 for names in by_batch)  # the same two at both steps
    assert set.union(*by_batch) == {"0", "1", "2", "3"}
    assert len(set(map(frozenset, by_batch))) > 2


@pytest.mark.parametrize("wanted", [0, 3])
def test_more_teachers_than_there_are_cannot_be_drawn(wanted: int) -> None:
    with pytest.raises(ConfigurationError, match=f"teachers_per_batch={wanted}: the zoo has 2"):
        run(make(0), make(1), teachers_per_batch=wanted)


def test_teachers_see_mixed_images_and_labels_and_priors_those_that_are_mixed() -> None:
    class Prior:
        seen: list[Tensor] = []  # noqa: RUF012

        def of_images(self, x: Tensor) -> Tensor:
            self.seen.append(x.detach().clone())
            return x.square().mean()

    spy, prior = Spy(), Prior()
    made = run(steps=3, objective=Objective(spy=spy, prior=prior), labels="balanced", mixing=DataMixing())
    for (_, batch), x in zip(spy.seen, prior.seen, strict=True):
        pixels = make().input.denormalize(x)
        mixed = (batch.images - pixels).abs().flatten(1).amax(1) > 1e-6
        assert batch.labels is not None
        assert batch.labels.shape == (4, 3)
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(4))
        assert bool((batch.labels.max(1).values[~mixed] == 1).all())
    shown = [batch.images for _, batch in spy.seen]
    assert not all(torch.allclose(a, make().input.denormalize(x)) for a, x in zip(shown, prior.seen, strict=True))
    assert made.labels is not None
    assert made.labels.tolist() == [0, 1, 2, 0]


def test_the_first_steps_are_coarse_and_then_adam_starts_over() -> None:
    spy = Spy()
    values: list[float] = []
    run(
        steps=5, coarse_steps=2, objective=Objective(spy=spy), schedule=Cosine(), learning_rate=0.3,
        on_step=lambda step: values.append(step.values["loss"]),
    )  # fmt: skip
    assert [tuple(batch.images.shape[2:]) for _, batch in spy.seen] == [(3, 3)] * 2 + [(6, 6)] * 3
    seen: list[Tensor] = []
    run(
        steps=5, coarse_steps=2, objective=Objective(spy=Spy()), schedule=Cosine(), learning_rate=0.3,
        on_step=lambda step: seen.append(step.images() if step.images else torch.zeros(())),
    )  # fmt: skip
    moved = (make().input.normalize(seen[2]) - make().input.normalize(seen[1])).abs().max()
    assert float(moved) == pytest.approx(0.3, rel=1e-3)  # the full rate again, Adam's first step


@pytest.mark.parametrize("clip", ["never", "each step", "at the end"])
def test_images_are_clipped_to_valid_pixels_when_it_is_said(clip: str) -> None:
    ranges: list[tuple[float, float]] = []

    def watch(step: Step) -> None:
        assert step.images is not None
        ranges.append((float(step.images().min()), float(step.images().max())))

    made = run(steps=4, clip=clip, on_step=watch).images
    valid = [low >= -1e-6 and high <= 1 + 1e-6 for low, high in ranges]
    assert valid == {"never": [False] * 4, "each step": [True] * 4, "at the end": [False] * 3 + [True]}[clip]
    assert bool(((made >= -1e-6) & (made <= 1 + 1e-6)).all()) == (clip != "never")


@pytest.mark.usefixtures("small_batches")
def test_labels_are_balanced_over_the_set() -> None:
    made = run(count=10, steps=1, labels="balanced")
    assert made.labels is not None
    assert made.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


@pytest.mark.usefixtures("small_batches")
def test_labels_that_are_given_are_those_that_terms_see() -> None:
    spy, given = Spy(), torch.tensor([2, 0, 1, 1, 2, 2])
    made = run(count=6, steps=1, objective=Objective(spy=spy), labels=given)
    assert made.labels is not None
    assert torch.equal(made.labels, given)
    first, second = (batch.labels for _, batch in spy.seen)
    assert first is not None
    assert second is not None
    assert first.tolist() == [2, 0, 1, 1]
    assert second.tolist()[:2] == [2, 2]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 1, 2, 3]), "labels 0 to 3: the teachers know classes 0 to 2"),
        (torch.tensor([0, 1, -1, 2]), "labels -1 to 2"),
        (torch.tensor([0, 1]), "expected 4 class indices"),
        (torch.rand(4), "expected 4 class indices"),
        ("even", "labels='even'"),
    ],
)
@pytest.mark.traces  # some of these a shape check would catch before we answer
def test_labels_that_do_not_fit_are_refused(labels: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(labels=labels)


class Poison:
    """A term that is fine for some steps."""

    per: Per = "batch"

    def __init__(self, healthy: int, value: float) -> None:
        self.left, self.value = healthy, value

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        def term(batch: Batch, outputs: TeacherOutputs) -> Tensor:
            self.left -= 1
            return batch.images.square().mean() * (self.value if self.left < 0 else 1.0)

        return term


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_names_its_term_and_keeps_the_images_before_it(value: float) -> None:
    seen: list[Tensor] = []

    def healthy(left: int) -> Objective:
        return Objective(good=Alignment(), bad=Poison(left, value))

    def watch(step: Step) -> None:
        assert step.images is not None
        seen.append(step.images())

    with pytest.raises(SynthesisError, match=rf"step 3 of batch 2: .* {value}, through term 'bad'; 8 images") as error:
        run(count=12, steps=4, objective=healthy(6), on_step=watch)
    kept = error.value.images
    assert isinstance(kept, SyntheticSet)
    assert kept.partial
    assert torch.equal(kept.images[:4], seen[3])
    assert torch.equal(kept.images[4:], seen[4])  # those whose loss was a number


@pytest.mark.parametrize("index", [2, 4])
def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_images(index: int) -> None:
    class Kink:
        """Its value is 0, the gradient of its root is infinite, and infinity times zero is no number."""

        per: Per = "batch"

        def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
            calls = iter(range(1, 100))
            return lambda batch, outputs: (
                (0 * batch.images if next(calls) == index else batch.images.exp()).sqrt().mean()
            )

    seen: list[Tensor] = []
    with pytest.raises(SynthesisError, match=f"step {index} of batch 1: the images became NaN") as error:
        run(steps=4, objective=Objective(kink=Kink()), on_step=lambda step: seen.append(step.images()))  # type: ignore[misc]
    kept = error.value.images
    assert isinstance(kept, SyntheticSet)
    assert torch.isfinite(kept.images).all()
    assert torch.equal(kept.images, seen[-1])


def test_each_teacher_is_compiled_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts compilations by code object and silently stops compiling after eight."""
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    plan = Plan(4, "cpu", torch.__version__, (Execution("float32", compiled=True),) * 5)
    for _ in range(2):
        Zoo([make(k) for k in range(5)], Objective(alignment=Alignment()), plan, seed=0)
    assert len({id(function.__code__) for function in compiled}) == 10


def test_a_network_that_cannot_run_in_bfloat16_runs_in_float32() -> None:
    class Normalises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.4))
            self.scale = nn.Parameter(torch.ones(1))
            self.body = make().module

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.body((x - self.mean) * self.scale)
            return logits

    own = Teacher.from_module(Normalises(), size=(1, 6, 6), mean=(0.4,), std=(0.3,), classes=3)
    assert planning._runs_in_bfloat16(make())
    assert not planning._runs_in_bfloat16(own)


def test_bfloat16_leaves_batch_norms_numbers_in_float32_and_changes_the_rest_little() -> None:
    teacher = make()
    images = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    half, full = ObservedTeacher(teacher, dtype=torch.bfloat16), ObservedTeacher(teacher)
    assert half.rewritten is not None
    assert {b.dtype for name, b in half.rewritten.named_buffers() if name.startswith("affine")} == {torch.float32}
    used = {name: p.dtype for name, p in half.rewritten.named_parameters() if not name.startswith("1.")}
    assert set(used.values()) == {torch.bfloat16}
    found, expected = half(images), full(images)
    assert (found.logits.dtype, found.statistics.mean.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0.05, atol=0.05)
    torch.testing.assert_close(found.statistics.mean, expected.statistics.mean, rtol=0.05, atol=0.02)


def test_the_time_left_is_told_after_the_first_steps_and_ends_at_nothing() -> None:
    left: list[float | None] = []
    run(steps=10, on_step=lambda step: left.append(step.seconds_left))
    assert left[:3] == [None] * 3
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in left[3:])
    assert left[-1] == 0


@pytest.mark.parametrize(
    ("how", "said"),
    [({"coarse_steps": 5}, "coarse_steps=5: expected fewer than the 5 steps"), ({"clip": "always"}, "clip='always'")],
)
@pytest.mark.traces
def test_a_descent_that_makes_no_sense_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(**how)


@pytest.mark.usefixtures("small_batches")
def test_every_step_is_told_with_the_loss_and_each_term() -> None:
    steps: list[Step] = []
    objective = Objective(
        statistics=Alignment(match_input=False), input=Weighted(0.5, Alignment(per="sample", match_input=True))
    )
    run(count=6, steps=3, on_step=steps.append, objective=objective)
    assert [step.index for step in steps] == [1, 2, 3, 4, 5, 6]
    assert {(step.job, step.total) for step in steps} == {("synthesize", 6)}
    for step in steps:
        assert list(step.values) == ["loss", "statistics", "input"]
        assert all(isinstance(value, float) for value in step.values.values())
        assert step.values["loss"] == pytest.approx(step.values["statistics"] + 0.5 * step.values["input"], rel=1e-5)


def test_a_watcher_gets_a_copy_of_the_images_as_they_are() -> None:
    seen: list[Tensor] = []

    def watch(step: Step) -> None:
        assert step.images is not None
        seen.append(step.images())
        step.images().fill_(9)

    made = run(steps=3, on_step=watch)
    assert torch.equal(seen[-1], made.images)
    assert not torch.equal(seen[0], seen[1])
    assert not made.images.requires_grad
    assert torch.equal(made.images, run(steps=3).images)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("stop_at", "kept"), [(1, 4), (3, 4), (7, 8), (9, 10)])
def test_a_cancelled_job_keeps_what_it_has_and_calls_it_partial(stop_at: int, kept: int) -> None:
    def stop(step: Step) -> None:
        if step.index == stop_at:
            raise Cancelled

    made, whole = run(count=10, steps=4, on_step=stop), run(count=10, steps=4)
    assert made.partial
    assert len(made) == kept
    done = (stop_at - 1) // 4 * 4
    assert torch.equal(made.images[:done], whole.images[:done])
    assert not whole.partial


def test_a_job_cancelled_at_its_very_last_step_is_whole() -> None:
    def stop(step: Step) -> None:
        if step.index == step.total:
            raise Cancelled

    made = run(on_step=stop)
    assert not made.partial
    assert torch.equal(made.images, run().images)


def test_any_other_error_of_a_watcher_is_not_swallowed() -> None:
    def fail(step: Step) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(on_step=fail)


def test_the_set_says_where_it_comes_from() -> None:
    teacher = make()
    made = run(teacher, count=3, seed=5)
    assert made.images.shape == (3, 1, 6, 6)
    assert made.images.dtype == torch.float32
    assert (made.recipe, made.seed, made.settings, made.partial) == ("mine", 5, {"steps": 5}, False)
    assert made.teachers == (teacher.fingerprint,)
    assert made.plan == plan_for([teacher], steps=5, count=3).as_dict()
    assert made.labels is None


def test_the_teacher_stays_as_it_is() -> None:
    teacher = make()
    before = copy.deepcopy(teacher.module.state_dict())
    run(teacher)
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.module.state_dict().items())
    assert all(p.grad is None for p in teacher.module.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 0}, "count=0: expected an integer of at least 1"),
        ({"count": -3}, "count=-3"),
        ({"steps": 0}, "steps=0"),
        ({"count": 2.5}, r"count=2\.5"),
    ],
)
@pytest.mark.traces  # some of these a shape check would catch before we answer
def test_a_job_of_nothing_is_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run(**changes)  # type: ignore[arg-type]


def test_teachers_that_do_not_fit_are_refused() -> None:
    plain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    without = Teacher.from_module(plain, size=(1, 6, 6), mean=(0.4,), std=(0.3,), classes=1)
    with pytest.raises(TeacherError, match="no BatchNorm layer"):
        run(without)
    how = Descent(1, 0.1, Plateau())
    with pytest.raises(TeacherError, match="no teacher"):
        invert([], Objective(a=Alignment()), how, count=1, seed=0, recipe="", settings={})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"classes": 4}, r"'one' knows 3 classes \(0, 1, 2, ...\) and 'other' 4"),
        ({"classes": ("cat", "dog", "cow")}, ""),
        ({"size": (2, 6, 6), "mean": (0.4, 0.4), "std": (0.3, 0.3)}, "'one' takes 1 colours and 'other' 2"),
    ],
)
def test_a_zoo_agrees_on_classes_and_colours(other: dict[str, Any], said: str) -> None:
    zoo = make(name="one"), make(name="other", **other)
    if not said:  # numbers are nobody's names
        assert len(run(*zoo, steps=1)) == 4
        with pytest.raises(TeacherError, match=r"\(cat, dog, cow, ...\) and 'third' 3 \(cow, dog, cat, ...\)"):
            run(zoo[1], make(name="third", classes=("cow", "dog", "cat")))
        return
    with pytest.raises(TeacherError, match=said):
        run(*zoo)


def test_a_seed_and_a_batch_have_one_stream_of_their_own() -> None:
    drawn = {(seed, k): torch.randn(8, generator=generator_for(seed, k)) for seed in (0, 1, 11, -1) for k in (0, 1, 11)}
    for one, a in drawn.items():
        assert all(one == other or not torch.equal(a, b) for other, b in drawn.items())
    assert torch.equal(torch.randn(8, generator=generator_for(1, 11)), drawn[1, 11])


def test_terms_see_the_outputs_of_their_own_teacher() -> None:
    class Spy:
        per: Per = "batch"
        seen: list[tuple[str, int]] = []  # noqa: RUF012

        def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
            def term(batch: Batch, outputs: TeacherOutputs) -> Tensor:
                self.seen.append((teacher.name, int(torch.allclose(outputs.logits, teacher(batch.images), atol=1e-5))))
                return batch.images.square().mean()

            return term

    run(make(0, name="a"), make(1, name="b"), steps=1, objective=Objective(spy=Spy()))
    assert Spy.seen == [("a", 1), ("b", 1)]


_COMPILED_AGAINST_EAGER = """
import dfqlab, torch
from dfqlab.synthesis import plan

plan._faster_in_bfloat16 = lambda teacher: False

def images(worth_compiling, steps):
    plan._WORTH_COMPILING = worth_compiling
    return dfqlab.synthesize(dfqlab.load_teacher("digits/vgg"), "zeroq", count=4, seed=0, steps=steps)

eager, compiled = images(float("inf"), 20), images(0.0, 20)
assert [made.plan["networks"][0]["compiled"] for made in (eager, compiled)] == [False, True]
torch.testing.assert_close(compiled.images, eager.images, rtol=0.02, atol=0.02)
assert (compiled.images - images(float("inf"), 1).images).abs().max() > 0.5  # it moved
"""


def test_a_compiled_job_takes_the_steps_of_one_that_is_not() -> None:
    if missing := planning.missing_for_compile():
        pytest.skip(f"nothing to compile with: {missing}")
    # In a process of its own: torch.compile cannot follow functions whose shapes are checked.
    done = subprocess.run([sys.executable, "-c", _COMPILED_AGAINST_EAGER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
