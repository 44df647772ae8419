"""The Knowledge Within (Haroush et al. 2020, CVPR), as MixMix describes it; no code of it was released."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Unpack

from dfqlab.images import SyntheticSet
from dfqlab.objective import Objective, Weighted
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import Request, invert
from dfqlab.synthesis.schedules import Cosine
from dfqlab.synthesis.terms import Alignment, BlurPrior, CrossEntropy
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class KnowledgeWithin:
    """Gaussians compared by their divergence, an image compared with itself blurred, and a class to be taken for.

    What is minimised is MixMix's account of it (section 3.1). Neither text gives the weights, rates and steps: these
    are ours.
    """

    learning_rate: float = 0.25
    steps: int = 500
    alignment: float = 0.5
    prior: float = 1.0
    blur: float = 1.0

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return Objective(
            alignment=Weighted(self.alignment, Alignment(per="batch", distance="kl", match_input=False)),
            label=CrossEntropy(),
            prior=Weighted(self.prior, BlurPrior(self.blur)),
        )

    @property
    def descent(self) -> Descent:
        """How."""
        return Descent(self.steps, self.learning_rate, Cosine())

    def synthesize(self, teachers: Sequence[Teacher], **request: Unpack[Request]) -> SyntheticSet:
        """Invert the teachers, a class an image."""
        request.setdefault("labels", "balanced")
        return invert(
            teachers, self.objective, self.descent, recipe="knowledge_within", settings=asdict(self), **request
        )
