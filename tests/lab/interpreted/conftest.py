"""Tests that launch the kernels of lessons, which only Triton's interpreter runs on a CPU: TRITON_INTERPRET=1.

A process is interpreted or not from its first import on, so these have a process of their own (`make test`). In an
ordinary run nothing here is collected.
"""

import os
from pathlib import Path

from dfqlab_kernels.backends import triton_obstacle


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    runs = os.environ.get("TRITON_INTERPRET") == "1" and not triton_obstacle("cpu")
    return None if runs else True
