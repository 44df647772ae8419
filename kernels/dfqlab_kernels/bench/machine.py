"""Where a number was measured: device, versions, the code itself, and how fast memory is there."""

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["cpu", "cuda"]
DEVICE_VARIABLE, FOLDER_VARIABLE = "DFQLAB_BENCH_DEVICE", "DFQLAB_BENCH_RESULTS"
FOLDER = Path("kernels/bench/results")  # below the root of the repository, where commands are run


@dataclass(frozen=True)
class Machine:
    """A device and what runs on it.

    Attributes:
        kind: "cpu" or "cuda".
        name: of the device.
        facts: threads, or memory and multiprocessors.
        versions: of Python, torch and Triton.
        code: a digest of this package's source.
    """

    kind: Kind
    name: str
    facts: dict[str, Any]
    versions: dict[str, str]
    code: str

    @property
    def slug(self) -> str:
        """The name as a file can have it."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def gpu(self) -> bool:
        """Whether events, graphs and launches can be measured."""
        return self.kind == "cuda"

    def as_dict(self) -> dict[str, Any]:
        """The device as the results file has it."""
        return {"kind": self.kind, "name": self.name, "slug": self.slug, **self.facts}


def this_machine() -> Machine:
    """The GPU where there is one, unless `$DFQLAB_BENCH_DEVICE` says cpu."""
    kind: Kind = "cuda" if torch.cuda.is_available() and os.environ.get(DEVICE_VARIABLE) != "cpu" else "cpu"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": _version("triton")}
    if kind == "cuda":
        found = torch.cuda.get_device_properties(0)
        facts = {"bytes": found.total_memory, "multiprocessors": found.multi_processor_count}
        return Machine(kind, found.name, facts, versions, code_digest())
    threads = torch.get_num_threads()
    name = f"{_processor()} ({instructions()}), {threads} thread{'s' if threads > 1 else ''}"
    return Machine(kind, name, {"threads": threads}, versions, code_digest())


def instructions() -> str:
    """The widest that torch computes with here: processors of one name may differ, and bfloat16 needs its own."""
    widest: str = torch.backends.cpu.get_cpu_capability()
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.13 may not know
    return f"{widest} and bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else widest


def results_folder(default: Path = FOLDER) -> Path:
    """Where results files go: `$DFQLAB_BENCH_RESULTS`, or the default."""
    return Path(os.environ.get(FOLDER_VARIABLE) or default)


@lru_cache
def code_digest() -> str:
    """What the source of the package hashes to: numbers of other code are not numbers of this."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def flush_bytes(kind: Kind) -> int:
    """A buffer larger than every cache: 256 MB on a GPU, twice the last level on a CPU."""
    return 256 << 20 if kind == "cuda" else max(64 << 20, 2 * sum(_last_level_caches()))


def copy_and_sum(machine: Machine, size: int) -> tuple[dict[str, Any], dict[str, int]]:
    """The two calls that say how fast memory is, and the bytes that each of them moves."""
    source = torch.ones(size // 4, device=machine.kind)
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    return {"copy": copy, "read": source.sum}, {"copy": 2 * size, "read": size}


def _last_level_caches() -> Iterator[int]:
    """The last level of the first processor; Linux says, elsewhere 32 MB are assumed."""
    levels = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    text = levels[-1].read_text().strip() if levels else ""
    match = re.fullmatch(r"(\d+)([KM])", text)
    yield int(match[1]) << {"K": 10, "M": 20}[match[2]] if match else 32 << 20


def _processor() -> str:
    """The processor's name without marks and clock rate."""
    path = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.M) if path.exists() else None
    name = match[1] if match else platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)| CPU| Processor|\s*@.*", "", name).strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
