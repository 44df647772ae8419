"""Mean and variance of each channel: what BatchNorm sees of a batch, read while the batch passes."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab_kernels import reference
from dfqlab_kernels.backends import uses_triton
from dfqlab_kernels.errors import ShapeError
from dfqlab_kernels.layout import channel_layout, reduction_tiling

Per = Literal["batch", "sample"]
_PERS = get_args(Per)


def channel_stats(
    x: Float[Tensor, "n c *spatial"], *, per: Per = "batch", correction: int = 0
) -> tuple[Float[Tensor, "... c"], Float[Tensor, "... c"]]:
    """Mean and variance of each channel from one read of x, differentiable once in both.

    Accumulates in float32 (float64 for float64 input). `correction=0` is the biased variance that BatchNorm
    normalises with. A constant channel has variance 0 exactly. Statistics of the batch follow from those of its
    samples: `merge_moments` and `dfqlab.statistics.Statistics.over_batch` read nothing twice.

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
    check_channels("channel_stats", x, per, correction)
    if uses_triton(x):
        return merge_moments([_Tap.apply(x, per == "sample")[1]], per=per, correction=correction)
    mean, var = reference.channel_stats(x, per == "sample", correction)
    return mean, var


def tap_channel_stats(
    x: Float[Tensor, "n c *spatial"], *, per: Per = "batch"
) -> tuple[Float[Tensor, "n c *spatial"], Float[Tensor, "3 groups splits c"]]:
    """x itself, and the moments of its channels for `merge_moments`.

    Hand the returned x on instead of the one that came: its gradient and that of the moments then reach x in one
    pass, where autograd would add two tensors of its size. It must not be changed in place. For graphs in which
    BatchNorm is better left as it stands; `bn_activation_stats` takes BatchNorm in as well.

    Raises:
        ShapeError: fewer than two dimensions, or nothing to average over.

    >>> x, moments = tap_channel_stats(torch.ones(2, 3, 4, 4))
    >>> moments.flatten(1).tolist()
    [[32.0, 32.0, 32.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    check_channels("tap_channel_stats", x, per, 0)
    if uses_triton(x):
        through, moments = _Tap.apply(x, per == "sample")
        return through, moments
    return x, reference.channel_moments(x, per == "sample")


def merge_moments(
    moments: Sequence[Float[Tensor, "3 groups _ _"]], *, per: Per = "batch", correction: int = 0
) -> tuple[Float[Tensor, "*groups total"], Float[Tensor, "*groups total"]]:
    """Mean and variance of all layers side by side, from the moments of each.

    On a GPU one launch gathers the moments of all layers in a buffer, and one merges them, in an order that shapes
    alone decide (Chan, Golub and LeVeque 1983). The first call for layers of these shapes copies a small table there:
    capture a CUDA graph after it.

    Args:
        moments: what `tap_channel_stats` or `bn_activation_stats` returned, with the same `per`.
        correction: subtracted from the number of elements that a variance divides by.

    Returns:
        (total,) per batch, (n, total) per sample; total channels of all layers, in order.

    Raises:
        ShapeError: no layer, or layers that disagree about the number of samples.

    >>> _, of_ones = tap_channel_stats(torch.ones(2, 3, 4, 4))
    >>> _, of_zeros = tap_channel_stats(torch.zeros(2, 1, 2, 2))
    >>> merge_moments([of_ones, of_zeros])[0].tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    if len({m.shape[1] for m in moments}) != 1:
        raise ShapeError(
            f"merge_moments: expected layers of one number of groups, got shapes {[tuple(m.shape) for m in moments]}"
        )
    if uses_triton(moments[0]):
        mean, var, _ = _merge(list(moments), correction)
    else:
        mean, var = reference.merge_moments(moments, correction)
    return (mean.squeeze(0), var.squeeze(0)) if per == "batch" else (mean, var)


def check_channels(op: str, x: Tensor, per: Per, correction: int) -> None:
    """Raise a ShapeError unless every channel has more than `correction` elements, a ValueError if no such `per`."""
    if per not in _PERS:
        raise ValueError(f"{op}: per={per!r}; choose one of {', '.join(_PERS)}")
    if x.dim() < 2:
        raise ShapeError(f"{op}: expected at least (n, c), got shape {tuple(x.shape)}")
    count = math.prod(x.shape[2:]) * (1 if per == "sample" else x.shape[0])
    if count - correction < 1:
        raise ShapeError(
            f"{op}(per={per!r}, correction={correction}): {count} element(s) a channel in shape "
            f"{tuple(x.shape)}; expected more than {correction}"
        )


def empty_moments(x: Tensor, per_sample: bool) -> Tensor:
    """Uninitialised moments of x, as a kernel would fill them."""
    _, layout = channel_layout(x, per_sample=per_sample)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(3, layout.groups, reduction_tiling(layout).splits, x.shape[1], dtype=dtype)


class _Tap(torch.autograd.Function):
    """x and its moments; a custom op may not return what it was given, so x passes around it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
        moments = _moments(x, per_sample)
        ctx.save_for_backward(x, moments)
        ctx.per_sample = per_sample
        ctx.set_materialize_grads(False)
        return x.view_as(x), moments

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dx: Tensor | None, to_moments: Tensor | None) -> tuple[Tensor | None, None]:
        x, moments = ctx.saved_tensors
        return dx if to_moments is None else moments_backward(x, moments, to_moments, dx, ctx.per_sample), None


@torch.library.custom_op("dfqlab::moments", mutates_args=())
def _moments(x: Tensor, per_sample: bool) -> Tensor:
    from dfqlab_kernels.programs import statistics

    return statistics.moments(x, per_sample)


@_moments.register_fake
def _(x: Tensor, per_sample: bool) -> Tensor:
    return empty_moments(x, per_sample)


@torch.library.custom_op("dfqlab::moments_backward", mutates_args=())
def moments_backward(x: Tensor, moments: Tensor, to_moments: Tensor, dx: Tensor | None, per_sample: bool) -> Tensor:
    from dfqlab_kernels.programs import statistics

    return statistics.moments_backward(x, moments, to_moments, dx, per_sample)


@moments_backward.register_fake
def _(x: Tensor, moments: Tensor, to_moments: Tensor, dx: Tensor | None, per_sample: bool) -> Tensor:
    return torch.empty_like(channel_layout(x, per_sample=per_sample)[0])


@torch.library.custom_op("dfqlab::merge_moments", mutates_args=())
def _merge(moments: Sequence[Tensor], correction: int) -> tuple[Tensor, Tensor, Tensor]:
    from dfqlab_kernels.programs import packed

    return packed.merge(moments, correction)


@_merge.register_fake
def _(moments: Sequence[Tensor], correction: int) -> tuple[Tensor, Tensor, Tensor]:
    groups, total = moments[0].shape[1], sum(m.shape[3] for m in moments)
    new = moments[0].new_empty
    return new(groups, total), new(groups, total), new(sum(m.numel() for m in moments))


@torch.library.custom_op("dfqlab::merge_moments_backward", mutates_args=())
def _merge_backward(
    to_mean: Tensor, to_var: Tensor, packed: Tensor, mean: Tensor, sides: Sequence[int], correction: int
) -> Tensor:
    from dfqlab_kernels.programs import packed as programs

    return programs.merge_backward(to_mean, to_var, packed, mean, sides, correction)


@_merge_backward.register_fake
def _(to_mean: Tensor, to_var: Tensor, packed: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(packed)


def _merge_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    moments, ctx.correction = inputs
    mean, _, packed = output
    ctx.shapes = [m.shape for m in moments]
    ctx.save_for_backward(packed, mean)
    ctx.mark_non_differentiable(packed)
    ctx.set_materialize_grads(False)  # no zeros for the buffer


def _merge_gradient(
    ctx: Any, to_mean: Tensor | None, to_var: Tensor | None, _: Tensor | None
) -> tuple[list[Tensor], None]:
    packed, mean = ctx.saved_tensors
    to_mean = torch.zeros_like(mean) if to_mean is None else to_mean
    to_var = torch.zeros_like(mean) if to_var is None else to_var
    sides = [side for shape in ctx.shapes for side in shape[2:]]
    flat = _merge_backward(to_mean, to_var, packed, mean, sides, ctx.correction)
    parts = flat.split([shape.numel() for shape in ctx.shapes])
    return [part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)], None


_merge.register_autograd(_merge_gradient, setup_context=_merge_setup)
