"""Looking at one layer's output while a network runs."""

import pytest
import torch
from torch import nn

from dfqlab import Teacher
from dfqlab.errors import ConfigurationError, TeacherError
from dfqlab.lab import layer_output


@pytest.fixture
def teacher() -> Teacher:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    return Teacher.from_module(network, size=(1, 4, 4), mean=(0.5,), std=(0.25,), classes=3)


def test_a_layer_gives_what_it_gives_on_the_normalised_image(teacher: Teacher) -> None:
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = teacher.module.get_submodule("0")((images - 0.5) / 0.25)
    torch.testing.assert_close(layer_output(teacher, "0", images), expected)


def test_nothing_stays_on_the_network(teacher: Teacher) -> None:
    layer_output(teacher, "1", torch.zeros(1, 1, 4, 4))
    assert not teacher.module.get_submodule("1")._forward_hooks


@pytest.mark.parametrize("layer", ["", "9", "conv"])
def test_a_layer_that_is_not_there_is_refused(teacher: Teacher, layer: str) -> None:
    with pytest.raises(ConfigurationError, match="has no layer"):
        layer_output(teacher, layer, torch.zeros(1, 1, 4, 4))


def test_images_of_another_size_are_refused(teacher: Teacher) -> None:
    with pytest.raises(TeacherError):
        layer_output(teacher, "0", torch.zeros(1, 3, 4, 4))
