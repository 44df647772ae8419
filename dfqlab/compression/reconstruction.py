"""Rounding that is learned from images: AdaRound by layer, BRECQ by block, QDrop by block with activations dropped."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx

from dfqlab.compression.blocks import Unit, find_units, run
from dfqlab.compression.insertion import PreparedNetwork
from dfqlab.compression.learning import (
    Passing,
    SoftRounding,
    Steps,
    learn_rounding,
    learn_steps,
    simulation,
    step_iterations,
)
from dfqlab.compression.rounding import Rounded, RoundedWeight, weight_scales
from dfqlab.errors import DataError
from dfqlab.images import ImageSource
from dfqlab.progress import OnStep, Step, ignore

_AT_ONCE = 64  # images that go through a unit together when nothing is learned


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


def units_of(prepared: PreparedNetwork, source: ImageSource) -> Iterator[Passing]:
    """The network's blocks in forward order, and what passes each of them where nothing is rounded yet.

    Raises:
        DataError: no images.
    """
    reconstruction = _Reconstruction(prepared, source, "block", ignore)
    return reconstruction.walk(reconstruction.own, quantized=False)


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
        batches = [batch.images for batch in source.batches(_AT_ONCE)]
        if not batches:
            raise DataError(f"rounding={prepared.spec.rounding!r} learns from images, and the source gives none")
        self.images = _laid_out(prepared, teacher.input.normalize(torch.cat(batches).to(teacher.device)))
        self.own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
        self.on_step = on_step

    def learn(self, *, steps_too: bool) -> Rounded:
        """Rounding of all layers; with the steps of their activations, which are then quantized meanwhile."""
        scales = weight_scales(self.prepared)
        found: dict[str, RoundedWeight] = {}
        weights = dict(self.own)
        iterations = self.settings.iterations
        for index, passing in enumerate(self.walk(weights, quantized=steps_too)):
            unit = passing.unit
            rounding = SoftRounding(self.prepared, unit.layers, scales)
            steps = Steps(self.prepared, unit) if steps_too else None
            learning = learn_rounding(self.prepared, passing, rounding, steps, self.settings, self._generator(index))
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
        iterations = step_iterations(self.settings)
        for index, passing in enumerate(self.walk(weights, quantized=True)):
            steps = Steps(self.prepared, passing.unit)
            if steps.factors:
                learning = learn_steps(self.prepared, passing, weights, steps, self.settings, self._generator(index))
                for done, values in enumerate(learning, 1):
                    at, total = index * iterations + done, len(self.units) * iterations
                    self.on_step(Step(f"steps of {passing.unit.name}", at, total, values))
                steps.keep()

    def walk(self, weights: Mapping[str, Tensor], *, quantized: bool) -> Iterator[Passing]:
        """Unit by unit what passes it. Goes on with the weights, and the quantizers, as they are by then."""
        prepared, graph = self.prepared, self.prepared.graph.graph
        quantize = simulation(prepared) if quantized else None
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


def _laid_out(prepared: PreparedNetwork, x: Tensor) -> Tensor:
    """Channels last, as convolutions like it, unless the network takes a `view` that wants them first."""
    last = x.contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            prepared.graph(last[:2])
    except RuntimeError:
        return x.contiguous()
    return last


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
