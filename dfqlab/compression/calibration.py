"""Where ranges of activations come from: what they do on images, or what BatchNorm remembers of them."""

import math
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.gaussians import expected_values
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantizers import ActivationQuantizer
from dfqlab.compression.ranges import (
    Aciq,
    Divergence,
    ImageMean,
    MinMax,
    MovingAverage,
    Percentile,
    RangeRule,
    Seen,
    SquaredError,
)
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.errors import DataError, QuantizationError
from dfqlab.images import ImageSource
from dfqlab.progress import OnStep, Step, ignore
from dfqlab.teachers import Teacher

BATCH_SIZE = 64


def calibrate(prepared: PreparedNetwork, source: ImageSource | None, *, on_step: OnStep = ignore) -> None:
    """Freeze the range of every activation quantizer, from one pass over the images or two, as its rule needs.

    The rules are those of `dfqlab.compression.ranges`. "bn" looks at no image: it takes the range that loses least of
    what the Gaussians that BatchNorm keeps say of each channel, carried through the graph.

    Two ranges are not estimated. The network's input has that of valid pixels. An average has that of what it averages:
    it cannot leave it, and images whose own means were optimised, as ZeroQ's are, do not show how far averages spread.

    Args:
        source: images; None is for "bn" alone.

    Raises:
        DataError: no source where the rule needs one, the source gives no image, its images do not fit the teacher, or
            they make it overflow.
        QuantizationError: a percentile that leaves nothing of a tensor; a network that "bn" cannot follow.
    """
    low, high = prepared.teacher.input.valid_range
    rule = rule_of(prepared.spec)
    if prepared.spec.calibration == "bn":
        seen = {path: values.seen() for path, values in expected_values(prepared).items()}
    elif source is None:
        raise DataError(f"calibration={prepared.spec.calibration!r} needs images; 'bn' is the one that needs none")
    else:
        seen = _look(prepared, source, rule, on_step)
    inputs = {prepared.grid_of.get(node) for node in prepared.graph.graph.find_nodes(op="placeholder")}
    for path, quantizer in prepared.activations.items():
        if path in inputs:
            quantizer.set_range(low, high)
        elif quantizer.averages is not None:
            quantizer.follow(prepared.activations[quantizer.averages])
        else:
            try:
                quantizer.set_range(*rule(seen[path], quantizer.grid))
            except QuantizationError as error:
                raise QuantizationError(f"{quantizer.name!r}: {error}") from error


def quantizer_inputs(prepared: PreparedNetwork, images: Float[Tensor, "n c h w"]) -> dict[str, Tensor]:
    """What the float network brings to every quantizer on these images, in pixel units, by the quantizer's path.

    Raises:
        DataError: images of another size than the teacher takes.
    """
    teacher, found = prepared.teacher, dict[str, Tensor]()
    check_size(teacher, images)
    with _observed(prepared.activations, lambda path, x: found.update({path: x.clone()})), torch.no_grad():
        prepared.graph(teacher.input.normalize(images.to(teacher.device)))
    return found


def rule_of(spec: QuantizationSpec) -> RangeRule:
    """The rule that a specification names; for "bn", what is applied to the expected values."""
    rules: dict[str, RangeRule] = {
        "minmax": MinMax(),
        "percentile": Percentile(spec.percentile),
        "ema": MovingAverage(),
        "image_mean": ImageMean(),
        "mse": SquaredError(),
        "kl": Divergence(),
        "aciq": Aciq(),
        "bn": SquaredError(),
    }
    return rules[spec.calibration]


def check_size(teacher: Teacher, images: Tensor) -> None:
    """Raise a DataError unless images are of the teacher's size."""
    if tuple(images.shape[1:]) != teacher.input.size:
        expected = ", ".join(map(str, teacher.input.size))
        raise DataError(f"{teacher.name!r} takes images (n, {expected}), got {tuple(images.shape)}")


def _look(prepared: PreparedNetwork, source: ImageSource, rule: RangeRule, on_step: OnStep) -> dict[str, Seen]:
    seen = {path: Seen() for path in prepared.activations}

    def watch(path: str, x: Tensor) -> None:
        seen[path].watch(x)
        if not all(map(math.isfinite, seen[path].extremes)):
            name = prepared.activations[path].name
            raise DataError(f"on these images {name!r} gives NaN or infinity; expected finite images in 0..1")

    _run(prepared, source, watch, "ranges", on_step)
    if rule.reads_histogram:
        _run(prepared, source, lambda path, x: seen[path].count_values(x), "histograms", on_step)
    return seen


def _run(
    prepared: PreparedNetwork, source: ImageSource, observe: Callable[[str, Tensor], None], job: str, on_step: OnStep
) -> None:
    """Run the float network over the images, showing every quantizer's input to `observe`."""
    teacher = prepared.teacher
    done = 0
    total = -(-len(source) // BATCH_SIZE) if isinstance(source, Sized) else 0
    with _observed(prepared.activations, observe), torch.no_grad():
        for batch in source.batches(BATCH_SIZE):
            check_size(teacher, batch.images)
            if not len(batch.images):
                continue
            prepared.graph(teacher.input.normalize(batch.images.to(teacher.device)))
            done += 1
            on_step(Step(job, done, max(total, done)))
    if done == 0:
        raise DataError("nothing to calibrate with: the image source gives no image")


@contextmanager
def _observed(quantizers: dict[str, ActivationQuantizer], observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    for path, quantizer in quantizers.items():
        quantizer.observer = lambda x, path=path: observe(path, x)
    try:
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.observer = None
