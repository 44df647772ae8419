"""kernels/README.md says what the results files say, GPU.md what there is to run."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kernel_roofline, kernels_readme
from benchmarks.kernel_goals import GOALS, Goal
from dfqlab_kernels.bench.registry import BENCHES

KERNELS = kernels_readme.README.parent


def row(op: str = "fake_quantize", label: str = "per channel 2x2", eager: float = 3.0, **more: Any) -> dict[str, Any]:
    times = {"ours": {"median": 1.0, "low": 0.9, "high": 1.1}, "eager": {"median": eager, "low": 2.0, "high": 4.0}}
    row = {
        "op": op, "label": label, "dtype": "float32", "layout": "NCHW", "direction": "both", "elements": 100,
        "floor_bytes": 800, "floor_rate": "copy", "rate": 1600.0, "operations": 700, "times": times, "failed": {},
        "counted_bytes": {"eager": 4000, "ours": 900}, "date": "2000-01-01", "versions": {"torch": "9"},
    }  # fmt: skip
    return row | more


def result(kind: str, *rows: dict[str, Any]) -> dict[str, Any]:
    device = {"kind": kind, "name": f"A {kind}", "slug": f"a-{kind}"}
    return {"device": device, "rates": [{"copy": 1600.0, "read": 2000.0}], "rows": list(rows)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results."""
    monkeypatch.setattr(kernel_roofline, "RESULTS", tmp_path)
    monkeypatch.setattr(kernels_readme, "README", tmp_path / "README.md")
    return tmp_path


def test_the_page_is_the_one_that_the_results_files_make() -> None:
    assert kernels_readme.README.read_text() == kernels_readme.page()


def test_every_results_file_has_its_picture() -> None:
    for path in kernel_roofline.device_files():
        assert kernel_roofline.picture_of(path).exists()


def test_nothing_is_invented_where_there_is_no_results_file(folder: Path) -> None:
    page = kernels_readme.page()
    for op in BENCHES:
        assert page.count(f"| `{op}` | not measured |") == 2
    assert page.count("| not measured |\n") == len(GOALS) + 2 * len(BENCHES)


def test_a_page_shows_times_shares_ratios_and_what_fails(folder: Path) -> None:
    (folder / "a-cuda.json").write_text(json.dumps(result("cuda", row(failed={"torch": "RuntimeError: no"}))))
    kernels_readme.render()
    page = (folder / "README.md").read_text()
    assert "| per channel 2x2 | float32 NCHW forward + backward | 1e+03 [900, 1.1e+03] | 50 % | 3.00x | fails |" in page
    assert "### learned_step_quantize\n\nnot measured" in page
    assert "![roofline](bench/results/roofline-a-cuda.png)" in page
    assert (folder / "roofline-a-cuda.png").exists()


def test_launches_wall_clock_and_graphs_are_shown_where_they_decide(folder: Path) -> None:
    times = {"ours": {"median": 0.001}, "eager": {"median": 0.004}}
    small = row("bn_alignment", "small", launches={"ours": 4, "eager": None}, wall=times, captured=times)
    (folder / "a-cuda.json").write_text(json.dumps(result("cuda", small)))
    assert "| small | float32 NCHW forward + backward | 4 / ? | 1 / 4 | 1 / 4 |" in kernels_readme.page()


def goal(measure: str, what: str) -> Goal:
    return next(goal for goal in GOALS if measure in goal.measure and what in goal.what)


def test_a_goal_is_judged_by_its_worst_row() -> None:
    found = goal("eager", "gradient where not clipped")
    assert found.verdict([row(), row(eager=1.6)]) == "1.6 (worst of 2), reached"
    assert found.verdict([row(), row(eager=1.2)]) == "1.2 (worst of 2), missed"
    assert found.verdict([row(direction="forward"), row(dtype="bfloat16"), row(op="channel_stats")]) == "not measured"
    assert found.verdict([row(eager=1.2, label="per channel 2x2, whole dy")]) == "not measured"


def test_a_goal_of_at_most_is_judged_by_its_largest_row() -> None:
    found = goal("launches", "statistics loss")
    rows = [row("statistics_loss_resnet20", launches={"ours": n}) for n in (41, 43)]
    assert found.verdict(rows) == "43 (worst of 2), reached"
    assert found.verdict([*rows, row("statistics_loss_resnet20", launches={"ours": 46})]).endswith("missed")


def test_only_large_tensors_count_where_bandwidth_is_the_goal() -> None:
    found = goal("copy bandwidth", "float32")
    assert found.verdict([row()]) == "not measured"
    assert found.verdict([row(elements=16 << 20)]) == "0.5, missed"


def test_the_tick_list_has_every_op_and_every_file_of_compiled_tests() -> None:
    text = (KERNELS / "GPU.md").read_text()
    for op in BENCHES:
        assert (
            f"- [ ] `python -m dfqlab_kernels.bench {op}` — " in text
            or f"- [x] `python -m dfqlab_kernels.bench {op}` — " in text
        )
    tests = KERNELS.parent / "tests" / "kernels" / "programs"
    for path in tests.glob("test_*.py"):
        if path.name not in ("test_source.py", "test_trace.py", "test_traffic.py"):  # read, or only interpreted
            assert f"tests/kernels/programs/{path.name}" in text, f"{path.name} has no line in GPU.md"
