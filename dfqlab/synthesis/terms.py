"""Losses on images. Each says what it sums and what it averages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dfqlab.images import Batch
from dfqlab.objective import PreparedTerm
from dfqlab.statistics import Per, TeacherOutputs, remembered
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class Alignment:
    """Squared distance between what a batch does to BatchNorm layers and what they remember (ZeroQ, eq. 2).

    `sum over layers and channels of (mean - running_mean)^2 + (std - running_std)^2`, averaged over samples where
    `per="sample"`: there every single image is asked to have the statistics of the whole training set.
    `std = sqrt(var + epsilon)`, var biased, on both sides.

    Attributes:
        per: statistics of the whole batch or of each sample.
        match_input: also ask the normalised input for mean 0 and standard deviation 1.
        epsilon: keeps the root's gradient finite.
    """

    per: Per = "batch"
    match_input: bool = True
    epsilon: float = 1e-6

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        """The alignment to this teacher's running statistics.

        Raises:
            TeacherError: no BatchNorm layer.
        """
        teacher.require_batch_norm("alignment compares with BatchNorm statistics")
        target = remembered(teacher)

        def alignment(batch: Batch, outputs: TeacherOutputs) -> Tensor:
            found = outputs.statistics if self.per == "sample" else outputs.statistics.over_batch()
            distance = self._distance(found.mean, found.var, target.mean, target.var)
            if self.match_input:
                distance = distance + self._distance(
                    found.input_mean, found.input_var, target.input_mean, target.input_var
                )
            return distance.mean()

        return alignment

    def _distance(self, mean: Tensor, var: Tensor, target_mean: Tensor, target_var: Tensor) -> Tensor:
        std, target_std = torch.sqrt(var + self.epsilon), torch.sqrt(target_var + self.epsilon)
        return (mean - target_mean).square().sum(-1) + (std - target_std).square().sum(-1)
