"""Lesson 02: what a BatchNorm layer keeps of a batch, and the range of an activation."""

import torch
from torch import Tensor, nn

from dfqlab.compression.ranges import widened
from dfqlab.lab.checks import Exercise, Hint


def update_running_mean(running_mean: Tensor, x: Tensor, momentum: float) -> Tensor:
    """What BatchNorm remembers after one more batch."""
    norm = nn.BatchNorm2d(len(running_mean), momentum=momentum)
    norm.running_mean = running_mean.clone()
    norm.train()(x)
    assert norm.running_mean is not None
    return norm.running_mean


def widen(seen: Tensor, x: Tensor) -> Tensor:
    """The range that holds what was seen before and x."""
    low, high = seen.tolist()
    return torch.tensor(widened((low, high), x))


def _momentum_on_the_old(running_mean: Tensor, x: Tensor, momentum: float) -> Tensor:
    return momentum * running_mean + (1 - momentum) * x.mean((0, 2, 3))


def _over_images_only(running_mean: Tensor, x: Tensor, momentum: float) -> Tensor:
    return (1 - momentum) * running_mean[:, None, None] + momentum * x.mean(0)


def _batch_mean(running_mean: Tensor, x: Tensor, momentum: float) -> Tensor:
    return x.mean((0, 2, 3))


def _forgetting(seen: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x.min(), x.max()])


def _symmetric(seen: Tensor, x: Tensor) -> Tensor:
    end = torch.maximum(seen.abs().max(), x.abs().max())
    return torch.stack([-end, end])


def _narrowing(seen: Tensor, x: Tensor) -> Tensor:
    return torch.stack([torch.maximum(seen[0], x.min()), torch.minimum(seen[1], x.max())])


_BATCH = torch.arange(24.0).reshape(2, 3, 2, 2) / 4

EXERCISES = (
    Exercise(
        id="02.update_running_mean",
        answer=update_running_mean,
        cases=(
            (torch.tensor([0.0, 1.0, 5.0]), _BATCH, 0.1),
            (torch.tensor([0.5, -1.0]), _BATCH[:, :2] - 3, 0.25),
        ),
        drawn=("running_mean",),
        hints=(
            Hint(
                "Momentum is the weight of the new batch, in torch: (1 - momentum) * old + momentum * new.",
                _momentum_on_the_old,
            ),
            Hint(
                "One mean for each channel: average over images, rows and columns, x.mean((0, 2, 3)).",
                _over_images_only,
            ),
            Hint("The mean of the batch alone is not enough: what was remembered before counts as well.", _batch_mean),
        ),
        library="torch.nn.BatchNorm2d",
    ),
    Exercise(
        id="02.widen",
        answer=widen,
        cases=(
            (torch.tensor([-1.0, 2.0]), torch.tensor([[0.5, 2.5], [-0.5, 1.0]])),
            (torch.tensor([0.0, 0.0]), torch.tensor([0.25, 3.0, 1.5])),
            (torch.tensor([-4.0, 4.0]), torch.tensor([-0.5, 5.0])),
        ),
        drawn=("seen",),
        hints=(
            Hint("An earlier batch may have reached further: keep the lower low and the higher high.", _forgetting),
            Hint("Activations need not reach as far down as up: keep both ends apart.", _symmetric),
            Hint("The range must hold both, so its low is the minimum of the lows, its high the maximum.", _narrowing),
        ),
        library="dfqlab.compression.ranges.widened",
    ),
)
