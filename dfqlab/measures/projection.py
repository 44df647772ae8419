"""Sets of images as points in a plane, and how dense the densest spot of each is (DSG, Fig. 2 e, f and Fig. 7)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import DataError, did_you_mean

_STEPS = 500
_SETTLED = 1e-9  # bandwidths
_EXACT = "donot_use_mm_for_euclid_dist"


@dataclass(frozen=True, eq=False)
class PrincipalProjection:
    """Sets of images in the plane of two principal components.

    Attributes:
        points: (n, 2) of each set, by its name, in float64, in pixel units: a rotation into the plane, no scaling.
        explained: the share of the variance that each component holds, 0..1, of what the plane was fitted to.
    """

    points: Mapping[str, Float[Tensor, "_ 2"]]
    explained: tuple[float, float]


@dataclass(frozen=True)
class Peak:
    """The densest spot of points in a plane.

    Attributes:
        density: share of the points for each unit of area there.
        at: where it is.
    """

    density: float
    at: tuple[float, float]


def principal_projection(sets: Mapping[str, Float[Tensor, "_ ..."]], fit: str | None = None) -> PrincipalProjection:
    """Project sets of images, flattened, onto two principal components, the same for all.

    A component points to where its largest entry is positive, so that a plane comes out the same every time. Along one
    in which the fitted images do not vary, every point is 0. In float64.

    Args:
        sets: images or features of any one shape, by name.
        fit: the set whose components these are, e.g. real images; those of all sets together if None.

    Raises:
        DataError: no sets, an unknown name, images of several shapes, of fewer than two numbers or not finite, or
            fewer than two to fit.
    """
    shapes = {tuple(images.shape[1:]) for images in sets.values()}
    if len(shapes) != 1 or math.prod(next(iter(shapes))) < 2:
        raise DataError(f"images of shapes {sorted(shapes)}: expected one shape, of two numbers or more")
    if fit is not None and fit not in sets:
        raise DataError(f"no set {fit!r} to fit; {did_you_mean(fit, sets)}")
    rows = {name: images.detach().flatten(1).double() for name, images in sets.items()}
    for name, of in rows.items():
        if not torch.isfinite(of).all():
            raise DataError(f"{name!r} holds NaN or infinity")
    fitted = torch.cat(list(rows.values())) if fit is None else rows[fit]
    if len(fitted) < 2:
        raise DataError(f"{len(fitted)} images to fit components to, expected two or more")
    centre = fitted.mean(0)
    _, lengths, components = torch.linalg.svd(fitted - centre, full_matrices=False)
    lengths, components = lengths[:2], components[:2]
    signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    varies = lengths > 1e-12 * (fitted.abs().max() + 1e-300) * math.sqrt(fitted.numel())
    components = torch.where(varies[:, None], components * signs, 0.0)
    shares = torch.where(varies, lengths.square(), 0.0) / (fitted - centre).square().sum().clamp(min=1e-300)
    return PrincipalProjection(
        {name: (of - centre) @ components.T for name, of in rows.items()}, (float(shares[0]), float(shares[1]))
    )


def shared_bandwidth(sets: Iterable[Float[Tensor, "_ 2"]]) -> Float[Tensor, "2 2"]:
    """Scott's rule (1992) on the union of sets: the covariance of a Gaussian kernel, `n^(-1/3)` that of all points.

    One bandwidth for all makes their densities comparable: a rule for each set would smooth a narrow set less.

    Raises:
        DataError: fewer than three points, points that are not finite, or points on one line.
    """
    points = torch.cat([of.double() for of in sets])
    if len(points) < 3 or not torch.isfinite(points).all():
        raise DataError(f"{len(points)} points: expected three or more, all finite")
    covariance: Tensor = points.T.cov() * len(points) ** (-1 / 3)
    if float(torch.linalg.det(covariance)) <= 1e-12 * float(covariance.trace()) ** 2:
        raise DataError("all points lie on one line: they have no density in a plane")
    return covariance


def kernel_density(
    points: Float[Tensor, "n 2"], at: Float[Tensor, "m 2"], bandwidth: Float[Tensor, "2 2"]
) -> Float[Tensor, "m"]:
    """The density of points at some places, from 0 up; over the plane it sums to 1.

    Args:
        bandwidth: the covariance of the Gaussian that stands for each point.

    Raises:
        DataError: no points, or a bandwidth that is no covariance.
    """
    factor, area = _scale(points, bandwidth)
    distance = torch.cdist(_whitened(at, factor), _whitened(points, factor), compute_mode=_EXACT)
    return torch.exp(-0.5 * distance.square()).mean(1) / area


def peak_density(points: Float[Tensor, "n 2"], bandwidth: Float[Tensor, "2 2"]) -> Peak:
    """The highest kernel density of points anywhere in the plane: DSG's density index (Fig. 2 e, f).

    Climbed to from every point by mean shift, which never steps down. The paper gives its index no unit; this one is a
    share of the points for each unit of area, so that sets of different sizes compare.

    Args:
        bandwidth: shared by all sets to be compared, as `shared_bandwidth` gives it.

    Raises:
        DataError: no points, points that are not finite, or a bandwidth that is no covariance.
    """
    factor, area = _scale(points, bandwidth)
    centres = _whitened(points, factor)
    climbers = centres.clone()
    for _ in range(_STEPS):
        pull = torch.softmax(-0.5 * torch.cdist(climbers, centres, compute_mode=_EXACT).square(), dim=1)
        reached = pull @ centres
        moved = float((reached - climbers).norm(dim=1).max())
        climbers = reached
        if moved < _SETTLED:
            break
    heights = torch.exp(-0.5 * torch.cdist(climbers, centres, compute_mode=_EXACT).square()).mean(1)
    best = int(heights.argmax())
    x, y = (factor @ climbers[best]).tolist()
    return Peak(float(heights[best]) / area, (x, y))


def _whitened(points: Tensor, factor: Tensor) -> Tensor:
    whitened: Tensor = torch.linalg.solve_triangular(factor, points.double().T, upper=False)
    return whitened.T.contiguous()


def _scale(points: Tensor, bandwidth: Tensor) -> tuple[Tensor, float]:
    """The Cholesky factor of a bandwidth, and what its kernel integrates to."""
    if len(points) == 0 or not torch.isfinite(points).all():
        raise DataError(f"{len(points)} points: expected one or more, all finite")
    factor, failed = torch.linalg.cholesky_ex(bandwidth.double())
    if failed or not torch.isfinite(factor).all():
        raise DataError(f"a bandwidth is a covariance, got {bandwidth.tolist()}: try shared_bandwidth(sets)")
    return factor, 2 * math.pi * float(factor.diagonal().prod())
