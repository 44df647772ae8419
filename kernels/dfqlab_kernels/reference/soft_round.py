"""AdaRound's soft rounding: up or down is learned, and a penalty makes up its mind."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfqlab_kernels.reference.quantization import accumulation_dtype


def soft_round_quantize(
    weights: Tensor,
    logits: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    beta: Tensor,
    sizes: Sequence[int],
    quant_min: int,
    quant_max: int,
    gamma: float,
    zeta: float,
) -> tuple[Tensor, Tensor]:
    """The softly rounded weights, and the penalty on what is neither up nor down."""
    dtype = accumulation_dtype(weights)
    up = _clip(torch.sigmoid(logits.to(dtype)) * (zeta - gamma) + gamma, 0.0, 1.0)
    y = _rounded(weights, up, scale, zero_point, sizes, quant_min, quant_max)
    return y, (1 - (2 * up - 1).abs().pow(beta.to(dtype))).sum()


def hard_round_quantize(
    weights: Tensor,
    logits: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    sizes: Sequence[int],
    quant_min: int,
    quant_max: int,
) -> Tensor:
    """The weights rounded up where the logit is not negative, else down."""
    up = torch.where(logits >= 0, 1, torch.where(logits < 0, 0, logits)).to(accumulation_dtype(weights))
    return _rounded(weights, up, scale, zero_point, sizes, quant_min, quant_max)


def initial_logits(weights: Tensor, scale: Tensor, sizes: Sequence[int], gamma: float, zeta: float) -> Tensor:
    """The logits of which the soft rounding adds what rounding down takes away."""
    steps = weights.to(accumulation_dtype(weights)) * (1 / spread(scale.to(accumulation_dtype(weights)), sizes))
    return torch.logit((steps - steps.floor() - gamma) / (zeta - gamma), eps=1e-6)


def spread(qparam: Tensor, sizes: Sequence[int]) -> Tensor:
    """One number for each row becomes one for each element. `sizes` are rows and length of a row, tensor by tensor."""
    rows, lengths = sizes[::2], sizes[1::2]
    parts = zip(qparam.split(list(rows)), lengths, strict=True)
    return torch.cat([part[:, None].expand(-1, length).reshape(-1) for part, length in parts])


def _rounded(
    weights: Tensor,
    up: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    sizes: Sequence[int],
    quant_min: int,
    quant_max: int,
) -> Tensor:
    scale = scale.to(up.dtype)
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(up.dtype)
    low, high = spread(quant_min - zero, sizes), spread(quant_max - zero, sizes)
    inverse, scale = spread(1 / scale, sizes), spread(scale, sizes)
    code = (weights.to(up.dtype) * inverse).floor() + up
    return (_clip(code, low, high) * scale).to(weights.dtype)


def _clip(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """A clamp whose gradient passes at the ends themselves, where that of torch's depends on its version."""
    return torch.where((x >= low) & (x <= high), x, x.detach().clamp(low, high))  # type: ignore[arg-type]
