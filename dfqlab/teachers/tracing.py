"""A teacher as a torch.fx graph, or an error that says which line stands in the way."""

import linecache
import os
import traceback
from pathlib import Path

import torch
from torch import fx, nn

from dfqlab.errors import TeacherError
from dfqlab.teachers.teacher import Teacher

# Whose lines are never to blame; with the separator, because torchvision is no part of torch.
_MACHINERY = (str(Path(torch.__file__).parent) + os.sep, __file__)


def trace(teacher: Teacher) -> fx.GraphModule:
    """The teacher's network as a graph; its modules are the teacher's own under the same paths, not copies.

    `teacher.leaves` are not entered.

    Raises:
        TeacherError: torch.fx cannot follow the network; names the line, and the submodule to put into `leaves`.
    """
    tracer = _Tracer(frozenset(teacher.leaves))
    try:
        graph = tracer.trace(teacher.module)
    except Exception as error:
        raise TeacherError(_explain(teacher, tracer, error)) from error
    return fx.GraphModule(tracer.root, graph, class_name=type(teacher.module).__name__).eval()


class _Tracer(fx.Tracer):
    def __init__(self, leaves: frozenset[str]) -> None:
        super().__init__()
        self.leaves = leaves
        self.inside: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m, forward, args, kwargs):  # type: ignore[no-untyped-def]
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # kept where an exception passes: the path of the culprit
        return result


def _explain(teacher: Teacher, tracer: _Tracer, error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_MACHINERY)]
    where = ""
    if frames:
        line = (frames[-1].line or linecache.getline(frames[-1].filename, frames[-1].lineno or 0)).strip()
        where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}: `{line}`"
    if tracer.inside:
        advice = f"Pass leaves=[{tracer.inside[-1]!r}] to keep that submodule float and opaque."
    else:
        advice = "Move that line into a submodule and name it in leaves=[...], which keeps it float and opaque."
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"torch.fx cannot trace {teacher.name!r}{where} ({reason}). {advice}"
