"""The CIFAR-10 networks: as published with their weights, and traceable."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dfqlab.data import load_data
from dfqlab.errors import ConfigurationError
from dfqlab.teachers import Teacher, load_teacher, trace
from dfqlab.teachers.cifar_networks import CIFAR10_MEAN, CIFAR10_NETWORKS, CIFAR10_STD, _OptionA, resnet20
from dfqlab.teachers.names import CIFAR10_NAMES


@pytest.fixture(params=CIFAR10_NAMES)
def network(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def published(data_dir: Path, network: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((data_dir / "cifar10" / "teachers.json").read_text())[network]
    return facts


@pytest.fixture
def teacher(data_dir: Path, network: str) -> Teacher:
    return load_teacher(f"cifar10/{network}", checkpoint=data_dir / "cifar10" / f"{network}.safetensors")


def test_size_and_normalisation_are_as_published(teacher: Teacher, published: dict[str, Any]) -> None:
    assert sum(p.numel() for p in teacher.module.parameters()) == published["parameters"]
    assert len(teacher.batch_norms) == published["batchnorm_layers"]
    assert list(teacher.input.mean) == published["mean"]
    assert list(teacher.input.std) == published["std"]


def test_accuracy_on_real_images_is_as_published(teacher: Teacher, published: dict[str, Any], data_dir: Path) -> None:
    data = load_data(data_dir / "cifar10" / "test.npz", size=teacher.input.size)
    with torch.inference_mode():
        right = sum(int((teacher(images).argmax(1) == labels).sum()) for images, labels in data.batches(250))
    assert 100 * right / len(data) == pytest.approx(published["accuracy_on_test_npz"], abs=0.05)


@pytest.mark.traces
def test_the_traced_network_computes_the_same(network: str) -> None:
    module = CIFAR10_NETWORKS[network]()
    teacher = Teacher.from_module(module, size=(3, 32, 32), mean=CIFAR10_MEAN, std=CIFAR10_STD, classes=10)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trace(teacher)(x), teacher.module(x))


def test_names_for_help_are_the_networks_there_are() -> None:
    assert tuple(CIFAR10_NETWORKS) == CIFAR10_NAMES


def test_shortcut_a_subsamples_and_puts_zeros_on_either_side() -> None:
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    expected = torch.zeros(1, 4, 2, 2)
    expected[0, 1] = torch.tensor([[0.0, 2.0], [8.0, 10.0]])
    expected[0, 2] = torch.tensor([[16.0, 18.0], [24.0, 26.0]])
    assert torch.equal(_OptionA(2)(x), expected)


def test_resnet20_needs_no_torchvision_and_the_others_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torchvision", "torchvision.models", "torchvision.models.vgg"):
        monkeypatch.setitem(sys.modules, module, None)
    resnet20()
    for name in ("vgg11_bn", "mobilenet_v2", "shufflenet_v2"):
        with pytest.raises(ConfigurationError, match=r"torchvision; pip install \"dfqlab\[zoo\]\""):
            CIFAR10_NETWORKS[name]()
