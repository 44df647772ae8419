"""Files that end in _on_gpu.py are collected where there is a GPU."""

from pathlib import Path

import torch


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path.name.endswith("_on_gpu.py") and not torch.cuda.is_available() else None
