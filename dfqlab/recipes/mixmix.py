"""MixMix (Li et al. 2021, ICCV)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.images import ImageSource, SyntheticSet
from dfqlab.objective import Objective, Weighted
from dfqlab.synthesis.augmentation import Augmentation
from dfqlab.synthesis.descent import Clip, Descent
from dfqlab.synthesis.inversion import Request, invert
from dfqlab.synthesis.mixing import DataMixing
from dfqlab.synthesis.schedules import Cosine
from dfqlab.synthesis.terms import Alignment, CrossEntropy, L2Prior, TotalVariation
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class MixMix:
    """Algorithm 1: features mixed over a zoo (eq. 6), images and labels mixed within a batch (eqs. 7 to 9).

    Alignment and cross-entropy read the mixed images, the priors those that are mixed. The rate and its schedule are
    the paper's (section 5). Its weights are "learned by gradient descent", which on bare factors drives all of them to
    zero; the fixed ones here are ours, and `learned_weights` lets them move in a form that cannot vanish. The paper
    takes 5,000 steps, some of them at half resolution (`coarse_steps`), on ImageNet; small images need neither.
    """

    learning_rate: float = 0.25
    steps: int = 500
    coarse_steps: int = 0
    teachers_per_batch: int = 3  # m' of section 4.1; of a smaller zoo all
    mixing: bool = True
    alignment: float = 1.0
    label: float = 1.0
    total_variation: float = 0.01
    l2: float = 0.001
    jitter: int = 1
    clip: Clip = "each step"
    learned_weights: bool = False

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return Objective(
            alignment=Weighted(self.alignment, Alignment(distance="l2", spread="var", match_input=False)),  # eq. 2
            label=Weighted(self.label, CrossEntropy()),  # eq. 9
            total_variation=Weighted(self.total_variation, TotalVariation()),
            l2=Weighted(self.l2, L2Prior()),
        )

    @property
    def descent(self) -> Descent:
        """How."""
        return Descent(
            self.steps,
            self.learning_rate,
            Cosine(),
            coarse_steps=self.coarse_steps,
            augmentation=Augmentation(jitter=self.jitter),
            mixing=DataMixing() if self.mixing else None,
            teachers_per_batch=self.teachers_per_batch,
            clip=self.clip,
            learned_weights=self.learned_weights,
        )

    def synthesize(self, teachers: Sequence[Teacher], **request: Unpack[Request]) -> SyntheticSet:
        """Invert the zoo, a class an image."""
        request.setdefault("labels", "balanced")
        descent = replace(self.descent, teachers_per_batch=min(self.teachers_per_batch, len(teachers)))
        return invert(teachers, self.objective, descent, recipe="mixmix", settings=asdict(self), **request)

    @property
    def quantization(self) -> dict[str, Any]:
        """Rounding is reconstructed block by block (BRECQ, section 5), the first and the last layer at 8 bits."""
        return {"calibration": "mse", "rounding": "brecq", "ends": 8}

    def compress(self, teacher: Teacher, images: ImageSource, **how: Any) -> CompressedModel:
        """Quantize as the paper does, or as `how` says."""
        return quantize(teacher, images, **self.quantization | how)
