"""`merge`: partial sums become sums."""

import pytest
import torch

from dfqlab_kernels.programs import merging


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("parts", "n"), [(1, 1), (70, 1), (3, 5), (9, 40), (0, 4), (4, 0)])
def test_the_sum_over_all_parts_is_that_of_float64(
    parts: int,
    n: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(merging, "TILE_PARTS", 2)
    monkeypatch.setattr(merging, "TILE_SUMS", 16)
    partials = torch.randn(parts, n, dtype=torch.float64, generator=generator).to(dtype)
    found = merging.merge(partials.to(device), 0.1).cpu()
    assert found.dtype == dtype
    tolerance = 1e-15 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.double(), partials.double().sum(0) * 0.1, rtol=tolerance, atol=tolerance)


def test_a_tile_of_one_part_is_a_sum_from_first_to_last(
    device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "TILE_PARTS", 1)
    monkeypatch.setattr(merging, "TILE_SUMS", 1)
    partials = torch.randn(50, 1, generator=generator)
    one_by_one = torch.zeros(1)
    for part in partials:
        one_by_one += part
    assert one_by_one != partials.flip(0).cumsum(0)[-1]  # the order shows
    assert torch.equal(merging.merge(partials.to(device)).cpu(), one_by_one)
