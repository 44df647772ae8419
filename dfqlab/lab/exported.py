"""Look inside an exported model: the operations of one layer, and the integers that a runtime computes for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.model import CompressedModel
from dfqlab.deployment.naming import layer_names
from dfqlab.deployment.operators import Node
from dfqlab.deployment.runtime import ExposedOnnx, fuse
from dfqlab.errors import ConfigurationError, DataError, did_you_mean
from dfqlab.figures import Station

if TYPE_CHECKING:
    import onnx

_CONSTANTS = {"Conv": (1, 2), "QLinearConv": (3, 8)}  # where weights and biases go in
_CODES = ".codes"
_UNSIGNED = "_s8_2_u8"  # onnxruntime's, behind the name of weights that it has made unsigned for exact products
_FOLLOWING = {"Relu", "QuantizeLinear", "Clip", "DequantizeLinear"}


def layer_path(graph: "onnx.ModelProto", layer: str) -> list[Station]:
    """The operations on the way from the codes that a convolution reads to those that it gives.

    Args:
        graph: an export, or what `dfqlab.deployment.certificate.fuse` makes of it.
        layer: the convolution's module path.

    Raises:
        ConfigurationError: the graph has no such convolution with integer weights.
    """
    read = _Graph(graph)
    convolutions = read.convolutions()
    if layer not in convolutions:
        raise ConfigurationError(f"no convolution {layer!r} in the graph; {did_you_mean(layer, convolutions)}")
    path = [convolutions[layer]]
    before = read.made_by.get(path[0].input[0])
    if before is not None and before.op_type == "DequantizeLinear":
        path.insert(0, before)
    while path[-1].op_type != "DequantizeLinear" or path[-1] is before:
        after = read.read_by.get(path[-1].output[0], [])
        if len(after) != 1 or after[0].op_type not in _FOLLOWING:
            break
        path.append(after[0])
    return [Station(node.op_type, read.type_of(node.output[0]), tuple(read.holds(node))) for node in path]


class _Graph:
    """An ONNX graph, to be asked who makes a tensor, who reads it, and what is constant."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        import onnx

        graph = onnx.shape_inference.infer_shapes(model).graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        self.nodes = list(graph.node)
        self.made_by = {output: node for node in graph.node for output in node.output}
        self.read_by: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.read_by.setdefault(name, []).append(node)

    def convolutions(self) -> "dict[str, onnx.NodeProto]":
        """Those with integer weights, by module path."""
        found = {}
        for node in self.nodes:
            if node.op_type in _CONSTANTS:
                constant = self.source_of(node.input[_CONSTANTS[node.op_type][0]])
                name = constant.removesuffix(_UNSIGNED)
                if constant in self.constants and name.endswith(_CODES):
                    found[name.removeprefix("network.").removesuffix(_CODES)] = node
        return found

    def source_of(self, name: str) -> str:
        """What a tensor is dequantized from, or itself."""
        node = self.made_by.get(name)
        return node.input[0] if node is not None and node.op_type == "DequantizeLinear" else name

    def type_of(self, name: str) -> str:
        """The type of a tensor's elements, as "uint8"."""
        import onnx

        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.types[name])).name

    def holds(self, node: "onnx.NodeProto") -> Iterator[str]:
        """What goes into a node as a constant, in words."""
        import onnx

        if node.op_type == "Clip":
            low, high = (onnx.numpy_helper.to_array(self.constants[name]).item() for name in node.input[1:3])
            yield f"{low} to {high}"
        for place, what in zip(_CONSTANTS.get(node.op_type, ()), ("weights", "biases"), strict=False):
            if place < len(node.input):
                codes = onnx.numpy_helper.to_array(self.constants[self.source_of(node.input[place])])
                yield f"{codes.dtype.name} {what}, {'x'.join(map(str, codes.shape))}"


@dataclass(frozen=True, eq=False)
class ExecutedLayer:
    """One convolution as onnxruntime executes it.

    Attributes:
        x: codes that it reads, (n, c, h, w); a code stands for `(code - x_zero_point) * x_scale`.
        y: codes that it gives, before they are clipped to their width, (n, out, h', w').
        weight_scale: (out,).
    """

    x: Tensor
    x_scale: Tensor
    x_zero_point: int
    weight_scale: Tensor
    y: Tensor
    y_scale: Tensor
    y_zero_point: int


def executed_layer(
    model: CompressedModel, exported: "onnx.ModelProto", layer: str, images: Float[Tensor, "n c h w"]
) -> ExecutedLayer:
    """The integers that onnxruntime reads and gives in one convolution, for these images.

    Args:
        model: what was exported.
        exported: its export.
        layer: the convolution's module path.
        images: in pixel units.

    Raises:
        ConfigurationError: onnxruntime executes no such convolution in integers.
        DataError: no images, or images of another size.
    """
    if len(images) == 0 or images.shape[1:] != model.input.size:
        raise DataError(f"expected images (n, {', '.join(map(str, model.input.size))}), got {tuple(images.shape)}")
    fused = fuse(exported)
    nodes = [Node.of(node, fused) for node in fused.graph.node if node.op_type == "QLinearConv"]
    known = dict(zip(layer_names(nodes, model), nodes, strict=True))
    if layer not in known:
        raise ConfigurationError(f"no convolution {layer!r} is executed in integers; {did_you_mean(layer, known)}")
    node = known[layer]
    values = ExposedOnnx(fused, node.tensors).run(images.cpu().numpy())
    x, x_scale, x_zero, _, w_scale, _, y_scale, y_zero = node.inputs[:8]
    as_tensor = torch.from_numpy
    return ExecutedLayer(
        as_tensor(values[x]), torch.tensor(x_scale), int(x_zero), torch.tensor(w_scale),
        as_tensor(values[node.output]), torch.tensor(y_scale), int(y_zero),
    )  # fmt: skip
