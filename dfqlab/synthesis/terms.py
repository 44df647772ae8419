"""Losses on images. Each says what it sums and what it averages."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dfqlab.images import Batch
from dfqlab.objective import PreparedTerm
from dfqlab.statistics import Per, TeacherOutputs, remembered
from dfqlab.teachers import Teacher
from dfqlab_kernels import bn_alignment


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
            loss = self._distance(found.mean, found.var, target.mean, target.var, target.layout.channels)
            if not self.match_input:
                return loss
            pairs = found.input_mean, found.input_var, target.input_mean, target.input_var
            return loss + self._distance(*pairs, channels=target.input_mean.shape)

        return alignment

    def _distance(
        self, mean: Tensor, var: Tensor, target_mean: Tensor, target_var: Tensor, channels: Sequence[int]
    ) -> Tensor:
        return bn_alignment(mean, var, target_mean, target_var, channels=channels, spread="std", epsilon=self.epsilon)
