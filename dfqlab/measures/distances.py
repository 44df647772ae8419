"""How far one tensor is from another, and a batch from what BatchNorm layers remember."""

import math

from jaxtyping import Float
from torch import Tensor

from dfqlab.statistics import Statistics


def sqnr(reference: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    """Signal-to-quantization-noise ratio in dB: `10 log10(sum reference^2 / sum (reference - other)^2)`.

    Infinite where both are equal; kept within 200 dB either way so that it can stand in a JSON file. Where a number is
    NaN or infinite, nothing of the signal is left: -200 dB.

    >>> import torch
    >>> round(sqnr(torch.ones(4), torch.full((4,), 0.9)), 1)
    20.0
    """
    signal = float(reference.double().square().sum())
    return decibels(signal, float((reference.double() - other.double()).square().sum()))


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers in dB, kept as `sqnr` says.

    >>> decibels(100.0, 1.0), decibels(1.0, 0.0)
    (20.0, 200.0)
    """
    if noise == 0:
        return 200.0
    if signal == 0 or not math.isfinite(noise):
        return -200.0
    return max(-200.0, min(200.0, 10 * (math.log10(signal) - math.log10(noise))))


def batch_norm_distance(found: Statistics, remembered: Statistics) -> dict[str, float]:
    """How far a batch moves each BatchNorm layer's mean from what it remembers, in remembered standard deviations.

    The root of the mean over channels of `(mean - running_mean)^2 / running_var`, by layer.
    """
    found = found.over_batch()
    moved = (found.mean - remembered.mean).square() / remembered.var.clamp(min=1e-12)
    return {name: float(moved[remembered.layout.slice_of(name)].mean().sqrt()) for name in remembered.layout.names}
