"""From a teacher and images to integers: `quantize`, and `freeze` for a network that was calibrated by hand."""

import copy
from collections.abc import Mapping, Sized
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from dfqlab.compression.calibration import calibrate, round_to_grid, weight_scale
from dfqlab.compression.insertion import PreparedNetwork, prepare
from dfqlab.compression.integers import GlobalAveragePool, IntegerConv2d, IntegerLinear, Requantize
from dfqlab.compression.kinds import kind_of
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.spec import Grid, QuantizationSpec
from dfqlab.errors import QuantizationError
from dfqlab.images import ImageSource, SyntheticSet, as_source
from dfqlab.progress import OnStep, ignore
from dfqlab.teachers import Teacher
from dfqlab.teachers.tracing import replace_submodule

_LARGEST_BIAS = 2**30


def quantize(
    teacher: Teacher,
    images: ImageSource | Float[Tensor, "n c h w"],
    *,
    weights: int = 8,
    activations: int = 8,
    calibration: str = "mse",
    rounding: str = "nearest",
    on_step: OnStep = ignore,
) -> CompressedModel:
    """Quantize a teacher with ranges from images.

    Args:
        teacher: stays as it is.
        images: a SyntheticSet, another ImageSource, or a tensor in pixel units (0..1).
        weights, activations: bits, 2 to 8; the network's input always has 8.
        calibration: where ranges come from, "minmax" or "mse".
        rounding: how weights are rounded, "nearest".

    Raises:
        QuantizationError: bits outside 2..8.
        ConfigurationError: an unknown calibration or rounding.
        DataError: images that do not fit, or none.
        TeacherError: the network cannot be traced; says which line and how to leave that part out.
    """
    spec = QuantizationSpec(weights, activations, calibration, rounding)  # type: ignore[arg-type]
    source = as_source(images, teacher.input)
    prepared = prepare(teacher, spec)
    calibrate(prepared, source, on_step=on_step)
    return freeze(
        prepared, provenance={"teacher": teacher.name, "fingerprint": teacher.fingerprint, "images": _describe(source)}
    )


def freeze(prepared: PreparedNetwork, *, provenance: Mapping[str, Any]) -> CompressedModel:
    """Turn a calibrated network into integers. The prepared network stays as it is.

    Raises:
        QuantizationError: a quantizer without a range, or weights that are not finite.
    """
    spec = prepared.spec
    graph_module = copy.deepcopy(prepared.graph)
    copied = dict(zip(prepared.graph.graph.nodes, graph_module.graph.nodes, strict=True))
    grid_of = {copied[node]: path for node, path in prepared.grid_of.items()}
    kinds = {node: kind_of(node, graph_module) for node in copied.values()}

    for node, kind in kinds.items():
        if kind == "weighted":
            path = str(node.target)
            x_scale = prepared.activations[grid_of[node.args[0]]].quantization.scale
            layer = _integer_layer(path, graph_module.get_submodule(path), x_scale, spec)
            replace_submodule(graph_module, path, layer)
        elif kind == "average_pool" and _is_global(node, graph_module) and node in grid_of:
            read, written = (prepared.activations[grid_of[n]].quantization for n in (node.args[0], node))
            if read == written:
                _pool_on_grid(node, read.scale, graph_module)
        elif kind in ("relu", "relu6") and _clips_for(node, prepared):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
        elif kind in ("transparent", "relu") and node in grid_of and "tensor_meta" in node.meta:
            _stand_on_grid(node, grid_of, graph_module)
    for path, quantizer in prepared.activations.items():
        graph_module.set_submodule(path, Requantize.from_parameters(quantizer.name, quantizer.quantization))
    graph_module.graph.lint()
    # Made anew, so that its modules stand in the order of their calls, as in a model that was loaded.
    graph_module = fx.GraphModule(graph_module, graph_module.graph)
    teacher = prepared.teacher
    return CompressedModel(
        graph_module.to(teacher.device).eval().requires_grad_(False),
        teacher.input,
        teacher.classes,
        spec,
        prepared.table,
        dict(provenance),
        teacher,
    )


def _integer_layer(path: str, layer: nn.Module, x_scale: Tensor, spec: QuantizationSpec) -> nn.Module:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    if not torch.isfinite(weight).all() or (bias is not None and not torch.isfinite(bias).all()):
        raise QuantizationError(f"layer {path!r} has weights that are not finite")
    grid: Grid = spec.weight_grid
    scale = weight_scale(weight, grid, spec.calibration)
    x_scale = x_scale.to(scale)
    if bias is not None:  # a runtime adds the bias as int32: its code must not saturate
        scale = torch.maximum(scale, bias.abs() / (x_scale * _LARGEST_BIAS))
    integer: IntegerConv2d | IntegerLinear
    if isinstance(layer, nn.Conv2d):
        integer = IntegerConv2d(
            tuple(weight.shape), grid.bits, bias is not None, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    else:
        integer = IntegerLinear(tuple(weight.shape), grid.bits, bias is not None)
    integer.codes = round_to_grid(weight.flatten(1), scale, grid).reshape(weight.shape).to(torch.int8)
    integer.scale = scale
    integer.bias_scale = x_scale * scale
    if bias is not None:
        integer.bias_codes = torch.round(bias.double() / integer.bias_scale.double()).to(torch.int32)
    return integer


def _pool_on_grid(node: fx.Node, scale: Tensor, graph_module: fx.GraphModule) -> None:
    path = f"global_average_{node.name}"
    pool = GlobalAveragePool()
    pool.scale = scale.clone()
    graph_module.add_submodule(path, pool)
    with graph_module.graph.inserting_before(node):
        call = graph_module.graph.call_module(path, (node.args[0],))
    node.replace_all_uses_with(call)
    graph_module.graph.erase_node(node)


def _is_global(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    shape = node.meta["tensor_meta"].shape
    if len(shape) != 4 or tuple(shape[2:]) != (1, 1):
        return False
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.AdaptiveAvgPool2d)
    return node.target is F.adaptive_avg_pool2d


def _clips_for(node: fx.Node, prepared: PreparedNetwork) -> bool:
    """Whether the quantizer behind this activation function clips where the function would."""
    users = list(node.users)
    if len(users) != 1 or str(users[0].target) not in prepared.activations:
        return False
    quantizer = prepared.activations[str(users[0].target)]
    return quantizer.lower == 0 and quantizer.quantization.zero_point == quantizer.quantization.quant_min


def _stand_on_grid(node: fx.Node, grid_of: dict[fx.Node, str], graph_module: fx.GraphModule) -> None:
    """Say once more which grid moved values stand on: exact, and what lets a runtime keep them as integers."""
    if not hasattr(node.meta["tensor_meta"], "shape"):  # a tuple of pieces: each piece says it for itself
        return
    readers = list(node.users)
    with graph_module.graph.inserting_after(node):
        again = graph_module.graph.call_module(grid_of[node], (node,))
    grid_of[again] = grid_of[node]
    for reader in readers:
        reader.replace_input_with(node, again)


def _describe(source: ImageSource) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": type(source).__name__}
    if isinstance(source, Sized):
        about["count"] = len(source)
    if isinstance(source, SyntheticSet):
        about |= {"recipe": source.recipe, "seed": source.seed, "partial": source.partial}
    return about
