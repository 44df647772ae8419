"""A teacher's network made ready for integers: BatchNorm folded into its convolution, its Gaussian kept."""

import copy
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dfqlab.compression.kinds import OPAQUE, kind_of
from dfqlab.errors import TeacherError
from dfqlab.teachers import Teacher, trace
from dfqlab.teachers.tracing import replace_submodule


@dataclass(frozen=True)
class Gaussian:
    """What a BatchNorm layer promises of its output: mean `beta` and standard deviation `|gamma|`, a channel each."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class FoldedNetwork:
    """A network without BatchNorm, equal to the teacher's in eval mode.

    Attributes:
        graph: takes normalised images; every node has `tensor_meta`; every weighted layer is called once.
        gaussians: by module path of the weighted layer that a BatchNorm was folded into.
    """

    graph: fx.GraphModule
    gaussians: dict[str, Gaussian]


def fold(teacher: Teacher) -> FoldedNetwork:
    """Trace the teacher, fold BatchNorm and drop what does nothing in eval mode. The teacher itself stays as it is.

    A BatchNorm with no convolution or linear layer of its own in front becomes a depthwise 1x1 convolution, which an
    integer runtime executes; a weighted layer that is called twice becomes two, since each call has its own input grid.

    Raises:
        TeacherError: torch.fx cannot trace the network, or its graph computes something else than itself.
    """
    graph_module = copy.deepcopy(trace(teacher))
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and node.target in teacher.leaves:
            node.meta[OPAQUE] = True
    with torch.no_grad():
        expected = teacher.module(_example(teacher))
    propagate_shapes(graph_module, teacher)
    _follow_changes_in_place(graph_module)
    _drop_identities(graph_module)
    _call_each_layer_once(graph_module)
    _spell_out_spatial_means(graph_module)
    gaussians = _fold_batch_norms(graph_module)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    found = propagate_shapes(graph_module, teacher)
    if torch.isfinite(expected).all() and (found - expected).abs().max() > _ROUNDING * expected.abs().max():
        raise TeacherError(
            f"the graph that torch.fx makes of {teacher.name!r} computes something else than the network itself. Where "
            "it drops values at random, pass training=self.training to dropout; where it changes a tensor in place "
            "that goes by another name too, name that submodule in leaves=[...]"
        )
    return FoldedNetwork(graph_module.requires_grad_(False), gaussians)


def propagate_shapes(graph_module: fx.GraphModule, teacher: Teacher) -> Tensor:
    """Note at every node the shape that two images give it; returns what leaves the network."""
    with torch.no_grad():
        found: Tensor = ShapeProp(graph_module).propagate(_example(teacher))
    return found


def _example(teacher: Teacher) -> Tensor:
    return torch.randn(2, *teacher.input.size, generator=torch.Generator().manual_seed(0)).to(teacher.device)


_ROUNDING = 1e-2  # of the largest logit: far above what folding in float32 costs, far below another network
_IN_PLACE_OPERATORS = {getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "pow")}


def _follow_changes_in_place(graph_module: fx.GraphModule) -> None:
    """Whoever reads a tensor after it was changed in place reads the result: the graph then says what hangs on what."""
    order = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    for node in order:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not _changes_in_place(node, graph_module):
            continue
        for reader in [user for user in source.users if order[user] > order[node]]:
            reader.replace_input_with(source, node)


def _changes_in_place(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    if "tensor_meta" not in node.meta:
        return False
    if node.op == "call_module":
        return getattr(graph_module.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    return (
        node.target in _IN_PLACE_OPERATORS
        or (getattr(node.target, "__name__", "").endswith("_") and node.target not in vars(operator).values())
        or node.kwargs.get("inplace", False) is True
        or (node.target in (F.relu, F.relu6) and node.args[1:] == (True,))
    )


def _drop_identities(graph_module: fx.GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if kind_of(node, graph_module) == "identity":
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)


def _call_each_layer_once(graph_module: fx.GraphModule) -> None:
    calls: dict[str, int] = {}
    for node in graph_module.graph.nodes:
        if kind_of(node, graph_module) not in ("weighted", "batch_norm"):
            continue
        path = str(node.target)
        calls[path] = calls.get(path, 0) + 1
        if calls[path] > 1:
            node.target = f"{path}_call{calls[path]}"
            graph_module.add_submodule(node.target, copy.deepcopy(graph_module.get_submodule(path)))


def _spell_out_spatial_means(graph_module: fx.GraphModule) -> None:
    """x.mean((2, 3)) as the pooling that runtimes know."""
    for node in list(graph_module.graph.nodes):
        if kind_of(node, graph_module) != "average_pool" or node.target not in (torch.mean, "mean"):
            continue
        keep = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        with graph_module.graph.inserting_before(node):
            pooled = graph_module.graph.call_function(F.adaptive_avg_pool2d, (node.args[0], 1))
            pooled.meta = dict(node.meta)
            if not keep:
                pooled = graph_module.graph.call_function(torch.flatten, (pooled, 1))
                pooled.meta = dict(node.meta)
        node.replace_all_uses_with(pooled)
        graph_module.graph.erase_node(node)


def _fold_batch_norms(graph_module: fx.GraphModule) -> dict[str, Gaussian]:
    gaussians: dict[str, Gaussian] = {}
    for node in list(graph_module.graph.nodes):
        if kind_of(node, graph_module) != "batch_norm":
            continue
        path, source = str(node.target), node.args[0]
        norm = graph_module.get_submodule(path)
        assert isinstance(norm, BatchNorm)
        if norm.running_mean is None:  # nothing remembered: it normalises with its batch, and stays float
            continue
        gamma, beta, gain, shift = _affine(norm)
        readers = [user for user in source.users if kind_of(user, graph_module) != "host"]
        if len(readers) == 1 and _ends_in_channels_of(source, norm, graph_module):
            target = str(source.target)
            _scale_layer(graph_module.get_submodule(target), gain, shift)
            node.replace_all_uses_with(source)
            graph_module.graph.erase_node(node)
            replace_submodule(graph_module, path, nn.Module())  # an activation may stand below it
        elif len(node.meta["tensor_meta"].shape) == 4:
            target = path
            channels = gain.numel()
            layer = nn.utils.skip_init(nn.Conv2d, channels, channels, 1, groups=channels)
            layer.weight = nn.Parameter(gain.reshape(-1, 1, 1, 1), requires_grad=False)
            layer.bias = nn.Parameter(shift, requires_grad=False)
            replace_submodule(graph_module, path, layer.eval())
        else:
            continue
        gaussians[target] = Gaussian(beta, gamma.abs())
    return gaussians


def _ends_in_channels_of(source: fx.Node, norm: BatchNorm, graph_module: fx.GraphModule) -> bool:
    """Whether a layer's output channels are those that the BatchNorm behind it normalises.

    They are not where a linear layer is applied along the last dimension of more than two: BatchNorm takes the second.
    """
    if kind_of(source, graph_module) != "weighted":
        return False
    layer = graph_module.get_submodule(str(source.target))
    return isinstance(layer, nn.Conv2d) or len(source.meta["tensor_meta"].shape) == 2


def _affine(norm: BatchNorm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gamma, beta, and BN in eval mode as the map `gain * x + shift`."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    gain = gamma.double() / torch.sqrt(var.double() + norm.eps)
    return gamma, beta, gain.to(mean.dtype), (beta.double() - gain * mean.double()).to(mean.dtype)


def _scale_layer(layer: nn.Module, gain: Tensor, shift: Tensor) -> None:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    weight = layer.weight.detach()
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach()
    layer.weight = nn.Parameter(weight * gain.reshape(-1, *[1] * (weight.dim() - 1)), requires_grad=False)
    layer.bias = nn.Parameter(bias * gain + shift, requires_grad=False)
