"""`learned_step_quantize` in Triton: held to float64, to `fake_quantize`, and to torch's op where that is right."""

from typing import Any, NamedTuple

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from dfqlab_kernels import backend, fake_quantize, layout, learned_step_quantize
from dfqlab_kernels.learned_step import _learned_step, _learned_step_backward

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs, several steps in both loops of each, and ragged edges, for few elements."""
    monkeypatch.setattr(layout, "TILE", 64)
    monkeypatch.setattr(layout, "PROGRAMS", 3)


class Case(NamedTuple):
    x: Tensor
    dy: Tensor
    scale: Tensor
    zero_point: Tensor | None


def case(
    generator: torch.Generator, axis: int | None, *, shape: tuple[int, ...] = (4, 3, 35), symmetric: bool = False
) -> Case:
    x, dy = 8 * torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    count = 1 if axis is None else shape[axis]
    scale = 0.2 + torch.rand(count, generator=generator)
    return Case(x, dy, scale, None if symmetric else 6 * torch.randn(count, generator=generator))


def leaf(tensor: Tensor, device: torch.device, *, learns: bool = True) -> Tensor:
    return tensor.clone().to(device).requires_grad_(learns)


class Gradients(NamedTuple):
    y: Tensor
    dx: Tensor
    ds: Tensor
    dz: Tensor | None


def run(given: Case, low: int, high: int, axis: int | None, device: torch.device, factor: float = 1.0) -> Gradients:
    """All on the CPU again."""
    x, scale = leaf(given.x, device), leaf(given.scale, device)
    zero_point = None if given.zero_point is None else leaf(given.zero_point, device)
    y = learned_step_quantize(x, scale, zero_point, quant_min=low, quant_max=high, axis=axis, gradient_scale=factor)
    y.backward(given.dy.to(device))
    assert x.grad is not None
    assert scale.grad is not None
    if zero_point is None:
        return Gradients(y.detach().cpu(), x.grad.cpu(), scale.grad.cpu(), None)
    assert zero_point.grad is not None
    return Gradients(y.detach().cpu(), x.grad.cpu(), scale.grad.cpu(), zero_point.grad.cpu())


def closed_form(given: Case, low: int, high: int, axis: int | None, factor: float) -> Gradients:
    """The table of the docstring in float64; which code a value has is decided in the precision of the op."""
    working = torch.float64 if given.x.dtype == torch.float64 else torch.float32
    shape = [1] * given.x.dim()
    if axis is not None:
        shape[axis] = -1
    s = given.scale.to(working).reshape(shape)
    z = torch.zeros_like(s) if given.zero_point is None else given.zero_point.to(working).reshape(shape)
    r = torch.round(z).clamp(low, high)
    code = torch.round(given.x.to(working) * (1 / s)) + r
    x, dy, s, r, code = given.x.double(), given.dy.double(), s.double(), r.double(), code.double()
    q = code.clamp(low, high)
    y, clipped = (q - r) * s, q != code
    others = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    ds, dz = torch.where(clipped, dy * (q - r), dy * (y - x) / s) * factor, torch.where(clipped, -dy * s, 0) * factor
    if others:
        ds, dz = ds.sum(others), dz.sum(others)
    return Gradients(y, torch.where(clipped, 0, dy), ds.reshape(given.scale.shape), dz.reshape(given.scale.shape))


@pytest.mark.parametrize(("axis", "symmetric"), [(None, False), (None, True), (0, True), (1, False), (-1, False)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_agree_with_float64(
    dtype: torch.dtype, axis: int | None, symmetric: bool, device: torch.device, generator: torch.Generator
) -> None:
    given = case(generator, axis, symmetric=symmetric)
    given = given._replace(x=given.x.to(dtype), dy=given.dy.to(dtype))
    if dtype == torch.float64:
        given = given._replace(scale=given.scale.double())
    found, expected = run(given, -8, 7, axis, device, 0.1), closed_form(given, -8, 7, axis, 0.1)
    assert found.dx.dtype == dtype
    assert found.ds.dtype == given.scale.dtype
    assert torch.equal(found.dx.double(), expected.dx)
    assert 0 < (found.dx == 0).double().mean() < 1
    tolerance = 1e-12 if dtype == torch.float64 else 5e-6
    torch.testing.assert_close(found.ds.double(), expected.ds, rtol=tolerance, atol=tolerance)
    if symmetric:
        assert found.dz is None
    else:
        assert found.dz is not None
        point = tolerance if dtype != torch.float64 else 1e-6  # the zero point is float32, and so is its gradient
        torch.testing.assert_close(found.dz.double(), expected.dz, rtol=point, atol=point)


@pytest.mark.parametrize(("programs", "splits"), [(3, (1, 1)), (6, (2, 1)), (12, (2, 2)), (24, (2, 4))])
def test_however_a_channel_is_split_the_sums_are_those_of_float64(
    programs: int,
    splits: tuple[int, int],
    device: torch.device,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One program that walks 2 by 4 tiles, and up to eight with a tile each."""
    monkeypatch.setattr(layout, "PROGRAMS", programs)
    tiling = layout.reduction_tiling(layout.Layout(1, 2, 3, 200))
    assert (tiling.splits_outer, tiling.splits_inner) == splits
    given = case(generator, 1, shape=(2, 3, 200))
    found, expected = run(given, -8, 7, 1, device), closed_form(given, -8, 7, 1, 1.0)
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize(("low", "high"), [(-8, 7), (3, 200), (0, 1)])
def test_the_numbers_are_those_of_fake_quantize_with_the_rounded_zero_point(
    low: int, high: int, axis: int | None, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    given = case(generator, axis)
    x, scale, zero_point = given.x.to(dtype).to(device), given.scale.to(device), given.zero_point
    assert zero_point is not None
    rounded = torch.round(zero_point).clamp(low, high).to(device)
    arguments: dict[str, Any] = {"quant_min": low, "quant_max": high, "axis": axis}
    found = learned_step_quantize(x, scale, zero_point.to(device), **arguments)
    assert torch.equal(found, fake_quantize(x, scale, rounded, **arguments))


@pytest.mark.parametrize("point", [2.5, 3.5, -1.7, -0.5, 1e30, -torch.inf, 7.0])
def test_the_zero_point_rounds_once_half_to_even_and_stays_on_the_grid(
    point: float, device: torch.device, generator: torch.Generator
) -> None:
    """2.5 is 2 in forward and backward; torch has 2 and 3, and clipped gradients that are off by a step."""
    given = case(generator, None)._replace(zero_point=torch.tensor([point]))
    found, expected = run(given, -8, 7, None, device), closed_form(given, -8, 7, None, 1.0)
    torch.testing.assert_close(found.y.double(), expected.y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.ds.double(), expected.ds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.dz, expected.dz, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_with_equal_scales_sums_to_per_tensor(
    axis: int, device: torch.device, generator: torch.Generator
) -> None:
    given = case(generator, None)
    assert given.zero_point is not None
    count = given.x.shape[axis]
    each = given._replace(scale=given.scale.repeat(count), zero_point=given.zero_point.repeat(count))
    one, many = run(given, -8, 7, None, device), run(each, -8, 7, axis, device)
    assert torch.equal(one.y, many.y)
    assert torch.equal(one.dx, many.dx)
    assert one.dz is not None
    assert many.dz is not None
    torch.testing.assert_close(many.ds.sum(0, keepdim=True), one.ds, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(many.dz.sum(0, keepdim=True), one.dz, rtol=1e-5, atol=1e-4)


def test_the_gradient_scale_multiplies_what_learns_and_leaves_x_alone(
    device: torch.device, generator: torch.Generator
) -> None:
    given = case(generator, 1)
    given = Case(*(None if t is None else t.double() for t in given))  # type: ignore[arg-type]
    one, other = run(given, -8, 7, 1, device), run(given, -8, 7, 1, device, 0.1)
    assert torch.equal(one.dx, other.dx)
    assert one.dz is not None
    assert torch.equal(one.ds * 0.1, other.ds)  # in float64: 0.1 came through as it is
    assert torch.equal(one.dz * 0.1, other.dz)


def test_nan_has_no_gradient_of_its_own_and_the_infinite_is_clipped(device: torch.device) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, 0.75])
    given = Case(x, torch.tensor([torch.nan, 1.0, 10.0, 100.0, 1000.0]), torch.tensor([0.5]), torch.tensor([1.0]))
    found = run(given, -8, 7, None, device)
    assert found.y[0].isnan()
    assert found.y[1:].tolist() == [3.0, -4.5, 3.0, 1.0]
    assert found.dx.tolist() == [0.0, 0.0, 0.0, 0.0, 1000.0]
    assert found.ds.tolist() == [1.0 * 6 - 10.0 * 9 + 100.0 * 6 + 1000.0 * 0.5]
    assert found.dz is not None
    assert found.dz.tolist() == [-0.5 * (1.0 + 10.0 + 100.0)]


@pytest.mark.parametrize(("shape", "axis"), [((0, 3), 1), ((0, 3), None), ((2, 0), 1), ((0,), 0)])
def test_nothing_to_sum_is_zero(shape: tuple[int, ...], axis: int | None, device: torch.device) -> None:
    count = 1 if axis is None else shape[axis]
    given = Case(torch.ones(shape), torch.ones(shape), torch.ones(count), torch.ones(count))
    found = run(given, -8, 7, axis, device)
    assert found.dx.shape == shape
    assert found.ds.tolist() == [0.0] * count
    assert found.dz is not None
    assert found.dz.tolist() == [0.0] * count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_summed_in_thirty_two(dtype: torch.dtype, device: torch.device) -> None:
    """4,095 ones and more: float16 stops counting at 2,048, bfloat16 at 256."""
    given = Case(
        torch.full((4095,), 100.0, dtype=dtype), torch.ones(4095, dtype=dtype), torch.tensor(0.5), torch.tensor(0.0)
    )
    found = run(given, -8, 7, None, device)
    assert found.ds.tolist() == 4095 * 7
    assert found.dz is not None
    assert found.dz.tolist() == -4095 * 0.5


def test_the_same_call_gives_the_same_bits_also_where_determinism_is_demanded(
    device: torch.device, generator: torch.Generator
) -> None:
    given = case(generator, 1, shape=(5, 3, 20))
    first = run(given, -8, 7, 1, device)
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(10):
            again = run(given, -8, 7, 1, device)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    finally:
        torch.use_deterministic_algorithms(False)


# --- what torch, its compilers and its checks ask of an op


@pytest.mark.traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("axis", [None, 1])
def test_every_op_keeps_the_promises_of_a_custom_op(
    axis: int | None, device: torch.device, generator: torch.Generator
) -> None:
    whole, _, scale, zero_point = case(generator, axis, shape=(2, 6, 7))
    for x in (whole, torch.cat([whole, whole], 2)[:, :, ::2]):
        leaves = [leaf(t, device) for t in (x, scale, zero_point) if t is not None]
        torch.library.opcheck(_learned_step, (*leaves, axis, -8, 7, 0.5))
        torch.library.opcheck(_learned_step, (*leaves[:2], None, axis, -8, 7, 0.5))
        fixed = [leaf.detach() for leaf in leaves]
        for qparams in (fixed[1:], [fixed[1], None]):
            torch.library.opcheck(
                _learned_step_backward, (torch.ones_like(fixed[0]), fixed[0], *qparams, axis, -8, 7, 0.5)
            )


@pytest.mark.traces
@pytest.mark.parametrize("axis", [None, 1])
def test_a_compiler_sees_it_whole_and_does_not_compile_again_for_another_batch(
    axis: int | None, device: torch.device, generator: torch.Generator
) -> None:
    _, _, scale, zero_point = case(generator, axis, shape=(1, 6, 9))
    assert zero_point is not None
    learned = [leaf(scale, device), leaf(zero_point, device)]

    def loss(x: Tensor) -> Tensor:
        return learned_step_quantize(x, *learned, quant_min=-8, quant_max=7, axis=axis).square().sum()

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    f = torch.compile(loss, backend=counter, fullgraph=True)
    for batch in (3, 4, 5, 8):
        x = (8 * torch.randn(batch, 6, 9, generator=generator)).to(device).requires_grad_()
        for a, b in zip(*(torch.autograd.grad(g(x), [x, *learned]) for g in (f, loss)), strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 2  # one for the first batch, one for every other


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (0, 0, 0)])
def test_a_gradient_comes_where_it_is_asked_for_and_does_not_depend_on_the_others(
    wanted: tuple[int, ...], device: torch.device, generator: torch.Generator
) -> None:
    given = case(generator, 1, shape=(4, 3, 20))
    _, *every = run(given, -8, 7, 1, device)
    assert given.zero_point is not None
    leaves = [
        leaf(t, device, learns=bool(w)) for t, w in zip((given.x, given.scale, given.zero_point), wanted, strict=True)
    ]
    y = learned_step_quantize(*leaves, quant_min=-8, quant_max=7, axis=1)
    assert y.requires_grad == any(wanted)
    if any(wanted):
        y.backward(given.dy.to(device))
    for t, expected in zip(leaves, every, strict=True):
        assert (t.grad is None) != t.requires_grad
        if t.grad is not None:
            assert expected is not None
            assert torch.equal(t.grad.cpu(), expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_x_and_its_qparams_are_saved_and_nothing_else(
    symmetric: bool, device: torch.device, generator: torch.Generator
) -> None:
    given = case(generator, 1, symmetric=symmetric)
    x, scale = leaf(given.x, device), given.scale.to(device)
    zero_point = None if given.zero_point is None else given.zero_point.to(device)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learned_step_quantize(x, scale, zero_point, quant_min=-8, quant_max=7, axis=1)
    assert sum(t.nbytes for t in saved) == x.nbytes + scale.nbytes * (1 if symmetric else 2)
    assert x.data_ptr() in {t.data_ptr() for t in saved}  # x itself, no copy


def test_autocast_leaves_the_dtype_alone(device: torch.device, generator: torch.Generator) -> None:
    given = case(generator, None)
    expected = run(given, -8, 7, None, device)
    with torch.autocast(device.type, torch.bfloat16):
        found = run(given, -8, 7, None, device)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # type: ignore[arg-type]


def test_scale_and_zero_point_may_have_a_dtype_of_their_own(device: torch.device, generator: torch.Generator) -> None:
    given = case(generator, 1)
    assert given.zero_point is not None
    mixed = given._replace(scale=given.scale.double(), zero_point=given.zero_point.half())
    found = run(mixed, -8, 7, 1, device)
    assert found.ds.dtype == torch.float64
    assert found.dz is not None
    assert found.dz.dtype == torch.float16
    expected = run(given._replace(zero_point=mixed.zero_point.float()), -8, 7, 1, device)  # type: ignore[union-attr]
    assert torch.equal(found.ds.float(), expected.ds)
    assert expected.dz is not None
    assert torch.equal(found.dz, expected.dz.half())


# --- PyTorch's cases, one by one


def learnable(given: Case, low: int, high: int, axis: int | None, factor: float) -> Gradients:
    """torch's own learnable op."""
    x, scale = given.x.clone().requires_grad_(), given.scale.clone().requires_grad_()
    assert given.zero_point is not None
    zero_point = given.zero_point.clone().requires_grad_()
    if axis is None:
        y = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, low, high, factor)
    else:
        y = torch._fake_quantize_learnable_per_channel_affine(x, scale, zero_point, axis, low, high, factor)
    y.backward(given.dy)
    assert x.grad is not None
    assert scale.grad is not None
    return Gradients(y.detach(), x.grad, scale.grad, zero_point.grad)


def positive(generator: torch.Generator, axis: int | None, high: int) -> Case:
    """A zero point that torch rounds to the same integer in forward and backward."""
    given = case(generator, axis)
    return given._replace(zero_point=high * torch.rand(given.scale.shape, generator=generator))


def assert_gradients_of_torch(given: Case, high: int, axis: int | None, factor: float, device: torch.device) -> None:
    found, expected = run(given, 0, high, axis, device, factor), learnable(given, 0, high, axis, factor)
    assert torch.equal(found.dx, expected.dx)
    assert expected.dz is not None
    torch.testing.assert_close(found.ds, expected.ds, rtol=1e-5, atol=1e-4 * factor)
    torch.testing.assert_close(found.dz, expected.dz, rtol=1e-5, atol=1e-4 * factor)


@pytest.mark.parametrize("high", [15, 255])
def test_aten_parity_learnable_forward_per_tensor(high: int, device: torch.device, generator: torch.Generator) -> None:
    given = positive(generator, None, high)
    assert torch.equal(run(given, 0, high, None, device).y, learnable(given, 0, high, None, 1.0).y)


@pytest.mark.parametrize("high", [15, 255])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_aten_parity_learnable_forward_per_channel(
    axis: int, high: int, device: torch.device, generator: torch.Generator
) -> None:
    given = positive(generator, axis, high)
    assert torch.equal(run(given, 0, high, axis, device).y, learnable(given, 0, high, axis, 1.0).y)


@pytest.mark.parametrize("high", [15, 255])
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_aten_parity_learnable_backward_per_tensor(
    factor: float, high: int, device: torch.device, generator: torch.Generator
) -> None:
    assert_gradients_of_torch(positive(generator, None, high), high, None, factor, device)


@pytest.mark.parametrize("high", [15, 255])
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_aten_parity_learnable_backward_per_channel(
    axis: int, factor: float, high: int, device: torch.device, generator: torch.Generator
) -> None:
    assert_gradients_of_torch(positive(generator, axis, high), high, axis, factor, device)


@pytest.mark.parametrize(("point", "low"), [(2.5, 0), (-1.7, -8)])
def test_torch_rounds_a_zero_point_per_tensor_in_two_ways(
    point: float, low: int, device: torch.device, generator: torch.Generator
) -> None:
    """A deliberate difference: the gradient of the scale belongs to the numbers that the forward pass made."""
    given = case(generator, None)._replace(zero_point=torch.tensor([point]))
    found, torchs = run(given, low, 15, None, device), learnable(given, low, 15, None, 1.0)
    expected = closed_form(given, low, 15, None, 1.0)
    assert torch.equal(found.y, torchs.y)
    torch.testing.assert_close(found.ds.double(), expected.ds, rtol=1e-5, atol=1e-5)
    assert (torchs.ds - expected.ds).abs() > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_torch_has_no_learnable_gradient_in_this_dtype(
    dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """A deliberate difference; `test_gradients_agree_with_float64` says what it is here."""
    given = positive(generator, None, 15)
    given = given._replace(x=given.x.to(dtype), dy=given.dy.to(dtype))
    with pytest.raises(RuntimeError):
        learnable(given, 0, 15, None, 1.0)
    assert run(given, 0, 15, None, device).dx.dtype == dtype


def test_a_scale_for_each_element_of_a_vector_is_no_mistake(device: torch.device, generator: torch.Generator) -> None:
    """A deliberate difference: torch sums over an empty list of dimensions, which is all of them, and then refuses."""
    given = positive(generator, 0, 15)
    given = given._replace(x=given.x[:, 0, 0].clone(), dy=given.dy[:, 0, 0].clone())
    with pytest.raises(RuntimeError, match="invalid gradient"):
        learnable(given, 0, 15, 0, 1.0)
    found, expected = run(given, 0, 15, 0, device), closed_form(given, 0, 15, 0, 1.0)
    torch.testing.assert_close(found.ds.double(), expected.ds, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["triton", "reference"])
def test_gradients_are_those_of_the_definition(name: Any, device: torch.device, generator: torch.Generator) -> None:
    """Which the closed form holds as well, on whatever device the tensors are."""
    given = case(generator, 1)
    with backend(name):
        found = run(given, -8, 7, 1, device, 0.3)
    expected = closed_form(given, -8, 7, 1, 0.3)
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact, rtol=5e-6, atol=5e-6, check_dtype=False)
