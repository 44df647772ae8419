"""Parts of a network that one tensor enters and one tensor leaves: what is reconstructed at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx

from dfqlab.compression.gaussians import applied
from dfqlab.compression.insertion import PreparedNetwork
from dfqlab.compression.kinds import kind_of
from dfqlab.errors import QuantizationError


@dataclass(frozen=True)
class Unit:
    """Layers that are reconstructed together.

    Attributes:
        layers: module paths, in forward order.
        entry: the node whose value enters.
        nodes: what is computed, in forward order; the value of the last one leaves.
    """

    layers: tuple[str, ...]
    entry: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def exit(self) -> fx.Node:
        """The node whose value leaves."""
        return self.nodes[-1]

    @property
    def name(self) -> str:
        """What its layers have in common, or the layers themselves.

        A block of a ResNet is called by the module that holds it.
        """
        if len(self.layers) == 1:
            return self.layers[0]
        parts = [path.split(".") for path in self.layers]
        common = [words[0] for words in zip(*parts, strict=False) if len(set(words)) == 1]
        return ".".join(common) or " + ".join(self.layers)


def find_units(prepared: PreparedNetwork, by: Literal["layer", "block"]) -> tuple[Unit, ...]:
    """The network's units in forward order, every weighted layer in one of them.

    A block lies between two tensors that everything passes through: what a residual branch leaves and joins again is
    one block (BRECQ), a layer that nothing goes around is one by itself. By layer, each weighted layer is
    a unit together with its activation function. Parts without weights belong to no unit.

    Raises:
        QuantizationError: a block that reads the size of a tensor in front of it.
    """
    return tuple(_blocks(prepared) if by == "block" else _layers(prepared))


Quantize = Callable[[str, Tensor], Tensor]


def run(
    prepared: PreparedNetwork,
    nodes: Iterable[fx.Node],
    values: dict[fx.Node, Any],
    weights: Mapping[str, Tensor],
    quantize: Quantize | None,
) -> None:
    """Compute nodes one after the other into `values`, which holds what they read.

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


def _blocks(prepared: PreparedNetwork) -> Iterable[Unit]:
    tensors = [
        node
        for node in prepared.graph.graph.nodes
        if node.op not in ("output", "get_attr") and kind_of(node, prepared.graph) != "host"
    ]
    position = {node: index for index, node in enumerate(tensors)}
    entry, segment, live_until = tensors[0], [], -1
    for index, node in enumerate(tensors):
        if index:
            segment.append(node)
        readers = [position[user] for user in node.users if user in position]
        alone = live_until <= index  # everything computed before was read for the last time
        last = not readers
        if alone and (last or str(node.target) in prepared.activations):
            if segment and (layers := _weighted(segment, prepared)):
                yield Unit(layers, entry, _with_sizes(segment, entry, prepared))
            entry, segment = node, []
        live_until = max(live_until, *readers) if readers else live_until


def _layers(prepared: PreparedNetwork) -> Iterable[Unit]:
    for node in prepared.graph.graph.nodes:
        if node.op != "call_module" or str(node.target) not in prepared.weights:
            continue
        nodes = [node]
        while str(nodes[-1].target) not in prepared.activations:
            readers = [user for user in nodes[-1].users if kind_of(user, prepared.graph) != "host"]
            kinds = [kind_of(user, prepared.graph) for user in readers]
            if len(readers) != 1 or not (
                kinds[0] in ("relu", "relu6") or str(readers[0].target) in prepared.activations
            ):
                break
            nodes.append(readers[0])
        yield Unit((str(node.target),), node.all_input_nodes[0], tuple(nodes))


def _weighted(nodes: Iterable[fx.Node], prepared: PreparedNetwork) -> tuple[str, ...]:
    return tuple(str(n.target) for n in nodes if n.op == "call_module" and str(n.target) in prepared.weights)


def _with_sizes(segment: list[fx.Node], entry: fx.Node, prepared: PreparedNetwork) -> tuple[fx.Node, ...]:
    """With the sizes that the segment reads of its own tensors, and constants; in forward order."""
    needed, unseen = set(segment), list(segment)
    while unseen:
        node = unseen.pop()
        for source in node.all_input_nodes:
            if source in needed or source is entry:
                continue
            if source.op != "get_attr" and kind_of(source, prepared.graph) != "host":
                raise QuantizationError(
                    f"{node.name} reads the size of {source.name}, which lies in front of the block that it stands in; "
                    "blocks are computed one by one, so take sizes from what the block itself reads"
                )
            needed.add(source)
            unseen.append(source)
    return tuple(node for node in entry.graph.nodes if node in needed)
