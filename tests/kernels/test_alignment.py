"""`bn_alignment` as it is defined: closed forms, torch's own divergence, slack, and gradients that stay finite."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from dfqlab_kernels import ShapeError, bn_alignment

CHANNELS = [2, 3, 1]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 0.2 + torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(6), draw(6, seed=1), draw(6, seed=2), draw(6, seed=3)


def test_squared_and_standard_deviation_are_sums_over_all_channels(batch: tuple[Tensor, ...]) -> None:
    mean, var, to_mean, to_var = batch
    expected = (mean - to_mean).square().sum()
    of_var = bn_alignment(*batch, channels=CHANNELS)
    torch.testing.assert_close(of_var, expected + (var - to_var).square().sum())
    of_std = bn_alignment(*batch, channels=CHANNELS, spread="std", epsilon=0.01)
    torch.testing.assert_close(of_std, expected + ((var + 0.01).sqrt() - (to_var + 0.01).sqrt()).square().sum())


def test_l2_is_a_norm_for_each_layer(batch: tuple[Tensor, ...]) -> None:
    mean, var, to_mean, to_var = batch
    expected = sum(
        (a - b)[s].square().sum().sqrt()
        for a, b in ((mean, to_mean), (var, to_var))
        for s in (slice(2), slice(2, 5), [5])
    )
    torch.testing.assert_close(bn_alignment(*batch, channels=CHANNELS, distance="l2"), expected)


def test_kl_is_the_divergence_of_two_gaussians(batch: tuple[Tensor, ...]) -> None:
    mean, var, to_mean, to_var = batch
    expected = kl_divergence(Normal(mean, var.sqrt()), Normal(to_mean, to_var.sqrt())).sum()
    torch.testing.assert_close(bn_alignment(*batch, channels=CHANNELS, distance="kl"), expected)


def test_samples_are_averaged_and_layers_added_unless_weights_say_otherwise() -> None:
    mean, var, to_mean, to_var = draw(4, 6), draw(4, 6, seed=1), draw(6, seed=2), draw(6, seed=3)
    one_by_one = [bn_alignment(m, v, to_mean, to_var, channels=CHANNELS) for m, v in zip(mean, var, strict=True)]
    torch.testing.assert_close(
        bn_alignment(mean, var, to_mean, to_var, channels=CHANNELS), torch.stack(one_by_one).mean()
    )
    weights = torch.zeros(4, 3, dtype=torch.float64)
    weights[2, 1] = 5.0
    layer = slice(2, 5)
    alone = bn_alignment(mean[2, layer], var[2, layer], to_mean[layer], to_var[layer], channels=[3])
    torch.testing.assert_close(bn_alignment(mean, var, to_mean, to_var, channels=CHANNELS, weights=weights), 5 * alone)


@pytest.mark.parametrize("distance", ["squared", "l2"])
def test_slack_takes_its_margin_off_every_difference(distance: str, batch: tuple[Tensor, ...]) -> None:
    mean, var, to_mean, to_var = batch
    margin = torch.full((6,), 0.1, dtype=torch.float64)
    slack = bn_alignment(
        *batch,
        channels=CHANNELS,
        distance=distance,
        mean_margin=margin,
        spread_margin=margin,  # type: ignore[arg-type]
    )
    shorter = [(d.sign() * (d.abs() - 0.1).clamp(min=0)) for d in (mean - to_mean, var - to_var)]
    zero = torch.zeros_like(mean)
    torch.testing.assert_close(slack, bn_alignment(*shorter, zero, zero, channels=CHANNELS, distance=distance))  # type: ignore[arg-type]


def test_inside_the_margin_there_is_no_gradient(batch: tuple[Tensor, ...]) -> None:
    mean, var, to_mean, _ = batch
    mean.requires_grad_()
    wide = torch.full((6,), 9.0, dtype=torch.float64)
    bn_alignment(mean, var, to_mean, var, channels=CHANNELS, mean_margin=wide, spread_margin=wide).backward()
    assert mean.grad is not None
    assert not mean.grad.any()


@pytest.mark.parametrize("spread", ["var", "std"])
@pytest.mark.parametrize("distance", ["squared", "l2", "kl"])
def test_gradients_are_those_of_finite_differences_and_finite_at_the_memory(
    distance: str, spread: str, batch: tuple[Tensor, ...]
) -> None:
    mean, var, to_mean, to_var = batch
    mean.requires_grad_()
    var.requires_grad_()

    def loss(m: Tensor, v: Tensor) -> Tensor:
        return bn_alignment(m, v, to_mean, to_var, channels=CHANNELS, distance=distance, spread=spread, epsilon=1e-3)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(loss, (mean, var))
    at_memory = to_mean.clone().requires_grad_()
    loss(at_memory, to_var).backward()
    assert at_memory.grad is not None
    assert not at_memory.grad.any()


def test_what_does_not_fit_is_refused(batch: tuple[Tensor, ...]) -> None:
    margin = torch.ones(6, dtype=torch.float64)
    with pytest.raises(ShapeError, match="mean has 6 channels, the layers have 5"):
        bn_alignment(*batch, channels=[2, 3])
    with pytest.raises(ValueError, match="both margins or none"):
        bn_alignment(*batch, channels=CHANNELS, mean_margin=margin)
    with pytest.raises(ValueError, match="a divergence has no margins"):
        bn_alignment(*batch, channels=CHANNELS, distance="kl", mean_margin=margin, spread_margin=margin)
