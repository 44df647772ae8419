"""The sections of benchmarks/README.md about tables of papers: a title, the command of each zoo and size, its table."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.image_sets import SIZES, settings_of
from benchmarks.markdown import listed
from benchmarks.zoo import ZOOS

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """A table's section.

    Attributes:
        paper, table: as the command names them.
        title: of the section.
        body: the results as Markdown.
        sizes: those that it is made in.
    """

    paper: str
    table: str
    title: str
    body: Callable[[Result], str]
    sizes: tuple[str, ...] = tuple(SIZES)

    def section(self, results: Path) -> str:
        """Every zoo and size that was measured, and the commands of those that were not."""
        parts, missing = [f"## {self.title}"], []
        for zoo in ZOOS:
            for size in self.sizes:
                command = command_of(self.paper, self.table, zoo, size)
                path = results / f"{self.paper}_{self.table}_{zoo}_{size}.json"
                if path.exists():
                    result = json.loads(path.read_text())
                    parts.append(f"    {command}\n\n{made_of(result)}\n\n{self.body(result)}")
                else:
                    missing.append(f"`{command}`: not measured")
        return "\n\n".join([*parts, *(["\\\n".join(missing)] if missing else [])]) + "\n"


def command_of(paper: str, table: str, zoo: str, size: str) -> str:
    """What makes the table; what is said by default is left out."""
    options = [f"--zoo {zoo}"] * (zoo != "digits") + [f"--size {size}"] * (size != "cpu")
    return " ".join([f"python -m benchmarks.{paper}_tables {table}", *options])


def made_of(result: Result) -> str:
    """Size, seeds and cost of a table."""
    seeds = result["seeds"]
    steps = listed(f"{recipe} {settings['steps']:,}" for recipe, settings in result["recipes"].items())
    made = f": {result['calibration_images']:,} images, steps: {steps}" if steps else ""
    recompressed = " recompressed" if result["zoo"] == "cifar10" else ""  # published accuracies do not apply
    return (
        f"Size {result['size']}{made}; "
        f"{'one seed' if len(seeds) == 1 else f'means over seeds {listed(seeds)}'}; {result['test_images']:,}"
        f"{recompressed} test images. {result['machine']}, torch {result['torch']}, {result['date']}; "
        f"{cost(result):,.0f} CPU seconds.{outdated(result)}{executed(result)}"
    )


def executed(result: Result) -> str:
    """That torch executed networks with weights of 8 bits (onnxruntime was not yet asked for exact ones), or ""."""
    by_torch = " Networks with weights of 8 bits were executed by torch."
    return by_torch if result.get("eight_bits_by_torch") else ""


def outdated(result: Result) -> str:
    """What has changed in the recipes since, or ""; steps are the table's own."""
    changed = [
        f"{name} of {recipe} was {value}, and is {now}"
        for recipe, settings in result["recipes"].items()
        for name, now in settings_of(recipe, {}).items()
        if name != "steps" and (value := settings.get(name, now)) != now
    ]
    return f" **Of recipes as they were: {listed(changed)}.**" if changed else ""


def cost(result: Result) -> float:
    """CPU seconds of a table and of its images, whenever these were made."""
    return float(result["cpu_seconds"] + sum(result["image_sets"].values()))
