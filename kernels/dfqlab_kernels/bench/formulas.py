"""What one writes without a library: the direct formulations that every op is measured against, eager and compiled.

Quantizers compute in float32 and return the dtype of x, as the ops do. Statistics are left as torch makes them of
bfloat16: rounded to it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Rounding passes the gradient straight through, by a difference that is detached; clipping stops it.

    What rounds to an end of the grid loses its gradient too: clamp has none at its very bounds in some versions of
    torch, and `v + (round(v) - v)` is round(v) up to its last bit only.
    """
    steps = x / scale
    steps = steps + (steps.round() - steps).detach()
    return ((steps + zero_point).clamp(low, high) - zero_point).mul(scale).to(x.dtype)


def fake_quantize_by_function(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """The same with a rounding that is an autograd.Function: fewer passes."""
    return ((_round(x / scale) + zero_point).clamp(low, high) - zero_point).mul(scale).to(x.dtype)


def fake_quantize_everywhere(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """The whole of it passes the gradient straight through, clipped or not."""
    y = (((x / scale).round() + zero_point).clamp(low, high) - zero_point) * scale
    return x + (y.to(x.dtype) - x).detach()


def learned_step(
    x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, gradient_scale: float, shape: Sequence[int]
) -> Tensor:
    """LSQ with a zero point (LSQ+): autograd finds the gradients of step and zero point."""
    scale = _scaled_gradient(scale, gradient_scale).view(*shape)
    zero_point = _round(_scaled_gradient(zero_point, gradient_scale).view(*shape)).clamp(low, high)
    return ((_round(x / scale) + zero_point).clamp(low, high) - zero_point).mul(scale).to(x.dtype)


def soft_round(*logits_weights_scales: Tensor, low: int, high: int, beta: float) -> tuple[Tensor, ...]:
    """AdaRound: weight by weight, then the penalty of all. Logits of all weights, then weights, then scales."""
    n = len(logits_weights_scales) // 3
    logits, weights, scales = (logits_weights_scales[k * n : (k + 1) * n] for k in range(3))
    ys, penalty = [], torch.zeros((), device=weights[0].device)
    for logit, weight, scale in zip(logits, weights, scales, strict=True):
        up = (torch.sigmoid(logit.float()) * 1.2 - 0.1).clamp(0, 1)
        ys.append((((weight / scale).floor() + up).clamp(low, high) * scale).to(weight.dtype))
        penalty = penalty + (1 - (2 * up - 1).abs().pow(beta)).sum()
    return *ys, penalty


def mean_and_var(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Two calls, each with a read of its own."""
    return x.mean(dims).float(), x.var(dims, correction=0).float()


def var_mean(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """torch's one call for both."""
    var, mean = torch.var_mean(x, dims, correction=0)
    return mean.float(), var.float()


def deep_inversion_hook(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """The lines of DeepInversion's forward hook."""
    var = x.permute(1, 0, 2, 3).contiguous().view([x.shape[1], -1]).var(1, unbiased=False)
    return x.mean([0, 2, 3]).float(), var.float()


def norms(stats: Sequence[tuple[Tensor, Tensor]], targets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The loss of all layers, a norm for each mean and each variance (DeepInversion, eq. 4)."""
    terms = [
        torch.norm(mean - target_mean) + torch.norm(var - target_var)
        for (mean, var), (target_mean, target_var) in zip(stats, targets, strict=True)
    ]
    return torch.stack(terms).sum()


def batch_norm_activation(x: Tensor, memory: Sequence[Tensor], activation: str) -> Tensor:
    """BatchNorm in eval mode with (running mean, running variance, weight, bias), and what follows it."""
    running_mean, running_var, weight, bias = memory
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training=False, eps=0.0)
    return F.relu6(y) if activation == "relu6" else F.relu(y)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _round(x: Tensor) -> Tensor:
    rounded: Tensor = _Round.apply(x)
    return rounded


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    return x * factor + (x - x * factor).detach()
