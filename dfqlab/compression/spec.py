"""What to quantize, and how."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from dfqlab.errors import ConfigurationError, QuantizationError, did_you_mean

Placement = Literal["deployable"]
Calibration = Literal["minmax", "percentile", "ema", "image_mean", "mse", "kl", "aciq", "bn"]
WeightCalibration = Literal["minmax", "percentile", "mse", "aciq"]
Equalization = Literal["none", "dfq"]
BiasCorrection = Literal["none", "analytic", "empirical"]
Rounding = Literal["nearest", "squant", "adaround", "brecq", "qdrop"]
Granularity = Literal["per_tensor", "per_channel"]
Loss = Literal["squared", "fisher"]

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
    granularity: Granularity

    @property
    def quant_min(self) -> int:
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def quant_max(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1


@dataclass(frozen=True)
class Widths:
    """Bits of one layer, where they differ from the specification's.

    Attributes:
        weights: of its weights.
        activations: of the tensor that it puts out, behind its activation function.

    Raises:
        QuantizationError: bits that are not an integer from 2 to 8.
    """

    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            if getattr(self, name) is not None:
                _check_bits(name, getattr(self, name))


@dataclass(frozen=True)
class Reconstruction:
    """How roundings that learn do it; the defaults are those of BRECQ's and QDrop's code, but for their number.

    Attributes:
        iterations: for each layer or block; the papers' 20,000 are for a GPU.
        batch: images in each of them.
        learning_rate: of the logits; None: 0.001 for 20,000 iterations, and as much more as there are fewer, so that a
            logit can go as far.
        penalty: weight of the penalty on what is rounded neither up nor down (λ of AdaRound, eq. 21).
        warm_up: share of the iterations before the penalty counts.
        hardest, softest: the exponent β of the penalty falls from one to the other after the warm-up, linearly.
        drop: share of activations that QDrop leaves in float, to the nearest 256th.
        step_rate: QDrop's learning rate of the steps, relative to each: its code's 4e-5 is meant for steps near 0.1.
        seed: of the batches, and of what is dropped.
        loss: what a rounding makes small behind each layer or block: "squared" errors, as in the papers' code, or
            these, each weighed with the squared gradient of the network's loss, as in BRECQ's paper: "fisher".

    Raises:
        ConfigurationError: an unknown loss, no iteration, no image in a batch, or a share outside its range.
    """

    iterations: int = 2000
    batch: int = 32
    learning_rate: float | None = None
    penalty: float = 0.01
    warm_up: float = 0.2
    hardest: float = 20.0
    softest: float = 2.0
    drop: float = 0.5
    step_rate: float = 4e-4
    seed: int = 0
    loss: Loss = "squared"

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ConfigurationError(f"loss={self.loss!r}: {did_you_mean(str(self.loss), get_args(Loss))}")
        for name in ("iterations", "batch"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)!r}: expected 1 or more")
        if not 0 <= self.warm_up < 1:
            raise ConfigurationError(
                f"warm_up={self.warm_up!r}: expected a share of the iterations, from 0 to less than 1"
            )
        if not 0 <= self.drop <= 1:
            raise ConfigurationError(f"drop={self.drop!r}: expected a share of the activations, from 0 to 1")

    def beta(self, progress: float) -> float:
        """The exponent of the penalty at a share of the iterations.

        >>> Reconstruction().beta(0.1), Reconstruction().beta(0.6), Reconstruction().beta(1.0)
        (20.0, 11.0, 2.0)
        """
        annealed = max(0.0, (progress - self.warm_up) / (1 - self.warm_up))
        return self.hardest + (self.softest - self.hardest) * annealed


@dataclass(frozen=True)
class QuantizationSpec:
    """How a network becomes integers.

    Attributes:
        weights: bits of every convolution's and linear layer's weights, 2 to 8; symmetric, per output channel.
        activations: bits of every activation but the network's input, 2 to 8; affine, per tensor.
        calibration: where ranges come from, see `dfqlab.compression.calibration`.
        rounding: how weights are rounded to their grid.
        equalization: "dfq" scales channels of neighbouring layers against each other before anything is rounded.
        placement: where quantizers stand; "deployable" is what an integer runtime executes.
        layers: bits of single layers, or of single tensors, by the names that the placement table shows.
        ends: bits of the first layer and what it puts out, and of the last layer and what it reads; None: as of others.
        mean_bits: instead of one width for all weights, one for each layer, chosen so that a weight takes this many on
            average at most, those of split channels among them; see `dfqlab.compression.allocation`. Layers named in
            `layers`, and the ends, stay.
        percentile: of calibration "percentile", in per cent.
        weight_calibration: where ranges of weights come from; None: as those of activations where that makes sense for
            weights, else "mse".
        bias_correction: gives back the mean that rounding weights takes from an output; "analytic" knows it from the
            Gaussians that BatchNorm keeps, "empirical" from the images. None: "analytic" with equalization "dfq",
            unless the rounding learns from images: then it has seen to the mean itself.
        granularity: of weights.
        reconstruction: how roundings that learn do it.
        split_channels: share of channels to split in two where two layers follow each other, 0 to 1: outliers among the
            weights then reach half as far, and the layers grow; see `dfqlab.compression.splitting`.

    Raises:
        QuantizationError: bits that are not an integer from 2 to 8.
        ConfigurationError: an unknown choice.
    """

    weights: int = 8
    activations: int = 8
    calibration: Calibration = "mse"
    rounding: Rounding = "nearest"
    equalization: Equalization = "none"
    placement: Placement = "deployable"
    layers: Mapping[str, Widths] = field(default_factory=dict)
    ends: int | None = None
    mean_bits: float | None = None
    percentile: float = 99.99
    weight_calibration: WeightCalibration | None = None
    bias_correction: BiasCorrection | None = None
    granularity: Granularity = "per_channel"
    reconstruction: Reconstruction = Reconstruction()
    split_channels: float = 0.0

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            _check_bits(name, getattr(self, name))
        if self.ends is not None:
            _check_bits("ends", self.ends)
        for name, widths in self.layers.items():
            if not isinstance(widths, Widths):
                raise ConfigurationError(
                    f"layers: {name!r} is given {widths!r}; expected Widths(weights=..., activations=...)"
                )
        if not isinstance(self.percentile, (int, float)) or not 50 < self.percentile <= 100:
            raise ConfigurationError(
                f"percentile={self.percentile!r}: expected more than 50 and at most 100, as 99.99: the share of values "
                "below the upper end, and above the lower one"
            )
        if self.mean_bits is not None and not 2 <= self.mean_bits <= 8:
            raise QuantizationError(
                f"mean_bits={self.mean_bits:g}: a weight takes from 2 to 8 bits; the smallest possible mean is 2, "
                "and more where layers have widths of their own"
            )
        if not isinstance(self.split_channels, (int, float)) or not 0 <= self.split_channels <= 1:
            raise ConfigurationError(
                f"split_channels={self.split_channels!r}: expected a share of the channels, from 0 to 1, as 0.02"
            )
        for name, choices, optional in (
            ("calibration", Calibration, False),
            ("rounding", Rounding, False),
            ("equalization", Equalization, False),
            ("placement", Placement, False),
            ("weight_calibration", WeightCalibration, True),
            ("bias_correction", BiasCorrection, True),
            ("granularity", Granularity, False),
        ):
            value = getattr(self, name)
            if value not in get_args(choices) and not (optional and value is None):
                raise ConfigurationError(f"{name}={value!r}: {did_you_mean(str(value), get_args(choices))}")

    @property
    def weight_grid(self) -> Grid:
        return Grid(self.weights, symmetric=True, granularity=self.granularity)

    @property
    def activation_grid(self) -> Grid:
        return Grid(self.activations, symmetric=False, granularity="per_tensor")

    @property
    def weight_rule(self) -> WeightCalibration:
        """Where ranges of weights come from. A rule that reads batches or BatchNorm has no word for weights."""
        if self.weight_calibration is not None:
            return self.weight_calibration
        own = self.calibration
        return own if own in get_args(WeightCalibration) else "mse"  # type: ignore[return-value]

    @property
    def learns_rounding(self) -> bool:
        """Whether the rounding is learned from images, which takes its time."""
        return self.rounding not in ("nearest", "squant")

    @property
    def corrects(self) -> BiasCorrection:
        """How biases are corrected."""
        if self.bias_correction is not None:
            return self.bias_correction
        return "analytic" if self.equalization == "dfq" and not self.learns_rounding else "none"

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

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> "QuantizationSpec":
        """What `as_dict` gave, back."""
        layers = {name: Widths(**widths) for name, widths in known.get("layers", {}).items()}
        reconstruction = Reconstruction(**known.get("reconstruction", {}))
        return cls(**{**known, "layers": layers, "reconstruction": reconstruction})


def specification(**settings: Any) -> QuantizationSpec:
    """The specification with these fields, where they are given by name.

    Raises:
        QuantizationError: bits outside 2..8.
        ConfigurationError: an unknown choice, or a field that does not exist; names the near ones.
    """
    known = [field.name for field in fields(QuantizationSpec)]
    for name in settings:
        if name not in known:
            raise ConfigurationError(f"unknown setting {name!r}; {did_you_mean(name, known)}")
    return QuantizationSpec(**settings)


def _check_bits(name: str, bits: object) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        raise QuantizationError(f"{name}={bits!r}: bits are an integer from 2 to 8")
