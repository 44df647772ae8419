"""The definition of every op, in plain torch: float32 inside for 16- and 32-bit input, float64 for float64.

On a CPU the public function is this definition. Every faster kernel is held to it by tests.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab_kernels.errors import ShapeError


def fake_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*qparams"],
    zero_point: Tensor | None = None,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    clip_gradient: bool = True,
) -> Float[Tensor, "*shape"]:
    """Round to the integer grid and come back: `y = (clamp(rint(x / s) + z, quant_min, quant_max) - z) * s`.

    Division is a multiplication with the float32 inverse `1 / s`, rounding is half to even, and the zero point is
    added after rounding, as torch's own op does. NaN stays NaN and an infinity clips to its own end, which torch's op
    does not promise.

    Args:
        x: any shape; float16, bfloat16, float32 or float64. The result has its dtype and memory format.
        scale: positive; one element, or one for each index of `axis`.
        zero_point: integers (any dtype) shaped like `scale`; None is 0.
        quant_min, quant_max: the ends of the grid, inclusive.
        axis: the dimension that `scale` runs along; None quantizes per tensor.
        clip_gradient: the straight-through estimator passes the gradient only where the value was not clipped
            (True, as torch, LSQ and BRECQ) or everywhere (False, as the GDFQ family).

    Raises:
        ShapeError: `scale` or `zero_point` does not fit `x` along `axis`.

    >>> fake_quantize(torch.tensor([0.26, -0.5, 9.0]), torch.tensor([0.5]), quant_min=-2, quant_max=1).tolist()
    [0.5, -0.5, 0.5]
    """
    zero_point = torch.zeros_like(scale) if zero_point is None else zero_point
    for name, qparam in (("scale", scale), ("zero_point", zero_point)):
        _check_qparam(name, qparam, x, axis)
    y: Tensor = _FakeQuantize.apply(
        x, _along(scale, x, axis), _along(zero_point, x, axis), quant_min, quant_max, clip_gradient
    )
    return y


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, clip_gradient: bool
    ) -> Tensor:
        dtype = _accumulation_dtype(x)
        scale, zero_point = scale.to(dtype), zero_point.to(dtype)
        code = torch.round(x.to(dtype) * (1 / scale)) + zero_point
        ctx.clip_gradient = clip_gradient
        if clip_gradient:
            ctx.save_for_backward((code >= quant_min) & (code <= quant_max))
        return ((code.clamp(quant_min, quant_max) - zero_point) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.clip_gradient:
            (inside,) = ctx.saved_tensors
            gradient = torch.where(inside, gradient, torch.zeros_like(gradient))
        return gradient, None, None, None, None, None


def channel_stats(
    x: Float[Tensor, "n c *spatial"], *, per: Literal["batch", "sample"] = "batch", correction: int = 0
) -> tuple[Float[Tensor, "... c"], Float[Tensor, "... c"]]:
    """Mean and variance of each channel, differentiable once in both.

    Accumulates in float32 (float64 for float64 input). `correction=0` is the biased variance that BatchNorm
    normalises with.

    Args:
        x: at least (n, c); statistics run over n and the spatial dimensions (`per="batch"`, shape (c,)) or over the
            spatial dimensions of each sample (`per="sample"`, shape (n, c)).
        correction: subtracted from the number of elements that the variance divides by.

    Raises:
        ShapeError: fewer than two dimensions, or nothing to average over.

    >>> mean, var = channel_stats(torch.ones(2, 3, 4, 4))
    >>> mean.tolist(), var.tolist()
    ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    if x.dim() < 2:
        raise ShapeError(f"channel_stats: expected at least (n, c), got shape {tuple(x.shape)}")
    reduced = [d for d in range(x.dim()) if d != 1 and not (per == "sample" and d == 0)]
    count = 1
    for d in reduced:
        count *= x.shape[d]
    if count - correction < 1:
        raise ShapeError(
            f"channel_stats(per={per!r}, correction={correction}): {count} element(s) a channel in shape "
            f"{tuple(x.shape)}; expected more than {correction}"
        )
    x = x.to(_accumulation_dtype(x))
    if not reduced:  # (n, c) per sample: one element, its own mean
        return x.clone(), torch.zeros_like(x)
    # Vectorised passes: torch.var_mean is several times slower on a CPU, and E[x^2] - E[x]^2 cancels. What rounding
    # left in the mean is measured and taken out, so that a constant channel has variance 0 exactly. It is detached in
    # the variance, as the mean is, where its gradient, a sum of deviations, is zero.
    rough = x.mean(reduced, keepdim=True)
    deviation = x - rough.detach()
    rest = deviation.detach().mean(reduced, keepdim=True)
    squares = deviation.square().sum(reduced)
    mean = (rough + rest).reshape(squares.shape)
    var = (squares - count * rest.reshape(squares.shape).square()).clamp(min=0) / (count - correction)
    return mean, var


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check_qparam(name: str, qparam: Tensor, x: Tensor, axis: int | None) -> None:
    if axis is None:
        if qparam.numel() != 1:
            raise ShapeError(
                f"fake_quantize: per tensor expects one {name}, got shape {tuple(qparam.shape)}; set axis="
            )
    elif not -x.dim() <= axis < x.dim():
        raise ShapeError(f"fake_quantize: axis={axis} is not a dimension of shape {tuple(x.shape)}")
    elif tuple(qparam.shape) != (x.shape[axis],):
        raise ShapeError(
            f"fake_quantize(axis={axis}): expected {name} of shape ({x.shape[axis]},) for x of shape "
            f"{tuple(x.shape)}, got {tuple(qparam.shape)}"
        )


def _along(qparam: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return qparam.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return qparam.reshape(shape)
