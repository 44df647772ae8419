"""`learned_step_quantize`, the definition: the table of its docstring, element by element."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import ShapeError, fake_quantize, learned_step_quantize


def random(*shape: int, seed: int = 0, factor: float = 5.0) -> Tensor:
    return factor * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, dy: Tensor, **arguments: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [t.clone().requires_grad_() for t in (x, scale, zero_point) if t is not None]
    y = learned_step_quantize(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None, **arguments)
    return y.detach(), torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_the_numbers_are_those_of_fake_quantize_with_the_rounded_zero_point(
    axis: int | None, dtype: torch.dtype
) -> None:
    x = random(4, 3, 6).to(dtype)
    count = () if axis is None else (x.shape[axis],)
    scale, zero_point = random(*count, seed=1, factor=0.2).abs() + 0.1, random(*count, seed=2)
    arguments: dict[str, Any] = {"quant_min": -8, "quant_max": 7, "axis": axis}
    found = learned_step_quantize(x, scale, zero_point, **arguments)
    assert torch.equal(found, fake_quantize(x, scale, zero_point.round().clamp(-8, 7), **arguments))
    assert found.dtype == dtype


def test_three_elements_by_hand() -> None:
    """s = 0.5, z = 1 on [-2, 1]: below the grid, inside, and above it."""
    x, scale, zero_point = torch.tensor([-9.0, -0.625, 9.0]), torch.tensor(0.5), torch.tensor(1.25)
    dy = torch.tensor([1.0, 10.0, 100.0])
    y, (dx, ds, dz) = gradients(x, scale, zero_point, dy, quant_min=-2, quant_max=1)
    assert y.tolist() == [-1.5, -0.5, 0.0]
    assert dx.tolist() == [0.0, 10.0, 0.0]
    assert ds.item() == 1.0 * (-2 - 1) + 10.0 * (-0.5 + 0.625) / 0.5 + 100.0 * (1 - 1)
    assert dz.item() == -0.5 * (1.0 + 100.0)


def test_clipped_the_gradients_are_those_of_a_line_and_inside_the_step_makes_up_for_the_rounding() -> None:
    """Autograd finds the same for y = (end - r) s, and for rint(x / s) s with a rounding that passes gradients."""
    x, scale, point = random(50).double(), torch.tensor(0.7).double(), torch.tensor(1.0).double()
    dy = random(50, seed=1).double()
    _, found = gradients(x, scale, point, dy, quant_min=-4, quant_max=3)

    leaves = [t.clone().requires_grad_() for t in (x, scale, point)]
    steps = leaves[0] / leaves[1]
    code = steps.round().detach() + (steps - steps.detach()) + leaves[2]  # straight through
    code = torch.where((code >= -4) & (code <= 3), code, code.detach().clamp(-4, 3))  # passes at the ends themselves
    y = (code - leaves[2]) * leaves[1]
    for mine, expected in zip(found, torch.autograd.grad(y, leaves, dy), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_inside_at_the_very_end_is_what_rounds_to_it() -> None:
    """LSQ clips before it rounds; here 7.4 steps round to 7 and are inside, as in torch."""
    x = torch.tensor([6.9, 7.0, 7.4, 7.5, 7.6, -8.4, -8.5, -8.6])
    _, (dx, ds) = gradients(x, torch.tensor(1.0), None, torch.ones(8), quant_min=-8, quant_max=7)
    assert dx.tolist() == [1, 1, 1, 0, 0, 1, 1, 0]
    expected = (7 - 6.9) + 0 + (7 - 7.4) + 7 + 7 + (-8 + 8.4) + (-8 + 8.5) - 8
    assert ds.item() == pytest.approx(expected, abs=1e-5)


def test_a_zero_point_beyond_the_grid_still_learns() -> None:
    """It is clipped to the end, and its gradient goes straight through both clipping and rounding."""
    for point, end in ((-20.0, -8), (20.0, 7), (2.5, 2), (3.5, 4)):
        y, (_, _, dz) = gradients(
            torch.tensor([100.0]), torch.tensor(0.5), torch.tensor(point), torch.ones(1), quant_min=-8, quant_max=7
        )
        assert y.item() == (7 - end) * 0.5
        assert dz.item() == -0.5


def test_nan_is_neither_inside_nor_clipped() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf])
    y, (dx, ds, dz) = gradients(
        x, torch.tensor(0.5), torch.tensor(0.0), torch.tensor([torch.nan, 1.0, 10.0]), quant_min=-8, quant_max=7
    )
    assert y[0].isnan()
    assert y[1:].tolist() == [3.5, -4.0]
    assert dx.tolist() == [0.0, 0.0, 0.0]
    assert ds.item() == 7 - 80
    assert dz.item() == -0.5 * 11


def test_a_scale_or_zero_point_that_is_nan_shows_in_every_number() -> None:
    x, one, nan = random(5), torch.tensor(1.0), torch.tensor(torch.nan)
    assert learned_step_quantize(x, nan, one, quant_min=-8, quant_max=7).isnan().all()
    assert learned_step_quantize(x, one, nan, quant_min=-8, quant_max=7).isnan().all()


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_the_gradient_scale_multiplies_what_learns(factor: float) -> None:
    x, scale, point, dy = random(6, 4).double(), torch.full((4,), 0.5).double(), random(4).double(), random(6, 4)
    arguments: dict[str, Any] = {"quant_min": -8, "quant_max": 7, "axis": 1}
    _, (dx, *learned) = gradients(x, scale, point, dy.double(), **arguments)
    _, (same, *scaled) = gradients(x, scale, point, dy.double(), **arguments, gradient_scale=factor)
    assert torch.equal(dx, same)
    for one, other in zip(learned, scaled, strict=True):
        assert torch.equal(one * factor, other)


def test_a_range_learns_what_fits_its_data() -> None:
    """Gradient descent on the error of rounding uniform numbers to 4 bits finds the step that spans them."""
    x = torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 3 - 1  # in [-1, 2]
    scale, point = torch.tensor(0.4, requires_grad=True), torch.tensor(8.0, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [scale], "lr": 1e-2}, {"params": [point], "lr": 1e-1}])
    for _ in range(300):
        for group in optimizer.param_groups:
            group["lr"] *= 0.99
        optimizer.zero_grad()
        error = (learned_step_quantize(x, scale, point, quant_min=0, quant_max=15) - x).square().mean()
        error.backward()
        optimizer.step()
    assert error.item() < 1.15 * (3 / 16) ** 2 / 12  # that of 16 even steps
    assert scale.item() == pytest.approx(3 / 16, rel=0.05)
    assert point.detach().round().item() == 5


@pytest.mark.parametrize(("shape", "axis"), [((7,), 0), ((), None), ((1, 1), 1), ((0, 3), 1), ((2, 0), 1)])
def test_gradients_have_the_shape_of_what_they_belong_to(shape: tuple[int, ...], axis: int | None) -> None:
    count = () if axis is None else (shape[axis],)
    x = torch.full(shape, 0.8)
    _, found = gradients(
        x, torch.full(count, 0.5), torch.zeros(count), torch.ones(shape), quant_min=-8, quant_max=7, axis=axis
    )
    assert [g.shape for g in found] == [x.shape, torch.Size(count), torch.Size(count)]
    for learned in found[1:]:
        assert learned.isfinite().all()


def test_gradients_have_the_dtype_of_what_they_belong_to() -> None:
    _, (dx, ds, dz) = gradients(
        random(3, 4).half(), torch.tensor([0.5]), torch.tensor([0.25]).bfloat16(), random(3, 4).half(),
        quant_min=-8, quant_max=7,
    )  # fmt: skip
    assert (dx.dtype, ds.dtype, dz.dtype) == (torch.float16, torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis", "said"),
    [
        (
            torch.ones(4),
            None,
            None,
            r"learned_step_quantize: per tensor expects one scale, got shape \(4,\); set axis=",
        ),
        (torch.ones(3), None, 1, r"axis=1.*scale of shape \(4,\) for x of shape \(3, 4\), got \(3,\)"),
        (torch.ones(4), torch.zeros(3), 1, r"zero_point of shape \(4,\).*got \(3,\)"),
        (torch.ones(4), None, 2, r"axis=2 is not a dimension of shape \(3, 4\)"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    scale: Tensor, zero_point: Tensor | None, axis: int | None, said: str
) -> None:
    with pytest.raises(ShapeError, match=said):
        learned_step_quantize(random(3, 4), scale, zero_point, quant_min=0, quant_max=3, axis=axis)


@pytest.mark.traces
@pytest.mark.parametrize("axis", [None, 1])
def test_compilers_see_it_whole_forward_and_backward(axis: int | None) -> None:
    count = 1 if axis is None else 4
    learned = [torch.full((count,), 0.5, requires_grad=True), torch.zeros(count, requires_grad=True)]

    def loss(x: Tensor) -> Tensor:
        return learned_step_quantize(x, *learned, quant_min=-8, quant_max=7, axis=axis).square().sum()

    x = random(3, 4).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(torch.autograd.grad(f(x), [x, *learned]) for f in (loss, compiled)), strict=True):
        torch.testing.assert_close(a, b)
