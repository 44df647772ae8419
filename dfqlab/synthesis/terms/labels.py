"""What images shall be taken for."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.images import Batch
from dfqlab.objective import PreparedTerm
from dfqlab.statistics import Per, TeacherOutputs
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of a teacher's logits with the labels, averaged over samples (MixMix, eqs. 1 and 9).

    Labels that are shares of classes, as mixed images have them, count each class with its share: because
    cross-entropy is linear in them, that is `(1 - beta) L(X, Y1) + beta L(X, Y2)`.

    Attributes:
        smoothing: the share of every label that is spread over all classes evenly, in [0, 1): a soft label.
    """

    smoothing: float = 0.0
    per: Per = "batch"

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigurationError(f"smoothing={self.smoothing}: expected a share in [0, 1)")

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        """The cross-entropy with this teacher's logits."""

        def cross_entropy(batch: Batch, outputs: TeacherOutputs) -> Tensor:
            if batch.labels is None:
                raise ConfigurationError("cross-entropy needs labels, and this job has none: ask for labels='balanced'")
            return F.cross_entropy(outputs.logits, batch.labels, label_smoothing=self.smoothing)

        return cross_entropy
