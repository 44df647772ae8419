"""Fake quantization whose step learns: the ranges themselves follow the gradient."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab_kernels import reference
from dfqlab_kernels.backends import uses_triton
from dfqlab_kernels.quantization import check_qparams


def learned_step_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*qparams"],
    zero_point: Float[Tensor, "..."] | None = None,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    gradient_scale: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """`y = (clamp(rint(x / s) + r, quant_min, quant_max) - r) * s` with `r = clamp(rint(z), quant_min, quant_max)`.

    The numbers are those of `fake_quantize` with the zero point r. Gradients reach x, the scale s and the zero point z:

    |         | dx | ds                          | dz                           |
    |---------|----|-----------------------------|------------------------------|
    | inside  | dy | dy (y - x) / s              | 0                            |
    | clipped | 0  | dy (quant_min or _max - r)  | -dy s                        |

    ds and dz are summed over all elements of their s and z (in float32; float64 for float64 x) and multiplied by
    `gradient_scale`; rounding and clipping of z itself pass the gradient straight through. The column ds is equation 3
    of LSQ (Esser et al. 2020), except that what rounds to an end of the grid is inside, as in torch; the zero point is
    the offset of LSQ+ (Bhalgat et al. 2020) in steps. One integer r serves forward and backward, where torch's
    per-tensor op rounds z in two different ways. NaN in x stays NaN in y, and that element has no gradient of
    its own: it is neither inside nor clipped. Differentiable once.

    Args:
        x: any shape; float16, bfloat16, float32 or float64. The result has its dtype and memory format.
        scale: positive; one element, or one for each index of `axis`.
        zero_point: shaped like `scale`, in steps; None is symmetric, and nothing but x and the scale learns.
        quant_min, quant_max: the ends of the grid, inclusive, less than 2^21 away from zero.
        axis: the dimension that `scale` runs along; None quantizes per tensor.
        gradient_scale: LSQ recommends `1 / sqrt(n * quant_max)` for n elements that share a scale (section 2.2).

    Raises:
        ShapeError: `scale` or `zero_point` does not fit `x` along `axis`.
        DeviceError: one of them is not on x's device.

    >>> scale = torch.tensor(0.5, requires_grad=True)
    >>> y = learned_step_quantize(torch.tensor([0.25, 0.375, 9.0]), scale, quant_min=-2, quant_max=1)
    >>> y.tolist()
    [0.0, 0.5, 0.5]
    >>> y.sum().backward()
    >>> scale.grad.item()  # (0 - 0.5) + (1 - 0.75) + 1
    0.75
    """
    check_qparams("learned_step_quantize", x, axis, scale=scale, zero_point=zero_point)
    if not uses_triton(x):
        return reference.learned_step_quantize(x, scale, zero_point, axis, quant_min, quant_max, gradient_scale)
    y: Tensor = _learned_step(x, scale, zero_point, axis, quant_min, quant_max, gradient_scale)
    return y


@torch.library.custom_op("dfqlab::learned_step_quantize", mutates_args=())
def _learned_step(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    gradient_scale: float,
) -> Tensor:
    from dfqlab_kernels.programs import learned_step

    return learned_step.forward(x, scale, zero_point, axis, quant_min, quant_max)


@_learned_step.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("dfqlab::learned_step_quantize_backward", mutates_args=())
def _learned_step_backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from dfqlab_kernels.programs import learned_step

    return learned_step.backward(dy, x, scale, zero_point, axis, quant_min, quant_max, gradient_scale)


@_learned_step_backward.register_fake
def _(dy: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dz = scale.new_empty(0) if zero_point is None else zero_point.new_empty(zero_point.shape)
    return torch.empty_like(x), scale.new_empty(scale.shape), dz


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, *ctx.rest = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point = ctx.saved_tensors
    dx, ds, dz = _learned_step_backward(dy, x, scale, zero_point, *ctx.rest)
    return dx, ds, None if zero_point is None else dz, None, None, None, None


_learned_step.register_autograd(_gradient, setup_context=_setup)
