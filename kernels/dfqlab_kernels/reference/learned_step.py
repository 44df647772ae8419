"""Fake quantization whose step, and zero point, learn."""

from typing import Any

import torch
from torch import Tensor

from dfqlab_kernels.reference.quantization import accumulation_dtype, along


def learned_step_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    gradient_scale: float,
) -> Tensor:
    """`fake_quantize` with the zero point on the nearest integer of the grid; gradients reach all three."""
    y: Tensor = _LearnedStepQuantize.apply(x, scale, zero_point, axis, quant_min, quant_max, gradient_scale)
    return y


class _LearnedStepQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        axis: int | None,
        quant_min: int,
        quant_max: int,
        gradient_scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.axis, ctx.grid, ctx.gradient_scale = axis, (quant_min, quant_max), gradient_scale
        steps, s, low, high = _steps(x, scale, zero_point, axis, quant_min, quant_max)
        return steps.round_().clamp_(low, high).mul_(s).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        steps, s, low, high = _steps(x, scale, zero_point, ctx.axis, *ctx.grid)
        code = steps.round()
        end = code.clamp(low, high)
        inside, nan = code == end, end.isnan()  # NaN has no gradient of its own
        dx, d = torch.where(inside, dy, 0), dy.to(s.dtype)
        slope = torch.where(inside, code.sub_(steps), end).mul_(d)
        ds = (_reduce(slope.masked_fill_(nan, 0), ctx.axis) * ctx.gradient_scale).reshape(scale.shape).to(scale.dtype)
        if zero_point is None:
            return dx, ds, None, None, None, None, None
        clipped = torch.where(inside | nan, 0, d)
        dz = _reduce(clipped, ctx.axis).reshape(zero_point.shape) * -scale.to(s.dtype).reshape(zero_point.shape)
        return dx, ds, (dz * ctx.gradient_scale).to(zero_point.dtype), None, None, None, None


def _steps(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x / s, s, and the ends of the grid in steps from zero, in the precision of the arithmetic."""
    dtype = accumulation_dtype(x)
    s = along(scale, x, axis).to(dtype)
    zero = torch.zeros_like(s) if zero_point is None else along(zero_point, x, axis).to(dtype)
    zero = zero.round().clamp(quant_min, quant_max)
    return x.to(dtype) * (1 / s), s, quant_min - zero, quant_max - zero


def _reduce(gradient: Tensor, axis: int | None) -> Tensor:
    """Summed over every dimension, or every one but `axis`."""
    others = [d for d in range(gradient.dim()) if axis is None or d != axis % gradient.dim()]
    return gradient.sum(others) if others else gradient  # no dimension at all means every one to torch
