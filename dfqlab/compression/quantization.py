"""From a teacher and images to integers: `quantize`, and `freeze` for a network that was calibrated by hand."""

import copy
from collections.abc import Mapping, Sized
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from dfqlab.compression.allocation import mixed
from dfqlab.compression.calibration import calibrate, check_size
from dfqlab.compression.correction import corrected_biases
from dfqlab.compression.insertion import prepare
from dfqlab.compression.integers import CapChannels, GlobalAveragePool, IntegerConv2d, IntegerLinear, Requantize
from dfqlab.compression.kinds import CappedReLU, kind_of
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.reconstruction import adaround, brecq, qdrop
from dfqlab.compression.rounding import Rounded, RoundedWeight, Rounding, nearest, squant
from dfqlab.compression.spec import specification
from dfqlab.errors import DataError
from dfqlab.images import ImageSource, SyntheticSet, as_source
from dfqlab.progress import OnStep, ignore
from dfqlab.teachers import Teacher
from dfqlab.teachers.tracing import replace_submodule

_LARGEST_CODE = 2**31 - 1

ROUNDINGS: dict[str, Rounding] = {
    "nearest": nearest,
    "squant": squant,
    "adaround": adaround,
    "brecq": brecq,
    "qdrop": qdrop,
}


def quantize(
    teacher: Teacher,
    images: ImageSource | Float[Tensor, "n c h w"] | None,
    *,
    weights: int = 8,
    activations: int = 8,
    calibration: str = "mse",
    equalization: str = "none",
    rounding: str = "nearest",
    on_step: OnStep = ignore,
    **more: Any,
) -> CompressedModel:
    """Quantize a teacher: equalize its layers, take ranges from images, round its weights.

    Args:
        teacher: stays as it is.
        images: a SyntheticSet, another ImageSource, or a tensor in pixel units (0..1); None where the calibration is
            "bn" and nothing else learns from images.
        weights, activations: bits, 2 to 8; the network's input always has 8.
        calibration: where ranges come from: "minmax", "percentile", "ema", "image_mean", "mse", "kl", "aciq", or "bn",
            which needs no images.
        equalization: "dfq" scales the channels of neighbouring layers against each other first.
        rounding: how weights are rounded: "nearest", "squant", or learned from images: "adaround" layer by layer,
            "brecq" and "qdrop" block by block.
        more: further fields of `QuantizationSpec`, as `ends=8`.

    Raises:
        QuantizationError: bits outside 2..8, or `mean_bits` below what is possible; a percentile that leaves nothing;
            weights that are not finite; no BatchNorm, or too little, where ranges come from there; a network that
            cannot be cut into blocks where these are reconstructed.
        ConfigurationError: an unknown choice, a field that does not exist, bits for a layer that does not, or
            `mean_bits` without scipy.
        DataError: images that do not fit, or none where they are needed.
        TeacherError: the network cannot be traced; says which line and how to leave that part out.
    """
    spec = specification(
        weights=weights, activations=activations, calibration=calibration, equalization=equalization, rounding=rounding,
        **more,
    )  # fmt: skip
    source = None if images is None else as_source(images, teacher.input)
    learns = spec.learns_rounding or spec.mean_bits is not None or spec.corrects == "empirical"
    if source is not None and learns:
        _check_first(source, teacher)
    prepared = prepare(teacher, spec)
    if spec.mean_bits is not None:
        prepared = prepare(teacher, mixed(prepared, source, spec.mean_bits, on_step=on_step))
    calibrate(prepared, source, on_step=on_step)
    rounded = ROUNDINGS[spec.rounding](prepared, source, on_step=on_step)
    return freeze(
        prepared,
        rounded=rounded,
        biases=corrected_biases(prepared, rounded, source),
        provenance={"teacher": teacher.name, "fingerprint": teacher.fingerprint, "images": _describe(source)},
    )


def _check_first(source: ImageSource, teacher: Teacher) -> None:
    """Raise a DataError unless there are images, of the teacher's size: calibration "bn" does not look at them."""
    first = next(source.batches(1), None)
    if first is None or not len(first.images):
        raise DataError("nothing to calibrate with: the image source gives no image")
    check_size(teacher, first.images)


def freeze(
    prepared: PreparedNetwork,
    *,
    provenance: Mapping[str, Any],
    rounded: Rounded | None = None,
    biases: Mapping[str, Tensor] | None = None,
) -> CompressedModel:
    """Turn a calibrated network into integers. The prepared network stays as it is.

    Args:
        prepared: with a range at every quantizer.
        provenance: teacher, its fingerprint, where the images came from.
        rounded: codes of every layer; rounded to nearest, if not given.
        biases: in place of the layers' own.

    Raises:
        QuantizationError: a quantizer without a range, or weights that are not finite.
    """
    rounded = nearest(prepared) if rounded is None else rounded
    spec = prepared.spec
    graph_module = copy.deepcopy(prepared.graph)
    copied = dict(zip(prepared.graph.graph.nodes, graph_module.graph.nodes, strict=True))
    grid_of = {copied[node]: path for node, path in prepared.grid_of.items()}
    kinds = {node: kind_of(node, graph_module) for node in copied.values()}
    modules = dict(graph_module.named_modules())

    for node, kind in kinds.items():
        if kind == "weighted":
            path = str(node.target)
            layer = prepared.weights[path]
            bias = layer.bias if biases is None else biases.get(path, layer.bias)
            x_scale = prepared.activations[grid_of[node.args[0]]].quantization.scale
            integer = _integer_layer(layer, rounded[path], bias, x_scale, prepared.grids[path].bits)
            replace_submodule(graph_module, path, integer)
        elif kind == "average_pool" and _is_global(node, graph_module) and node in grid_of:
            read, written = (prepared.activations[grid_of[n]].quantization for n in (node.args[0], node))
            if read == written:
                _pool_on_grid(node, read.scale, graph_module)
        elif kind in ("relu", "relu6") and _clips_for(node, prepared):
            if node.op == "call_module" and isinstance(function := modules[str(node.target)], CappedReLU):
                _cap_codes(node, function, prepared, graph_module, grid_of)
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
        prepared.chains,
    )


def _integer_layer(
    layer: nn.Conv2d | nn.Linear, rounded: RoundedWeight, bias: Tensor | None, x_scale: Tensor, bits: int
) -> nn.Module:
    shape = tuple(layer.weight.shape)
    integer: IntegerConv2d | IntegerLinear
    if isinstance(layer, nn.Conv2d):
        integer = IntegerConv2d(
            shape, bits, bias is not None, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    else:
        integer = IntegerLinear(shape, bits, bias is not None)
    integer.codes = rounded.codes.to(torch.int8)
    integer.scale = rounded.scale
    integer.bias_scale = x_scale.to(rounded.scale) * rounded.scale
    if bias is not None:
        codes = torch.round(bias.detach().double() / integer.bias_scale.double())
        integer.bias_codes = codes.clamp(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int32)
    return integer


def _cap_codes(
    node: fx.Node,
    function: CappedReLU,
    prepared: PreparedNetwork,
    graph_module: fx.GraphModule,
    grid_of: dict[fx.Node, str],
) -> None:
    """Cap the channels behind their quantizer, unless its range caps them all."""
    (quantizer,) = node.users
    parameters = prepared.activations[str(quantizer.target)].quantization
    steps = torch.round(function.caps / parameters.scale.to(function.caps))
    if (steps >= parameters.quant_max - parameters.zero_point).all():
        return
    path = f"caps_{node.name}"
    caps = CapChannels(len(steps))
    caps.caps = steps * parameters.scale.to(steps)
    graph_module.add_submodule(path, caps)
    readers = list(quantizer.users)
    with graph_module.graph.inserting_after(quantizer):
        capped = graph_module.graph.call_module(path, (quantizer,))
    with graph_module.graph.inserting_after(capped):
        again = graph_module.graph.call_module(str(quantizer.target), (capped,))
    grid_of[capped] = grid_of[again] = str(quantizer.target)
    for reader in readers:
        reader.replace_input_with(quantizer, again)


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


def _describe(source: ImageSource | None) -> dict[str, Any]:
    if source is None:
        return {"kind": "none"}
    about: dict[str, Any] = {"kind": type(source).__name__}
    if isinstance(source, Sized):
        about["count"] = len(source)
    if isinstance(source, SyntheticSet):
        about |= {"recipe": source.recipe, "seed": source.seed, "partial": source.partial}
    return about
