"""ZeroQ (Cai et al. 2020, CVPR; the baseline that DSG and MixMix measure themselves against)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dfqlab.images import SyntheticSet
from dfqlab.objective import Objective
from dfqlab.progress import OnStep, ignore
from dfqlab.synthesis.inversion import Plateau, invert
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

    def synthesize(
        self, teachers: Sequence[Teacher], count: int, *, seed: int, on_step: OnStep = ignore
    ) -> SyntheticSet:
        """Distil `count` images from the teachers."""
        for teacher in teachers:
            teacher.require_batch_norm("recipe 'zeroq' aligns BatchNorm statistics")
        objective = Objective(alignment=Alignment(per="sample", match_input=True))
        return invert(
            teachers,
            objective,
            count=count,
            steps=self.steps,
            learning_rate=self.learning_rate,
            schedule=Plateau(self.patience, self.smallest_rate),
            seed=seed,
            recipe="zeroq",
            settings=asdict(self),
            on_step=on_step,
        )
