"""A network of three BatchNorm layers of different sizes, in float64, and images for it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


def _make(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.3, 2, generator=generator)
    teacher = Teacher.from_module(module, size=(2, 6, 6), mean=(0.4, 0.5), std=(0.3, 0.2), classes=2)
    teacher.module.to(dtype)
    return teacher


@pytest.fixture
def make_teacher() -> MakeTeacher:
    return _make


@pytest.fixture
def teacher() -> Teacher:
    return _make()


@pytest.fixture
def images() -> Tensor:
    """Five images in pixel units."""
    return torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.4 + 0.5
