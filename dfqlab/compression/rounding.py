"""How weights become codes: to the nearest, or so that errors cancel (SQuant)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.spec import Grid
from dfqlab.compression.weight_ranges import layer_scale
from dfqlab.errors import QuantizationError
from dfqlab.images import ImageSource
from dfqlab.progress import OnStep, ignore

_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class RoundedWeight:
    """A layer's weights as integers.

    Attributes:
        codes: whole numbers on the grid, shaped like the weight.
        scale: of each output channel.
    """

    codes: Float[Tensor, "out *rest"]
    scale: Float[Tensor, "out"]

    @property
    def weight(self) -> Float[Tensor, "out *rest"]:
        """The weights that the codes stand for."""
        return self.codes * self.scale.reshape(-1, *[1] * (self.codes.dim() - 1))


Rounded = Mapping[str, RoundedWeight]


class Rounding(Protocol):
    """From a calibrated network, and images where the method learns from them, to codes by module path."""

    def __call__(self, prepared: PreparedNetwork, source: ImageSource | None, *, on_step: OnStep = ignore) -> Rounded:
        """The codes of every weighted layer. A method that learns may also move the steps of activations."""
        ...


def weight_scales(prepared: PreparedNetwork) -> dict[str, Float[Tensor, "out"]]:
    """The scales of every layer's weights. Activations are calibrated before: a bias stands on the grid of both.

    Raises:
        QuantizationError: weights that are not finite, or a quantizer without a range.
    """
    found = {}
    for path, layer in prepared.weights.items():
        weight, bias = layer.weight.detach(), layer.bias
        if not torch.isfinite(weight).all() or (bias is not None and not torch.isfinite(bias).all()):
            raise QuantizationError(f"layer {path!r} has weights that are not finite")
        scale = layer_scale(prepared, path, prepared.grids[path])
        if bias is not None:  # a runtime adds the bias as int32: its code must not saturate
            scale = torch.maximum(scale, bias.detach().abs() / largest_bias(1.0, prepared.input_scale(path).to(scale)))
        if prepared.grids[path].granularity == "per_tensor":
            scale = scale.amax().expand_as(scale).clone()
        found[path] = scale
    return found


def largest_bias(scale: Tensor | float, input_scale: Tensor) -> Tensor:
    """What the int32 code of a bias can hold, with room for the sum that it is added to."""
    return input_scale * scale * _LARGEST_BIAS


def nearest(prepared: PreparedNetwork, source: ImageSource | None = None, *, on_step: OnStep = ignore) -> Rounded:
    """Every weight to the nearest code."""
    return _each_layer(prepared, round_to_grid)


def squant(prepared: PreparedNetwork, source: ImageSource | None = None, *, on_step: OnStep = ignore) -> Rounded:
    """Every weight up or down so that the errors of a kernel, and of an output channel, cancel (SQuant)."""
    return _each_layer(prepared, cancelling_codes)


def _each_layer(prepared: PreparedNetwork, codes_of: Callable[[Tensor, Tensor, Grid], Tensor]) -> Rounded:
    found = {}
    for path, scale in weight_scales(prepared).items():
        weight = prepared.weights[path].weight.detach()
        found[path] = RoundedWeight(codes_of(weight, scale, prepared.grids[path]), scale)
    return found


def round_to_grid(
    weight: Float[Tensor, "out *rest"], scale: Float[Tensor, "out"], grid: Grid
) -> Float[Tensor, "out *rest"]:
    """Codes of weights, rounded to nearest (half to even) and clipped to the grid."""
    return torch.round(_in_steps(weight, scale)).clamp(grid.quant_min, grid.quant_max)


def cancelling_codes(
    weight: Float[Tensor, "out *rest"], scale: Float[Tensor, "out"], grid: Grid
) -> Float[Tensor, "out *rest"]:
    """Codes whose errors sum to at most half a step in each output channel, and nearly so in each of its kernels.

    SQuant (Guo et al. 2022): the weights are rounded to nearest; then, in each kernel, as many of them as its summed
    error says are rounded the other way, those first that were nearest to it anyway; then the same across the kernels
    of an output channel, with one more weight of a kernel at most. Without data: it is what the diagonal blocks of the
    Hessian ask for. A weight that is clipped stays where it is, so a channel with many of them can miss the half step.
    """
    steps = _in_steps(weight, scale)
    kernels = steps.reshape(len(steps), -1, steps[0, 0].numel() if steps.dim() == 4 else 1)  # out, kernel, weight
    codes = torch.round(kernels).clamp(grid.quant_min, grid.quant_max)
    rounded = (codes - kernels).abs() <= 0.5  # and not clipped
    codes = _flip(kernels, codes, rounded, grid)
    codes = _flip_one_in_each_kernel(kernels, codes, rounded, grid)
    return codes.reshape(steps.shape)


def _flip(steps: Tensor, codes: Tensor, rounded: Tensor, grid: Grid) -> Tensor:
    """Along the last dimension: move as many codes by one as the rounded sum of their errors says."""
    error = codes - steps
    total = error.sum(-1, keepdim=True)
    movable = rounded & _towards_zero(codes, error, -total.sign(), grid)
    chosen = (_rank(torch.where(movable, error.abs(), -1.0), -1) < total.abs().round()) & movable
    return torch.where(chosen, codes - total.sign(), codes)


def _flip_one_in_each_kernel(steps: Tensor, codes: Tensor, rounded: Tensor, grid: Grid) -> Tensor:
    """Across the kernels of an output channel, each with its weight of the largest error; it may be moved back.

    Only kernels that are off to the same side as the channel: none is then off by more than one step.
    """
    error = codes - steps
    total = error.sum((1, 2), keepdim=True)
    same_side = error.sum(2, keepdim=True) * total > 0
    movable = rounded & same_side & _towards_zero(codes, error, -total.sign(), grid)
    size, best = torch.where(movable, error.abs(), -1.0).max(2, keepdim=True)
    chosen = (_rank(size, 1) < total.abs().round()) & (size >= 0)
    return codes.scatter_add(2, best, -total.sign() * chosen)


def _towards_zero(codes: Tensor, error: Tensor, direction: Tensor, grid: Grid) -> Tensor:
    """Codes whose error has the sign of the sum, and that stay on the grid when they are moved against it."""
    moved = codes + direction
    return (moved >= grid.quant_min) & (moved <= grid.quant_max) & (error * direction < 0)


def _rank(size: Tensor, dim: int) -> Tensor:
    """0 for the largest along a dimension, 1 for the next."""
    return size.argsort(dim=dim, descending=True, stable=True).argsort(dim=dim)


def _in_steps(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * (1 / scale).reshape(-1, *[1] * (weight.dim() - 1))
