"""What an import costs, and which way imports may go."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = [
    "torch",
    "torchvision",
    "timm",
    "triton",
    "onnx",
    "onnxruntime",
    "openvino",
    "matplotlib",
    "IPython",
    "sklearn",
]
FLOORS = "Floors: an import only ever goes down"
DATA_FREE = "Data-free: nothing up to the recipes reaches dfqlab.data"
FRONT_DOOR = "The front door is for visitors"
KERNELS = "Kernels stand on their own"
JUPYTER = "Only lab knows Jupyter"
ARGV = "Only cli knows argv"


def test_import_dfqlab_loads_nothing_heavy() -> None:
    code = f"import sys, dfqlab; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_answers_under_one_second() -> None:
    # CPU seconds at twice the limit, best of three: the machine may be shared.
    assert min(_cpu_seconds("-m", "dfqlab.cli", "--help") for _ in range(3)) < 2 * 1.0


def _cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the two packages and of the contracts, to plant imports in."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in ("dfqlab", "kernels/dfqlab_kernels"):
        shutil.copytree(
            ROOT / package, copy / package, ignore=lambda _, names: {n for n in names if n == "__pycache__"}
        )
    return copy


def _broken_contracts(house: Path) -> list[str]:
    lint = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=house,
        env={**os.environ, "PYTHONPATH": f"{house}{os.pathsep}{house / 'kernels'}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert lint.returncode in (0, 1), lint.stdout + lint.stderr
    broken = [line.split(" BROKEN")[0] for line in lint.stdout.splitlines() if " BROKEN" in line]
    assert bool(broken) == bool(lint.returncode), lint.stdout + lint.stderr
    return broken


def test_the_contracts_hold(house: Path) -> None:
    assert _broken_contracts(house) == []


@pytest.mark.parametrize(
    ("where", "line", "contract"),
    [
        ("dfqlab/synthesis", "from dfqlab import load_data", DATA_FREE),
        ("dfqlab/synthesis", "from dfqlab import load_data", FRONT_DOOR),
        ("dfqlab/synthesis", "import dfqlab.data", DATA_FREE),
        ("dfqlab/synthesis", "def later():\n    from dfqlab.data import digits", DATA_FREE),
        ("dfqlab/synthesis", "from dfqlab import compression", FLOORS),
        ("dfqlab/recipes", "from ..data import load_data", DATA_FREE),
        ("dfqlab/teachers", "import dfqlab.data", FLOORS),
        ("dfqlab/teachers", "import dfqlab.recipes", FLOORS),
        ("dfqlab", "", FLOORS),  # a new room without a floor
        ("dfqlab/report", "import ipywidgets", JUPYTER),
        ("dfqlab/report", "import jsonargparse", ARGV),
        ("kernels/dfqlab_kernels", "from dfqlab.errors import DfqlabError", KERNELS),
    ],
)
def test_a_planted_import_breaks_its_contract(house: Path, where: str, line: str, contract: str) -> None:
    planted = house / where / "planted.py"
    planted.write_text(line + "\n")
    try:
        assert [name for name in _broken_contracts(house) if name.startswith(contract)]
    finally:
        planted.unlink()
