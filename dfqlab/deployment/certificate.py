"""The certificate: a runtime's own codes, layer by layer, held to a reference that shares no code with it.

onnxruntime shows the graph that it executes, but for how it lays tensors out; OpenVINO shows only which layers it
executes in bytes. So in both the same operations are compared in a graph that has all their codes as outputs, and that
graph must give the very logits of the one that runs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.integers import IntegerConv2d
from dfqlab.compression.model import CompressedModel
from dfqlab.deployment.export import to_onnx
from dfqlab.deployment.naming import layer_names
from dfqlab.deployment.openvino import ExposedOpenVino, OpenVinoModel
from dfqlab.deployment.operators import EXACT, NEAR, Node, check
from dfqlab.deployment.runtime import ExposedOnnx, OnnxModel, exactness, fuse, saturation_warning
from dfqlab.errors import ConfigurationError, DataError, DeploymentError, did_you_mean
from dfqlab.images import ImageSource, as_source
from dfqlab.measures import sqnr

if TYPE_CHECKING:
    import onnx

CertifiedRuntime = Literal["onnxruntime", "openvino"]

ENOUGH_CODES = 1_000_000
ENOUGH_AGREEMENT = 0.98
ENOUGH_SQNR = 20.0
_BATCH = 16
_SHOWN = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}
_FLOAT = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


@dataclass(frozen=True)
class Tolerance:
    """How many in a million codes may be off by one."""

    exact: int
    near: int


TOLERANCE = {
    # Its arithmetic is written down, and the reference does the same; additions and poolings go through float32.
    "onnxruntime": Tolerance(exact=0, near=100),
    # It scales sums in float32 in an order that it does not tell: a few codes in a million, up to 7 in the networks
    # that this was measured on, come from a product that lies just between two. A mean of 16 codes lies there once in
    # 16 times, and a network has few codes of poolings beside those of its additions.
    "openvino": Tolerance(exact=100, near=10_000),
}


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
        holds: codes are equal, or differ by one on no more than `TOLERANCE` allows the runtime: none of a convolution
            or linear layer in onnxruntime; every convolution that the model holds as integers is executed in integers;
            the graph that was compared gives the logits of the one that runs; the runtime names the class that torch
            names on 98 % of the images or on all of several but one, with logits within 20 dB.
        checks: one for each integer operation.
        codes, differences: of convolutions and linear layers.
        near_codes, near_differences: of additions, poolings and concatenations.
        convolutions, integer_convolutions: that the model holds as integers; executed in integers.
        images: how many images both have classified.
        top1_agreement: share of these on which the runtime and torch name the same class.
        sqnr: of the runtime's logits against torch's, in dB.
        warnings: what to know of this machine.
        runtime: what was certified.
        same_logits: whether the graph that was compared gives the logits of the one that runs.
    """

    checks: tuple[LayerCheck, ...]
    convolutions: int
    integer_convolutions: int
    images: int
    top1_agreement: float
    sqnr: float
    warnings: tuple[str, ...]
    runtime: CertifiedRuntime = "onnxruntime"
    same_logits: bool = True

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
        exact, near = (max((c.worst for c in self.checks if c.operator in kind), default=0) for kind in (EXACT, NEAR))
        allowed = TOLERANCE[self.runtime]
        too_many_exact, too_many_near = (
            f"more than {n:,} in a million codes" if n else "codes" for n in (allowed.exact, allowed.near)
        )
        named_otherwise = round((1 - self.top1_agreement) * self.images)
        may_be = max(min(1, self.images - 1), (1 - ENOUGH_AGREEMENT) * self.images)
        conditions = {
            f"fewer than {ENOUGH_CODES:,} codes were compared": self.codes >= ENOUGH_CODES,
            f"{too_many_exact} of convolutions or linear layers differ": _few(
                self.differences, self.codes, allowed.exact
            ),
            f"a convolution or linear layer is off by {exact} codes": exact <= 1 or not allowed.exact,
            f"an addition, pooling or concatenation is off by {near} codes": near <= 1,
            f"{too_many_near} of additions, poolings and concatenations differ": _few(
                self.near_differences, self.near_codes, allowed.near
            ),
            "the graph that was compared gives other logits than the one that runs": self.same_logits,
            "a convolution stayed float": self.integer_convolutions == self.convolutions,
            f"runtime and torch name the same class on only {100 * self.top1_agreement:.1f} % of the images": (
                named_otherwise <= may_be
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
            f"{verdict}: {_SHOWN[self.runtime]} executes {self.integer_convolutions} of "
            f"{self.convolutions} convolutions in integers, and of {self.codes:,} output codes of convolutions and "
            f"linear layers {self.differences:,} differ from the integer reference{near}."
        )


def certify(
    model: CompressedModel,
    images: ImageSource | Float[Tensor, "n c h w"],
    *,
    runtime: CertifiedRuntime = "onnxruntime",
    exported: "onnx.ModelProto | None" = None,
) -> Certificate:
    """Export, run, and compare every integer operation with the numpy reference.

    Each operation is fed with the codes that the runtime itself computed in front of it, so that an error shows where
    it is made. Images are taken batch by batch until a million output codes of convolutions and linear layers were
    compared, going over the source again if it is small.

    Args:
        model: what was exported.
        images: in pixel units.
        runtime: what executes it. The operations are in both cases those that onnxruntime makes of the export.
        exported: the model's export, if it is at hand.

    Raises:
        DataError: no images, or images of another size.
        DeploymentError: the runtime cannot execute the model, or has no integer operation at all; or `exported` is not
            this model's.
        ConfigurationError: an unknown runtime, or one that is not installed.
    """
    if runtime not in get_args(CertifiedRuntime):
        raise ConfigurationError(f"no runtime {runtime!r}; {did_you_mean(runtime, get_args(CertifiedRuntime))}")
    exported = to_onnx(model) if exported is None else exported
    fused = fuse(exported)
    nodes = [Node.of(node, fused) for node in fused.graph.node if node.op_type in EXACT | NEAR]
    if not any(node.operator in EXACT for node in nodes):
        raise DeploymentError("onnxruntime executes no convolution or linear layer of this model in integers")
    tensors = [name for node in nodes for name in node.tensors]
    if runtime == "openvino":
        default: OnnxModel | OpenVinoModel = OpenVinoModel(exported)
        compared: ExposedOnnx | ExposedOpenVino = ExposedOpenVino(exported, tensors)
    else:
        default, compared = OnnxModel(exported), ExposedOnnx(fused, tensors)
    names = layer_names(nodes, model)
    checks = [LayerCheck(name, node.operator, 0, 0, 0) for name, node in zip(names, nodes, strict=True)]
    runtime_logits, torch_logits = [], []
    same_logits = True
    for batch, new in _endless(as_source(images, model.input)):
        logits = default(batch)
        if new:
            torch_logits.append(model(batch.to(model.device)).cpu())
            runtime_logits.append(logits)
        values = compared.run(batch.cpu().numpy())
        checks = [before.plus(*check(node, values)) for before, node in zip(checks, nodes, strict=True)]
        same_logits &= np.array_equal(logits.numpy(), values["logits"])
        if sum(c.codes for c in checks if c.operator in EXACT) >= ENOUGH_CODES:
            break
    expected, found = torch.cat(torch_logits), torch.cat(runtime_logits)
    in_integers, *notes = (
        _in_openvino(default, exported, nodes) if isinstance(default, OpenVinoModel) else _in_onnxruntime(fused, nodes)
    )
    foreign = sum(c.operator in EXACT and c.name not in model.layers for c in checks)
    if foreign:
        notes.append(f"{_SHOWN[runtime]} quantizes by itself what the model keeps in float: {_layers(foreign)}")
    unchecked = model.layers.keys() - {c.name for c in checks}
    if unchecked:
        notes.append(f"not held to the reference: {', '.join(sorted(unchecked))}")
    return Certificate(
        checks=tuple(checks),
        convolutions=sum(isinstance(layer, IntegerConv2d) for layer in model.layers.values()),
        integer_convolutions=sum(
            c.operator == "QLinearConv" and c.name in model.layers and node.output in in_integers
            for c, node in zip(checks, nodes, strict=True)
        ),
        images=len(expected),
        top1_agreement=float((expected.argmax(1) == found.argmax(1)).double().mean()),
        sqnr=sqnr(expected, found),
        warnings=tuple(w for w in (_of_products(exported, runtime), *notes) if w),
        runtime=runtime,
        same_logits=same_logits,
    )


def _of_products(exported: "onnx.ModelProto", runtime: CertifiedRuntime) -> str | None:
    """What to know of products of bytes on this processor."""
    found = exactness(exported)
    if found == "given":
        return None
    if found == "asked for" and runtime == "onnxruntime":
        return (
            "weights of 8 bits are multiplied exactly here because dfqlab asks for it; on processors without VNNI a "
            "program of your own must set session.x64quantprecision to 1, too"
        )
    return saturation_warning()


def _in_onnxruntime(fused: "onnx.ModelProto", nodes: Iterable[Node]) -> tuple[set[str], str | None, str | None]:
    """The outputs of operations that are executed in integers; what is executed in float, and what is not checked."""
    in_float = sum(node.op_type in _FLOAT for node in fused.graph.node)
    return {node.output for node in nodes}, _in_float(in_float), _not_checked(fused)


def _in_openvino(
    model: OpenVinoModel, exported: "onnx.ModelProto", nodes: Iterable[Node]
) -> tuple[set[str], str | None]:
    """The same in OpenVINO; it executes an operation in integers if it says so of the layer before the quantizer."""
    writer = {name: node for node in exported.graph.node for name in node.output}
    executed = {name for layer in model.executed if layer.in_integers for name in layer.names}
    made_by = {node.output: writer[writer[node.output].input[0]].name for node in nodes if node.output in writer}
    outputs = {output for output, name in made_by.items() if name in executed}
    return outputs, _in_float(sum(not layer.in_integers for layer in model.executed))


def _few(differences: int, codes: int, per_million: int) -> bool:
    return differences * 1_000_000 <= per_million * max(codes, 1)


def _in_float(count: int) -> str | None:
    return f"executed in float: {_layers(count)}" if count else None


def _layers(count: int) -> str:
    return f"{count} convolution{'s' * (count > 1)} or linear layer{'s' * (count > 1)}"


def _not_checked(fused: "onnx.ModelProto") -> str | None:
    others = {node.op_type for node in fused.graph.node if node.op_type.startswith("QLinear")} - EXACT - NEAR
    return f"executed in integers, but not held to the reference: {', '.join(sorted(others))}" if others else None


def _endless(images: ImageSource) -> Iterator[tuple[Tensor, bool]]:
    """Batches, over and over, and whether each comes for the first time."""
    new = True
    while True:
        seen = 0
        for batch in images.batches(_BATCH):
            seen += len(batch.images)
            yield batch.images, new
        if seen == 0:
            raise DataError("no images to certify with: the image source gives none")
        new = False
