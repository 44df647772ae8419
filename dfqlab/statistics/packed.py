"""What BatchNorm layers remember, and what a batch does to them: a teacher rewritten to return `TeacherOutputs`."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

import dfqlab_kernels
from dfqlab.errors import TeacherError
from dfqlab.teachers import Teacher, trace

Per = Literal["batch", "sample"]


@dataclass(frozen=True)
class Layout:
    """Where each BatchNorm layer lies in a packed buffer.

    Attributes:
        names: module paths, in forward order.
        channels: how many channels each has.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]

    @property
    def total(self) -> int:
        """Channels of all layers."""
        return sum(self.channels)

    def slice_of(self, name: str) -> slice:
        """The part of the last axis that belongs to a layer."""
        index = self.names.index(name)
        start = sum(self.channels[:index])
        return slice(start, start + self.channels[index])


@dataclass(frozen=True)
class Statistics:
    """Mean and biased variance of the input of every BatchNorm layer, in one packed buffer.

    Attributes:
        mean, var: (total channels,) per batch, or (n, total channels) per sample.
        layout: which channels belong to which layer.
        input_mean, input_var: the same of the network's own normalised input, (c,) or (n, c).
    """

    mean: Float[Tensor, "... total"]
    var: Float[Tensor, "... total"]
    layout: Layout
    input_mean: Float[Tensor, "... c"]
    input_var: Float[Tensor, "... c"]

    def of(self, name: str) -> tuple[Float[Tensor, "... c"], Float[Tensor, "... c"]]:
        """Mean and variance of one layer."""
        part = self.layout.slice_of(name)
        return self.mean[..., part], self.var[..., part]

    def over_batch(self) -> "Statistics":
        """Statistics of the whole batch from those of its samples: every sample has as many elements as any other."""
        if self.mean.dim() == 1:
            return self
        mean, var = _pooled(self.mean, self.var)
        input_mean, input_var = _pooled(self.input_mean, self.input_var)
        return Statistics(mean, var, self.layout, input_mean, input_var)


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says of a batch.

    Attributes:
        logits: (n, classes).
        statistics: of every BatchNorm layer's input.
        features: (n, ...) input of the last linear layer; None where the network has none.
    """

    logits: Float[Tensor, "n classes"]
    statistics: Statistics
    features: Float[Tensor, "n ..."] | None


def remembered(teacher: Teacher) -> Statistics:
    """The running statistics of all BatchNorm layers, packed. The input is taken as N(0, 1): normalisation aims at it.

    Raises:
        TeacherError: the teacher has no BatchNorm layer.
    """
    teacher.require_batch_norm("there are no statistics to read")
    mean, var = (torch.cat(parts) for parts in zip(*_running(teacher), strict=True))
    channels = teacher.input.size[0]
    return Statistics(mean, var, layout_of(teacher), mean.new_zeros(channels), mean.new_ones(channels))


def layout_of(teacher: Teacher) -> Layout:
    """Where each of the teacher's BatchNorm layers lies in a packed buffer."""
    return Layout(teacher.batch_norms, tuple(mean.numel() for mean, _ in _running(teacher)))


def _running(teacher: Teacher) -> list[tuple[Tensor, Tensor]]:
    buffer = teacher.module.get_buffer
    return [(buffer(f"{name}.running_mean"), buffer(f"{name}.running_var")) for name in teacher.batch_norms]


class ObservedTeacher(nn.Module):
    """A teacher that also tells its statistics. Takes images in pixel units, differentiable in them.

    A network that torch.fx can follow is rewritten: statistics are nodes of its graph, so that torch.compile sees them.
    Any other is watched through hooks that stand only while it runs.
    """

    def __init__(self, teacher: Teacher, per: Per = "batch") -> None:
        super().__init__()
        teacher.require_batch_norm("there are no statistics to observe")
        self.teacher = teacher
        self.per: Per = per
        self.layout = layout_of(teacher)
        self.rewritten = _rewrite(teacher, per)

    def forward(self, images: Tensor) -> TeacherOutputs:
        x = self.teacher.input.normalize(images)
        if self.rewritten is not None:
            logits, stats, features = self.rewritten(x)
        else:
            logits, stats, features = _watch(self.teacher, x, self.per)
        input_mean, input_var = dfqlab_kernels.channel_stats(x, per=self.per)
        mean = torch.cat([mean for mean, _ in stats], -1)
        var = torch.cat([var for _, var in stats], -1)
        return TeacherOutputs(logits, Statistics(mean, var, self.layout, input_mean, input_var), features)


def _rewrite(teacher: Teacher, per: Per) -> fx.GraphModule | None:
    """The network as a graph that returns (logits, statistics, features), or None where a graph would not tell all."""
    try:
        graph_module = copy.deepcopy(trace(teacher))
    except TeacherError:
        return None
    graph = graph_module.graph
    stats: dict[str, fx.Node] = {}
    features = None
    hidden = False  # whether a linear layer inside a leaf comes after the last one that the graph shows
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = graph_module.get_submodule(node.target)
        if node.target in teacher.batch_norms and node.target not in stats:
            with graph.inserting_before(node):
                stats[node.target] = graph.call_function(dfqlab_kernels.channel_stats, (node.args[0],), {"per": per})
        elif isinstance(module, nn.Linear):
            features, hidden = node.args[0], False
        elif any(isinstance(child, nn.Linear) for child in module.modules()):
            hidden = True
    if tuple(stats) != teacher.batch_norms or hidden:  # some are inside a leaf
        return None
    (output,) = graph.find_nodes(op="output")
    output.args = ((output.args[0], tuple(stats.values()), features),)
    graph_module.recompile()
    return graph_module


def _watch(teacher: Teacher, x: Tensor, per: Per) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor | None]:
    stats: dict[str, tuple[Tensor, Tensor]] = {}
    features: list[Tensor] = []
    with _hooks() as handles:
        for name in teacher.batch_norms:

            def observe(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                if name not in stats:
                    stats[name] = dfqlab_kernels.channel_stats(args[0], per=per)

            handles.append(teacher.module.get_submodule(name).register_forward_pre_hook(observe))
        for module in teacher.module.modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_pre_hook(lambda _, args: features.append(args[0])))
        logits = teacher.module(x)
    return logits, [stats[name] for name in teacher.batch_norms], features[-1] if features else None


@contextmanager
def _hooks() -> Iterator[list[torch.utils.hooks.RemovableHandle]]:
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _pooled(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    return mean.mean(0), var.mean(0) + mean.var(0, correction=0)
