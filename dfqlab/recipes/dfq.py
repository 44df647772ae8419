"""Data-Free Quantization (Nagel et al. 2019, ICCV): no image at all."""

from dataclasses import dataclass
from typing import Any

from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.images import ImageSource
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class DFQ:
    """Weights are equalized across layers, large biases absorbed, and what rounding takes from a mean is given back.

    Ranges and means come from the Gaussians that BatchNorm keeps. Weights are covered by their extremes, with one scale
    a layer, as in the paper.
    """

    @property
    def quantization(self) -> dict[str, Any]:
        """Equalize, absorb, take ranges from BatchNorm, round to nearest, correct biases."""
        return {
            "equalization": "dfq",
            "calibration": "bn",
            "weight_calibration": "minmax",
            "bias_correction": "analytic",
            "granularity": "per_tensor",
        }

    def compress(self, teacher: Teacher, images: ImageSource | None = None, **how: Any) -> CompressedModel:
        """Quantize as the paper does, or as `how` says. No image is looked at."""
        return quantize(teacher, None, **self.quantization | how)
