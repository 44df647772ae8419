"""BatchNorm in eval mode, its activation and the statistics of what came in, from one read."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab_kernels import reference
from dfqlab_kernels.backends import uses_triton
from dfqlab_kernels.errors import ShapeError
from dfqlab_kernels.layout import channel_layout
from dfqlab_kernels.statistics import Per, check_channels, empty_moments, moments_backward

Activation = Literal["none", "relu", "relu6"]
_ACTIVATIONS = get_args(Activation)


def bn_activation_stats(
    x: Float[Tensor, "n c *spatial"],
    scale: Float[Tensor, " c"],
    shift: Float[Tensor, " c"],
    *,
    activation: Activation = "none",
    residual: Float[Tensor, "n c *spatial"] | None = None,
    per: Per = "batch",
) -> tuple[Float[Tensor, "n c *spatial"], Float[Tensor, "3 groups splits c"]]:
    """`activation(x * scale + shift + residual)`, and the moments of x for `merge_moments`.

    BatchNorm in eval mode is this affine map, with `scale = weight / sqrt(running_var + eps)` and
    `shift = bias - running_mean * scale`. Because it uses what it remembers, and not what the batch is, one read of x
    serves it, the activation and the statistics; so does one in the backward pass:
    `dx = [activation passes] dy * scale + a + b * (x - mean)`, a and b from the gradients of mean and variance.
    Frozen: no gradient reaches scale and shift.

    Args:
        x: what BatchNorm reads.
        scale, shift: of BatchNorm in eval mode.
        activation: "none", "relu" or "relu6".
        residual: added before the activation; its gradient is that of the sum.
        per: moments of the whole batch, or of each sample.

    Raises:
        ShapeError: shapes that do not fit, or nothing to average over.
        ValueError: no such activation.

    >>> x = torch.full((2, 1, 2, 2), 3.0)
    >>> y, moments = bn_activation_stats(x, torch.ones(1), -torch.ones(1), activation="relu")
    >>> y.unique().tolist(), moments.flatten().tolist()
    ([2.0], [8.0, 3.0, 0.0])
    """
    check_channels("bn_activation_stats", x, per, 0)
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: choose one of {', '.join(_ACTIVATIONS)}")
    for name, values in (("scale", scale), ("shift", shift)):
        if values.shape != x.shape[1:2]:
            raise ShapeError(
                f"bn_activation_stats: expected {name} of shape ({x.shape[1]},), got {tuple(values.shape)}"
            )
    if residual is not None and residual.shape != x.shape:
        raise ShapeError(
            f"bn_activation_stats: residual of shape {tuple(residual.shape)} for x of shape {tuple(x.shape)}"
        )
    scale, shift = scale.detach(), shift.detach()
    if not uses_triton(x):
        return reference.bn_activation_stats(x, scale, shift, residual, activation, per == "sample")
    y, moments = _normalized(x, scale, shift, residual, activation, per == "sample")
    return y, moments


@torch.library.custom_op("dfqlab::bn_activation_stats", mutates_args=())
def _normalized(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: str, per_sample: bool
) -> tuple[Tensor, Tensor]:
    from dfqlab_kernels.programs import statistics

    return statistics.normalized(x, scale, shift, residual, activation, per_sample)


@_normalized.register_fake
def _(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: str, per_sample: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(channel_layout(x, per_sample=per_sample)[0]), empty_moments(x, per_sample)


@torch.library.custom_op("dfqlab::bn_activation_stats_backward", mutates_args=())
def _normalized_backward(
    dy: Tensor,
    to_moments: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    y: Tensor | None,
    moments: Tensor,
    activation: str,
    to_residual: bool,
    per_sample: bool,
) -> tuple[Tensor, Tensor]:
    from dfqlab_kernels.programs import statistics

    return statistics.normalized_backward(
        dy, to_moments, x, scale, shift, y, moments, activation, to_residual, per_sample
    )


@_normalized_backward.register_fake
def _(
    dy: Tensor,
    to_moments: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    y: Tensor | None,
    moments: Tensor,
    activation: str,
    to_residual: bool,
    per_sample: bool,
) -> tuple[Tensor, Tensor]:
    x = channel_layout(x, per_sample=per_sample)[0]
    return torch.empty_like(x), torch.empty_like(x) if to_residual else x.new_empty(0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scale, shift, residual, ctx.activation, ctx.per_sample = inputs
    y, moments = output
    # With a residual, what the activation clipped is read from y, which the next layer keeps anyway. Without one, x
    # tells, and nothing more is kept.
    ctx.save_for_backward(x, scale, shift, y if residual is not None and ctx.activation != "none" else None, moments)
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)  # no zeros as large as x where only the statistics were used


def _gradient(ctx: Any, dy: Tensor | None, to_moments: Tensor | None) -> tuple[Tensor | None, ...]:
    x, _, _, _, moments = ctx.saved_tensors
    if dy is None:
        dx = None if to_moments is None else moments_backward(x, moments, to_moments, None, ctx.per_sample)
        return dx, None, None, None, None, None
    to_moments = torch.zeros_like(moments) if to_moments is None else to_moments
    to_residual = ctx.has_residual and ctx.needs_input_grad[3]
    dx, residual = _normalized_backward(dy, to_moments, *ctx.saved_tensors, ctx.activation, to_residual, ctx.per_sample)
    return dx, None, None, residual if to_residual else None, None, None


_normalized.register_autograd(_gradient, setup_context=_setup)
