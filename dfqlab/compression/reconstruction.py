"""Rounding that is learned from images: AdaRound by layer, BRECQ by block, QDrop by block with activations dropped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx

from dfqlab.compression.blocks import find_units
from dfqlab.compression.execution import Quantize, log_shares, run, simulation
from dfqlab.compression.fisher import squared_gradients
from dfqlab.compression.learning import (
    Passing,
    Rows,
    SoftRounding,
    Steps,
    learn_rounding,
    learn_steps,
    step_iterations,
)
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.rounding import Rounded, RoundedWeight, nearest, weight_scales
from dfqlab.errors import DataError
from dfqlab.images import ImageSource
from dfqlab.progress import OnStep, Step, ignore

_AT_ONCE = 64  # images that go through a unit together when nothing is learned


def adaround(prepared: PreparedNetwork, source: ImageSource | None, *, on_step: OnStep = ignore) -> Rounded:
    """Learn for each weight whether it goes up or down, layer by layer (AdaRound, eqs. 21 to 25).

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


def units_of(
    prepared: PreparedNetwork, source: ImageSource, by: Literal["layer", "block"] = "block"
) -> Iterator[Passing]:
    """The network's units in forward order, and what passes each of them where nothing is rounded yet.

    Raises:
        DataError: no images.
    """
    return _Reconstruction(prepared, source, by, ignore).walk(None)


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
        images = _laid_out(prepared, teacher.input.normalize(torch.cat(batches).to(teacher.device)))
        self.images = images.split(_AT_ONCE)
        self.own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
        self.on_step = on_step

    def learn(self, *, steps_too: bool) -> Rounded:
        """Rounding of all layers; with the steps of their activations, which are then quantized meanwhile."""
        scales = weight_scales(self.prepared)
        found: dict[str, RoundedWeight] = {}
        weights = {path: layer.weight for path, layer in nearest(self.prepared).items()}  # where learning begins
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
            passing.release()
        return found

    def learn_steps(self, rounded: Rounded) -> None:
        """The steps of activations, unit by unit, from what enters each of them in float."""
        weights = {path: layer.weight for path, layer in rounded.items()}
        iterations = step_iterations(self.settings)
        for index, passing in enumerate(self.walk(None)):
            steps = Steps(self.prepared, passing.unit)
            if steps.factors:
                learning = learn_steps(self.prepared, passing, weights, steps, self.settings, self._generator(index))
                for done, values in enumerate(learning, 1):
                    at, total = index * iterations + done, len(self.units) * iterations
                    self.on_step(Step(f"steps of {passing.unit.name}", at, total, values))
                steps.keep()
            passing.release()

    def walk(self, weights: Mapping[str, Tensor] | None, *, quantized: bool = False) -> Iterator[Passing]:
        """Unit by unit what passes it. Images go through in parts, and nothing is kept when it was read.

        Args:
            weights: of the rounded network, as they are by then; None: the float network alone is followed.
            quantized: the rounded network's activations too, by the quantizers as they are by then.
        """
        graph = self.prepared.graph.graph
        quantize = simulation(self.prepared) if quantized else None
        starts = {unit.start: unit for unit in self.units}
        inside = {node for unit in self.units for node in unit.nodes if node.op != "get_attr"}
        (images,) = graph.find_nodes(op="placeholder")
        exact: list[dict[fx.Node, Any]] = [{images: part} for part in self.images]
        rounded = [] if weights is None else [dict(values) for values in exact]
        fisher = weights is not None and self.settings.loss == "fisher"
        answers = [log_shares(self.prepared, part, self.own) for part in self.images] if fisher else []

        def in_float(nodes: Sequence[fx.Node]) -> None:
            _through(self.prepared, nodes, exact, self.own, None)

        def as_rounded(nodes: Sequence[fx.Node]) -> None:
            _through(self.prepared, nodes, rounded, weights or {}, quantize)

        for node in graph.nodes:
            if node in starts:
                unit = starts[node]
                entry = Rows([values[unit.entry] for values in rounded or exact])
                exact_entry = Rows([values[unit.entry] for values in exact if quantized])
                importance = Rows([])
                if weights is not None and answers:
                    importance = squared_gradients(self.prepared, unit, rounded, answers, weights, quantize)
                in_float(unit.nodes)
                yield Passing(unit, entry, exact_entry, Rows([values[unit.exit] for values in exact]), importance)
                as_rounded(unit.nodes)
            elif node.op not in ("placeholder", "output") and node not in inside:
                in_float([node])
                as_rounded([node])

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
    nodes: Sequence[fx.Node],
    parts: Iterable[dict[fx.Node, Any]],
    weights: Mapping[str, Tensor],
    quantize: Quantize | None,
) -> None:
    """Nodes, for one part of the images after the other."""
    with torch.no_grad():
        for values in parts:
            run(prepared, nodes, values, weights, quantize)
