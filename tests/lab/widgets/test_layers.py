"""What a layer remembers and what images do to it: one BatchNorm behind the input, so that all is known."""

import re

import pytest
import torch
from torch import Tensor, nn

from dfqlab.errors import TeacherError
from dfqlab.lab.widgets import layer_memory
from dfqlab.statistics import ObservedTeacher
from dfqlab.teachers import Teacher

MEAN, VAR = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.25])


def teacher() -> Teacher:
    first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    assert first.running_mean is not None
    assert first.running_var is not None
    first.running_mean.copy_(MEAN)
    first.running_var.copy_(VAR)
    module = nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Teacher.from_module(module, size=(2, 4, 4), mean=[0.5, 0.5], std=[0.25, 0.25], classes=2)


def images(shift: float) -> Tensor:
    """Whose means at the first layer lie `shift` remembered deviations above what it remembers."""
    x = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x = x - x.mean((0, 2, 3), keepdim=True)
    x = x + (MEAN + shift * VAR.sqrt()).reshape(-1, 1, 1)
    return x * 0.25 + 0.5


def distances(sentence: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+) (\d+\.\d\d)", sentence.split(": ")[-1])}


def test_every_layer_is_drawn() -> None:
    explorer = layer_memory(teacher(), {"noise": images(1.5), "real": images(0)})
    view = explorer.view()
    assert explorer.controls["layer"].positions == ("1. 0", "2. 2")
    for position in explorer.controls["layer"].positions:
        view.controls["layer"].value = position
        assert view.error is None
        assert position in view.page.value


def test_the_distance_is_how_far_we_moved_the_images() -> None:
    sentence = layer_memory(teacher(), {"noise": images(1.5), "real": images(0)}).drawing(layer="1. 0").sentence
    assert distances(sentence) == {"noise": 1.5, "real": 0.0}


def test_layers_differ() -> None:
    explorer = layer_memory(teacher(), {"noise": images(1.5)})
    assert explorer.drawing(layer="1. 0").sentence != explorer.drawing(layer="2. 2").sentence
    assert explorer.drawing(layer="1. 0").html != explorer.drawing(layer="2. 2").html


def test_the_names_of_sources_are_text() -> None:
    page = layer_memory(teacher(), {"<b>noise</b>": images(1)}).drawing().html
    assert "<b>" not in page
    assert "&lt;b&gt;noise" in page


def test_images_are_looked_at_once_and_not_at_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    look = ObservedTeacher.__call__
    monkeypatch.setattr(ObservedTeacher, "__call__", lambda self, batch: seen.append(len(batch)) or look(self, batch))
    view = layer_memory(teacher(), {"noise": images(1), "real": images(0)}).view()
    view.controls["layer"].value = "1. 0"
    assert seen == [8, 8]


def test_a_network_that_remembers_nothing_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    forgetful = Teacher.from_module(module, size=(2, 4, 4), mean=[0.5, 0.5], std=[0.25, 0.25], classes=2)
    with pytest.raises(TeacherError):
        layer_memory(forgetful, {"noise": images(0)})


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(TeacherError):
        layer_memory(teacher(), {"noise": torch.rand(2, 2, 5, 5)})
