"""A compressed network's graph as JSON and back: a closed vocabulary of operations, nothing that could run code."""

import copy
import inspect
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.functional
import torch.nn.functional as F
from torch import fx, nn

from dfqlab.compression import integers
from dfqlab.compression.kinds import CappedReLU
from dfqlab.errors import CheckpointError, QuantizationError

_ARITHMETIC = "add iadd sub isub mul imul truediv floordiv mod neg pow matmul getitem eq ne lt le gt ge and_ or_ not_"
_TENSOR_FUNCTIONS = {*dir(torch._C._VariableFunctions), *torch.functional.__all__} - {"from_file"}
_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "T", "mT"}
_VOCABULARIES: dict[str, dict[str, Any]] = {
    "functional": {n: f for n, f in vars(F).items() if callable(f) and n[0].islower() and not isinstance(f, type)},
    "torch": {n: getattr(torch, n) for n in _TENSOR_FUNCTIONS if not n.startswith("_") and hasattr(torch, n)},
    "operator": {name: getattr(operator, name) for name in _ARITHMETIC.split()},
    "builtins": {"getattr": getattr},
}
_OURS = {
    cls.__name__: cls
    for cls in (
        CappedReLU,
        integers.Requantize,
        integers.IntegerConv2d,
        integers.IntegerLinear,
        integers.CapChannels,
        integers.GlobalAveragePool,
    )
}
_NAME_OF = {
    id(f): f"{vocabulary}.{name}"
    for vocabulary, functions in reversed(_VOCABULARIES.items())
    for name, f in functions.items()
}
_TENSOR_METHODS = {name for name in dir(torch.Tensor) if not name.startswith("_")} - {
    "apply_",
    "map_",
    "map2_",
    "register_hook",
    "register_post_accumulate_grad_hook",
}
_OPERATIONS = {"placeholder", "get_attr", "call_function", "call_method", "call_module", "output"}
_PATH = re.compile(r"[\w-]+(\.[\w-]+)*")
"""What a module path may be: torch.fx writes paths and argument names into the Python code that it generates."""


def graph_to_json(graph_module: fx.GraphModule) -> dict[str, Any]:
    """The graph's nodes and the constructor arguments of its modules.

    Raises:
        QuantizationError: an operation or a module outside the vocabulary; names it.
    """
    nodes, modules, attributes = [], {}, {}
    for node in graph_module.graph.nodes:
        target = node.target
        if node.op == "call_function":
            if id(target) not in _NAME_OF:
                raise QuantizationError(
                    f"the network calls {getattr(target, '__name__', target)!r}, which a file cannot name; "
                    "move it into a submodule and pass that as a leaf"
                )
            target = _NAME_OF[id(target)]
        elif node.op in ("call_module", "get_attr") and not _PATH.fullmatch(target):
            raise QuantizationError(f"a file cannot hold the module path {target!r}; use letters, digits, - and _")
        elif node.op == "call_module" and target not in modules:
            modules[target] = _module_to_json(graph_module.get_submodule(target))
        elif node.op == "get_attr":
            value = operator.attrgetter(target)(graph_module)
            attributes[target] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        nodes.append(
            {
                "name": node.name,
                "op": node.op,
                "target": target,
                "args": _encode(node.args),
                "kwargs": _encode(dict(node.kwargs)),
            }
        )
    return {"nodes": nodes, "modules": modules, "attributes": attributes}


def graph_from_json(content: dict[str, Any], leaves: dict[str, nn.Module]) -> fx.GraphModule:
    """The graph that `graph_to_json` described, its parameters not yet loaded.

    Raises:
        CheckpointError: an operation outside the vocabulary, or a leaf that was not given.
    """
    root = nn.Module()
    for path in (*content["modules"], *content["attributes"]):
        if not _PATH.fullmatch(path):
            raise CheckpointError(f"the file names a module {path!r}, which is no path")
    with torch.random.fork_rng(devices=[]):  # weights are drawn at random only to be overwritten
        for path, described in content["modules"].items():
            _add(root, path, _module_from_json(path, described, leaves))
    for path, described in content["attributes"].items():
        parent, _, name = path.rpartition(".")
        value = torch.zeros(described["shape"], dtype=_dtype(described["dtype"]))
        _parent(root, parent).register_buffer(name, value)
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for described in content["nodes"]:
        target = _target(described["op"], described["target"], content)
        args, kwargs = _decode(described["args"], made), _decode(described["kwargs"], made)
        for name in kwargs:
            if not name.isidentifier():
                raise CheckpointError(f"the file passes an argument {name!r}, which is no name")
        if target is getattr and not (len(args) == 2 and isinstance(args[1], str) and args[1] in _ATTRIBUTES):
            raise CheckpointError(f"the file reads the attribute {args[1:]}, which is none of a tensor's measures")
        made[described["name"]] = graph.create_node(described["op"], target, tuple(args), kwargs, described["name"])
    return fx.GraphModule(root, graph)


def _target(operation: str, target: str, content: Mapping[str, Any]) -> Any:
    """What a node of the file calls or reads: one of the vocabulary, or one of the file's own modules."""
    if operation not in _OPERATIONS:
        raise CheckpointError(f"the file holds a node of unknown kind {operation!r}")
    if operation == "call_function":
        vocabulary, _, name = target.partition(".")
        if name not in _VOCABULARIES.get(vocabulary, {}):
            raise CheckpointError(f"the file calls {target!r}, which is not an operation of a network")
        return _VOCABULARIES[vocabulary][name]
    if operation == "call_method" and target not in _TENSOR_METHODS:
        raise CheckpointError(f"the file calls the method {target!r}, which is not one of a tensor")
    if operation == "placeholder" and not target.isidentifier():
        raise CheckpointError(f"the file names an input {target!r}, which is no name")
    if operation in ("call_module", "get_attr") and target not in {**content["modules"], **content["attributes"]}:
        raise CheckpointError(f"the file calls the module {target!r}, which it does not hold")
    return target


def _module_to_json(module: nn.Module) -> dict[str, Any]:
    if type(module).__name__ in _OURS:
        if isinstance(module, integers.Requantize):
            return _described(module, name=module.name, quant_min=module.quant_min, quant_max=module.quant_max)
        if isinstance(module, (CappedReLU, integers.CapChannels)):
            return _described(module, channels=len(module.caps))
        if isinstance(module, (integers.IntegerConv2d, integers.IntegerLinear)):
            common = {"shape": tuple(module.codes.shape), "bits": module.bits, "bias": module.bias_codes is not None}
            if isinstance(module, integers.IntegerLinear):
                return _described(module, **common)
            return _described(
                module,
                **common,
                stride=module.stride,
                padding=module.padding,
                dilation=module.dilation,
                groups=module.groups,
            )
        return _described(module)
    if type(module).__module__.startswith("torch.nn.modules."):
        arguments = {}
        for name in inspect.signature(type(module)).parameters:
            if name not in ("device", "dtype") and hasattr(module, name):
                value = getattr(module, name)
                arguments[name] = value is not None if name == "bias" else value
        try:
            described = _described(module, **arguments)
            if _is_made_by(module, arguments):
                return described
        except QuantizationError:
            pass
    return {"type": "leaf", "class": type(module).__name__}


def _is_made_by(module: nn.Module, arguments: dict[str, Any]) -> bool:
    """Whether these arguments make such a module again: they do not where it holds others, as nn.Sequential does."""
    try:
        with torch.device("meta"):
            again = type(module)(**arguments)
    except (TypeError, ValueError):
        return False
    shapes, found = ({k: t.shape for k, t in m.state_dict().items()} for m in (module, again))
    return repr(again) == repr(module) and shapes == found


def _described(module: nn.Module, **arguments: Any) -> dict[str, Any]:
    return {"type": type(module).__name__, "arguments": _encode(arguments)}


def _module_from_json(path: str, described: dict[str, Any], leaves: dict[str, nn.Module]) -> nn.Module:
    kind = described["type"]
    if kind == "leaf":
        if path not in leaves:
            raise CheckpointError(
                f"submodule {path!r} ({described['class']}) is opaque: its code is not in the file; "
                f"pass load_model(..., leaves={{{path!r}: module}})"
            )
        return copy.deepcopy(leaves[path])
    cls = _OURS.get(kind) or getattr(nn, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise CheckpointError(f"the file holds a module {kind!r}, which is not one of torch.nn")
    arguments = _decode(described["arguments"], {})
    module: nn.Module = cls(**arguments)
    return module


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_encode(v) for v in value]}
    if isinstance(value, list):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {k: _encode(v) for k, v in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encode(v) for v in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise QuantizationError(f"a file cannot hold an argument of type {type(value).__name__}")


def _decode(value: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, made) for v in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    match tag:
        case "node":
            return made[content]
        case "tuple":
            return tuple(_decode(v, made) for v in content)
        case "dict":
            return {k: _decode(v, made) for k, v in content.items()}
        case "slice":
            return slice(*(_decode(v, made) for v in content))
        case "ellipsis":
            return Ellipsis
        case "dtype":
            return _dtype(content)
    raise CheckpointError(f"the file holds an argument of unknown type {tag!r}")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"the file holds a number type {name!r}, which torch does not know")
    return dtype


def _parent(root: nn.Module, path: str) -> nn.Module:
    module = root
    for name in filter(None, path.split(".")):
        if not hasattr(module, name):
            module.add_module(name, nn.Module())
        module = getattr(module, name)
    return module


def _add(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    _parent(root, parent).add_module(name, module)
