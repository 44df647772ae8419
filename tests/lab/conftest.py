"""Panels remember the job that runs in this kernel: each test begins without one, and leaves none behind."""

from collections.abc import Iterator

import pytest

from dfqlab.lab import panels


@pytest.fixture(autouse=True)
def no_job_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(panels, "_last_job", None)
    yield
    left = panels._last_job
    if left is not None and left.state != "ready":
        left.cancel()
        assert left.join(20), f"a test left a job that does not end: {left.sentence}"
