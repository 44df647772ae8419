"""The integer operations of onnxruntime's fused graph, each checked with the reference."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dfqlab.deployment import reference
from dfqlab.deployment.reference import Affine, Window, as_pair
from dfqlab.errors import DeploymentError

if TYPE_CHECKING:
    import onnx

EXACT = {"QLinearConv", "QGemm"}
NEAR = {"QLinearAdd", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearConcat"}
_FLOAT32_ROUNDING = 2.0**-20  # of the largest output: three products and sums, each to 24 bits, in any order
_OUTPUT_SCALE = {"QLinearAdd": 6, "QLinearGlobalAveragePool": 3, "QLinearAveragePool": 3, "QLinearConcat": 0}


@dataclass(frozen=True)
class Node:
    """One operation: its inputs, each a constant or the name of a tensor, and its attributes."""

    operator: str
    inputs: tuple[Any, ...]
    output: str
    attributes: dict[str, Any]

    @classmethod
    def of(cls, node: "onnx.NodeProto", model: "onnx.ModelProto") -> "Node":
        """Read a node of a model; constants are resolved."""
        import onnx

        constants = {t.name: t for t in model.graph.initializer if t.name in node.input}
        inputs = tuple(
            onnx.numpy_helper.to_array(constants[name]) if name in constants else (name or None) for name in node.input
        )
        if node.op_type in EXACT:
            inputs = (*inputs[:3], _signed(inputs[3]), inputs[4], _signed(inputs[5]), *inputs[6:])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return cls(node.op_type, inputs, node.output[0], attributes)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of what it reads and writes at run time."""
        return (*(i for i in self.inputs if isinstance(i, str)), self.output)

    @property
    def weight(self) -> Any:
        """Of a convolution or a linear layer: the codes (out, ...)."""
        weight = self.inputs[3]
        return weight.T if self.operator == "QGemm" and not self.attributes.get("transB", 0) else weight

    @property
    def output_scale(self) -> float:
        """Of any other operation: the scale of its output."""
        return float(self.inputs[_OUTPUT_SCALE[self.operator]])

    def optional(self, index: int) -> Any:
        """An input that may be missing."""
        return self.inputs[index] if index < len(self.inputs) else None


def _signed(codes: Any) -> Any:
    """Weights and their zero points as int8: onnxruntime has both 128 higher where it multiplies exactly."""
    if isinstance(codes, np.ndarray) and codes.dtype == np.uint8:
        return np.asarray(codes.astype(np.int16) - 128, dtype=np.int8)
    return codes


def check(node: Node, values: dict[str, Any]) -> tuple[int, int, int]:
    """Compare the runtime's output with the reference, on the runtime's own inputs: (codes, differences, worst)."""
    found = values[node.output]
    expected = _EXPECTED[node.operator](node, values)
    if found.shape != expected.shape:
        raise DeploymentError(f"{node.operator} {node.output}: shape {found.shape}, expected {expected.shape}")
    if found.dtype == np.float32:  # a linear layer whose output stays float: equal but for rounding, or not
        different = np.abs(found - expected) > _FLOAT32_ROUNDING * np.abs(expected).max(initial=0)
        return found.size, int(different.sum()), int(different.any())
    gap = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    return found.size, int((gap > 0).sum()), int(gap.max(initial=0))


def _conv(node: Node, values: dict[str, Any]) -> Any:
    x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero = (_value(i, values) for i in node.inputs[:8])
    attributes = node.attributes
    window = Window(
        as_pair(weight.shape[2:]),
        as_pair(attributes.get("strides", (1, 1))),
        tuple(attributes.get("pads", (0, 0, 0, 0))),
        as_pair(attributes.get("dilations", (1, 1))),
    )
    return reference.conv(
        x, Affine(x_scale, x_zero), weight, Affine(w_scale, w_zero), Affine(y_scale, y_zero),
        node.optional(8), window, attributes.get("group", 1),
    )  # fmt: skip


def _gemm(node: Node, values: dict[str, Any]) -> Any:
    a, a_scale, a_zero, _, b_scale, b_zero = (_value(i, values) for i in node.inputs[:6])
    if node.attributes.get("transA", 0) or node.attributes.get("alpha", 1.0) != 1.0:
        raise DeploymentError(f"QGemm {node.output}: transA and alpha are not expected of an exported linear layer")
    accumulator = reference.gemm_accumulator(
        a, Affine(a_scale, a_zero), node.weight, Affine(b_scale, b_zero), node.optional(6)
    )
    y_scale = node.optional(7)
    if y_scale is None:
        return accumulator.astype(np.float32) * (a_scale * b_scale).astype(np.float32)
    multiplier = (a_scale * b_scale / y_scale).astype(np.float32)
    return reference.requantize(accumulator, multiplier, node.inputs[8])


def _add(node: Node, values: dict[str, Any]) -> Any:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (_value(i, values) for i in node.inputs[:8])
    total = reference.dequantize(a, Affine(a_scale, a_zero)) + reference.dequantize(b, Affine(b_scale, b_zero))
    return reference.quantize(total, Affine(y_scale, y_zero))


def _pool(node: Node, values: dict[str, Any]) -> Any:
    x, x_scale, x_zero, y_scale, y_zero = (_value(i, values) for i in node.inputs[:5])
    window = None
    if node.operator == "QLinearAveragePool":
        window = Window(
            as_pair(node.attributes["kernel_shape"]),
            as_pair(node.attributes.get("strides", (1, 1))),
            tuple(node.attributes.get("pads", (0, 0, 0, 0))),
            ceil=bool(node.attributes.get("ceil_mode", 0)),
        )
    count_pads = bool(node.attributes.get("count_include_pad", 0))
    return reference.average_pool(x, Affine(x_scale, x_zero), Affine(y_scale, y_zero), window, count_pads)


def _concat(node: Node, values: dict[str, Any]) -> Any:
    y_scale, y_zero, *rest = (_value(i, values) for i in node.inputs)
    y_grid = Affine(y_scale, y_zero)
    parts = [reference.change_grid(rest[i], Affine(rest[i + 1], rest[i + 2]), y_grid) for i in range(0, len(rest), 3)]
    return np.concatenate(parts, node.attributes["axis"])


def _value(value: Any, values: dict[str, Any]) -> Any:
    return values[value] if isinstance(value, str) else value


_EXPECTED = {
    "QLinearConv": _conv,
    "QGemm": _gemm,
    "QLinearAdd": _add,
    "QLinearGlobalAveragePool": _pool,
    "QLinearAveragePool": _pool,
    "QLinearConcat": _concat,
}
