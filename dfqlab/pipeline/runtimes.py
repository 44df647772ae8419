"""What runtimes make of the exported model: certificates, and how long it takes."""

from typing import TYPE_CHECKING, NamedTuple

from dfqlab.compression.model import CompressedModel
from dfqlab.deployment import ExportedModel, OnnxModel, OpenVinoModel, certify
from dfqlab.errors import ConfigurationError, DeploymentError
from dfqlab.evaluation import Latency, latencies
from dfqlab.images import ImageSource
from dfqlab.report import CertificateSummary, SecondRuntime

if TYPE_CHECKING:
    import onnx


class Executed(NamedTuple):
    """What a report says of execution."""

    latency: Latency
    certificate: CertificateSummary
    openvino: SecondRuntime


def executed(
    model: CompressedModel, images: ImageSource, original: "onnx.ModelProto", quantized: "onnx.ModelProto"
) -> Executed:
    """Certificates and latencies: of onnxruntime, and of OpenVINO where it can execute both; all timed in one run."""
    pairs: list[tuple[ExportedModel, ExportedModel]] = [
        (OnnxModel(original, threads=1), OnnxModel(quantized, threads=1))
    ]
    second, missing = None, ""
    try:
        second = CertificateSummary.of(certify(model, images, runtime="openvino", exported=quantized))
        pairs.append((OpenVinoModel(original, threads=1), OpenVinoModel(quantized, threads=1)))
    except (ConfigurationError, DeploymentError) as error:
        missing = str(error)
    first, *others = latencies(pairs, next(images.batches(1)).images.clamp(0, 1))
    certificate = CertificateSummary.of(certify(model, images, exported=quantized))
    return Executed(first, certificate, SecondRuntime(second, others[0] if others else None, missing))
