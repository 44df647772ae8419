"""How far to believe what is said of a model without real data: several judges, none of which has calibrated it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfqlab.compression.gaussians import sampled_inputs
from dfqlab.compression.insertion import prepare
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.errors import DataError
from dfqlab.evaluation import Classifier, compare
from dfqlab.images import ImageSource
from dfqlab.measures import Interval, decibels
from dfqlab.teachers import Teacher

Kind = Literal["held out", "calibrated on", "clipped noise", "BatchNorm"]

HELD_OUT = 64  # images of a judge in a report
NOT_BELIEVED = 0.5  # a rank correlation with true accuracy below this says nothing that one could act on
_APART = 6.0  # dB: twice the error
_AT_ONCE = 16  # images


@dataclass(frozen=True)
class Judgement:
    """What one judge says of a quantized model.

    Attributes:
        judge: its name.
        kind: what it is; what the model was calibrated on is no judge, and stands beside them to be compared.
        agreement: the share of its images that model and teacher name alike; None where the judge has no images.
        sqnr: of the logits against the teacher's, in dB; None likewise.
        layers: SQNR of each layer's output in dB, by module path: the layer alone, fed with what the network in float
            gives it, so that what is lost before does not count.
    """

    judge: str
    kind: Kind
    agreement: Interval | None
    sqnr: float | None
    layers: Mapping[str, float]

    @property
    def worst_layer(self) -> str:
        """The layer that loses most."""
        return min(self.layers, key=self.layers.__getitem__)


@dataclass(frozen=True)
class Belief:
    """What an estimate without data was worth where real data could judge it.

    Attributes:
        teacher: the network.
        width: as "W4A4".
        points: ways to quantize it that were ranked, by calibration, rounding and images.
        correlation: Spearman's, of the estimate with accuracy on real images, -1..1, with its 95 % interval.
        images: real images that accuracy was measured on.
    """

    teacher: str
    width: str
    points: int
    correlation: Interval
    images: int

    @property
    def sentence(self) -> str:
        """What a reader of the estimate should know."""
        c = self.correlation
        found = (
            f"{self.teacher} at {self.width}: over {self.points} ways to quantize it, agreement on held-out synthetic "
            f"images and accuracy on {self.images:,} real ones have a rank correlation of {c.value:.2f} "
            f"[{c.low:.2f}, {c.high:.2f}]"
        )
        return f"{found}; such an estimate is not to be believed." if c.value < NOT_BELIEVED else f"{found}."


def judge(
    model: CompressedModel,
    teacher: Teacher,
    sources: Mapping[str, tuple[Kind, ImageSource]],
    *,
    runtime: Classifier | None = None,
    seed: int = 0,
) -> tuple[Judgement, ...]:
    """Ask several sources, and what BatchNorm remembers, how good a model is.

    The last judge has no images: each layer is fed with draws from the Gaussians that BatchNorm keeps, passed through
    what stands between, every element by itself. It has no part in what recipes make of the same Gaussians.

    Args:
        model: what is judged.
        teacher: what it was made from.
        sources: by name, images in pixel units (0..1).
        runtime: what executes the model as a whole; itself, if None.
        seed: of the draws.

    Raises:
        DataError: a source without images, or with images of another size.
    """
    prepared = prepare(teacher, model.spec)
    found = []
    for name, (kind, images) in sources.items():
        agreement, ratio = compare(runtime or model, teacher, images)
        found.append(Judgement(name, kind, agreement, ratio, layer_errors(model, prepared, images)))
    if teacher.batch_norms:
        draws = sampled_inputs(prepared, _AT_ONCE, torch.Generator().manual_seed(seed))
        errors = _Errors(model, prepared)
        with torch.no_grad():
            for path, x in draws:
                errors.add(path, x, prepared.weights[path](x))
        found.append(Judgement("BatchNorm's Gaussians", "BatchNorm", None, None, errors.ratios))
    return tuple(found)


def layer_errors(model: CompressedModel, prepared: PreparedNetwork, images: ImageSource) -> dict[str, float]:
    """SQNR in dB of each layer's output, by module path: the layer alone, fed by the network in float.

    Args:
        model: its integers.
        prepared: what it was frozen from, or the same made anew: `prepare(teacher, model.spec)`.
        images: in pixel units (0..1).

    Raises:
        DataError: no images, or images of another size.
    """
    teacher, errors = prepared.teacher, _Errors(model, prepared)

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, args, output: errors.add(path, args[0], output)

    handles = [layer.register_forward_hook(watch(path)) for path, layer in prepared.weights.items()]
    try:
        with torch.no_grad():
            for batch in images.batches(_AT_ONCE):
                teacher.check_size(batch.images)
                prepared.graph(teacher.input.normalize(batch.images.to(teacher.device)))
    finally:
        for handle in handles:
            handle.remove()
    if not errors.signal:
        raise DataError("no images to judge with: the image source gives none")
    return errors.ratios


class _Errors:
    """Signal and noise of each layer's output, summed over what it is shown."""

    def __init__(self, model: CompressedModel, prepared: PreparedNetwork) -> None:
        self.integers = model.layers
        nodes = prepared.graph.graph.find_nodes(op="call_module")
        reads = {str(n.target): prepared.grid_of[n.args[0]] for n in nodes if str(n.target) in self.integers}
        self.quantizers = {path: model.graph.get_submodule(grid) for path, grid in reads.items()}
        self.signal: dict[str, float] = {}
        self.noise: dict[str, float] = {}

    def add(self, path: str, x: Tensor, y: Tensor) -> None:
        """What one layer makes of x in float is y."""
        quantized = self.integers[path](self.quantizers[path](x))
        self.signal[path] = self.signal.get(path, 0.0) + float(y.double().square().sum())
        self.noise[path] = self.noise.get(path, 0.0) + float((y.double() - quantized.double()).square().sum())

    @property
    def ratios(self) -> dict[str, float]:
        """By module path, in forward order."""
        return {p: decibels(self.signal[p], self.noise[p]) for p in self.integers if p in self.signal}


def disagreements(judgements: tuple[Judgement, ...]) -> tuple[str, ...]:
    """Where judges contradict each other, each in a sentence; empty where one may be taken for the other."""
    held_out = [j for j in judgements if j.kind == "held out" and j.agreement is not None and j.sqnr is not None]
    found = []
    if len(held_out) > 1:
        low, high = (of(held_out, key=lambda j: _share(j).value) for of in (min, max))
        if _share(low).high < _share(high).low:
            found.append(
                f"Held-out images contradict each other: on {high.judge} the model agrees with its teacher on "
                f"{high.agreement}, on {low.judge} on {low.agreement}. Believe the lower one."
            )
    own, noise = (next((j for j in judgements if j.kind == kind), None) for kind in ("calibrated on", "clipped noise"))
    if own is not None and held_out:
        lowest = min(held_out, key=_ratio)
        if _ratio(own) - _ratio(lowest) > _APART / 2:
            found.append(
                f"On the images that it was calibrated with, logits have {own.sqnr:.1f} dB, on {lowest.judge} "
                f"{lowest.sqnr:.1f} dB: the error on calibration images flatters."
            )
    if noise is not None and held_out:
        lowest = min(held_out, key=lambda j: _share(j).value)
        if _share(noise).low > _share(lowest).high:
            found.append(
                f"Noise praises the model more ({noise.agreement}) than {lowest.judge} ({lowest.agreement}): how a "
                "model does on noise says nothing of images."
            )
    normal = next((j for j in judgements if j.kind == "BatchNorm"), None)
    return (*found, *_apart(held_out, normal))


def _share(judgement: Judgement) -> Interval:
    assert judgement.agreement is not None
    return judgement.agreement


def _ratio(judgement: Judgement) -> float:
    assert judgement.sqnr is not None
    return judgement.sqnr


def _apart(held_out: list[Judgement], normal: Judgement | None) -> tuple[str, ...]:
    """The layer on which held-out images and BatchNorm's Gaussians contradict each other most, if any."""
    if not held_out or normal is None:
        return ()
    images = held_out[0]
    gaps = {p: images.layers[p] - normal.layers[p] for p in images.layers if p in normal.layers}
    far = [path for path, gap in gaps.items() if abs(gap) > _APART]
    if not far:
        return ()
    path = max(far, key=lambda p: abs(gaps[p]))
    others = f", and {len(far) - 1} more layers by over {_APART:g} dB" if len(far) > 1 else ""
    return (
        f"{path} has {images.layers[path]:.1f} dB on {images.judge}, and {normal.layers[path]:.1f} dB on what "
        f"BatchNorm remembers{others}: its input is not what the images make it look like, or not normal.",
    )


@cache
def beliefs() -> tuple[Belief, ...]:
    """What such estimates were worth on networks whose data is known, from `python -m benchmarks.trust_tables`."""
    found: list[dict[str, Any]] = json.loads(Path(__file__).with_name("trust.json").read_text())
    return tuple(Belief(**{**one, "correlation": Interval(**one["correlation"])}) for one in found)
