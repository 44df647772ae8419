"""ZeroQ (Cai et al. 2020, CVPR; the baseline that DSG and MixMix measure themselves against)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.images import ImageSource, SyntheticSet
from dfqlab.objective import Objective
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import Request, invert
from dfqlab.synthesis.schedules import Plateau
from dfqlab.synthesis.terms import Alignment
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class ZeroQ:
    """ZeroQ's distilled data: each image alone is given the statistics that BatchNorm remembers (eq. 2).

    The constants are those of the released code. Where that code departs from its paper we follow the paper: statistics
    are those of BatchNorm's input, and images start from N(0, 1).
    """

    learning_rate: float = 0.5
    steps: int = 500
    patience: int = 100
    smallest_rate: float = 1e-4

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return Objective(alignment=Alignment(per="sample", distance="squared", spread="std", match_input=True))

    @property
    def descent(self) -> Descent:
        """How."""
        return Descent(self.steps, self.learning_rate, Plateau(self.patience, self.smallest_rate))

    def synthesize(self, teachers: Sequence[Teacher], **request: Unpack[Request]) -> SyntheticSet:
        """Distil images from the teachers."""
        return invert(teachers, self.objective, self.descent, recipe="zeroq", settings=asdict(self), **request)

    @property
    def quantization(self) -> dict[str, Any]:
        """Ranges cover what the images show, and what the weights are, by its extremes."""
        return {"calibration": "minmax"}

    def compress(self, teacher: Teacher, images: ImageSource, **how: Any) -> CompressedModel:
        """Quantize as the paper does, or as `how` says."""
        return quantize(teacher, images, **self.quantization | how)
