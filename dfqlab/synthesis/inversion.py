"""Inversion: optimise pixels until a teacher's statistics look as if the images were real."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfqlab.errors import ConfigurationError, TeacherError
from dfqlab.images import Batch, SyntheticSet
from dfqlab.objective import Objective, PreparedObjective
from dfqlab.progress import Cancelled, OnStep, Step, ignore
from dfqlab.statistics import ObservedTeacher
from dfqlab.synthesis.plan import Plan, generator_for, plan_for
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class Plateau:
    """Adam's rate falls tenfold when the loss has not fallen for `patience` steps, down to `smallest`."""

    patience: int = 100
    smallest: float = 1e-4


def invert(
    teachers: Sequence[Teacher],
    objective: Objective,
    *,
    count: int,
    steps: int,
    learning_rate: float,
    schedule: Plateau,
    seed: int,
    recipe: str,
    settings: Mapping[str, Any],
    on_step: OnStep = ignore,
) -> SyntheticSet:
    """Optimise `count` images, batch by batch, from N(0, 1) in normalised space, with Adam.

    The objective is averaged over the teachers; each normalises the images with its own mean and standard deviation.
    Images are in pixel units and not clipped. A cancelled job returns what it has, marked partial.

    Args:
        teachers: one or several that take images of the same size.
        objective: what to minimise.
        count: how many images, at least 1.
        steps: of Adam, for each batch.
        learning_rate: in normalised space.
        schedule: of the learning rate.
        seed: batch k draws from a generator seeded by (seed, k).
        recipe, settings: what the set says of its origin.
        on_step: called after every step with the loss and each of its terms.

    Raises:
        ConfigurationError: a count or a number of steps below 1.
        TeacherError: no teacher, teachers of different sizes, or one without BatchNorm.
    """
    _check(teachers, count, steps)
    plan = plan_for(teachers, steps=steps)
    observed = [ObservedTeacher(teacher, objective.per) for teacher in teachers]
    prepared = [objective.prepare(teacher, seed=seed) for teacher in teachers]
    loss_of = _compiled(plan, _Loss(observed, prepared))
    batches = -(-count // plan.batch_size)
    done: list[Tensor] = []
    partial = False
    for k in range(batches):
        size = min(plan.batch_size, count - k * plan.batch_size)
        run = _BatchRun(teachers[0], size, learning_rate, schedule, generator_for(seed, k))
        try:
            for step in range(steps):
                values = run.step(loss_of)
                note = plan.sentence if k == step == 0 else ""
                on_step(Step("synthesize", k * steps + step + 1, batches * steps, values, note, run.images))
        except Cancelled:
            partial = (k + 1, step + 1) != (batches, steps)
        done.append(run.images())
        if partial:
            break
    return SyntheticSet(
        images=torch.cat(done),
        recipe=recipe,
        seed=seed,
        settings=settings,
        plan=plan.as_dict(),
        teachers=tuple(teacher.fingerprint for teacher in teachers),
        partial=partial,
    )


class _Loss:
    """The objective averaged over a zoo, as a function of images alone."""

    def __init__(self, observed: Sequence[ObservedTeacher], prepared: Sequence[PreparedObjective]) -> None:
        self.observed = observed
        self.prepared = prepared

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found = [
            objective(Batch(images), observed(images))
            for observed, objective in zip(self.observed, self.prepared, strict=True)
        ]
        terms = {name: torch.stack([values[name] for _, values in found]).mean() for name in found[0][1]}
        return torch.stack([loss for loss, _ in found]).mean(), terms


class _BatchRun:
    """One batch on its way from noise to images."""

    def __init__(
        self, teacher: Teacher, size: int, learning_rate: float, schedule: Plateau, generator: torch.Generator
    ) -> None:
        self.spec = teacher.input
        self.x = torch.randn(size, *self.spec.size, generator=generator).to(teacher.device).requires_grad_()
        self.optimizer = torch.optim.Adam([self.x], lr=learning_rate)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, patience=schedule.patience, min_lr=schedule.smallest
        )

    def images(self) -> Tensor:
        """A copy of the images as they are now, in pixel units."""
        return self.spec.denormalize(self.x.detach()).cpu()

    def step(self, loss_of: Any) -> dict[str, float]:
        """One step of Adam; returns the loss and its terms before the step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = loss_of(self.spec.denormalize(self.x))
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        self.scheduler.step(value)
        return {"loss": value} | {name: float(term.detach()) for name, term in terms.items()}


def _compiled(plan: Plan, loss_of: _Loss) -> Any:
    if not plan.compiled:
        return loss_of
    # The compiler looks for CUDA even where the work is on a CPU, and warns that it is not there.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return torch.compile(loss_of, dynamic=False)


def _check(teachers: Sequence[Teacher], count: int, steps: int) -> None:
    for name, value in (("count", count), ("steps", steps)):
        if not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name}={value!r}: expected an integer of at least 1")
    if not teachers:
        raise TeacherError("no teacher: give at least one")
    sizes = {teacher.input.size for teacher in teachers}
    if len(sizes) > 1:
        raise TeacherError(
            f"the teachers take images of different sizes: {sorted(sizes)}; one inversion needs one size"
        )
