"""The small file: weights of at most 4 bits as ONNX's INT4, two to a byte; and the way back.

It is for storage and download, not for speed: runtimes execute a convolution of INT4 weights in float. `unpacked` gives
the model that was packed, which they execute in integers.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_LOW, _HIGH = -8, 7


def packed(exported: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same model with every int8 weight whose codes are all in -8..7 as INT4, which opset 21 has."""
    import onnx

    small = onnx.ModelProto()
    small.CopyFrom(exported)
    tensors = {tensor.name: tensor for tensor in small.graph.initializer}
    readers = [node for node in small.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors]
    # Several may read the same codes: layers with equal ones, and one layer that is called twice.
    packable = {node.input[0] for node in readers if _fits(tensors[node.input[0]])}
    for name in packable:
        _store(small, tensors[name], onnx.TensorProto.INT4)
    for zero_points in {node.input[2] for node in readers if node.input[0] in packable}:
        _store(small, tensors[zero_points], onnx.TensorProto.INT4)
    onnx.checker.check_model(small, full_check=True)
    return small


def unpacked(small: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model that `packed` was given, byte for byte."""
    import onnx

    exported = onnx.ModelProto()
    exported.CopyFrom(small)
    for tensor in exported.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT4:
            _store(exported, tensor, onnx.TensorProto.INT8)
    return exported


def _fits(tensor: "onnx.TensorProto") -> bool:
    import onnx

    codes = onnx.numpy_helper.to_array(tensor)
    return tensor.data_type == onnx.TensorProto.INT8 and bool(
        codes.min(initial=0) >= _LOW and codes.max(initial=0) <= _HIGH
    )


def _store(model: "onnx.ModelProto", tensor: "onnx.TensorProto", kind: int) -> None:
    """Change the type of an initializer, and what the graph says of it."""
    import onnx

    codes = onnx.numpy_helper.to_array(tensor).astype(np.int8)
    if kind == onnx.TensorProto.INT4:
        low, high = np.pad(codes.ravel(), (0, codes.size % 2)).reshape(-1, 2).view(np.uint8).T & 0xF
        tensor.raw_data = (low | high << 4).tobytes()
    else:
        tensor.raw_data = codes.tobytes()
    tensor.data_type = kind
    for value in model.graph.value_info:
        if value.name == tensor.name:
            value.type.tensor_type.elem_type = kind
