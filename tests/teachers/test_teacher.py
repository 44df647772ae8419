"""`Teacher` and `trace`: frozen, checked, and an answer to every module that does not fit."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from dfqlab.errors import TeacherError
from dfqlab.teachers import InputSpec, Teacher, trace


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # this line stands in the way
            return x
        return -x


def small(*extra: nn.Module) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *extra, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    for tensor in module.parameters():
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
    return module


def make(module: nn.Module, **changes: object) -> Teacher:
    arguments = {"size": (3, 8, 8), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "classes": 5, **changes}
    return Teacher.from_module(module, **arguments)  # type: ignore[arg-type]


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_teacher_normalises_pixels_on_entry() -> None:
    teacher = make(small())
    mean, std = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).reshape(3, 1, 1)
    expected = teacher.module((images() - mean) / std)
    assert torch.equal(teacher(images()), expected)


def test_normalisation_goes_back_and_knows_the_valid_range() -> None:
    spec = InputSpec((3, 8, 8), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert torch.allclose(spec.denormalize(spec.normalize(images())), images(), atol=1e-6)
    assert spec.valid_range == pytest.approx((-2.0, 3.0))  # (0 - 0.4) / 0.2 and (1 - 0.4) / 0.2


def test_the_module_is_copied_frozen_and_not_mutated() -> None:
    module = small(nn.Dropout(0.5)).train()
    before = copy.deepcopy(module.state_dict())
    teacher = make(module)
    teacher(images())
    trace(teacher)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert not any(m._forward_pre_hooks for m in module.modules())
    assert not any(m.training for m in teacher.module.modules())
    assert not any(p.requires_grad for p in teacher.module.parameters())
    assert not any(m._forward_pre_hooks for m in teacher.module.modules())


def test_batch_norms_are_in_forward_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.BatchNorm2d(3)
            self.unused = nn.BatchNorm2d(3)
            self.first = nn.BatchNorm2d(3)
            self.forgets = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.forgets(self.second(self.first(x))).mean((2, 3))  # type: ignore[no-any-return]

    assert make(Backwards(), classes=3).batch_norms == ("first", "second")


def test_classes_are_numbered_or_named() -> None:
    assert make(small()).classes == ("0", "1", "2", "3", "4")
    assert make(small(), classes=list("abcde")).classes == ("a", "b", "c", "d", "e")


def test_the_fingerprint_changes_with_one_weight_and_with_the_normalisation() -> None:
    module = small()
    reference = make(module).fingerprint
    assert make(copy.deepcopy(module)).fingerprint == reference
    assert make(module, mean=(0.4, 0.5, 0.61)).fingerprint != reference
    assert make(module, std=(0.2, 0.25, 0.31)).fingerprint != reference
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] += 1e-3  # type: ignore[index, operator]
    assert make(module).fingerprint != reference


@pytest.mark.traces  # a shape check would catch numpy's numbers before we take them
def test_the_fingerprint_does_not_see_what_kind_of_number_came() -> None:
    numbers = {"size": np.array([3, 8, 8]), "mean": np.array([0, 0.5, 1]), "std": np.array([1, 0.5, 0.25])}
    plain = {"size": (3, 8, 8), "mean": (0, 0.5, 1), "std": (1, 0.5, 0.25)}
    assert make(small(), **numbers).fingerprint == make(small(), **plain).fingerprint


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"size": (3, 0, 8)}, r"\(channels, height, width\)"),
        ({"size": (8, 8)}, r"\(channels, height, width\)"),
        ({"size": (3, 8.5, 8)}, "whole numbers"),
        ({"mean": (0.5,)}, "mean needs one value for each of 3 channels, got 1"),
        ({"std": (0.5, 0.5)}, "std needs one value for each of 3 channels, got 2"),
        ({"std": (0.2, 0.0, 0.3)}, "std must be positive"),
        ({"mean": (0.4, float("nan"), 0.6)}, "mean must be finite"),
        ({"size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}, r"'Sequential' does not take images of size \(1, 8, 8\)"),
        ({"size": (3, 2, 2)}, "does not take images"),
        ({"classes": 6}, r"logits of shape \(n, 6\) for 6 classes, got \(2, 5\)"),
        ({"classes": ["a", "b"], "name": "mine"}, r"'mine' must return logits of shape \(n, 2\)"),
        ({"leaves": ["9"]}, "no submodule '9'; known: 0, 1, 2, 3, 4"),
        ({"leaves": [""]}, "no submodule ''"),
    ],
)
@pytest.mark.traces  # some of these a shape check would catch before we answer
def test_what_does_not_fit_is_answered(changes: dict[str, object], answer: str) -> None:
    with pytest.raises(TeacherError, match=answer):
        make(small(), **changes)


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(TeacherError, match=r"must return logits .* got tuple"):
        make(Pair())


def test_a_failed_probe_leaves_no_hooks() -> None:
    module = small()
    with pytest.raises(TeacherError):
        make(module, classes=6)
    assert not any(m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TeacherError, match=r"takes images of shape \(n, 3, 8, 8\), got"):
        make(small())(torch.zeros(shape))


def test_a_network_without_batch_norm_says_what_it_has_instead() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    grouped = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GroupNorm(2, 4), *plain[1:], nn.Linear(4, 5))
    purpose = "recipe 'zeroq' aligns BatchNorm statistics"
    with pytest.raises(TeacherError, match=f"no BatchNorm layer.*{purpose}.*2 GroupNorm layers.*lesson 02"):
        make(grouped).require_batch_norm(purpose)
    with pytest.raises(TeacherError, match="no normalisation layer"):
        make(plain).require_batch_norm(purpose)
    make(small()).require_batch_norm(purpose)


def test_a_teacher_on_another_device_leaves_this_one_where_it_is() -> None:
    teacher = make(small())
    moved = teacher.to("meta")
    assert (teacher.device.type, moved.device.type) == ("cpu", "meta")
    assert moved.fingerprint == teacher.fingerprint


def test_the_trace_computes_the_same_with_the_teachers_own_modules() -> None:
    teacher = make(small())
    traced = trace(teacher)
    x = teacher.input.normalize(images())
    assert torch.equal(traced(x), teacher.module(x))
    assert traced.get_submodule("1") is teacher.module.get_submodule("1")


def test_a_module_that_does_not_trace_is_named_with_its_line_and_its_leaf() -> None:
    teacher = make(small(nn.Sequential(nn.ReLU(), Branching())))
    with pytest.raises(TeacherError) as caught:
        trace(teacher)
    message = str(caught.value)
    assert "test_teacher.py:" in message
    assert "`if x.sum() > 0:  # this line stands in the way`" in message
    assert "leaves=['2.1']" in message


def test_a_leaf_is_not_entered() -> None:
    teacher = make(small(nn.Sequential(nn.ReLU(), Branching())), leaves=["2.1"])
    traced = trace(teacher)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"][:4] == ["0", "1", "2.0", "2.1"]
    x = teacher.input.normalize(images())
    assert torch.equal(traced(x), teacher.module(x))


def test_a_line_of_the_network_itself_is_advised_into_a_submodule() -> None:
    class Outermost(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if bool(x.mean() > 9) else -x.mean((2, 3))

    with pytest.raises(TeacherError, match=r"x\.mean\(\) > 9.*Move that line into a submodule"):
        trace(make(Outermost(), classes=3))


def test_a_line_of_torchvision_is_not_taken_for_one_of_torch() -> None:
    class Cropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return center_crop(x, [1, 1]).flatten(1)  # type: ignore[no-any-return]

    with pytest.raises(TeacherError) as caught:
        trace(make(Cropping(), classes=3))
    assert "test_teacher.py" not in str(caught.value)


@pytest.mark.traces  # shape checks off: the error is ours
@pytest.mark.parametrize("wrong", [{"size": 64}, {"mean": 0.5}, {"std": None}])
def test_a_number_where_a_sequence_belongs_is_explained(wrong: dict[str, object]) -> None:
    arguments = {"size": (1, 4, 4), "mean": (0.5,), "std": (0.5,), "classes": 2} | wrong
    with pytest.raises(TeacherError, match="one number a channel"):
        Teacher.from_module(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), **arguments)  # type: ignore[arg-type]
