"""What several programs have summed, each for itself, becomes one sum: always in the same order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfqlab_kernels.programs.tiles import LAUNCH

TILE_PARTS, TILE_SUMS = 32, 32  # sides of a tile at most, unless there are fewer sums than that


def merge(partials: Tensor, factor: float = 1.0) -> Tensor:
    """Sum (parts, n) over the parts, times `factor`; in the dtype of the partial sums."""
    parts, n = partials.shape
    sums = partials.new_empty(n)
    if n:
        tile_sums = min(triton.next_power_of_2(n), TILE_SUMS)
        tile_parts = min(triton.next_power_of_2(max(parts, 1)), TILE_PARTS * TILE_SUMS // tile_sums)
        with torch.cuda.device_of(partials):
            _merge[(triton.cdiv(n, tile_sums),)](
                partials, sums, factor, parts, n, TILE_PARTS=tile_parts, TILE_SUMS=tile_sums, **LAUNCH
            )
    return sums


@triton.jit
def _merge(
    partials_ptr, sums_ptr, factor: tl.float64, parts, n, TILE_PARTS: tl.constexpr, TILE_SUMS: tl.constexpr
):  # fmt: skip
    s = tl.program_id(0) * TILE_SUMS + tl.arange(0, TILE_SUMS)
    total = tl.zeros((TILE_PARTS, TILE_SUMS), sums_ptr.dtype.element_ty)
    for begin in range(0, parts, TILE_PARTS):
        p = begin + tl.arange(0, TILE_PARTS)[:, None]
        total += tl.load(partials_ptr + p * n + s[None, :], mask=(p < parts) & (s[None, :] < n), other=0)
    factors = tl.full((TILE_SUMS,), factor, sums_ptr.dtype.element_ty)
    tl.store(sums_ptr + s, tl.sum(total, axis=0) * factors, mask=s < n)
