"""What is captured as CUDA graphs, and when: asked of a stand-in, because there is a GPU in few places."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqlab.images import Batch
from dfqlab.objective import Objective, PreparedTerm
from dfqlab.statistics import TeacherOutputs
from dfqlab.synthesis import plan as planning
from dfqlab.synthesis.plan import Execution, Plan, plan_for
from dfqlab.synthesis.terms import Alignment
from dfqlab.synthesis.zoo import Zoo, settled
from dfqlab.teachers import Teacher


def network() -> Teacher:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 3))
    return Teacher.from_module(module, size=(1, 6, 6), mean=(0.4,), std=(0.3,), classes=3)


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """What was given to be captured with; the graph is the function itself, as it was then."""
    given: list[tuple[Tensor, ...]] = []

    def capture(function: Callable[..., Any], like: tuple[Tensor, ...], *, allow_unused_input: bool) -> Any:
        given.append(like)
        return function

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return given


@pytest.fixture
def waiting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch's mode in which a GPU must not be waited for; holds every mode that was set."""
    modes = ["warn"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers say that they are on a GPU."""
    monkeypatch.setattr(Teacher, "device", torch.device("cuda"))


class Fit:
    """Reads labels, so that both kinds of them are given to a graph."""

    per = "batch"

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        def fit(batch: Batch, outputs: TeacherOutputs) -> Tensor:
            assert batch.labels is not None
            return torch.nn.functional.cross_entropy(outputs.logits, batch.labels)

        return fit


CAPTURED = Execution("float32", compiled=False, captured=True)


def plan_of(*networks: Execution) -> Plan:
    return Plan(4, "cuda", torch.__version__, networks)


def test_a_graph_serves_one_shape_of_images_and_labels(samples: list[tuple[Tensor, ...]]) -> None:
    captured = Zoo([network()], Objective(alignment=Alignment(), fit=Fit()), plan_of(CAPTURED), seed=0)
    indices, shares = torch.arange(4) % 3, torch.eye(3)[torch.arange(4) % 3]
    for labels in (indices, indices, shares, shares, indices):
        captured(torch.rand(4, 1, 6, 6).requires_grad_(), labels, (0,))
    assert [tuple(labels.shape) for _, labels in samples] == [(4,), (4, 3), (4,)]
    assert all(images.is_leaf and images.requires_grad and not labels.requires_grad for images, labels in samples)


def test_a_network_that_is_not_drawn_gives_its_memory_back(samples: list[tuple[Tensor, ...]]) -> None:
    zoo = Zoo([network(), network()], Objective(alignment=Alignment()), plan_of(CAPTURED, CAPTURED), seed=0)
    for chosen in ((0, 1), (0, 1), (0,), (0, 1)):
        zoo(torch.rand(4, 1, 6, 6).requires_grad_(), None, chosen)
    assert len(samples) == 3  # both, and the second once more


def test_without_labels_images_alone_are_given(samples: list[tuple[Tensor, ...]]) -> None:
    teacher, images = network(), torch.rand(4, 1, 6, 6)
    found, expected = (
        Zoo([teacher], Objective(alignment=Alignment()), plan_of(how), seed=0)(images, None, (0,))
        for how in (CAPTURED, Execution("float32", compiled=False))
    )
    assert [len(given) for given in samples] == [1]
    assert torch.equal(found["alignment"], expected["alignment"])


@pytest.mark.usefixtures("on_a_gpu")
def test_a_network_is_captured_that_sees_enough_batches() -> None:
    at_least = planning._WORTH_CAPTURING
    plan = plan_for([network(), network()], steps=at_least, count=4)
    assert set(plan.networks) == {CAPTURED}
    assert "float32, a CUDA graph" in plan.sentence
    assert Plan.from_dict(plan.as_dict()) == plan
    for how in ({"steps": at_least - 1}, {"steps": at_least, "teachers_per_batch": 1}):  # half of the batches each
        (network_of_two,) = set(plan_for([network(), network()], count=4, **how).networks)
        assert not network_of_two.captured


def test_a_loss_that_waits_is_not_captured(waiting_is_an_error: list[str]) -> None:
    class Asks(Fit):
        """Stands for a term that asks the GPU for a number."""

        def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
            fit = super().prepare(teacher, seed=seed)

            def asks(batch: Batch, outputs: TeacherOutputs) -> Tensor:
                if waiting_is_an_error[-1] == "error":
                    raise RuntimeError("called a synchronizing CUDA operation")
                return fit(batch, outputs)

            return asks

    plan, teachers = plan_of(CAPTURED, Execution("float32", compiled=False)), [network(), network()]
    assert settled(plan, teachers, Objective(fit=Fit()), seed=0) == plan
    (waits, other) = settled(plan, teachers, Objective(fit=Asks()), seed=0).networks
    assert waits == Execution("float32", compiled=False, note="its loss waits for the GPU")
    assert waits.sentence == "float32, not compiled (its loss waits for the GPU)"
    assert other == plan.networks[1]
    assert waiting_is_an_error == ["warn", *["default", "error", "warn"] * 2]  # as it was before


def test_a_gpu_without_memory_is_no_reason_to_plan_otherwise(waiting_is_an_error: list[str]) -> None:
    class Full(Fit):
        def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
            def full(batch: Batch, outputs: TeacherOutputs) -> Tensor:
                raise torch.OutOfMemoryError("CUDA out of memory")

            return full

    with pytest.raises(torch.OutOfMemoryError):
        settled(plan_of(CAPTURED), [network()], Objective(fit=Full()), seed=0)
    assert waiting_is_an_error[-1] == "warn"
