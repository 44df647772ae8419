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
from dfqlab.synthesis.zoo import Zoo
from dfqlab.teachers import Teacher


def network() -> Teacher:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 3))
    return Teacher.from_module(module, size=(1, 6, 6), mean=(0.4,), std=(0.3,), classes=3)


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """What was given to be captured with; the graph is the function itself, as it was then."""
    given: list[tuple[Tensor, ...]] = []

    def capture(function: Callable[..., Any], like: tuple[Tensor, ...], **how: Any) -> Callable[..., Any]:
        given.append(like)
        return function

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return given


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


def test_there_is_a_graph_for_each_shape_of_images_and_labels(samples: list[tuple[Tensor, ...]]) -> None:
    plan = Plan(4, "cuda", torch.__version__, (Execution("float32", compiled=False, captured=True),))
    objective = Objective(alignment=Alignment(), fit=Fit())
    captured = Zoo([network()], objective, plan, seed=0)
    for number, labels in ((4, torch.arange(4) % 3), (4, torch.eye(3)[torch.arange(4) % 3]), (2, torch.arange(2))) * 2:
        images = torch.rand(number, 1, 6, 6).requires_grad_()
        captured(images, labels, (0,))
    assert [tuple(tensor.shape for tensor in given) for given in samples] == [
        ((4, 1, 6, 6), (4,)), ((4, 1, 6, 6), (4, 3)), ((2, 1, 6, 6), (2,)),
    ]  # fmt: skip
    assert all(images.is_leaf and images.requires_grad and not labels.requires_grad for images, labels in samples)


def test_without_labels_images_alone_are_given(samples: list[tuple[Tensor, ...]]) -> None:
    plan = Plan(4, "cuda", torch.__version__, (Execution("float32", compiled=False, captured=True),))
    eager = Plan(4, "cpu", torch.__version__, (Execution("float32", compiled=False),))
    teacher, images = network(), torch.rand(4, 1, 6, 6)
    found, expected = (
        Zoo([teacher], Objective(alignment=Alignment()), how, seed=0)(images, None, (0,)) for how in (plan, eager)
    )
    assert [len(given) for given in samples] == [1]
    assert torch.equal(found["alignment"], expected["alignment"])


@pytest.mark.usefixtures("on_a_gpu")
def test_a_network_is_captured_that_sees_enough_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_obstacle_to_capture", lambda teacher: "")
    at_least = planning._WORTH_CAPTURING
    plan = plan_for([network(), network()], steps=at_least, count=4)
    assert set(plan.networks) == {Execution("float32", compiled=False, captured=True)}
    assert "float32, a CUDA graph" in plan.sentence
    assert Plan.from_dict(plan.as_dict()) == plan
    for how in ({"steps": at_least - 1}, {"steps": at_least, "teachers_per_batch": 1}):  # half of the batches each
        (network_of_two,) = set(plan_for([network(), network()], count=4, **how).networks)
        assert not network_of_two.captured


@pytest.mark.usefixtures("on_a_gpu")
def test_a_network_that_no_graph_can_hold_is_run_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_obstacle_to_capture", lambda teacher: "it waits for the host")
    (how,) = plan_for([network()], steps=1000, count=4).networks
    assert how == Execution("float32", compiled=False, note="it waits for the host")
    assert how.sentence == "float32, not compiled (it waits for the host)"
