"""The results file of a device: a row for every case and direction, each with what it was measured with."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfqlab_kernels.bench.machine import Machine

SCHEMA = 1
KEY = ("op", "label", "dtype", "layout", "direction")
Row = dict[str, Any]


def key_of(row: Row) -> tuple[str, ...]:
    """What a row is about."""
    return tuple(row[name] for name in KEY)


class Record:
    """Rows of one device, kept on disk: whoever is interrupted loses the row that was being measured.

    A row counts as long as torch, Triton, Python and the code of this package are those it was measured with.
    """

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.path = folder / f"{machine.slug}.json"
        self.machine = machine
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rates: list[Row] = found.get("rates", [])
        self.rows: list[Row] = found.get("rows", [])

    def holds(self, key: Sequence[str]) -> bool:
        """Whether this row was measured here, with these versions and this code."""
        return any(key_of(row) == tuple(key) and self._current(row) for row in self.rows)

    def keep(self, op: str, keys: Sequence[tuple[str, ...]]) -> None:
        """Drop the rows of an op that are not among these."""
        self.rows = [row for row in self.rows if row["op"] != op or key_of(row) in keys]

    def add(self, row: Row) -> None:
        """Put a row in the place of the one about the same, and write the file."""
        row = row | {"versions": self.machine.versions, "code": self.machine.code}
        places = [k for k, old in enumerate(self.rows) if key_of(old) == key_of(row)]
        if places:
            self.rows[places[0]] = row
        else:
            self.rows.append(row)
        self.write()

    def add_rates(self, rates: Row) -> None:
        """How fast memory is today; the last ten measurements are kept."""
        self.rates = [*self.rates, rates][-10:]
        self.write()

    def write(self) -> None:
        """Rewrite the file, whole or not at all."""
        content = {"schema": SCHEMA, "device": self.machine.as_dict(), "rates": self.rates, "rows": self.rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.path)

    def _current(self, row: Row) -> bool:
        return bool(row["versions"] == self.machine.versions and row["code"] == self.machine.code)
