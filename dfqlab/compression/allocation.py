"""Mixed precision: what each layer loses at each width, and the widths that lose least within a size."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from dfqlab.compression.execution import log_shares
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.rounding import RoundedWeight, round_to_grid
from dfqlab.compression.spec import QuantizationSpec, Widths
from dfqlab.compression.weight_ranges import layer_scale
from dfqlab.errors import ConfigurationError, DataError, QuantizationError
from dfqlab.images import ImageSource
from dfqlab.progress import OnStep, Step, ignore

WIDTHS = tuple(range(2, 9))
_IMAGES = 64
_TOLERANCE = 1e-9  # of a mean: what the solver took to fit must fit when it is counted again

Losses = Mapping[str, Mapping[int, float]]


def sensitivities(
    prepared: PreparedNetwork, source: ImageSource | None, *, on_step: OnStep = ignore
) -> dict[str, dict[int, float]]:
    """What the network's answers lose when one layer alone has its weights rounded: by module path, then by bits.

    The Kullback-Leibler divergence of the answers from those of the network as it is, averaged over at most 64 images
    (the sensitivity of ZeroQ, Cai et al. 2020). Nothing but the images is needed.

    Raises:
        DataError: no images.
    """
    if source is None:
        raise DataError("which layers need more bits is measured on images, and there are none")
    teacher, spec = prepared.teacher, prepared.spec
    batch = next(source.batches(_IMAGES), None)
    if batch is None:
        raise DataError("which layers need more bits is measured on images, and the source gives none")
    x = teacher.input.normalize(batch.images.to(teacher.device))
    own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
    answers = log_shares(prepared, x, own)
    found: dict[str, dict[int, float]] = {path: {} for path in own}
    total = len(own) * len(WIDTHS)
    for index, (path, bits) in enumerate(((path, bits) for path in own for bits in WIDTHS), 1):
        grid = replace(spec.weight_grid, bits=bits)
        scale = layer_scale(prepared, path, grid)
        weight = prepared.splits[path].halves(scale).reshape(own[path].shape) if path in prepared.splits else own[path]
        rounded = RoundedWeight(round_to_grid(weight, scale, grid), scale).weight
        changed = log_shares(prepared, x, {**own, path: rounded})
        found[path][bits] = float((answers.exp() * (answers - changed)).sum(1).mean().clamp(min=0))
        on_step(Step("sensitivity", index, total))
    return found


def allocate(losses: Losses, sizes: Mapping[str, int], mean_bits: float) -> dict[str, int]:
    """The width of each layer with the least sum of losses among those that fit.

    An integer program with one choice a layer, solved by HiGHS through scipy: the sum of what layers lose each alone
    stands for what they lose together, as on ZeroQ's Pareto frontier.

    Args:
        losses: of each layer at each width that it may have.
        sizes: weights of each layer.
        mean_bits: bits that a weight may take on average.

    Raises:
        QuantizationError: not even the smallest widths fit; says what the smallest possible mean is.
        ConfigurationError: scipy is not installed.

    >>> allocate({"a": {2: 5.0, 4: 0.0}, "b": {2: 1.0, 4: 0.0}}, {"a": 10, "b": 10}, mean_bits=3)
    {'a': 4, 'b': 2}
    """
    _require_room(losses, sizes, mean_bits)
    extra = {path: {bits: loss - min(of.values()) for bits, loss in of.items()} for path, of in losses.items()}
    unit = max(max(of.values()) for of in extra.values())
    while True:
        chosen = _least(extra, sizes, mean_bits, unit)
        total = sum(extra[path][bits] for path, bits in chosen.items())
        if total > unit / 2 or total == 0:
            return chosen
        unit = total  # a solver's tolerances are absolute: it solves again, in units of what it took for the least


def _least(losses: Losses, sizes: Mapping[str, int], mean_bits: float, unit: float) -> dict[str, int]:
    """What HiGHS takes for the least, of those of which no layer loses more than the unit."""
    optimize = _solver()
    choices = [(path, bits) for path, by_bits in losses.items() for bits in by_bits if by_bits[bits] <= unit]
    one_each = [[float(path == chosen) for chosen, _ in choices] for path in losses]
    bits_of_all = [float(sizes[path] * bits) for path, bits in choices]
    found = optimize.milp(
        [losses[path][bits] / (unit or 1.0) for path, bits in choices],
        integrality=[1] * len(choices),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint([bits_of_all], 0, mean_bits * sum(sizes.values())),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if not found.success:
        raise QuantizationError(f"no assignment of widths was found: {found.message}")
    return {path: bits for (path, bits), taken in zip(choices, found.x, strict=True) if taken > 0.5}


@dataclass(frozen=True)
class Allocation:
    """A width for each layer, what it costs and what it loses.

    Attributes:
        widths: bits by module path.
        mean_bits: that a weight takes on average.
        loss: what layers lose each alone, in sum.
    """

    widths: Mapping[str, int]
    mean_bits: float
    loss: float

    @classmethod
    def of(cls, widths: Mapping[str, int], losses: Losses, sizes: Mapping[str, int]) -> "Allocation":
        """Of these widths."""
        bits = sum(sizes[path] * width for path, width in widths.items())
        return cls(widths, bits / sum(sizes.values()), sum(losses[path][width] for path, width in widths.items()))


def frontier(losses: Losses, sizes: Mapping[str, int], budgets: Sequence[float]) -> tuple[Allocation, ...]:
    """The widths that lose least within each of some sizes: ZeroQ's Pareto frontier.

    Args:
        losses: of each layer at each width that it may have, as `sensitivities` measures them.
        sizes: weights of each layer.
        budgets: bits that a weight may take on average.

    Raises:
        QuantizationError, ConfigurationError: as `allocate` does.

    >>> losses, sizes = {"a": {2: 5.0, 4: 0.0}, "b": {2: 1.0, 4: 0.0}}, {"a": 10, "b": 30}
    >>> [(point.mean_bits, point.loss) for point in frontier(losses, sizes, [2, 3, 4])]
    [(2.0, 6.0), (2.5, 1.0), (4.0, 0.0)]
    """
    return tuple(Allocation.of(allocate(losses, sizes, budget), losses, sizes) for budget in budgets)


def one_width(losses: Losses, sizes: Mapping[str, int]) -> tuple[Allocation, ...]:
    """All layers at one width, for each that all of them may have, from few bits to many."""
    common = sorted(set.intersection(*(set(by_bits) for by_bits in losses.values())))
    return tuple(Allocation.of(dict.fromkeys(losses, bits), losses, sizes) for bits in common)


def mixed(
    prepared: PreparedNetwork, source: ImageSource | None, mean_bits: float, *, on_step: OnStep = ignore
) -> QuantizationSpec:
    """The specification with a width for each layer's weights, so that they take `mean_bits` on average at most.

    Layers that the specification names, and those at the ends where it has `ends`, keep the widths that they have.

    Raises:
        QuantizationError: the widths that are fixed leave no room; says what the smallest possible mean is.
        DataError: no images.
    """
    spec = prepared.spec
    measured = sensitivities(prepared, source, on_step=on_step)
    losses = {path: {bits: measured[path][bits] for bits in widths} for path, widths in _widths(prepared).items()}
    chosen = allocate(losses, sizes_of(prepared), mean_bits)
    activations = {path: spec.layers.get(path, Widths()).activations for path in chosen}
    layers = {path: Widths(bits, activations[path]) for path, bits in chosen.items()}
    return replace(spec, layers={**spec.layers, **layers})


def check_budget(prepared: PreparedNetwork) -> None:
    """Raise what `mixed` would, where images cannot change that: no room for the smallest widths, or no scipy."""
    if prepared.spec.mean_bits is not None:
        _require_room(_widths(prepared), sizes_of(prepared), prepared.spec.mean_bits)
        _solver()


def sizes_of(prepared: PreparedNetwork) -> dict[str, int]:
    """How many weights each layer has, by module path."""
    return {path: layer.weight.numel() for path, layer in prepared.weights.items()}


def _widths(prepared: PreparedNetwork) -> dict[str, tuple[int, ...]]:
    """Those that each layer may have: one where the specification names the layer or the ends."""
    spec = prepared.spec
    found = {}
    for path, grid in prepared.grids.items():
        named = spec.layers.get(path, Widths()).weights is not None
        fixed = named or (spec.ends is not None and path in prepared.ends)
        found[path] = (grid.bits,) if fixed else WIDTHS
    return found


def _require_room(widths: Mapping[str, Iterable[int]], sizes: Mapping[str, int], mean_bits: float) -> None:
    total = sum(sizes.values())
    smallest = sum(min(widths[path]) * size for path, size in sizes.items()) / total
    if mean_bits < smallest - _TOLERANCE:
        raise QuantizationError(
            f"mean_bits={mean_bits:g}: the smallest possible here is {math.ceil(100 * smallest) / 100:g}, with every "
            "layer that may change at its smallest width"
        )


def _solver() -> ModuleType:
    try:
        from scipy import optimize
    except ImportError as error:
        raise ConfigurationError('mixed precision needs the extra "search": pip install "dfqlab[search]"') from error
    found: ModuleType = optimize
    return found
