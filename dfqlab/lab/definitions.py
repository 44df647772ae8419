"""What Python code defines, read and not run; and what the library defines, so that lessons do not define it again."""

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("dfqlab", "dfqlab_kernels")


def library_names() -> dict[str, str]:
    """Every public function and class that a module of the library defines: its name, and one module that does.

    >>> library_names()["Lesson"]
    'dfqlab.lessons'
    """
    names: dict[str, str] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, package  # this very package, and the one that it is installed with
        for root in map(Path, spec.submodule_search_locations or ()):
            files = [file.relative_to(root) for file in root.rglob("*.py")]
            # Of two that share a name the last stays: the first in the alphabet, and the command line's only alone.
            for file in sorted(files, key=lambda file: (file.parts[0] == "cli", file), reverse=True):
                inside = file.with_suffix("").parts
                module = ".".join((package, *(part for part in inside if part != "__init__")))
                names.update(dict.fromkeys(defined(statements((root / file).read_text(encoding="utf-8"))), module))
    return {name: module for name, module in names.items() if not name.startswith("_")}


def statements(source: str) -> list[ast.stmt]:
    """The statements of some code; none, where it is not plain Python."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def defined(body: Iterable[ast.AST]) -> list[str]:
    """Names of functions and classes that statements define for the whole module, under an `if` or a `with` too.

    >>> defined(statements("if True:\\n    def f():\\n        def inner(): ...\\nclass C: ..."))
    ['f', 'C']
    """
    names = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            names.extend(defined(ast.iter_child_nodes(node)))
    return names
