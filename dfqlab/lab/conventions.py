"""What a committed lesson keeps to. Nothing is executed here: a lesson is read as it lies on the disk.

A rule is a function from a Page to messages, each of which names the cell and says what to do.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import nbformat
from nbformat.reader import NotJSONError, reads

from dfqlab.lab import texts
from dfqlab.lab.definitions import defined, statements
from dfqlab.lessons import Lesson

TAGS = frozenset({"exercise", "check", "widget", "nbval-check-output"})
SHOWING = TAGS - {"exercise"}  # a cell with one of these has an output
CELLS = (25, 45)
LINES = 15
BYTES = 400_000
OUTPUTS, CONTRACTS = 3, 3
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

Cell: TypeAlias = Any  # a NotebookNode, which gives its keys as attributes


@dataclass(frozen=True)
class Page:
    """A lesson's notebook, read.

    Attributes:
        path: its file.
        lesson: what lessons.toml says of it.
        notebook: its content.
        library: public functions and classes of the library, name to module.
    """

    path: Path
    lesson: Lesson
    notebook: Any
    library: Mapping[str, str]

    @property
    def code(self) -> list[Cell]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @property
    def outputs(self) -> Iterator[tuple[Cell, Any]]:
        return ((cell, output) for cell in self.code for output in cell.outputs)


def problems(path: Path, lesson: Lesson, library: Mapping[str, str]) -> list[str]:
    """What a lesson's notebook does against the conventions; nothing, where it keeps them all.

    Args:
        path: the notebook.
        lesson: what lessons.toml says of it.
        library: what `definitions.library_names` gives.
    """
    try:
        page = Page(path, lesson, reads(path.read_text(encoding="utf-8")), library)
    except OSError as error:
        return [f"{path.name} cannot be read: {error.strerror or error}"]
    except (NotJSONError, UnicodeDecodeError, nbformat.ValidationError) as error:
        return [f"{path.name} is not a notebook: {error}"]
    # Every other rule reads cells, which a notebook without the right form may not have.
    found = list(_form(page)) or [message for rule in RULES for message in rule(page)]
    return [f"{path.name}: {message}" for message in found]


def repeated_definitions(paths: Iterable[Path]) -> list[str]:
    """Functions and classes that two lessons define: they belong into the library, where both can use them."""
    first: dict[str, str] = {}
    messages = []
    for path in paths:
        cells = [cell for cell in reads(path.read_text(encoding="utf-8")).cells if cell.cell_type == "code"]
        for name in dict.fromkeys(name for cell in cells for name in defined(statements(cell.source))):
            if name in first:
                messages.append(f"{path.name} and {first[name]} both define {name}; define it once, in the library")
            first.setdefault(name, path.name)
    return messages


def _form(page: Page) -> Iterator[str]:
    notebook = page.notebook
    version = (notebook.get("nbformat"), notebook.get("nbformat_minor"))
    if version != (4, 5):
        yield f"is nbformat {version[0]}.{version[1]}; expected 4.5, whose cells have ids"
        return
    cells = notebook.get("cells", [])
    for number, cell in enumerate(cells, 1):
        if not cell.get("id"):
            yield f"cell number {number} has no id; give it one, l{page.lesson.id}-what-it-is-about"
    for name, times in Counter(cell.get("id") for cell in cells).items():
        if name and times > 1:
            yield f"cell {name}: {times} cells have this id; give each its own"
    ids = [cell.get("id") for cell in cells]
    if all(ids) and len(set(ids)) == len(ids):  # else nbformat would mend them, and warn
        try:
            nbformat.validate(notebook)
        except nbformat.ValidationError as error:
            yield f"is not a valid notebook: {str(error).splitlines()[0]}"


def _kernel(page: Page) -> Iterator[str]:
    name = page.notebook.metadata.get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"its kernelspec is {name!r}; expected 'python3', which everybody has"
    if "widgets" in page.notebook.metadata:
        yield "holds the state of widgets in its metadata; make it anew with `make lessons`, which keeps none"


def _ids(page: Page) -> Iterator[str]:
    for cell in page.notebook.cells:
        if not re.fullmatch(rf"l{page.lesson.id}(-[a-z0-9]+)+", cell.id):
            yield f"cell {cell.id}: expected an id of the form l{page.lesson.id}-what-it-is-about"


def _tags(page: Page) -> Iterator[str]:
    for cell in page.notebook.cells:
        for tag in cell.metadata.get("tags", []):
            if tag not in TAGS:
                yield f"cell {cell.id}: unknown tag {tag!r}; a lesson's tags are {', '.join(sorted(TAGS))}"


def _exercises(page: Page) -> Iterator[str]:
    stubs: dict[str, str] = {}
    unchecked: list[str] = []
    for cell in page.code:
        if _tagged(cell, "exercise"):
            unchecked.append(cell.id)
            names = defined(statements(cell.source))
            if not names:
                yield f"cell {cell.id}: an exercise defines no function; write the stub that a learner fills in"
            for name in names:
                if name in stubs:
                    yield f"cell {cell.id}: {name} is the exercise of cell {stubs[name]} already; keep one stub"
                stubs.setdefault(name, cell.id)
        elif _tagged(cell, "check") and unchecked:
            unchecked.pop()
    for cell_id in unchecked:
        yield f"cell {cell_id}: no check follows this exercise; add a cell tagged check after it"


def _sizes(page: Page) -> Iterator[str]:
    count, size = len(page.notebook.cells), page.path.stat().st_size
    if not CELLS[0] <= count <= CELLS[1]:
        yield f"has {count} cells; expected {CELLS[0]} to {CELLS[1]}"
    if size > BYTES:
        yield f"has {size // 1000} KB; expected at most {BYTES // 1000}: make its pictures fewer or smaller"
    for cell in page.code:
        lines = len(cell.source.splitlines())
        if lines > LINES:
            yield f"cell {cell.id}: {lines} lines of code; expected at most {LINES}: split it, or call the library"


def _counts(page: Page) -> Iterator[str]:
    for expected, cell in enumerate(page.code, 1):
        if cell.execution_count != expected:
            yield (
                f"cell {cell.id}: execution count {cell.execution_count}; expected {expected}, as in a run from top "
                "to bottom: make it anew with `make lessons`"
            )


def _contract(page: Page) -> Iterator[str]:
    showing = [cell for cell in page.code if cell.outputs]
    if len(showing) < OUTPUTS:
        yield f"{len(showing)} cells show an output; expected at least {OUTPUTS}: make it anew with `make lessons`"
    if not any("image/png" in output.get("data", {}) for _, output in page.outputs):
        yield "shows no picture; expected at least one PNG"
    held = [cell for cell in page.code if _asserts(cell) or _tagged(cell, "check", "nbval-check-output")]
    if len(held) < CONTRACTS:
        yield (
            f"{len(held)} cells hold what they show (by an assert, or tagged check or nbval-check-output); "
            f"expected at least {CONTRACTS}"
        )
    for cell in page.code:
        tags = sorted(SHOWING.intersection(cell.metadata.get("tags", [])))
        if tags and not cell.outputs:
            yield f"cell {cell.id}: tagged {tags[0]}, and shows nothing; make it anew with `make lessons`"


def _shown(page: Page) -> Iterator[str]:
    for cell, output in page.outputs:
        data = output.get("data", {})
        if output.output_type == "error":
            yield f"cell {cell.id}: ends in {output.ename}; a lesson runs without errors"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"cell {cell.id}: writes to stderr; avoid or silence what warns"
        if "image/svg+xml" in data:
            yield f"cell {cell.id}: shows an SVG; show a PNG, which every reader draws alike"
        if WIDGET_VIEW in data:
            yield f"cell {cell.id}: keeps a live view of a widget; make it anew with `make lessons`, which drops it"
        if "image/png" in data and not str(output.metadata.get("image/png", {}).get("alt", "")).strip():
            yield f"cell {cell.id}: its picture has no alternative text; give it one, for those who cannot see it"


def _words(page: Page) -> Iterator[str]:
    for cell in page.notebook.cells:
        path = texts.machine_path(cell.source)
        if path:
            yield f"cell {cell.id}: names the path {path}, of one machine; use a relative or a temporary one"
    for cell, output in page.outputs:
        shown = texts.of_output(output)
        path, address = texts.machine_path(shown), texts.address(shown)
        timing = texts.timing(texts.of_output(output, markup=False))
        if path:
            yield f"cell {cell.id}: shows the path {path}, of one machine; show the file's name only"
        if address:
            yield f"cell {cell.id}: shows the address {address}, another one at every run; show something else"
        if timing and cell is not page.code[0]:
            yield f"cell {cell.id}: shows the timing {timing!r}, another one at every run; show a ratio or nothing"


def _plain_python(page: Page) -> Iterator[str]:
    for cell in page.code:
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            yield f"cell {cell.id}: is not plain Python ({error.msg}); magics, % and !, have no place in a lesson"
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                yield f"cell {cell.id}: imports * from {node.module}; name what is used"
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
                yield f"cell {cell.id}: touches sys.path; what a lesson imports is installed"


def _start(page: Page) -> Iterator[str]:
    last = ["from dfqlab import lab", f'lab.start("{page.lesson.id}")']
    if not page.code:
        yield "has no code"
        return
    cell = page.code[0]
    lines = [line for line in cell.source.splitlines() if line.strip()]
    above = statements("\n".join(lines[:-2]))
    if lines[-2:] != last or not all(isinstance(node, ast.Import | ast.ImportFrom) for node in above):
        yield f"cell {cell.id}: the first code cell is imports, if any, and then `{last[0]}` and `{last[1]}`"


def _definitions(page: Page) -> Iterator[str]:
    for cell in page.code:
        if _tagged(cell, "exercise"):
            continue
        for name in defined(statements(cell.source)):
            if name in page.library:
                yield f"cell {cell.id}: defines {name}, which the library has; import it from {page.library[name]}"


def _sections(page: Page) -> Iterator[str]:
    prose = [cell.source for cell in page.notebook.cells if cell.cell_type == "markdown"]
    first = prose[0].split("\n")[0] if prose else ""
    if not first.startswith("# ") or page.lesson.title not in first:
        yield f"its first prose is {first!r}; expected a heading, # ... {page.lesson.title}"
    headings = [line for source in prose for line in source.split("\n") if re.match(r"#{2,} ", line)]
    if not headings or headings[-1].strip() != "## Sources":
        yield "its last section is not `## Sources`; end with where it all comes from"
    if not any("cannot" in heading.lower() for heading in headings):
        yield "no section says what the method cannot do; add one, such as `## What this cannot do`"


RULES: tuple[Callable[[Page], Iterator[str]], ...] = (
    _kernel, _ids, _tags, _exercises, _sizes, _counts, _contract, _shown, _words, _plain_python, _start, _definitions,
    _sections,
)  # fmt: skip


def _tagged(cell: Cell, *tags: str) -> bool:
    return not set(tags).isdisjoint(cell.metadata.get("tags", []))


def _asserts(cell: Cell) -> bool:
    return any(isinstance(node, ast.Assert) for part in statements(cell.source) for node in ast.walk(part))
