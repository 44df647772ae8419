"""A teacher as a torch.fx graph, or an error that says which line stands in the way."""

import inspect
import linecache
import os
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import fx, nn

from dfqlab.errors import TeacherError
from dfqlab.teachers.teacher import Teacher

# Whose lines are never to blame; with the separator, because torchvision is no part of torch.
_MACHINERY = (str(Path(torch.__file__).parent) + os.sep, __file__)


def trace(teacher: Teacher) -> fx.GraphModule:
    """The teacher's network as a graph; its modules are the teacher's own under the same paths, not copies.

    `teacher.leaves` are not entered. A BatchNorm that a module of its own kind computes by `F.batch_norm`, as timm's do
    together with their activation, stands in the graph as the plain layer it is; assertions on shapes are left out.

    Raises:
        TeacherError: torch.fx cannot follow the network; names the line, and the submodule to put into `leaves`.
    """
    tracer = _Tracer(frozenset(teacher.leaves))
    try:
        graph = tracer.trace(teacher.module)
    except Exception as error:
        raise TeacherError(_explain(teacher, tracer, error)) from error
    graph_module = fx.GraphModule(tracer.root, graph, class_name=type(teacher.module).__name__).eval()
    for node in graph.find_nodes(op="call_function", target=torch._assert):
        _erase(node)
    _spell_out_batch_norms(graph_module, teacher)
    graph_module.recompile()
    return graph_module


def _spell_out_batch_norms(graph_module: fx.GraphModule, teacher: Teacher) -> None:
    for node in graph_module.graph.find_nodes(op="call_function", target=F.batch_norm):
        given = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs).arguments
        path, _, name = str(given["running_mean"].target if given["running_mean"] else "").rpartition(".")
        if path not in teacher.batch_norms or name != "running_mean" or given.get("training", False) is not False:
            continue
        own = teacher.module.get_submodule(path)
        kind = next((k for k in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) if isinstance(own, k)), None)
        if kind is None:
            continue
        with torch.device("meta"):
            norm = kind(own.num_features, own.eps)  # type: ignore[arg-type]
        for tensor in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(norm, tensor, getattr(own, tensor))
        replace_submodule(graph_module, path, norm.eval())
        with graph_module.graph.inserting_before(node):
            call = graph_module.graph.call_module(path, (given["input"],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        _erase(node)


def replace_submodule(graph_module: fx.GraphModule, path: str, module: nn.Module) -> None:
    """Put a module in another's place, above what stood below that one: an activation inside a BatchNorm stays."""
    for name, child in graph_module.get_submodule(path).named_children():
        module.add_module(name, child)
    graph_module.set_submodule(path, module)


def _erase(node: fx.Node) -> None:
    """Erase a node that nobody reads, and what only it has read."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        if not source.users and source.op != "placeholder":
            _erase(source)


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
