"""Recognition and scores, against counts by hand, closed forms and equation 2 written out."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor, nn

from dfqlab.errors import ConfigurationError, DataError, TeacherError
from dfqlab.images import Batch, StoredImages
from dfqlab.measures import (
    Recognition,
    alignment_matrix,
    alignment_of,
    channel_activations,
    inception_score,
    inception_score_of,
    recognition,
)
from dfqlab.teachers import Teacher

SIZE = (3, 2, 2)


def brightest_channel(shift: int = 0, name: str = "exact", classes: int = 3) -> Teacher:
    """Names the channel that is brightest, or another one after it."""
    linear = nn.Linear(3, classes, bias=False)
    linear.weight.data = torch.eye(classes, 3).roll(shift, 0)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    return Teacher.from_module(module, size=SIZE, mean=(0,) * 3, std=(1,) * 3, classes=classes, name=name)


def colours(labels: Tensor) -> StoredImages:
    return StoredImages(torch.eye(3)[labels % 3][:, :, None, None].expand(-1, -1, 2, 2), labels)


LABELS = torch.tensor([0, 1, 2] * 50)


def test_recognition_counts_the_images_whose_label_a_network_names() -> None:
    images = colours(LABELS)
    wrong = StoredImages(images.images, torch.where(torch.arange(150) < 30, (LABELS + 1) % 3, LABELS))
    found = recognition([brightest_channel(), brightest_channel(1, "next")], wrong)
    assert found.accuracy == {"exact": pytest.approx(120 / 150), "next": pytest.approx(30 / 150)}
    assert found.count == 150


def test_the_zoo_has_a_mean_and_a_population_std() -> None:
    found = Recognition({"a": 0.9, "b": 0.7, "c": 0.5}, 10)
    assert found.mean == pytest.approx(np.mean([0.9, 0.7, 0.5]))
    assert found.std == pytest.approx(np.std([0.9, 0.7, 0.5]))
    assert str(found) == "70.0 ± 16.3 %"
    assert Recognition({"a": 0.25}, 4).std == 0


def test_a_set_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="without labels cannot be recognised"):
        recognition([brightest_channel()], StoredImages(colours(LABELS).images))


def test_mixed_images_have_no_class_to_recognise() -> None:
    class Mixed:
        def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
            yield Batch(colours(LABELS).images, torch.full((150, 3), 1 / 3))

    with pytest.raises(DataError, match=r"\(150, 3\) are shares of classes"):
        recognition([brightest_channel()], Mixed())


def test_labels_that_a_network_has_no_class_for_are_refused() -> None:
    for labels in (LABELS + 1, LABELS - 1):
        with pytest.raises(DataError, match="'exact' has 3 classes"):
            recognition([brightest_channel()], StoredImages(colours(LABELS).images, labels))


def test_a_zoo_is_teachers_each_by_its_own_name() -> None:
    for zoo in ([], [brightest_channel(), brightest_channel(1)]):
        with pytest.raises(ConfigurationError, match="a name of its own"):
            recognition(zoo, colours(LABELS))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(TeacherError, match="takes images of shape"):
        recognition([brightest_channel()], StoredImages(torch.zeros(3, 3, 4, 4), LABELS[:3]))


@pytest.mark.parametrize("splits", [1, 3, 7])
def test_the_inception_score_is_scipy_s_divergence(splits: int) -> None:
    logits = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = np.exp(logits.numpy())
    shares /= shares.sum(1, keepdims=True)
    scores = [np.exp(np.mean([entropy(row, part.mean(0)) for row in part])) for part in np.array_split(shares, splits)]
    assert inception_score(logits, splits) == pytest.approx(np.mean(scores), rel=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_sure_of_all_classes_is_their_number_and_the_same_of_all_is_one(classes: int) -> None:
    assert inception_score(1e4 * torch.eye(classes)) == pytest.approx(classes)
    assert inception_score(1e4 * torch.eye(classes)[:1].expand(20, -1)) == pytest.approx(1)
    assert inception_score(torch.zeros(20, classes)) == pytest.approx(1)


def test_sorted_images_in_splits_hold_one_class_each() -> None:
    assert inception_score(100 * torch.eye(4).repeat_interleave(5, 0), 4) == pytest.approx(1)


def test_the_order_does_not_count_in_one_split() -> None:
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    assert inception_score(logits.flip(0)) == pytest.approx(inception_score(logits), rel=1e-12)


def test_a_teacher_scores_images_in_batches() -> None:
    images = colours(LABELS).images * torch.linspace(0, 9, 150).reshape(-1, 1, 1, 1)
    teacher = brightest_channel()
    assert inception_score_of(teacher, images) == pytest.approx(inception_score(teacher(images)), rel=1e-9)


def test_scores_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="2 images in 3 splits"):
        inception_score(torch.zeros(2, 4), 3)
    with pytest.raises(ConfigurationError, match="splits=0"):
        inception_score(torch.zeros(2, 4), 0)
    with pytest.raises(DataError, match="logits hold NaN"):
        inception_score(torch.tensor([[0.0, math.nan]]))


def aligned_teacher(name: str = "bn") -> Teacher:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    module.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    generator = torch.Generator().manual_seed(3)
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.6, generator=generator)
    return Teacher.from_module(module, size=SIZE, mean=(0.4,) * 3, std=(0.2,) * 3, classes=2, name=name)


def equation_2(teacher: Teacher, images: Tensor) -> float:
    total = 0.0
    for layer in teacher.batch_norms:
        values = channel_activations(teacher, layer, images).double().transpose(0, 1).flatten(1)
        norm = teacher.module.get_submodule(layer)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        total += float((values.mean(1) - norm.running_mean).norm())
        total += float((values.var(1, correction=0) - norm.running_var).norm())
    return total


@pytest.mark.traces
@pytest.mark.parametrize("count", [1, 64, 150])
def test_alignment_is_equation_2_over_all_images(count: int) -> None:
    teacher = aligned_teacher()
    images = torch.rand(150, *SIZE, generator=torch.Generator().manual_seed(0))[:count]
    assert alignment_of(teacher, images) == pytest.approx(equation_2(teacher, images), rel=1e-5)


@pytest.mark.traces
def test_images_that_a_network_remembers_are_aligned_with_it_and_others_are_not() -> None:
    teacher = aligned_teacher()
    images = torch.rand(80, *SIZE, generator=torch.Generator().manual_seed(0))
    for layer in teacher.batch_norms:
        norm = teacher.module.get_submodule(layer)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        values = channel_activations(teacher, layer, images).transpose(0, 1).flatten(1)
        norm.running_mean.copy_(values.mean(1))
        norm.running_var.copy_(values.var(1, correction=0))
    assert alignment_of(teacher, images) == pytest.approx(0, abs=1e-4)
    assert alignment_of(teacher, images.flip(0)) == pytest.approx(0, abs=1e-4)
    assert alignment_of(teacher, 0.5 * images) > 0.1


@pytest.mark.traces
def test_the_matrix_asks_every_teacher_about_every_set() -> None:
    teachers = [aligned_teacher("one"), aligned_teacher("two")]
    sets = {"dark": colours(LABELS), "light": StoredImages(1 - colours(LABELS).images)}
    found = alignment_matrix(teachers, sets)
    assert {name: list(row) for name, row in found.items()} == {"one": ["dark", "light"], "two": ["dark", "light"]}
    assert found["two"]["light"] == alignment_of(teachers[1], sets["light"]) != found["two"]["dark"]


def test_a_matrix_needs_teachers_and_sets() -> None:
    for teachers, sets in (([], {"a": colours(LABELS)}), ([aligned_teacher()], {}), ([aligned_teacher()] * 2, {})):
        with pytest.raises(ConfigurationError, match="expected some of both"):
            alignment_matrix(teachers, sets)


def test_a_network_without_memory_cannot_be_aligned_with() -> None:
    with pytest.raises(TeacherError, match="no BatchNorm"):
        alignment_of(brightest_channel(), colours(LABELS))
