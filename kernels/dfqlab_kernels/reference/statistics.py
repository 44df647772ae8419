"""What a batch does to a BatchNorm layer: mean and variance of each channel.

Moments are how statistics travel: (3, groups, splits, c), the count, the mean and the sum of squared deviations of each
part of a channel. Groups are samples (or one, the batch); here a group is never split, a kernel splits it as it needs.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dfqlab_kernels.reference.quantization import accumulation_dtype


def channel_stats(x: Tensor, per_sample: bool, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, accumulated in float32 (float64 for float64)."""
    mean, squares, count = _moments(x, per_sample)
    return mean, squares / (count - correction)


def channel_moments(x: Tensor, per_sample: bool) -> Tensor:
    """(3, groups, 1, c): count, mean and sum of squared deviations of each channel."""
    return _stacked(*_moments(x, per_sample), per_sample)


def merge_moments(moments: Sequence[Tensor], correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of all layers side by side, (groups, total), from the moments of each.

    Of parts with counts n, means m and sums M: `mean = m_0 + sum n (m - m_0) / N` and
    `var = (sum M + sum n (m - mean)^2) / (N - correction)` (Chan et al. 1983).
    """
    count, mean, squares = torch.cat([_whole(part) for part in moments], -1)
    return mean, squares / (count - correction)


def _whole(moments: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of each channel, (3, groups, c), from those of its parts."""
    if moments.shape[2] == 1:
        return moments[:, :, 0]
    count, mean, squares = moments
    first = mean[:, :1]
    whole = first + (count * (mean - first)).sum(1, keepdim=True) / count.sum(1, keepdim=True)
    deviations = squares.sum(1) + (count * (mean - whole).square()).sum(1)
    return torch.stack([count.sum(1), whole[:, 0], deviations])


def bn_activation_stats(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: str, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """`activation(x * scale + shift + residual)`, computed as moments are, and the moments of x."""
    reduced, count = _reduced(x, per_sample)
    y, mean, squares = _Normalized.apply(x, scale, shift, residual, activation, reduced, count)
    return y, _stacked(mean, squares, count, per_sample)


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """One number a channel, shaped to broadcast against x (n, c, ...), in the precision of the arithmetic."""
    return values.to(accumulation_dtype(x)).reshape(-1, *[1] * (x.dim() - 2))


def _moments(x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor, int]:
    reduced, count = _reduced(x, per_sample)
    if not reduced:  # (n, c) per sample: one element, its own mean
        x = x.to(accumulation_dtype(x))
        return x.clone(), torch.zeros_like(x), count
    mean, squares = _Moments.apply(x, reduced, count)
    return mean, squares, count


def _reduced(x: Tensor, per_sample: bool) -> tuple[list[int], int]:
    """Dimensions that statistics run over, and how many elements they have."""
    reduced = list(range(2, x.dim())) if per_sample else [0, *range(2, x.dim())]
    return reduced, math.prod([x.shape[d] for d in reduced])


def _stacked(mean: Tensor, squares: Tensor, count: int, per_sample: bool) -> Tensor:
    moments = torch.stack([torch.full_like(mean, count), mean, squares])
    return moments[:, :, None] if per_sample else moments[:, None, None]


class _Moments(torch.autograd.Function):
    """Mean and sum of squared deviations. By hand, because torch's gradient of a variance reads x once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reduced: list[int], count: int) -> tuple[Tensor, Tensor]:
        mean, squares = _two_passes(x, reduced, count)
        ctx.save_for_backward(x, mean)
        ctx.count = count
        return mean.reshape(squares.shape), squares

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_mean: Tensor, to_squares: Tensor) -> tuple[Tensor | None, ...]:
        x, mean = ctx.saved_tensors
        return _to_values(x, mean, to_mean, to_squares, ctx.count).to(x.dtype), None, None


class _Normalized(torch.autograd.Function):
    """An affine map, an activation and moments: one gradient for x, which is read once, and one for the residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        activation: str,
        reduced: list[int],
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = _activated(x, scale, shift, residual, activation)
        mean, squares = _two_passes(x, reduced, count)
        # What the activation stopped is seen in y. A compiler computes y again, where x is enough to do so.
        again = torch.compiler.is_compiling() and residual is None
        ctx.save_for_backward(x, scale, shift, mean, None if again or activation == "none" else y)
        ctx.activation, ctx.count, ctx.has_residual = activation, count, residual is not None
        return y, mean.reshape(squares.shape), squares

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, to_mean: Tensor, to_squares: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, y = ctx.saved_tensors
        if ctx.activation != "none":
            y = _activated(x, scale, shift, None, ctx.activation) if y is None else y
            aten = torch.ops.aten
            dy = aten.threshold_backward(dy, y, 0) if ctx.activation == "relu" else aten.hardtanh_backward(dy, y, 0, 6)
        from_statistics = _to_values(x, mean, to_mean, to_squares, ctx.count)
        dx = torch.addcmul(from_statistics, dy, along_channels(scale, x)).to(x.dtype)
        return dx, None, None, dy if ctx.has_residual else None, None, None, None


def _activated(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    z = torch.addcmul(along_channels(shift, x), x, along_channels(scale, x))
    z = (z if residual is None else z + residual).to(x.dtype)  # both activations commute with rounding
    return F.relu(z) if activation == "relu" else F.relu6(z) if activation == "relu6" else z


def _two_passes(x: Tensor, reduced: list[int], count: int) -> tuple[Tensor, Tensor]:
    """The mean, in the shape of x, and the sum of squared deviations from it."""
    values = x.to(accumulation_dtype(x))
    if not reduced:  # (n, c) per sample: one element, its own mean
        return values.clone(), torch.zeros_like(values)
    # Vectorised passes: torch.var_mean is several times slower on a CPU, and E[x^2] - E[x]^2 cancels. What
    # rounding left in the mean is measured and taken out, so that a constant channel has variance 0 exactly.
    rough = values.sum(reduced, keepdim=True) * (1 / count)  # compiled, once more for each value: no division
    deviation = values - rough
    rest = deviation.mean(reduced, keepdim=True)
    squares = deviation.square().sum(reduced)
    return rough + rest, (squares - count * rest.square().reshape(squares.shape)).clamp(min=0)


def _to_values(x: Tensor, mean: Tensor, to_mean: Tensor, to_squares: Tensor, count: int) -> Tensor:
    """The gradient of moments, for each value they were taken of."""
    return torch.addcmul((to_mean / count).reshape(mean.shape), x - mean, (2 * to_squares).reshape(mean.shape))
