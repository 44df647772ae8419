"""A source is measured as a whole, whatever batches it comes in, and leaves the teacher as it was."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dfqlab.errors import DataError, TeacherError
from dfqlab.images import Batch, Noise, StoredImages
from dfqlab.measures import channel_activations, sample_statistics
from dfqlab.measures.activations import BATCH_SIZE, checked_batches
from dfqlab.teachers import Teacher

SIZE = (2, 5, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.hidden, self.vector_norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        logits: Tensor = self.head(self.vector_norm(self.hidden(y)))
        return logits


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    module = Net()
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    return Teacher.from_module(module, size=SIZE, mean=(0.4, 0.6), std=(0.2, 0.5), classes=5)


def rand(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def into_the_convolution(teacher: Teacher, images: Tensor) -> Tensor:
    """What reaches the first BatchNorm, without a hook."""
    return teacher.module.get_submodule("conv")(teacher.input.normalize(images)).flatten(2)


@pytest.mark.parametrize("count", [1, BATCH_SIZE, 2 * BATCH_SIZE + 7])
def test_a_layer_s_activations_are_what_the_layer_before_it_gives(teacher: Teacher, count: int) -> None:
    images = rand(count)
    found = channel_activations(teacher, "norm", StoredImages(images))
    assert found.shape == (count, 3, 6)
    torch.testing.assert_close(found, into_the_convolution(teacher, images))
    assert not found.requires_grad


def test_a_layer_of_vectors_has_one_position(teacher: Teacher) -> None:
    assert channel_activations(teacher, "vector_norm", rand(3)).shape == (3, 4, 1)


def test_no_hook_is_left_behind_not_even_by_a_network_that_fails(teacher: Teacher) -> None:
    channel_activations(teacher, "norm", rand(3))
    with pytest.raises(TeacherError):
        channel_activations(teacher, "norm", rand(3)[:, :, :4])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in teacher.module.modules())


def test_of_a_layer_that_runs_twice_the_first_time_counts() -> None:
    norm = nn.BatchNorm2d(2)
    module = nn.Sequential(norm, nn.ReLU(), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = Teacher.from_module(module, size=SIZE, mean=(0, 0), std=(1, 1), classes=2)
    images = rand(3) - 0.5
    torch.testing.assert_close(channel_activations(teacher, "0", images), images.flatten(2))


def test_what_is_captured_is_not_changed_by_what_follows_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            y = self.norm(x)
            x.zero_()
            return (x + y).mean((2, 3))

    teacher = Teacher.from_module(InPlace(), size=SIZE, mean=(0, 0), std=(1, 1), classes=2)
    images = rand(3)
    torch.testing.assert_close(channel_activations(teacher, "norm", images), images.flatten(2) + 1)


@pytest.mark.traces
def test_pooled_samples_are_the_statistics_of_the_whole_source(teacher: Teacher) -> None:
    images = rand(2 * BATCH_SIZE + 7) * torch.linspace(0.1, 1, 2 * BATCH_SIZE + 7).reshape(-1, 1, 1, 1)
    whole = into_the_convolution(teacher, images).double()
    mean, var = sample_statistics(teacher, images).over_batch().of("norm")
    torch.testing.assert_close(mean, whole.mean((0, 2)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var, whole.var((0, 2), correction=0), rtol=1e-5, atol=1e-6)


@pytest.mark.traces
def test_statistics_of_each_image_are_its_own(teacher: Teacher) -> None:
    images = rand(BATCH_SIZE + 3)
    mean, var = sample_statistics(teacher, StoredImages(images)).of("norm")
    own = into_the_convolution(teacher, images).double()
    assert mean.dtype == torch.float64
    torch.testing.assert_close(mean, own.mean(2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var, own.var(2, correction=0), rtol=1e-5, atol=1e-6)


def test_a_tensor_outside_the_valid_range_is_measured_as_it_is(teacher: Teacher) -> None:
    images = 7 * rand(3) - 3
    (batch,) = checked_batches(images)
    torch.testing.assert_close(batch.images, images)
    assert next(checked_batches(Noise(teacher.input, 3))).images.min() < 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_named(teacher: Teacher, broken: float) -> None:
    images = rand(BATCH_SIZE + 2)
    images[-1, 0, 0, 0] = broken
    with pytest.raises(DataError, match=rf"images {BATCH_SIZE} to {BATCH_SIZE + 1} hold NaN"):
        channel_activations(teacher, "norm", images)


@pytest.mark.traces
def test_images_that_make_the_network_overflow_are_refused(teacher: Teacher) -> None:
    with pytest.raises(DataError, match="overflow"):
        sample_statistics(teacher, 1e38 * rand(2))


def test_nothing_bytes_and_other_pairs_are_refused(teacher: Teacher) -> None:
    class Pairs:
        def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
            yield rand(2), torch.zeros(2)  # type: ignore[misc]

    with pytest.raises(DataError, match="no images"):
        list(checked_batches(rand(0)))
    with pytest.raises(DataError, match=r"Pairs gives tuple.*try StoredImages\(data.images"):
        list(checked_batches(Pairs()))


@pytest.mark.traces
def test_bytes_are_refused(teacher: Teacher) -> None:
    with pytest.raises(DataError, match="divide bytes by 255"):
        channel_activations(teacher, "norm", torch.zeros(2, *SIZE, dtype=torch.uint8))


def test_a_layer_that_is_no_batch_norm_is_refused(teacher: Teacher) -> None:
    with pytest.raises(TeacherError, match=r"no BatchNorm layer 'conv'; .*norm"):
        channel_activations(teacher, "conv", rand(2))
