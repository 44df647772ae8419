"""Run an ONNX file in onnxruntime, on the CPU."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.model import CompressedModel
from dfqlab.deployment.export import first_line, to_onnx
from dfqlab.errors import ConfigurationError, DataError, DeploymentError
from dfqlab.teachers import Teacher

if TYPE_CHECKING:
    import onnx
    import onnxruntime


class OnnxModel:
    """An ONNX classifier in onnxruntime. Calling it gives the logits of images in pixel units (0..1).

    Attributes:
        session: the runtime's session.
        name: what messages call it.
        bytes: size of the file.
        threads: how many the runtime may use; None leaves it to the runtime.

    Raises:
        DeploymentError: no such file, no ONNX model, or one with other inputs and outputs than `export_onnx` writes.
        ConfigurationError: the extra "deploy" is not installed.
    """

    def __init__(self, model: "str | os.PathLike[str] | onnx.ModelProto", *, threads: int | None = None) -> None:
        runtime = load_runtime()
        self.threads = threads
        if isinstance(model, (str, os.PathLike)):
            self.name = str(model)
            if not Path(model).is_file():
                raise DeploymentError(f"no such file: {model}")
            content: Any = str(model)
            self.bytes = Path(model).stat().st_size
        else:
            self.name = "the model"
            content = model.SerializeToString()
            self.bytes = len(content)
        try:
            self.session = runtime.InferenceSession(
                content, session_options(runtime, threads=threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise DeploymentError(f"onnxruntime cannot load {self.name}: {first_line(error)}") from error
        found = [[value.name for value in values] for values in (self.session.get_inputs(), self.session.get_outputs())]
        if found != [["images"], ["logits"]]:
            raise DeploymentError(
                f"{self.name} maps {', '.join(found[0])} to {', '.join(found[1])}; expected a classifier that dfqlab "
                "exported, which maps images to logits"
            )

    @classmethod
    def of(cls, model: CompressedModel | Teacher, *, threads: int | None = None) -> "OnnxModel":
        """Export in memory and load.

        Raises:
            DeploymentError: an operation that ONNX export does not know.
        """
        return cls(to_onnx(model), threads=threads)

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of images in pixel units (0..1), on the CPU whatever device the images are on.

        Raises:
            DataError: images of another size.
            DeploymentError: the runtime fails.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != self.size:
            raise DataError(
                f"{self.name} takes images (n, {', '.join(map(str, self.size))}), got {tuple(images.shape)}"
            )
        pixels = np.ascontiguousarray(images.detach().cpu().numpy(), dtype=np.float32)
        try:
            (logits,) = self.session.run(["logits"], {"images": pixels})
        except Exception as error:
            raise DeploymentError(f"onnxruntime cannot run {self.name}: {first_line(error)}") from error
        return torch.from_numpy(logits)

    @property
    def size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""
        channels, height, width = self.session.get_inputs()[0].shape[1:]
        return channels, height, width


def load_runtime() -> Any:
    """onnxruntime, or an error that says how to get it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError('running ONNX needs the extra "deploy": pip install "dfqlab[deploy]"') from error
    return onnxruntime


def session_options(
    runtime: Any, *, threads: int | None = None, optimized: str | None = None, optimize: bool = True
) -> "onnxruntime.SessionOptions":
    """Options of a session: quiet, optionally with a thread count, writing its optimised graph, or not optimising."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    level = runtime.GraphOptimizationLevel
    # "extended" fuses integers as "all" does, and its graph can be saved and read by any machine.
    options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if optimize else level.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = optimized
    return options


def saturation_warning(cpu_flags: Sequence[str] | None = None) -> str | None:
    """What to know of uint8 x int8 products on this processor, or None where they are exact.

    Without VNNI, x86 multiplies pairs of bytes into 16 bits, which can saturate with 8-bit weights.
    """
    if cpu_flags is None:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return None
        cpu_flags = _cpu_flags()
    if not cpu_flags:
        return "this processor's instruction set is unknown: without VNNI, uint8 x int8 products may saturate"
    if any("vnni" in flag for flag in cpu_flags) or "amx_int8" in cpu_flags:
        return None
    return (
        "this processor has no VNNI: uint8 x int8 products may saturate in 16 bits, so results can differ from a "
        "processor that has it"
    )


def _cpu_flags() -> list[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return line.split(":", 1)[1].split()
    except OSError:
        pass
    return []
