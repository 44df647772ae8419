"""The graph of a teacher: BatchNorm is BatchNorm however it is written, and checks of shapes are not part of it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfqlab.teachers import Teacher, trace
from dfqlab.teachers.tracing import replace_submodule


class NormAct(nn.BatchNorm2d):
    """BatchNorm with its activation, as timm writes it."""

    def __init__(self, channels: int, **settings: Any) -> None:
        super().__init__(channels, **settings)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4 dimensions, got {x.ndim}")
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or self.running_mean is None, 0.0, self.eps,
        )  # fmt: skip
        return self.act(y)  # type: ignore[no-any-return]


def make(norm: nn.Module) -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for tensor in module.parameters():
        tensor.data.normal_(generator=generator)
    for tensor in (getattr(norm, "running_mean", None), getattr(norm, "running_var", None)):
        if tensor is not None:
            tensor.uniform_(0.5, 2, generator=generator)
    return Teacher.from_module(module, size=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, classes=4)


def targets(teacher: Teacher) -> list[str]:
    """What is called, in order; without the shapes that only an error message would have read."""
    return [str(node.target) for node in trace(teacher).graph.nodes if node.op.startswith("call") and node.users]


@pytest.mark.parametrize("settings", [{}, {"eps": 0.3}, {"affine": False}])
def test_a_norm_written_as_a_function_stands_in_the_graph_as_the_layer_it_is(settings: dict[str, Any]) -> None:
    teacher = make(NormAct(4, **settings))
    assert targets(teacher) == ["0", "1", "1.act", "2", "3"]
    traced = trace(teacher)
    norm = traced.get_submodule("1")
    assert type(norm) is nn.BatchNorm2d
    assert norm.running_var is teacher.module.get_buffer("1.running_var")
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(traced(x), teacher.module(x))


def test_the_teacher_keeps_the_module_it_has() -> None:
    teacher = make(NormAct(4))
    trace(teacher)
    assert type(teacher.module.get_submodule("1")) is NormAct
    assert type(trace(teacher).get_submodule("1")) is nn.BatchNorm2d  # and traces again


def test_a_norm_that_forgets_stays_the_function_it_is() -> None:
    assert targets(make(NormAct(4, track_running_stats=False))) == [
        "0", str(F.batch_norm), "1.act", "2", "3",
    ]  # fmt: skip


def test_every_check_of_shapes_is_left_out_and_nothing_else() -> None:
    class Checks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            torch._assert(x.shape[1] == 3, "three channels")
            y = self.conv(x)
            torch._assert(y.size(0) == x.size(0), "as many as before")
            return y.mean((2, 3))  # type: ignore[no-any-return]

    teacher = Teacher.from_module(Checks(), size=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, classes=4)
    assert targets(teacher) == ["conv", "mean"]


def test_a_module_put_in_anothers_place_keeps_what_stood_below() -> None:
    traced = trace(make(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())))
    new = nn.Identity()
    replace_submodule(traced, "1", new)
    assert traced.get_submodule("1") is new
    assert isinstance(traced.get_submodule("1.1"), nn.ReLU)


def test_the_families_of_timm_show_all_their_norms() -> None:
    import timm

    module = timm.create_model("mobilenetv3_small_050", num_classes=3)
    teacher = Teacher.from_module(module, size=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3, classes=3)
    traced = trace(teacher)
    found = [
        n.target
        for n in traced.graph.find_nodes(op="call_module")
        if isinstance(traced.get_submodule(n.target), nn.BatchNorm2d)  # type: ignore[arg-type]
    ]
    assert tuple(found) == teacher.batch_norms
    assert len(found) == 34
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(traced(x), module.eval()(x))
