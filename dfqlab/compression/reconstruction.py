"""Rounding that is learned from images: AdaRound by layer, BRECQ by block, QDrop by block with activations dropped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dfqlab.compression.blocks import Unit, find_units, run
from dfqlab.compression.insertion import PreparedNetwork
from dfqlab.compression.rounding import Rounded, RoundedWeight, weight_scales
from dfqlab.compression.spec import Grid, Reconstruction
from dfqlab.errors import DataError
from dfqlab.images import ImageSource
from dfqlab.progress import OnStep, Step, ignore
from dfqlab_kernels import Packing, initial_logits, learned_step_quantize, soft_round_quantize

_AT_ONCE = 64  # images that go through a unit together when nothing is learned
_FULL_LENGTH, _FULL_RATE = 20_000, 1e-3  # of BRECQ's code
_STEP_NORM = 2.4  # of the loss that BRECQ's code learns steps of activations by
_STEPS_RATE = 4e-3  # relative to a step; the code's 4e-4 is meant for steps near 0.1
_STEPS_ARE_SHORTER = 4  # 5,000 iterations beside 20,000


def adaround(prepared: PreparedNetwork, source: ImageSource | None, *, on_step: OnStep = ignore) -> Rounded:
    """Learn for each weight whether it goes up or down, layer by layer (Nagel et al. 2020, eqs. 21 to 25).

    A layer reads what the layers in front put out with their rounded weights, and is to put out what it does in float,
    behind its activation function.
    """
    return _Reconstruction(prepared, source, "layer", on_step).learn(steps_too=False)


def brecq(prepared: PreparedNetwork, source: ImageSource | None, *, on_step: OnStep = ignore) -> Rounded:
    """The same block by block (Li et al. 2021), and then the steps of activations, block by block too."""
    reconstruction = _Reconstruction(prepared, source, "block", on_step)
    rounded = reconstruction.learn(steps_too=False)
    reconstruction.learn_steps(rounded)
    return rounded


def qdrop(prepared: PreparedNetwork, source: ImageSource | None, *, on_step: OnStep = ignore) -> Rounded:
    """Rounding and steps together, block by block, with half of what is quantized left in float at random (Wei et al.
    2022): a block must not lean on the errors of these very images."""
    return _Reconstruction(prepared, source, "block", on_step).learn(steps_too=True)


@dataclass(frozen=True)
class Passing:
    """What passes a unit, of all images.

    Attributes:
        pretended: what enters it, as the rounded layers in front make it.
        exact: what enters it in float.
        target: what leaves it in float, before it is quantized.
    """

    unit: Unit
    pretended: Tensor
    exact: Tensor
    target: Tensor


class _Reconstruction:
    """Walks through the network with all images: what each tensor is in float, and what it has become."""

    def __init__(
        self, prepared: PreparedNetwork, source: ImageSource | None, by: Literal["layer", "block"], on_step: OnStep
    ) -> None:
        if source is None:
            raise DataError(f"rounding={prepared.spec.rounding!r} learns from images, and there are none")
        teacher = prepared.teacher
        self.prepared = prepared
        self.settings = prepared.spec.reconstruction
        self.units = find_units(prepared, by)
        images = torch.cat([b.images for b in source.batches(_AT_ONCE)]).to(teacher.device)
        self.images = teacher.input.normalize(images).contiguous(memory_format=torch.channels_last)
        self.own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
        self.on_step = on_step

    def learn(self, *, steps_too: bool) -> Rounded:
        """Rounding of all layers; with the steps of their activations, which are then quantized meanwhile."""
        scales = weight_scales(self.prepared)
        found: dict[str, RoundedWeight] = {}
        weights = dict(self.own)
        iterations = self.settings.iterations
        for index, passing in enumerate(self._walk(weights, quantized=steps_too)):
            unit = passing.unit
            rounding = SoftRounding(self.prepared, unit.layers, scales)
            steps = Steps(self.prepared, unit) if steps_too else None
            learning = _learn_rounding(self.prepared, passing, rounding, steps, self.settings, self._generator(index))
            for done, values in enumerate(learning, 1):
                at, total = index * iterations + done, len(self.units) * iterations
                self.on_step(Step(f"round {unit.name}", at, total, values))
            if steps is not None:
                steps.keep()
            found |= rounding.hard()
            weights |= {path: found[path].weight for path in unit.layers}
        return found

    def learn_steps(self, rounded: Rounded) -> None:
        """The steps of activations, unit by unit, from what enters each of them in float."""
        weights = {path: layer.weight for path, layer in rounded.items()}
        iterations = self.settings.iterations // _STEPS_ARE_SHORTER
        for index, passing in enumerate(self._walk(weights, quantized=True)):
            steps = Steps(self.prepared, passing.unit)
            if steps.factors:
                learning = _learn_steps(self.prepared, passing, weights, steps, self.settings, self._generator(index))
                for done, values in enumerate(learning, 1):
                    at, total = index * iterations + done, len(self.units) * iterations
                    self.on_step(Step(f"steps of {passing.unit.name}", at, total, values))
                steps.keep()

    def _walk(self, weights: Mapping[str, Tensor], *, quantized: bool) -> Iterator[Passing]:
        """Unit by unit what passes it. Goes on with the weights, and the quantizers, as they are by then."""
        prepared, graph = self.prepared, self.prepared.graph.graph
        quantize = _simulate(prepared) if quantized else None
        owner = {node: unit for unit in self.units for node in unit.nodes}
        last_use = {source: node for node in graph.nodes for source in node.all_input_nodes}
        exact: dict[fx.Node, Any] = {}
        pretended: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            unit = owner.get(node)
            if node.op == "placeholder":
                exact[node] = pretended[node] = self.images
            elif node.op == "output":
                return
            elif unit is None:
                with torch.no_grad():
                    run(prepared, [node], exact, self.own, None)
                    run(prepared, [node], pretended, weights, quantize)
            elif node is unit.nodes[0]:
                exact[unit.exit] = _through(prepared, unit, exact[unit.entry], self.own, None)
                yield Passing(unit, pretended[unit.entry], exact[unit.entry], exact[unit.exit])
                pretended[unit.exit] = _through(prepared, unit, pretended[unit.entry], weights, quantize)
            for values in (exact, pretended):
                for read in [source for source in values if last_use.get(source) is node]:
                    del values[read]

    def _generator(self, index: int) -> torch.Generator:
        """A unit's own: what is drawn for it does not hang on the units before."""
        return torch.Generator().manual_seed((self.settings.seed * 100_003 + index) % 2**63)


class SoftRounding:
    """Weights of some layers on their way to the grid: a logit for each says how much of a step it goes up.

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
        """The weights as they are now, by path, and the penalty on those that are neither up nor down."""
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
        self.simulate = _simulate(prepared)
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


def _learn_rounding(
    prepared: PreparedNetwork,
    passing: Passing,
    rounding: SoftRounding,
    steps: Steps | None,
    settings: Reconstruction,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:
    """Iterations of AdaRound's loss (eq. 21): squared error behind the unit, and the penalty after a warm-up."""
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
        x = passing.pretended[chosen]
        if steps is not None:
            x = mixed(x, passing.exact[chosen])
        progress = iteration / settings.iterations
        weights, penalty = rounding.soft(settings.beta(progress))
        values: dict[fx.Node, Any] = {passing.unit.entry: x}
        run(prepared, passing.unit.nodes, values, weights, None if steps is None else quantize)
        error = _squared_error(values[passing.unit.exit], passing.target[chosen])
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
    """Ones at random places of a tensor, as many as a share says (in 256ths), zeros elsewhere.

    One random byte an element, and arithmetic: `rand` and a comparison take a CPU ten times as long.
    """
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    chosen = words.view(torch.uint8)[: like.numel()].to(like.device).to(like.dtype).lt_(256 * share)
    return chosen.as_strided(like.shape, torch.empty_like(like).stride())


def _squared_error(found: Tensor, target: Tensor) -> Tensor:
    """Summed over channels, averaged over all else."""
    return F.mse_loss(found, target, reduction="sum") * (found.shape[1] / found.numel())


def _learn_steps(
    prepared: PreparedNetwork,
    passing: Passing,
    weights: Mapping[str, Tensor],
    steps: Steps,
    settings: Reconstruction,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:
    """BRECQ's second part: the weights stay, and the steps follow the error behind the unit, to the power of 2.4."""
    iterations = settings.iterations // _STEPS_ARE_SHORTER
    optimizer = torch.optim.Adam(list(steps.factors.values()), lr=_STEPS_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, iterations))
    for _ in range(iterations):
        chosen = torch.randint(len(passing.target), (min(settings.batch, len(passing.target)),), generator=generator)
        values: dict[fx.Node, Any] = {passing.unit.entry: passing.exact[chosen]}
        run(prepared, passing.unit.nodes, values, weights, steps.quantize)
        loss = (values[passing.unit.exit] - passing.target[chosen]).abs().pow(_STEP_NORM).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield {"error": float(loss.detach())}


def _simulate(prepared: PreparedNetwork) -> Callable[[str, Tensor], Tensor]:
    return lambda path, x: prepared.activations[path].simulate(x)


def _through(
    prepared: PreparedNetwork,
    unit: Unit,
    x: Tensor,
    weights: Mapping[str, Tensor],
    quantize: Callable[[str, Tensor], Tensor] | None,
) -> Tensor:
    """All images through a unit, some at a time."""
    parts = []
    with torch.no_grad():
        for part in x.split(_AT_ONCE):
            values: dict[fx.Node, Any] = {unit.entry: part}
            run(prepared, unit.nodes, values, weights, quantize)
            parts.append(values[unit.exit])
    return torch.cat(parts)
