"""The table of equations: each is cited where it is computed, held by a test that exists, and listed once."""

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TABLE: dict[str, list[dict[str, str]]] = tomllib.loads((ROOT / "tests/equations.toml").read_text(encoding="utf-8"))
FIELDS = {
    "equation": {"paper", "number", "what", "function", "test"},
    "later": {"paper", "number", "why"},
    "argument": {"paper", "number", "why"},
}
SYNTHESIS = {
    "MixMix": {*map(str, range(1, 12)), "Algorithm 1"},
    "DSG": {*map(str, range(1, 12)), "Algorithm 1", "Algorithm 2"},
}
"""Every number that sections 3 and 4 of MixMix, and section 3 of DSG, give to an equation or an algorithm."""

PAPERS = {
    "MixMix": "MixMix",
    "DSG": r"DSG|Diverse Sample Generation",
    "ZeroQ": "ZeroQ",
    "DeepInversion": "DeepInversion",
    "The Knowledge Within": "The Knowledge Within|KnowledgeWithin",
    "Kendall et al. 2018": r"Kendall et al\.\s+2018",
    "ACIQ": "ACIQ",
    "AdaRound": "AdaRound",
    "BRECQ": "BRECQ",
}
"""How docstrings call each paper."""

each_equation = pytest.mark.parametrize("row", TABLE["equation"], ids=lambda row: f"{row['paper']} {row['number']}")

_NUMBERS = r"\d+(?:(?:\s*,\s*|\s+to\s+|\s+and\s+|\s*,\s+and\s+)\d+)*"
_CITATION = re.compile(rf"\beqs?\.\s+(?P<numbers>{_NUMBERS})|\b(?P<algorithm>Algorithm\s+\d+)")
_PAPER = re.compile("|".join(f"(?P<p{i}>{names})" for i, names in enumerate(PAPERS.values())))


def cited(text: str) -> set[tuple[str, str]]:
    """Papers and numbers: `eqs. 7 to 9` belong to the paper that the text has last named before them."""
    paper, found = "", set()
    events = sorted([*_PAPER.finditer(text), *_CITATION.finditer(text)], key=lambda match: match.start())
    for match in events:
        if match.re is _PAPER:
            paper = next(name for i, name in enumerate(PAPERS) if match[f"p{i}"])
        elif match["algorithm"]:
            found.add((paper, re.sub(r"\s+", " ", match["algorithm"])))
        else:
            found |= {(paper, number) for number in _expanded(match["numbers"])}
    return found


def _expanded(numbers: str) -> Iterator[str]:
    for first, last in re.findall(r"(\d+)(?:\s+to\s+(\d+))?", numbers):
        yield from map(str, range(int(first), int(last or first) + 1))


def chain_of(path: str) -> list[Any]:
    """The module, the class if there is one, and the function that a dotted path leads to."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return reduce(lambda chain, name: [*chain, getattr(chain[-1], name)], parts[length:], [module])
    raise ModuleNotFoundError(path)


@cache
def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def docstrings_of(node: ast.Module | ast.ClassDef | ast.FunctionDef, above: str = "") -> Iterator[str]:
    """Of a module and all in it, each after those of what it stands in."""
    text = f"{above}\n{ast.get_docstring(node) or ''}"
    yield text
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
            yield from docstrings_of(child, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MixMix (eq. 2)", {("MixMix", "2")}),
        ("(DSG, eqs. 7 and 8). ZeroQ's (eq. 2)", {("DSG", "7"), ("DSG", "8"), ("ZeroQ", "2")}),
        ("MixMix. Algorithm\n 1: a (eq. 6), b (eqs. 7 to 9)", {("MixMix", n) for n in ("Algorithm 1", *"6789")}),
        ("DSG (eqs. 5, 6 and 10); 11 layers", {("DSG", "5"), ("DSG", "6"), ("DSG", "10")}),
        ("eq. 3 of nobody", {("", "3")}),
        ("equal. 3", set()),
    ],
)
def test_citations_are_read_as_they_are_written(text: str, expected: set[tuple[str, str]]) -> None:
    assert cited(text) == expected


def test_the_table_has_its_columns_filled() -> None:
    assert set(TABLE) == set(FIELDS)
    for kind, rows in TABLE.items():
        for row in rows:
            assert set(row) == FIELDS[kind], row
            assert all(value.strip() for value in row.values()), row
            assert row["paper"] in PAPERS, row
            assert re.fullmatch(r"\d+|Algorithm \d+", row["number"]), row


def test_every_equation_of_the_papers_sections_on_synthesis_is_listed_once() -> None:
    listed = [(row["paper"], row["number"]) for rows in TABLE.values() for row in rows]
    assert len(listed) == len(set(listed)), "listed twice"
    for paper, numbers in SYNTHESIS.items():
        assert {number for name, number in listed if name == paper} == numbers


@each_equation
def test_an_equation_is_cited_where_it_is_computed(row: dict[str, str]) -> None:
    chain = chain_of(row["function"])
    assert callable(chain[-1])
    text = "\n".join(inspect.cleandoc(thing.__doc__ or "") for thing in chain)
    assert (row["paper"], row["number"]) in cited(text), f"{row['function']} does not cite it"


@each_equation
def test_the_test_that_holds_an_equation_exists(row: dict[str, str]) -> None:
    path, _, name = row["test"].partition("::")
    assert name in names_of_tests(ROOT / path)


def test_docstrings_cite_no_equation_that_the_table_does_not_have() -> None:
    computed = {(row["paper"], row["number"]) for row in TABLE["equation"]}
    papers = {paper for paper, _ in computed}
    unknown = {
        f"{path.relative_to(ROOT)}: {paper}, {number}"
        for path in sorted((ROOT / "dfqlab").rglob("*.py"))
        for text in docstrings_of(ast.parse(path.read_text(encoding="utf-8")))
        for paper, number in cited(text)
        if paper in papers and (paper, number) not in computed
    }
    assert not unknown
