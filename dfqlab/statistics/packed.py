"""The statistics of all BatchNorm layers in one packed buffer: what a teacher remembers, and what a batch does."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.teachers import Teacher


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


def _pooled(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    return mean.mean(0), var.mean(0) + mean.var(0, correction=0)
