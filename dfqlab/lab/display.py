"""How a lesson shows things: a figure with the words for it, and the library's own code."""

import ast
import html
import inspect
import textwrap
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from dfqlab.errors import ConfigurationError
from dfqlab.figures import to_png
from dfqlab.figures.style import DPI


@dataclass(frozen=True)
class Drawing:
    """A figure and the sentence that says the same in words: the readout of a widget, and its alternative text."""

    figure: Figure
    sentence: str

    @property
    def html(self) -> str:
        """The picture, in its own size, over its sentence; a screen reader hears the sentence when it changes."""
        width, height = (round(DPI * inches) for inches in self.figure.get_size_inches())
        picture = b64encode(to_png(self.figure)).decode("ascii")
        sentence = html.escape(self.sentence)
        return (
            f'<img src="data:image/png;base64,{picture}" width="{width}" height="{height}" alt="{sentence}" '
            'style="display:block;max-width:100%;height:auto;object-fit:contain">'
            f'<p role="status" aria-live="polite" style="margin:2px 8px">{sentence}</p>'
        )

    def show(self) -> None:
        """Show both under a cell, the sentence as text: not every page reads a picture's alternative text."""
        show(self.figure, self.sentence)
        print(self.sentence)


def show(figure: Figure, alt: str) -> None:
    """Show a figure under a cell.

    Args:
        figure: any of `dfqlab.figures`, or your own.
        alt: what it shows, in a sentence: for readers who do not see it.

    Raises:
        ConfigurationError: no words.
    """
    from IPython.display import display

    if not alt.strip():
        raise ConfigurationError("a figure needs words for readers who do not see it: lab.show(figure, alt)")
    # As a mime bundle: IPython's own Image would say its size, and draws its text as an object's address.
    bundle = {"image/png": b64encode(to_png(figure)).decode("ascii"), "text/plain": alt}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})  # type: ignore[no-untyped-call]


def source(what: Callable[..., Any] | type) -> None:
    """Show the library's own code of a function or class, its docstring cut to the first line.

    Raises:
        ConfigurationError: something that was not written in Python.
    """
    from IPython.display import display

    try:
        code = textwrap.dedent(inspect.getsource(what))
    except (TypeError, OSError) as error:
        raise ConfigurationError(f"{what!r} has no Python source to show: {error}") from error
    name, code = f"{what.__module__}.{what.__qualname__}", _with_short_docstrings(code)
    bundle = {"text/markdown": f"`{name}`\n\n```python\n{code}\n```", "text/plain": f"# {name}\n{code}"}
    display(bundle, raw=True)  # type: ignore[no-untyped-call]


def _with_short_docstrings(code: str) -> str:
    lines = code.rstrip().split("\n")
    for node in sorted(ast.walk(ast.parse(code)), key=lambda n: -getattr(n, "lineno", 0)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        words, docstring = ast.get_docstring(node), node.body[0]
        first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
        if words and last > first:
            lines[first:last] = [lines[first][: docstring.col_offset] + _quoted(words.split("\n")[0])]
    return "\n".join(lines)


def _quoted(words: str) -> str:
    plain = "\\" not in words and '"""' not in words and not words.endswith('"')
    return f'"""{words}"""' if plain else repr(words)
