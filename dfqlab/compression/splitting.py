"""Outlier channel splitting (Zhao et al. 2019): a channel that reaches far becomes two that reach half as far."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from dfqlab.compression.equalization import Chain
from dfqlab.compression.folding import Gaussian, propagate_shapes
from dfqlab.compression.kinds import CappedReLU, kind_of
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.weight_ranges import weight_scale


def split_channels(prepared: PreparedNetwork, chains: Sequence[Chain]) -> tuple[PreparedNetwork, dict[str, int]]:
    """Split channels between the layers of chains, as large a share as the specification says, rounded up.

    The layer that reads a channel reads it twice, each time with about half of the weights; the layer that makes it
    makes it twice. The network computes the same. Changes the graph's own weights.

    Returns:
        The network, and how many channels of what each chain's first layer puts out were split.
    """
    gaussians, found = dict(prepared.gaussians), {}
    nodes = {str(node.target): node for node in prepared.graph.graph.nodes if node.op == "call_module"}
    for chain in chains:
        first, second = prepared.weights[chain.first], prepared.weights.get(chain.second)
        if second is None or unsplittable(first, second):
            continue
        channels = len(first.weight)
        grid, spec = prepared.grids[chain.second], prepared.spec
        weight = second.weight.detach().reshape(len(second.weight), channels, -1)
        parents = outliers(weight, math.ceil(spec.split_channels * channels))
        halved = split_inputs(weight, parents, torch.zeros(len(weight)).to(weight))
        step = weight_scale(halved, grid, spec.weight_rule, spec.percentile)
        _set_inputs(second, split_inputs(weight, parents, step))
        origin = list(range(channels))
        for parent in parents:
            origin.append(origin[parent])
        _repeat_outputs(first, origin)
        for capped in _caps_between(nodes[chain.first], nodes[chain.second], prepared):
            capped.caps = capped.caps[origin]
        if chain.first in gaussians:
            known = gaussians[chain.first]
            gaussians[chain.first] = Gaussian(known.mean[origin], known.std[origin])
        found[chain.first] = len(parents)
    propagate_shapes(prepared.graph, prepared.teacher)
    return replace(prepared, gaussians=gaussians), found


def unsplittable(first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear) -> str:
    """Why channels between two layers cannot be split; empty where they can."""
    for layer, does in ((first, "makes"), (second, "reads")):
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            return f"the layer that {does} them has {layer.groups} groups, and they could not grow by one channel alone"
    return ""


def outliers(weight: Float[Tensor, "out channels rest"], count: int) -> list[int]:
    """The input channel with the largest weight, so many times, each time after it was split.

    The second half of the k-th of them counts as a channel behind all there were: it may be split again.
    """
    reach = weight.abs().amax((0, 2))
    found = []
    for _ in range(count):
        found.append(int(reach.argmax()))
        reach[found[-1]] /= 2
        reach = torch.cat([reach, reach[found[-1:]]])
    return found


def split_inputs(
    weight: Float[Tensor, "out channels rest"], parents: Sequence[int], step: Float[Tensor, "out"]
) -> Float[Tensor, "out more rest"]:
    """Input channels split in two, one after the other; the second halves stand behind all channels there were.

    Half a step apart, `(w - step / 2) / 2` and `(w + step / 2) / 2`: rounded to nearest, both together are what the
    whole is. Halves that are alike would both be rounded to the same side, and lose twice as much.

    >>> split_inputs(torch.tensor([[[3.0], [1.0]]]), [0], torch.ones(1)).flatten().tolist()
    [1.25, 1.0, 1.75]
    """
    apart = step[:, None] / 2
    parts = list(weight.unbind(1))
    for parent in parents:
        whole = parts[parent]
        parts[parent] = (whole - apart) / 2
        parts.append((whole + apart) / 2)
    return torch.stack(parts, 1)


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


def _caps_between(first: fx.Node, second: fx.Node, prepared: PreparedNetwork) -> list[CappedReLU]:
    """The ReLU6 of a chain, if equalization gave each channel a cap of its own."""
    found, node = [], first
    while node is not second:
        (node,) = (user for user in node.users if kind_of(user, prepared.graph) != "host")
        module = prepared.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, CappedReLU):
            found.append(module)
    return found
