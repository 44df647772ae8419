"""A compressed model as an ONNX file that integer runtimes execute: QuantizeLinear, Clip, DequantizeLinear."""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqlab import checkpoints
from dfqlab.compression import integers
from dfqlab.compression.model import CompressedModel
from dfqlab.deployment.packing import packed
from dfqlab.errors import ConfigurationError, DeploymentError
from dfqlab.teachers import InputSpec, Teacher

if TYPE_CHECKING:
    import onnx

OPSET = 21
METADATA_KEY = "dfqlab"


def export_onnx(model: CompressedModel | Teacher, path: str | os.PathLike[str], *, small: bool = False) -> Path:
    """Write a model as ONNX. Input `images`: float32 (n, c, h, w) in pixel units 0..1; output `logits`.

    Normalisation is part of the graph, so that nobody can forget it; the input spec also stands in the metadata.
    Of a compressed model, weights are int8 and biases int32 with a scale for each output channel; activations are
    uint8, clipped to their width after QuantizeLinear: in this order a runtime fuses them into integer operations. A
    teacher is exported as it is, in float32.

    Args:
        model: a compressed model, or a teacher.
        path: the file.
        small: weights of at most 4 bits are stored as INT4, two to a byte: for storage and download, not for speed,
            since runtimes execute them in float. `dfqlab.deployment.unpacked` makes the fast model of it again.

    Raises:
        DeploymentError: an operation that ONNX export does not know.
        OutputError: the place cannot be written.
        ConfigurationError: the extra "deploy" is not installed.
    """
    path = Path(path)
    proto = packed(to_onnx(model)) if small else to_onnx(model)
    checkpoints.write_bytes(path, proto.SerializeToString(deterministic=True))
    return path


def to_onnx(model: CompressedModel | Teacher) -> "onnx.ModelProto":
    """The model that `export_onnx` writes."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigurationError('ONNX export needs the extra "deploy": pip install "dfqlab[deploy]"') from error
    network = model.graph if isinstance(model, CompressedModel) else model.module
    if model.device.type != "cpu":
        network = copy.deepcopy(network).cpu()
    wrapped = _FromPixels(model.input, network).eval()
    example = torch.full((2, *model.input.size), 0.5)
    try:
        with _quiet():
            program = torch.onnx.export(
                wrapped,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                custom_translation_table=_translations(),
            )
    except Exception as error:
        raise DeploymentError(f"torch cannot export this network to ONNX: {first_line(error)}") from error
    assert program is not None
    assert program.exported_program is not None
    _refuse_divisors(program.exported_program)
    proto: onnx.ModelProto = program.model_proto
    _tidy(proto)
    _count_no_pads_where_none_are(proto)
    _give_zero_points(proto)
    _describe(proto, model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


class _FromPixels(nn.Module):
    """Normalise, then the network."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).reshape(-1, 1, 1))
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def _translations() -> dict[Any, Any]:
    """Our three ops in ONNX."""
    import numpy as np
    import onnx
    from onnxscript import opset21 as op

    def constant(value: Any, dtype: Any) -> Any:
        return op.Constant(value=onnx.numpy_helper.from_array(np.array(value, dtype=dtype)))

    def quantize(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
        codes = op.QuantizeLinear(x, scale, zero_point)
        if (quant_min, quant_max) != (0, 255):  # QuantizeLinear itself saturates at the ends of a byte
            codes = op.Clip(codes, constant(quant_min, np.uint8), constant(quant_max, np.uint8))
        return op.DequantizeLinear(codes, scale, zero_point)

    def dequantize_channels(codes: Any, scale: Any) -> Any:
        # onnxruntime fuses a linear layer only where the zero points, all zero, are spelled out.
        zeros = constant([0] * codes.shape[0], codes.dtype.numpy())
        return op.DequantizeLinear(codes, scale, zeros, axis=0)

    def pool(x: Any, scale: Any) -> Any:
        return op.GlobalAveragePool(x)

    return {
        integers.quantize_dequantize._opoverload: quantize,
        integers.dequantize._opoverload: dequantize_channels,
        integers.global_average_pool._opoverload: pool,
    }


def _refuse_divisors(program: torch.export.ExportedProgram) -> None:
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.avg_pool2d.default):
        if len(node.args) > 6 and node.args[6] is not None:
            raise DeploymentError(
                f"an average pooling has divisor_override={node.args[6]}, which ONNX has no word for and the exporter "
                "drops; pool without it and multiply"
            )


def _count_no_pads_where_none_are(proto: "onnx.ModelProto") -> None:
    """Without pads both settings of `count_include_pad` mean the same, yet not to onnxruntime's integer kernel: with
    `ceil_mode` it then counts what the last window reaches beyond the image."""
    for node in proto.graph.node:
        if node.op_type != "AveragePool":
            continue
        attributes = {a.name: a for a in node.attribute}
        if not ("pads" in attributes and any(attributes["pads"].ints)) and "count_include_pad" in attributes:
            attributes["count_include_pad"].i = 0


def _give_zero_points(proto: "onnx.ModelProto") -> None:
    """Zero points of its own to each tensor of weights: onnxruntime changes both where it shall multiply exactly, and
    does not load shared ones."""
    import onnx

    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    shared = set()
    for node in proto.graph.node:
        codes = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is None or codes.data_type != onnx.TensorProto.INT8:
            continue
        name = f"{codes.name}.zero_points"
        if name not in tensors:
            tensors[name] = proto.graph.initializer.add()
            tensors[name].CopyFrom(tensors[node.input[2]])
            tensors[name].name = name
        shared.add(node.input[2])
        node.input[2] = name
    read = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read or tensor.name not in shared]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _tidy(proto: "onnx.ModelProto") -> None:
    """Drop what the exporter notes for its own debugging: source lines and stack traces of the exporting machine."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    for item in [
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
        *proto.graph.initializer,
    ]:
        del item.metadata_props[:]
        item.doc_string = ""


def _describe(proto: "onnx.ModelProto", model: CompressedModel | Teacher) -> None:
    facts: dict[str, Any] = {
        "input": {
            "layout": "NCHW",
            "size": list(model.input.size),
            "range": [0.0, 1.0],
            "mean": list(model.input.mean),
            "std": list(model.input.std),
            "normalisation": "inside the graph",
        },
        "classes": list(model.classes),
    }
    if isinstance(model, CompressedModel):
        facts |= {"spec": model.spec.as_dict(), "provenance": dict(model.provenance)}
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(facts, sort_keys=True)


def first_line(error: Exception) -> str:
    """What an error of somebody else's says first."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own internals; what goes wrong raises."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
