"""What to quantize, and how."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dfqlab.errors import ConfigurationError, QuantizationError, did_you_mean

Placement = Literal["deployable"]
Calibration = Literal["minmax", "mse"]
Rounding = Literal["nearest"]

INPUT_BITS = 8


@dataclass(frozen=True)
class Grid:
    """The integers that a tensor may take.

    Attributes:
        bits: 2 to 8; the container is one byte at any width.
        symmetric: symmetric grids hold `[-2^(bits-1), 2^(bits-1) - 1]` (int8, zero point 0), affine ones
            `[0, 2^bits - 1]` (uint8, zero point anywhere inside).
        granularity: one scale for the tensor, or one for each output channel.
    """

    bits: int
    symmetric: bool
    granularity: Literal["per_tensor", "per_channel"]

    @property
    def quant_min(self) -> int:
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def quant_max(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1


@dataclass(frozen=True)
class QuantizationSpec:
    """How a network becomes integers.

    Attributes:
        weights: bits of every convolution's and linear layer's weights, 2 to 8; symmetric, per output channel.
        activations: bits of every activation but the network's input, 2 to 8; affine, per tensor.
        calibration: where ranges come from, see `dfqlab.compression.calibration`.
        rounding: how weights are rounded to their grid.
        placement: where quantizers stand; "deployable" is what an integer runtime executes.

    Raises:
        QuantizationError: bits that are not an integer from 2 to 8.
        ConfigurationError: an unknown calibration, rounding or placement.
    """

    weights: int = 8
    activations: int = 8
    calibration: Calibration = "mse"
    rounding: Rounding = "nearest"
    placement: Placement = "deployable"

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            bits = getattr(self, name)
            if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
                raise QuantizationError(f"{name}={bits!r}: bits are an integer from 2 to 8")
        for name, choices in (("calibration", Calibration), ("rounding", Rounding), ("placement", Placement)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ConfigurationError(f"{name}={value!r}: {did_you_mean(str(value), get_args(choices))}")

    @property
    def weight_grid(self) -> Grid:
        return Grid(self.weights, symmetric=True, granularity="per_channel")

    @property
    def activation_grid(self) -> Grid:
        return Grid(self.activations, symmetric=False, granularity="per_tensor")

    @property
    def label(self) -> str:
        """How tables name the widths.

        >>> QuantizationSpec(weights=4, activations=8).label
        'W4A8'
        """
        return f"W{self.weights}A{self.activations}"

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self)
