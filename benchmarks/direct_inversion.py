"""Losses of inversions as scripts write them: hooks on BatchNorm, views, mean() and var(), a norm a layer.

What dfqlab's are measured against. Parameters want gradients, as they do when a script has loaded a network.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfqlab
from dfqlab.recipes.deepinversion import DeepInversion
from dfqlab.synthesis.terms import Alignment

EPSILON = Alignment().epsilon
SETTINGS = DeepInversion()


class DirectLoss(nn.Module):
    """A network that hooks watch, and a loss of what they see."""

    def __init__(self, teacher: dfqlab.Teacher, *, frozen: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(teacher.module).eval().requires_grad_(not frozen)
        self.distances: list[Tensor] = []
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(self._observe)

    def _observe(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.distances.append(self.distance(args[0], module.running_mean, module.running_var))

    def distance(self, x: Tensor, running_mean: Tensor | nn.Module, running_var: Tensor | nn.Module) -> Tensor:
        raise AssertionError("a loss says how it measures a layer")


class DirectZeroQ(DirectLoss):
    """ZeroQ, eq. 2: statistics of each image, of every layer and of the input."""

    def distance(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:  # type: ignore[override]
        values = x.reshape(x.shape[0], x.shape[1], -1)
        mean, std = values.mean(2), torch.sqrt(values.var(2, unbiased=False) + EPSILON)
        off = (running_mean - mean).norm() ** 2 + (torch.sqrt(running_var + EPSILON) - std).norm() ** 2
        return off / len(x)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of normalised images."""
        self.distances.clear()
        self.network(x)
        channels = x.shape[1]
        loss = self.distance(x, x.new_zeros(channels), x.new_ones(channels))
        for distance in self.distances:
            loss = loss + distance
        return loss


class DirectDeepInversion(DirectLoss):
    """DeepInversion, eqs. 1 to 4: statistics of the batch, a class, and a smooth image."""

    def distance(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:  # type: ignore[override]
        values = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1)
        return torch.norm(running_var - values.var(1, unbiased=False)) + torch.norm(running_mean - values.mean(1))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of normalised images."""
        self.distances.clear()
        loss = F.cross_entropy(self.network(x), labels)
        loss = loss + SETTINGS.alignment * sum(self.distances)
        shifted = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
        diagonal = x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
        variation = sum(d.flatten(1).norm(dim=1).mean() for d in (*shifted, *diagonal))
        return loss + SETTINGS.total_variation * variation


DIRECT: dict[str, Callable[..., DirectLoss]] = {"zeroq": DirectZeroQ, "deepinversion": DirectDeepInversion}
