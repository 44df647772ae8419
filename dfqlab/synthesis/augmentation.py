"""What happens to images before a teacher sees them, differently at every step: they shall hold without it too."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import ConfigurationError


@dataclass(frozen=True)
class Augmentation:
    """Jitter, mirror, crop; each differentiable in the images.

    Attributes:
        jitter: the batch is rolled by up to so many pixels up, down, left or right, what leaves on one side enters on
            the other (DeepInversion: 2 on CIFAR-10, 30 on ImageNet).
        flip: how likely the batch is mirrored left to right, in [0, 1] (DeepInversion's code: 0.5, where asked for).
        crop: how likely an image is cropped and enlarged again, in [0, 1] (IntraQ: 0.5).
        smallest_crop: the least share of the area that a crop keeps, in (0, 1] (IntraQ: 0.5).
    """

    jitter: int = 0
    flip: float = 0.0
    crop: float = 0.0
    smallest_crop: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.jitter, int) or self.jitter < 0:
            raise ConfigurationError(f"jitter={self.jitter}: expected a number of pixels")
        for name in ("flip", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name}={getattr(self, name)}: expected a probability in [0, 1]")
        if not 0 < self.smallest_crop <= 1:
            raise ConfigurationError(f"smallest_crop={self.smallest_crop}: expected a share of the area in (0, 1]")

    def __call__(self, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """The images as this step shows them."""
        if self.jitter:
            down, right = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=generator).tolist()
            images = torch.roll(images, (down, right), (2, 3))
        if self.flip and torch.rand((), generator=generator) < self.flip:
            images = images.flip(3)
        return self._cropped(images, generator) if self.crop else images

    def _cropped(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n = len(images)
        chosen, area, across, down = torch.rand(4, n, generator=generator)
        side = torch.where(chosen < self.crop, self.smallest_crop + (1 - self.smallest_crop) * area, 1.0).sqrt()
        free = 1 - side  # how far the middle of a crop may lie from that of the image, in half widths
        middle = torch.stack([(2 * across - 1) * free, (2 * down - 1) * free], 1)
        boxes = torch.cat([torch.diag_embed(side[:, None].expand(n, 2)), middle[:, :, None]], 2).to(images)
        grid = F.affine_grid(boxes, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
