"""Turn bits, symmetry, clip and granularity of the grid under a real weight tensor, and watch its error."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

import dfqlab_kernels
from dfqlab.compression.quantizers import affine_parameters, symmetric_scale
from dfqlab.compression.spec import Grid
from dfqlab.figures import staircase
from dfqlab.lab.controls import Choice, Slider
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Explorer
from dfqlab.measures import sqnr

Granularity = Literal["per tensor", "per channel"]
_STAIR_POINTS = 600


def integer_grid(weight: Float[Tensor, "out *rest"]) -> Explorer:
    """The staircase of a grid over a weight tensor, and the histogram of what it does wrong.

    Args:
        weight: of a convolution or a linear layer, output channels first.
    """
    rows = weight.detach().reshape(len(weight), -1)

    def draw(bits: int, symmetry: str, clip: int, granularity: str) -> Drawing:
        grid = Grid(bits, symmetry == "symmetric", "per_channel" if granularity == "per channel" else "per_tensor")
        scale, zero_point = _on_grid(rows, grid, clip / 100)
        codes = torch.round(rows / scale[:, None]) + zero_point[:, None]
        clipped = (codes < grid.quant_min) | (codes > grid.quant_max)
        quantized = _quantized(rows, scale, zero_point, grid)
        figure = staircase(
            rows.flatten(), quantized.flatten(), clipped.flatten(), _stairs(rows, scale, zero_point, grid)
        )
        return Drawing(
            figure,
            f"{bits} bits, {symmetry}, {granularity}, clip {clip} %: signal to error {sqnr(rows, quantized):.1f} dB, "
            f"{100 * clipped.float().mean():.1f} % of the weights clipped.",
        )

    return Explorer(
        draw,
        bits=Slider(4, 2, 8),
        symmetry=Choice("symmetric", ("symmetric", "affine")),
        clip=Slider(100, 20, 100, step=5, unit="%"),
        granularity=Choice("per tensor", ("per tensor", "per channel")),
    )


def _on_grid(rows: Tensor, grid: Grid, clip: float) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row, where the range is cut to the fraction `clip` of what the values span."""
    low, high = rows.amin(1) * clip, rows.amax(1) * clip
    if grid.granularity == "per_tensor":
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    if grid.symmetric:
        return symmetric_scale(low, high, grid), torch.zeros_like(low)
    parameters = [affine_parameters(a, b, grid) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return torch.stack([p.scale for p in parameters]), torch.tensor([float(p.zero_point) for p in parameters])


def _quantized(rows: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    return dfqlab_kernels.fake_quantize(
        rows, scale, zero_point, quant_min=grid.quant_min, quant_max=grid.quant_max, axis=0
    )


def _stairs(rows: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> list[tuple[Tensor, Tensor]]:
    """A fine ruler through the grid of the whole tensor, or of each channel."""
    ruler = torch.linspace(float(rows.min()), float(rows.max()), _STAIR_POINTS)
    channels = 1 if grid.granularity == "per_tensor" else len(rows)
    lines = _quantized(ruler.expand(channels, -1), scale[:channels], zero_point[:channels], grid)
    return [(ruler, line) for line in lines]
