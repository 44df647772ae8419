"""Diversity, against scipy's integrals, closed forms, and what must not change it."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm, wasserstein_distance
from torch import Tensor, nn

from dfqlab.errors import DataError, TeacherError
from dfqlab.images import StoredImages
from dfqlab.measures import (
    channel_activations,
    gaussian_distance,
    similarity_index,
    similarity_sum,
    statistics_variance,
    wasserstein_to_gaussian,
)
from dfqlab.teachers import Teacher

SIZE = (2, 6, 6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(values: Tensor, mean: float = 0.0, std: float = 1.0) -> float:
    return float(wasserstein_to_gaussian(values, torch.tensor(float(mean)), torch.tensor(float(std))))


def teacher_of(size: tuple[int, int, int] = SIZE, eps: float = 1e-5) -> Teacher:
    """Two BatchNorm layers, of which the first sees the image itself."""
    module = nn.Sequential(nn.BatchNorm2d(size[0], eps=eps), nn.Conv2d(size[0], 3, 3), nn.BatchNorm2d(3), nn.Flatten(2))
    module.append(nn.AdaptiveAvgPool1d(1)).append(nn.Flatten())
    generator = torch.Generator().manual_seed(0)
    for tensor in module[1].parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    assert module[0].running_mean is not None
    assert module[0].running_var is not None
    module[0].running_mean.copy_(torch.tensor([0.5, -1.0]))
    module[0].running_var.copy_(torch.tensor([4.0, 0.25]))
    return Teacher.from_module(module, size=size, mean=(0, 0), std=(1, 1), classes=3)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_the_distance_is_the_area_between_quantile_functions(count: int) -> None:
    values = 3 * normal(count) + 1
    z = np.sort((values.numpy() - 0.5) / 2)

    def between(u: float) -> float:
        return float(abs(z[min(count - 1, int(u * count))] - norm.ppf(u)))

    corners = {i / count for i in range(1, count)} | {float(norm.cdf(x)) for x in z}
    ends = [0.0, *sorted(corners), 1.0]
    area = sum(quad(between, low, high)[0] for low, high in itertools.pairwise(ends))
    assert distance(values, 0.5, 2) == pytest.approx(area, rel=1e-6)


def test_the_distance_is_scipy_s_from_a_fine_sample_of_the_gaussian() -> None:
    fine = norm.ppf((np.arange(400_000) + 0.5) / 400_000)
    for values in (normal(500), normal(500).abs(), 0.3 * normal(500) - 2):
        assert distance(values) == pytest.approx(wasserstein_distance(values.numpy(), fine), abs=2e-5)


def test_closed_forms() -> None:
    constant = math.sqrt(2 / math.pi)  # E|Z|
    assert distance(torch.full((7,), 3.0), 3.0, 5.0) == pytest.approx(constant, rel=1e-12)
    assert distance(torch.tensor([1e6])) == pytest.approx(1e6, rel=1e-12)
    exact = torch.tensor(norm.ppf((np.arange(100_000) + 0.5) / 100_000))
    assert distance(exact + 0.25) == pytest.approx(0.25, abs=1e-4)  # a shift moves all by as much
    assert distance(1.5 * exact) == pytest.approx(0.5 * constant, abs=1e-4)  # a stretch moves z by |z| / 2
    assert distance(exact) < 1e-4


def test_the_distance_counts_in_std_and_not_the_order() -> None:
    values = normal(300).exp()
    there = distance(values, 1.0, 2.0)
    assert distance(10 * values + 3, 13.0, 20.0) == pytest.approx(there, rel=1e-6)
    assert distance(values.flip(0), 1.0, 2.0) == there
    assert distance(values.repeat(3), 1.0, 2.0) == pytest.approx(there, rel=1e-12)


def test_each_channel_has_its_own_distance() -> None:
    values, mean, std = normal(2, 3, 50), normal(2, 3, seed=1), normal(2, 3, seed=2).abs()
    found = wasserstein_to_gaussian(values, mean, std)
    for place in np.ndindex(2, 3):
        assert float(found[place]) == pytest.approx(distance(values[place], float(mean[place]), float(std[place])))


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_a_std_that_nothing_can_be_divided_by_is_refused(std: float) -> None:
    with pytest.raises(DataError, match=r"running_var \+ eps"):
        distance(normal(3), 0.0, std)


def test_values_that_are_none_or_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="no values"):
        distance(torch.zeros(0))
    with pytest.raises(DataError, match="must be finite"):
        distance(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize("side", [6, 8])
def test_a_layer_s_distance_is_the_mean_over_channels_of_all_its_values(side: int) -> None:
    teacher = teacher_of((2, side, side))
    images = normal(70, 2, side, side).float()
    found = gaussian_distance(teacher, StoredImages(images))
    assert list(found) == ["0", "2"]
    channels = images.transpose(0, 1).flatten(1)
    expected = [distance(channels[0], 0.5, 2.0), distance(channels[1], -1.0, 0.5)]
    assert found["0"] == pytest.approx(np.mean(expected), rel=1e-6)
    second = channel_activations(teacher, "2", images).transpose(0, 1).flatten(1)
    assert found["2"] == pytest.approx(np.mean([distance(values) for values in second]), rel=1e-6)


def test_a_large_layer_is_thinned_and_says_nearly_the_same() -> None:
    teacher = teacher_of((2, 40, 40))
    images = normal(20, 2, 40, 40).float() * torch.linspace(0.1, 3, 20).reshape(-1, 1, 1, 1)
    channels = images.transpose(0, 1).flatten(1)
    expected = (distance(channels[0], 0.5, 2.0) + distance(channels[1], -1.0, 0.5)) / 2
    found = gaussian_distance(teacher, images, ["0"])
    assert list(found) == ["0"]
    assert found["0"] != expected
    assert found["0"] == pytest.approx(expected, rel=2e-3)
    assert gaussian_distance(teacher, images, ["0"]) == found


def test_thinning_takes_no_side() -> None:
    teacher = teacher_of((2, 40, 40))
    teacher.module.get_submodule("0").running_mean.zero_()
    images = normal(2, 2, 40, 40).float().exp()
    there, back = (gaussian_distance(teacher, side * images, ["0"])["0"] for side in (1, -1))
    assert there == pytest.approx(back, rel=1e-9)


def test_a_remembered_variance_of_zero_counts_as_eps() -> None:
    teacher = teacher_of(eps=0.01)
    teacher.module.get_submodule("0").running_var.zero_()
    images = torch.full((3, *SIZE), 0.5)
    constant = math.sqrt(2 / math.pi)
    assert gaussian_distance(teacher, images, ["0"])["0"] == pytest.approx((constant + 1.5 / 0.1) / 2, rel=1e-5)


def test_no_eps_and_no_variance_still_give_a_number() -> None:
    teacher = teacher_of(eps=0.0)
    teacher.module.get_submodule("0").running_var.zero_()
    assert math.isfinite(gaussian_distance(teacher, torch.zeros(3, *SIZE), ["0"])["0"])


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(TeacherError, match="no BatchNorm layer '1'"):
        gaussian_distance(teacher_of(), torch.zeros(2, *SIZE), ["1"])


@pytest.mark.traces
def test_statistics_vary_as_numpy_says() -> None:
    teacher = teacher_of()
    images = (normal(70, *SIZE) * torch.linspace(0.1, 2, 70).reshape(-1, 1, 1, 1)).float()
    found = statistics_variance(teacher, images)["0"]
    flat = images.double().flatten(2).numpy()
    unit = np.array([4.0, 0.25])
    assert found.mean_variance == pytest.approx((flat.mean(2).var(0) / unit).mean(), rel=1e-5)
    assert found.std_variance == pytest.approx((flat.std(2).var(0) / unit).mean(), rel=1e-5)


@pytest.mark.traces
def test_statistics_vary_within_the_unit_that_a_layer_remembers() -> None:
    """A brighter half and a darker half, two apart: variance 1 of the mean in both channels, none of the std."""
    images = torch.ones(10, *SIZE)
    images[:5] = -1
    found = statistics_variance(teacher_of(), images)["0"]
    assert found.mean_variance == pytest.approx((1 / 4 + 1 / 0.25) / 2)
    assert found.std_variance == pytest.approx(0, abs=1e-12)


@pytest.mark.traces
def test_one_image_and_the_same_image_again_do_not_vary() -> None:
    image = normal(1, *SIZE).float()
    for images in (image, image.expand(5, -1, -1, -1)):
        for found in statistics_variance(teacher_of(), images).values():
            assert found.mean_variance == pytest.approx(0, abs=1e-12)
            assert found.std_variance == pytest.approx(0, abs=1e-12)


@pytest.mark.traces
def test_the_order_of_images_does_not_count() -> None:
    teacher, images = teacher_of(), normal(90, *SIZE).float()
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    one, other = statistics_variance(teacher, images)["2"], statistics_variance(teacher, images[order])["2"]
    assert one.mean_variance == pytest.approx(other.mean_variance, rel=1e-6)
    assert one.std_variance == pytest.approx(other.std_variance, rel=1e-6)
    near = gaussian_distance(teacher, images)["2"]
    assert near == pytest.approx(gaussian_distance(teacher, images[order])["2"], rel=1e-6)


@pytest.mark.traces
def test_images_that_are_not_finite_are_refused() -> None:
    images = torch.full((2, *SIZE), math.nan)
    for measure in (gaussian_distance, statistics_variance):
        with pytest.raises(DataError, match="NaN"):
            measure(teacher_of(), images)


def test_similarity_is_numpy_s_mean_cosine_of_different_samples() -> None:
    features = normal(12, 3, 2, 2)
    rows = features.flatten(1).numpy()
    cosines = np.corrcoef(np.concatenate([rows, -rows], axis=1))  # each row with its negative: mean 0, so a cosine
    pairs = ~np.eye(12, dtype=bool)
    assert similarity_index(features) == pytest.approx(cosines[pairs].mean(), rel=1e-10)
    assert similarity_sum(features) == pytest.approx(cosines.sum(), rel=1e-10)


def test_similarity_from_one_way_to_all_ways() -> None:
    assert similarity_index(torch.arange(1.0, 5)[:, None] * torch.tensor([1.0, 2])) == pytest.approx(1)
    assert similarity_index(torch.eye(6)) == pytest.approx(0, abs=1e-12)
    assert similarity_index(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(-1 / 7)
    assert similarity_sum(torch.eye(6)) == pytest.approx(6)


def test_similarity_knows_neither_lengths_nor_order_nor_how_many() -> None:
    features = normal(40, 5).exp()
    index = similarity_index(features)
    assert similarity_index(features.flip(0) * normal(40, 1).abs()) == pytest.approx(index, rel=1e-12)
    halves = [similarity_index(features[part]) for part in (slice(20), slice(20, 40))]
    assert min(halves) - 0.05 < index < max(halves) + 0.05
    assert similarity_sum(features) > 3 * similarity_sum(features[:20])


def test_a_sample_of_zeros_is_similar_to_none() -> None:
    features = torch.tensor([[1.0, 0], [1, 0], [0, 0]])
    assert similarity_index(features) == pytest.approx(1 / 3)
    assert similarity_sum(features) == pytest.approx(4)


def test_similarity_needs_pairs_of_finite_features() -> None:
    with pytest.raises(DataError, match="1 samples make no pair"):
        similarity_index(torch.ones(1, 3))
    with pytest.raises(DataError, match="no samples"):
        similarity_sum(torch.ones(0, 3))
    for measure in (similarity_index, similarity_sum):
        with pytest.raises(DataError, match="NaN"):
            measure(torch.tensor([[1.0], [math.nan]]))
