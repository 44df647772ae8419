"""The results file of one table of a paper, written after every row, and the command that makes it."""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import zoo
from benchmarks.image_sets import SIZES, ImageSets, Size, alone, cpu_seconds, settings_of
from benchmarks.paper_pages import cost
from benchmarks.zoo import Zoo
from dfqlab.checkpoints import write_json
from dfqlab_kernels.bench.machine import results_folder, this_machine

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


class Run:
    """A table on its way: what it is made of, and the rows it has.

    A results file of the same job (size, seeds, networks, settings of the recipes, torch) is gone on with: a row that
    it has is not measured again. Another job's is begun anew.
    """

    def __init__(
        self,
        path: Path,
        networks: Zoo,
        size: Size,
        recipes: Mapping[str, Mapping[str, Any]],
        *,
        learns: bool = False,
        only: str | None = None,
    ) -> None:
        self.path, self.zoo, self.size, self.sets = path, networks, size, ImageSets(size)
        self.only, self._spent = only, 0.0
        self.on_write: Callable[[], None] = lambda: None
        self.job: dict[str, Any] = {
            "zoo": networks.name,
            "size": size.name,
            "calibration_images": size.count,
            "seeds": list(networks.seeds),
            "test_images": len(networks.test),
            "networks": {name: teacher.fingerprint for name, teacher in networks.networks.items()},
            "recipes": {name: settings_of(name, asked) for name, asked in recipes.items()},
            "torch": torch.__version__,
        }
        if learns:
            self.job["iterations"] = size.iterations
        found = json.loads(path.read_text()) if path.exists() else {}
        for name, settings in found.get("recipes", {}).items():  # what had no setting yet did as its default does
            found["recipes"][name] = self.job["recipes"].get(name, {}) | settings
        changed = [name for name, value in self.job.items() if name in found and found[name] != value]
        if changed:
            print(f"{path.name} is of another {' and '.join(changed)}: all rows are measured anew", flush=True)
        self.result = found if found and not changed else {**self.job, "cpu_seconds": 0, "image_sets": {}, "rows": []}

    def row(self, key: Mapping[str, str], measure: Callable[[], Row]) -> Row:
        """The row of this key: the one that there is, or what is measured now."""
        self._take_theirs()
        found = self._row(key)
        if found is not None:
            return found
        if self.only is not None and not re.search(self.only, ", ".join(key.values())):
            return {}
        before, spent = cpu_seconds(), self.sets.spent
        row: Row = json.loads(json.dumps({**key, **measure()}))
        self._spent += cpu_seconds() - before - (self.sets.spent - spent)
        self.result["image_sets"] |= {name: round(seconds) for name, seconds in self.sets.seconds.items()}
        self.result |= {"machine": this_machine().name, "date": date.today().isoformat()}
        self._write(key, row)
        print(f"{self.path.stem}: {', '.join(key.values())}", flush=True)
        return row

    def facts(self, **facts: Any) -> None:
        """What the page says of the table beside its rows."""
        before = dict(self.result)
        self.result |= json.loads(json.dumps(facts))
        if self.result["rows"] and self.result != before:
            self._write()

    def _write(self, key: Mapping[str, str] | None = None, row: Row | None = None) -> None:
        """With what others, who make the same table at the same time, have written since; of a row the first."""
        with alone(self.sets.folder, f"{self.path.stem}.lock"):
            self._take_theirs()
            if key is not None and self._row(key) is None:
                self.result["rows"].append(row)
            self.result["cpu_seconds"] = round(self.result["cpu_seconds"] + self._spent, 1)
            self._spent = 0.0
            write_json(self.path, self.result)
        self.on_write()

    def _take_theirs(self) -> None:
        theirs = json.loads(self.path.read_text()) if self.path.exists() else {}
        if all(theirs.get(name) == value for name, value in self.job.items()):
            self.result["rows"] += [row for row in theirs["rows"] if row not in self.result["rows"]]
            for name in ("image_sets", "widths"):
                if name in theirs:
                    self.result[name] = theirs[name] | self.result.get(name, {})
            self.result["cpu_seconds"] = theirs["cpu_seconds"]

    def _row(self, key: Mapping[str, str]) -> Row | None:
        rows: list[Row] = self.result["rows"]
        return next((row for row in rows if all(row.get(name) == value for name, value in key.items())), None)

    def width(self, target: str, rule: str, choose: Callable[[], str]) -> str:
        """The width at which a target is quantized with a rule, chosen once."""
        widths: dict[str, str] = self.result.setdefault("widths", {})
        key = f"{target} {rule}"
        if key not in widths:
            widths[key] = choose()
        return widths[key]


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        measure: asks a run for its rows.
        recipes: those that it uses.
        learns: whether roundings learn from its images: then a set has as many as that takes.
        many: whether it has as many although none does.
        one_seed: whether it has images of the zoo's first seed alone.
    """

    measure: Callable[[Run], None]
    recipes: tuple[str, ...]
    learns: bool = False
    many: bool = False
    one_seed: bool = False


def make(paper: str, tables: Mapping[str, PaperTable], arguments: list[str] | None = None) -> None:
    """The command of a paper's tables: measure one, and render the page."""
    from benchmarks.render import render

    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{paper}_tables")
    parser.add_argument("table", choices=tables)
    parser.add_argument("--size", choices=SIZES, default="cpu", help="cpu: half an hour on two cores; full: for a GPU")
    parser.add_argument("--zoo", choices=zoo.ZOOS, default="digits", help="cifar10 needs $DFQLAB_DATA")
    parser.add_argument("--only", help="rows whose key this regular expression finds; several processes may be at work")
    asked = parser.parse_args(arguments)
    networks = zoo.load(asked.zoo, this_machine().kind)
    run = begin(paper, asked.table, tables[asked.table], SIZES[asked.size], networks, asked.only)
    run.on_write = render  # so that the page never says less than the results
    tables[asked.table].measure(run)
    print(f"{run.path.name} has what was asked for: {cost(run.result):,.0f} CPU seconds", flush=True)


def begin(paper: str, name: str, table: PaperTable, size: Size, networks: Zoo, only: str | None = None) -> Run:
    """A run of a table, with what its results file has."""
    size = replace(size, count=size.to_learn) if table.learns or table.many else size
    networks = replace(networks, seeds=networks.seeds[:1]) if table.one_seed else networks
    steps = {recipe: {"steps": size.steps[recipe]} if recipe in size.steps else {} for recipe in table.recipes}
    return Run(
        results_folder(RESULTS) / f"{paper}_{name}_{networks.name}_{size.name}.json",
        networks,
        size,
        steps,
        learns=table.learns,
        only=only,
    )
