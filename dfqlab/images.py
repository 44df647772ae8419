"""Where images come from: batches, sources of batches, and a stored set of synthetic images."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfqlab import checkpoints
from dfqlab.errors import CheckpointError, DataError
from dfqlab.teachers import InputSpec

_AT_ONCE = 128  # images that are written together


@dataclass(frozen=True)
class Batch:
    """Images in pixel units, valid range 0..1, not normalised.

    Attributes:
        images: (n, c, h, w), float32.
        labels: (n,) class indices, (n, classes) shares of each class where images are mixed, or None where nobody
            knows them.
        weights: (n,) how much each image counts, or None: all the same.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"] | Float[Tensor, "n classes"] | None = None
    weights: Float[Tensor, "n"] | None = None


@runtime_checkable
class ImageSource(Protocol):
    """Anything that gives batches of images. Calibration, reconstruction and fine-tuning never ask which."""

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Go once over the images in batches of at most `size`: in a random order where a generator is given."""
        ...


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images in memory as a source."""

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def clamped(self) -> "StoredImages":
        """Valid pixels alone, to judge with: on others a quantized input is blamed for what nobody asks of it."""
        return StoredImages(self.images.clamp(0, 1), self.labels)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for start in range(0, len(self), size):
            chosen = order[start : start + size]
            yield Batch(self.images[chosen], None if self.labels is None else self.labels[chosen])


@dataclass(frozen=True, eq=False)
class SyntheticSet(StoredImages):
    """Synthetic images, with what is needed to make them again.

    Attributes:
        recipe: the name of the recipe that made them.
        seed: its seed.
        settings: the recipe's settings.
        plan: the execution plan (batch size, device, torch version; type and compilation of each network).
        teachers: fingerprints of the networks that they were made from.
        partial: whether the job was cancelled before its last step.
    """

    recipe: str = ""
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    teachers: tuple[str, ...] = ()
    partial: bool = False

    _KIND = "synthetic set"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; the same set gives the same bytes.

        Raises:
            OutputError: the place cannot be written or the disk is full; what was there before is still there.
        """
        self.save_parts(path, self.images.split(_AT_ONCE), len(self), self.labels)

    def save_parts(
        self,
        path: str | os.PathLike[str],
        parts: Iterable[Float[Tensor, "_ c h w"]],
        count: int,
        labels: Int[Tensor, " count"] | None,
    ) -> None:
        """`save`, of `count` images that come in parts and are never in memory together, in place of the set's own.

        Raises:
            OutputError: as of `save`.
        """
        others = {} if labels is None else {"labels": labels}
        shape = (count, *self.images.shape[1:])
        checkpoints.save_long(path, others, "images", parts, shape, kind=self._KIND, facts=self.facts)

    @property
    def facts(self) -> dict[str, Any]:
        """Where the images come from, as JSON gives it back."""
        facts: dict[str, Any] = {
            "recipe": self.recipe,
            "seed": self.seed,
            "settings": dict(self.settings),
            "plan": dict(self.plan),
            "teachers": list(self.teachers),
            "partial": self.partial,
        }
        facts = json.loads(json.dumps(facts))
        return facts

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SyntheticSet":
        """Read what `save` wrote.

        Raises:
            CheckpointError: not such a file, or damaged.
        """
        tensors, facts = checkpoints.load(path, kind=cls._KIND)
        try:
            facts["teachers"] = tuple(facts["teachers"])
            return cls(tensors["images"], tensors.get("labels"), **facts)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not a complete {cls._KIND}: {error}") from error


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, N(0, 1) in the network's normalised space: what one has without any method.

    Attributes:
        input: the network's input spec.
        count: how many images.
        seed: of the noise.
        clipped: cut to the valid pixel range: the control that a method which makes possible pixels is held to.
    """

    input: InputSpec
    count: int
    seed: int = 0
    clipped: bool = False

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        own = torch.Generator().manual_seed(self.seed % 2**63)
        if generator is not None and self.count:  # a random order needs all of them at once
            yield from StoredImages(self._next(self.count, own)).batches(size, generator)
            return
        for start in range(0, self.count, size):
            yield Batch(self._next(min(size, self.count - start), own))

    def _next(self, count: int, own: torch.Generator) -> Tensor:
        """Drawn one by one: the same images however many make a batch."""
        images = self.input.denormalize(
            torch.stack([torch.randn(self.input.size, generator=own) for _ in range(count)])
        )
        return images.clamp(0, 1) if self.clipped else images


def as_source(images: "ImageSource | Tensor", spec: InputSpec) -> ImageSource:
    """A source as it is; a user's tensor checked and wrapped.

    Raises:
        DataError: empty, of another size than the network takes, not finite, or outside 0..1.
    """
    if isinstance(images, Tensor):
        _check_user_images(images, spec)
        return StoredImages(images.to(torch.float32))
    if not isinstance(images, ImageSource):
        raise DataError(
            f"expected images (n, c, h, w), a SyntheticSet or another ImageSource, got {type(images).__name__}"
        )
    return images


def _check_user_images(images: Tensor, spec: InputSpec) -> None:
    if images.dim() != 4 or tuple(images.shape[1:]) != spec.size:
        raise DataError(f"images must be (n, {', '.join(map(str, spec.size))}), got {tuple(images.shape)}")
    if len(images) == 0:
        raise DataError("no images: the tensor is empty")
    if not images.is_floating_point():
        raise DataError(f"images must be floats in 0..1, got {images.dtype}; divide bytes by 255")
    if not torch.isfinite(images).all():
        raise DataError("images hold NaN or infinity")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise DataError(
            f"images must lie in 0..1, got {low:.3g}..{high:.3g}: give pixels, not normalised values "
            "(the teacher normalises on entry)"
        )
