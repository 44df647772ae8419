"""What the Gaussians that BatchNorm keeps say of every tensor in the network, with no image at all."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from dfqlab.compression.execution import applied
from dfqlab.compression.kinds import CappedReLU, Kind, kind_of
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.ranges import BINS, Seen
from dfqlab.errors import QuantizationError

_REACH = 6.0  # standard deviations that count as extremes: DFQ's (Nagel et al. 2019)
_LEAST_STD = 1e-12
_IMAGES = 2  # alike, as many as shapes were noted for: of one alone `x.squeeze()` would drop the dimension
_AT_ONCE = 1024  # values whose histograms are made side by side: 16 megabytes


@dataclass(frozen=True)
class ClippedNormal:
    """Values that are each normal and then clipped, as ReLU does.

    Attributes:
        mean, std: of each value before clipping, (n, c, h, w) or (n, c), or whatever shape a value has.
        low, high: what it is clipped to, shaped like them.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def unclipped(cls, mean: Tensor, std: Tensor) -> "ClippedNormal":
        infinity = torch.full_like(mean, math.inf)
        return cls(mean, std, -infinity, infinity)

    def clipped(self, low: Tensor | float, high: Tensor | float) -> "ClippedNormal":
        """Clipped once more."""
        low, high = (torch.as_tensor(end, dtype=self.mean.dtype) for end in (low, high))
        return replace(self, low=torch.maximum(self.low, low), high=torch.minimum(self.high, high))

    def of_one_image(self) -> "ClippedNormal":
        """The first of images that are all alike."""
        return ClippedNormal(self.mean[:1], self.std[:1], self.low[:1], self.high[:1])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance after clipping; with low = 0, the mean is DFQ's (section 4.2.1): `γ φ(-β/γ) + β Φ(β/γ)`."""
        std = self.std.clamp(min=_LEAST_STD)
        mean = torch.zeros_like(self.mean)
        square = torch.zeros_like(self.mean)
        inside = torch.ones_like(self.mean)
        for end, sign in ((self.low, 1.0), (self.high, -1.0)):  # what lies beyond an end counts as that end
            finite = torch.isfinite(end)
            at = torch.where(finite, end, self.mean)
            z = (at - self.mean) / std
            beyond = torch.where(finite, torch.special.ndtr(sign * z), 0)
            density = torch.where(finite, (-z.square() / 2).exp() / math.sqrt(2 * math.pi), 0)
            inside = inside - beyond
            mean = mean + at * beyond + sign * std * density
            square = square + at.square() * beyond + sign * std * (self.mean + at) * density
        mean = mean + self.mean * inside
        square = square + (self.mean.square() + std.square()) * inside
        return mean, (square - mean.square()).clamp(min=0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Values of `count` images, (count, ...) in float64, every element by itself."""
        noise = torch.randn(count, *self.mean.shape[1:], generator=generator, dtype=torch.float64)
        return (self.mean + self.std * noise).clamp(self.low, self.high)

    def seen(self) -> Seen:
        """As if a great many images had been looked at: extremes six standard deviations away, and a histogram."""
        mean, std, low, high = (
            _by_channel(t) for t in (self.mean, self.std.clamp(min=_LEAST_STD), self.low, self.high)
        )
        lowest = float(torch.maximum(mean - _REACH * std, low).minimum(high).min())
        highest = float(torch.minimum(mean + _REACH * std, high).maximum(low).max())
        if highest <= lowest:
            return Seen(extremes=(lowest, highest))
        edges = torch.linspace(lowest, highest, BINS + 1, dtype=torch.float64)
        histogram = torch.zeros(BINS, dtype=torch.float64)
        for some in zip(*(t[:, None].split(_AT_ONCE) for t in (mean, std, low, high)), strict=True):
            below = torch.special.ndtr((edges - some[0]) / some[1])
            below = torch.where(edges <= some[2], 0, below)
            below = torch.where(edges >= some[3], 1, below)
            below[:, 0], below[:, -1] = 0, 1
            histogram += below.diff(dim=1).sum(0)
        return Seen(extremes=(lowest, highest), histogram=histogram)


def expected_values(prepared: PreparedNetwork) -> dict[str, ClippedNormal]:
    """The expected values at every quantizer, by its path.

    Raises:
        QuantizationError: no BatchNorm at all, or an operation whose result is not known; names it.
    """
    if not prepared.gaussians:
        raise QuantizationError(
            f"{prepared.teacher.name!r} has no BatchNorm layer that remembers what passed it; "
            "take a calibration that looks at images"
        )
    follower = _Follower(prepared)
    return {path: follower.at(node).of_one_image() for node, path in follower.quantizers.items()}


def expected_inputs(prepared: PreparedNetwork) -> dict[str, Tensor]:
    """The mean of what each weighted layer reads, (1, c, h, w) or (1, c), by its path.

    Layers behind an operation whose result is not known are left out.
    """
    follower = _Follower(prepared)
    found = {}
    for node in prepared.graph.graph.nodes:
        if node.op == "call_module" and str(node.target) in prepared.weights:
            value = follower.values[node.args[0]]
            if isinstance(value, ClippedNormal):
                found[str(node.target)] = value.of_one_image().moments()[0]
    return found


def sampled_inputs(prepared: PreparedNetwork, count: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """What each weighted layer may read, (count, ...), by its path: draws from what BatchNorm remembers.

    Layers behind an operation whose result is not known are left out.
    """
    follower = _Follower(prepared)
    for node in prepared.graph.graph.nodes:
        if node.op == "call_module" and str(node.target) in prepared.weights:
            value, weight = follower.values[node.args[0]], prepared.weights[str(node.target)].weight
            if isinstance(value, ClippedNormal):
                yield str(node.target), value.of_one_image().draw(count, generator).to(weight)


class _Follower:
    """One walk over the graph that carries normals in place of tensors."""

    def __init__(self, prepared: PreparedNetwork) -> None:
        self.prepared = prepared
        self.values: dict[fx.Node, Any] = {}
        self.quantizers: dict[fx.Node, str] = {}
        with torch.no_grad():
            for node in prepared.graph.graph.nodes:
                if str(node.target) in prepared.activations:
                    self.quantizers[node] = str(node.target)
                    self.values[node] = self.values[node.args[0]]
                else:
                    self.values[node] = self._follow(node, kind_of(node, prepared.graph))

    def at(self, node: fx.Node) -> ClippedNormal:
        value = self.values[node]
        if not isinstance(value, ClippedNormal):
            name = self.prepared.activations[self.quantizers[node]].name
            raise QuantizationError(
                f"what reaches the quantizer of {name!r} is not known from BatchNorm alone: an operation in front of "
                "it is neither a layer, an addition nor a pooling; take a calibration that looks at images"
            )
        return value

    def _follow(self, node: fx.Node, kind: Kind) -> Any:
        values = [self.values[source] for source in node.all_input_nodes]
        if kind in ("host", "output") or node.op == "get_attr":
            return self._host(node) if kind != "output" else None
        if kind == "input":
            return self._pixels(node)
        if kind == "weighted":
            return self._weighted(node)
        if any(value is None for value in values) or kind in ("float", "batch_norm", "softmax"):
            return None
        if kind in ("relu", "relu6"):
            return values[0].clipped(0.0, self._cap(node, kind))
        if kind == "add":
            return _sum(*(self.values[source] for source in node.args if isinstance(source, fx.Node)))
        return self._each(node)  # pooling, concatenation and whatever moves values

    def _pixels(self, node: fx.Node) -> ClippedNormal:
        """Normalised images: mean 0, variance 1, and no further than valid pixels."""
        shape = (_IMAGES, *self.prepared.teacher.input.size)
        low, high = self.prepared.teacher.input.valid_range
        zeros = torch.zeros(shape, dtype=torch.float64)
        return ClippedNormal.unclipped(zeros, zeros + 1).clipped(low, high)

    def _weighted(self, node: fx.Node) -> ClippedNormal | None:
        path = str(node.target)
        shape = node.meta["tensor_meta"].shape
        if path in self.prepared.gaussians:
            known = self.prepared.gaussians[path]
            mean, std = (t.double().cpu().reshape(1, -1, *[1] * (len(shape) - 2)) for t in (known.mean, known.std))
            return ClippedNormal.unclipped(mean.expand(shape).contiguous(), std.expand(shape).contiguous())
        source = self.values[node.all_input_nodes[0]]
        if not isinstance(source, ClippedNormal):
            return None
        mean, variance = source.moments()
        layer = self.prepared.weights[path]
        weight = layer.weight.detach().double().cpu()
        bias = None if layer.bias is None else layer.bias.detach().double().cpu()
        out = applied(layer, mean, weight, bias)
        return ClippedNormal.unclipped(out, applied(layer, variance, weight.square(), None).sqrt())

    def _cap(self, node: fx.Node, kind: Kind) -> Tensor | float:
        if node.op == "call_module":
            module = self.prepared.graph.get_submodule(str(node.target))
            if isinstance(module, CappedReLU):
                return module.caps.double().cpu().reshape(-1, *[1] * (len(node.meta["tensor_meta"].shape) - 2))
        return 6.0 if kind == "relu6" else math.inf

    def _each(self, node: fx.Node) -> Any:
        """The operation, applied to means, spreads and bounds one after the other."""
        parts = [self._call(node, attrgetter(name)) for name in ("mean", "std", "low", "high")]
        if isinstance(parts[0], Tensor):
            return ClippedNormal(*parts)
        return tuple(ClippedNormal(*of) for of in zip(*parts, strict=True))

    def _host(self, node: fx.Node) -> Any:
        return self._call(node, attrgetter("mean"))

    def _call(self, node: fx.Node, part: Callable[[ClippedNormal], Tensor]) -> Any:
        def given(source: fx.Node) -> Any:
            value = self.values[source]
            if isinstance(value, tuple) and value and isinstance(value[0], ClippedNormal):
                return tuple(map(part, value))
            return part(value) if isinstance(value, ClippedNormal) else value

        args, kwargs = fx.map_arg(node.args, given), fx.map_arg(node.kwargs, given)
        if any(a is None and isinstance(n, fx.Node) for a, n in zip(args, node.args, strict=True)):
            return None
        match node.op:
            case "call_function":
                return node.target(*args, **kwargs)  # type: ignore[operator]
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "get_attr":
                return None
        return self.prepared.graph.get_submodule(str(node.target))(*args, **kwargs)


def _sum(a: ClippedNormal, b: ClippedNormal) -> ClippedNormal:
    """Of two independent values: normal, with the moments that both have after clipping."""
    (mean_a, variance_a), (mean_b, variance_b) = a.moments(), b.moments()
    return ClippedNormal.unclipped(mean_a + mean_b, (variance_a + variance_b).sqrt())


def _by_channel(x: Tensor) -> Tensor:
    """The mean over positions of (1, c, h, w); of other shapes every value counts for itself."""
    return x.mean((2, 3)).flatten() if x.dim() == 4 else x.flatten()
