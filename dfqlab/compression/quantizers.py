"""Quantizers of activations and weights: a range becomes a scale and a zero point."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfqlab.compression.spec import Grid
from dfqlab.errors import QuantizationError
from dfqlab_kernels import fake_quantize

SMALLEST_SCALE = 1e-8


@dataclass(frozen=True)
class QuantizationParameters:
    """An affine map: `real = (code - zero_point) * scale`, codes in [quant_min, quant_max]."""

    scale: Tensor
    zero_point: int
    quant_min: int
    quant_max: int

    @property
    def range(self) -> tuple[float, float]:
        """The reals at the ends of the grid."""
        low, high = self.quant_min - self.zero_point, self.quant_max - self.zero_point
        return low * float(self.scale), high * float(self.scale)


def affine_scales(
    low: Float[Tensor, "*n"], high: Float[Tensor, "*n"], grid: Grid
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """The scale (float32) and the zero point that put each [low, high], widened to contain 0, on an affine grid.

    Zero is exactly a code, so that zero padding and ReLU cost nothing.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    scale = ((high - low) / (grid.quant_max - grid.quant_min)).clamp(min=SMALLEST_SCALE).float()
    zero_point = grid.quant_min + torch.round(-low / scale.double())
    return scale, zero_point.clamp(grid.quant_min, grid.quant_max)


def affine_parameters(low: float, high: float, grid: Grid) -> QuantizationParameters:
    """`affine_scales` of one range."""
    ends = torch.tensor([low, high], dtype=torch.float64)
    scale, zero_point = affine_scales(ends[0], ends[1], grid)
    return QuantizationParameters(scale, int(zero_point), grid.quant_min, grid.quant_max)


def symmetric_scale(
    low: Float[Tensor, "*channels"], high: Float[Tensor, "*channels"], grid: Grid
) -> Float[Tensor, "*channels"]:
    """The smallest scale at which a symmetric grid covers [low, high]: the negative end reaches one step further."""
    return torch.maximum(high / grid.quant_max, low / grid.quant_min).clamp(min=SMALLEST_SCALE)


class ActivationQuantizer(nn.Module):
    """Stands in the graph where an activation becomes integers. Passes values on until it is frozen into an integer op.

    Attributes:
        name: the module path of the layer whose output it quantizes.
        grid: its integers.
        lower, upper: bounds that the activation function in front of it guarantees (ReLU: 0, ReLU6: 0 and 6).
        averages: behind an average pooling, the path of the quantizer whose values it averages; its range holds here.
        quantization: set by `set_range`, never by a forward pass.
    """

    def __init__(
        self,
        name: str,
        grid: Grid,
        lower: float | None = None,
        upper: float | None = None,
        averages: str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.grid = grid
        self.lower = lower
        self.upper = upper
        self.averages = averages
        self._frozen: QuantizationParameters | None = None
        self.observer: Callable[[Tensor], None] | None = None

    def set_range(self, low: float, high: float) -> None:
        """Freeze the range of reals that the codes span.

        Where ReLU6 stands in front, the last code is the one of 6: the quantizer's clip does ReLU6's work.
        """
        parameters = affine_parameters(low, high, self.grid)
        if self.upper is not None:
            top = round(self.upper / float(parameters.scale)) + parameters.zero_point
            parameters = QuantizationParameters(
                parameters.scale, parameters.zero_point, parameters.quant_min, min(parameters.quant_max, top)
            )
        self._frozen = parameters

    def set_step(self, scale: Float[Tensor, ""]) -> None:
        """Another step with the same zero point."""
        p = self.quantization
        scale = scale.to(p.scale).clamp(min=SMALLEST_SCALE)
        top = self.grid.quant_max
        if self.upper is not None:
            top = min(top, round(self.upper / float(scale)) + p.zero_point)
        self._frozen = QuantizationParameters(scale, p.zero_point, p.quant_min, top)

    def follow(self, other: "ActivationQuantizer") -> None:
        """Take the range of another quantizer, and its very codes where both have the same grid."""
        if self.grid == other.grid and self.upper is None:
            self._frozen = other.quantization
        else:
            self.set_range(*other.quantization.range)

    @property
    def quantization(self) -> QuantizationParameters:
        """The frozen parameters.

        Raises:
            QuantizationError: not calibrated yet.
        """
        if self._frozen is None:
            raise QuantizationError(f"the quantizer after {self.name!r} has no range yet; calibrate first")
        return self._frozen

    def simulate(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The values that the codes of x stand for.

        Raises:
            QuantizationError: not calibrated yet.
        """
        p = self.quantization
        zero_point = torch.tensor(p.zero_point, device=x.device)
        return fake_quantize(x, p.scale.to(x.device), zero_point, quant_min=p.quant_min, quant_max=p.quant_max)

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(x)
        return x
