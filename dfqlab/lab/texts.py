"""Words that a committed lesson does not show, because another machine or another run has others."""

import json
import re
from typing import Any

_MACHINE_PATH = re.compile(
    r"(?<![\w/.:~-])/(?:home|root|tmp|Users|private|var|opt|usr|mnt|media|srv|work|workspace|content)/[^\s'\"`)>]*"
    r"|(?<![\w/.:~-])/(?:home|root|tmp|Users|work)\b(?![\w/-])"
    r"|\b[A-Za-z]:\\{1,2}[^\s'\"`)>]*"
)
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{7,}\b")
_TIMING = re.compile(
    r"(?<![\w.])\d+(?:[.,]\d+)?(?:e[+-]?\d+)?\s?"
    r"(?:[mµun]s|s|secs?|seconds?|milliseconds?|microseconds?|minutes?|hours?)\b(?![/²])"
)
_MARKUP = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL)


def of_output(output: Any, *, markup: bool = True) -> str:
    """All that an output of a notebook says in words: streams, text and pages, with their markup or without; no images.

    >>> of_output({"data": {"text/html": "<b style='transition: 0.3s'>W4</b>", "image/png": "iVBORw0"}}, markup=False)
    ' W4 '
    """
    said = [output["text"]] if "text" in output else []
    for kind, content in output.get("data", {}).items():
        if kind.startswith("image/"):
            continue
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        said.append(text if markup or kind != "text/html" else _MARKUP.sub(" ", text))
    return "\n".join(said)


def machine_path(text: str) -> str | None:
    """The first absolute path in a text that only some machine has.

    >>> machine_path("saved /home/ada/model.onnx"), machine_path("see https://example.org/home/page")
    ('/home/ada/model.onnx', None)
    """
    return _first(_MACHINE_PATH, text)


def address(text: str) -> str | None:
    """The first address of an object in memory.

    >>> address("<object at 0x7f3a5c0d1e80>")
    '0x7f3a5c0d1e80'
    """
    return _first(_ADDRESS, text)


def timing(text: str) -> str | None:
    """The first duration in a text.

    >>> timing("trained in 1.2 s"), timing("3 seconds"), timing("4 images"), timing("40 steps")
    ('1.2 s', '3 seconds', None, None)
    """
    return _first(_TIMING, text)


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match.group() if match else None
