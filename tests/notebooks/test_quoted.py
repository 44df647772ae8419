"""Numbers that a lesson quotes from the benchmarks are those of the results files."""

import json
from pathlib import Path

import nbformat

from benchmarks.paper_pages import outdated

ROOT = Path(__file__).parents[2]


def test_lesson_04_quotes_table_8_as_it_is() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "mixmix_table8_digits_cpu.json").read_text())
    assert outdated(result) == ""  # the lesson's own images are of today's recipe
    named = {
        (row["teachers_per_batch"], row["mixing"]): round(100 * row["accuracy"]["mobilenet"]["value"])
        for row in result["rows"]
        if "accuracy" in row
    }
    lesson = nbformat.read(ROOT / "notebooks" / "04_mixing.ipynb", as_version=4)
    (said,) = [" ".join(cell.source.split()) for cell in lesson.cells if cell.id == "l04-mix-said"]
    assert f"the MobileNet takes {named['2', 'off']} % of those from two networks" in said
    assert f"and {named['1', 'off']} % of those from one" in said
    assert f"With images mixed as well it is {named['2', 'on']} and {named['1', 'on']} %" in said

    quantized = {(row["teachers_per_batch"], row["mixing"]): row["quantized"] for row in result["rows"]}
    for teachers in ("1", "2"):
        off, on = quantized[teachers, "off"], quantized[teachers, "on"]
        assert (off["mse"]["width"], off["minmax"]["width"]) == ("W8A3", "W4A4")
        assert 0.015 < off["mse"]["value"] - on["mse"]["value"] < 0.035  # "by two and three points"
        assert off["minmax"]["value"] <= on["minmax"]["value"]  # "but not at 4 bits for both"
