"""Slack, emphasis and correlation while one watches: what is minimised, and what the sentence says of the images."""

from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import dfqlab.lab.widgets.diversity as widget
from dfqlab.errors import ConfigurationError
from dfqlab.lab.panels import Experiment
from dfqlab.progress import Step
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import invert
from dfqlab.synthesis.terms import Alignment, SlackAlignment, one_layer_per_sample
from dfqlab.teachers import Teacher

COUNT, STEPS, SOON = 6, 8, 60.0


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.7, generator=generator)
    return Teacher.from_module(module, size=(1, 8, 8), mean=[0.4], std=[0.3], classes=3)


@pytest.fixture(scope="module")
def beside() -> dict[str, Tensor]:
    return {"real": torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))}


@pytest.fixture(scope="module")
def experiment(teacher: Teacher, beside: dict[str, Tensor]) -> Experiment:
    return widget.diverse_images(teacher, beside, layer="4", channel=2, count=COUNT, steps=STEPS)


@pytest.fixture(scope="module")
def steps(experiment: Experiment) -> list[Step]:
    return experiment.steps(slack=0.9, emphasis="a layer an image", correlation=3.0)


def inputs_of(teacher: Teacher, images: Tensor) -> list[Tensor]:
    """What reaches both BatchNorm layers, in float64."""
    network = teacher.module
    with torch.no_grad():
        first = network[0](teacher.input.normalize(images))  # type: ignore[index]
        return [first.double(), network[3](network[2](network[1](first))).double()]  # type: ignore[index]


def test_the_sentence_is_what_numpy_would_say_of_the_images(
    teacher: Teacher, experiment: Experiment, steps: list[Step], beside: dict[str, Tensor]
) -> None:
    assert steps[-1].images is not None
    drawn = experiment.draw(steps)
    assert drawn.sentence.startswith(f"Step {STEPS} of {STEPS}. ")
    for name, images in {**beside, "yours": steps[-1].images()}.items():
        layers = [teacher.module.get_submodule(path) for path in ("1", "4")]
        variances = [
            float((x.mean((2, 3)).var(0, correction=0) / layer.running_var).mean())  # type: ignore[operator]
            for x, layer in zip(inputs_of(teacher, images), layers, strict=True)
        ]
        assert f"{name} {sum(variances) / 2:.3g}, " in drawn.sentence


def test_before_anything_ran_it_shows_what_it_compares_with(experiment: Experiment) -> None:
    assert experiment.draw([]).sentence.startswith("Nothing made yet. ")
    assert "yours" not in experiment.draw([]).sentence
    assert "real" in experiment.draw([]).sentence


def test_every_step_is_drawn_as_it_was_then(experiment: Experiment, steps: list[Step]) -> None:
    sentences = {experiment.draw(steps[:done]).sentence.split(". ", 1)[1] for done in (1, 4, STEPS)}
    assert len(sentences) == 3


def test_the_controls_are_seen_in_what_is_run(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, Descent]] = []

    def watched(teachers, objective, descent, **request):
        asked.append((objective, descent))
        return invert(teachers, objective, replace(descent, steps=1), **request)

    monkeypatch.setattr(widget, "invert", watched)
    monkeypatch.setattr(widget, "sample_statistics_scatter", lambda *a, **options: Figure(figsize=(0.2, 0.2)))
    view = experiment.view()
    for name, control in experiment.controls.items():
        before = view.controls[name].value
        for position in (control.positions[0], control.positions[-1]):
            view.controls[name].value = position
            view.run.click()
            assert view.job is not None
            assert view.job.join(SOON)
            assert view.error is None
            objective, descent = asked[-1]
            alignment = objective.terms["alignment"]  # type: ignore[attr-defined]
            assert alignment.per == "sample"
            seen = {
                "slack": alignment.percentile if isinstance(alignment, SlackAlignment) else 0.0,
                "emphasis": "a layer an image" if alignment.emphasis is one_layer_per_sample else "none",
                "correlation": objective.weights.get("correlation", 0.0),  # type: ignore[attr-defined]
                "rate": descent.learning_rate,
            }
            assert seen[name] == position
        view.controls[name].value = before
    assert isinstance(asked[0][0].terms["alignment"], Alignment)  # type: ignore[attr-defined]


def test_it_runs_and_shows_where_it_is(experiment: Experiment) -> None:
    view = experiment.view()
    view.run.click()
    assert view.job is not None
    assert view.job.join(SOON)
    assert view.error is None
    assert f"Step {STEPS} of {STEPS}" in view.page.value


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 1}, "count=1: images differ"),
        ({"layer": "2"}, "layer='2', channel=2: .* has no such channel"),
        ({"channel": 5}, "channel=5: .* has no such channel"),
        ({"beside": {"yours": torch.zeros(2, 1, 8, 8)}}, "is called 'yours'"),
    ],
)
def test_what_cannot_be_shown_is_refused(teacher: Teacher, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        widget.diverse_images(teacher, **{"beside": {}, "layer": "4", "channel": 2, **wrong})  # type: ignore[arg-type]
