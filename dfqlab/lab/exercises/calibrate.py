"""Lesson 09: what a range loses, the factors that equalize two layers, and roundings whose errors cancel."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import dfqlab_kernels
from dfqlab.compression.equalization import equalizing_factors
from dfqlab.compression.quantizers import affine_parameters
from dfqlab.compression.rounding import cancelling_codes
from dfqlab.compression.spec import Grid
from dfqlab.lab.checks import Exercise, Hint


def range_errors(x: Tensor, ends: Tensor, bits: int) -> Tensor:
    """The mean squared error of quantizing x to each range 0..end."""
    return _errors(x, ends, bits)


def equalize(first: Tensor, second: Tensor) -> Tensor:
    """DFQ's eq. 11, a factor for each channel between two linear layers."""
    return equalizing_factors(_linear(first), _linear(second))


def cancel(steps: Tensor) -> Tensor:
    """SQuant's codes of one kernel, of weights that are given in steps."""
    grid = Grid(8, symmetric=True, granularity="per_channel")
    return cancelling_codes(steps.reshape(1, 1, 1, -1), torch.ones(1), grid).flatten()


def _errors(x: Tensor, ends: Tensor, bits: int, *, clip: bool = True, power: int = 2) -> Tensor:
    grid = Grid(bits, symmetric=False, granularity="per_tensor")
    errors = []
    for end in ends.tolist():
        p = affine_parameters(0.0, end, grid)
        top = p.quant_max if clip else round(float(x.max()) / float(p.scale)) + 1
        after = dfqlab_kernels.fake_quantize(
            x, p.scale, torch.tensor(p.zero_point), quant_min=p.quant_min, quant_max=top
        )
        errors.append((x - after).abs().pow(power).mean())
    return torch.stack(errors)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _without_clipping(x: Tensor, ends: Tensor, bits: int) -> Tensor:
    return _errors(x, ends, bits, clip=False)


def _inside_alone(x: Tensor, ends: Tensor, bits: int) -> Tensor:
    return torch.stack([_errors(x[x <= end], end[None], bits)[0] for end in ends])


def _absolute(x: Tensor, ends: Tensor, bits: int) -> Tensor:
    return _errors(x, ends, bits, power=1)


def _a_step_too_many(x: Tensor, ends: Tensor, bits: int) -> Tensor:
    steps = ends / 2**bits
    return torch.stack([(x - (x / s).round().clamp(0, 2**bits - 1) * s).square().mean() for s in steps])


def _reaches(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return first.abs().amax(1), second.abs().amax(0)


def _upside_down(first: Tensor, second: Tensor) -> Tensor:
    one, two = _reaches(first, second)
    return (one * two).sqrt() / one


def _without_root(first: Tensor, second: Tensor) -> Tensor:
    one, two = _reaches(first, second)
    return one / two


def _only_upwards(first: Tensor, second: Tensor) -> Tensor:
    one, two = first.amax(1), second.amax(0)
    return (one * two).sqrt() / two


def _to_nearest(steps: Tensor) -> Tensor:
    return steps.round()


def _flipped(
    steps: Tensor, by: Tensor, direction: float = -1.0, rounded: Callable[[Tensor], Tensor] = torch.round
) -> Tensor:
    """As many codes moved by one as the rounded sum of all errors says, those with the largest `by` first."""
    codes = steps.round()
    total = (codes - steps).sum()
    chosen = by.argsort(descending=True)[: int(rounded(total.abs()))]
    return codes.index_add(0, chosen, direction * total.sign().expand(len(chosen)))


def _smallest_first(steps: Tensor) -> Tensor:
    error = (steps.round() - steps) * (steps.round() - steps).sum().sign()
    return _flipped(steps, -error.where(error > 0, 1.0))


def _wrong_way(steps: Tensor) -> Tensor:
    error = steps.round() - steps
    return _flipped(steps, error * error.sum().sign(), direction=1.0)


def _any_sign(steps: Tensor) -> Tensor:
    return _flipped(steps, (steps.round() - steps).abs())


def _one_too_many(steps: Tensor) -> Tensor:
    error = steps.round() - steps
    return _flipped(steps, error * error.sum().sign(), rounded=torch.ceil)


_X = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.6, 0.8, 0.9, 1.5])

EXERCISES = (
    Exercise(
        id="09.range_errors",
        answer=range_errors,
        cases=(
            (_X, torch.tensor([0.7, 1.1, 1.4, 1.5]), 2),
            (_X * 1.3, torch.tensor([0.9, 2.2]), 3),
        ),
        drawn=("ends",),
        hints=(
            Hint(
                "What lies beyond the end has no code of its own: clamp the codes to 0..2^bits - 1.", _without_clipping
            ),
            Hint("Values beyond the end count too: what clipping takes from them is the other half.", _inside_alone),
            Hint("Square each error before the mean: one large error shall count more than many small.", _absolute),
            Hint("2^bits marks have 2^bits - 1 steps between them: the last mark is the end.", _a_step_too_many),
        ),
        library="dfqlab.compression.ranges.least_squared_error_range",
    ),
    Exercise(
        id="09.equalize",
        answer=equalize,
        cases=(
            (torch.tensor([[4.0, -1.0], [0.5, 0.25], [-1.0, 2.0]]), torch.tensor([[1.0, -2.0, 0.5], [0.5, 1.0, 0.25]])),
            (torch.tensor([[-3.0], [1.0]]), torch.tensor([[0.5, -4.0], [0.75, 2.0]])),
        ),
        drawn=(),
        hints=(
            Hint("Turn it round: the first layer is divided by the factor, the second multiplied.", _upside_down),
            Hint("Both shall reach the geometric mean of their reaches; that needs a square root.", _without_root),
            Hint("A negative weight reaches as far as a positive one: take magnitudes first.", _only_upwards),
        ),
        library="dfqlab.compression.equalization.equalizing_factors",
    ),
    Exercise(
        id="09.cancel",
        answer=cancel,
        cases=(
            (torch.tensor([0.4, 1.35, -0.7, 2.45, 0.2]),),
            (torch.tensor([1.45, 2.4, 0.35, 3.51]),),  # the largest error is against the sum
            (torch.tensor([0.6, 0.7, -1.35, 2.9, 0.55]),),
            (torch.tensor([0.65, 1.6, 2.75, -0.3]),),  # the sum is rounded down
            (torch.tensor([0.4, 1.7, 2.6]),),  # and here to 0
        ),
        drawn=("steps",),
        hints=(
            Hint("Nearest is where to begin: then add up the errors, codes - steps, and look at the sum.", _to_nearest),
            Hint("Move those first that were nearly half a step off: they cost least to turn.", _smallest_first),
            Hint("If the sum of errors is negative, the codes are too low: some must go up.", _wrong_way),
            Hint("Only an error with the sign of the sum can be turned against it.", _any_sign),
            Hint("Round the sum: 1.3 moves one code, 0.3 none.", _one_too_many),
        ),
        library="dfqlab.compression.rounding.cancelling_codes",
    ),
)
