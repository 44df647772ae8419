"""Fake quantization: a tensor goes to the integer grid and comes back, and a gradient goes through."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab_kernels import reference
from dfqlab_kernels.backends import uses_triton
from dfqlab_kernels.errors import DeviceError, ShapeError
from dfqlab_kernels.layout import elementwise_layout, elementwise_tiling
from dfqlab_kernels.reference.quantization import Save


def fake_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*qparams"],
    zero_point: Tensor | None = None,
    *,
    quant_min: int,
    quant_max: int,
    axis: int | None = None,
    clip_gradient: bool = True,
    save: Save = "mask",
) -> Float[Tensor, "*shape"]:
    """Round to the integer grid and come back: `y = (clamp(rint(x / s) + z, quant_min, quant_max) - z) * s`.

    Division is a multiplication with the float32 inverse `1 / s`, rounding is half to even, and the zero point is
    added after rounding, as torch's own op does. NaN stays NaN and an infinity clips to its own end, which torch's op
    does not promise. The gradient reaches x alone.

    Args:
        x: any shape; float16, bfloat16, float32 or float64. The result has its dtype and memory format.
        scale: positive; one element, or one for each index of `axis`.
        zero_point: integers (any dtype) shaped like `scale`; None is 0.
        quant_min, quant_max: the ends of the grid, inclusive, less than 2^22 steps from the zero point.
        axis: the dimension that `scale` runs along; None quantizes per tensor.
        clip_gradient: the straight-through estimator passes the gradient only where the value was not clipped
            (True, as torch, LSQ and BRECQ) or everywhere (False, as the GDFQ family).
        save: what the backward pass is left: a bit for each element ("mask"; a byte on a CPU), or x itself, read again
            ("input"), which costs nothing where x is kept anyway.

    Raises:
        ShapeError: `scale` or `zero_point` does not fit `x` along `axis`.
        DeviceError: one of them is not on x's device.

    >>> fake_quantize(torch.tensor([0.26, -0.5, 9.0]), torch.tensor([0.5]), quant_min=-2, quant_max=1).tolist()
    [0.5, -0.5, 0.5]
    """
    check_qparams("fake_quantize", x, axis, scale=scale, zero_point=zero_point)
    if not uses_triton(x):
        return reference.fake_quantize(x, scale, zero_point, axis, quant_min, quant_max, clip_gradient, save)
    y: Tensor
    if save == "mask" and clip_gradient:
        y, _ = _packing(x, scale, zero_point, axis, quant_min, quant_max)
    else:
        y = _rereading(x, scale, zero_point, axis, quant_min, quant_max, clip_gradient)
    return y


def check_qparams(op: str, x: Tensor, axis: int | None, **qparams: Tensor | None) -> None:
    """Raise an error unless each of them is where x is and has one element, or one for each index of `axis`."""
    if axis is not None and not -x.dim() <= axis < x.dim():
        raise ShapeError(f"{op}: axis={axis} is not a dimension of shape {tuple(x.shape)}")
    for name, qparam in qparams.items():
        if qparam is None:
            continue
        if qparam.device != x.device:
            raise DeviceError(f"{op}: x is on {x.device} and {name} on {qparam.device}; move one to the other")
        if axis is None and qparam.numel() != 1:
            raise ShapeError(f"{op}: per tensor expects one {name}, got shape {tuple(qparam.shape)}; set axis=")
        if axis is not None and tuple(qparam.shape) != (x.shape[axis],):
            raise ShapeError(
                f"{op}(axis={axis}): expected {name} of shape ({x.shape[axis]},) for x of shape {tuple(x.shape)}, "
                f"got {tuple(qparam.shape)}"
            )


@torch.library.custom_op("dfqlab::fake_quantize_packing", mutates_args=())
def _packing(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    from dfqlab_kernels.programs import quantization

    return quantization.forward(x, scale, zero_point, axis, quant_min, quant_max, pack=True)


@_packing.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    _, layout = elementwise_layout(x, axis)
    tiling = elementwise_tiling(layout)
    return torch.empty_like(x), x.new_empty(tiling.programs(layout) * tiling.tile // 32, dtype=torch.int32)


@torch.library.custom_op("dfqlab::fake_quantize_packing_backward", mutates_args=())
def _packing_backward(dy: Tensor, inside: Tensor, axis: int | None, stride: list[int]) -> Tensor:
    from dfqlab_kernels.programs import quantization

    return quantization.backward_from_bits(dy, inside, axis, stride)


@_packing_backward.register_fake
def _(dy: Tensor, inside: Tensor, axis: int | None, stride: list[int]) -> Tensor:
    return dy.new_empty_strided(dy.shape, stride)


def _packing_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y, inside = output
    ctx.axis, ctx.stride = inputs[3], y.stride()
    ctx.save_for_backward(inside)
    ctx.mark_non_differentiable(inside)
    ctx.set_materialize_grads(False)  # no zeros for the bits


def _packing_gradient(ctx: Any, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return _packing_backward(dy, inside, ctx.axis, ctx.stride), None, None, None, None, None


_packing.register_autograd(_packing_gradient, setup_context=_packing_setup)


@torch.library.custom_op("dfqlab::fake_quantize_rereading", mutates_args=())
def _rereading(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    clip_gradient: bool,
) -> Tensor:
    from dfqlab_kernels.programs import quantization

    return quantization.forward(x, scale, zero_point, axis, quant_min, quant_max, pack=False)[0]


@_rereading.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("dfqlab::fake_quantize_rereading_backward", mutates_args=())
def _rereading_backward(
    dy: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, quant_min: int, quant_max: int
) -> Tensor:
    from dfqlab_kernels.programs import quantization

    return quantization.backward_from_input(dy, x, scale, zero_point, axis, quant_min, quant_max)


@_rereading_backward.register_fake
def _(dy: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _rereading_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, *ctx.grid, ctx.clip_gradient = inputs
    if ctx.clip_gradient:
        ctx.save_for_backward(x, scale, zero_point)


def _rereading_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.clip_gradient:
        dy = _rereading_backward(dy, *ctx.saved_tensors, *ctx.grid)
    return dy, None, None, None, None, None, None


_rereading.register_autograd(_rereading_gradient, setup_context=_rereading_setup)
