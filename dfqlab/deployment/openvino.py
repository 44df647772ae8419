"""Run an ONNX file in OpenVINO, on the CPU: a second runtime, with a certificate of its own.

What it is told, because without it other codes come out (each found by the certificate, OpenVINO 2026.4, AVX2):

- A convolution whose output is quantized and then added to something is merged with the addition, and the rounding
  between the two is left out. An output of the graph is not merged away, so one operand of each addition is made one.
- On several threads a convolution of 1x1 with a stride gives other codes from run to run. One thread is the default.
- On processors with bfloat16, floats would be computed in it. It is asked for float32.

What stays, and the certificate finds: average poolings with pads. If the pads count and the zero point of the input is
not 0, the means are wrong; if they do not count, many means lie just between two codes, and are off by one.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dfqlab.deployment.export import first_line
from dfqlab.deployment.runtime import ExportedModel
from dfqlab.errors import ConfigurationError, DeploymentError

if TYPE_CHECKING:
    import onnx

_MULTIPLYING = {"Convolution", "FullyConnected", "MatMul"}
_FACTS = {"layerType", "originalLayersNames", "runtimePrecision"}
_BYTES = {"u8", "i8"}
_DEQUANTIZING = {"Convert", "Subtract", "Multiply"}


@dataclass(frozen=True)
class Executed:
    """A convolution or a linear layer of the compiled model.

    Attributes:
        names: of all the nodes in the file that it was made of.
        in_integers: whether it multiplies bytes.
    """

    names: frozenset[str]
    in_integers: bool


class OpenVinoModel(ExportedModel):
    """An ONNX classifier in OpenVINO, of the extra "openvino": see `ExportedModel`.

    On one thread it computes the integers of the file. A program that reads the file with OpenVINO alone must see to
    that itself: the certificate is about this class on one thread.

    Attributes:
        threads: one, unless more are asked for: then some codes may differ from run to run (see the module).
        compiled: the runtime's compiled model; after the logits come the outputs that keep roundings.
    """

    runtime = "OpenVINO"

    def _load(self, content: str | bytes) -> tuple[list[str], list[str]]:
        self.threads = self.threads or 1
        network = _read(content)
        names = [[value.get_any_name() for value in values] for values in (network.inputs, network.outputs)]
        _keep_roundings(network)
        self.compiled = _compile(network, self.threads)
        return names[0], names[1]

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.compiled({"images": pixels})["logits"].copy()
        return logits

    @property
    def size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""
        channels, height, width = (axis.get_length() for axis in list(self.compiled.input("images").partial_shape)[1:])
        return channels, height, width

    @property
    def executed(self) -> tuple[Executed, ...]:
        """The convolutions and linear layers that the runtime executes, as it says itself."""
        found = []
        for operation in self.compiled.get_runtime_model().get_ordered_ops():
            facts = {key: str(value.astype(str)) for key, value in operation.get_rt_info().items() if key in _FACTS}
            if facts["layerType"] in _MULTIPLYING:
                names = (name.partition("/")[0] for name in facts["originalLayersNames"].split(","))
                found.append(Executed(frozenset(names), facts["runtimePrecision"] in _BYTES))
        return tuple(found)

    @staticmethod
    def _reason(error: Exception) -> str:
        lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from ")]
        return lines[-1] if lines else first_line(error)


class ExposedOpenVino:
    """An exported model, giving every tensor that was asked for by its name in the file.

    Raises:
        DeploymentError: OpenVINO fails, or knows no tensor of a name.
    """

    def __init__(self, exported: "onnx.ModelProto", tensors: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(["logits", *tensors]))
        with _told("load"):
            network = _read(exported.SerializeToString())
            network.add_outputs(self.names[1:])
            self.compiled = _compile(network, threads=1)

    def run(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The tensors by name."""
        with _told("run"):
            found = self.compiled({"images": pixels})
            return {name: found[name] for name in self.names}


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Any error of the runtime as ours."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        reason = OpenVinoModel._reason(error)
        raise DeploymentError(f"OpenVINO cannot {what} the model with its codes exposed: {reason}") from error


def load_openvino() -> Any:
    """OpenVINO, or an error that says how to get it."""
    try:
        import openvino
    except ImportError as error:
        raise ConfigurationError('OpenVINO is the extra "openvino": pip install "dfqlab[openvino]"') from error
    return openvino


def _read(content: str | bytes) -> Any:
    """By the reader of ONNX alone: others would try a file that is no ONNX model."""
    load_openvino()
    from openvino.frontend import FrontEndManager

    reader = FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(content if isinstance(content, str) else io.BytesIO(content)))


def _compile(network: Any, threads: int) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    return _core().compile_model(network, "CPU", settings)


@cache
def _core() -> Any:
    """One for the whole process: it gives the thread a stack for signals, and where the last core goes, that goes too:
    the next Ctrl-C would find none and end the process."""
    return load_openvino().Core()


def _keep_roundings(network: Any) -> None:
    """Make the first operand of each addition of codes an output."""
    operands = {}
    for node in network.get_ordered_ops():
        if node.get_type_name() == "Add":
            first, second = (_codes(node.input_value(side)) for side in (0, 1))
            if first is not None and second is not None:
                operands[first.get_node().get_friendly_name(), first.get_index()] = first
    if operands:
        network.add_outputs(list(operands.values()))


def _codes(value: Any) -> Any:
    """The codes that a value was made of; None where it is a constant or was never quantized."""
    while not _is_code(value) and value.get_node().get_type_name() in _DEQUANTIZING:
        value = value.get_node().input_value(0)
    return value if _is_code(value) and value.get_node().get_type_name() != "Constant" else None


def _is_code(value: Any) -> bool:
    return str(value.get_element_type().to_string()) == "u8"
