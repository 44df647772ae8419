"""The steps that the benchmark of an inversion compares are the same step, and its table says what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest

import dfqlab
from benchmarks import inversion_step, inversion_table
from dfqlab.synthesis import plan
from dfqlab_kernels.bench.timing import Stopwatch


@pytest.mark.parametrize("recipe", list(inversion_step.RECIPES))
def test_every_way_of_writing_the_step_goes_down_the_same_losses(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "missing_for_compile", lambda: "not in a test")
    steps = inversion_step.steps_of(recipe, dfqlab.load_teacher("digits/resnet"), batch=8)
    assert len(steps) == 3
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}
    hooks = losses[inversion_step.HOOKS]
    assert len(set(hooks)) == 3  # it moves
    for found in losses.values():
        assert found[0] == pytest.approx(hooks[0], rel=1e-3)  # scripts take the variation of rolled images
        assert found == pytest.approx(hooks, rel=5e-3)  # Adam's first steps have one length, however small a gradient


def test_an_untrained_teacher_stands_in_where_there_are_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFQLAB_DATA", raising=False)
    teacher = inversion_step.resnet20_teacher("cpu")
    assert (teacher.name, len(teacher.batch_norms)) == ("untrained resnet20", 19)


def test_the_result_has_a_time_and_a_first_loss_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion_step, "steps_of", lambda *_: {"hooks": lambda: 1.0, "dfqlab": lambda: 2.0})
    teacher = dfqlab.load_teacher("digits/resnet")
    result = inversion_step.measure("zeroq", teacher, 4, Stopwatch("cpu", rounds=2, fewest=2, seconds=0, flush=0))
    assert result["losses"] == {"hooks": 1.0, "dfqlab": 2.0}
    assert result["times"].keys() == {"hooks", "dfqlab"}


def entry(half: float = 0.1) -> dict[str, Any]:
    seconds = {
        inversion_step.HOOKS: 0.6,
        inversion_step.HALF: half,
        inversion_step.OURS: 0.3,
        inversion_step.EAGER: 0.4,
    }
    times = {name: {"median": t, "low": t, "high": t} for name, t in seconds.items()}
    recipe = {"teacher": "t", "losses": {}, "times": times, "failed": {}}
    return {
        "device": {"kind": "cpu", "name": "A CPU"}, "versions": {"torch": "9"}, "batch": 128, "date": "2000-01-01",
        "recipes": {"zeroq": recipe},
    }  # fmt: skip


def page(folder: Path, *entries: dict[str, Any]) -> str:
    if entries:
        devices = {str(number): entry for number, entry in enumerate(entries)}
        (folder / "inversion_step.json").write_text(json.dumps({"devices": devices}))
    return inversion_table.section(folder)


def test_nothing_is_invented_where_nothing_was_measured(tmp_path: Path) -> None:
    assert page(tmp_path).endswith("\n\nnot measured\n")
    assert page(tmp_path, entry()).count("| not measured |") == len(inversion_table.GOALS) - 3


@pytest.mark.parametrize(("half", "said"), [(0.1, "6, reached"), (0.15, "4, missed")])
def test_a_goal_is_reached_or_missed(tmp_path: Path, half: float, said: str) -> None:
    shown = page(tmp_path, entry(half))
    assert f"| a step of zeroq: dfqlab, bfloat16, times as fast as written directly | at least 5 | {said} |" in shown
    assert "| dfqlab, float32 | 300.0 [300.0, 300.0] | 2.00x |  |" in shown


def test_whole_jobs_are_told_with_their_plan(tmp_path: Path) -> None:
    job = {
        "whole": 60.0, "direct": 240.0, "compiled": True, "dtype": "bfloat16", "short starts": 3.5, "short": 0.2,
        "short direct": 0.5,
    }  # fmt: skip
    shown = page(tmp_path, entry() | {"jobs": {"zeroq": job}})
    assert "| zeroq | compiled, bfloat16 | 60 | 240 | 4.00x | 3.5 | 2.50x |" in shown
    assert "until its first step is done | at most 3 | 3.5, missed |" in shown


def test_a_job_of_a_zoo_is_told_with_how_each_network_was_executed(tmp_path: Path) -> None:
    job = {
        "networks": ["a", "b"], "executed": ["bfloat16, compiled", "float32, not compiled"], "seconds": 600.0,
        "cpu seconds": 1080.0, "peak GiB": 2.5,
    }  # fmt: skip
    shown = page(tmp_path, entry() | {"zoo": job})
    assert "1,000 steps: minutes | at most 15 | 10, reached |" in shown
    assert "GiB of memory at its peak | at most 2 | 2.5, missed |" in shown
    assert (
        "10.0 minutes, 18.0 CPU minutes, 2.50 GiB at the peak (a bfloat16, compiled; b float32, not compiled)." in shown
    )
