"""What the source of the programs promises."""

import re
from pathlib import Path

import pytest

import dfqlab_kernels.programs

FILES = sorted(Path(dfqlab_kernels.programs.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_program_uses_an_atomic_so_that_every_sum_has_one_order(path: Path) -> None:
    assert not re.findall(r"\batomic_\w+", path.read_text(encoding="utf-8"))
