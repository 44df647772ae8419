"""How far the statistics of a batch are from what BatchNorm remembers: the loss of all layers at once."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab_kernels import reference
from dfqlab_kernels.backends import uses_triton
from dfqlab_kernels.errors import ShapeError
from dfqlab_kernels.reference.alignment import Distance, Spread

_DISTANCES, _SPREADS = get_args(Distance), get_args(Spread)


def bn_alignment(
    mean: Float[Tensor, "*n total"],
    var: Float[Tensor, "*n total"],
    target_mean: Float[Tensor, " total"],
    target_var: Float[Tensor, " total"],
    *,
    channels: Sequence[int],
    distance: Distance = "squared",
    spread: Spread = "var",
    mean_margin: Float[Tensor, " total"] | None = None,
    spread_margin: Float[Tensor, " total"] | None = None,
    weights: Float[Tensor, "_ _"] | None = None,
    epsilon: float = 0.0,
) -> Float[Tensor, ""]:
    """`sum over samples s and layers l of weights[s, l] · D[s, l]`: the loss of all layers, differentiable once.

    With δ = mean - target_mean and ρ = spread - target_spread, each shortened by its margin (`sign(δ) max(|δ| - margin,
    0)`: no loss and no gradient inside), and sums over the channels of a layer, D is

    - "squared": `sum δ² + sum ρ²` (ZeroQ, eq. 2, with spread "std"; DSG, eq. 5, with margins);
    - "l2": `||δ|| + ||ρ||` (DeepInversion, eq. 4), whose gradient at zero is zero;
    - "kl": `sum ½ (v / v' + δ² / v' - 1 - log(v / v'))`, the divergence KL(batch ‖ memory) of two Gaussians, with
      v = var + epsilon and v' = target_var + epsilon (The Knowledge Within). It takes no margins.

    Args:
        mean, var: of the batch (total,), or of each sample (n, total); what `merge_moments` returns.
        target_mean, target_var: what BatchNorm remembers.
        channels: of each layer, in order; they sum to total.
        spread: "var", the variance, or "std", `sqrt(var + epsilon)`.
        mean_margin, spread_margin: slack of each channel, both or none.
        weights: of samples and layers, (n or 1, layers or 1); None is the mean over samples of the sum over layers.
        epsilon: added to variances under a root, a logarithm or a fraction line.

    On a GPU the first call for these layers copies a small table there: capture a CUDA graph after it.

    Raises:
        ShapeError: shapes that do not fit.
        ValueError: no such distance or spread; one margin without the other; margins with "kl".

    >>> zero, one = torch.zeros(3), torch.ones(3)
    >>> bn_alignment(torch.tensor([2.0, 0.0, 1.0]), one, zero, one, channels=[2, 1]).item()
    5.0
    """
    _check(mean, var, target_mean, target_var, channels, distance, spread, mean_margin, spread_margin, weights)
    mean, var = (mean[None], var[None]) if mean.dim() == 1 else (mean, var)
    target_mean, target_var = target_mean.detach(), target_var.detach()
    if uses_triton(mean):
        distances, _ = _align(
            mean, var, target_mean, target_var, mean_margin, spread_margin, list(channels), distance, spread, epsilon
        )
    else:
        distances = reference.bn_alignment(
            mean, var, target_mean, target_var, channels, distance, spread, mean_margin, spread_margin, epsilon
        )
    total: Tensor = (distances if weights is None else distances * weights).sum()
    return total if weights is not None or len(distances) == 1 else total / len(distances)


def _check(
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    channels: Sequence[int],
    distance: str,
    spread: str,
    mean_margin: Tensor | None,
    spread_margin: Tensor | None,
    weights: Tensor | None,
) -> None:
    for name, value, known in (("distance", distance, _DISTANCES), ("spread", spread, _SPREADS)):
        if value not in known:
            raise ValueError(f"bn_alignment: {name}={value!r}; choose one of {', '.join(known)}")
    if (mean_margin is None) != (spread_margin is None):
        raise ValueError("bn_alignment: give both margins or none")
    if distance == "kl" and mean_margin is not None:
        raise ValueError("bn_alignment: a divergence has no margins; use distance 'squared' or 'l2'")
    total = sum(channels)
    if mean.shape != var.shape or mean.dim() not in (1, 2):
        raise ShapeError(f"bn_alignment: mean of shape {tuple(mean.shape)} and var of shape {tuple(var.shape)}")
    if mean.shape[-1] != total:
        raise ShapeError(f"bn_alignment: mean has {mean.shape[-1]} channels, the layers have {total}")
    for name, tensor in (
        ("target_mean", target_mean), ("target_var", target_var),
        ("mean_margin", mean_margin), ("spread_margin", spread_margin),
    ):  # fmt: skip
        if tensor is not None and tensor.shape != (total,):
            raise ShapeError(f"bn_alignment: {name} has shape {tuple(tensor.shape)}, the layers have {total} channels")
    n, layers = mean.shape[0] if mean.dim() == 2 else 1, len(channels)
    if weights is not None and (
        weights.dim() != 2 or weights.shape[0] not in (1, n) or weights.shape[1] not in (1, layers)
    ):
        raise ShapeError(f"bn_alignment: weights of shape {tuple(weights.shape)}; expected ({n} or 1, {layers} or 1)")


@torch.library.custom_op("dfqlab::bn_alignment", mutates_args=())
def _align(
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    mean_margin: Tensor | None,
    spread_margin: Tensor | None,
    channels: Sequence[int],
    distance: str,
    spread: str,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    from dfqlab_kernels.programs import packed

    return packed.align(
        mean, var, target_mean, target_var, mean_margin, spread_margin, channels, distance, spread, epsilon
    )


@_align.register_fake
def _(
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    mean_margin: Tensor | None,
    spread_margin: Tensor | None,
    channels: Sequence[int],
    distance: str,
    spread: str,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape[0], len(channels)), mean.new_empty(2, mean.shape[0], len(channels))


@torch.library.custom_op("dfqlab::bn_alignment_backward", mutates_args=())
def _align_backward(
    to_distances: Tensor,
    norms: Tensor,
    mean: Tensor,
    var: Tensor,
    target_mean: Tensor,
    target_var: Tensor,
    mean_margin: Tensor | None,
    spread_margin: Tensor | None,
    channels: Sequence[int],
    distance: str,
    spread: str,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    from dfqlab_kernels.programs import packed

    return packed.align_backward(
        to_distances, norms, mean, var, target_mean, target_var, mean_margin, spread_margin, channels, distance,
        spread, epsilon,
    )  # fmt: skip


@_align_backward.register_fake
def _(to_distances: Tensor, norms: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape), mean.new_empty(mean.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.channels, ctx.distance, ctx.spread, ctx.epsilon = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the norms


def _gradient(ctx: Any, to_distances: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    found = _align_backward(to_distances, *ctx.saved_tensors, ctx.channels, ctx.distance, ctx.spread, ctx.epsilon)
    return *found, *[None] * 8


_align.register_autograd(_gradient, setup_context=_setup)
