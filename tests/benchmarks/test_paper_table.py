"""A table is written row by row, and no row of the same job is measured twice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import (
    dsg_pages,
    dsg_tables,
    image_sets,
    mixmix_tables,
    paper_table,
    quantization_tables,
    render,
)
from benchmarks.paper_table import PaperTable, Run
from dfqlab.deployment import certificate

MODULES = {"mixmix": mixmix_tables, "dsg": dsg_tables, "quantization": quantization_tables}
EVERY = [(paper, name) for paper, module in MODULES.items() for name in module.TABLES]
Begin = Callable[[str, str, PaperTable], Run]


def table_of(paper: str, name: str) -> PaperTable:
    return MODULES[paper].TABLES[name]


@pytest.mark.parametrize(("paper", "name"), EVERY)
def test_a_table_is_measured_once_and_rendered(
    paper: str, name: str, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "ENOUGH_CODES", 1000)
    table = table_of(paper, name)
    run = begin(paper, name, table)
    table.measure(run)
    written = (tmp_path / f"{paper}_{name}_digits_cpu.json").read_text()
    monkeypatch.setattr(paper_table, "write_json", lambda *_: pytest.fail("a row was measured twice"))
    table.measure(begin(paper, name, table))
    assert json.loads(written) == run.result
    assert run.result["machine"]
    assert run.result["image_sets"].keys() <= {path.name for path in image_sets.CACHE.iterdir()}
    body = next(page for page in render.PAPERS if (page.paper, page.table) == (paper, name)).section(tmp_path)
    assert f"    python -m benchmarks.{paper}_tables {name}\n" in body
    assert ("Size cpu: 4 images" if table.recipes else "Size cpu; one seed") in body
    assert body.count("not measured") == (3 if table.recipes else 1)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert rows
    assert not any("nan" in row for row in rows)


def test_two_processes_make_a_table_together(begin: Begin) -> None:
    table = table_of("dsg", "table5")
    one, other = begin("dsg", "table5", table), begin("dsg", "table5", table)
    one.only, other.only = "^one, mse", "^one, (ema|mse), real"
    table.measure(one)
    table.measure(other)
    rows = json.loads(one.path.read_text())["rows"]
    keys = [(row["rule"], row["source"]) for row in rows]
    assert len(keys) == 4
    assert set(keys) == {("mse", "real"), ("mse", "zeroq"), ("mse", "dsg"), ("ema", "real")}
    whole = begin("dsg", "table5", table)
    table.measure(whole)
    assert len(json.loads(one.path.read_text())["rows"]) == 12


def test_of_a_row_that_two_made_the_first_stays_and_nothing_else_is_lost(begin: Begin) -> None:
    table = table_of("dsg", "table2")
    one, other = begin("dsg", "table2", table), begin("dsg", "table2", table)
    key = {"target": "one", "width": "W8A8", "rule": "mse"}

    def meanwhile() -> dict[str, object]:
        other.width("one", "mse", lambda: "W3A3")
        other.row(key, lambda: {"accuracy": 0.5})
        return {"accuracy": 0.25}

    one.row(key, meanwhile)
    written = json.loads(one.path.read_text())
    assert [row["accuracy"] for row in written["rows"]] == [0.5]
    assert written["widths"] == {"one mse": "W3A3"}


def test_the_distance_from_real_images_is_counted_seed_by_seed(begin: Begin) -> None:
    run = begin("dsg", "table1", table_of("dsg", "table1"))
    run.facts(parts=dsg_tables.PARTS, target="one", float=1.0, choosing_seed=100)
    real, zeroq, dsg, less = [5.0, 5.0], [4.0, 4.0], [4.5, 3.0], [5.5, 5.5]
    names = {"vanilla (ZeroQ)": zeroq, "DSG": dsg, "DSG, less slack: 0.7": less, "real": real}
    for name, values in names.items():
        measures = dict.fromkeys(dsg_tables.MEASURES, values)
        run.row({"source": name}, lambda measures=measures: {"accuracy": {}, "measures": measures})
    page = dsg_pages.table1(run.result)
    assert "| W₁ to the Gaussian | 1.00 | 1.25 (nearer in 1 of 2) | 0.500 (nearer in 2 of 2) |" in page


def test_a_table_that_was_stopped_goes_on_with_the_next_row(begin: Begin, tmp_path: Path) -> None:
    table = table_of("mixmix", "table1")
    run = begin("mixmix", "table1", table)

    def stop() -> dict[str, float]:
        raise KeyboardInterrupt

    run.row({"judge": "one"}, lambda: {"loss": 1.0})
    with pytest.raises(KeyboardInterrupt):
        run.row({"judge": "two"}, stop)
    again = begin("mixmix", "table1", table)
    assert again.row({"judge": "one"}, stop)["loss"] == 1.0
    assert again.row({"judge": "two"}, lambda: {"loss": 2.0})["loss"] == 2.0
    assert [row["judge"] for row in json.loads(again.path.read_text())["rows"]] == ["one", "two"]


def test_rows_of_other_settings_are_measured_anew(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of("mixmix", "table1")
    begin("mixmix", "table1", table).row({"judge": "one"}, lambda: {"loss": 1.0})
    assert begin("mixmix", "table1", table).result["rows"]
    assert begin("mixmix", "table1", replace(table, recipes=("zeroq",))).result["rows"] == []
    assert "is of another recipes" in capsys.readouterr().out


def test_the_command_says_which_tables_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        paper_table.make("mixmix", mixmix_tables.TABLES, ["table7"])
    assert "table1" in capsys.readouterr().err
