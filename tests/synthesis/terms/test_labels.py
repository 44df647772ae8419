"""Cross-entropy with classes, with shares of classes, and smoothed."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.images import Batch
from dfqlab.objective import Term
from dfqlab.statistics import Layout, Statistics, TeacherOutputs
from dfqlab.synthesis.mixing import mix_labels
from dfqlab.synthesis.terms import CrossEntropy
from dfqlab.teachers import Teacher

FIRST, SECOND = torch.tensor([0, 3, 2, 2]), torch.tensor([1, 3, 0, 2])


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def value_of(term: CrossEntropy, teacher: Teacher, logits: Tensor, labels: Tensor | None) -> Tensor:
    one = torch.ones(1)
    outputs = TeacherOutputs(logits, Statistics(one, one, Layout(("0",), (1,)), one, one), None)
    return term.prepare(teacher, seed=0)(Batch(torch.zeros(len(logits), 2, 6, 6), labels), outputs)


def test_it_is_the_mean_over_samples_of_minus_the_logarithm_of_the_classes_share(
    teacher: Teacher, logits: Tensor
) -> None:
    expected = -np.mean([log_softmax(row)[label] for row, label in zip(logits.numpy(), FIRST, strict=True)])
    found = value_of(CrossEntropy(), teacher, logits, FIRST)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_shares_of_two_classes_are_the_linear_combination_of_equation_9(
    teacher: Teacher, logits: Tensor, beta: float
) -> None:
    first, second = (float(value_of(CrossEntropy(), teacher, logits, labels)) for labels in (FIRST, SECOND))
    mixed = value_of(CrossEntropy(), teacher, logits, mix_labels(FIRST, SECOND, beta, classes=5).double())
    assert first != pytest.approx(second, rel=0.05)
    assert float(mixed) == pytest.approx((1 - beta) * first + beta * second, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
@pytest.mark.parametrize("mixed", [False, True])
def test_smoothing_spreads_a_share_of_every_label_evenly(
    teacher: Teacher, logits: Tensor, smoothing: float, mixed: bool
) -> None:
    labels = mix_labels(FIRST, SECOND, 0.25, classes=5).double() if mixed else FIRST
    shares = labels.numpy() if mixed else np.eye(5)[FIRST]
    soft = (1 - smoothing) * shares + smoothing / 5
    expected = -np.mean(np.sum(soft * log_softmax(logits.numpy(), 1), 1))
    assert float(value_of(CrossEntropy(smoothing), teacher, logits, labels)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_is_what_the_teacher_says_less_what_it_shall_say(
    teacher: Teacher, logits: Tensor, smoothing: float
) -> None:
    found = value_of(CrossEntropy(smoothing), teacher, logits.requires_grad_(), FIRST)
    (gradient,) = torch.autograd.grad(found, logits)
    wanted = (1 - smoothing) * np.eye(5)[FIRST] + smoothing / 5
    expected = (softmax(logits.detach().numpy(), 1) - wanted) / 4
    torch.testing.assert_close(gradient, torch.from_numpy(expected), rtol=1e-10, atol=1e-12)


def test_a_job_without_labels_is_told_how_to_get_them(teacher: Teacher, logits: Tensor) -> None:
    with pytest.raises(ConfigurationError, match="needs labels, and this job has none: ask for labels='balanced'"):
        value_of(CrossEntropy(), teacher, logits, None)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0])
def test_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"smoothing={smoothing}: expected a share in \[0, 1\)"):
        CrossEntropy(smoothing)


def test_it_asks_for_no_more_than_statistics_of_the_batch() -> None:
    assert isinstance(CrossEntropy(), Term)
    assert CrossEntropy().per == "batch"
