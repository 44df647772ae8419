"""Soft rounding of many weight tensors at once: whether a weight rounds up or down is what is learned (AdaRound)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab_kernels import reference
from dfqlab_kernels.backends import uses_triton
from dfqlab_kernels.errors import ShapeError
from dfqlab_kernels.reference.quantization import accumulation_dtype

STRETCH = (-0.1, 1.1)  # γ and ζ of AdaRound


@dataclass(frozen=True)
class Packing:
    """How weight tensors lie one behind the other in a flat one; each index of a first dimension is a row.

    Args:
        shapes: of the weights, output channels first, as convolutions and linear layers have them.

    Raises:
        ShapeError: a weight without dimensions has no row.

    >>> packing = Packing.of([torch.zeros(4, 3, 2, 2), torch.ones(2, 4)])
    >>> packing.rows, packing.total
    (6, 56)
    >>> packing.unpack(packing.pack([torch.zeros(4, 3, 2, 2), torch.ones(2, 4)]))[1].tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """

    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not all(self.shapes):
            raise ShapeError(f"Packing: expected at least (rows,) of every weight, got shapes {self.shapes}")

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Packing":
        """The packing that fits these tensors."""
        return cls(tuple(tuple(tensor.shape) for tensor in tensors))

    @property
    def sizes(self) -> list[int]:
        """Rows and length of a row, tensor by tensor."""
        return [size for shape in self.shapes for size in (shape[0], math.prod(shape[1:]))]

    @property
    def rows(self) -> int:
        """Rows of all tensors: how many scales there are."""
        return sum(shape[0] for shape in self.shapes)

    @property
    def total(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes)

    def pack(self, tensors: Sequence[Tensor]) -> Float[Tensor, " total"]:
        """Copy into one flat tensor.

        Raises:
            ShapeError: these are other tensors than those the packing is for.
        """
        found = tuple(tuple(tensor.shape) for tensor in tensors)
        if found != self.shapes:
            raise ShapeError(f"Packing.pack: expected shapes {self.shapes}, got {found}")
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def unpack(self, flat: Float[Tensor, " total"]) -> list[Tensor]:
        """Views of the flat tensor with the original shapes.

        Raises:
            ShapeError: the flat tensor has another length.
        """
        check_packed("Packing.unpack", self, elements={"flat": flat})
        parts = flat.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def soft_round_quantize(
    weights: Float[Tensor, " total"],
    logits: Float[Tensor, " total"],
    scale: Float[Tensor, " rows"],
    zero_point: Tensor | None = None,
    *,
    packing: Packing,
    quant_min: int,
    quant_max: int,
    beta: float | Tensor = 20.0,
    stretch: tuple[float, float] = STRETCH,
    hard: bool = False,
) -> tuple[Float[Tensor, " total"], Float[Tensor, ""]]:
    """`y = (clamp(floor(w / s) + h + z, quant_min, quant_max) - z) * s`, and a penalty that drives h to 0 or 1.

    AdaRound (Nagel et al. 2020): y is equation 22; the rectified sigmoid `h = clamp(σ(logit) (ζ - γ) + γ, 0, 1)` with
    stretch (γ, ζ) is equation 23; the penalty `Σ 1 - |2h - 1|^β` over all elements is equation 24, to be weighted by λ
    in the loss of equation 21. Division is a multiplication with `1 / s`. The gradient reaches the logits alone, from
    both results, once: none where h or y is clipped. NaN in a weight or a logit stays NaN.

    All tensors of a network go in one launch: pack them with a `Packing`. On a GPU the first call with a packing copies
    a small table there; capture a CUDA graph after it.

    Args:
        weights: packed; float16, bfloat16, float32 or float64. y has its dtype.
        logits: packed; any of these dtypes.
        scale: positive, one for each row.
        zero_point: integers (any dtype), one for each row; None is 0.
        packing: where the rows lie.
        quant_min, quant_max: the ends of the grid, inclusive.
        beta: at least 1; a tensor with one element, on the device of the weights, can be annealed inside a CUDA graph.
        stretch: γ <= 0 and ζ >= 1.
        hard: round up where the logit is not negative, else down: the penalty is 0, and there is no gradient.

    Raises:
        ShapeError: a tensor does not fit the packing, or beta is more than one number.

    >>> packing, weights, scale = Packing(((1, 3),)), torch.tensor([0.4, 0.5, -0.9]), torch.tensor([1.0])
    >>> logits = torch.tensor([-9.0, 9.0, 0.0])
    >>> y, penalty = soft_round_quantize(weights, logits, scale, packing=packing, quant_min=-8, quant_max=7)
    >>> y.tolist(), penalty.item()
    ([0.0, 1.0, -0.5], 1.0)
    """
    elements, rows = {"weights": weights, "logits": logits}, {"scale": scale, "zero_point": zero_point}
    check_packed("soft_round_quantize", packing, elements=elements, rows=rows)
    dtype = accumulation_dtype(weights)
    triton, grid = uses_triton(weights), (packing.sizes, quant_min, quant_max)
    weights, scale = weights.detach(), scale.detach()
    zero_point = None if zero_point is None else zero_point.detach()
    y: Tensor
    if hard:
        y = (_hard_round if triton else reference.hard_round_quantize)(
            weights, logits.detach(), scale, zero_point, *grid
        )
        return y, weights.new_zeros((), dtype=dtype)
    if not isinstance(beta, Tensor):
        beta = torch.full((), beta, dtype=dtype, device=weights.device)
    elif beta.numel() != 1:
        raise ShapeError(f"soft_round_quantize: expected one beta, got shape {tuple(beta.shape)}")
    y, penalty = (_soft_round if triton else reference.soft_round_quantize)(
        weights, logits, scale, zero_point, beta.detach().reshape(()), *grid, *stretch
    )
    return y, penalty


def initial_logits(
    weights: Float[Tensor, " total"],
    scale: Float[Tensor, " rows"],
    *,
    packing: Packing,
    stretch: tuple[float, float] = STRETCH,
) -> Float[Tensor, " total"]:
    """The logits at which soft rounding changes nothing: `floor(w / s) + h = w / s`.

    In float32 or float64, and finite for every finite weight: with stretch (0, 1), no logit reaches an h of 0 exactly.

    Raises:
        ShapeError: a tensor does not fit the packing.

    >>> packing, weights, scale = Packing(((1, 2),)), torch.tensor([0.6, -1.7]), torch.tensor([0.5])
    >>> logits = initial_logits(weights, scale, packing=packing)
    >>> soft_round_quantize(weights, logits, scale, packing=packing, quant_min=-8, quant_max=7)[0].tolist()
    [0.6, -1.7]
    """
    check_packed("initial_logits", packing, elements={"weights": weights}, rows={"scale": scale})
    return reference.initial_logits(weights.detach(), scale.detach(), packing.sizes, *stretch)


def check_packed(
    op: str, packing: Packing, *, elements: dict[str, Tensor], rows: dict[str, Tensor | None] | None = None
) -> None:
    """Raise a ShapeError unless these have one number for each element, and those one for each row."""
    for kind, count, tensors in (("element", packing.total, elements), ("row", packing.rows, rows or {})):
        for name, tensor in tensors.items():
            if tensor is not None and tuple(tensor.shape) != (count,):
                raise ShapeError(
                    f"{op}: expected {name} of shape ({count},), one for each {kind} of {len(packing.shapes)} "
                    f"packed weight(s), got {tuple(tensor.shape)}"
                )


@torch.library.custom_op("dfqlab::soft_round_quantize", mutates_args=())
def _soft_round(
    weights: Tensor,
    logits: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    beta: Tensor,
    sizes: list[int],
    quant_min: int,
    quant_max: int,
    gamma: float,
    zeta: float,
) -> tuple[Tensor, Tensor]:
    from dfqlab_kernels.programs import soft_round

    return soft_round.forward(weights, logits, scale, zero_point, beta, sizes, quant_min, quant_max, gamma, zeta)


@_soft_round.register_fake
def _(weights: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape), weights.new_empty((), dtype=accumulation_dtype(weights))


@torch.library.custom_op("dfqlab::soft_round_quantize_backward", mutates_args=())
def _soft_round_backward(
    dy: Tensor,
    dpenalty: Tensor,
    weights: Tensor,
    logits: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    beta: Tensor,
    sizes: list[int],
    quant_min: int,
    quant_max: int,
    gamma: float,
    zeta: float,
) -> Tensor:
    from dfqlab_kernels.programs import soft_round

    return soft_round.backward(
        dy, dpenalty, weights, logits, scale, zero_point, beta, sizes, quant_min, quant_max, gamma, zeta
    )


@_soft_round_backward.register_fake
def _(dy: Tensor, dpenalty: Tensor, weights: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weights, logits, scale, zero_point, beta, *ctx.rest = inputs
    ctx.save_for_backward(weights, logits, scale, zero_point, beta)


def _gradient(ctx: Any, dy: Tensor, dpenalty: Tensor) -> tuple[Tensor | None, ...]:
    dlogits = _soft_round_backward(dy, dpenalty, *ctx.saved_tensors, *ctx.rest)
    return None, dlogits, None, None, None, None, None, None, None, None


_soft_round.register_autograd(_gradient, setup_context=_setup)


@torch.library.custom_op("dfqlab::hard_round_quantize", mutates_args=())
def _hard_round(
    weights: Tensor,
    logits: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    sizes: list[int],
    quant_min: int,
    quant_max: int,
) -> Tensor:
    from dfqlab_kernels.programs import soft_round

    return soft_round.hard(weights, logits, scale, zero_point, sizes, quant_min, quant_max)


@_hard_round.register_fake
def _(weights: Tensor, *_: Any) -> Tensor:
    return weights.new_empty(weights.shape)
