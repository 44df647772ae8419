"""A model as it is deployed: exported, certified, and judged as the runtime executes it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfqlab.compression.model import CompressedModel
from dfqlab.deployment import Certificate, OnnxModel, certify
from dfqlab.deployment.export import to_onnx
from dfqlab.evaluation import Evaluation, LabelledBatches, evaluate
from dfqlab.figures import DeployedRow
from dfqlab.images import ImageSource
from dfqlab.progress import OnStep, Step, ignore
from dfqlab.teachers import Teacher

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, eq=False)
class Deployed:
    """What came of a model.

    Attributes:
        exported: the file's content.
        certificate: of what onnxruntime makes of it.
        result: what onnxruntime did on labelled images, beside the teacher.
        packed_bytes: of its parameters.
    """

    exported: "onnx.ModelProto"
    certificate: Certificate
    result: Evaluation
    packed_bytes: int

    @property
    def row(self) -> DeployedRow:
        """What `figures.deployed_table` shows of it."""
        agreement = self.result.agreement_interval
        assert agreement is not None  # it was judged beside a teacher
        return DeployedRow(self.result.accuracy_interval, agreement, self.packed_bytes, self.certificate.holds)


def deployed(
    model: CompressedModel,
    teacher: Teacher,
    judge: LabelledBatches,
    images: ImageSource,
    *,
    exported: "onnx.ModelProto | None" = None,
    on_step: OnStep = ignore,
) -> Deployed:
    """Export a model, certify what onnxruntime executes, and let onnxruntime name the judge's images.

    Args:
        model: what is deployed.
        teacher: whom it is compared with.
        judge: labelled images.
        images: what the certificate runs on.
        exported: the model's export, if it is at hand.
        on_step: called after each of the three.

    Raises:
        DeploymentError: an operation that ONNX export does not know, nothing is executed in integers, or `exported` is
            not this model's.
        DataError: no images, or images of another size.
        ConfigurationError: the extra "deploy" is not installed.
        Cancelled: `on_step` raised it.
    """
    exported = to_onnx(model) if exported is None else exported
    on_step(Step("export", 1, 3))
    certificate = certify(model, images, exported=exported)
    on_step(Step("certify", 2, 3))
    result = evaluate(OnnxModel(exported), judge, teacher=teacher)
    on_step(Step("judge", 3, 3))
    return Deployed(exported, certificate, result, model.packed_bytes)
