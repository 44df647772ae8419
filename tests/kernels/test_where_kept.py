"""A choice by bits is torch's own `where`, whatever stands in the places that are not chosen."""

from typing import Literal

import pytest
import torch

from dfqlab_kernels import fake_quantize
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
    torch.compiler.reset()
    compiled = torch.compile(where_kept, backend="aot_eager")(kept.to(mask), x)
    torch.testing.assert_close(compiled, found, rtol=0, atol=0, equal_nan=True)


def test_the_mask_stays_as_it_is() -> None:
    kept = torch.tensor([1, 0, 1], dtype=torch.int32)
    assert where_kept(kept, torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.0, 0.0, 3.0]
    assert kept.tolist() == [1, 0, 1]


@pytest.mark.parametrize("save", ["mask", "input"])
def test_a_gradient_of_fake_quantize_has_a_gradient(save: Literal["mask", "input"]) -> None:
    x = torch.tensor([0.26, 9.0, 0.4], requires_grad=True)
    y = fake_quantize(x, torch.tensor(0.5), quant_min=-2, quant_max=1, save=save)
    (g,) = torch.autograd.grad(y.square().sum() + x.pow(3).sum(), x, create_graph=True)
    g.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 6 * x.detach() + torch.tensor([2.0, 0.0, 2.0]))
