"""Teachers of a few channels, small enough for every recipe to run on them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


def _make(seed: int = 0, *, norm: str = "batch", classes: int = 4, **changes: object) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    norms = [nn.BatchNorm2d(n) if norm == "batch" else nn.GroupNorm(2, n) for n in (4, 6)]
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norms[0], nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), norms[1], nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    _remember(module, F.avg_pool2d(2 * torch.randn(64, 1, 8, 8, generator=generator), 3, stride=1))
    arguments = {"size": (1, 6, 6), "mean": (0.4,), "std": (0.3,), "classes": classes, "name": "mine", **changes}
    return Teacher.from_module(module, **arguments)  # type: ignore[arg-type]


def _remember(module: nn.Sequential, images: Tensor) -> None:
    """Statistics that there are images for, and logits that are spread around zero."""
    for child in module:
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = None  # a plain mean of all that it sees
    with torch.no_grad():
        module.train()(images)
        *body, head = module.eval()
        assert isinstance(head, nn.Linear)
        features = nn.Sequential(*body)(images)
        head.weight.mul_(4 / features.std(0).clamp(min=0.1))
        head.bias.copy_(-(head.weight @ features.mean(0)))


@pytest.fixture
def make_teacher() -> MakeTeacher:
    """A teacher with weights of a seed; 6 by 6 pixels, one colour, four classes unless told otherwise."""
    return _make


@pytest.fixture
def teacher() -> Teacher:
    return _make()
