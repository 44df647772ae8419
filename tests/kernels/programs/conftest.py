"""Tests that launch Triton programs: compiled where there is a GPU, interpreted where TRITON_INTERPRET=1 was set.

A process is one or the other from its first import on, so the interpreted ones have one of their own (`make test`).
In an ordinary run without a GPU nothing here is collected.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dfqlab_kernels import backend
from dfqlab_kernels.backends import triton_obstacle

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    runs = not collection_path.name.endswith("_on_gpu.py") if INTERPRETED else torch.cuda.is_available()
    runs &= INTERPRETED or collection_path.name not in ("test_trace.py", "test_traffic.py")
    return None if runs and not triton_obstacle(DEVICE) else True


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with backend("triton"):
        yield


@pytest.fixture
def device() -> torch.device:
    """Where the tensors of a test belong: the CPU when interpreted, else the GPU."""
    return torch.device(DEVICE)


@pytest.fixture
def generator() -> torch.Generator:
    """Randomness of its own for every test, on the CPU: the same numbers everywhere."""
    return torch.Generator().manual_seed(0)
