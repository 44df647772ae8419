"""dfqlab: data-free model compression, from a trained classifier alone to a small model that runs.

    teacher = dfqlab.load_teacher("digits/mobilenet")
    images = dfqlab.synthesize(teacher, "zeroq", count=128, seed=0)
    model = dfqlab.quantize(teacher, images, weights=4, activations=4)
    dfqlab.export_onnx(model, "mobilenet-w4a4.onnx")

Names are loaded when they are first used: `import dfqlab` loads not even torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfqlab.compression.model import CompressedModel, load_model
    from dfqlab.compression.quantization import quantize
    from dfqlab.compression.spec import QuantizationSpec, Reconstruction, Widths
    from dfqlab.data import LabelledImages, load_data
    from dfqlab.deployment import certify, export_onnx
    from dfqlab.errors import DfqlabError
    from dfqlab.evaluation import evaluate
    from dfqlab.images import Batch, ImageSource, Noise, StoredImages, SyntheticSet
    from dfqlab.objective import Objective, Term, Weighted
    from dfqlab.progress import Cancelled, Step
    from dfqlab.recipes import compress, synthesize
    from dfqlab.teachers import InputSpec, Teacher, load_teacher
    from dfqlab_kernels import BackendError, DeviceError, ShapeError, backend

__version__ = "0.1.0"

_HOME = {
    "dfqlab.compression.model": ("CompressedModel", "load_model"),
    "dfqlab.compression.quantization": ("quantize",),
    "dfqlab.compression.spec": ("QuantizationSpec", "Reconstruction", "Widths"),
    "dfqlab.data": ("LabelledImages", "load_data"),
    "dfqlab.deployment": ("certify", "export_onnx"),
    "dfqlab.errors": ("DfqlabError",),
    "dfqlab.evaluation": ("evaluate",),
    "dfqlab.images": ("Batch", "ImageSource", "Noise", "StoredImages", "SyntheticSet"),
    "dfqlab.objective": ("Objective", "Term", "Weighted"),
    "dfqlab.progress": ("Cancelled", "Step"),
    "dfqlab.recipes": ("compress", "synthesize"),
    "dfqlab.teachers": ("InputSpec", "Teacher", "load_teacher"),
    "dfqlab_kernels": ("BackendError", "DeviceError", "ShapeError", "backend"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BackendError",
    "Batch",
    "Cancelled",
    "CompressedModel",
    "DeviceError",
    "DfqlabError",
    "ImageSource",
    "InputSpec",
    "LabelledImages",
    "Noise",
    "Objective",
    "QuantizationSpec",
    "Reconstruction",
    "ShapeError",
    "Step",
    "StoredImages",
    "SyntheticSet",
    "Teacher",
    "Term",
    "Weighted",
    "Widths",
    "backend",
    "certify",
    "compress",
    "evaluate",
    "export_onnx",
    "load_data",
    "load_model",
    "load_teacher",
    "quantize",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'dfqlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
