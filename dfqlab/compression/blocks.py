"""Parts of a network that one tensor enters and one tensor leaves: what is reconstructed at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import fx

from dfqlab.compression.kinds import kind_of
from dfqlab.compression.prepared import PreparedNetwork
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
    def start(self) -> fx.Node:
        """The first operation on a tensor; constants and sizes may stand before it."""
        return next(node for node in self.nodes if node.op != "get_attr" and "tensor_meta" in node.meta)

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
    a unit together with its activation function, unless something else asks for the size of what is between them.
    Parts without weights belong to no unit.

    Raises:
        QuantizationError: what stands between two such tensors reads the size of a tensor in front of the first.
    """
    return tuple(_blocks(prepared) if by == "block" else _layers(prepared))


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
            if segment:
                nodes = _with_sizes(segment, entry, prepared)
                if layers := _weighted(segment, prepared):
                    yield Unit(layers, entry, nodes)
            entry, segment = node, []
        live_until = max(live_until, *readers) if readers else live_until


def _layers(prepared: PreparedNetwork) -> Iterable[Unit]:
    for node in prepared.graph.graph.nodes:
        if node.op != "call_module" or str(node.target) not in prepared.weights:
            continue
        nodes = [node]
        while str(nodes[-1].target) not in prepared.activations:
            readers = list(nodes[-1].users)
            if len(readers) != 1 or not (
                kind_of(readers[0], prepared.graph) in ("relu", "relu6")
                or str(readers[0].target) in prepared.activations
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
