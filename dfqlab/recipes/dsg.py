"""Diverse Sample Generation (Qin et al. 2021), its scheme for post-training quantization."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.images import ImageSource, SyntheticSet
from dfqlab.objective import Objective, Weighted
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import Request, invert
from dfqlab.synthesis.schedules import Plateau
from dfqlab.synthesis.terms import (
    Alignment,
    CrossEntropy,
    SampleCorrelation,
    SlackAlignment,
    TotalVariation,
    one_layer_per_sample,
)
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class DSG:
    """Algorithm 1: slack distribution alignment (eqs. 5 and 6) with layerwise sample enhancement (eqs. 7, 8 and 10).

    The images themselves are what is optimised (eq. 1); its scheme for fine-tuning optimises a generator of them.
    Sample correlation inhibition (eq. 9) is part of its scheme for fine-tuning; `correlation` is its weight here. Rate,
    schedule and steps are those of its baseline, ZeroQ. Without slack, emphasis and correlation this is ZeroQ. Classes
    and an image prior (section 4.3.3, "Label" and "Prior") are weighted by `label` and `total_variation`.
    """

    slack: bool = True
    slack_percentile: float = 0.9  # eq. 6, epsilon
    emphasis: bool = True
    correlation: float = 0.0
    label: float = 0.0
    total_variation: float = 0.0
    learning_rate: float = 0.5
    steps: int = 500
    patience: int = 100
    smallest_rate: float = 1e-4

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        emphasis = one_layer_per_sample if self.emphasis else None  # eqs. 7 and 8
        alignment = (
            SlackAlignment(self.slack_percentile, per="sample", emphasis=emphasis)  # eqs. 5, 6 and 10
            if self.slack
            else Alignment(per="sample", emphasis=emphasis)
        )
        return Objective(
            alignment=alignment,
            correlation=Weighted(self.correlation, SampleCorrelation()),
            label=Weighted(self.label, CrossEntropy()),
            total_variation=Weighted(self.total_variation, TotalVariation()),
        )

    @property
    def descent(self) -> Descent:
        """How."""
        return Descent(self.steps, self.learning_rate, Plateau(self.patience, self.smallest_rate))

    def synthesize(self, teachers: Sequence[Teacher], **request: Unpack[Request]) -> SyntheticSet:
        """Generate diverse samples from the teachers; of classes where these have a weight."""
        if self.label:
            request.setdefault("labels", "balanced")
        return invert(teachers, self.objective, self.descent, recipe="dsg", settings=asdict(self), **request)

    @property
    def quantization(self) -> dict[str, Any]:
        """Ranges clip by the squared error: of the rules of Table 5 the best one with the paper's own images."""
        return {"calibration": "mse"}

    def compress(self, teacher: Teacher, images: ImageSource, **how: Any) -> CompressedModel:
        """Quantize as the paper does, or as `how` says."""
        return quantize(teacher, images, **self.quantization | how)
