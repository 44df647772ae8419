"""How a job is executed, decided by the job alone, and where its randomness comes from."""

import hashlib
import math
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dfqlab.teachers import Teacher

BATCH_SIZE = 128
_WORTH_COMPILING = 2e10  # below, compiling costs more time than it saves


@dataclass(frozen=True)
class Plan:
    """How a job is executed. The same plan, seed and machine give the same bytes.

    Attributes:
        batch_size: images optimised together, the last batch may be smaller.
        dtype: of the arithmetic.
        compiled: whether torch.compile is used.
        torch: its version; another one may give other bytes.
        note: why a job that is worth compiling is not compiled, or "".
    """

    batch_size: int
    dtype: str
    compiled: bool
    torch: str
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The plan as one line for the terminal."""
        how = "compiled" if self.compiled else "not compiled" + (f" ({self.note})" if self.note else "")
        return f"batches of {self.batch_size}, {self.dtype}, {how}, torch {self.torch}"


def plan_for(teachers: Sequence[Teacher], *, steps: int) -> Plan:
    """The plan of an inversion: a function of teachers and steps, never of free memory, load or how many images."""
    weights = sum(p.numel() for teacher in teachers for p in teacher.module.parameters())
    pixels = math.prod(teachers[0].input.size[1:])
    worth_it = weights * pixels * steps > _WORTH_COMPILING  # a proxy for arithmetic
    missing = missing_for_compile() if worth_it else ""
    return Plan(BATCH_SIZE, "float32", worth_it and not missing, torch.__version__, missing)


def generator_for(seed: int, index: int) -> torch.Generator:
    """The randomness of batch `index` of a job: any batch can be made without those before it."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def missing_for_compile() -> str:
    """What torch.compile would need on a CPU and does not find."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "torch.compile needs a C++ compiler, and there is none"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "torch.compile needs Python's headers, and they are not installed"
    return ""
