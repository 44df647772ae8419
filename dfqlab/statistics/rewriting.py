"""A teacher's graph in which every BatchNorm is one op with its activation, its residual and its statistics."""

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import dfqlab_kernels
from dfqlab.errors import TeacherError
from dfqlab.teachers import Teacher, trace
from dfqlab_kernels.statistics import Per

_ADDITIONS = (operator.add, torch.add, "add")
_ADDITIONS_IN_PLACE = (operator.iadd, "add_")  # they change their first argument
_ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu", F.relu: "relu", F.relu_: "relu", torch.relu: "relu", torch.relu_: "relu", "relu": "relu",
    "relu_": "relu", nn.ReLU6: "relu6", F.relu6: "relu6",
}  # fmt: skip


def rewrite(teacher: Teacher, per: Per) -> fx.GraphModule | None:
    """The network as a graph that returns (logits, moments of each BatchNorm's input, features).

    None where a graph would not tell all: torch.fx cannot follow the network, or a BatchNorm or the last linear layer
    is inside a leaf.
    """
    try:
        graph_module = copy.deepcopy(trace(teacher))
    except TeacherError:
        return None
    graph = graph_module.graph
    last_linear, hidden = _last_linear(graph_module)
    norms: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in teacher.batch_norms:
            norms.setdefault(node.target, node)
    if tuple(norms) != teacher.batch_norms or hidden:
        return None
    _propagate_shapes(graph_module, teacher)
    moments = {name: _fuse(_Pattern.around(node, graph_module), graph_module, per) for name, node in norms.items()}
    features = None if last_linear is None else last_linear.all_input_nodes[0]
    (output,) = graph.find_nodes(op="output")
    output.args = ((output.args[0], tuple(moments.values()), features),)
    graph_module.recompile()
    return graph_module


@dataclass(frozen=True)
class _Pattern:
    """A BatchNorm and what follows it and nothing else does: an addition, an activation, both or neither."""

    norm: fx.Node
    last: fx.Node
    residual: fx.Node | None
    activation: str

    @staticmethod
    def around(norm: fx.Node, graph_module: fx.GraphModule) -> "_Pattern":
        last, activation = norm, "none"
        residual: fx.Node | None = None
        reader = _only_reader(last)
        if reader is not None and _adds_to(reader, norm, graph_module):
            others = [a for a in reader.args if isinstance(a, fx.Node) and a is not norm]
            if len(others) == 1 and _same_kind(others[0], norm) and not reader.kwargs:
                last, residual = reader, others[0]
                reader = _only_reader(last)
        if reader is not None and _what(reader, graph_module) in _ACTIVATIONS:
            last, activation = reader, _ACTIVATIONS[_what(reader, graph_module)]
        if _changes_something_between(norm, last, graph_module):
            return _Pattern(norm, norm, None, "none")
        return _Pattern(norm, last, residual, activation)


def _fuse(pattern: _Pattern, graph_module: fx.GraphModule, per: Per) -> fx.Node:
    """Put one op in the place of the pattern's last node; returns the node of its moments."""
    graph = graph_module.graph
    norm = graph_module.get_submodule(str(pattern.norm.target))
    assert isinstance(norm, BatchNorm)
    scale, shift = (_new_buffer(graph_module, values) for values in _affine(norm))
    with graph.inserting_before(pattern.last):
        call = graph.call_function(
            dfqlab_kernels.bn_activation_stats,
            (pattern.norm.all_input_nodes[0], graph.get_attr(scale), graph.get_attr(shift)),
            {"activation": pattern.activation, "residual": pattern.residual, "per": per},
        )
        y = graph.call_function(operator.getitem, (call, 0))
        y.meta = dict(pattern.last.meta)  # its shape, which a later addition asks for
        moments = graph.call_function(operator.getitem, (call, 1))
    pattern.last.replace_all_uses_with(y)
    node = pattern.last
    while node is not pattern.norm:  # from the end, so that what is erased has no reader
        before = next(a for a in node.args if isinstance(a, fx.Node) and a is not pattern.residual)
        graph.erase_node(node)
        node = before
    graph.erase_node(node)
    return moments


def _affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as `x * scale + shift`, in float32 or wider whatever the network's type."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach()
    dtype = torch.promote_types(norm.running_var.dtype, torch.float32)
    return scale.to(dtype), shift.to(dtype)


def _new_buffer(graph_module: fx.GraphModule, values: Tensor) -> str:
    """Register a buffer under a name that is free."""
    number = 0
    while hasattr(graph_module, f"affine_{number}"):
        number += 1
    graph_module.register_buffer(f"affine_{number}", values)
    return f"affine_{number}"


def _last_linear(graph_module: fx.GraphModule) -> tuple[fx.Node | None, bool]:
    """The last linear layer that the graph shows, and whether one inside a leaf comes after it."""
    last, hidden = None, False
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(node.target)
        if isinstance(module, nn.Linear):
            last, hidden = node, False
        elif any(isinstance(child, nn.Linear) for child in module.modules()):
            hidden = True
    return last, hidden


def _propagate_shapes(graph_module: fx.GraphModule, teacher: Teacher) -> None:
    like = next((p for p in graph_module.parameters() if p.is_floating_point()), torch.empty(0))
    with torch.no_grad():
        ShapeProp(graph_module).propagate(like.new_zeros(2, *teacher.input.size))


def _what(node: fx.Node, graph_module: fx.GraphModule) -> Any:
    """A function, the name of a method, or the class of a module."""
    return type(graph_module.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _adds_to(node: fx.Node, norm: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Whether a node is the sum of two things, BatchNorm's output one of them, and changes nobody else's tensor."""
    what = _what(node, graph_module)
    return len(node.args) == 2 and (what in _ADDITIONS or (what in _ADDITIONS_IN_PLACE and node.args[0] is norm))


def _changes_something_between(norm: fx.Node, last: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Whether an operation in place stands after BatchNorm, and before what it would be moved behind."""
    own, node = {norm, last, *norm.users}, norm
    while node is not last:
        node = node.next
        if node not in own and _in_place(node, graph_module):
            return True
    return False


def _in_place(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph_module.get_submodule(str(node.target)), "inplace", False))
    name = str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))
    return (
        bool(node.kwargs.get("inplace", False))
        or (name.endswith("_") and not name.startswith("__"))
        or name in ("iadd", "isub", "imul", "itruediv", "setitem")
    )


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _same_kind(one: fx.Node, other: fx.Node) -> bool:
    """Whether both are tensors of one shape and type."""
    a, b = one.meta.get("tensor_meta"), other.meta["tensor_meta"]
    return bool(isinstance(a, type(b)) and a.shape == b.shape and a.dtype == b.dtype)
