"""Faults planted one by one in a copy of the kernels: each has to be caught by the tests that should catch it.

    python tests/kernels/mutations.py          # eight, in Triton's interpreter
    python tests/kernels/mutations.py --gpu    # two more, which only a GPU can show
    python tests/kernels/mutations.py NAME     # one of them

Not collected by pytest: it runs pytest itself, for each fault the one file named beside it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = "kernels/dfqlab_kernels/programs"
TESTS = "tests/kernels/programs"
# Without the project's configuration and its plugins, which a machine with a GPU need not have.
PYTEST = ["-c", os.devnull, "--rootdir", ".", "--confcutdir", TESTS, "--import-mode", "importlib", "-qx", "--tb=line"]


@dataclass(frozen=True)
class Fault:
    """Replace text in a file, wherever it stands, and run a file of tests that must fail."""

    file: str
    tests: str
    edits: tuple[tuple[str, str], ...]


FAULTS = {
    "wrong rounding mode": Fault(
        f"{PROGRAMS}/tiles.py", "test_fake_quantize.py", (("return (x + magic) - magic", "return tl.floor(x + 0.5)"),)
    ),
    "zero point added before rounding": Fault(
        f"{PROGRAMS}/tiles.py",
        "test_fake_quantize.py",
        (
            (
                "return nearest(grid_steps(x, scale, low, high, DOUBLE), DOUBLE)",
                "return nearest(grid_steps(x, scale, low, high, DOUBLE) - low, DOUBLE) + low",
            ),
        ),
    ),
    "biased for unbiased": Fault(
        f"{PROGRAMS}/packed.py", "test_statistics.py", (("tl.where(exists, count - correction, 1)", "count"),)
    ),
    "a dropped tile": Fault(
        f"{PROGRAMS}/statistics.py",
        "test_statistics.py",
        (
            (
                "range(first_i, end_i, TILE_INNER)",
                "range(first_i, tl.maximum(end_i - TILE_INNER, first_i + 1), TILE_INNER)",
            ),
        ),
    ),
    "a wrong stride": Fault(
        f"{PROGRAMS}/tiles.py",
        "test_statistics.py",
        (("channels + c) * inner + i", "channels + c) * tl.maximum(inner - 1, 1) + i"),),
    ),
    "a mask off by one": Fault(
        f"{PROGRAMS}/tiles.py", "test_fake_quantize.py", (("(i < end_inner)", "(i < end_inner - 1)"),)
    ),
    "a missing channel": Fault(
        f"{PROGRAMS}/tiles.py", "test_statistics.py", (("(c < channels)", "(c < channels - 1)"),)
    ),
    "a swapped axis": Fault(
        "kernels/dfqlab_kernels/layout.py",
        "test_fake_quantize.py",
        (("for d in order[:position]", "for d in order[position + 1 :]"),),
    ),
}
GPU_FAULTS = {
    "an unordered sum": Fault(
        f"{PROGRAMS}/learned_step.py",
        "test_on_gpu.py",
        (
            ("x.new_empty((kinds", "x.new_zeros((kinds"),
            ("tl.store(partials, tl.sum(tl.sum(ds,", "tl.atomic_add(partials_ptr + c, tl.sum(tl.sum(ds,"),
        ),
    ),
    "a stale launch argument": Fault(
        f"{PROGRAMS}/tiles.py",
        "test_fake_quantize.py",
        (("inner=layout.inner,", "inner=launch.__dict__.setdefault(kernel.__name__, layout.inner),"),),
    ),
}


def survives(name: str, fault: Fault, *, interpreted: bool) -> bool:
    """Whether the tests pass with the fault planted."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("kernels", "tests/kernels"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / fault.file
        text = target.read_text(encoding="utf-8")
        for before, after in fault.edits:
            if before not in text:
                raise SystemExit(f"{name}: {fault.file} no longer contains {before!r}; plant it anew")
            text = text.replace(before, after)
        target.write_text(text, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'kernels'}"}
        environment.pop("TRITON_INTERPRET", None)
        if interpreted:
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", "pytest", *PYTEST, f"{TESTS}/{fault.tests}"]
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1200)
    said = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    verdict = "SURVIVES" if result.returncode == 0 else "caught"
    print(f"{name:34} {verdict}  {said[0].removeprefix('FAILED ')[:90] if said else result.stdout[-200:]}", flush=True)
    if result.returncode not in (0, 1):
        raise SystemExit(f"{name}: pytest could not run\n{result.stdout}{result.stderr}")
    return result.returncode == 0


def main(arguments: list[str]) -> int:
    """How many faults survive."""
    gpu = "--gpu" in arguments
    faults = GPU_FAULTS if gpu else FAULTS
    names = [a for a in arguments if a != "--gpu"] or list(faults)
    return sum(survives(name, faults[name], interpreted=not gpu) for name in names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
