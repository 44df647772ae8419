"""The certificate: a runtime's own codes, layer by layer, held to a reference that shares no code with it."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dfqlab.compression.integers import IntegerConv2d
from dfqlab.compression.model import CompressedModel
from dfqlab.deployment.export import first_line, to_onnx
from dfqlab.deployment.naming import layer_names
from dfqlab.deployment.operators import EXACT, NEAR, Node, check
from dfqlab.deployment.runtime import OnnxModel, load_runtime, saturation_warning, session_options
from dfqlab.errors import DataError, DeploymentError
from dfqlab.images import ImageSource, as_source
from dfqlab.measures import sqnr

if TYPE_CHECKING:
    import onnx

ENOUGH_CODES = 1_000_000
NEAR_PER_MILLION = 100
ENOUGH_AGREEMENT = 0.98
ENOUGH_SQNR = 20.0
_BATCH = 16
_FLOAT = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


@dataclass(frozen=True)
class LayerCheck:
    """One operation of the runtime's graph against the reference.

    Attributes:
        name: the teacher's module path; of an operation that no layer fits, its output's name in the runtime's graph.
        operator: e.g. "QLinearConv".
        codes: how many output codes were compared.
        differences: how many differ.
        worst: the largest difference, in codes.
    """

    name: str
    operator: str
    codes: int
    differences: int
    worst: int

    def plus(self, codes: int, differences: int, worst: int) -> "LayerCheck":
        """With the findings of another batch."""
        return LayerCheck(
            self.name,
            self.operator,
            self.codes + codes,
            self.differences + differences,
            max(self.worst, worst),
        )


@dataclass(frozen=True)
class Certificate:
    """What was compared and what was found.

    Attributes:
        holds: no code of a convolution or linear layer differs; additions, poolings and concatenations differ by at
            most one code on at most 100 in a million; every convolution that the model holds as integers is executed in
            integers; the runtime names the class that torch names on 98 % of the images, with logits within 20 dB.
        checks: one for each integer operation.
        codes, differences: of convolutions and linear layers.
        near_codes, near_differences: of additions, poolings and concatenations.
        convolutions, integer_convolutions: that the model holds as integers; executed as QLinearConv.
        top1_agreement: share of images on which the runtime and torch name the same class.
        sqnr: of the runtime's logits against torch's, in dB.
        warnings: what to know of this machine.
    """

    checks: tuple[LayerCheck, ...]
    convolutions: int
    integer_convolutions: int
    top1_agreement: float
    sqnr: float
    warnings: tuple[str, ...]

    @property
    def codes(self) -> int:
        return sum(c.codes for c in self.checks if c.operator in EXACT)

    @property
    def differences(self) -> int:
        return sum(c.differences for c in self.checks if c.operator in EXACT)

    @property
    def near_codes(self) -> int:
        return sum(c.codes for c in self.checks if c.operator in NEAR)

    @property
    def near_differences(self) -> int:
        return sum(c.differences for c in self.checks if c.operator in NEAR)

    @property
    def holds(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it does not hold, each in a few words; nothing where it does."""
        worst = max((c.worst for c in self.checks if c.operator in NEAR), default=0)
        conditions = {
            f"fewer than {ENOUGH_CODES:,} codes were compared": self.codes >= ENOUGH_CODES,
            "codes of convolutions or linear layers differ": self.differences == 0,
            f"an addition, pooling or concatenation is off by {worst} codes": worst <= 1,
            f"more than {NEAR_PER_MILLION} in a million codes of additions, poolings and concatenations differ": (
                self.near_differences * 1_000_000 <= NEAR_PER_MILLION * max(self.near_codes, 1)
            ),
            "a convolution stayed float": self.integer_convolutions == self.convolutions,
            f"runtime and torch name the same class on only {100 * self.top1_agreement:.1f} % of the images": (
                self.top1_agreement >= ENOUGH_AGREEMENT
            ),
            f"the logits of runtime and torch are only {self.sqnr:.1f} dB alike": self.sqnr >= ENOUGH_SQNR,
        }
        return tuple(reason for reason, met in conditions.items() if not met)

    @property
    def sentence(self) -> str:
        """The finding in one sentence, with the reasons where it does not hold."""
        verdict = f"Does not hold, {' and '.join(self.failures)}" if self.failures else "Holds"
        near = ""
        if self.near_codes:
            near = (
                f"; additions, poolings and concatenations differ on {self.near_differences:,} of {self.near_codes:,}"
            )
        return (
            f"{verdict}: onnxruntime executes {self.integer_convolutions} of "
            f"{self.convolutions} convolutions in integers, and of {self.codes:,} output codes of convolutions and "
            f"linear layers {self.differences:,} differ from the integer reference{near}."
        )


def certify(
    model: CompressedModel,
    images: ImageSource | Float[Tensor, "n c h w"],
    *,
    exported: "onnx.ModelProto | None" = None,
) -> Certificate:
    """Export, run in onnxruntime, and compare every integer operation with the numpy reference.

    Each operation is fed with the codes that the runtime itself computed in front of it, so that an error shows where
    it is made. Images are taken batch by batch until a million output codes of convolutions and linear layers were
    compared, going over the source again if it is small.

    Args:
        model: what was exported.
        images: in pixel units.
        exported: the model's export, if it is at hand.

    Raises:
        DataError: no images, or images of another size.
        DeploymentError: the runtime cannot execute the model, or has no integer operation at all; or `exported` is not
            this model's.
        ConfigurationError: the extra "deploy" is not installed.
    """
    exported = to_onnx(model) if exported is None else exported
    fused = fuse(exported)
    nodes = [Node.of(node, fused) for node in fused.graph.node if node.op_type in EXACT | NEAR]
    if not any(node.operator in EXACT for node in nodes):
        raise DeploymentError("onnxruntime executes no convolution or linear layer of this model in integers")
    session = _Exposed(fused, nodes)
    default = OnnxModel(exported)
    names = layer_names(nodes, model)
    checks = [LayerCheck(name, node.operator, 0, 0, 0) for name, node in zip(names, nodes, strict=True)]
    runtime_logits, torch_logits = [], []
    same_logits = True
    for batch in _endless(as_source(images, model.input)):
        torch_logits.append(model(batch.to(model.device)).cpu())
        runtime_logits.append(default(batch))
        values = session.run(batch.cpu().numpy())
        checks = [before.plus(*check(node, values)) for before, node in zip(checks, nodes, strict=True)]
        same_logits &= np.array_equal(runtime_logits[-1].numpy(), values["logits"])
        if sum(c.codes for c in checks if c.operator in EXACT) >= ENOUGH_CODES:
            break
    expected, found = torch.cat(torch_logits), torch.cat(runtime_logits)
    warnings = [saturation_warning(), _in_float(fused), _not_checked(fused)]
    foreign = sum(c.operator in EXACT and c.name not in model.layers for c in checks)
    if foreign:
        warnings.append(f"onnxruntime quantizes by itself what the model keeps in float: {_layers(foreign)}")
    if not same_logits:
        warnings.append("a session that fuses the graph itself gives other logits than the graph that was certified")
    return Certificate(
        checks=tuple(checks),
        convolutions=sum(isinstance(layer, IntegerConv2d) for layer in model.layers.values()),
        integer_convolutions=sum(c.operator == "QLinearConv" and c.name in model.layers for c in checks),
        top1_agreement=float((expected.argmax(1) == found.argmax(1)).double().mean()),
        sqnr=sqnr(expected, found),
        warnings=tuple(w for w in warnings if w),
    )


def fuse(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph that onnxruntime makes of a model: what it will execute."""
    import onnx

    runtime = load_runtime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fused.onnx"
        options = session_options(runtime, optimized=str(path))
        try:
            runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise DeploymentError(f"onnxruntime cannot load the model: {first_line(error)}") from error
        return onnx.load(str(path))


class _Exposed:
    """The fused graph, run as it is, giving every tensor that an integer operation reads or writes."""

    def __init__(self, fused: "onnx.ModelProto", nodes: Iterable[Node]) -> None:
        import onnx

        runtime = load_runtime()
        model = onnx.ModelProto()
        model.CopyFrom(fused)
        known = {output.name for output in model.graph.output}
        for node in nodes:
            for name in node.tensors:
                if name not in known:
                    known.add(name)
                    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        self.names = [output.name for output in model.graph.output]
        self.session = runtime.InferenceSession(
            model.SerializeToString(), session_options(runtime, optimize=False), providers=["CPUExecutionProvider"]
        )

    def run(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The tensors by name."""
        return dict(zip(self.names, self.session.run(self.names, {"images": pixels}), strict=True))


def _in_float(fused: "onnx.ModelProto") -> str | None:
    count = sum(node.op_type in _FLOAT for node in fused.graph.node)
    return f"executed in float: {_layers(count)}" if count else None


def _layers(count: int) -> str:
    return f"{count} convolution{'s' * (count > 1)} or linear layer{'s' * (count > 1)}"


def _not_checked(fused: "onnx.ModelProto") -> str | None:
    others = {node.op_type for node in fused.graph.node if node.op_type.startswith("QLinear")} - EXACT - NEAR
    return f"executed in integers, but not held to the reference: {', '.join(sorted(others))}" if others else None


def _endless(images: ImageSource) -> Iterator[Tensor]:
    while True:
        seen = 0
        for batch in images.batches(_BATCH):
            seen += len(batch.images)
            yield batch.images
        if seen == 0:
            raise DataError("no images to certify with: the image source gives none")
