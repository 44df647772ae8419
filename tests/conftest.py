"""What every test may use: the folder of real data, shape checks that step aside, skips that nobody overlooks.

Nothing is seeded here: a test draws from a generator of its own.
"""

import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

# Every annotation of ours is checked at every call. By beartype, because typeguard since version 3 reads a shape as
# Python and stops at "*shape"; with the numeric tower, because an int is welcome where a float is asked for. What it
# wants in return: a Protocol in a signature is @runtime_checkable.
jaxtyping.install_import_hook(
    ["dfqlab", "dfqlab_kernels"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


class Unchecked:
    """Imports Triton programs as they are: @triton.jit reads the globals of the very function that it is given."""

    @staticmethod
    def find_spec(name: str, *where: Any) -> ModuleSpec | None:
        return PathFinder.find_spec(name, *where) if name.startswith("dfqlab_kernels.programs.") else None


sys.meta_path.insert(0, Unchecked)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that `$DFQLAB_DATA` names."""
    name = os.environ.get("DFQLAB_DATA")
    if not name:
        pytest.skip("DFQLAB_DATA is not set: no real data to judge with")
    path = Path(name)
    if not path.is_dir():
        pytest.fail(f"DFQLAB_DATA={name} is not a folder")
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """`@pytest.mark.traces` covers the fixtures of a test too: torch cannot follow a checked function."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", before or item.get_closest_marker("traces") is not None)
    try:
        return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI", "").lower() in ("1", "true"):
        # A plugin of its own, because hooks of this file would not see what is skipped outside tests/.
        config.pluginmanager.register(SkipGuard(Path(__file__).with_name("expected_skips.txt")))


class SkipGuard:
    """Fails a run in which something was skipped for a reason that is not on the list."""

    def __init__(self, expected: Path) -> None:
        lines = (line.strip() for line in expected.read_text(encoding="utf-8").splitlines())
        self.patterns = [line for line in lines if line and not line.startswith("#")]
        self.surprises: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.judge(report)

    def judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(fnmatchcase(reason, pattern) for pattern in self.patterns):
            self.surprises.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.surprises and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.surprises:
            terminalreporter.section("skipped, but not on tests/expected_skips.txt", red=True)
            for surprise in self.surprises:
                terminalreporter.line(surprise)
