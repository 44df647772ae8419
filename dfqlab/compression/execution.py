"""A prepared network run node by node, with other weights than its own and with quantizers that pretend or do not."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from dfqlab.compression.prepared import PreparedNetwork

Quantize = Callable[[str, Tensor], Tensor]


def run(
    prepared: PreparedNetwork,
    nodes: Iterable[fx.Node],
    values: dict[fx.Node, Any],
    weights: Mapping[str, Tensor],
    quantize: Quantize | None,
) -> None:
    """Compute nodes one after the other into `values`, which holds what they read; what is read for the last time goes.

    Args:
        weights: in place of the layers' own, by module path.
        quantize: what a quantizer (by its path) makes of its tensor; None passes it on.
    """
    graph_module = prepared.graph
    for node in nodes:
        args: Any = fx.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
        path = str(node.target)
        match node.op:
            case "call_function":
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            case "call_method":
                values[node] = getattr(args[0], path)(*args[1:], **kwargs)
            case "get_attr":
                owner, _, name = path.rpartition(".")
                values[node] = getattr(graph_module.get_submodule(owner), name)
            case _ if path in prepared.activations:
                values[node] = args[0] if quantize is None else quantize(path, args[0])
            case _ if path in weights:
                layer = prepared.weights[path]
                values[node] = applied(layer, args[0], weights[path], layer.bias)
            case _:
                values[node] = graph_module.get_submodule(path)(*args, **kwargs)
        for source in prepared.read_last[node]:
            del values[source]


def log_shares(
    prepared: PreparedNetwork, x: Float[Tensor, "n c h w"], weights: Mapping[str, Tensor]
) -> Float[Tensor, "n classes"]:
    """The logarithms of the shares that the network gives its classes, with other weights than its own, in float64.

    Args:
        x: normalised images.
        weights: of every layer, by module path.
    """
    entry, *nodes, output = prepared.graph.graph.nodes
    values: dict[fx.Node, Any] = {entry: x}
    with torch.no_grad():
        run(prepared, nodes, values, weights, None)
    logits: Tensor = values[output.all_input_nodes[0]]
    return logits.double().log_softmax(1)


def simulation(prepared: PreparedNetwork) -> Callable[[str, Tensor], Tensor]:
    """What a quantizer, by its path, makes of its tensor."""
    return lambda path, x: prepared.activations[path].simulate(x)


def applied(layer: nn.Conv2d | nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer does, with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
