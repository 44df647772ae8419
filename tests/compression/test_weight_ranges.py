"""Scales of weights: held to a search in float64, and to numpy where there are very many."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dfqlab.compression.rounding import round_to_grid
from dfqlab.compression.spec import Grid, QuantizationSpec
from dfqlab.compression.weight_ranges import weight_scale


def weights(seed: int = 0) -> Tensor:
    """Channels of many kinds: normal, with outliers, one-sided, tiny, huge, zero, constant."""
    w = torch.randn(9, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    w[1, 0, 0, 0] = 30
    w[2] = w[2].abs()
    w[3] = -w[3].abs()
    w[4] *= 1e-6
    w[5] *= 1e6
    w[6] = 0
    w[7] = 0.3
    w[8] = w[8] ** 3
    return w


def weight_error(rows: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    rows, scale = rows.double(), scale.double()[:, None]
    codes = torch.round(rows / scale).clamp(grid.quant_min, grid.quant_max)
    return (rows - codes * scale).square().sum(1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_minmax_weights_are_never_clipped(bits: int) -> None:
    grid = QuantizationSpec(weights=bits).weight_grid
    w = weights()
    scale = weight_scale(w, grid, "minmax")
    assert scale.shape == (9,)
    assert (scale > 0).all()
    unclipped = torch.round(w.flatten(1) / scale[:, None])
    assert torch.equal(round_to_grid(w.flatten(1), scale, grid), unclipped)
    assert ((unclipped == grid.quant_max) | (unclipped == grid.quant_min)).any(1)[[0, 1, 2, 3, 4, 5, 7, 8]].all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_mse_weight_scales_are_near_the_best_of_a_search_in_float64_channel_by_channel(bits: int) -> None:
    grid = QuantizationSpec(weights=bits).weight_grid
    w = weights()
    rows, covering = w.flatten(1), weight_scale(w, grid, "minmax")
    found = weight_error(rows, weight_scale(w, grid, "mse"), grid)
    assert (found <= weight_error(rows, covering, grid) * (1 + 1e-6)).all()
    fine = torch.stack(
        [weight_error(rows, covering * f, grid) for f in torch.linspace(0.005, 1.0, 3000, dtype=torch.float64)]
    )
    best = fine.min(0).values
    # The covering scale is the largest that is tried, in the search too; 100 steps of it are what a hundredth resolves.
    assert (found <= 1.35 * best + 1e-12 * rows.double().square().sum(1)).all()
    assert (found.sum() <= 1.1 * best.sum()) or bits == 8


def test_mse_weight_scales_clip_heavy_tails() -> None:
    grid = QuantizationSpec(weights=4).weight_grid
    rows = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)) ** 3
    covering, found = (weight_scale(rows, grid, method) for method in ("minmax", "mse"))  # type: ignore[arg-type]
    assert (found < covering).all()
    assert weight_error(rows, found, grid).sum() < 0.9 * weight_error(rows, covering, grid).sum()


def test_weight_scales_do_not_depend_on_the_other_channels() -> None:
    grid = QuantizationSpec(weights=4).weight_grid
    for method in ("minmax", "mse"):
        whole = weight_scale(weights(), grid, method)  # type: ignore[arg-type]
        for k in range(9):
            assert torch.equal(weight_scale(weights()[k : k + 1], grid, method), whole[k : k + 1])  # type: ignore[arg-type]


@pytest.mark.parametrize("percentile", [60.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize(("channels", "each"), [(9, 36), (1, 2**24 + 5)])
def test_a_percentile_of_magnitudes_is_numpys_however_many_there_are(
    percentile: float, channels: int, each: int
) -> None:
    grid = QuantizationSpec(weights=4, granularity="per_channel" if channels > 1 else "per_tensor").weight_grid
    rows = torch.randn(channels, each, generator=torch.Generator().manual_seed(0))
    expected = np.percentile(rows.abs().numpy(), percentile, axis=1) / grid.quant_max
    covering = weight_scale(rows, grid, "minmax").numpy()
    found = weight_scale(rows, grid, "percentile", percentile).numpy()
    assert found == pytest.approx(np.minimum(expected, covering), rel=1e-6)
