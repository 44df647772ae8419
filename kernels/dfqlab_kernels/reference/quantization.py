"""Fake quantization with a straight-through gradient: fixed ranges, and ranges that learn."""

from typing import Any, Literal

import torch
from torch import Tensor

Save = Literal["mask", "input"]


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    clip_gradient: bool,
    save: Save,
) -> Tensor:
    """`y = clamp(rint(x / s), quant_min - z, quant_max - z) * s`; the gradient passes where nothing was clipped."""
    zero_point = None if zero_point is None else along(zero_point, x, axis)
    y: Tensor = _FakeQuantize.apply(x, along(scale, x, axis), zero_point, quant_min, quant_max, clip_gradient, save)
    return y


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        quant_min: int,
        quant_max: int,
        clip_gradient: bool,
        save: Save,
    ) -> Tensor:
        code, scale, low, high = _code(x, scale, zero_point, quant_min, quant_max)
        ctx.clip_gradient, ctx.grid = clip_gradient, (quant_min, quant_max)
        masked = clip_gradient and save == "mask"
        clipped = clip(code, low, high, keep=masked)
        if masked:
            ctx.save_for_backward(_equal(code, clipped))
        elif clip_gradient:
            ctx.save_for_backward(x, scale, zero_point)
        return clipped.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.clip_gradient:
            inside, *saved = ctx.saved_tensors
            if saved:
                code, _, low, high = _code(inside, *saved, *ctx.grid)
                inside = _equal(code, clip(code, low, high, keep=True))
            gradient = where_kept(inside, gradient)
        return gradient, None, None, None, None, None, None


def _code(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor, Tensor | int, Tensor | int]:
    """How many steps each element is from zero, not clipped yet; the step; and the ends of the grid in steps."""
    dtype = accumulation_dtype(x)
    scale = scale.to(dtype)
    code = (x.to(dtype) * (1 / scale)).round_()
    if zero_point is None:
        return code, scale, quant_min, quant_max
    zero_point = zero_point.to(dtype)
    return code, scale, quant_min - zero_point, quant_max - zero_point


def clip(code: Tensor, low: Tensor | int, high: Tensor | int, *, keep: bool) -> Tensor:
    """A code between the ends; NaN stays NaN. Overwrites `code` unless told to keep it."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):  # both at once are not vectorised if they are tensors
        return (code.clamp_min(low) if keep else code.clamp_min_(low)).clamp_max_(high)
    return code.clamp(low, high) if keep else code.clamp_(low, high)


def _equal(code: Tensor, clipped: Tensor) -> Tensor:
    """Where a code is its own clipped one, NaN nowhere. Overwrites `code`.

    On a CPU a comparison that makes booleans at once costs twice as much as one in place and a conversion.
    """
    return code.eq_(clipped).to(torch.bool)


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def where_kept(kept: Tensor, x: Tensor) -> Tensor:
    """`torch.where(kept, x, 0)` of a mask of booleans, or of ones and zeros.

    As a choice among bits it takes a CPU far less time, for which the branches of a loop cannot be foreseen.
    """
    differentiable = torch.is_grad_enabled() and x.requires_grad  # a gradient's own gradient: bits have none
    if differentiable or torch.compiler.is_compiling() or x.device.type != "cpu":
        return torch.where(kept.to(torch.bool), x, 0)
    bits = _BITS[x.element_size()]
    return kept.to(bits, copy=True).neg_().bitwise_and_(x.view(bits)).view(x.dtype)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything smaller."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def along(qparam: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """One number for the whole tensor, or one for each index of `axis`, shaped to broadcast against x."""
    if axis is None:
        return qparam.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return qparam.reshape(shape)
