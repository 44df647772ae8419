"""`LabelledImages`: pixel units for whoever asks, and an answer to what does not fit."""

import pytest
import torch

from dfqlab.data import LabelledImages
from dfqlab.errors import DataError

BYTES = torch.arange(5 * 3 * 2 * 2, dtype=torch.uint8).reshape(5, 3, 2, 2) * 4
LABELS = torch.tensor([0, 1, 2, 1, 0])


def test_bytes_become_pixels_in_0_to_1_and_are_kept_as_given() -> None:
    data = LabelledImages("some", BYTES, LABELS)
    assert data.pixels is BYTES
    assert data.images.dtype == torch.float32
    assert torch.equal((data.images * 255).round(), BYTES.float())
    assert LabelledImages("white", torch.full_like(BYTES, 255), LABELS).images.min() == 1


def test_floats_stay_as_they_are() -> None:
    floats = torch.rand(5, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    data = LabelledImages("some", floats, LABELS)
    assert torch.equal(data.images, floats)
    assert data.size == (1, 4, 6)


def test_batches_come_in_order_and_the_last_is_smaller() -> None:
    data = LabelledImages("some", BYTES, LABELS, ("a", "b", "c"))
    batches = list(data.batches(2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), data.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), LABELS)
    assert len(data) == 5
    with pytest.raises(DataError, match="at least one image"):
        next(data.batches(0))


@pytest.mark.parametrize(
    ("pixels", "labels", "classes", "answer"),
    [
        (BYTES.int(), LABELS, None, r"uint8 in 0\.\.255 or float32 in 0\.\.1, got torch.int32"),
        (BYTES.double() / 255, LABELS, None, r"got torch.float64"),
        (BYTES[:, 0], LABELS, None, r"\(n, channels, height, width\), got \(5, 2, 2\)"),
        (BYTES[..., :0], LABELS, None, r"got \(5, 3, 2, 0\)"),
        (BYTES.float(), LABELS, None, r"lie in 0\.\.1, got 0\.\.236; divide by 255"),
        (BYTES / 255 - 0.1, LABELS, None, r"lie in 0\.\.1, got -0\.1"),
        (BYTES * torch.nan, LABELS, None, "got nan"),
        (BYTES, LABELS[:4], None, "5 images, but 4 labels"),
        (BYTES, LABELS.int(), None, "labels are int64"),
        (BYTES, LABELS[:, None], None, r"labels are int64 \(n,\), got torch.int64 \(5, 1\)"),
        (BYTES, LABELS - 1, None, "from 0, got -1"),
        (BYTES, LABELS, ("a", "b"), "a label is 2, but there are 2 classes"),
        (BYTES[:0], LABELS[:0], None, "some holds no image"),
    ],
)
def test_what_does_not_fit_is_answered(
    pixels: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...] | None, answer: str
) -> None:
    with pytest.raises(DataError, match=answer):
        LabelledImages("some", pixels, labels, classes)


def test_a_sample_is_drawn_at_random_since_folders_are_sorted_by_class() -> None:
    labels = torch.arange(10).repeat_interleave(20)
    pixels = labels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = LabelledImages("sorted", pixels, labels)
    drawn = data.sample(30, seed=1)
    assert drawn.shape == (30, 1, 2, 2)
    assert len(drawn.unique()) > 5
    assert torch.equal(drawn, data.sample(30, seed=1))
    assert not torch.equal(drawn, data.sample(30, seed=2))
    assert len(data.sample(1000, seed=1)) == 200
