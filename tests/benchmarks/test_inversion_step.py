"""The steps that the benchmark of an inversion compares are the same step."""

import pytest

import dfqlab
from benchmarks import inversion_step
from dfqlab_kernels.bench.timing import Stopwatch


def test_every_way_of_writing_the_step_goes_down_the_same_losses() -> None:
    steps = inversion_step.steps_of(dfqlab.load_teacher("digits/resnet"), batch=8)
    losses = {name: [step() for _ in range(3)] for name, step in steps.items() if "torch.compile" not in name}
    losses["dfqlab without torch.compile"] = [
        step() for step in [steps["dfqlab without torch.compile"]] for _ in range(3)
    ]
    hooks = losses[inversion_step.HOOKS]
    assert hooks[0] > hooks[1] > hooks[2]
    for found in losses.values():
        assert found == pytest.approx(hooks, rel=1e-3)


def test_an_untrained_teacher_stands_in_where_there_are_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFQLAB_DATA", raising=False)
    teacher = inversion_step.resnet20_teacher("cpu")
    assert (teacher.name, len(teacher.batch_norms)) == ("untrained resnet20", 19)


def test_the_result_has_a_time_and_a_first_loss_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inversion_step, "steps_of", lambda *_: {"hooks": lambda: 1.0, "dfqlab": lambda: 2.0})
    teacher = dfqlab.load_teacher("digits/resnet")
    result = inversion_step.measure(teacher, 4, Stopwatch("cpu", rounds=2, fewest=2, seconds=0, flush=0))
    assert result["losses"] == {"hooks": 1.0, "dfqlab": 2.0}
    assert result["times"].keys() == {"hooks", "dfqlab"}
