"""Inversion: optimise pixels until teachers take them for what they remember."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Required, TypedDict

import torch
from jaxtyping import Int
from torch import Tensor

from dfqlab.errors import ConfigurationError, SynthesisError, TeacherError
from dfqlab.images import SyntheticSet
from dfqlab.objective import Objective
from dfqlab.progress import Cancelled, OnStep, Step, ignore
from dfqlab.synthesis.checkpointing import IMAGES_FILE, Checkpoint, Kept
from dfqlab.synthesis.descent import BatchDescent, Descent, NotFinite
from dfqlab.synthesis.plan import Plan, generator_for, plan_for
from dfqlab.synthesis.zoo import Zoo, settled
from dfqlab.teachers import Teacher

Labels = Literal["balanced"] | Int[Tensor, " count"] | None
_UNTIMED = 3  # the first steps compile and warm up


class Request(TypedDict, total=False):
    """What every recipe is asked for, beside its own settings.

    count: how many images, at least 1. seed: batch k draws from a generator seeded by (seed, k). labels: what images
    shall be taken for: "balanced", which recipes with a label term take by default, or class indices. checkpoint: a
    folder in which the job can go on after it was stopped, and which holds the finished set. on_step: called after
    every step with the loss and each of its terms; raise `Cancelled` in it to stop and keep what there is.
    """

    count: Required[int]
    seed: Required[int]
    labels: Labels
    checkpoint: Checkpoint | None
    on_step: OnStep


def invert(
    teachers: Sequence[Teacher],
    objective: Objective,
    descent: Descent,
    *,
    recipe: str,
    settings: Mapping[str, Any],
    count: int,
    seed: int,
    labels: Labels = None,
    checkpoint: Checkpoint | None = None,
    on_step: OnStep = ignore,
) -> SyntheticSet:
    """Optimise `count` images, batch by batch, from N(0, 1) in normalised space.

    Minimises `mean over the batch's teachers of the terms that read teachers + the terms that read images` (MixMix,
    eq. 6). Images have the first teacher's size; another one that takes a different size sees them resized. Each
    normalises with its own mean and standard deviation. Every batch is made in full, also the last one, of which only
    what is asked for is kept: a set begins as any smaller one of the same plan does.

    Args:
        teachers: one or several, with the same classes.
        objective: what to minimise.
        descent: how.
        recipe, settings: what the set says of its origin.
        count, seed, labels, checkpoint, on_step: see `Request`.

    Raises:
        ConfigurationError: a count below 1, labels out of range or of another number, more teachers than there are.
        TeacherError: no teacher, one without BatchNorm, or teachers that disagree on classes or colours.
        CheckpointError: the checkpoint is of another job: recipe, objective, teacher, plan, labels; both are named. Or
            another job is at work in its folder.
        SynthesisError: a loss became NaN or infinite; it says of which term, and has the last finite images.
    """
    _check(teachers, count, descent, recipe)
    plan = plan_for(teachers, steps=descent.steps, count=count, teachers_per_batch=descent.teachers_per_batch)
    plan = settled(plan, teachers, objective, seed=seed)
    labels = _labels(labels, count, len(teachers[0].classes), plan.batch_size)
    empty = SyntheticSet(
        images=torch.empty(0, *teachers[0].input.size),
        recipe=recipe,
        seed=seed,
        settings=settings,
        plan=plan.as_dict(),
        teachers=tuple(teacher.fingerprint for teacher in teachers),
    )
    method = {"objective": objective.description, "descent": repr(descent)}
    with nullcontext() if checkpoint is None else checkpoint.held():
        kept = Kept(checkpoint, empty, count, None if labels is None else labels[:count], method)
        if kept.finished is not None:
            return kept.finished
        zoo = Zoo(teachers, objective, plan, seed=seed)
        return _descended(zoo, objective, descent, plan, kept, labels, on_step)


def _descended(
    zoo: Zoo, objective: Objective, descent: Descent, plan: Plan, kept: Kept, labels: Tensor | None, on_step: OnStep
) -> SyntheticSet:
    """All batches that are still to be made, one after the other, and the set of them."""
    batches = -(-kept.count // plan.batch_size)
    pace = _Pace(batches * descent.steps)
    note, partial = plan.sentence, False
    for k in range(kept.batches, batches):
        part = None if labels is None else labels[k * plan.batch_size : (k + 1) * plan.batch_size]
        run = BatchDescent(zoo, objective, descent, part, plan.batch_size, generator_for(kept.empty.seed, k))
        kept.resume(run)
        try:
            while run.index < descent.steps:
                values = run.step()
                kept.save(run)
                index = k * descent.steps + run.index
                on_step(Step("synthesize", index, pace.total, values, note, run.images, pace.left(index)))
                note = ""
        except Cancelled:
            partial = (k + 1, run.index) != (batches, descent.steps)
        except NotFinite as error:
            kept.add(run.last_finite(), whole=False)
            images = kept.collected(partial=True)
            raise SynthesisError(
                f"step {run.index + 1} of batch {k + 1}: {error}; {len(images)} images from before it are kept"
                + (f" in {kept.checkpoint.folder / IMAGES_FILE}" if kept.checkpoint else "")
                + ". A smaller learning_rate may help",
                images,
            ) from error
        if partial:
            kept.save(run, now=True)
        kept.add(run.images(), whole=not partial)
        if partial:
            break
    return kept.collected(partial=partial)


class _Pace:
    """How long the rest takes, judged by the steps of this process after its first few."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen = 0
        self.since: tuple[int, float] | None = None

    def left(self, index: int) -> float | None:
        self.seen += 1
        now = time.monotonic()
        if self.since is None:
            self.since = (index, now) if self.seen == _UNTIMED else None
            return None
        start, began = self.since
        return (now - began) / (index - start) * (self.total - index)


def _labels(labels: Labels, count: int, classes: int, batch_size: int) -> Int[Tensor, "padded"] | None:
    """A class for each image, and for those that fill the last batch."""
    if labels is None:
        return None
    padded = -(-count // batch_size) * batch_size
    if isinstance(labels, str):
        if labels != "balanced":
            raise ConfigurationError(f"labels={labels!r}: give class indices, or 'balanced'")
        return torch.arange(padded) % classes
    given = torch.as_tensor(labels).cpu()
    if given.dim() != 1 or len(given) != count or given.is_floating_point():
        raise ConfigurationError(f"expected {count} class indices, one an image; got labels of {tuple(given.shape)}")
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= classes:
        raise ConfigurationError(f"labels {low} to {high}: the teachers know classes 0 to {classes - 1}")
    return given.long()[torch.arange(padded) % count]


def _check(teachers: Sequence[Teacher], count: int, descent: Descent, recipe: str) -> None:
    if not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"count={count!r}: expected an integer of at least 1")
    if not teachers:
        raise TeacherError("no teacher: give at least one")
    wanted = descent.teachers_per_batch
    if wanted is not None and not 1 <= wanted <= len(teachers):
        raise ConfigurationError(f"teachers_per_batch={wanted}: the zoo has {len(teachers)}")
    for teacher in teachers:
        teacher.require_batch_norm(f"recipe {recipe!r} aligns BatchNorm statistics")
    first = teachers[0]
    for other in teachers[1:]:
        if _disagree(first, other):
            raise TeacherError(
                f"{first.name!r} knows {len(first.classes)} classes ({', '.join(first.classes[:3])}, ...) and "
                f"{other.name!r} {len(other.classes)} ({', '.join(other.classes[:3])}, ...): a zoo agrees on classes"
            )
        if first.input.size[0] != other.input.size[0]:
            raise TeacherError(
                f"{first.name!r} takes {first.input.size[0]} colours and {other.name!r} {other.input.size[0]}: "
                "a zoo agrees on colours"
            )


def _disagree(one: Teacher, other: Teacher) -> bool:
    """Whether classes differ in number or by name. Numbers are nobody's names."""
    named = [teacher.classes for teacher in (one, other) if not all(name.isdigit() for name in teacher.classes)]
    return len(one.classes) != len(other.classes) or len(set(named)) > 1
