"""A job that was stopped, killed or finished before: the same bytes as one that never was."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dfqlab.errors import CheckpointError
from dfqlab.images import SyntheticSet
from dfqlab.objective import Objective, Weighted
from dfqlab.progress import Cancelled, OnStep, Step, ignore
from dfqlab.synthesis import plan as planning
from dfqlab.synthesis.augmentation import Augmentation
from dfqlab.synthesis.checkpointing import IMAGES_FILE, Checkpoint
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import invert
from dfqlab.synthesis.mixing import DataMixing
from dfqlab.synthesis.schedules import Cosine, Plateau, Schedule
from dfqlab.synthesis.terms import Alignment, CrossEntropy, TotalVariation
from dfqlab.teachers import Teacher

pytestmark = pytest.mark.traces  # checking shapes at every step would cost more than the steps
STEPS, COUNT = 7, 10


def make(seed: int = 0) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    return Teacher.from_module(module, size=(1, 8, 8), mean=(0.4,), std=(0.3,), classes=3, name=f"net{seed}")


def run(
    folder: Path | None = None,
    *,
    teachers: tuple[Teacher, ...] = (),
    on_step: OnStep = ignore,
    schedule: Schedule | None = None,
    recipe: str = "mine",
    **changes: Any,
) -> SyntheticSet:
    objective = Objective(bn=Alignment(), label=CrossEntropy(), smooth=Weighted(0.1, TotalVariation()))
    how = Descent(
        STEPS,
        0.2,
        schedule or Cosine(),
        coarse_steps=3,
        augmentation=Augmentation(jitter=1, flip=0.5, crop=0.5),
        mixing=DataMixing(),
        teachers_per_batch=2,
        clip="each step",
        learned_weights=True,
    )
    job: dict[str, Any] = {"count": COUNT, "seed": 3, "labels": "balanced", "settings": {"a": (1, 2)}, **changes}
    checkpoint = None if folder is None else Checkpoint(folder, seconds=0)
    zoo = teachers or (make(0), make(1), make(2))
    return invert(zoo, objective, how, recipe=recipe, checkpoint=checkpoint, on_step=on_step, **job)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_SIZE", 4)


def seen_in(folder: Path) -> list[str]:
    """What a listing shows: all but the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


class Killed(Exception):
    """Stands for a process that is gone: nothing of ours catches it."""


def at(index: int, error: type[Exception]) -> OnStep:
    def on_step(step: Step) -> None:
        if step.index == index:
            raise error

    return on_step


@pytest.mark.parametrize("schedule", [Cosine(warm_up=2), Plateau(patience=1)])
@pytest.mark.parametrize("index", [1, 3, 7, 13, 21])
def test_a_job_that_goes_on_ends_as_if_it_had_never_stopped(tmp_path: Path, index: int, schedule: Schedule) -> None:
    whole = run(schedule=schedule)
    with pytest.raises(Killed):
        run(tmp_path, on_step=at(index, Killed), schedule=schedule)
    seen: list[int] = []
    made = run(tmp_path, on_step=lambda step: seen.append(step.index), schedule=schedule)
    assert torch.equal(made.images, whole.images)
    assert made.facts == whole.facts
    assert made.labels is not None
    assert whole.labels is not None
    assert torch.equal(made.labels, whole.labels)
    assert seen == list(range(index + 1, 3 * STEPS + 1))
    assert seen_in(tmp_path) == [IMAGES_FILE]


def test_a_finished_set_is_what_save_writes_and_is_not_made_again(tmp_path: Path) -> None:
    made = run(tmp_path / "job")
    made.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "job" / IMAGES_FILE).read_bytes()
    again = run(tmp_path / "job", on_step=at(1, AssertionError))
    assert torch.equal(again.images, made.images)


def test_a_cancelled_job_keeps_what_it_has_in_the_folder_and_can_go_on(tmp_path: Path) -> None:
    partial = run(tmp_path, on_step=at(9, Cancelled))
    assert partial.partial
    assert len(partial) == 8
    assert SyntheticSet.load(tmp_path / IMAGES_FILE).partial
    whole = run()
    assert torch.equal(partial.images[:4], whole.images[:4])
    made = run(tmp_path)
    assert not made.partial
    assert torch.equal(made.images, whole.images)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": "other"}, "recipe 'mine', and this one has 'other'"),
        ({"seed": 4}, "seed 3, and this one has 4"),
        ({"count": 11}, "count 10, and this one has 11"),
        ({"settings": {"a": (1, 3)}}, r"settings {'a': \[1, 2\]}, and this one has {'a': \[1, 3\]}"),
        ({"labels": torch.zeros(COUNT, dtype=torch.long)}, "labels '.*', and this one has '"),
        ({"labels": None}, "labels '.*', and this one has None"),
    ],
)
def test_another_jobs_checkpoint_is_refused_and_both_are_named(
    tmp_path: Path, change: dict[str, Any], said: str, finished: bool
) -> None:
    if finished:
        run(tmp_path)
    else:
        run(tmp_path, on_step=at(5, Cancelled))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=said):
        run(tmp_path, **change)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_teachers_checkpoint_is_refused_by_fingerprint(tmp_path: Path) -> None:
    run(tmp_path, on_step=at(5, Cancelled))
    zoo = make(0), make(1), make(3)
    theirs, ours = make(2).fingerprint, zoo[2].fingerprint
    with pytest.raises(CheckpointError, match=f"teachers .*{theirs}.* this one has .*{ours}"):
        run(tmp_path, teachers=zoo)


def test_another_plan_goes_on_where_that_is_allowed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, on_step=at(5, Cancelled))
    plan_for = planning.plan_for
    monkeypatch.setattr(
        "dfqlab.synthesis.inversion.plan_for", lambda *a, **k: replace(plan_for(*a, **k), torch="0.0.1")
    )
    with pytest.raises(CheckpointError, match=r"plan {.*this one has {.*0\.0\.1.*or allow any plan, for other bytes"):
        run(tmp_path)
    objective, how = Objective(bn=Alignment()), Descent(2, 0.1, Cosine())
    for folder, any_plan in ((tmp_path / "a", False), (tmp_path / "a", True)):
        if not any_plan:
            monkeypatch.undo()
            monkeypatch.setattr(planning, "BATCH_SIZE", 4)
        checkpoint = Checkpoint(folder, 0, any_plan=any_plan)
        stop = ignore if any_plan else at(1, Cancelled)
        made = invert(
            [make()], objective, how, recipe="r", settings={}, count=4, seed=0, checkpoint=checkpoint, on_step=stop
        )
        monkeypatch.setattr(
            "dfqlab.synthesis.inversion.plan_for", lambda *a, **k: replace(plan_for(*a, **k), torch="0.0.1")
        )
    assert not made.partial
    assert made.plan["torch"] == "0.0.1"


def test_another_objective_or_descent_of_one_name_is_refused(tmp_path: Path) -> None:
    def go(objective: Objective, how: Descent, on_step: OnStep = ignore) -> SyntheticSet:
        job: dict[str, Any] = {"recipe": "r", "settings": {}, "count": 4, "seed": 0}
        return invert([make()], objective, how, **job, checkpoint=Checkpoint(tmp_path, 0), on_step=on_step)

    how = Descent(3, 0.1, Cosine())
    go(Objective(bn=Alignment()), how, at(1, Cancelled))
    with pytest.raises(CheckpointError, match=r"objective .*distance='squared'.* and this one has .*distance='kl'"):
        go(Objective(bn=Alignment(distance="kl")), how)
    with pytest.raises(CheckpointError, match=r"descent .*learning_rate=0\.1.* and this one has .*learning_rate=0\.2"):
        go(Objective(bn=Alignment()), replace(how, learning_rate=0.2))
    assert not go(Objective(bn=Alignment()), how).partial


def test_another_size_of_batches_is_refused_under_any_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, on_step=at(9, Cancelled))
    monkeypatch.setattr(planning, "BATCH_SIZE", 2)
    with pytest.raises(CheckpointError, match=r"'batch_size': 4.*'batch_size': 2"):
        invert(
            [make()], Objective(bn=Alignment()), Descent(2, 0.1, Cosine()), recipe="mine", settings={"a": (1, 2)},
            count=COUNT, seed=3, checkpoint=Checkpoint(tmp_path, any_plan=True),
        )  # fmt: skip


@pytest.mark.parametrize("after", range(6))
def test_a_job_that_dies_while_it_tidies_up_has_its_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole, unlink, done = run(), Path.unlink, 0

    def dying(path: Path, missing_ok: bool = False) -> None:
        nonlocal done
        done += 1
        if done > after:
            raise Killed
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying)
        try:
            run(tmp_path)
        except Killed:
            assert after < 4  # the state and three batches
    again = run(tmp_path)
    assert torch.equal(again.images, whole.images)
    assert seen_in(tmp_path) == [IMAGES_FILE]


def test_a_partial_set_without_a_state_is_started_over(tmp_path: Path) -> None:
    run(tmp_path, on_step=at(9, Cancelled))
    for path in tmp_path.iterdir():
        if path.name != IMAGES_FILE:
            path.unlink()
    made = run(tmp_path)
    assert not made.partial
    assert torch.equal(made.images, run().images)


def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path) -> None:
    run(tmp_path, on_step=at(9, Cancelled))
    (tmp_path / f".{IMAGES_FILE}.abc.part").write_bytes(b"half")
    run(tmp_path)
    assert seen_in(tmp_path) == [IMAGES_FILE]


def test_clearing_forgets_a_job_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, on_step=at(9, Cancelled))
    (tmp_path / "mine.txt").write_text("keep")
    Checkpoint(tmp_path).clear()
    assert seen_in(tmp_path) == ["mine.txt"]


def test_two_jobs_in_one_folder_are_refused(tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile(step: Step) -> None:
        if step.index == 5:
            before = seen_in(tmp_path)
            for other in (lambda: run(tmp_path), Checkpoint(tmp_path).clear):
                with pytest.raises(CheckpointError) as error:
                    other()
                refused.append(str(error.value))
            assert seen_in(tmp_path) == before

    run(tmp_path, on_step=meanwhile)
    assert refused == 2 * [f"another job is at work in {tmp_path}: choose another folder, or wait"]
    assert seen_in(tmp_path) == [IMAGES_FILE]


def test_a_folder_is_held_against_other_processes_until_this_one_is_killed(tmp_path: Path) -> None:
    held = "import sys; from pathlib import Path; from dfqlab.synthesis.checkpointing import Checkpoint\n"
    held += "with Checkpoint(Path(sys.argv[1])).held(): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="another job is at work"):
            run(tmp_path)
        other.kill()
    assert len(run(tmp_path)) == COUNT


_JOB = """
import os, random, resource, signal, sys
from pathlib import Path
import torch
from torch import nn
from dfqlab.objective import Objective
from dfqlab.synthesis import plan
from dfqlab.synthesis.checkpointing import Checkpoint
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import invert
from dfqlab.synthesis.mixing import DataMixing
from dfqlab.synthesis.schedules import Plateau
from dfqlab.synthesis.terms import Alignment, CrossEntropy
from dfqlab.teachers import Teacher

def teacher(size):
    norm = nn.BatchNorm2d(4)
    module = nn.Sequential(nn.Conv2d(size[0], 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    return Teacher.from_module(module, size=size, mean=(0.4,) * size[0], std=(0.3,) * size[0], classes=4)

def make(folder, count, steps, size=(1, 8, 8), on_step=lambda step: None, seconds=0.0):
    objective = Objective(bn=Alignment(per="sample"), label=CrossEntropy())
    return invert([teacher(size)], objective, Descent(steps, 0.1, Plateau(3), mixing=DataMixing()), recipe="r",
        settings={}, count=count, seed=0, labels="balanced", checkpoint=Checkpoint(Path(folder), seconds),
        on_step=on_step)
"""

_KILLED = """
folder, compiled, kills = sys.argv[1], sys.argv[2] == "compiled", list(map(int, sys.argv[3:]))
plan.BATCH_SIZE = 4
plan._WORTH_COMPILING = 0.0 if compiled else float("inf")
if compiled:
    import torch._inductor.compile_fx  # here once, not in every child
    torch._inductor.config.compile_threads = 1

def in_a_process(die_at):
    # Forked before anything ran: the child is a fresh process that has its imports already.
    if (pid := os.fork()) == 0:
        def on_step(step):
            if step.index == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        made = make(f"{folder}/{'never' if die_at is None else 'killed'}", 8, 12, on_step=on_step, seconds=0.02)
        assert made.plan["networks"][0]["compiled"] == compiled
        os._exit(0)
    return os.waitpid(pid, 0)[1]

for step in kills:
    assert in_a_process(step) == signal.SIGKILL, step
assert in_a_process(0) == 0
os.rename(f"{folder}/killed", f"{folder}/resumed")
assert in_a_process(None) == 0
"""


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_a_job_killed_at_five_random_steps_gives_the_bytes_of_one_never_stopped(tmp_path: Path, how: str) -> None:
    if how == "compiled" and (missing := planning.missing_for_compile()):
        pytest.skip(f"nothing to compile with: {missing}")
    # A state is written every 20 ms, so a kill also costs steps that have to be taken again.
    steps = sorted(random.Random().sample(range(1, 24), 5))  # of 24, in two batches
    command = [sys.executable, "-c", _JOB + _KILLED, str(tmp_path), how, *map(str, steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"killed at steps {steps}: {done.stderr[-2000:]}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["never", "resumed"]
    resumed, never = ((tmp_path / name / IMAGES_FILE).read_bytes() for name in ("resumed", "never"))
    assert resumed == never, f"killed at steps {steps}"


_MEMORY = """
for count in (256, 8192):
    made = make(f"{sys.argv[1]}/{count}", count, 1, size=(3, 32, 32), seconds=60.0)
    assert len(made) == count
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_many_images_need_no_more_memory_than_few(tmp_path: Path) -> None:
    """8,192 images of 12 KiB are 96 MiB; what they take at most, beyond what 256 took, is a fraction of that."""
    command = [sys.executable, "-c", _JOB + _MEMORY, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    few, many = (int(kib) / 1024 for kib in printed.split())
    assert many - few < 16
