"""Bias correction (DFQ, section 4.2): rounding moves the mean that a layer puts out; its bias moves it back."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from dfqlab.compression.execution import applied, run, simulation
from dfqlab.compression.gaussians import expected_inputs
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.rounding import Rounded, largest_bias
from dfqlab.errors import DataError
from dfqlab.images import ImageSource

Biases = dict[str, Float[Tensor, "out"]]

_IMAGES = 256  # that empirical correction looks at, all of them at once


def corrected_biases(prepared: PreparedNetwork, rounded: Rounded, source: ImageSource | None) -> Biases:
    """The biases, by module path, that give back what rounding took; only those of layers that have one.

    "analytic" subtracts `(W~ - W) E[x]` with the mean that the Gaussians of BatchNorm promise of what the
    layer reads; a layer of which they say nothing keeps its bias. "empirical" goes through the network once, with
    the images as they are and with everything in front quantized and corrected, and subtracts the difference of the
    means that the layer puts out.

    Raises:
        DataError: "empirical" without images.
    """
    match prepared.spec.corrects:
        case "analytic":
            found = _analytic(prepared, rounded)
        case "empirical":
            if source is None:
                raise DataError("bias_correction='empirical' needs images; 'analytic' needs none")
            batch = next(source.batches(_IMAGES), None)
            if batch is None or not len(batch.images):
                raise DataError("bias_correction='empirical' needs images, and the source gives none")
            found = _empirical(prepared, rounded, batch.images)
        case _:
            return {}
    for path, bias in found.items():
        limit = largest_bias(rounded[path].scale, prepared.input_scale(path))
        found[path] = torch.clamp(bias, -limit, limit)
    return found


def _analytic(prepared: PreparedNetwork, rounded: Rounded) -> Biases:
    found = {}
    for path, mean in expected_inputs(prepared).items():
        layer = prepared.weights[path]
        if layer.bias is None:
            continue
        lost = (rounded[path].weight - layer.weight.detach()).double().cpu()
        found[path] = layer.bias.detach() - _means(layer, applied(layer, mean, lost, None)).to(layer.bias)
    return found


def _empirical(prepared: PreparedNetwork, rounded: Rounded, images: Tensor) -> Biases:
    teacher, graph = prepared.teacher, prepared.graph.graph
    x = teacher.input.normalize(images.to(teacher.device))
    own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
    weights = {path: layer.weight for path, layer in rounded.items()}
    exact: dict[fx.Node, Any] = {}
    pretended: dict[fx.Node, Any] = {}
    found: Biases = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "placeholder":
                exact[node] = pretended[node] = x
                continue
            if node.op == "output":
                break
            run(prepared, [node], exact, own, None)
            run(prepared, [node], pretended, weights, simulation(prepared))
            layer = prepared.weights.get(str(node.target)) if node.op == "call_module" else None
            if layer is not None and layer.bias is not None:
                lost = _means(layer, pretended[node]) - _means(layer, exact[node])
                found[str(node.target)] = layer.bias.detach() - lost
                pretended[node] = pretended[node] - (lost if isinstance(layer, nn.Linear) else lost[:, None, None])
    return found


def _means(layer: nn.Conv2d | nn.Linear, y: Tensor) -> Tensor:
    """Of each channel of what a layer puts out: a linear layer has them along the last dimension."""
    return y.flatten(0, -2).mean(0) if isinstance(layer, nn.Linear) else y.mean((0, 2, 3))
