"""Run an ONNX file on the CPU: what every runtime has in common, and onnxruntime."""

import os
import platform
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dfqlab.compression.model import CompressedModel
from dfqlab.deployment.export import first_line, to_onnx
from dfqlab.errors import ConfigurationError, DataError, DeploymentError
from dfqlab.teachers import Teacher

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Model = TypeVar("Model", bound="ExportedModel")

_SAFE = 64  # two products of a byte with codes of at most this fit into 16 bits
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


class ExportedModel(ABC):
    """An exported classifier in a runtime. Calling it gives the logits of images in pixel units (0..1).

    Attributes:
        runtime: what executes it.
        name: what messages call it.
        bytes: size of the file.
        threads: how many the runtime may use; None leaves it to the runtime.

    Raises:
        DeploymentError: no such file, no ONNX model, or one with other inputs and outputs than `export_onnx` writes.
        ConfigurationError: the runtime is not installed, or fewer than one thread.
    """

    runtime: ClassVar[str]

    def __init__(self, model: "str | os.PathLike[str] | onnx.ModelProto", *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigurationError(f"threads={threads}: expected 1 or more, or None to leave it to the runtime")
        self.threads = threads
        if isinstance(model, (str, os.PathLike)):
            self.name = str(model)
            if not Path(model).is_file():
                raise DeploymentError(f"no such file: {model}")
            content: str | bytes = str(model)
            self.bytes = Path(model).stat().st_size
        else:
            self.name = "the model"
            content = model.SerializeToString()
            self.bytes = len(content)
        if self.bytes == 0:
            raise DeploymentError(f"{self.runtime} cannot load {self.name}: it is empty")
        try:
            found = self._load(content)
        except ConfigurationError:
            raise
        except Exception as error:
            raise DeploymentError(f"{self.runtime} cannot load {self.name}: {self._reason(error)}") from error
        if found != (["images"], ["logits"]):
            raise DeploymentError(
                f"{self.name} maps {', '.join(found[0])} to {', '.join(found[1])}; expected a classifier that dfqlab "
                "exported, which maps images to logits"
            )

    @classmethod
    def of(cls: "type[Model]", model: CompressedModel | Teacher, *, threads: int | None = None) -> "Model":
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
            logits = self._run(pixels)
        except Exception as error:
            raise DeploymentError(f"{self.runtime} cannot run {self.name}: {self._reason(error)}") from error
        return torch.from_numpy(logits)

    @property
    @abstractmethod
    def size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""

    @abstractmethod
    def _load(self, content: str | bytes) -> tuple[list[str], list[str]]:
        """Make a path or the bytes of a file ready to run; the names of inputs and outputs."""

    @abstractmethod
    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits."""

    @staticmethod
    def _reason(error: Exception) -> str:
        """What the runtime's error says, in one line."""
        return first_line(error)


class OnnxModel(ExportedModel):
    """An ONNX classifier in onnxruntime, of the extra "deploy": see `ExportedModel`.

    Where products with its weights could saturate it asks for exact ones, if it can (see `exactness`), which a program
    that reads the file by itself must ask for too.

    Attributes:
        session: the runtime's session.
    """

    runtime = "onnxruntime"

    def _load(self, content: str | bytes) -> tuple[list[str], list[str]]:
        runtime = load_runtime()
        import onnx

        model = onnx.load_model_from_string(content) if isinstance(content, bytes) else onnx.load(content)
        options = session_options(runtime, threads=self.threads, exact=exactness(model) == "asked for")
        self.session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        return [value.name for value in inputs], [value.name for value in outputs]

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits,) = self.session.run(["logits"], {"images": pixels})
        found: NDArray[np.float32] = logits
        return found

    @property
    def size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""
        channels, height, width = self.session.get_inputs()[0].shape[1:]
        return channels, height, width


def fuse(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph that onnxruntime makes of a model: what it will execute, but for how it lays tensors out."""
    import onnx

    runtime = load_runtime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fused.onnx"
        options = session_options(runtime, optimized=str(path), exact=exactness(model) == "asked for")
        try:
            runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise DeploymentError(f"onnxruntime cannot load the model: {first_line(error)}") from error
        return onnx.load(str(path))


class ExposedOnnx:
    """A fused graph, giving the logits and every tensor that was asked for by its name in it."""

    def __init__(self, fused: "onnx.ModelProto", tensors: Iterable[str]) -> None:
        import onnx

        runtime = load_runtime()
        model = onnx.ModelProto()
        model.CopyFrom(fused)
        for name in dict.fromkeys(tensors):
            if name != "logits":
                model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        self.names = [output.name for output in model.graph.output]
        self.session = runtime.InferenceSession(
            model.SerializeToString(), session_options(runtime), providers=["CPUExecutionProvider"]
        )

    def run(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The tensors by name."""
        return dict(zip(self.names, self.session.run(self.names, {"images": pixels}), strict=True))


def load_runtime() -> Any:
    """onnxruntime, or an error that says how to get it."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError('running ONNX needs the extra "deploy": pip install "dfqlab[deploy]"') from error
    return onnxruntime


def session_options(
    runtime: Any,
    *,
    threads: int | None = None,
    optimized: str | None = None,
    exact: bool = False,
) -> "onnxruntime.SessionOptions":
    """Options of a session: quiet, optionally with a thread count, or writing its optimised graph.

    With `exact`, products are made of unsigned bytes where signed ones could saturate; that takes longer.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    level = runtime.GraphOptimizationLevel
    # "all" is onnxruntime's own default: it lays images out channels last, which integer convolutions like. "extended"
    # fuses the same integers, and its graph can be saved and read by any machine.
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized is None else level.ORT_ENABLE_EXTENDED
    if threads is not None:
        options.intra_op_num_threads = threads
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = optimized
    return options


def exactness(model: "onnx.ModelProto") -> Literal["given", "asked for", "missing"]:
    """Whether products with the weights of an exported model are exact on this processor.

    Of weights of at most 7 bits they are, everywhere; of others where there is VNNI ("given"). Where there is none,
    onnxruntime can be asked for exact ones ("asked for"), but not of layers that share their weights or zero points, as
    in files of earlier versions ("missing"). Layers in float between quantized tensors get 8 bits from onnxruntime.
    """
    import onnx

    if saturation_warning() is None:
        return "given"
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = model.graph.node
    wide = [
        node
        for node in nodes
        if node.op_type == "DequantizeLinear"
        and node.input[0] in tensors
        and tensors[node.input[0]].data_type == onnx.TensorProto.INT8
        and np.abs(onnx.numpy_helper.to_array(tensors[node.input[0]]).astype(np.int16)).max(initial=0) > _SAFE
    ]
    own_bits = any(node.op_type == "QuantizeLinear" for node in nodes) and any(
        node.op_type in _WEIGHTED and node.input[1] in tensors for node in nodes
    )
    if not wide and not own_bits:
        return "given"
    read = Counter(name for node in nodes for name in node.input)
    shared = any(read[name] > 1 for node in wide for name in (node.input[0], *node.input[2:], node.output[0]))
    return "missing" if shared else "asked for"


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
