"""What natural images look like, whoever classifies them. All read normalised images: 0 is the mean colour."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dfqlab.errors import ConfigurationError

_TINY = 1e-12  # under a root, so that a flat image has a gradient, and it is zero


@dataclass(frozen=True)
class TotalVariation:
    """Differences of neighbouring pixels: noise has large ones.

    "l2", as DeepInversion's code: the sum of four norms, of the differences down, to the right and along both
    diagonals, each the root of a sum over an image's pixels and colours. "l1": the mean over an image's pixels of the
    absolute differences down and to the right, summed over colours. Both are averaged over images. (DeepInversion takes
    its norms over the whole batch, whose gradient is that of ours times sqrt(n).) "l2" can be differentiated once.
    """

    norm: str = "l2"

    def __post_init__(self) -> None:
        if self.norm not in ("l1", "l2"):
            raise ConfigurationError(f"norm={self.norm!r}: choose 'l1' or 'l2'")

    def of_images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """Averaged over images."""
        if self.norm == "l2":
            return cast("Tensor", _VariationNorms.apply(x)).mean(1).sum()
        down_and_right = islice(_neighbours(x), 2)
        summed = torch.stack([(one - other).abs().sum() for one, other in down_and_right]).sum()
        return summed / (x.shape[-1] * x.shape[-2] * len(x))


@dataclass(frozen=True)
class L2Prior:
    """The norm of an image, averaged over images: pixels shall not stray far from the mean colour (DeepInversion)."""

    def of_images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """Averaged over images."""
        return _norms(x).mean()


@dataclass(frozen=True)
class BlurPrior:
    """Mean squared difference, over images, colours and pixels, between an image and itself blurred.

    MixMix's account of The Knowledge Within's prior (section 3.1).

    Attributes:
        sigma: of the Gaussian, in pixels; it is cut at three sigma, and the image continues as its border.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ConfigurationError(f"sigma={self.sigma}: expected a positive number of pixels")

    def of_images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """Averaged over everything."""
        return (x - self.blurred(x)).square().mean()

    def blurred(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The image under a Gaussian."""
        reach = math.ceil(3 * self.sigma)
        offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        weights = torch.softmax(-offsets.square() / (2 * self.sigma**2), 0)  # a Gaussian that sums to 1
        padded = F.pad(x, [reach] * 4, mode="replicate").flatten(0, 1)[:, None]
        blurred = F.conv2d(F.conv2d(padded, weights.reshape(1, 1, -1, 1)), weights.reshape(1, 1, 1, -1))
        return blurred.reshape(x.shape)


@dataclass(frozen=True)
class LowPassPrior:
    """The energy of an image above a spatial frequency, averaged over images, colours and pixels.

    By Parseval's theorem the mean square of what a sharp low-pass filter takes away. Natural images have little there.

    Attributes:
        cutoff: as a share of the highest frequency that pixels along a row can show, in (0, 1).
    """

    cutoff: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.cutoff < 1:
            raise ConfigurationError(f"cutoff={self.cutoff}: expected a share in (0, 1)")

    def of_images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """Averaged over everything."""
        height, width = x.shape[-2:]
        rows, columns = (torch.fft.fftfreq(n, device=x.device) for n in (height, width))  # 0.5 is the highest
        above = torch.hypot(rows[:, None], columns[None, :]) > 0.5 * self.cutoff
        spectrum = torch.view_as_real(torch.fft.fft2(x, norm="ortho")).square().sum(-1)
        return (spectrum * above).mean()


class _VariationNorms(torch.autograd.Function):
    """For each direction (4), and each image, the norm of its differences.

    Autograd makes an image of each slice's gradient and adds all of them up: that is felt in a compiled step of a small
    network. Here they are added up in place, in half the time or less.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        differences = [one - other for one, other in _neighbours(x)]
        norms = torch.stack([_norms(difference) for difference in differences])
        ctx.save_for_backward(norms, *differences)
        return norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_norms: Tensor) -> Tensor:
        norms, *differences = ctx.saved_tensors
        n, c, height, width = differences[0].shape
        gradient: Tensor = norms.new_zeros(n, c, height + 1, width)
        shares = (of_norms / norms)[..., None, None, None]
        for (one, other), difference, share in zip(_neighbours(gradient), differences, shares, strict=True):
            part = difference * share
            one += part
            other -= part
        return gradient


def _neighbours(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of all pixels that have a neighbour and of those neighbours: down, right, along either diagonal."""
    yield x[..., 1:, :], x[..., :-1, :]
    yield x[..., 1:], x[..., :-1]
    yield x[..., 1:, 1:], x[..., :-1, :-1]
    yield x[..., 1:, :-1], x[..., :-1, 1:]


def _norms(x: Tensor) -> Tensor:
    """The norm of each image."""
    squared: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1).square()
    return (squared + _TINY).sqrt()
