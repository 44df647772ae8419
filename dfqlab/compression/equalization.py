"""Cross-layer equalization (DFQ, Nagel et al. 2019, section 4.1): neighbouring layers scaled against each other.

A ReLU passes positive factors through, so a channel may be made smaller by one layer and read larger by the next: the
network computes the same, and no channel's weights are lost beside another's.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from dfqlab.compression.folding import FoldedNetwork, Gaussian
from dfqlab.compression.kinds import CappedReLU, Kind, kind_of

_SWEEPS = 100
_CONVERGED = 1e-6
_LARGEST_FACTOR = 1e6
_CERTAIN = 3.0  # standard deviations: what lies three below the mean is hardly ever cut by the ReLU
_PASSES_FACTORS: tuple[Kind, ...] = ("relu",)
_POOLS_BY_MAXIMUM = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Chain:
    """Two layers with nothing between them that minds a factor for each channel; or why they are none.

    Attributes:
        first, second: module paths; `second` is empty where there is none.
        reason: why they were not equalized; empty if they were.
        activation: the ReLU6 between them.
        averaged: whether a pooling between them may average over padding: what is added to a channel then comes out as
            less.
    """

    first: str
    second: str
    reason: str = ""
    activation: fx.Node | None = None
    averaged: bool = False


def equalize(folded: FoldedNetwork) -> tuple[FoldedNetwork, tuple[Chain, ...]]:
    """Scale the channels of all chains until nothing moves, then absorb high biases. Changes the graph's own weights.

    With factors `s = sqrt(r1 r2) / r2`, channel by channel, both layers' weights reach equally far. A ReLU6
    gets a cap for each channel, so that the network still computes the same. Where a bias is so high that the ReLU
    hardly ever cuts, `max(0, β - 3γ)` moves through it into the next layer's bias (DFQ, section 4.1.3); only where that
    one does not pad, since the padding would not know of it.

    Returns:
        The network, and every layer with what became of it: a chain, or the reason why it is none.
    """
    chains = tuple(find_chains(folded.graph))
    gaussians = dict(folded.gaussians)
    whole = {chain.first: torch.ones(_out_channels(folded.graph, chain.first)) for chain in chains if not chain.reason}
    for _ in range(_SWEEPS):
        moved = 0.0
        for chain in chains:
            if chain.reason:
                continue
            first, second = (_layer(folded.graph, path) for path in (chain.first, chain.second))
            factors = equalizing_factors(first, second)
            scale_pair(first, second, factors)
            whole[chain.first] = whole[chain.first].to(factors) * factors
            moved = max(moved, float((factors.log()).abs().max()))
        if moved < _CONVERGED:
            break
    for chain in chains:
        if chain.reason:
            continue
        factors = whole[chain.first]
        if chain.first in gaussians:
            known = gaussians[chain.first]
            gaussians[chain.first] = Gaussian(known.mean / factors, known.std / factors)
        if chain.activation is not None:
            _cap_each_channel(chain.activation, 6 / factors, folded.graph)
        elif chain.first in gaussians and not chain.averaged:
            gaussians[chain.first] = _absorb(chain, gaussians[chain.first], folded.graph)
    folded.graph.recompile()
    return replace(folded, gaussians=gaussians), chains


def find_chains(graph_module: fx.GraphModule) -> list[Chain]:
    """Every weighted layer: with the one that alone reads it, or with the reason why there is none."""
    kinds = {node: kind_of(node, graph_module) for node in graph_module.graph.nodes}
    return [_chain(node, kinds, graph_module) for node, kind in kinds.items() if kind == "weighted"]


def equalizing_factors(first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear) -> Tensor:
    """`s = sqrt(r1 r2) / r2` of each channel between two layers, (channels,): after `scale_pair` both reach equally far
    (DFQ, eq. 11).

    1 where a channel has no weights on one side: it says nothing, and any factor would do.
    """
    out = first.weight.detach().abs().flatten(1).amax(1)
    read = reach_of_inputs(second, len(out))
    factors = (out * read).sqrt() / read
    usable = (out > 0) & (read > 0) & torch.isfinite(factors)
    return torch.where(usable, factors.clamp(1 / _LARGEST_FACTOR, _LARGEST_FACTOR), 1.0)


def scale_pair(first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear, factors: Tensor) -> None:
    """Divide the channels that the first layer puts out, and multiply them where the second reads them."""
    with torch.no_grad():
        _set(first, "weight", first.weight / factors.reshape(-1, *[1] * (first.weight.dim() - 1)))
        if first.bias is not None:
            _set(first, "bias", first.bias / factors)
        if isinstance(second, nn.Linear):
            _set(second, "weight", second.weight * factors.repeat_interleave(second.in_features // len(factors)))
        else:
            by_group = factors.reshape(second.groups, -1)  # the inputs of each group, which its outputs share
            by_output = by_group.repeat_interleave(second.out_channels // second.groups, dim=0)
            _set(second, "weight", second.weight * by_output[:, :, None, None])


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    """A parameter of the layer's own: another layer may share the one that it had."""
    setattr(layer, name, nn.Parameter(value, requires_grad=False))


def reach_of_inputs(layer: nn.Conv2d | nn.Linear, channels: int) -> Tensor:
    """The largest magnitude among the weights that read each input channel, (channels,)."""
    weight = layer.weight.detach().abs()
    if isinstance(layer, nn.Linear):
        return weight.amax(0).reshape(channels, -1).amax(1)
    by_group = weight.reshape(layer.groups, -1, *weight.shape[1:])  # group, output, input, kernel
    return by_group.amax((1, 3, 4)).flatten()


def _chain(node: fx.Node, kinds: dict[fx.Node, Kind], graph_module: fx.GraphModule) -> Chain:
    first, at, averaged = str(node.target), node, False
    activation: fx.Node | None = None
    channels = _out_channels(graph_module, first)
    if not _has_channels_second(node, graph_module):
        return Chain(first, "", "its channels are not the second dimension")
    while True:
        readers = [user for user in at.users if kinds[user] != "host"]
        if len(readers) != 1:
            return Chain(first, "", f"{len(readers)} operations read what it puts out")
        before, at = at, readers[0]
        kind = kinds[at]
        if kind == "weighted":
            if not _has_channels_second(at, graph_module) or before.meta["tensor_meta"].shape[1] % channels:
                return Chain(first, "", f"{at.target} does not read channels along the second dimension")
            return Chain(first, str(at.target), activation=activation, averaged=averaged)
        if kind == "relu6":
            if activation is not None:
                return Chain(first, "", "two activation functions stand behind it")
            if at.meta["tensor_meta"].shape[1] != channels:
                return Chain(first, "", f"{at.name} stands behind it and no longer sees channels")
            activation = at
        elif kind == "average_pool":
            averaged = averaged or not _adapts(at, graph_module)
        elif not (kind in _PASSES_FACTORS or _moves_channels_whole(at, kind, graph_module)):
            return Chain(first, "", "the network's output" if kind == "output" else f"{at.name} stands behind it")


def _has_channels_second(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """A linear layer has them last, which is the same where there are two dimensions."""
    layer = _layer(graph_module, str(node.target))
    return isinstance(layer, nn.Conv2d) or len(node.meta["tensor_meta"].shape) == 2


def _adapts(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """A pooling that averages pixels and nothing else."""
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.AdaptiveAvgPool2d)
    return node.target is torch.nn.functional.adaptive_avg_pool2d


def _moves_channels_whole(node: fx.Node, kind: Kind, graph_module: fx.GraphModule) -> bool:
    """Whether channels stay where they are: pooling by maximum, or flattening everything behind the first dimension."""
    if kind != "transparent":
        return False
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        return isinstance(module, _POOLS_BY_MAXIMUM) or (isinstance(module, nn.Flatten) and module.start_dim == 1)
    if node.target in (torch.nn.functional.max_pool2d, torch.nn.functional.adaptive_max_pool2d):
        return True
    return node.target in (torch.flatten, "flatten") and node.args[1:] == (1,)


def _cap_each_channel(activation: fx.Node, caps: Tensor, graph_module: fx.GraphModule) -> None:
    path, capped = f"capped_{activation.name}", CappedReLU(len(caps))
    capped.caps = caps
    graph_module.add_submodule(path, capped)
    with graph_module.graph.inserting_before(activation):
        call = graph_module.graph.call_module(path, (activation.args[0],))
    call.meta = dict(activation.meta)
    activation.replace_all_uses_with(call)
    graph_module.graph.erase_node(activation)


def _absorb(chain: Chain, known: Gaussian, graph_module: fx.GraphModule) -> Gaussian:
    first, second = (_layer(graph_module, path) for path in (chain.first, chain.second))
    if isinstance(second, nn.Conv2d) and (isinstance(second.padding, str) or any(second.padding)):
        return known
    high = (known.mean - _CERTAIN * known.std).clamp(min=0).to(first.weight)
    if not high.any():
        return known
    with torch.no_grad():
        shift = reading(second, high)
        assert first.bias is not None  # its BatchNorm was folded into it
        _set(first, "bias", first.bias - high)
        _set(second, "bias", shift if second.bias is None else second.bias + shift)
    return Gaussian(known.mean - high, known.std)


def reading(layer: nn.Conv2d | nn.Linear, channels: Tensor) -> Tensor:
    """What a layer without padding makes of one constant for each input channel, (out,)."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight @ channels.repeat_interleave(layer.in_features // len(channels))
    by_group = channels.reshape(layer.groups, -1).repeat_interleave(layer.out_channels // layer.groups, dim=0)
    return (weight.sum((2, 3)) * by_group).sum(1)


def _layer(graph_module: fx.GraphModule, path: str) -> nn.Conv2d | nn.Linear:
    layer = graph_module.get_submodule(path)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return layer


def _out_channels(graph_module: fx.GraphModule, path: str) -> int:
    return len(_layer(graph_module, path).weight)
