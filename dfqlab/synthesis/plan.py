"""How a job is executed, decided by the job alone, and where its randomness comes from."""

import hashlib
import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfqlab.errors import TeacherError
from dfqlab.statistics import ObservedTeacher
from dfqlab.teachers import Teacher

BATCH_SIZE = 128
_WORTH_COMPILING = 1e11  # operations a BatchNorm layer; below, compiling costs more time than it saves (measured)


@dataclass(frozen=True)
class Plan:
    """How a job is executed. The same plan, seed and machine give the same bytes.

    Attributes:
        batch_size: images optimised together.
        dtype: of convolutions and activations; statistics and images are float32 whatever it is.
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


def plan_for(teachers: Sequence[Teacher], *, steps: int, count: int) -> Plan:
    """The plan of an inversion: a function of teachers, steps, images and kind of CPU, never of free memory or load.

    A job is compiled where that takes less time than it saves. A compiled one runs in bfloat16 where that is faster: on
    a CPU with instructions for it, and where no teacher has grouped convolutions, which bfloat16 makes slower.
    """
    batch_size = min(BATCH_SIZE, count)
    images = steps * batch_size * -(-count // batch_size)
    worth_it = any(operations(t) * images / max(1, len(t.batch_norms)) > _WORTH_COMPILING for t in teachers)
    missing = missing_for_compile() if worth_it else ""
    compiled = worth_it and not missing
    half = compiled and all(_faster_in_bfloat16(teacher) for teacher in teachers)
    return Plan(batch_size, "bfloat16" if half else "float32", compiled, torch.__version__, missing)


def generator_for(seed: int, index: int) -> torch.Generator:
    """The randomness of batch `index` of a job: any batch can be made without those before it."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def operations(teacher: Teacher) -> int:
    """Multiplications and additions that one image takes in matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode  # late: it loads Triton, where there is one

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher(torch.zeros(1, *teacher.input.size, device=teacher.device))
    return int(counter.get_total_flops())


def missing_for_compile() -> str:
    """What torch.compile would need on a CPU and does not find."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "torch.compile needs a C++ compiler, and there is none"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "torch.compile needs Python's headers, and they are not installed"
    return ""


def _faster_in_bfloat16(teacher: Teacher) -> bool:
    groups = [module.groups for module in teacher.module.modules() if isinstance(module, nn.Conv2d)]
    if teacher.device.type != "cpu" or not groups or max(groups) > 1:
        return False
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.13 may not know
    return bool(has.get("avx512_bf16") or has.get("amx_bf16")) and _runs_in_bfloat16(teacher)


def _runs_in_bfloat16(teacher: Teacher) -> bool:
    """Whether the network, rewritten, takes bfloat16: one that computes with buffers of its own may not."""
    try:
        with torch.no_grad():
            ObservedTeacher(teacher, "batch", torch.bfloat16)(torch.zeros(2, *teacher.input.size))
    except (TeacherError, RuntimeError):
        return False
    return True
