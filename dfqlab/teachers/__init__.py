"""What one starts from: a trained classifier, and where to get one."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfqlab.teachers.loading import load_teacher
    from dfqlab.teachers.teacher import InputSpec, Teacher
    from dfqlab.teachers.tracing import trace

__all__ = ["InputSpec", "Teacher", "load_teacher", "trace"]

_HOME = {"InputSpec": "teacher", "Teacher": "teacher", "load_teacher": "loading", "trace": "tracing"}


def __getattr__(name: str) -> Any:
    """Load a public name where it is first used (PEP 562): `dfqlab.teachers.names` is read without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
