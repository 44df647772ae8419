"""`LabelledImages`: real images with the classes that they show, stored or read as they are asked for."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dfqlab.data.folders import ImageFiles
from dfqlab.errors import DataError


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Real images and the class of each.

    Attributes:
        name: what reports call them.
        pixels: (n, channels, height, width), uint8 in 0..255 or float32 in 0..1, kept as given; or image files, read
            a batch at a time.
        labels: (n,), int64, class numbers from 0.
        classes: a name for each class, or None.

    Raises:
        DataError: pixels or labels of another shape or type or outside their range, not one label an image, or none.
    """

    name: str
    pixels: Tensor | ImageFiles
    labels: Tensor
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pixels, Tensor):
            _check_pixels(self.name, self.pixels)
        if self.labels.dtype != torch.int64 or self.labels.dim() != 1:
            raise DataError(f"{self.name}: labels are int64 (n,), got {self.labels.dtype} {tuple(self.labels.shape)}")
        if len(self.labels) != len(self.pixels):
            raise DataError(f"{self.name}: {len(self.pixels)} images, but {len(self.labels)} labels")
        if len(self.labels) == 0:
            raise DataError(f"{self.name} holds no image")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0:
            raise DataError(f"{self.name}: a label is the number of a class from 0, got {low}")
        if self.classes is not None and high >= len(self.classes):
            raise DataError(f"{self.name}: a label is {high}, but there are {len(self.classes)} classes, from 0")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        if isinstance(self.pixels, ImageFiles):
            return self.pixels.size
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def images(self) -> Float[Tensor, "n c h w"]:
        """All images in pixel units, 0..1. Image files are read now, all of them."""
        return _unit(self.pixels[:])

    def sample(self, count: int, *, seed: int) -> Float[Tensor, "m c h w"]:
        """At most `count` images in pixel units, drawn at random, so that images sorted by class are no trap."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed % 2**63))
        return torch.cat([_unit(self.pixels[i : i + 1]) for i in sorted(order[: max(count, 1)].tolist())])

    def batches(self, size: int) -> Iterator[tuple[Float[Tensor, "b c h w"], Int64[Tensor, "b"]]]:
        """Images in pixel units (0..1) and their labels, `size` at a time and in order; the last batch may be smaller.

        Raises:
            DataError: `size` is less than 1, or an image file that cannot be read.
        """
        if size < 1:
            raise DataError(f"a batch has at least one image, got size {size}")
        for start in range(0, len(self), size):
            yield _unit(self.pixels[start : start + size]), self.labels[start : start + size]


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _check_pixels(name: str, pixels: Tensor) -> None:
    if pixels.dtype not in (torch.uint8, torch.float32):
        raise DataError(f"{name}: images are uint8 in 0..255 or float32 in 0..1, got {pixels.dtype}")
    if pixels.dim() != 4 or 0 in pixels.shape[1:]:
        raise DataError(f"{name}: images have shape (n, channels, height, width), got {tuple(pixels.shape)}")
    if pixels.dtype == torch.float32 and len(pixels):
        low, high = float(pixels.min()), float(pixels.max())  # NaN, where there is one
        if not (low >= 0 and high <= 1):
            raise DataError(f"{name}: float images lie in 0..1, got {low:g}..{high:g}; divide by 255 or clip them")
