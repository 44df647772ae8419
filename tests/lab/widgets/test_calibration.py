"""Accuracy over bit widths: every point is what quantize and evaluate give by themselves."""

import itertools
import re
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import dfqlab.lab.widgets.calibration as calibration
from dfqlab.compression.quantization import quantize
from dfqlab.data import LabelledImages
from dfqlab.evaluation import evaluate
from dfqlab.images import StoredImages
from dfqlab.lab.panels import Experiment
from dfqlab.lab.widgets import accuracy_by_width
from dfqlab.progress import Cancelled, Step
from dfqlab.teachers import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.5, generator=generator)
    return Teacher.from_module(module, size=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3, classes=4)


def sources() -> dict[str, StoredImages]:
    return {
        name: StoredImages(torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * width)
        for seed, (name, width) in enumerate({"noise": 0.3, "<real>": 1.0}.items())
    }


WIDTHS = calibration.WIDTHS


@pytest.fixture(scope="module")
def experiment(teacher: Teacher, judge: LabelledImages) -> Iterator[Experiment]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "WIDTHS", (8, 3))
        yield accuracy_by_width(teacher, sources(), judge)


@pytest.fixture(scope="module")
def steps(experiment: Experiment) -> list[Step]:
    return experiment.steps(weights=4, ranges="minmax")


def test_every_point_is_what_quantize_and_evaluate_give(
    teacher: Teacher, judge: LabelledImages, steps: list[Step]
) -> None:
    assert [step.index for step in steps] == list(range(1, 5))
    assert {step.total for step in steps} == {4}
    for step, (bits, source) in zip(steps, itertools.product((8, 3), sources()), strict=True):
        model = quantize(teacher, sources()[source], weights=4, activations=bits, calibration="minmax")
        share = evaluate(model, judge).accuracy_interval
        assert (step.job, step.values["bits"]) == (source, bits)
        assert [step.values[name] for name in ("value", "low", "high")] == [share.value, share.low, share.high]
        assert step.note == f"{source}, {bits} bits: {100 * share.value:.1f} %"


def test_widths_go_down_from_eight_bits_to_two() -> None:
    assert tuple(sorted(WIDTHS, reverse=True)) == WIDTHS
    assert (max(WIDTHS), min(WIDTHS)) == (8, 2)


def test_the_teacher_is_judged_on_the_same_images(teacher: Teacher, judge: LabelledImages) -> None:
    assert evaluate(teacher, judge).accuracy == 0.9


def test_the_picture_grows_with_the_points(experiment: Experiment, steps: list[Step]) -> None:
    pictures = [experiment.draw(steps[:count]) for count in range(len(steps) + 1)]
    assert len({picture.html for picture in pictures}) == len(pictures)
    assert pictures[0].sentence == "Nothing measured yet."
    for count, picture in enumerate(pictures[1:], 1):
        last = steps[count - 1]
        told = dict(re.findall(r"([\w<>]+) (\d+\.\d) %", picture.sentence))
        assert told[last.job] == f"{100 * last.values['value']:.1f}"
        assert len(told) == (1 if count % 2 else 2)  # only what was measured at this width
        assert f"{last.values['bits']:.0f}" in picture.sentence
    assert "<real>" not in pictures[-1].html
    assert "&lt;real&gt;" in pictures[-1].html


@pytest.mark.parametrize(
    ("name", "position"), [("weights", 2), ("weights", 8), ("ranges", "mse"), ("ranges", "minmax")]
)
def test_the_controls_run_and_are_seen_in_the_network(
    name: str, position: int | str, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(calibration, "WIDTHS", (4,))
    monkeypatch.setattr(
        calibration, "quantize", lambda *args, **options: asked.append(options) or quantize(*args, **options)
    )
    view = experiment.view()
    view.controls["ranges"].value = "minmax"
    view.controls[name].value = position
    view.run.click()
    assert view.job is not None
    assert view.job.join(60)
    assert view.error is None
    assert view.job.sentence == "done: 2 of 2 steps"
    key = {"weights": "weights", "ranges": "calibration"}[name]
    assert [options[key] for options in asked] == [position] * 2


def test_every_position_is_one_that_quantize_takes(experiment: Experiment) -> None:
    assert experiment.controls["weights"].positions == (2, 3, 4, 5, 6, 7, 8)
    assert experiment.controls["ranges"].positions == ("minmax", "mse")


def test_it_stops_after_the_point_at_which_it_is_cancelled(experiment: Experiment) -> None:
    steps: list[Step] = []

    def stop_at_3(step: Step) -> None:
        if step.index == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        experiment.work({"ranges": "minmax"}, steps)(stop_at_3)
    assert [step.index for step in steps] == [1, 2, 3]
    assert experiment.draw(steps).sentence
