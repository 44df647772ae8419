"""Networks that nobody trained: made to hold every operation that a runtime executes in integers."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


class Mixed(nn.Module):
    """A residual block, a depthwise one with ReLU6, two branches concatenated, three poolings, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = norm_conv(3, 8, 3)
        self.first, self.second = norm_conv(8, 8, 3), norm_conv(8, 8, 3)
        self.depthwise, self.point = norm_conv(8, 8, 3, groups=8), norm_conv(8, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.left, self.right = norm_conv(8, 6, 3, groups=2), norm_conv(8, 6, 1)
        self.shrink = nn.AvgPool2d(3, 2, 1)
        self.last = norm_conv(12, 10, 3)
        self.hidden, self.head = nn.Linear(10, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.second(F.relu(self.first(x))) + x)
        x = self.point(F.relu6(self.depthwise(x)))
        x = self.pool(x)
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        x = F.relu(self.last(self.shrink(x)))
        logits: Tensor = self.head(F.relu(self.hidden(x.mean((2, 3)))))
        return logits


def norm_conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random weights that keep activations alive, and random BatchNorm statistics."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        for parameter in layer.parameters(recurse=False):
            scale = 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.3
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.weight.data = 0.5 + torch.rand(layer.weight.shape, generator=generator)
            layer.running_mean = 0.2 * torch.randn(layer.weight.shape, generator=generator)
            layer.running_var = 0.5 + torch.rand(layer.weight.shape, generator=generator)
    return module


@pytest.fixture(scope="session")
def make_teacher() -> MakeTeacher:
    """Makes a teacher of a module for 16x16 RGB images and five classes, its weights drawn at random."""

    def make(module: nn.Module, size: tuple[int, int, int] = (3, 16, 16), leaves: tuple[str, ...] = ()) -> Teacher:
        mean, std = (0.4, 0.5, 0.6)[: size[0]], (0.2, 0.25, 0.3)[: size[0]]
        return Teacher.from_module(drawn(module), size=size, mean=mean, std=std, classes=5, leaves=leaves)

    return make


@pytest.fixture(scope="session")
def mixed(make_teacher: MakeTeacher) -> Teacher:
    return make_teacher(Mixed())


@pytest.fixture(scope="session")
def pixels() -> Tensor:
    """Seven valid images of 16x16, from dark to bright."""
    noise = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(0.1, 1, 7).reshape(-1, 1, 1, 1)
