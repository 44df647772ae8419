"""What a lesson shows: figures with words, and code that is the library's own."""

import ast
import base64
import functools
import html
import inspect
import io
import re
import textwrap
from html.parser import HTMLParser
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import CapturedIO, RichOutput, capture_output
from matplotlib.figure import Figure
from PIL import Image

import dfqlab_kernels
from dfqlab import figures
from dfqlab.compression.ranges import widened
from dfqlab.errors import ConfigurationError
from dfqlab.lab import texts
from dfqlab.lab.display import Drawing, _with_short_docstrings, show, source
from dfqlab.lab.job import Job
from dfqlab.measures import Interval


@pytest.fixture(autouse=True)
def shell() -> InteractiveShell:
    return InteractiveShell.instance()


def figure() -> Figure:
    return figures.number_line(0.83, scale=0.5, zero_point=3, quant_min=0, quant_max=7)


def shown(*calls: Any) -> list[RichOutput]:
    with capture_output() as captured:
        assert isinstance(captured, CapturedIO)
        for call in calls:
            call()
    assert (captured.stdout, captured.stderr) == ("", "")
    return list(captured.outputs)


def code_of(what: Any) -> str:
    (output,) = shown(lambda: source(what))
    found = re.fullmatch(r"`([\w.<>]+)`\n\n```python\n(.*)\n```", output.data["text/markdown"], re.DOTALL)
    assert found is not None
    assert output.data["text/plain"] == f"# {found[1]}\n{found[2]}"
    return found[2]


class Images(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_figure_is_shown_as_a_png_with_its_words() -> None:
    (output,) = shown(lambda: show(figure(), "A ruler, and 0.83 on it."))
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.data["text/plain"] == "A ruler, and 0.83 on it."
    assert output.metadata == {"image/png": {"alt": "A ruler, and 0.83 on it."}}
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as picture:
        assert picture.format == "PNG"
        assert picture.width == 814


@pytest.mark.parametrize("alt", ["", " ", "\n\t"])
def test_a_figure_without_words_is_refused(alt: str) -> None:
    with pytest.raises(ConfigurationError, match="needs words"):
        show(figure(), alt)


def test_a_drawing_stands_over_its_sentence_in_its_own_size() -> None:
    page = Images(Drawing(figure(), 'Clipped: 3 % of <w> & "b"').html)
    (image,) = page.found
    assert image["alt"] == page.text == 'Clipped: 3 % of <w> & "b"'
    assert (image["src"] or "").startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode((image["src"] or "").partition(",")[2]))) as picture:
        assert (image["width"], image["height"]) == tuple(map(str, picture.size))


def test_a_drawing_lets_no_markup_through() -> None:
    page = Drawing(figure(), '"><script>alert(1)</script>').html
    assert "<script" not in page
    assert html.escape('"><script>') in page


def test_a_screen_reader_hears_a_new_sentence() -> None:
    assert 'role="status" aria-live="polite"' in Drawing(figure(), "new").html


def test_source_is_the_code_that_runs_with_a_docstring_of_one_line() -> None:
    code = code_of(widened)
    assert code.split("\n")[:2] == [
        'def widened(seen: tuple[float, float], x: Float[Tensor, "*shape"]) -> tuple[float, float]:',
        '    """The smallest range that holds the range seen so far and every value of x; NaN where x holds one."""',
    ]
    assert code.endswith("return min(low, seen[0]), max(high, seen[1])")
    assert ">>>" not in code


def undecorated(what: Any) -> str:
    """The code without its docstrings, however it is laid out."""
    tree = ast.parse(what)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def everything_public() -> list[Any]:
    modules = [figures, dfqlab_kernels]
    found = [getattr(module, name) for module in modules for name in module.__all__]
    return [
        Drawing,
        Job,
        Interval,
        widened,
        source,
        *(it for it in found if inspect.isroutine(it) or inspect.isclass(it)),
    ]


@pytest.mark.parametrize("what", everything_public(), ids=lambda what: f"{what.__module__}.{what.__qualname__}")
def test_source_differs_from_the_file_in_docstrings_only(what: Any) -> None:
    code = code_of(what)
    assert undecorated(code) == undecorated(textwrap.dedent(inspect.getsource(what)))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (words := ast.get_docstring(node)):
            assert "\n" not in words
    assert texts.machine_path(code) is None


def test_source_shows_the_decorator_and_sees_through_it() -> None:
    assert code_of(figures.number_line).startswith("@style()\ndef number_line(")


def test_source_shows_a_method_and_a_static_one() -> None:
    assert code_of(Job.cancel).startswith("def cancel(self) -> None:")
    assert code_of(Drawing.html.fget).startswith("@property\ndef html(self) -> str:")


class Awkward:
    """A class whose docstring ends in a "quote"

    and goes on.
    """

    def raw(self) -> str:
        r"""Matches \d+

        in raw text.
        """
        return r"\d+"

    def late(self) -> int:
        """
        The words stand on the second line.

        And more of them.
        """

        def inner() -> int:
            """An inner one.

            Of three lines.
            """
            return 1

        return inner()

    async def wait(self) -> None:
        """Waits.

        For nothing.
        """


def test_docstrings_of_every_form_become_one_line() -> None:
    node = ast.parse(code_of(Awkward)).body[0]
    assert isinstance(node, ast.ClassDef)
    assert ast.get_docstring(node) == 'A class whose docstring ends in a "quote"'
    said = {
        part.name: ast.get_docstring(part)
        for part in ast.walk(node)
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert said == {
        "raw": r"Matches \d+",
        "late": "The words stand on the second line.",
        "inner": "An inner one.",
        "wait": "Waits.",
    }
    assert ast.unparse(node).count("return") == 3


def test_a_docstring_beside_its_def_leaves_the_def() -> None:
    short = _with_short_docstrings('def f(): """One.\n\n    Two."""\nx = 1')
    assert short == 'def f(): """One."""\nx = 1'


def test_source_follows_a_function_that_wraps_another() -> None:
    @functools.wraps(widened)
    def wrapped(*args: Any) -> Any:
        return widened(*args)

    assert code_of(wrapped) == code_of(widened)


@pytest.mark.parametrize("what", [len, int, functools.partial(widened, (0.0, 0.0))])
def test_what_was_not_written_in_python_is_refused(what: Any) -> None:
    with pytest.raises(ConfigurationError, match="no Python source to show"):
        source(what)
