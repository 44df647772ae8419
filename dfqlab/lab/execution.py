"""Run a notebook from top to bottom in a new kernel, and take out of it what another run would have otherwise."""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from dfqlab.errors import DfqlabError
from dfqlab.lab.conventions import WIDGET_VIEW

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LAST_LINES = 6


class LessonError(DfqlabError, RuntimeError):
    """A lesson that does not run to its end, or does not keep the conventions."""


@dataclass(frozen=True)
class Executed:
    """A notebook with the outputs of one run, and the CPU seconds that its kernel and the kernel's children took."""

    notebook: Any
    seconds: float


class _ThisPython(KernelSpecManager):
    """Whatever name is asked for: the Python that runs now, not what a user's `python3` may start."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


def execute(path: Path, *, timeout: float = 120) -> Executed:
    """Run every cell of a notebook, in its own folder, in a kernel that knows no settings of the user.

    Args:
        path: the notebook; the file is read and not written.
        timeout: seconds that one cell may take.

    Raises:
        LessonError: the file is not a notebook; or a cell raises, takes too long, or takes the kernel down. Which, and
            the last lines of what it said, are in the message.
    """
    try:
        content = nbformat.read(path, as_version=4)
    except ValueError as error:
        raise LessonError(f"{path.name} is not a notebook: {error}") from error
    manager = AsyncKernelManager(kernel_spec_manager=_ThisPython())
    at, seconds = "", 0.0

    def before(cell: Any, cell_index: int) -> None:
        nonlocal at
        at = cell.id

    def after(cell: Any, cell_index: int, execute_reply: Any) -> None:
        nonlocal seconds
        assert isinstance(manager.provisioner, LocalProvisioner)  # _ThisPython asks for no other
        seconds = sum(psutil.Process(manager.provisioner.pid).cpu_times()[:4])

    client = NotebookClient(
        content,
        km=manager,
        timeout=timeout,
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=before,
        on_cell_executed=after,
    )
    with tempfile.TemporaryDirectory() as settings:
        try:
            notebook = client.execute(cleanup_kc=True, env={**os.environ, "IPYTHONDIR": settings})
        except CellExecutionError as error:
            lines = [line for line in _ANSI.sub("", error.traceback).splitlines() if line.strip()]
            said = "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])
            raise LessonError(f"{path.name}: cell {at} raises {error.ename}\n{said}") from error
        except CellTimeoutError as error:
            raise LessonError(f"{path.name}: cell {at} is not done after {timeout:g} s; make it shorter") from error
        except DeadKernelError as error:
            raise LessonError(f"{path.name}: the kernel died in cell {at}; was there enough memory?") from error
    return Executed(notebook, seconds)


def clean(notebook: Any) -> None:
    """Take out, in place, what differs from run to run or belongs to one machine, and what only a live page can use."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGET_VIEW, None)
        cell.outputs = _with_whole_streams([out for out in cell.outputs if out.get("data", True)])


def to_bytes(notebook: Any) -> bytes:
    """A notebook as a file's content: the same notebook, the same bytes."""
    return (str(nbformat.writes(notebook)).rstrip("\n") + "\n").encode()


def _with_whole_streams(outputs: list[Any]) -> list[Any]:
    """How many pieces a text comes in is a matter of chance."""
    whole: list[Any] = []
    for output in outputs:
        last = whole[-1] if whole else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            whole.append(output)
    return whole
