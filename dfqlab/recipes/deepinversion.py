"""DeepInversion (Yin et al. 2020, CVPR)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Unpack

from dfqlab.images import SyntheticSet
from dfqlab.objective import Objective, Weighted
from dfqlab.synthesis.augmentation import Augmentation
from dfqlab.synthesis.descent import Clip, Descent
from dfqlab.synthesis.inversion import Request, invert
from dfqlab.synthesis.schedules import Constant
from dfqlab.synthesis.terms import Alignment, CrossEntropy, L2Prior, TotalVariation
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class DeepInversion:
    """A class to be taken for (eq. 2), a smooth image (eq. 3) and BatchNorm's statistics (eq. 4).

    The constants are those of the released code for CIFAR-10, but two. It weights alignment with 10 and takes 2,000
    steps; in 500 of them labels are not learned beside that weight, which is 1 here. And its total variation is a norm
    over a batch of 256, ours is the mean of an image's: sixteen times the weight gives the same gradient. For ImageNet
    the code takes 3,000 steps, 2,000 of them coarse, a cosine schedule, betas (0.5, 0.9), a jitter of 30, flips and a
    clip after each step.
    """

    learning_rate: float = 0.1
    steps: int = 500
    coarse_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    alignment: float = 1.0
    first_layer: float = 1.0
    total_variation: float = 0.016
    l2: float = 0.0
    jitter: int = 2
    flip: float = 0.0
    clip: Clip = "never"

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        alignment = Alignment(per="batch", distance="l2", spread="var", match_input=False, first_layer=self.first_layer)
        return Objective(
            alignment=Weighted(self.alignment, alignment),
            label=CrossEntropy(),
            total_variation=Weighted(self.total_variation, TotalVariation()),
            l2=Weighted(self.l2, L2Prior()),
        )

    @property
    def descent(self) -> Descent:
        """How."""
        return Descent(
            self.steps,
            self.learning_rate,
            Constant(),
            betas=self.betas,
            coarse_steps=self.coarse_steps,
            augmentation=Augmentation(jitter=self.jitter, flip=self.flip),
            clip=self.clip,
        )

    def synthesize(self, teachers: Sequence[Teacher], **request: Unpack[Request]) -> SyntheticSet:
        """Invert the teachers, a class an image."""
        request.setdefault("labels", "balanced")
        return invert(teachers, self.objective, self.descent, recipe="deepinversion", settings=asdict(self), **request)
