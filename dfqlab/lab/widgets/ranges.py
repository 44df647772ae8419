"""Pick an activation, bits and a rule: where its range ends, what it clips, and what that is worth."""

from collections.abc import Mapping
from functools import lru_cache
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.calibration import calibrate, check_size, quantizer_inputs
from dfqlab.compression.insertion import prepare
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.spec import Calibration, QuantizationSpec
from dfqlab.errors import DataError
from dfqlab.figures import clipped_values
from dfqlab.images import StoredImages
from dfqlab.lab.controls import Choice, Slider
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Explorer
from dfqlab.measures import sqnr
from dfqlab.teachers import Teacher

_KEPT = 2  # calibrated networks, and activations: of a large network they are large
_AT_ONCE = 32  # images: all activations of these are held while one is read


def range_rules(teacher: Teacher, images: Mapping[str, Float[Tensor, "_ c h w"]]) -> Explorer:
    """The range that a rule lays over an activation, and what quantizing to it loses.

    Ranges come from the first of the sources, whichever is shown: what is lost on others is what calibration could not
    know. The network's input and averages are left out, since no rule decides their ranges.

    Args:
        teacher: its network stays in float.
        images: in pixel units, by source.

    Raises:
        DataError: no source, images of another size, or a network with no activation whose range a rule decides.
    """
    if not images:
        raise DataError("nothing to take ranges from: expected images of one source or more")
    calibration_images = StoredImages(next(iter(images.values())))
    for batch in images.values():
        check_size(teacher, batch)
    network = prepare(teacher, QuantizationSpec())
    paths = {network.activations[path].name: path for path in _estimated(network)}
    if not paths:
        raise DataError(
            f"{teacher.name!r} has no activation whose range a rule decides, only its input and averages; expected a "
            "network with one convolution or linear layer behind another"
        )

    @lru_cache(maxsize=_KEPT)
    def values(layer: str, source: str) -> Tensor:
        parts = images[source].split(_AT_ONCE)
        return torch.cat([quantizer_inputs(network, part)[paths[layer]].flatten() for part in parts])

    @lru_cache(maxsize=_KEPT)
    def calibrated(bits: int, rule: Calibration) -> PreparedNetwork:
        prepared = prepare(teacher, QuantizationSpec(activations=bits, calibration=rule))
        calibrate(prepared, calibration_images)
        return prepared

    def draw(layer: str, bits: int, rule: Calibration, shown: str) -> Drawing:
        quantizer = calibrated(bits, rule).activations[paths[layer]]
        p, x = quantizer.quantization, values(layer, shown)
        codes, after = torch.round(x / p.scale) + p.zero_point, quantizer.simulate(x)
        clipped = (codes < p.quant_min) | (codes > p.quant_max)
        marks = (torch.arange(p.quant_min, p.quant_max + 1) - p.zero_point) * p.scale
        low, high = p.range
        return Drawing(
            clipped_values(x, after, clipped, marks, of=f"output of {layer}"),
            f"{layer}, {bits} bits, {rule}: range {low:.2f} to {high:.2f}; on {shown} "
            f"{100 * clipped.float().mean():.2f} % of the values are clipped, signal to error {sqnr(x, after):.1f} dB.",
        )

    layers, sources = tuple(paths), tuple(images)
    return Explorer(
        draw,
        layer=Choice(layers[len(layers) // 2], layers),
        bits=Slider(3, 2, 8),
        rule=Choice("minmax", get_args(Calibration)),
        shown=Choice(sources[0], sources),
    )


def _estimated(prepared: PreparedNetwork) -> list[str]:
    """Paths of the quantizers whose range a rule decides."""
    inputs = {prepared.grid_of[node] for node in prepared.graph.graph.find_nodes(op="placeholder")}
    return [path for path, quantizer in prepared.activations.items() if path not in inputs and not quantizer.averages]
