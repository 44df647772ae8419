"""What roundings learn, and how: a logit for each weight, a factor for each step, and the iterations that move them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dfqlab.compression.blocks import Unit
from dfqlab.compression.execution import run, simulation
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.rounding import RoundedWeight
from dfqlab.compression.spec import Grid, Reconstruction
from dfqlab_kernels import Packing, initial_logits, learned_step_quantize, soft_round_quantize

_FULL_LENGTH, _FULL_RATE = 20_000, 1e-3  # of BRECQ's code
_STEP_NORM = 2.4  # of the loss that BRECQ's code learns steps of activations by
_STEPS_RATE = 4e-3  # relative to a step; the code's 4e-4 is meant for steps near 0.1
_STEPS_ARE_SHORTER = 4  # 5,000 iterations beside 20,000


@dataclass(frozen=True)
class Rows:
    """A tensor with a row for each image, in the parts of equally many rows that it was computed in; the last may have
    fewer."""

    parts: list[Tensor]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """The rows at these places, (n,), as one tensor."""
        size = len(self.parts[0])
        return torch.cat([self.parts[row // size].narrow(0, row % size, 1) for row in chosen.tolist()])


@dataclass(frozen=True)
class Passing:
    """What passes a unit, of all images.

    Attributes:
        entry: what enters it: as the rounded layers in front make it, or in float where no rounded weights were given.
        exact: what enters it in float; empty where nobody reads it.
        target: what leaves it in float, before it is quantized.
        importance: the weight of each value's squared error behind it; empty where all count alike.
    """

    unit: Unit
    entry: Rows
    exact: Rows
    target: Rows
    importance: Rows

    def release(self) -> None:
        """Keep nothing of it: a tensor of all images may take gigabytes, and the next unit needs the room."""
        for rows in (self.entry, self.exact, self.target, self.importance):
            rows.parts.clear()


class SoftRounding:
    """Weights of some layers on their way to the grid: a logit for each says how much of a step it goes up (AdaRound,
    eqs. 22 and 23).

    Layers of one grid are rounded in one launch.
    """

    def __init__(self, prepared: PreparedNetwork, paths: Sequence[str], scales: Mapping[str, Tensor]) -> None:
        self.groups: list[_Group] = []
        for grid in dict.fromkeys(prepared.grids[path] for path in paths):
            own = [path for path in paths if prepared.grids[path] == grid]
            weights = [prepared.weights[path].weight.detach() for path in own]
            packing = Packing.of(weights)
            flat, scale = packing.pack(weights), torch.cat([scales[path] for path in own])
            logits = initial_logits(flat, scale, packing=packing).requires_grad_()
            self.groups.append(_Group(own, grid, packing, flat, scale, logits))

    @property
    def logits(self) -> list[Tensor]:
        """What is learned."""
        return [group.logits for group in self.groups]

    def soft(self, beta: float) -> tuple[dict[str, Tensor], Tensor]:
        """The weights as they are now, by path, and the penalty on those neither up nor down (AdaRound, eq. 24)."""
        weights: dict[str, Tensor] = {}
        penalties = []
        for group in self.groups:
            flat, penalty = group.round(beta=beta)
            weights |= dict(zip(group.paths, group.packing.unpack(flat), strict=True))
            penalties.append(penalty)
        return weights, torch.stack(penalties).sum()

    def hard(self) -> dict[str, RoundedWeight]:
        """Every weight up or down, by the sign of its logit."""
        found = {}
        for group in self.groups:
            flat, _ = group.round(hard=True)
            scales = group.scale.split([shape[0] for shape in group.packing.shapes])
            for path, weight, scale in zip(group.paths, group.packing.unpack(flat), scales, strict=True):
                steps = weight / scale.reshape(-1, *[1] * (weight.dim() - 1))
                found[path] = RoundedWeight(torch.round(steps), scale)
        return found


@dataclass
class _Group:
    paths: list[str]
    grid: Grid
    packing: Packing
    weights: Tensor
    scale: Tensor
    logits: Tensor

    def round(self, *, beta: float = 20.0, hard: bool = False) -> tuple[Tensor, Tensor]:
        grid = self.grid
        return soft_round_quantize(
            self.weights, self.logits, self.scale,
            packing=self.packing, quant_min=grid.quant_min, quant_max=grid.quant_max, beta=beta, hard=hard,
        )  # fmt: skip


class Steps:
    """The steps of the activations that a unit makes, to be learned; their zero points stay."""

    def __init__(self, prepared: PreparedNetwork, unit: Unit) -> None:
        paths = [str(node.target) for node in unit.nodes if str(node.target) in prepared.activations]
        self.prepared = prepared
        self.quantizers = {path: prepared.activations[path] for path in paths}
        self.simulate = simulation(prepared)
        self.factors = {  # logarithms of how many times as large a step is as it was: none can become negative
            path: torch.zeros((), device=prepared.teacher.device, requires_grad=True)
            for path, quantizer in self.quantizers.items()
            if quantizer.averages is None  # whose range is that of what it averages
        }

    def quantize(self, path: str, x: Tensor) -> Tensor:
        """With a gradient for the step."""
        if path not in self.factors:
            return self.simulate(path, x)
        p = self.quantizers[path].quantization
        top = self.quantizers[path].grid.quant_max
        zero_point = x.new_tensor(float(p.zero_point))
        return learned_step_quantize(x, self._scale(path), zero_point, quant_min=p.quant_min, quant_max=top)

    def keep(self) -> None:
        """Make what was learned the quantizers' own; averages go on with the range of what they average."""
        for path in self.factors:
            self.quantizers[path].set_step(self._scale(path).detach())
        for quantizer in self.prepared.activations.values():
            if quantizer.averages in self.factors:
                quantizer.follow(self.prepared.activations[quantizer.averages])

    def _scale(self, path: str) -> Tensor:
        factor = self.factors[path]
        return self.quantizers[path].quantization.scale.to(factor) * factor.exp()


def learn_rounding(
    prepared: PreparedNetwork,
    passing: Passing,
    rounding: SoftRounding,
    steps: Steps | None,
    settings: Reconstruction,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:
    """Iterations of AdaRound's loss (eq. 21): squared error behind the unit, and the penalty after a warm-up.

    With importance, the error is that of BRECQ's eq. 10.
    """
    rate = settings.learning_rate or _FULL_RATE * max(1.0, _FULL_LENGTH / settings.iterations)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rounding.logits, lr=rate, fused=True)]
    schedule = None
    if steps is not None and steps.factors:
        optimizers.append(torch.optim.Adam(list(steps.factors.values()), lr=settings.step_rate))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[-1], settings.iterations)

    def mixed(pretended: Tensor, exact: Tensor) -> Tensor:
        return torch.lerp(pretended, exact, drawn(exact, settings.drop, generator))

    def quantize(path: str, x: Tensor) -> Tensor:
        assert steps is not None
        return mixed(steps.quantize(path, x), x)

    for iteration in range(settings.iterations):
        chosen = torch.randint(len(passing.target), (min(settings.batch, len(passing.target)),), generator=generator)
        x = passing.entry[chosen]
        if steps is not None:
            x = mixed(x, passing.exact[chosen])
        progress = iteration / settings.iterations
        weights, penalty = rounding.soft(settings.beta(progress))
        values: dict[fx.Node, Any] = {passing.unit.entry: x}
        run(prepared, passing.unit.nodes, values, weights, None if steps is None else quantize)
        importance = passing.importance[chosen] if len(passing.importance) else None
        error = squared_error(values[passing.unit.exit], passing.target[chosen], importance)
        loss = error if progress < settings.warm_up else error + settings.penalty * penalty
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if schedule is not None:
            schedule.step()
        yield {"error": float(error.detach()), "penalty": float(penalty.detach())}


def drawn(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Ones at random places of a tensor, each with the probability of a share (to the nearest 256th), zeros elsewhere.

    One random byte an element, and arithmetic: `rand` and a comparison take a CPU far longer.
    """
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    chosen = words.view(torch.uint8)[: like.numel()].to(like.device).to(like.dtype).lt_(round(256 * share))
    return chosen.as_strided(like.shape, torch.empty_like(like).stride())


def squared_error(found: Tensor, target: Tensor, importance: Tensor | None = None) -> Tensor:
    """Summed over channels, averaged over all else: of tokens (n, tokens, c) as of images (n, c, h, w).

    Args:
        importance: weights of the single errors, shaped like them.
    """
    return F.mse_loss(found, target, reduction="sum", weight=importance) * (_channels(found) / found.numel())


def _channels(x: Tensor) -> int:
    return x.shape[1] if x.dim() == 4 else x.shape[-1]


def learn_steps(
    prepared: PreparedNetwork,
    passing: Passing,
    weights: Mapping[str, Tensor],
    steps: Steps,
    settings: Reconstruction,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:
    """BRECQ's second part: the weights stay, and the steps follow the error behind the unit, to the power of 2.4."""
    iterations = step_iterations(settings)
    optimizer = torch.optim.Adam(list(steps.factors.values()), lr=_STEPS_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, iterations))
    for _ in range(iterations):
        chosen = torch.randint(len(passing.target), (min(settings.batch, len(passing.target)),), generator=generator)
        values: dict[fx.Node, Any] = {passing.unit.entry: passing.entry[chosen]}
        run(prepared, passing.unit.nodes, values, weights, steps.quantize)
        error = (values[passing.unit.exit] - passing.target[chosen]).abs().pow(_STEP_NORM)
        loss = error.sum() * (_channels(error) / error.numel())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield {"error": float(loss.detach())}


def step_iterations(settings: Reconstruction) -> int:
    """How many BRECQ's second part has: 5,000 beside 20,000."""
    return settings.iterations // _STEPS_ARE_SHORTER
