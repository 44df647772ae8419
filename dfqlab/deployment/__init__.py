"""From a compressed model to a file that real runtimes execute, and the proof that they compute what it says."""

from dfqlab.deployment.certificate import Certificate, CertifiedRuntime, LayerCheck, certify
from dfqlab.deployment.export import export_onnx
from dfqlab.deployment.openvino import OpenVinoModel
from dfqlab.deployment.packing import packed, unpacked
from dfqlab.deployment.runtime import ExportedModel, OnnxModel

__all__ = [
    "Certificate",
    "CertifiedRuntime",
    "ExportedModel",
    "LayerCheck",
    "OnnxModel",
    "OpenVinoModel",
    "certify",
    "export_onnx",
    "packed",
    "unpacked",
]
