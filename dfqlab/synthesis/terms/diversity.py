"""Samples that shall differ from one another."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import DataError

_TINY = 1e-12


def sample_correlation(features: Float[Tensor, "n *d"]) -> Float[Tensor, ""]:
    """How correlated samples are, in 0..1: the mean over pairs i != j of `K_ij^2`, K the Gram matrix of unit rows.

    This stands for DSG's sample correlation inhibition (eq. 9), which compares K's eigenvalues and eigenvectors with
    those of random vectors. In many more dimensions than there are samples these are all but orthogonal: K is the
    identity, its eigenvalues are 1, and `sum over i of (lambda_i - 1)^2 = sum over i != j of K_ij^2`. So this is
    eq. 9's distance of eigenvalues, squared. Its eigenvectors are left out: where K is near the identity, which is what
    the loss asks for, they are arbitrary and their gradient has no bound. The gradient of this is finite everywhere
    and, in K, zero at the identity alone.

    Args:
        features: one row a sample; all but the first dimension count as one.

    Raises:
        DataError: fewer than two samples.

    >>> round(sample_correlation(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).item(), 6)
    0.0
    >>> round(sample_correlation(torch.tensor([[1.0, 1.0], [3.0, 3.0]])).item(), 6)
    1.0
    """
    n = len(features)
    if n < 2:
        raise DataError("a correlation needs at least two samples")
    rows = features.flatten(1)
    rows = rows / (rows.square().sum(1, keepdim=True) + _TINY).sqrt()
    gram = rows @ rows.T
    others = 1 - torch.eye(n, dtype=gram.dtype, device=gram.device)
    return (gram * others).square().sum() / (n * (n - 1))


@dataclass(frozen=True)
class SampleCorrelation:
    """`sample_correlation` of the images themselves, as DSG's code for post-training quantization does (DSG, eq. 9)."""

    def of_images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """The mean over pairs of images."""
        return sample_correlation(x)
