"""Outlier channel splitting (Zhao et al. 2019): a channel that reaches far becomes two that reach half as far."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor, fx, nn

from dfqlab.compression.folding import Gaussian, propagate_shapes
from dfqlab.compression.halves import SplitInputs, outliers
from dfqlab.compression.kinds import CappedReLU, kind_of
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.weight_ranges import layer_scale


def split_channels(prepared: PreparedNetwork) -> PreparedNetwork:
    """Split channels between neighbouring layers, as large a share as the specification says, rounded up.

    The layer that reads a channel reads it twice, each time with about half of the weights; the layer that makes it
    makes it twice. The network computes the same. Changes the graph's own weights.

    Args:
        prepared: with the table of its neighbouring layers.

    Returns:
        The network; its table says how many channels of what each layer puts out were split, and why others were not.
    """
    nodes = {str(node.target): node for node in prepared.graph.graph.nodes if node.op == "call_module"}
    rows = []
    for row in prepared.chains:
        reason = row.skipped or _unsplittable(nodes[row.layer], nodes[row.reader], prepared)
        if not reason:
            prepared = _split(prepared, nodes[row.layer], nodes[row.reader])
        split = 0 if reason else len(prepared.splits[row.reader].parents)
        rows.append(replace(row, split=split, skipped=reason))
    propagate_shapes(prepared.graph, prepared.teacher)
    return replace(prepared, chains=tuple(rows))


def _split(prepared: PreparedNetwork, maker: fx.Node, reader: fx.Node) -> PreparedNetwork:
    """Between two layers."""
    makes, reads = str(maker.target), str(reader.target)
    first, second = prepared.weights[makes], prepared.weights[reads]
    whole = second.weight.detach().reshape(len(second.weight), len(first.weight), -1)
    split = SplitInputs(whole, outliers(whole, math.ceil(prepared.spec.split_channels * len(first.weight))))
    splits = {**prepared.splits, reads: split}
    if makes in splits:
        splits[makes] = splits[makes].repeated(split.origin)
    gaussians = dict(prepared.gaussians)
    if makes in gaussians:
        gaussians[makes] = Gaussian(gaussians[makes].mean[split.origin], gaussians[makes].std[split.origin])
    prepared = replace(prepared, splits=splits, gaussians=gaussians)
    _set_inputs(second, split.halves(layer_scale(prepared, reads, prepared.grids[reads])))
    _repeat_outputs(first, split.origin)
    for node in _between(maker, reader, prepared):
        module = prepared.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, CappedReLU):
            module.caps = module.caps[split.origin]
    return prepared


def _unsplittable(maker: fx.Node, reader: fx.Node, prepared: PreparedNetwork) -> str:
    """Why channels between two layers cannot be split; empty where they can."""
    for node, does in ((maker, "makes"), (reader, "reads")):
        layer = prepared.weights[str(node.target)]
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            return f"the layer that {does} them has {layer.groups} groups, and they could not grow by one channel alone"
    for node in (maker, *_between(maker, reader, prepared)):
        if any(kind_of(user, prepared.graph) == "host" for user in node.users):
            return "something asks for the size of what is between them, which would grow"
    return ""


def _between(maker: fx.Node, reader: fx.Node, prepared: PreparedNetwork) -> Iterator[fx.Node]:
    """The operations from one layer to the one that alone reads it."""
    node = maker
    while True:
        (node,) = (user for user in node.users if kind_of(user, prepared.graph) != "host")
        if node is reader:
            return
        yield node


def _set_inputs(layer: nn.Conv2d | nn.Linear, weight: Tensor) -> None:
    if isinstance(layer, nn.Linear):
        layer.weight = nn.Parameter(weight.flatten(1), requires_grad=False)
        layer.in_features = layer.weight.shape[1]
    else:
        shape = (*weight.shape[:2], *layer.kernel_size)
        layer.weight = nn.Parameter(weight.reshape(shape), requires_grad=False)
        layer.in_channels = layer.weight.shape[1]


def _repeat_outputs(layer: nn.Conv2d | nn.Linear, origin: Sequence[int]) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[origin], requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[origin], requires_grad=False)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(origin)
    else:
        layer.out_channels = len(origin)
