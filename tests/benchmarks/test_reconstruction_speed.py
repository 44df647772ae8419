"""What is compared with dfqlab's iteration is the same iteration, and the page says what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks import reconstruction_speed, reconstruction_table
from dfqlab_kernels.bench.timing import Stopwatch

pytestmark = pytest.mark.traces  # torch.fx goes through the forward of a network of the course


def test_both_ways_go_down_the_same_errors() -> None:
    prepared = reconstruction_speed.ready("cpu", images=1)
    blocks = list(reconstruction_speed.units_of(prepared, reconstruction_speed.noise(prepared, 1)))
    assert len(blocks) == 11
    for passing in (blocks[1], blocks[5]):
        ours, direct = reconstruction_speed._ours(prepared, passing), reconstruction_speed._direct(prepared, passing)
        errors = [(ours()["error"], direct()) for _ in range(4)]
        assert errors[3][0] != errors[1][0]  # it moves
        for mine, theirs in errors[1:]:
            assert mine == pytest.approx(theirs, rel=2e-2), passing.unit.name


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not measured" in reconstruction_table.section(tmp_path)
    monkeypatch.setattr(reconstruction_speed, "IMAGES", 2)
    prepared = reconstruction_speed.ready("cpu", images=2)
    watch = Stopwatch("cpu", rounds=2, fewest=2, seconds=0, flush=0)
    measured = reconstruction_speed.iterations(prepared, "cpu", watch)
    about = {"versions": {"torch": "2"}, "date": "today"}
    device = {"device": {"name": "mine"}, "iterations": measured | about, "job": {"seconds": 120.0}}
    (tmp_path / "reconstruction_speed.json").write_text(json.dumps({"devices": {"mine": device}}))
    page = reconstruction_table.section(tmp_path)
    assert "| at most 4 | 2, reached |" in page
    assert page.count("| layer") == 9
