"""What a report shows of how images came about."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dfqlab.images import SyntheticSet
from dfqlab.progress import OnStep, Step
from dfqlab.report import ImagesMade
from dfqlab.synthesis.plan import Plan

_WATCHED = 6
_SNAPSHOTS = (1, 10, 30, 100, 250)


class Recorder:
    """Passes steps on, and keeps what the report shows of them: losses, and the first batch as it comes to life."""

    def __init__(self, on_step: OnStep, batches: int) -> None:
        self.on_step = on_step
        self.batches = batches
        self.losses: list[tuple[int, float]] = []
        self.snapshots: list[tuple[int, Tensor]] = []
        self.seconds = 0.0
        self.started = time.perf_counter()

    def __call__(self, step: Step) -> None:
        self.seconds = time.perf_counter() - self.started
        steps = step.total // self.batches
        if "loss" in step.values and step.index <= steps:
            self.losses.append((step.index, step.values["loss"]))
        if step.index in _SNAPSHOTS and step.index < steps and step.images is not None:
            self.snapshots.append((step.index, step.images()[:_WATCHED]))
        self.on_step(step)

    def snapshots_until(self, images: SyntheticSet) -> tuple[tuple[int, Tensor], ...]:
        """The first few images on their way, and as they ended."""
        if not self.snapshots:
            return ()
        return *self.snapshots, (int(images.settings["steps"]), images.images[:_WATCHED])

    def summary(self, images: SyntheticSet) -> ImagesMade:
        """What the report says of how the images were made; a set made before tells no losses."""
        every = max(1, len(self.losses) // 500)
        return ImagesMade(
            recipe=images.recipe,
            count=len(images),
            seed=images.seed,
            steps=int(images.settings.get("steps", 0)),
            seconds=self.seconds,
            partial=images.partial,
            plan=plan_in_words(images.plan),
            first_loss=self.losses[0][1] if self.losses and self.losses[0][0] == 1 else None,  # else it was resumed
            last_loss=self.losses[-1][1] if self.losses else None,
            loss_curve=tuple(self.losses[::every]),
        )


def plan_in_words(plan: Mapping[str, Any]) -> str:
    """The plan of a set as a line; one that another version wrote, as it stands."""
    try:
        return Plan.from_dict(plan).sentence
    except (KeyError, TypeError):
        return ", ".join(f"{name} {value}" for name, value in plan.items() if value != "")
