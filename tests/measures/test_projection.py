"""A plane and its densities, against scikit-learn and scipy, and the same every time."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from sklearn.decomposition import PCA
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.measures import kernel_density, peak_density, principal_projection, shared_bandwidth


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sets() -> dict[str, Tensor]:
    stretch = torch.linspace(0.2, 3, 12).reshape(3, 2, 2)
    return {"a": normal(20, 3, 2, 2) * stretch, "b": normal(9, 3, 2, 2, seed=1) * stretch + 1}


@pytest.mark.parametrize("fit", [None, "a", "b"])
def test_the_plane_is_scikit_learn_s(fit: str | None) -> None:
    flat = {name: images.flatten(1).numpy() for name, images in sets().items()}
    pca = PCA(2, svd_solver="full").fit(np.concatenate(list(flat.values())) if fit is None else flat[fit])
    found = principal_projection(sets(), fit)
    signs = np.sign(pca.components_[range(2), np.abs(pca.components_).argmax(1)])
    for name, of in flat.items():
        np.testing.assert_allclose(found.points[name].numpy(), pca.transform(of) * signs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.explained, pca.explained_variance_ratio_, rtol=1e-9)


def test_a_component_points_to_its_largest_entry_whatever_the_order() -> None:
    images = sets()
    there = principal_projection(images)
    back = principal_projection({name: images[name].flip(0) for name in ("b", "a")})
    for name in images:
        torch.testing.assert_close(there.points[name], back.points[name].flip(0))
    assert principal_projection({"a": -images["a"]}).explained == pytest.approx(
        principal_projection({"a": images["a"]}).explained
    )


def test_the_plane_keeps_distances_within_it() -> None:
    flat = torch.zeros(15, 7, dtype=torch.float64)
    flat[:, [2, 5]] = normal(15, 2)
    points = principal_projection({"flat": flat})
    torch.testing.assert_close(torch.cdist(points.points["flat"], points.points["flat"]), torch.cdist(flat, flat))
    assert sum(points.explained) == pytest.approx(1)


def test_along_what_does_not_vary_every_point_is_zero() -> None:
    line = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([3.0, 0, 4])
    found = principal_projection({"line": line, "elsewhere": torch.ones(2, 3)}, "line")
    assert found.explained == pytest.approx((1, 0))
    torch.testing.assert_close(found.points["line"][:, 0], torch.linspace(-5, 5, 9, dtype=torch.float64))
    assert found.points["elsewhere"][:, 1].abs().max() == 0
    same = principal_projection({"same": torch.full((4, 3), 0.7)})
    assert same.explained == (0, 0)
    assert same.points["same"].abs().max() == 0


def test_a_plane_that_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="1 images to fit"):
        principal_projection({"a": torch.ones(1, 3), "b": torch.ones(5, 3)}, "a")
    with pytest.raises(DataError, match="no set 'c' to fit"):
        principal_projection(sets(), "c")
    with pytest.raises(DataError, match="expected one shape"):
        principal_projection({"a": torch.ones(3, 3), "b": torch.ones(3, 4)})
    for empty in ({}, {"a": torch.ones(3, 1)}):
        with pytest.raises(DataError, match="expected one shape, of two numbers or more"):
            principal_projection(empty)
    with pytest.raises(DataError, match="'a' holds NaN"):
        principal_projection({"a": torch.full((3, 3), math.nan)})


def test_density_and_bandwidth_are_scipy_s() -> None:
    points, places = normal(30, 2) @ normal(2, 2, seed=1), normal(8, 2, seed=2)
    kernels = gaussian_kde(points.T.numpy())
    bandwidth = shared_bandwidth([points[:11], points[11:]])
    np.testing.assert_allclose(bandwidth.numpy(), kernels.covariance, rtol=1e-10)
    np.testing.assert_allclose(kernel_density(points, places, bandwidth).numpy(), kernels(places.T.numpy()), rtol=1e-9)


def test_a_density_sums_to_one_over_the_plane() -> None:
    points = normal(10, 2)
    axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert float(kernel_density(points, grid, shared_bandwidth([points])).sum() * 0.1**2) == pytest.approx(1, abs=1e-6)


def test_nowhere_is_denser_than_the_peak() -> None:
    points = torch.cat([normal(40, 2), 0.3 * normal(25, 2, seed=1) + 3])
    bandwidth = shared_bandwidth([points])
    peak = peak_density(points, bandwidth)
    axis = torch.linspace(-4, 6, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    heights = kernel_density(points, grid, bandwidth)
    assert float(heights.max()) <= peak.density == pytest.approx(float(heights.max()), rel=1e-3)
    assert peak.at == pytest.approx(grid[heights.argmax()].tolist(), abs=0.02)
    assert float(kernel_density(points, torch.tensor([peak.at]), bandwidth)) == pytest.approx(peak.density, rel=1e-9)


def test_one_point_peaks_where_it_is_at_the_height_of_its_kernel() -> None:
    bandwidth = torch.tensor([[4.0, 0.0], [0.0, 0.25]])
    peak = peak_density(torch.tensor([[3.0, -1.0]]), bandwidth)
    assert peak.density == pytest.approx(1 / (2 * math.pi * 2 * 0.5))
    assert peak.at == pytest.approx((3, -1))


def test_two_near_points_peak_between_them() -> None:
    peak = peak_density(torch.tensor([[-0.5, 0.0], [0.5, 0.0]]), torch.eye(2))
    assert peak.at == pytest.approx((0, 0), abs=1e-6)
    assert peak.density == pytest.approx(math.exp(-0.125) / (2 * math.pi))


def test_a_narrower_set_is_denser_and_order_and_number_do_not_count() -> None:
    wide = normal(50, 2)
    bandwidth = shared_bandwidth([wide, 0.5 * wide])
    peak = peak_density(wide, bandwidth)
    assert peak_density(0.5 * wide, bandwidth).density > 1.5 * peak.density
    assert peak_density(wide.flip(0).repeat(2, 1), bandwidth).density == pytest.approx(peak.density, rel=1e-9)


def test_density_needs_points_and_a_bandwidth() -> None:
    with pytest.raises(DataError, match="on one line"):
        shared_bandwidth([torch.linspace(0, 1, 5)[:, None] * torch.tensor([1.0, 2.0])])
    with pytest.raises(DataError, match="2 points: expected three"):
        shared_bandwidth([normal(2, 2)])
    with pytest.raises(DataError, match="0 points: expected one"):
        peak_density(torch.zeros(0, 2), torch.eye(2))
    with pytest.raises(DataError, match="a bandwidth is a covariance"):
        kernel_density(normal(3, 2), normal(3, 2), -torch.eye(2))
    with pytest.raises(DataError, match="all finite"):
        peak_density(torch.full((2, 2), math.nan), torch.eye(2))
