"""MixMix's two mixings: of data, two images and their labels; of features, several teachers."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dfqlab.errors import ConfigurationError

Paste = Literal["resize", "cut"]


@dataclass(frozen=True)
class Box:
    """Where the second image goes, in pixels; its left and top edges are inside, right and bottom ones are not."""

    left: int
    top: int
    width: int
    height: int

    def check_inside(self, height: int, width: int) -> None:
        """Raise a ConfigurationError unless the box lies in an image of this size."""
        inside = self.left >= 0 and self.top >= 0 and self.width >= 1 and self.height >= 1
        if not inside or self.left + self.width > width or self.top + self.height > height:
            raise ConfigurationError(
                f"the box of {self.width} x {self.height} pixels at ({self.left}, {self.top}) does not lie in an image "
                f"of {width} x {height}"
            )


def draw_box(height: int, width: int, generator: torch.Generator) -> Box:
    """A box whose width and height are uniform, anywhere inside the image (MixMix, section 5).

    MixMix does not say where a box lies; inside, its area is exactly what it seems.
    """
    box_width = int(torch.randint(1, width + 1, (), generator=generator))
    box_height = int(torch.randint(1, height + 1, (), generator=generator))
    left = int(torch.randint(0, width - box_width + 1, (), generator=generator))
    top = int(torch.randint(0, height - box_height + 1, (), generator=generator))
    return Box(left, top, box_width, box_height)


def mix_images(
    first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"], box: Box, paste: Paste = "resize"
) -> tuple[Float[Tensor, "n c h w"], float]:
    """The first image with the whole second one, made smaller, in a box (MixMix, eqs. 7 and 8); and the box's share.

    Differentiable in both. The second is resized by linear interpolation; with "cut" the box shows instead what the
    second image has at that place (CutMix). `beta`, the area of the box over that of the
    image, is what the second's label counts (eq. 9).

    Raises:
        ConfigurationError: the box does not lie in the image.

    >>> mixed, beta = mix_images(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), Box(1, 0, 1, 2))
    >>> mixed.tolist(), beta
    ([[[[0.0, 1.0], [0.0, 1.0]]]], 0.5)
    """
    height, width = first.shape[-2:]
    box.check_inside(height, width)
    right, bottom = box.left + box.width, box.top + box.height
    if paste == "resize":
        small = F.interpolate(second, (box.height, box.width), mode="bilinear", align_corners=False)
    else:
        small = second[..., box.top : bottom, box.left : right]
    edges = [box.left, width - right, box.top, height - bottom]
    outside = F.pad(torch.zeros_like(small[:1, :1]), edges, value=1.0)
    return first * outside + F.pad(small, edges), box.width * box.height / (width * height)


def mix_labels(
    first: Int[Tensor, "n"], second: Int[Tensor, "n"], beta: float, classes: int
) -> Float[Tensor, "n classes"]:
    """`(1 - beta)` of the first class and `beta` of the second (MixMix, eq. 9).

    >>> mix_labels(torch.tensor([0]), torch.tensor([2]), 0.25, classes=3).tolist()
    [[0.75, 0.0, 0.25]]
    """
    shares = (1 - beta) * F.one_hot(first, classes) + beta * F.one_hot(second, classes)
    return shares.to(torch.get_default_dtype())


@dataclass(frozen=True)
class DataMixing:
    """At every step each image is mixed with another of its batch, in one box for all (MixMix, section 4.2).

    Who mixes with whom is a random permutation: now and then an image meets itself.

    Attributes:
        paste: "resize" puts the whole second image into the box (MixMix); "cut" puts what the second image has there
            (CutMix).
    """

    paste: Paste = "resize"

    def __post_init__(self) -> None:
        if self.paste not in ("resize", "cut"):
            raise ConfigurationError(f"paste={self.paste!r}: choose 'resize' or 'cut'")

    def __call__(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, "n"] | None,
        classes: int,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n classes"] | None]:
        """The batch and its labels as this step shows them."""
        height, width = images.shape[-2:]
        box = draw_box(height, width, generator)
        partner = torch.randperm(len(images), generator=generator).to(images.device)
        mixed, beta = mix_images(images, images[partner], box, self.paste)
        return mixed, None if labels is None else mix_labels(labels, labels[partner], beta, classes)


def draw_teachers(available: int, wanted: int | None, generator: torch.Generator) -> tuple[int, ...]:
    """Which of the zoo a batch is made from: all, or `wanted` of them, none twice (MixMix, Algorithm 1)."""
    if wanted is None or wanted == available:
        return tuple(range(available))
    return tuple(sorted(torch.randperm(available, generator=generator)[:wanted].tolist()))
