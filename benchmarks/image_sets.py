"""Synthetic images for tables: made once, kept in an ignored folder, and used by every table that asks for them."""

import fcntl
import hashlib
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dfqlab
from dfqlab.checkpoints import write_json
from dfqlab.images import SyntheticSet
from dfqlab.progress import OnStep, Step
from dfqlab.recipes.names import RECIPES
from dfqlab.synthesis.plan import plan_for

CACHE = Path(__file__).parent / ".cache"
COST, LOCK = "cost.json", "lock"


@dataclass(frozen=True)
class Size:
    """How large a table is.

    Attributes:
        name: "cpu" or "full".
        count: images in a set.
        steps: of a descent, by recipe; of others the recipe's own.
        every: all networks and variants, or those for which a CPU has time.
        to_learn: images in a set that roundings learn from.
        iterations: of these, for each layer or block.
    """

    name: str
    count: int
    steps: Mapping[str, int]
    every: bool
    to_learn: int = 256
    iterations: int = 300


# MixMix's 1,024 images and 5,000 steps (section 5); those whom it is compared with get as many. 500 steps are ZeroQ's.
SIZES = {
    "cpu": Size("cpu", 128, dict.fromkeys(RECIPES, 500), every=False),
    "full": Size(
        "full",
        1024,
        {recipe: 500 if recipe in ("zeroq", "dsg") else 5000 for recipe in RECIPES},
        every=True,
        to_learn=1024,
        iterations=20_000,
    ),
}


class ImageSets:
    """The sets of one size.

    A set is the one of its recipe, settings, networks, seed, count and plan: asked for again, it is read. One whose
    making was interrupted goes on, one that another process makes is waited for. What a recipe computes may change
    where none of its settings does: then the folder is to be deleted.

    Attributes:
        seconds: CPU seconds of every set that was asked for, whenever it was made.
        spent: those of them that went by in this process.
    """

    def __init__(self, size: Size, folder: Path | None = None) -> None:
        self.size, self.folder = size, folder or CACHE
        self.seconds: dict[str, float] = {}
        self.spent = 0.0
        self._read: dict[str, SyntheticSet] = {}

    def get(self, recipe: str, teachers: Sequence[dfqlab.Teacher], seed: int, **settings: Any) -> SyntheticSet:
        """A set of images, made now if it is not there."""
        asked = settings | ({"steps": self.size.steps[recipe]} if recipe in self.size.steps else {})
        name = self._name(recipe, teachers, seed, asked)
        if name not in self._read:
            with alone(self.folder / name):
                self._read[name] = self._made(name, recipe, teachers, seed, asked)
        return self._read[name]

    def _made(
        self, name: str, recipe: str, teachers: Sequence[dfqlab.Teacher], seed: int, asked: Mapping[str, Any]
    ) -> SyntheticSet:
        before = cpu_seconds()
        try:
            return dfqlab.synthesize(
                teachers,
                recipe,
                count=self.size.count,
                seed=seed,
                checkpoint=self.folder / name,
                on_step=_told(f"{name} of {', '.join(teacher.name for teacher in teachers)}, seed {seed}"),
                **asked,
            )
        finally:
            self._note(name, cpu_seconds() - before)

    def _name(self, recipe: str, teachers: Sequence[dfqlab.Teacher], seed: int, asked: Mapping[str, Any]) -> str:
        every = settings_of(recipe, asked)
        job = {
            "recipe": recipe,
            "settings": every,
            "teachers": [teacher.fingerprint for teacher in teachers],
            "seed": seed,
            "count": self.size.count,
            "plan": plan_for(
                teachers,
                steps=every["steps"],
                count=self.size.count,
                teachers_per_batch=every.get("teachers_per_batch"),
            ).as_dict(),
        }
        return f"{recipe}-{hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]}"

    def _note(self, name: str, seconds: float) -> None:
        path = self.folder / name / COST
        self.spent += seconds
        self.seconds[name] = seconds + (json.loads(path.read_text())["cpu_seconds"] if path.exists() else 0.0)
        write_json(path, {"cpu_seconds": self.seconds[name]})


def settings_of(recipe: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a recipe, as JSON gives them back."""
    module, name = RECIPES[recipe]
    settings: dict[str, Any] = json.loads(json.dumps(asdict(getattr(importlib.import_module(module), name)(**asked))))
    return settings


def cpu_seconds() -> float:
    """Of this process and of those that compiled for it."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def alone(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """No other process is at work in the folder, or on what the lock is named after: tables are made at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _told(what: str) -> OnStep:
    """One line when images begin to be made, and one each minute."""
    told: list[float] = []

    def tell(step: Step) -> None:
        now = time.monotonic()
        if not told or now - told[-1] >= 60:
            told.append(now)
            left = "" if step.seconds_left is None else f", {step.seconds_left / 60:.0f} min left"
            print(f"  {what}: step {step.index:,} of {step.total:,}{left}", flush=True)

    return tell
