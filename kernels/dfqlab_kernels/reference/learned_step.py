"""Fake quantization whose step, and zero point, learn."""

from typing import Any

import torch
from torch import Tensor

from dfqlab_kernels.reference.quantization import accumulation_dtype, along, clip, where_kept


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
        ctx.axis, ctx.gradient_scale = axis, gradient_scale
        steps, s, low, high = _steps(x, scale, zero_point, axis, quant_min, quant_max)
        code = steps.round()
        end = clip(code, low, high, keep=True)
        y = (end * s).to(x.dtype)
        inside = code.eq_(end)
        slope = end.sub_(where_kept(inside, steps))  # of the scale
        ctx.save_for_backward(inside, slope, scale, zero_point)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        inside, slope, scale, zero_point = ctx.saved_tensors
        known = torch.eq(slope, slope, out=torch.empty_like(slope))  # NaN has no gradient of its own
        dx = where_kept(inside, dy) if ctx.needs_input_grad[0] else None
        d, ds, dz = dy.to(slope.dtype), None, None
        if ctx.needs_input_grad[1]:
            ds = (
                (_reduce(where_kept(known, slope * d), ctx.axis) * ctx.gradient_scale)
                .reshape(scale.shape)
                .to(scale.dtype)
            )
        if ctx.needs_input_grad[2]:
            dz = _reduce(where_kept(known - inside, d), ctx.axis).reshape(zero_point.shape)
            dz = (dz * -scale.to(d.dtype).reshape(zero_point.shape) * ctx.gradient_scale).to(zero_point.dtype)
        return dx, ds, dz, None, None, None, None


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
