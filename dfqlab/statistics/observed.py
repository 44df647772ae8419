"""A teacher that also tells what a batch does to its BatchNorm layers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import dfqlab_kernels
from dfqlab.errors import TeacherError
from dfqlab.statistics.packed import Statistics, TeacherOutputs, layout_of
from dfqlab.statistics.rewriting import rewrite
from dfqlab.teachers import Teacher
from dfqlab_kernels.statistics import Per


class ObservedTeacher(nn.Module):
    """A teacher that also tells its statistics. Takes images in pixel units, differentiable in them.

    A network that torch.fx can follow is rewritten: each BatchNorm becomes one op with its activation and its
    statistics, which a GPU runs as one kernel and torch.compile fuses. Logits are the teacher's up to rounding. Any
    other network is watched through hooks that stand only while it runs.

    Args:
        per: statistics of the whole batch, or of each sample.
        dtype: of convolutions and activations. With `torch.bfloat16` statistics are still summed in float32, and logits
            come back as float32; only a network that torch.fx can follow takes another type than its own.

    Raises:
        TeacherError: no BatchNorm layer, or a type for a network that cannot be rewritten.
    """

    def __init__(self, teacher: Teacher, per: Per = "batch", dtype: torch.dtype | None = None) -> None:
        super().__init__()
        teacher.require_batch_norm("there are no statistics to observe")
        self.teacher = teacher
        self.per: Per = per
        self.layout = layout_of(teacher)
        self.rewritten = rewrite(teacher, per)
        self.dtype = dtype
        if dtype is not None:
            if self.rewritten is None:
                raise TeacherError(f"{teacher.name!r} cannot be followed by torch.fx, so it runs in its own type alone")
            for module in self.rewritten.modules():
                for parameter in module.parameters(recurse=False):
                    if not isinstance(module, BatchNorm):  # one that stays a module works in float32
                        parameter.data = parameter.data.to(dtype)
        self.channels_last = self.rewritten is not None and _runs_faster_in_channels_last(teacher)
        if self.rewritten is not None and self.channels_last:
            self.rewritten.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> TeacherOutputs:
        x = self.teacher.input.normalize(images)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x, of_input = dfqlab_kernels.tap_channel_stats(x, per=self.per)
        x = x if self.dtype is None else x.to(self.dtype)
        logits, moments, features = (
            self.rewritten(x) if self.rewritten is not None else _watch(self.teacher, x, self.per)
        )
        mean, var = dfqlab_kernels.merge_moments([of_input, *moments], per=self.per)
        sizes = [of_input.shape[-1], self.layout.total]
        (input_mean, mean), (input_var, var) = mean.split(sizes, -1), var.split(sizes, -1)
        statistics = Statistics(mean, var, self.layout, input_mean, input_var)
        return TeacherOutputs(logits.to(images.dtype), statistics, features)


def _runs_faster_in_channels_last(teacher: Teacher) -> bool:
    """On a CPU plain convolutions do, grouped ones do not (measured)."""
    groups = [m.groups for m in teacher.module.modules() if isinstance(m, nn.Conv2d)]
    return teacher.device.type == "cpu" and bool(groups) and max(groups) == 1


def _watch(teacher: Teacher, x: Tensor, per: Per) -> tuple[Tensor, list[Tensor], Tensor | None]:
    moments: dict[str, Tensor] = {}
    features: list[Tensor] = []
    with _hooks() as handles:
        for name in teacher.batch_norms:

            def observe(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> tuple[Tensor, ...]:
                if name in moments:
                    return args
                through, moments[name] = dfqlab_kernels.tap_channel_stats(args[0], per=per)
                return through, *args[1:]

            handles.append(teacher.module.get_submodule(name).register_forward_pre_hook(observe))
        for module in teacher.module.modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_pre_hook(lambda _, args: features.append(args[0])))
        logits = teacher.module(x)
    return logits, [moments[name] for name in teacher.batch_norms], features[-1] if features else None


@contextmanager
def _hooks() -> Iterator[list[torch.utils.hooks.RemovableHandle]]:
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
