"""What `benchmarks.reconstruction_speed` measured, as a section of benchmarks/README.md."""

import json
from pathlib import Path
from typing import Any

from benchmarks.inversion_table import MISSING, StepGoal
from benchmarks.markdown import table
from benchmarks.reconstruction_speed import DIRECT, IMAGES, ITERATIONS, OURS

GOALS = [
    StepGoal(
        "an iteration of BRECQ, all blocks of ResNet-20: times as fast as written directly",
        1.5,
        lambda entry: entry["iterations"]["together"][DIRECT] / entry["iterations"]["together"][OURS],
    ),
    StepGoal(
        f"the job, {IMAGES} images, {ITERATIONS:,} iterations a block: minutes",
        4,
        lambda e: e["job"]["seconds"] / 60,
        True,
    ),
]


def section(results: Path) -> str:
    """The section, with "not measured" where there is no results file."""
    command = "    python -m benchmarks.reconstruction_speed"
    head = f"## Reconstruction\n\n{command}\n{command} job"
    path = results / "reconstruction_speed.json"
    if not path.exists():
        return f"{head}\n\n{MISSING}\n"
    entries = json.loads(path.read_text())["devices"].values()
    names = [entry["device"]["name"] for entry in entries]
    rows = [[goal.what, goal.wish, *(goal.verdict(entry) for entry in entries)] for goal in GOALS]
    parts = [head, table(["", "goal", *names], rows), *(_blocks(entry) for entry in entries)]
    return "\n\n".join(parts) + "\n"


def _blocks(entry: dict[str, Any]) -> str:
    if "iterations" not in entry:
        return ""
    found = entry["iterations"]
    rows = [
        [name, *(f"{1e3 * times[way]['median']:.1f}" for way in (OURS, DIRECT))]
        for name, times in found["blocks"].items()
    ]
    versions = found["versions"]
    return (
        f"{entry['device']['name']}, torch {versions['torch']}, {found['date']}: milliseconds of an iteration, "
        f"medians, in turn. Most of it is convolutions, forward and backward.\n\n{table(['block', OURS, DIRECT], rows)}"
    )
