"""An inversion while one watches: what it minimises, what is seen of it, and what is left when it is stopped."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from torch import Tensor, nn

import dfqlab.lab.widgets.inversion as widget
from dfqlab.errors import ConfigurationError
from dfqlab.images import Batch, StoredImages, SyntheticSet
from dfqlab.lab.job import Job
from dfqlab.lab.panels import Experiment
from dfqlab.measures import recognition
from dfqlab.progress import Cancelled, Step
from dfqlab.statistics import ObservedTeacher
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import invert
from dfqlab.synthesis.terms import Alignment, BlurPrior, CrossEntropy, TotalVariation
from dfqlab.teachers import Teacher

COUNT, STEPS, SOON = 6, 12, 60.0
EVERYTHING = {"alignment": 0.3, "label": 3.0, "variation": 0.01, "blur": 0.1}


def network(seed: int, classes: int = 4) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.7, generator=generator)
    teacher = Teacher.from_module(module, size=(1, 8, 8), mean=[0.4], std=[0.3], classes=classes)
    return replace(teacher, name=f"network {seed}")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return network(0)


@pytest.fixture(scope="module")
def experiment(teacher: Teacher) -> Experiment:
    return widget.live_inversion(teacher, network(1), count=COUNT, steps=STEPS)


@pytest.fixture(scope="module")
def steps(experiment: Experiment) -> list[Step]:
    return experiment.steps(**EVERYTHING)


def images_of(step: Step) -> Tensor:
    assert step.images is not None
    return step.images()


def test_every_step_keeps_the_images_as_they_were_then(steps: list[Step]) -> None:
    assert [step.index for step in steps] == list(range(1, STEPS + 1))
    kept = [images_of(step) for step in steps]
    assert {tuple(images.shape) for images in kept} == {(COUNT, 1, 8, 8)}
    for before, after in itertools.pairwise(kept):
        assert not torch.equal(before, after)
    assert all(images.min() >= -1e-6 and images.max() <= 1 + 1e-6 for images in kept), "clipped at each step"


def test_each_term_counts_with_its_weight_and_they_add_up_to_the_loss(teacher: Teacher, steps: list[Step]) -> None:
    for step in steps:
        parts = [step.values[name] for name in EVERYTHING]
        assert step.values["loss"] == pytest.approx(sum(parts), rel=1e-4)
    before, values = images_of(steps[4]), steps[5].values  # a step tells the loss before it
    labels = torch.arange(COUNT) % 4
    with torch.no_grad():
        outputs = ObservedTeacher(teacher)(before)
        x = teacher.input.normalize(before)
        alignment = Alignment().prepare(teacher, seed=0)(Batch(before, labels), outputs)
        label = CrossEntropy().prepare(teacher, seed=0)(Batch(before, labels), outputs)
    assert values["alignment"] == pytest.approx(0.3 * float(alignment), rel=1e-3)
    assert values["label"] == pytest.approx(3.0 * float(label), rel=1e-3)
    assert values["variation"] == pytest.approx(0.01 * float(TotalVariation().of_images(x)), rel=1e-3)
    assert values["blur"] == pytest.approx(0.1 * float(BlurPrior().of_images(x)), rel=1e-3)


def test_the_loss_falls(steps: list[Step]) -> None:
    assert steps[-1].values["loss"] < steps[0].values["loss"]


def test_a_weight_of_zero_leaves_its_term_out(experiment: Experiment) -> None:
    (last,) = experiment.steps(alignment=0.0, label=1.0, variation=0.1)[-1:]
    assert set(last.values) == {"loss", "label", "variation"}
    assert "alignment" not in experiment.draw([last]).sentence


def test_a_step_says_its_loss_and_how_long_the_rest_takes(steps: list[Step]) -> None:
    assert re.fullmatch(r"loss [\d.e+-]+", steps[0].note), "nobody can tell yet"
    assert re.fullmatch(r"loss [\d.e+-]+, \d+ s left", steps[-2].note)


def test_the_picture_grows_with_the_steps(teacher: Teacher, experiment: Experiment, steps: list[Step]) -> None:
    pictures = [experiment.draw(steps[:done]) for done in (0, 1, 5, STEPS)]
    assert len({picture.html for picture in pictures}) == len(pictures)
    assert len({tuple(picture.figure.get_size_inches()) for picture in pictures}) == 1, "it does not jump"
    assert pictures[0].sentence == "Nothing inverted yet."
    labels = torch.arange(COUNT) % 4
    for done, picture in zip((1, 5, STEPS), pictures[1:], strict=True):
        shares = recognition([teacher, network(1)], StoredImages(images_of(steps[done - 1]), labels)).accuracy
        own, other = (round(COUNT * share) for share in shares.values())
        begin = f"Step {done} of {STEPS}: of {COUNT} images network 0 takes {own} for their label, network 1 {other}; "
        assert picture.sentence.startswith(begin)
        assert f"the loss of {steps[done - 1].values['loss']:.3g} is" in picture.sentence


def test_the_strip_holds_the_first_the_last_and_no_more_than_it_has_places(
    experiment: Experiment, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[int]] = []
    draw = widget.inversion_progress

    def watched(snapshots, *args, **options):
        shown.append([step for step, _ in snapshots])
        return draw(snapshots, *args, **options)

    monkeypatch.setattr(widget, "inversion_progress", watched)
    for done in range(1, STEPS + 1):
        experiment.draw(steps[:done])
    for done, strip in enumerate(shown, 1):
        assert (strip[0], strip[-1]) == (1, done)
        assert strip == sorted(set(strip))
        assert len(strip) <= 7


def positions(experiment: Experiment) -> Iterator[tuple[str, object]]:
    for name, control in experiment.controls.items():
        for position in (control.positions[0], control.positions[-1]):
            yield name, position


def test_the_controls_are_seen_in_what_is_run(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, Descent]] = []

    def watched(teachers, objective, descent, **request):
        asked.append((objective, descent))
        return invert(teachers, objective, replace(descent, steps=2), **request)

    monkeypatch.setattr(widget, "invert", watched)
    monkeypatch.setattr(widget, "inversion_progress", lambda *args, **options: Figure(figsize=(0.2, 0.2)))
    view = experiment.view()
    for name, position in positions(experiment):
        before = view.controls[name].value
        view.controls[name].value = position
        view.run.click()
        assert view.job is not None
        assert view.job.join(SOON)
        assert view.error is None
        objective, descent = asked[-1]
        if name in EVERYTHING:
            assert objective.weights.get(name, 0.0) == position
        else:
            seen = {
                "jitter": descent.augmentation.jitter,
                "statistics": objective.terms["alignment"].per,
                "rate": descent.learning_rate,
            }
            assert seen[name] == position
        view.controls[name].value = before


def test_it_runs_and_shows_where_it_is(experiment: Experiment) -> None:
    view = experiment.view()
    empty = view.page.value
    view.run.click()
    assert view.job is not None
    assert view.job.join(SOON)
    assert view.error is None
    assert view.job.sentence == f"done: {STEPS} of {STEPS} steps"
    assert view.progress.value == view.progress.max == STEPS
    assert view.page.value != empty
    assert f"Step {STEPS} of {STEPS}" in view.page.value


def test_cancelled_it_keeps_the_images_and_shows_them(experiment: Experiment) -> None:
    steps: list[Step] = []
    jobs: list[Job[SyntheticSet]] = []
    job = Job(
        lambda on_step: experiment.work({}, steps)(
            lambda step: (jobs[0].cancel() if step.index == 4 else None, on_step(step))
        )
    )
    jobs.append(job)
    kept = job.start().result(SOON)
    assert job.sentence == f"cancelled at step 4 of {STEPS}"
    assert kept.partial
    assert torch.equal(kept.images, images_of(steps[-1]))
    assert experiment.draw(steps).sentence.startswith(f"Step 4 of {STEPS}")


def test_cancelled_from_the_widget_it_shows_how_far_it_came(teacher: Teacher) -> None:
    view = widget.live_inversion(teacher, network(1), count=COUNT, steps=5000).view()
    view.run.click()
    assert view.job is not None
    while view.job.step is None:
        view.job.join(0.001)
    view.cancel.click()
    assert view.job.join(SOON)
    assert re.search(r"cancelled at step (\d+) of 5000", view.status.value)
    assert "of 5000: of 6 images" in view.page.value
    assert (view.run.disabled, view.cancel.disabled) == (False, True)


def test_an_inversion_of_nothing_says_so(experiment: Experiment) -> None:
    view = experiment.view()
    for name in EVERYTHING:
        view.controls[name].value = 0.0
    view.run.click()
    assert view.job is not None
    view.job.join(SOON)
    assert isinstance(view.error, ConfigurationError)
    assert "every term has weight 0" in view.page.value
    assert 'role="alert"' in view.page.value


def test_its_static_twin_is_the_finished_run(experiment: Experiment, steps: list[Step]) -> None:
    InteractiveShell.instance()
    with capture_output() as captured:
        experiment.picture(**EVERYTHING)
    (output,) = captured.outputs
    assert "image/png" in output.data
    assert captured.stdout.strip() == experiment.draw(steps).sentence


def test_fewer_images_than_are_shown_are_refused(teacher: Teacher) -> None:
    with pytest.raises(ConfigurationError, match="count=2: 3 images are shown"):
        widget.live_inversion(teacher, network(1), count=2)


def test_networks_that_cannot_agree_are_refused(teacher: Teacher) -> None:
    with pytest.raises(ConfigurationError, match="knows 4 classes and 'network 1' 5"):
        widget.live_inversion(teacher, network(1, classes=5))


def test_a_cancel_between_steps_is_heard_at_the_next(experiment: Experiment) -> None:
    seen: list[int] = []

    def stop(step: Step) -> None:
        seen.append(step.index)
        if step.index == 3:
            raise Cancelled

    kept = experiment.work({}, [])(stop)
    assert seen == [1, 2, 3]
    assert kept.partial
