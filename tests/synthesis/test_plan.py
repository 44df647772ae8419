"""The plan: for each network of a job, from the job and the kind of CPU alone."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from dfqlab.synthesis import plan as planning
from dfqlab.synthesis.plan import Execution, Plan, elements, plan_for
from dfqlab.teachers import Teacher

LAYERS, ELEMENTS = 2, 5 * 16 + 7 * 4  # of the network below


@pytest.fixture(autouse=True)
def threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler is there, instructions for bfloat16 too, and 1,000 elements a layer are worth it."""
    monkeypatch.setattr(planning, "missing_for_compile", lambda: "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(planning, "_WORTH_COMPILING", 1000)
    monkeypatch.setattr(planning, "BATCH_SIZE", 4)


def network(name: str = "plain", *, groups: int = 1) -> Teacher:
    module = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 7 if groups == 1 else 10, 3, stride=2, padding=1, groups=groups),
        nn.BatchNorm2d(7 if groups == 1 else 10),
        nn.Flatten(),
        nn.Linear(28 if groups == 1 else 40, 3),
    )
    return Teacher.from_module(module, size=(1, 4, 4), mean=(0.4,), std=(0.3,), classes=3, name=name)


def test_elements_are_what_goes_through_batch_norm() -> None:
    assert elements(network()) == ELEMENTS


def test_a_network_is_compiled_from_the_number_of_images_on_that_is_worth_it() -> None:
    enough = -(-1000 * LAYERS // ELEMENTS)  # images
    assert plan_for([network()], steps=enough - 1, count=1).networks[0] == Execution("float32", compiled=False)
    assert plan_for([network()], steps=enough, count=1).networks[0] == Execution("bfloat16", compiled=True)
    half = -(-enough // 8)  # 5 images are two batches of 4
    assert plan_for([network()], steps=half, count=5).networks[0].compiled
    assert not plan_for([network()], steps=half - 1, count=5).networks[0].compiled


def test_each_network_of_a_zoo_has_a_plan_of_its_own() -> None:
    zoo = [network("plain"), network("grouped", groups=5)]
    plan = plan_for(zoo, steps=100, count=4)
    assert plan.networks == (
        Execution("bfloat16", compiled=True),
        Execution("float32", compiled=True),  # bfloat16 makes grouped convolutions slower
    )
    assert plan.sentence == (
        "batches of 4, 1 of 2 networks bfloat16, compiled; 1 of 2 networks float32, compiled, "
        f"torch {torch.__version__}"
    )


def test_a_network_that_is_drawn_for_few_batches_sees_few_images() -> None:
    zoo = [network(str(k)) for k in range(4)]
    steps = -(-1000 * LAYERS // ELEMENTS)
    assert all(how.compiled for how in plan_for(zoo, steps=steps, count=1).networks)
    assert not any(how.compiled for how in plan_for(zoo, steps=steps, count=1, teachers_per_batch=3).networks)


def test_without_a_compiler_the_plan_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "missing_for_compile", lambda: "no compiler")
    plan = plan_for([network()], steps=100, count=4)
    assert plan.networks == (Execution("float32", compiled=False, note="no compiler"),)
    assert plan.sentence.startswith("batches of 4, float32, not compiled (no compiler), ")
    assert "(" not in plan_for([network()], steps=1, count=4).networks[0].sentence  # not worth it: nothing is missing


def test_without_instructions_for_it_nothing_runs_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert plan_for([network()], steps=100, count=4).networks == (Execution("float32", compiled=True),)


def test_the_plan_knows_nothing_of_load_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def plans() -> list[Plan]:
        return [plan_for([network()], steps=steps, count=9) for steps in (1, 5, 10, 100)]

    before = plans()
    threads = torch.get_num_threads()
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(f"time.{name}", lambda: 1e9)
    monkeypatch.setattr("os.getloadavg", lambda: (64.0, 64.0, 64.0))
    torch.set_num_threads(threads + 1)
    try:
        assert plans() == before
    finally:
        torch.set_num_threads(threads)


def test_a_plan_comes_back_from_json() -> None:
    plan = plan_for([network("a"), network("b", groups=5)], steps=100, count=4)
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert Plan.from_dict(plan.as_dict()) != replace(plan, device="cuda")
