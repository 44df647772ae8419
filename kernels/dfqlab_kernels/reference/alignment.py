"""How far the statistics of a batch are from what BatchNorm remembers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Distance = Literal["squared", "l2", "kl"]
Spread = Literal["var", "std"]


def bn_alignment(
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    channels: Sequence[int],
    distance: Distance,
    spread: Spread,
    mean_margin: Tensor | None,
    spread_margin: Tensor | None,
    epsilon: float,
) -> Tensor:
    """The distance of each sample and layer, (n, layers), in the precision of the statistics."""
    target_mean, target_var = target_mean.to(mean.dtype), target_var.to(mean.dtype)
    if distance == "kl":
        ratio = (var + epsilon) / (target_var + epsilon)
        offset = (mean - target_mean).square() / (target_var + epsilon)
        return _over_layers(0.5 * (ratio + offset - 1 - ratio.log()), channels)
    if spread == "std":
        var, target_var = (var + epsilon).sqrt(), (target_var + epsilon).sqrt()
    offset = _beyond(mean - target_mean, mean_margin)
    widening = _beyond(var - target_var, spread_margin)
    if distance == "squared":
        return _over_layers(offset.square() + widening.square(), channels)
    return _norms(offset, channels) + _norms(widening, channels)


def _beyond(difference: Tensor, margin: Tensor | None) -> Tensor:
    """What of a difference lies beyond its margin: zero, and without gradient, inside."""
    return difference if margin is None else difference.sign() * (difference.abs() - margin).clamp(min=0)


def _over_layers(values: Tensor, channels: Sequence[int]) -> Tensor:
    return torch.stack([part.sum(-1) for part in values.split(list(channels), -1)], -1)


def _norms(values: Tensor, channels: Sequence[int]) -> Tensor:
    """Euclidean norms, whose gradient at zero is zero."""
    return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in values.split(list(channels), -1)], -1)
