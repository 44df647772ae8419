"""A choice by bits is torch's own `where`, whatever stands in the places that are not chosen."""

import pytest
import torch

from dfqlab_kernels.reference.quantization import where_kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mask", [torch.bool, torch.float32])
def test_it_is_where(dtype: torch.dtype, mask: torch.dtype) -> None:
    odd = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.5, -2.25, torch.finfo(dtype).tiny]
    x = torch.tensor(2 * odd, dtype=dtype).reshape(4, 4).t()
    kept = torch.tensor([True] * 8 + [False] * 8).reshape(4, 4).t()
    found = where_kept(kept.to(mask), x)
    torch.testing.assert_close(found, torch.where(kept, x, 0), rtol=0, atol=0, equal_nan=True)
    assert found.stride() == x.stride()
    compiled = torch.compile(where_kept, backend="aot_eager")(kept.to(mask), x)
    torch.testing.assert_close(compiled, found, rtol=0, atol=0, equal_nan=True)
