"""From a compressed model to a file that a real runtime executes, and the proof that both agree."""

from dfqlab.deployment.certificate import Certificate, LayerCheck, certify
from dfqlab.deployment.export import export_onnx
from dfqlab.deployment.runtime import OnnxModel

__all__ = ["Certificate", "LayerCheck", "OnnxModel", "certify", "export_onnx"]
