"""What `benchmarks.inversion_step` measured, as a section of benchmarks/README.md."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import inversion_step
from benchmarks.markdown import table

MISSING = "not measured"
Entry = dict[str, Any]


@dataclass(frozen=True)
class StepGoal:
    """A number to reach on a CPU: a ratio of times."""

    what: str
    wanted: float
    value: Callable[[Entry], float]
    most: bool = False

    def verdict(self, entry: Entry) -> str:
        """The number and whether it is good enough, or "not measured"."""
        try:
            value = self.value(entry)
        except KeyError:
            return MISSING
        reached = value <= self.wanted if self.most else value >= self.wanted
        return f"{value:.3g}, {'reached' if reached else 'missed'}"

    @property
    def wish(self) -> str:
        return f"{'at most' if self.most else 'at least'} {self.wanted:g}"


def _step_goal(recipe: str, name: str, wanted: float) -> StepGoal:
    def value(entry: Entry) -> float:
        times = entry["recipes"][recipe]["times"]
        return float(times[inversion_step.HOOKS]["median"] / times[name]["median"])

    return StepGoal(f"a step of {recipe}: {name}, times as fast as written directly", wanted, value)


def _goals_of(recipe: str) -> list[StepGoal]:
    return [
        _step_goal(recipe, inversion_step.HALF, 5),
        _step_goal(recipe, inversion_step.OURS, 2.5),
        _step_goal(recipe, inversion_step.EAGER, 1.2),
        StepGoal(
            f"a job of {recipe}, compilation included, times as fast as written directly",
            3,
            lambda entry: entry["jobs"][recipe]["direct"] / entry["jobs"][recipe]["whole"],
        ),
        StepGoal(
            f"a short job of {recipe}: seconds until its first step is done",
            3,
            lambda entry: float(entry["jobs"][recipe]["short starts"]),
            most=True,
        ),
    ]


GOALS = [
    *(goal for recipe in inversion_step.RECIPES for goal in _goals_of(recipe)),
    StepGoal("256 MixMix images of three networks, 1,000 steps: minutes", 15, lambda e: e["zoo"]["seconds"] / 60, True),
    StepGoal("the same job: GiB of memory at its peak", 2, lambda e: float(e["zoo"]["peak GiB"]), True),
]


def section(results: Path) -> str:
    """The section, with "not measured" where there is no results file."""
    path = results / "inversion_step.json"
    head = "## Inversion\n\n    python -m benchmarks.inversion_step\n    python -m benchmarks.inversion_step jobs\n"
    head += "    python -m benchmarks.inversion_step zoo\n"
    if not path.exists():
        return f"{head}\n{MISSING}\n"
    entries = json.loads(path.read_text())["devices"].values()
    return "\n".join([head, *map(_device, entries)])


def _device(entry: Entry) -> str:
    facts = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
    parts = [f"{entry['device']['name']}; {entry['batch']} images of ResNet-20's size; {facts}; {entry['date']}."]
    if entry["device"]["kind"] == "cpu":
        rows = [[goal.what, goal.wish, goal.verdict(entry)] for goal in GOALS]
        parts.append(table(["what", "wanted", "measured"], rows))
    parts += [_steps(recipe, result) for recipe, result in entry.get("recipes", {}).items()]
    parts += [_jobs(entry["jobs"])] if "jobs" in entry else []
    parts += [_zoo(entry["zoo"])] if "zoo" in entry else []
    return "\n\n".join(parts) + "\n"


def _steps(recipe: str, result: Entry) -> str:
    times, launches = result["times"], result.get("launches", {})
    hooks = times[inversion_step.HOOKS]["median"]
    rows = [
        [name, _milliseconds(taken), f"{hooks / taken['median']:.2f}x", str(launches.get(name) or "")]
        for name, taken in times.items()
    ]
    parts = [table([f"step of {recipe}, {result['teacher']}", "ms", "as fast as hooks", "launches"], rows)]
    if captured := result.get("captured gradient"):
        rows = [[name, _milliseconds(taken)] for name, taken in captured.items()]
        parts.append(table(["the gradient alone, as a CUDA graph and launched", "ms"], rows))
    return "\n\n".join(parts)


def _jobs(jobs: dict[str, Any]) -> str:
    rows = [
        [
            recipe,
            f"{'compiled' if job['compiled'] else 'not compiled'}, {job['dtype']}",
            f"{job['whole']:.0f}",
            f"{job['direct']:.0f}",
            f"{job['direct'] / job['whole']:.2f}x",
            f"{job['short starts']:.1f}",
            f"{job['short direct'] / job['short']:.2f}x",
        ]
        for recipe, job in jobs.items()
    ]
    header = [
        "job",
        "its plan",
        "s",
        "written directly, s",
        "as fast",
        "short: starts after, s",
        "short: steps as fast",
    ]
    return (
        f"Whole jobs of {inversion_step.BATCH} images and {inversion_step.STEPS} steps, nothing compiled before, and "
        f"short ones of {inversion_step.SHORT} steps:\n\n{table(header, rows)}"
    )


def _zoo(job: dict[str, Any]) -> str:
    how = "; ".join(f"{name} {said}" for name, said in zip(job["networks"], job["executed"], strict=True))
    return (
        f"{inversion_step.IMAGES_OF_A_ZOO} MixMix images of three networks of CIFAR-10 in "
        f"{inversion_step.STEPS_OF_A_ZOO:,} steps, nothing compiled before: {job['seconds'] / 60:.1f} minutes, "
        f"{job['cpu seconds'] / 60:.1f} CPU minutes, {job['peak GiB']:.2f} GiB at the peak ({how})."
    )


def _milliseconds(taken: dict[str, float]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(1e3 * taken[name] for name in ("median", "low", "high")))
