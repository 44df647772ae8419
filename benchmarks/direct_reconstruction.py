"""BRECQ's schedule as scripts write it: layers in a list, soft rounding in a line each, autograd for all of it.

What dfqlab's is measured against, on the same blocks and the same cached inputs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfqlab.compression.spec import Reconstruction

GAMMA, ZETA = -0.1, 1.1


class SoftConv(nn.Module):
    """A convolution or linear layer that rounds its weight softly at every call (AdaRound, eqs. 22 and 23)."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, scale: Tensor, quant_min: int, quant_max: int) -> None:
        super().__init__()
        self.layer, self.ends = layer, (quant_min, quant_max)
        self.scale = scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        steps = layer.weight.detach() / self.scale
        self.floor = steps.floor()
        self.logits = nn.Parameter(-torch.log((ZETA - GAMMA) / (steps - self.floor - GAMMA) - 1))

    def up(self) -> Tensor:
        return torch.clamp(torch.sigmoid(self.logits) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.clamp(self.floor + self.up(), *self.ends) * self.scale
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        layer = self.layer
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]


def direct(
    block: Callable[[Tensor], Tensor],
    layers: list[SoftConv],
    entry: Tensor,
    target: Tensor,
    settings: Reconstruction,
) -> Callable[[], float]:
    """One iteration of a block, again and again; returns the squared error behind it."""
    optimizer = torch.optim.Adam([layer.logits for layer in layers], lr=1e-3)
    done = 0

    def step() -> float:
        nonlocal done
        chosen = torch.randperm(len(entry))[: settings.batch]
        beta = settings.beta(min(1.0, done / settings.iterations))
        done += 1
        optimizer.zero_grad()
        error = (block(entry[chosen]) - target[chosen]).abs().pow(2.0).sum(1).mean()
        penalty = sum((1 - ((layer.up() - 0.5).abs() * 2).pow(beta)).sum() for layer in layers)
        (error + settings.penalty * penalty).backward()
        optimizer.step()
        return float(error.item())

    return step
