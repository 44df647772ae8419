"""Training teachers: reproducible, and the shipped weights are what it gives."""

import math

import pytest
import torch
from safetensors.torch import load_file

from dfqlab.data import load_data
from dfqlab.evaluation import evaluate
from dfqlab.progress import Step
from dfqlab.teachers import Teacher, load_teacher
from dfqlab.teachers import digits_networks as digits
from dfqlab.teachers.names import DIGITS_NAMES
from dfqlab.teachers.training import TrainingSettings, train


def trained(name: str, seed: int, settings: TrainingSettings, steps: list[Step] | None = None) -> Teacher:
    data = load_data("digits", split="train")
    note = steps.append if steps is not None else (lambda step: None)
    module = train(
        digits.DIGITS_NETWORKS[name](), digits.DIGITS_INPUT, data.images, data.labels,
        settings=settings, seed=seed, on_step=note,
    )  # fmt: skip
    spec = digits.DIGITS_INPUT
    return Teacher.from_module(module, size=spec.size, mean=spec.mean, std=spec.std, classes=10)


def test_a_retrained_teacher_lands_within_one_point_of_the_shipped_one() -> None:
    again = trained("vgg", digits.DIGITS_SEEDS["vgg"], TrainingSettings())
    test = load_data("digits")
    shipped = evaluate(load_teacher("digits/vgg"), test).accuracy
    assert evaluate(again, test).accuracy == pytest.approx(shipped, abs=0.01)


def test_the_same_seed_trains_the_same_weights_and_another_seed_others() -> None:
    brief = TrainingSettings(epochs=1)
    torch.manual_seed(7)
    first = trained("vgg", 3, brief)
    torch.manual_seed(8)  # nothing may depend on the global generator
    assert trained("vgg", 3, brief).fingerprint == first.fingerprint
    assert trained("vgg", 4, brief).fingerprint != first.fingerprint


def test_training_reports_every_epoch_and_learns() -> None:
    steps: list[Step] = []
    trained("vgg", 0, TrainingSettings(epochs=3), steps)
    losses = [step.values["loss"] for step in steps]
    assert [(step.index, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert losses[-1] < losses[0] < math.log(10) * 1.5


@pytest.mark.parametrize("name", DIGITS_NAMES)
def test_the_shipped_teachers_are_good_and_small(name: str) -> None:
    assert evaluate(load_teacher(f"digits/{name}"), load_data("digits")).accuracy >= 0.97


def test_all_shipped_weights_together_take_at_most_500_kilobytes() -> None:
    from pathlib import Path

    import dfqlab.teachers.teacher as home

    files = sorted((Path(home.__file__).parent / "weights").glob("*.safetensors"))
    assert [f.stem for f in files] == sorted(f"digits_{name}" for name in DIGITS_NAMES)
    assert sum(f.stat().st_size for f in files) <= 500_000
    assert all(torch.isfinite(t).all() for f in files for t in load_file(f).values() if t.is_floating_point())
