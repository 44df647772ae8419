"""Terms on images: each against a value worked out by hand."""

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from dfqlab.errors import TeacherError
from dfqlab.images import Batch
from dfqlab.statistics import ObservedTeacher, Per
from dfqlab.synthesis.terms import Alignment
from dfqlab.teachers import Teacher

EPSILON = 1e-6


def teacher(mean: list[float], var: list[float]) -> Teacher:
    """One BatchNorm right behind the input: what it sees is what we give it."""
    channels = len(mean)
    norm = nn.BatchNorm2d(channels)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor(mean))
    norm.running_var.copy_(torch.tensor(var))
    module = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Teacher.from_module(
        module, size=(channels, 1, 2), mean=[0.5] * channels, std=[0.25] * channels, classes=channels
    )


def pixels(x: list[list[float]]) -> Tensor:
    """One channel, two pixels an image; what the network shall see, in pixel units."""
    return torch.tensor(x).reshape(-1, 1, 1, 2) * 0.25 + 0.5


def value_of(term: Alignment, teacher: Teacher, images: Tensor, per: Per | None = None) -> Tensor:
    return term.prepare(teacher, seed=0)(Batch(images), ObservedTeacher(teacher, per or term.per)(images))


def squared_gap(var: float, target_var: float) -> float:
    return (sqrt(var + EPSILON) - sqrt(target_var + EPSILON)) ** 2


IMAGES = pixels([[1, 3], [5, 7]])  # image means 2 and 6, variances 1 and 1; of the batch 4 and 5


@pytest.mark.parametrize("match_input", [True, False])
def test_equation_2_over_the_batch(match_input: bool) -> None:
    expected = (4 - 2) ** 2 + squared_gap(5, 4)
    if match_input:
        expected += 4**2 + squared_gap(5, 1)
    found = value_of(Alignment(match_input=match_input), teacher([2.0], [4.0]), IMAGES)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("match_input", [True, False])
def test_equation_2_per_sample_is_the_mean_over_images(match_input: bool) -> None:
    expected = ((2 - 2) ** 2 + (6 - 2) ** 2) / 2 + squared_gap(1, 4)
    if match_input:
        expected += (2**2 + 6**2) / 2 + squared_gap(1, 1)
    found = value_of(Alignment(per="sample", match_input=match_input), teacher([2.0], [4.0]), IMAGES)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_channels_and_layers_are_summed_not_averaged() -> None:
    one = value_of(Alignment(), teacher([2.0], [4.0]), IMAGES)
    three = value_of(Alignment(), teacher([2.0] * 3, [4.0] * 3), IMAGES.expand(-1, 3, -1, -1))
    assert float(three) == pytest.approx(3 * float(one), rel=1e-6)

    class TwoNorms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            single = teacher([2.0], [4.0]).module.get_submodule("0")
            self.norms = nn.ModuleList([single, teacher([2.0], [4.0]).module.get_submodule("0")])

        def forward(self, x: Tensor) -> Tensor:
            total: Tensor = self.norms[0](x) + self.norms[1](x)
            return total.mean((2, 3))

    two = Teacher.from_module(TwoNorms(), size=(1, 1, 2), mean=[0.5], std=[0.25], classes=1)
    term = Alignment(match_input=False)
    expected = 2 * float(value_of(term, teacher([2.0], [4.0]), IMAGES))
    assert float(value_of(term, two, IMAGES)) == pytest.approx(expected, rel=1e-6)


def test_a_perfect_match_costs_nothing_and_stays() -> None:
    images = pixels([[-1, 1], [-1, 1]]).requires_grad_()
    for per in ("batch", "sample"):
        found = value_of(Alignment(per=per), teacher([0.0], [1.0]), images)  # type: ignore[arg-type]
        assert float(found.detach()) == pytest.approx(0, abs=1e-12)
        (gradient,) = torch.autograd.grad(found, images)
        assert gradient.abs().max() < 1e-6


def test_a_batch_may_match_where_no_image_does() -> None:
    images, matched = pixels([[-1, -1], [1, 1]]), teacher([0.0], [1.0])
    assert float(value_of(Alignment(), matched, images)) == pytest.approx(0, abs=1e-12)
    assert float(value_of(Alignment(per="sample"), matched, images)) == pytest.approx(
        2 * (1 + squared_gap(0, 1)), rel=1e-5
    )


def test_a_term_on_the_batch_reads_statistics_of_samples_too() -> None:
    """Where another term of the objective asks for samples, one on the batch says the same as alone."""
    term, target = Alignment(per="batch"), teacher([2.0], [4.0])
    alone, beside = value_of(term, target, IMAGES), value_of(term, target, IMAGES, per="sample")
    assert float(beside) == pytest.approx(float(alone), rel=1e-6)


def test_the_gradient_is_finite_where_an_image_is_flat() -> None:
    images = pixels([[1, 1], [2, 2]]).requires_grad_()
    (gradient,) = torch.autograd.grad(value_of(Alignment(per="sample"), teacher([0.0], [1.0]), images), images)
    assert torch.isfinite(gradient).all()


def test_the_gradient_is_that_of_the_equation() -> None:
    images = IMAGES.double().requires_grad_()
    term, target = Alignment(per="sample"), teacher([2.0], [4.0])
    target.module.double()
    assert torch.autograd.gradcheck(lambda x: value_of(term, target, x), (images,))


def test_a_teacher_without_batch_norm_is_refused() -> None:
    plain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    without = Teacher.from_module(plain, size=(1, 1, 2), mean=[0.5], std=[0.25], classes=1)
    with pytest.raises(TeacherError, match=r"no BatchNorm layer.*alignment compares with BatchNorm statistics"):
        Alignment().prepare(without, seed=0)
