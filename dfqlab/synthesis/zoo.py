"""Several teachers as one loss of images: each sees them in its own size and normalisation."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FunctionType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dfqlab.images import Batch
from dfqlab.objective import Objective
from dfqlab.statistics import ObservedTeacher
from dfqlab.synthesis.plan import Execution, Plan
from dfqlab.teachers import Teacher


def settled(plan: Plan, teachers: Sequence[Teacher], objective: Objective, *, seed: int) -> Plan:
    """The plan, but that networks are not captured whose loss waits for the GPU: no CUDA graph could hold it."""
    networks = tuple(
        replace(how, captured=False, note="its loss waits for the GPU")
        if how.captured and _waits(_TeacherLoss(teacher, objective, how, seed), teacher)
        else how
        for teacher, how in zip(teachers, plan.networks, strict=True)
    )
    return replace(plan, networks=networks)


class Zoo:
    """Teachers made ready for one objective, executed as the plan says."""

    def __init__(self, teachers: Sequence[Teacher], objective: Objective, plan: Plan, *, seed: int) -> None:
        self.teachers = tuple(teachers)
        self.names = tuple(objective.terms)
        self.losses = [
            _executed(how, _TeacherLoss(teacher, objective, how, seed))
            for teacher, how in zip(teachers, plan.networks, strict=True)
        ]

    def __call__(self, images: Tensor, labels: Tensor | None, chosen: Sequence[int]) -> Mapping[str, Tensor]:
        """Each term that reads what teachers say, averaged over the chosen ones (MixMix, eq. 6)."""
        if not self.names:
            return {}
        for j, loss in enumerate(self.losses):
            if isinstance(loss, _Replayed) and j not in chosen:
                loss.release()
        coarse = images.shape[2:] != self.teachers[0].input.size[1:]
        found = [self.losses[j](_resized(images, self.teachers[j], coarse=coarse), labels) for j in chosen]
        return dict(zip(self.names, torch.stack(found).mean(0).unbind(), strict=True))


class _TeacherLoss:
    """The terms of an objective for one teacher, side by side in one tensor, as a function of images and labels."""

    def __init__(self, teacher: Teacher, objective: Objective, how: Execution, seed: int) -> None:
        # Compiled for a CPU, statistics of samples and their pooling are faster than those of the batch (measured).
        per = "sample" if how.compiled and teacher.device.type == "cpu" else objective.per
        self.observed = ObservedTeacher(teacher, per, torch.bfloat16 if how.dtype == "bfloat16" else None)
        self.prepared = objective.prepare(teacher, seed=seed)

    def __call__(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return torch.stack(list(self.prepared(Batch(images, labels), self.observed(images)).values()))


def _resized(images: Tensor, teacher: Teacher, *, coarse: bool) -> Tensor:
    """As large as the teacher takes them, half as large at a coarse step."""
    height, width = teacher.input.size[1:]
    size = (height // 2, width // 2) if coarse else (height, width)
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class _Replayed:
    """A loss whose kernels, and those of its gradient, a GPU replays as CUDA graphs.

    They are of one shape of images and labels, and captured anew for another: graphs hold all memory that they use.
    """

    def __init__(self, loss: _TeacherLoss) -> None:
        self.loss = loss
        self.graph: Callable[..., Tensor] | None = None
        self.shapes: tuple[torch.Size, ...] = ()

    def __call__(self, images: Tensor, labels: Tensor | None) -> Tensor:
        given = (images,) if labels is None else (images, labels)
        shapes = tuple(tensor.shape for tensor in given)
        if self.graph is None or shapes != self.shapes:
            self.graph = None  # before the next one asks for memory
            self.graph, self.shapes = self._captured(given), shapes
        return self.graph(*given)

    def release(self) -> None:
        """Give the graphs' memory back."""
        self.graph = None

    def _captured(self, given: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        like = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in given)
        with torch.cuda.device_of(given[0]), warnings.catch_warnings():
            # torch wonders at its own warm-up, which is on a stream that is not the usual one.
            warnings.filterwarnings("ignore", "Attempting to run cuBLAS|The AccumulateGrad node's stream")
            graphed = torch.cuda.make_graphed_callables(
                lambda images, labels=None: self.loss(images, labels), like, allow_unused_input=True
            )
        return cast("Callable[..., Tensor]", graphed)


def _waits(loss: _TeacherLoss, teacher: Teacher) -> bool:
    """Whether loss or gradient make the host wait at every call: for a number, or for one on its way to the GPU."""
    images = torch.full((2, *teacher.input.size), 0.5, device=teacher.device).requires_grad_()
    labels = torch.zeros(2, dtype=torch.long, device=teacher.device)
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")  # a prototype, torch says
            for mode in ("default", "error"):  # the first call makes tables that stay
                torch.cuda.set_sync_debug_mode(mode)
                torch.autograd.grad(loss(images, labels).sum(), images, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def _executed(how: Execution, loss: _TeacherLoss) -> Callable[[Tensor, Tensor | None], Tensor]:
    if how.captured:
        return _Replayed(loss)
    if not how.compiled:
        return loss
    # The compiler looks for CUDA even where the work is on a CPU, and warns that it is not there.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    def evaluate(images: Tensor, labels: Tensor | None) -> Tensor:
        return loss(images, labels)

    # torch counts compilations by code object and gives up after some: each loss gets one of its own.
    own = FunctionType(evaluate.__code__.replace(), globals(), "loss", None, evaluate.__closure__)
    return torch.compile(own, dynamic=False)
