"""How a job is executed, decided by the job alone, and where its randomness comes from."""

import hashlib
import shutil
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfqlab.errors import TeacherError
from dfqlab.statistics import ObservedTeacher
from dfqlab.teachers import Teacher

BATCH_SIZE = 128
_WORTH_COMPILING = 4e8  # elements that a job brings through one BatchNorm layer: what compiling that layer costs
_WORTH_CAPTURING = 20  # batches that a network sees: capturing one costs four


@dataclass(frozen=True)
class Execution:
    """How one network of a job is executed.

    Attributes:
        dtype: of convolutions and activations; statistics and images are float32 whatever it is.
        compiled: whether torch.compile is used.
        note: why one that is worth compiling or capturing is not, or "".
        captured: whether a GPU replays loss and gradient as CUDA graphs.
    """

    dtype: str
    compiled: bool
    note: str = ""
    captured: bool = False

    @property
    def sentence(self) -> str:
        """As a few words."""
        how = "a CUDA graph" if self.captured else "compiled" if self.compiled else "not compiled"
        return f"{self.dtype}, {how}{self.note and f' ({self.note})'}"


@dataclass(frozen=True)
class Plan:
    """How a job is executed. The same plan, seed and machine give the same bytes.

    On a GPU they do as far as torch's gradients there have an order: those of mixed, resized and cropped images have
    none, nor have all of cuDNN's.

    Attributes:
        batch_size: images optimised together.
        device: "cpu" or "cuda".
        torch: its version; another one may give other bytes.
        networks: how each is executed, in the order of the teachers.
    """

    batch_size: int
    device: str
    torch: str
    networks: tuple[Execution, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON gives them back."""
        return asdict(self) | {"networks": [asdict(network) for network in self.networks]}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Plan":
        """The plan that `as_dict` wrote."""
        return cls(**{**facts, "networks": tuple(Execution(**network) for network in facts["networks"])})

    @property
    def sentence(self) -> str:
        """The plan as one line for the terminal; where networks differ, how many are executed which way."""
        alike = Counter(network.sentence for network in self.networks)
        several = len(alike) > 1
        how = "; ".join(f"{n} of {len(self.networks)} networks {how}" if several else how for how, n in alike.items())
        return f"batches of {self.batch_size}, {how}, torch {self.torch}"


def plan_for(teachers: Sequence[Teacher], *, steps: int, count: int, teachers_per_batch: int | None = None) -> Plan:
    """The plan of an inversion: a function of teachers, steps, images and kind of CPU, never of free memory or load.

    On a CPU a network is compiled where that takes less time than it saves. What it saves is passes over what goes
    through BatchNorm layers; what it takes goes with their number. A compiled one runs in bfloat16 where that is
    faster: on a CPU with instructions for it, and without grouped convolutions, which bfloat16 makes slower. On a GPU
    loss and gradient are captured as CUDA graphs: launching the kernels of a small network one by one takes longer than
    they take.
    """
    batch_size = min(BATCH_SIZE, count)
    images = steps * batch_size * -(-count // batch_size)
    share = min(1.0, (teachers_per_batch or len(teachers)) / len(teachers))  # of the batches a network sees
    networks = tuple(_execution(teacher, images * share, images * share / batch_size) for teacher in teachers)
    return Plan(batch_size, teachers[0].device.type, torch.__version__, networks)


def _execution(teacher: Teacher, images: float, batches: float) -> Execution:
    """How a network is executed that sees so many images in so many batches."""
    layers = max(1, len(teacher.batch_norms))
    if teacher.device.type == "cuda" and batches >= _WORTH_CAPTURING:
        return Execution("float32", compiled=False, captured=True)
    if teacher.device.type != "cpu" or images * elements(teacher) / layers < _WORTH_COMPILING:
        return Execution("float32", compiled=False)
    if missing := missing_for_compile():
        return Execution("float32", compiled=False, note=missing)
    return Execution("bfloat16" if _faster_in_bfloat16(teacher) else "float32", compiled=True)


def generator_for(seed: int, index: int) -> torch.Generator:
    """The randomness of batch `index` of a job: any batch can be made without those before it."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def elements(teacher: Teacher) -> int:
    """How many numbers of one image go through BatchNorm layers."""
    found: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0].numel())

    handles = [teacher.module.get_submodule(name).register_forward_pre_hook(count) for name in teacher.batch_norms]
    try:
        with torch.no_grad():
            teacher(torch.zeros(1, *teacher.input.size, device=teacher.device))
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)


def missing_for_compile() -> str:
    """What torch.compile would need on a CPU and does not find."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "torch.compile needs a C++ compiler, and there is none"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "torch.compile needs Python's headers, and they are not installed"
    return ""


def _faster_in_bfloat16(teacher: Teacher) -> bool:
    groups = [module.groups for module in teacher.module.modules() if isinstance(module, nn.Conv2d)]
    if not groups or max(groups) > 1:
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
