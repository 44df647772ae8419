"""Inversions as CUDA graphs: the same images as kernel by kernel, and the same bytes after a stop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dfqlab
from dfqlab.progress import Cancelled, Step
from dfqlab.recipes.deepinversion import DeepInversion
from dfqlab.recipes.dsg import DSG
from dfqlab.recipes.knowledge_within import KnowledgeWithin
from dfqlab.recipes.mixmix import MixMix
from dfqlab.recipes.zeroq import ZeroQ
from dfqlab.synthesis import plan as planning
from dfqlab.synthesis.checkpointing import Checkpoint

NAMES = ("resnet", "mobilenet", "vgg")
RECIPES: list[Callable[..., Any]] = [ZeroQ, KnowledgeWithin, DeepInversion, MixMix, DSG]


@pytest.fixture(scope="module")
def zoo() -> list[dfqlab.Teacher]:
    return [dfqlab.load_teacher(f"digits/{name}", device="cuda") for name in NAMES]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_captured_descent_is_the_one_that_was_captured(
    recipe: Callable[..., Any], zoo: list[dfqlab.Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps: then differences of the last digit have not grown yet. All are captured, or none."""
    sets = []
    for least in (1, 1000):
        monkeypatch.setattr(planning, "_WORTH_CAPTURING", least)
        teachers = zoo if recipe is MixMix else zoo[:1]
        sets.append(recipe(steps=3).synthesize(teachers, count=32, seed=0))
    captured, plain = sets
    assert all(how["captured"] for how in captured.plan["networks"])
    assert not any(how["captured"] for how in plain.plan["networks"])
    apart = (captured.images - plain.images).abs()
    assert apart.median() < 1e-4
    assert apart.mean() < 0.01 * plain.images.std()  # Adam's first steps are as long wherever the gradient is not zero


def test_a_captured_descent_goes_on_with_the_same_bytes(zoo: list[dfqlab.Teacher], tmp_path: Path) -> None:
    recipe = MixMix(steps=40, mixing=False)  # the gradient of mixed images has no order
    whole = recipe.synthesize(zoo, count=8, seed=0)
    assert all(how["captured"] for how in whole.plan["networks"])

    def stop(step: Step) -> None:
        if step.index == 25:
            raise Cancelled

    folder = Checkpoint(tmp_path / "job")
    assert recipe.synthesize(zoo, count=8, seed=0, checkpoint=folder, on_step=stop).partial
    again = recipe.synthesize(zoo, count=8, seed=0, checkpoint=folder)
    assert torch.equal(again.images, whole.images)


def test_a_network_that_asks_the_host_is_run_as_it_is(zoo: list[dfqlab.Teacher]) -> None:
    class Asks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.abs().max().item() > 0)

    module = torch.nn.Sequential(Asks(), zoo[0].module)
    spec = zoo[0].input
    teacher = dfqlab.Teacher.from_module(module, size=spec.size, mean=spec.mean, std=spec.std, classes=zoo[0].classes)
    made = replace(ZeroQ(), steps=25).synthesize([teacher], count=4, seed=0)
    (how,) = made.plan["networks"]
    assert not how["captured"]
    assert "waits" in how["note"]
    assert torch.isfinite(made.images).all()
