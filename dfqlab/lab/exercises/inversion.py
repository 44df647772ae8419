"""Lesson 03: the BatchNorm loss with its gradient, a step down it, and what is smooth."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dfqlab_kernels
from dfqlab.lab.checks import Complaint, Exercise, Hint
from dfqlab.synthesis.terms import TotalVariation

STAY = "Stay in tensors that torch follows: .item(), .detach(), .data and torch.tensor(...) cut them off from x."
PARTLY = "Some of it is cut off from x, by .detach(), .data or torch.no_grad(): keep mean and std in the graph."
_NUDGE = 1e-4
_EPSILON = 1e-6


def bn_loss(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """ZeroQ's loss of one layer (eq. 2), each channel's share of it."""
    mean, var = dfqlab_kernels.channel_stats(x)
    pairs = zip(mean, var, running_mean, running_var, strict=True)
    return torch.stack([_distance(*(value[None] for value in pair)) for pair in pairs])


def descend(pixels: Tensor, mean: float, std: float, rate: float) -> Tensor:
    """One step down the loss of a layer that sees the pixels themselves."""
    x = pixels.clone().requires_grad_()
    found = x.mean()[None], x.var(correction=0)[None]
    (gradient,) = torch.autograd.grad(_distance(*found, x.new_tensor([mean]), x.new_tensor([std**2])), x)
    return pixels - rate * gradient


def total_variation(x: Tensor) -> Tensor:
    """The mean over pixels of the steps down and to the right, for each image."""
    return torch.stack([TotalVariation("l1").of_images(image[None]) for image in x])


def _distance(mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    return dfqlab_kernels.bn_alignment(
        mean, var, running_mean, running_var, channels=[1], spread="std", epsilon=_EPSILON
    )


def _with_its_gradient(yours: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The loss of a case, once its gradient is that of finite differences."""
    x, before = arguments[0], arguments[0].clone()
    result = yours(*arguments)
    if isinstance(result, float | list | tuple):
        raise Complaint(
            f"Its result is of type {type(result).__name__}, which has no gradient; expected a tensor.", STAY
        )
    if isinstance(result, Tensor) and result.is_floating_point() and torch.equal(x, before):
        _compare_gradients(yours, tuple(value.double() for value in arguments))
    return result


def _compare_gradients(yours: Callable[..., Any], arguments: tuple[Tensor, ...]) -> None:
    x, *memory = arguments
    x = x.clone().requires_grad_()
    loss = yours(x, *memory).sum()
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True) if loss.requires_grad else (None,)
    if gradient is None:
        raise Complaint("Its values may be right, but they have no gradient: no image can follow them.", STAY)
    for index in (0, x.numel() // 2, x.numel() - 1):
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), x.shape))
        ends = []
        for nudge in (_NUDGE, -_NUDGE):
            moved = x.detach().clone()
            moved[at] += nudge
            ends.append(float(yours(moved, *memory).sum()))
        slope, found = (ends[0] - ends[1]) / (2 * _NUDGE), float(gradient[at])
        if abs(found - slope) > 1e-2 * max(1.0, abs(slope)):
            where = ", ".join(map(str, at))
            raise Complaint(
                f"Its gradient at x[{where}] is {found:.3g}, but nudging that pixel changes it by {slope:.3g} times "
                "the nudge.",
                PARTLY,
            )


def _unbiased(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    return (mean - running_mean).square() + (std - running_var.sqrt()).square()


def _variances(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    return (mean - running_mean).square() + (var - running_var).square()


def _each_image(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    return torch.stack([bn_loss(image[None], running_mean, running_var) for image in x]).mean(0)


def _not_squared(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)
    return (mean - running_mean).abs() + (std - running_var.sqrt()).abs()


def _uphill(pixels: Tensor, mean: float, std: float, rate: float) -> Tensor:
    return descend(pixels, mean, std, -rate)


def _without_rate(pixels: Tensor, mean: float, std: float, rate: float) -> Tensor:
    return descend(pixels, mean, std, 1.0)


def _mean_alone(pixels: Tensor, mean: float, std: float, rate: float) -> Tensor:
    return pixels - rate * 2 * (pixels.mean() - mean) / pixels.numel()


def _unbiased_step(pixels: Tensor, mean: float, std: float, rate: float) -> Tensor:
    x = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((x.mean() - mean).square() + (x.std() - std).square(), x)
    return pixels - rate * gradient


def _steps(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def _down_alone(x: Tensor) -> Tensor:
    return _steps(x)[0].abs().sum((1, 2, 3)) / (x.shape[2] * x.shape[3])


def _squared_steps(x: Tensor) -> Tensor:
    down, right = _steps(x)
    return (down.square().sum((1, 2, 3)) + right.square().sum((1, 2, 3))) / (x.shape[2] * x.shape[3])


def _around_the_edge(x: Tensor) -> Tensor:
    around = (x - x.roll(1, 2)).abs() + (x - x.roll(1, 3)).abs()
    return around.sum((1, 2, 3)) / (x.shape[2] * x.shape[3])


def _per_step(x: Tensor) -> Tensor:
    down, right = _steps(x)
    return down.abs().sum(1).mean((1, 2)) + right.abs().sum(1).mean((1, 2))


_BATCH = (torch.arange(24.0) * 5 % 13).reshape(2, 3, 2, 2) / 4

EXERCISES = (
    Exercise(
        id="03.bn_loss",
        answer=bn_loss,
        cases=(
            (_BATCH, torch.tensor([1.0, 0.5, 2.0]), torch.tensor([1.0, 4.0, 0.25])),
            (_BATCH[:, :2].square() - 3, torch.tensor([0.0, -1.0]), torch.tensor([0.5, 2.0])),
        ),
        drawn=("running_mean", "running_var"),
        hints=(
            Hint("BatchNorm normalises with the biased variance: std(..., correction=0) divides by n.", _unbiased),
            Hint("Compare standard deviations, the roots of the variances: running_var needs a root too.", _variances),
            Hint("One mean and one std for the batch as a whole: over dimensions (0, 2, 3) at once.", _each_image),
            Hint("Square both differences before you add them.", _not_squared),
        ),
        library="dfqlab_kernels.bn_alignment",
        attempt=_with_its_gradient,
    ),
    Exercise(
        id="03.descend",
        answer=descend,
        cases=(
            (torch.tensor([2.0, 3.0, 3.0, 4.0, 6.0]), 0.0, 1.0, 0.5),
            (torch.tensor([-1.0, 0.0, 0.5]), 1.0, 2.0, 0.1),
        ),
        drawn=("pixels",),
        hints=(
            Hint("The gradient points to where the loss grows: go the other way.", _uphill),
            Hint("How far a step goes is the rate times the gradient.", _without_rate),
            Hint("Both differences count: that of the means, and that of the standard deviations.", _mean_alone),
            Hint("The standard deviation is the biased one here too: correction=0.", _unbiased_step),
        ),
        library="dfqlab_kernels.bn_alignment",
    ),
    Exercise(
        id="03.total_variation",
        answer=total_variation,
        cases=(
            (torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]], [[[0.0, 0.0], [1.0, 1.0]]]]),),
            ((torch.arange(72.0) * 7 % 19).reshape(3, 2, 3, 4) / 4,),
        ),
        drawn=(),
        hints=(
            Hint("Pixels have a neighbour to the right as well as one below.", _down_alone),
            Hint("Take the differences as they are, without their sign, and do not square them.", _squared_steps),
            Hint("The last row has none below it: torch.roll takes the first. Slices do not.", _around_the_edge),
            Hint("Add the differences up, then divide by the number of pixels, which is a little larger.", _per_step),
        ),
        library="dfqlab.synthesis.terms.TotalVariation",
    ),
)
