"""Where ranges come from: what activations do on images, and what weights are."""

import math
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.insertion import PreparedNetwork
from dfqlab.compression.quantizers import ActivationQuantizer, affine_scales, symmetric_scale
from dfqlab.compression.spec import Calibration, Grid
from dfqlab.errors import DataError
from dfqlab.images import ImageSource
from dfqlab.progress import OnStep, Step, ignore
from dfqlab_kernels import fake_quantize

BATCH_SIZE = 64
_BINS = 2048
_EXACT_COUNTS = 2**24  # torch.histc counts in float32
_ONE_SIDED = 100
_TWO_SIDED = 32
_AT_ONCE = 64  # ranges that are tried side by side: half a megabyte, which stays in a cache
_NOTHING_SEEN = (math.inf, -math.inf)


def calibrate(prepared: PreparedNetwork, source: ImageSource, *, on_step: OnStep = ignore) -> None:
    """Freeze the range of every activation quantizer from one pass over the images (two with "mse").

    "minmax" takes the extremes. "mse" takes the range that loses least: the squared error of quantizing a histogram of
    2,048 bins, searched over both ends where the tensor has two signs (the search of DSG's and BRECQ's code, both ends
    moved independently).

    Two ranges are not estimated. The network's input has that of valid pixels. An average has that of what it averages:
    it cannot leave it, and images whose own means were optimised, as ZeroQ's are, do not show how far averages spread.

    Raises:
        DataError: the source gives no image, its images do not fit the teacher, or they make it overflow.
    """
    low, high = prepared.teacher.input.valid_range
    ranges = _extremes(prepared, source, on_step)
    if prepared.spec.calibration == "mse":
        histograms = _histograms(prepared, source, ranges, on_step)
        ranges = {
            path: least_squared_error_range(histograms[path], *ranges[path], quantizer.grid)
            for path, quantizer in prepared.activations.items()
        }
    inputs = {prepared.grid_of.get(node) for node in prepared.graph.graph.find_nodes(op="placeholder")}
    for path, quantizer in prepared.activations.items():
        if path in inputs:
            quantizer.set_range(low, high)
        elif quantizer.averages is not None:
            quantizer.follow(prepared.activations[quantizer.averages])
        else:
            quantizer.set_range(*ranges[path])


def weight_scale(weight: Float[Tensor, "out *rest"], grid: Grid, method: Calibration) -> Float[Tensor, "out"]:
    """A scale for each output channel: covering its extremes ("minmax"), or losing least when clipped ("mse").

    "mse" tries 100 fractions of the covering scale and keeps, channel by channel, the smallest squared error.
    """
    rows = weight.detach().reshape(len(weight), -1)
    covering = symmetric_scale(rows.amin(1), rows.amax(1), grid)
    if method == "minmax":
        return covering
    best, best_error = covering, torch.full_like(covering, torch.inf)
    for fraction in torch.linspace(1, 0.01, 100).tolist():
        scale = covering * fraction
        pretended = fake_quantize(rows, scale, quant_min=grid.quant_min, quant_max=grid.quant_max, axis=0)
        error = (rows - pretended).square().sum(1)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return best


def round_to_grid(rows: Float[Tensor, "out n"], scale: Float[Tensor, "out"], grid: Grid) -> Float[Tensor, "out n"]:
    """Codes of weights, rounded to nearest (half to even) and clipped to the grid."""
    return torch.round(rows * (1 / scale[:, None])).clamp(grid.quant_min, grid.quant_max)


def least_squared_error_range(
    histogram: Float[Tensor, "bins"], low: float, high: float, grid: Grid
) -> tuple[float, float]:
    """The range inside [low, high] at which quantizing the histogram loses least, each end searched where it is not 0.

    Args:
        histogram: how many values fall into each of equally wide bins from low to high.
    """
    centres = low + (torch.arange(len(histogram), dtype=torch.float32) + 0.5) * ((high - low) / len(histogram))
    one_sided = low >= 0 or high <= 0
    fractions = torch.linspace(0, 1, (_ONE_SIDED if one_sided else _TWO_SIDED) + 1)[1:].flip(0).double()
    whole = fractions[:1]
    lows, highs = (
        end.flatten()
        for end in torch.meshgrid(
            low * (fractions if low < 0 else whole), high * (fractions if high > 0 else whole), indexing="ij"
        )
    )
    errors = []
    for some_low, some_high in zip(lows.split(_AT_ONCE), highs.split(_AT_ONCE), strict=True):
        scale, zero_point = affine_scales(some_low, some_high, grid)
        pretended = fake_quantize(
            centres.expand(len(scale), -1),
            scale,
            zero_point,
            quant_min=grid.quant_min,
            quant_max=grid.quant_max,
            axis=0,
            clip_gradient=False,
        )
        errors.append((histogram * (centres - pretended).square()).sum(1))
    best = torch.cat(errors).argmin()
    return float(lows[best]), float(highs[best])


def widened(seen: tuple[float, float], x: Float[Tensor, "*shape"]) -> tuple[float, float]:
    """The smallest range that holds the range seen so far and every value of x; NaN where x holds one.

    >>> widened((-1.0, 2.0), torch.tensor([0.5, 2.5]))
    (-1.0, 2.5)
    """
    low, high = (float(end) for end in torch.aminmax(x))
    return min(low, seen[0]), max(high, seen[1])


def _extremes(prepared: PreparedNetwork, source: ImageSource, on_step: OnStep) -> dict[str, tuple[float, float]]:
    seen: dict[str, tuple[float, float]] = {}

    def observe(path: str, x: Tensor) -> None:
        low, high = widened(seen.get(path, _NOTHING_SEEN), x)
        if not (math.isfinite(low) and math.isfinite(high)):
            name = prepared.activations[path].name
            raise DataError(f"on these images {name!r} gives NaN or infinity; expected finite images in 0..1")
        seen[path] = (low, high)

    _run(prepared, source, observe, "ranges", on_step)
    return seen


def _histograms(
    prepared: PreparedNetwork, source: ImageSource, ranges: dict[str, tuple[float, float]], on_step: OnStep
) -> dict[str, Tensor]:
    histograms = {path: torch.zeros(_BINS, dtype=torch.float64) for path in ranges}

    def observe(path: str, x: Tensor) -> None:
        low, high = ranges[path]
        if high > low:
            for part in x.float().flatten().split(_EXACT_COUNTS):
                histograms[path] += torch.histc(part, _BINS, low, high).cpu()

    _run(prepared, source, observe, "histograms", on_step)
    return histograms


def _run(
    prepared: PreparedNetwork, source: ImageSource, observe: Callable[[str, Tensor], None], job: str, on_step: OnStep
) -> None:
    """Run the float network over the images, showing every quantizer's input to `observe`."""
    teacher = prepared.teacher
    done = 0
    total = -(-len(source) // BATCH_SIZE) if isinstance(source, Sized) else 0
    with _observed(prepared.activations, observe), torch.no_grad():
        for batch in source.batches(BATCH_SIZE):
            if tuple(batch.images.shape[1:]) != teacher.input.size:
                expected = ", ".join(map(str, teacher.input.size))
                raise DataError(f"{teacher.name!r} takes images (n, {expected}), got {tuple(batch.images.shape)}")
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
