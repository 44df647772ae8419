"""Where ranges of weights come from: the weights alone."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.clipping import aciq_clip
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantizers import symmetric_scale
from dfqlab.compression.spec import Grid, WeightCalibration
from dfqlab_kernels import fake_quantize


def layer_scale(prepared: PreparedNetwork, path: str, grid: Grid) -> Float[Tensor, "out"]:
    """The scales of a layer's weights on a grid, by the rule of the specification.

    Where channels were split, of halves that are alike: those that are rounded stand a part of this step apart.
    """
    split, spec = prepared.splits.get(path), prepared.spec
    weight = prepared.weights[path].weight if split is None else split.halves()
    return weight_scale(weight, grid, spec.weight_rule, spec.percentile)


def weight_scale(
    weight: Float[Tensor, "out *rest"], grid: Grid, method: WeightCalibration, percentile: float = 99.99
) -> Float[Tensor, "out"]:
    """A scale for each output channel, all the same where the grid is per tensor.

    "minmax" covers the extremes. "mse" tries 100 fractions of that and keeps, row by row, the smallest squared error.
    "percentile" covers all but the largest magnitudes, "aciq" clips as for the Gaussian or the Laplace distribution
    that a row resembles; neither covers more than the extremes.
    """
    rows = weight.detach().reshape(len(weight), -1)
    if grid.granularity == "per_tensor":
        whole = replace(grid, granularity="per_channel")
        return weight_scale(rows.reshape(1, -1), whole, method, percentile).expand(len(rows)).clone()
    covering = symmetric_scale(rows.amin(1), rows.amax(1), grid)
    if method == "minmax":
        return covering
    if method == "percentile":
        ends = _quantile(rows.abs(), percentile / 100)
        return torch.minimum(covering, symmetric_scale(-ends, ends, grid))
    if method == "aciq":
        moments = zip((rows.abs().mean(1)).tolist(), rows.square().mean(1).sqrt().tolist(), strict=True)
        ends = rows.new_tensor([aciq_clip(deviation, spread, grid.bits) for deviation, spread in moments])
        return torch.minimum(covering, symmetric_scale(-ends, ends, grid))
    best, best_error = covering, torch.full_like(covering, torch.inf)
    for fraction in torch.linspace(1, 0.01, 100).tolist():
        scale = covering * fraction
        pretended = fake_quantize(rows, scale, quant_min=grid.quant_min, quant_max=grid.quant_max, axis=0)
        error = (rows - pretended).square().sum(1)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return best


def _quantile(rows: Tensor, share: float) -> Tensor:
    """Of each row, between two of its values on the straight line: torch.quantile, which stops at 2^24 values."""
    position = share * (rows.shape[1] - 1)
    below = rows.kthvalue(int(position) + 1, dim=1).values
    above = rows.kthvalue(min(int(position) + 2, rows.shape[1]), dim=1).values
    return torch.lerp(below, above, position - int(position))
