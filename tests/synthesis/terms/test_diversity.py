"""How correlated samples are: the eigenvalues of their Gram matrix, without the trouble of its eigenvectors."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.synthesis.terms import SampleCorrelation, sample_correlation

# How far rows are from orthogonal; eigenvectors have no bounded gradient there (9 orders of magnitude in a float64).
NEAR = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, d: int) -> Tensor:
    """Rows of length one, exactly orthogonal: each has one entry."""
    return torch.eye(n, d, dtype=torch.float64)


def gradient_at(features: Tensor) -> Tensor:
    features = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sample_correlation(features), features)
    return gradient


@pytest.mark.parametrize("size", [(2, 3), (5, 3), (8, 40), (6, 2, 3, 4)])
def test_it_is_the_spread_of_the_gram_matrix_eigenvalues_around_one(size: tuple[int, ...]) -> None:
    features = draw(*size) + 0.3
    rows = features.flatten(1).numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(rows)
    expected = np.sum((np.linalg.eigvalsh(rows @ rows.T) - 1) ** 2) / (n * (n - 1))
    found = sample_correlation(features)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_it_is_0_for_orthogonal_rows_and_1_for_parallel_ones_and_between_for_others() -> None:
    row = draw(1, 10)
    assert float(sample_correlation(3 * orthogonal(4, 6))) == 0
    assert float(sample_correlation(torch.cat([row, 2 * row, -0.5 * row]))) == pytest.approx(1, rel=1e-9)
    for seed in range(20):
        assert 0 < float(sample_correlation(draw(5, 4, seed=seed))) < 1


def test_neither_order_nor_length_of_rows_matters() -> None:
    features = draw(6, 9)
    expected = float(sample_correlation(features))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([1e-3, 0.1, 1.0, 3.0, 50.0, 1e3], dtype=torch.float64)[:, None]
    assert float(sample_correlation(features[order])) == pytest.approx(expected, rel=1e-12)
    assert float(sample_correlation(features * lengths)) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(sample_correlation, (draw(4, 3, 2).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_finite_near_orthogonal_rows_and_falls_in_proportion(dtype: torch.dtype) -> None:
    """Where the loss wants to be, a loss of eigenvectors explodes: 1 / gap, and no number at last."""
    slope = 0.0
    for step in NEAR:
        gradient = gradient_at((orthogonal(4, 12) + step * draw(4, 12)).to(dtype))
        assert torch.isfinite(gradient).all()
        size = float(gradient.norm())
        assert size > 0
        if step <= 1e-2:
            slope = slope or size / step
            assert size / step == pytest.approx(slope, rel=0.1)
    assert torch.equal(gradient_at(orthogonal(4, 12).to(dtype)), torch.zeros(4, 12, dtype=dtype))


def test_in_the_gram_matrix_the_gradient_is_zero_at_the_identity_alone() -> None:
    """Rows that make a Gram matrix K are those of its Cholesky factor; moved along, dL/dK is 2 K_ij / (n (n - 1))."""
    n = 4
    for seed in range(5):
        rows = draw(n, n, seed=seed)
        rows = rows / rows.norm(dim=1, keepdim=True)
        gram = (rows @ rows.T).requires_grad_()
        (gradient,) = torch.autograd.grad(sample_correlation(torch.linalg.cholesky(gram)), gram)
        symmetric = (gradient + gradient.T) / 2
        off_diagonal = ~torch.eye(n, dtype=torch.bool)
        expected = 2 * gram.detach()[off_diagonal] / (n * (n - 1))
        torch.testing.assert_close(symmetric[off_diagonal], expected, rtol=1e-6, atol=1e-9)
        assert gradient.norm() > 1e-2
    identity = torch.eye(n, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(sample_correlation(torch.linalg.cholesky(identity)), identity)
    assert float(gradient.abs().max()) == 0


def test_descent_makes_rows_orthogonal() -> None:
    features = draw(5, 8) + 1
    start = float(sample_correlation(features))
    for _ in range(300):
        features = features - 5 * gradient_at(features)
    assert start > 0.2
    assert float(sample_correlation(features)) < 1e-4 * start


def test_a_row_of_zeros_correlates_with_nothing_and_has_a_finite_gradient() -> None:
    features = torch.cat([draw(3, 5), torch.zeros(1, 5, dtype=torch.float64)])
    others = float(sample_correlation(features[:3]))
    assert float(sample_correlation(features)) == pytest.approx(others * 6 / 12, rel=1e-9)
    assert torch.isfinite(gradient_at(features)).all()


def test_one_sample_is_refused() -> None:
    with pytest.raises(DataError, match="at least two samples"):
        sample_correlation(draw(1, 5))


def test_the_term_is_that_of_the_images_themselves() -> None:
    images = draw(3, 2, 4, 4)
    expected = np.corrcoef(images.flatten(1).numpy())  # of rows that it centres
    centred = images - images.mean((1, 2, 3), keepdim=True)
    found = float(SampleCorrelation().of_images(centred))
    assert found == pytest.approx((np.sum(expected**2) - 3) / 6, rel=1e-9)
