"""AdaRound's soft rounding: up or down is learned, and a penalty makes up its mind."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfqlab_kernels.reference.quantization import accumulation_dtype, where_kept


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
    grid = (quant_min, quant_max)
    y: Tensor
    penalty: Tensor
    y, penalty = _SoftRound.apply(weights, logits, scale, zero_point, beta, sizes, grid, (gamma, zeta))
    return y, penalty


class _SoftRound(torch.autograd.Function):
    """Both slopes are made on the way forward, of what is at hand there.

    Left to autograd, the same takes a CPU longer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        logits: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        beta: Tensor,
        sizes: Sequence[int],
        grid: tuple[int, int],
        stretch: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(weights)
        gamma, zeta = stretch
        sigmoid = torch.sigmoid(logits.to(dtype))
        stretched = sigmoid * (zeta - gamma) + gamma
        up = stretched.clamp(0.0, 1.0)
        code, clipped, step = _codes(weights, up, scale, zero_point, sizes, *grid)
        undecided = 2 * up - 1
        slope = undecided.abs().pow(beta.to(dtype) - 1)  # |2h - 1|^β is |2h - 1| times this
        penalty = (1 - slope * undecided.abs()).sum()
        if ctx.needs_input_grad[1]:
            rate = sigmoid * (1 - sigmoid) * (zeta - gamma)
            moves = stretched == up  # NaN does not
            of_y = where_kept(moves & (code == clipped), rate * step)
            of_penalty = where_kept(moves, undecided.sign() * slope * rate * (-2 * beta.to(dtype)))
            ctx.save_for_backward(of_y, of_penalty)
            ctx.dtype = logits.dtype
        return (clipped * step).to(weights.dtype), penalty

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dpenalty: Tensor) -> tuple[Tensor | None, ...]:
        of_y, of_penalty = ctx.saved_tensors
        dy = where_kept(of_y != 0, dy.to(of_y.dtype))  # what is clipped has no gradient, even where dy has no number
        dlogits = torch.addcmul(of_penalty * dpenalty, of_y, dy)
        return None, dlogits.to(ctx.dtype), None, None, None, None, None, None


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
    _, clipped, step = _codes(weights, up, scale, zero_point, sizes, quant_min, quant_max)
    return (clipped * step).to(weights.dtype)


def initial_logits(weights: Tensor, scale: Tensor, sizes: Sequence[int], gamma: float, zeta: float) -> Tensor:
    """The logits of which the soft rounding adds what rounding down takes away."""
    steps = weights.to(accumulation_dtype(weights)) * (1 / spread(scale.to(accumulation_dtype(weights)), sizes))
    return torch.logit((steps - steps.floor() - gamma) / (zeta - gamma), eps=1e-6)


def spread(qparam: Tensor, sizes: Sequence[int]) -> Tensor:
    """One number for each row becomes one for each element. `sizes` are rows and length of a row, tensor by tensor."""
    rows, lengths = sizes[::2], sizes[1::2]
    parts = zip(qparam.split(list(rows)), lengths, strict=True)
    return torch.cat([part[:, None].expand(-1, length).reshape(-1) for part, length in parts])


def _codes(
    weights: Tensor,
    up: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    sizes: Sequence[int],
    quant_min: int,
    quant_max: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """How many steps each weight is from zero, the same on the grid, and its step."""
    step = spread(scale.to(up.dtype), sizes)
    code = (weights.to(up.dtype) * (1 / step)).floor() + up
    if zero_point is None:
        return code, code.clamp(quant_min, quant_max), step
    zero = spread(zero_point.to(up.dtype), sizes)
    return code, code.clamp(quant_min - zero, quant_max - zero), step
