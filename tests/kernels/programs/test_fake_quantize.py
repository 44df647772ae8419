"""`fake_quantize` in Triton: torch's own op bit for bit, and the definition where that one is silent or wrong.

The cases of PyTorch's TestFakeQuantizeOps have their names here behind `aten_parity`, those of its learnable ops in
`test_learned_step.py`. Of TestFusedObsFakeQuant there is nothing, because nothing here observes.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from dfqlab_kernels import backend, fake_quantize, layout
from dfqlab_kernels.quantization import _packing, _packing_backward, _rereading, _rereading_backward

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
GRIDS = [(0, 255), (-128, 127), (-8, 7), (3, 200)]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many programs, and ragged edges, for few elements."""
    monkeypatch.setattr(layout, "TILE", 256)


def normal(generator: torch.Generator, *shape: int, factor: float = 20.0) -> Tensor:
    return factor * torch.randn(shape, generator=generator)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal in every bit; the interpreter cuts what it converts to bfloat16, where a GPU rounds: one step less."""
    found = found.cpu()
    assert found.dtype == expected.dtype
    same = (found == expected) | (found.isnan() & expected.isnan())
    if found.dtype == torch.bfloat16 and INTERPRETED:
        same |= (expected.view(torch.int16).int() - found.view(torch.int16).int()).abs() <= 1
    assert same.all()


def by_torch(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    """What torch's CPU op makes of x in float32, in the dtype of x."""
    if axis is None:
        y = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, low, high)
    else:
        y = torch.fake_quantize_per_channel_affine(x.float(), scale, zero_point, axis % x.dim(), low, high)
    return y.to(x.dtype)


def qparams(generator: torch.Generator, count: int | None, low: int, high: int) -> tuple[Tensor, Tensor]:
    shape = () if count is None else (count,)
    scale = 0.05 + torch.rand(shape, generator=generator)
    return scale, torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize(("low", "high"), GRIDS)
def test_result_and_gradient_are_those_of_torch_bit_for_bit(
    low: int, high: int, axis: int | None, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x, dy = normal(generator, 3, 7, 33).to(dtype), normal(generator, 3, 7, 33).to(dtype)
    scale, zero_point = qparams(generator, None if axis is None else x.shape[axis], low, high)
    exact = x.float().clone().requires_grad_()
    by_torch(exact, scale, zero_point, low, high, axis).backward(dy.float())
    assert exact.grad is not None

    mine = x.to(device, copy=True).requires_grad_()
    y = fake_quantize(mine, scale.to(device), zero_point.to(device), quant_min=low, quant_max=high, axis=axis)
    y.backward(dy.to(device))
    assert_same(y.detach(), by_torch(x, scale, zero_point, low, high, axis))
    assert mine.grad is not None
    assert torch.equal(mine.grad.cpu(), exact.grad.to(dtype))


@pytest.mark.parametrize("scale", [0.1, 0.37, 1 / 3, 7.7, 1e-3])
def test_at_a_tie_and_one_step_beside_it_torch_decides_the_same(scale: float, device: torch.device) -> None:
    s, z = torch.tensor(scale), torch.tensor(0, dtype=torch.int32)
    ties = (torch.arange(-130, 130) + 0.5) * s
    beside = [torch.nextafter(ties, torch.tensor(end)) for end in (torch.inf, -torch.inf)]
    x = torch.cat([ties, *beside])
    expected = torch.fake_quantize_per_tensor_affine(x, s, z, -128, 127)
    assert torch.equal(fake_quantize(x.to(device), s.to(device), quant_min=-128, quant_max=127).cpu(), expected)


def test_a_true_division_would_decide_otherwise_somewhere(device: torch.device) -> None:
    """What the test above can see: x / s and x * (1 / s) do not always round to the same integer."""
    s = torch.tensor(0.37)
    x = (torch.arange(-128, 127) + 0.5) * s
    found = fake_quantize(x.to(device), s.to(device), quant_min=-128, quant_max=127).cpu()
    assert not torch.equal(found, torch.round(x / s).clamp(-128, 127) * s)
    assert torch.equal(found, torch.round(x * (1 / s)).clamp(-128, 127) * s)


def test_ties_go_to_the_even_code(device: torch.device) -> None:
    lower = torch.arange(-100, 100)
    scale = torch.tensor(0.5, device=device)
    found = fake_quantize(((lower + 0.5) * 0.5).to(device), scale, quant_min=-128, quant_max=127)
    assert torch.equal(found.cpu(), torch.where(lower % 2 == 0, lower, lower + 1) * 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [None, 0])
def test_nan_stays_nan_and_the_infinite_and_the_huge_clip_to_their_own_end(
    axis: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    huge = 1e30 if dtype != torch.float16 else 6e4
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, huge, -huge, 0.0], dtype=dtype, device=device)
    x.requires_grad_()
    scale = torch.tensor(0.5, device=device) if axis is None else torch.full((6,), 0.5, device=device)
    y = fake_quantize(x, scale, torch.full_like(scale, 3), quant_min=0, quant_max=15, axis=axis)
    y.backward(torch.ones_like(y))
    assert y[0].isnan()
    assert y[1:].tolist() == [6.0, -1.5, 6.0, -1.5, 0.0]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0] * 5 + [1.0]  # NaN is on no code of the grid: one NaN stays one NaN


@pytest.mark.parametrize("save", ["mask", "input"])
def test_a_gradient_that_is_nan_does_not_leave_the_element_it_belongs_to(save: Any, device: torch.device) -> None:
    x = torch.tensor([0.0, 100.0, 1.0], device=device, requires_grad=True)
    y = fake_quantize(x, torch.tensor(1.0, device=device), quant_min=-8, quant_max=7, save=save)
    y.backward(torch.tensor([torch.nan, torch.nan, 1.0], device=device))
    assert x.grad is not None
    assert x.grad[0].isnan()
    assert x.grad[1:].tolist() == [0.0, 1.0]


def test_float64_is_computed_in_float64(device: torch.device, generator: torch.Generator) -> None:
    """Where torch's op, which has its scale in float32, would be off by 1e-6."""
    x = normal(generator, 500).double()
    scale = torch.tensor(0.1, dtype=torch.float64)
    codes = (torch.round(x / scale) + 7).clamp(0, 255)
    zero_point = torch.tensor(7, device=device)
    found = fake_quantize(x.to(device), scale.to(device), zero_point, quant_min=0, quant_max=255).cpu()
    torch.testing.assert_close(found, (codes - 7) * scale, rtol=0, atol=1e-13)


@pytest.mark.parametrize("save", ["mask", "input"])
@pytest.mark.parametrize("clip_gradient", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_whatever_is_saved_the_gradient_is_that_of_the_definition(
    dtype: torch.dtype, clip_gradient: bool, save: Any, device: torch.device, generator: torch.Generator
) -> None:
    x, dy = normal(generator, 5, 77).to(dtype).to(device), normal(generator, 5, 77).to(dtype).to(device)
    scale, zero_point = (q.to(device) for q in qparams(generator, 5, 0, 15))
    arguments: dict[str, Any] = {"quant_min": 0, "quant_max": 15, "axis": 0, "clip_gradient": clip_gradient}
    gradients = []
    for name in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        with backend(name):  # type: ignore[arg-type]
            fake_quantize(leaf, scale, zero_point, **arguments, save=save).backward(dy)
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert (gradients[0] == 0).any() == clip_gradient


@pytest.mark.parametrize("zero_point", [0, 3, 15])
def test_quantizing_again_changes_nothing_and_the_order_of_values_stays(
    zero_point: int, device: torch.device, generator: torch.Generator
) -> None:
    scale, z = torch.tensor(0.37, device=device), torch.tensor(zero_point, device=device)
    x = normal(generator, 1000, factor=4).sort().values.to(device)
    once = fake_quantize(x, scale, z, quant_min=0, quant_max=15)
    assert torch.equal(fake_quantize(once, scale, z, quant_min=0, quant_max=15), once)
    assert (once.diff() >= 0).all()
    assert set(once.tolist()) == set(((torch.arange(16) - zero_point) * scale.cpu()).tolist())


def test_the_same_call_gives_the_same_bits_also_where_determinism_is_demanded(
    device: torch.device, generator: torch.Generator
) -> None:
    x, scale = normal(generator, 4, 6, 15).to(device), torch.full((6,), 0.3, device=device)
    first = fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=1)
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=1), first) for _ in range(9))
    finally:
        torch.use_deterministic_algorithms(False)


# --- what torch, its compilers and its checks ask of an op


@pytest.mark.traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
@pytest.mark.parametrize("axis", [None, 1])
def test_every_op_keeps_the_promises_of_a_custom_op(
    axis: int | None, device: torch.device, generator: torch.Generator
) -> None:
    scale, zero_point = (q.to(device) for q in qparams(generator, None if axis is None else 6, 0, 15))
    for x in (normal(generator, 2, 6, 5, 3).to(device), normal(generator, 2, 12, 7).to(device)[:, ::2]):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        torch.library.opcheck(_packing, (leaf, scale, zero_point, axis, 0, 15))
        torch.library.opcheck(_rereading, (leaf, scale, zero_point, axis, 0, 15, True))
        torch.library.opcheck(_rereading, (leaf, scale, None, axis, 0, 15, False))
        y, inside = _packing(x, scale, zero_point, axis, 0, 15)
        torch.library.opcheck(_packing_backward, (torch.ones_like(y), inside, axis, list(y.stride())))
        torch.library.opcheck(_rereading_backward, (torch.ones_like(y), x, scale, zero_point, axis, 0, 15))


def compiled(f: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], Any]:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    return torch.compile(f, backend=counter, fullgraph=True), counter


@pytest.mark.traces
@pytest.mark.parametrize("save", ["mask", "input"])
@pytest.mark.parametrize("axis", [None, 1])
def test_a_compiler_sees_it_whole_and_does_not_compile_again_for_another_batch(
    axis: int | None, save: Any, device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "TILE", 64)
    scale = qparams(generator, None if axis is None else 6, 0, 15)[0].to(device)

    def loss(x: Tensor) -> Tensor:
        return fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=axis, save=save).square().sum()

    f, counter = compiled(loss)
    for batch in (3, 4, 5, 8, 13):
        x = normal(generator, batch, 6, 9).to(device)
        gradients = []
        for g in (f, loss):
            leaf = x.clone().requires_grad_()
            g(leaf).backward()
            assert leaf.grad is not None
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)
    assert counter.frame_count == 2  # one for the first batch, one for every other


def saved_bytes(f: Callable[[], object]) -> int:
    """What the backward pass is left."""
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        f()
    return sum(sizes)


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_a_bit_an_element_is_saved_or_x_or_nothing(
    dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x = normal(generator, 4, 512).to(dtype).to(device).requires_grad_()
    scale = torch.tensor(0.5, device=device)

    def run(**choice: Any) -> int:
        return saved_bytes(lambda: fake_quantize(x, scale, quant_min=-8, quant_max=7, **choice))

    assert run() == x.numel() / 8
    assert run(save="input") == x.nbytes + scale.nbytes
    assert run(clip_gradient=False) == 0
    with torch.no_grad():
        assert run() == 0


def test_no_gradient_is_made_for_what_asks_for_none(device: torch.device, generator: torch.Generator) -> None:
    x, scale = normal(generator, 40).to(device), torch.tensor(0.5, device=device)
    assert not fake_quantize(x, scale, quant_min=-8, quant_max=7).requires_grad
    learned = scale.clone().requires_grad_()
    y = fake_quantize(x.clone().requires_grad_(), learned, quant_min=-8, quant_max=7)
    y.sum().backward()
    assert learned.grad is None


def test_autocast_leaves_the_dtype_alone(device: torch.device, generator: torch.Generator) -> None:
    x, scale = normal(generator, 3, 40).to(device), torch.tensor(0.5, device=device)
    expected = fake_quantize(x, scale, quant_min=-8, quant_max=7)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(fake_quantize(x, scale, quant_min=-8, quant_max=7), expected)
        half = fake_quantize(x.bfloat16(), scale, quant_min=-8, quant_max=7)
    assert half.dtype == torch.bfloat16


# --- PyTorch's cases, one by one


def native(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None = None) -> Tensor:
    """torch's CPU op on x as it is."""
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, low, high)


def ours(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None = None) -> Tensor:
    return fake_quantize(x, scale, zero_point, quant_min=low, quant_max=high, axis=axis)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127)])
def test_aten_parity_forward_per_tensor(low: int, high: int, device: torch.device, generator: torch.Generator) -> None:
    for shape in ((), (1,), (5, 1), (2, 3, 4, 5)):
        x = normal(generator, *shape)
        scale, zero_point = qparams(generator, None, low, high)
        found = ours(x.to(device), scale.to(device), zero_point.to(device), low, high)
        assert torch.equal(found.cpu(), native(x, scale, zero_point, low, high))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127)])
def test_aten_parity_backward_per_tensor(low: int, high: int, device: torch.device, generator: torch.Generator) -> None:
    x, dy = normal(generator, 2, 3, 4, 5), normal(generator, 2, 3, 4, 5)
    scale, zero_point = qparams(generator, None, low, high)
    torchs, mine = x.clone().requires_grad_(), x.to(device, copy=True).requires_grad_()
    native(torchs, scale, zero_point, low, high).backward(dy)
    ours(mine, scale.to(device), zero_point.to(device), low, high).backward(dy.to(device))
    assert torchs.grad is not None
    assert mine.grad is not None
    assert torch.equal(mine.grad.cpu(), torchs.grad)


HALVES = [
    (2.0**15, 0, 2**15 - 1, (2**15 - 1) * 0.1),  # the quotient overflows float16, the result does not
    (2.0**-24, 0, 255, 0.0),  # the smallest there is
    (65504.0, 0, 255, 25.5),  # the largest
    (12.34, 0, 255, 12.3),
]


@pytest.mark.parametrize(("value", "low", "high", "expected"), HALVES)
def test_aten_parity_forward_per_tensor_half_precision_numerics(
    value: float, low: int, high: int, expected: float, device: torch.device
) -> None:
    x, scale, zero = torch.tensor([value]).half(), torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    found = ours(x.to(device), scale.to(device), zero.to(device), low, high)
    assert found.dtype == torch.float16
    assert found.item() == torch.tensor(expected).half().item()


@pytest.mark.parametrize(("value", "low", "high", "expected"), HALVES)
def test_aten_parity_forward_per_channel_half_precision_numerics(
    value: float, low: int, high: int, expected: float, device: torch.device
) -> None:
    x, scale, zero = torch.tensor([1.0, value]).half(), torch.tensor([0.7, 0.1]), torch.zeros(2, dtype=torch.int32)
    found = ours(x.to(device), scale.to(device), zero.to(device), low, high, 0)
    assert found.dtype == torch.float16
    assert found[1].item() == torch.tensor(expected).half().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127)])
def test_aten_parity_forward_per_tensor_cachemask(
    low: int, high: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """Every dtype, contiguous and not, qparams as tensors; the mask is in the backward test."""
    whole = normal(generator, 4, 8, 5).to(dtype)
    scale, zero_point = qparams(generator, None, low, high)
    for x, mine in ((whole, whole.to(device)), (whole[:, ::2], whole.to(device)[:, ::2])):
        found = ours(mine, scale.to(device), zero_point.to(device), low, high)
        expected = native(x, scale, zero_point, low, high)
        if dtype == torch.float64:  # torch's scale is float32, and so is its product
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)
        else:
            assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127)])
def test_aten_parity_backward_per_tensor_cachemask(
    low: int, high: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x, dy = normal(generator, 4, 8, 5, factor=100).to(dtype), normal(generator, 4, 8, 5).to(dtype)
    scale, zero_point = qparams(generator, None, low, high)
    torchs, mine = x.clone().requires_grad_(), x.to(device, copy=True).requires_grad_()
    native(torchs, scale, zero_point, low, high).backward(dy)
    ours(mine, scale.to(device), zero_point.to(device), low, high).backward(dy.to(device))
    assert torchs.grad is not None
    assert mine.grad is not None
    assert torch.equal(mine.grad.cpu(), torchs.grad)
    assert (mine.grad == 0).any()


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127)])
def test_aten_parity_forward_per_channel(
    low: int, high: int, axis: int, device: torch.device, generator: torch.Generator
) -> None:
    x = normal(generator, 3, 5, 4, 7)
    scale, zero_point = qparams(generator, x.shape[axis], low, high)
    found = ours(x.to(device), scale.to(device), zero_point.to(device), low, high, axis)
    assert torch.equal(found.cpu(), native(x, scale, zero_point, low, high, axis))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("point", [torch.int32, torch.float32, torch.float16])
def test_aten_parity_forward_per_channel_cachemask(
    point: torch.dtype, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """A zero point holds integers in any dtype; see below for what torch does with one in floating point."""
    x = normal(generator, 3, 6, 7).to(dtype)
    scale, zero_point = qparams(generator, 6, 0, 15)
    found = ours(x.to(device), scale.to(device), zero_point.to(point).to(device), 0, 15, 1)
    assert_same(found, native(x, scale, zero_point, 0, 15, 1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_aten_parity_backward_per_channel(axis: int, device: torch.device, generator: torch.Generator) -> None:
    """Skipped there."""
    x, dy = normal(generator, 3, 6, 7), normal(generator, 3, 6, 7)
    scale, zero_point = qparams(generator, x.shape[axis], -8, 7)
    torchs, mine = x.clone().requires_grad_(), x.to(device, copy=True).requires_grad_()
    native(torchs, scale, zero_point, -8, 7, axis).backward(dy)
    ours(mine, scale.to(device), zero_point.to(device), -8, 7, axis).backward(dy.to(device))
    assert torchs.grad is not None
    assert mine.grad is not None
    assert torch.equal(mine.grad.cpu(), torchs.grad)


@pytest.mark.parametrize("point", [torch.int32, torch.float32, torch.float16])
def test_aten_parity_backward_per_channel_cachemask(
    point: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x, dy = normal(generator, 3, 6, 7), normal(generator, 3, 6, 7)
    scale, zero_point = qparams(generator, 6, 0, 15)
    torchs, mine = x.clone().requires_grad_(), x.to(device, copy=True).requires_grad_()
    native(torchs, scale, zero_point, 0, 15, 1).backward(dy)
    ours(mine, scale.to(device), zero_point.to(point).to(device), 0, 15, 1).backward(dy.to(device))
    assert torchs.grad is not None
    assert mine.grad is not None
    assert torch.equal(mine.grad.cpu(), torchs.grad)


def test_a_floating_zero_point_does_not_turn_ties_around_as_torchs_does(device: torch.device) -> None:
    """A deliberate difference: torch adds a floating zero point before it rounds, an integer one after."""
    x, scale = torch.tensor([0.5, 1.5, 2.5]), torch.ones(1)
    integer, floating = torch.tensor([3], dtype=torch.int32), torch.tensor([3.0])
    assert native(x[None], scale, integer, 0, 15, 0).tolist() == [[0.0, 2.0, 2.0]]
    assert native(x[None], scale, floating, 0, 15, 0).tolist() == [[1.0, 1.0, 3.0]]
    for point in (integer, floating):
        assert ours(x[None].to(device), scale.to(device), point.to(device), 0, 15, 0).tolist() == [[0.0, 2.0, 2.0]]


def test_aten_parity_fake_quant_per_channel_qparam_range(device: torch.device, generator: torch.Generator) -> None:
    """A deliberate difference beyond the ends: torch waits for the device in order to refuse; here the rule goes on."""
    x, scale = normal(generator, 3, 4), torch.full((4,), 0.5)
    for point in (0, 15):
        zero_point = torch.full((4,), point, dtype=torch.int32)
        found = ours(x.to(device), scale.to(device), zero_point.to(device), 0, 15, 1)
        assert torch.equal(found.cpu(), native(x, scale, zero_point, 0, 15, 1))
    for point in (-1, 16):
        zero_point = torch.full((4,), point, dtype=torch.int32)
        with pytest.raises(RuntimeError):
            native(x, scale, zero_point, 0, 15, 1)
        expected = ((torch.round(x / scale) + point).clamp(0, 15) - point) * scale
        assert torch.equal(ours(x.to(device), scale.to(device), zero_point.to(device), 0, 15, 1).cpu(), expected)


@pytest.mark.parametrize("shape", [(0, 4), (3, 4, 0)])
def test_aten_parity_fake_quant_per_channel_qparam_range_empty_input(
    shape: tuple[int, ...], device: torch.device
) -> None:
    x = torch.zeros(shape, device=device, requires_grad=True)
    y = ours(x, torch.ones(4, device=device), torch.zeros(4, dtype=torch.int32, device=device), 0, 15, 1)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_aten_parity_numerical_consistency_per_tensor(device: torch.device, generator: torch.Generator) -> None:
    """The numbers that come back from codes that were stored in a byte."""
    x = normal(generator, 3, 4, 5)
    s, z = qparams(generator, None, 0, 255)
    stored = (torch.round(x * (1 / s)) + z).clamp(0, 255).to(torch.uint8)
    assert torch.equal(ours(x.to(device), s.to(device), z.to(device), 0, 255).cpu(), (stored.float() - z) * s)


def test_aten_parity_numerical_consistency_per_channel(device: torch.device, generator: torch.Generator) -> None:
    x = normal(generator, 3, 4, 5)
    s, z = (q[:, None] for q in qparams(generator, 4, 0, 255))
    stored = (torch.round(x * (1 / s)) + z).clamp(0, 255).to(torch.uint8)
    found = ours(x.to(device), s.flatten().to(device), z.flatten().to(device), 0, 255, 1)
    assert torch.equal(found.cpu(), (stored.float() - z) * s)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_aten_parity_fake_quantize_per_channel_affine_scale_dtypes(
    dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """A deliberate difference: torch takes float32 alone, here any floating scale stands for its number."""
    x, scale = normal(generator, 3, 4, 5, 6), torch.tensor([0.1, 0.2, 0.3, 0.4]).to(dtype)
    zero_point = torch.tensor([1, 2, 3, 4], dtype=torch.int32)
    if dtype != torch.float32:
        with pytest.raises(RuntimeError):
            native(x, scale, zero_point, 0, 255, 1)
    found = ours(x.to(device), scale.to(device), zero_point.to(device), 0, 255, 1)
    assert torch.equal(found.cpu(), native(x, scale.float(), zero_point, 0, 255, 1))


def test_aten_parity_fake_quantize_per_tensor_affine_inf(device: torch.device) -> None:
    """A deliberate difference: per channel torch clips +inf to the lower end, and NaN to it everywhere, silently."""
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    scale, zero_point = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    per_tensor = native(x, scale, zero_point, -128, 127)
    per_channel = native(x[None], scale[None], zero_point[None], -128, 127, 0)[0]
    ends = torch.tensor([127, -128]) * 0.1
    assert torch.equal(per_tensor[:2], ends)
    assert per_channel[0] != ends[0]
    assert not per_tensor[2].isnan()
    for axis in (None, 0):
        found = ours(
            x[None].to(device), scale.reshape(() if axis is None else 1).to(device),
            zero_point.reshape(() if axis is None else 1).to(device), -128, 127, axis,
        ).cpu()  # fmt: skip
        assert torch.equal(found[0, :2], ends)
        assert found[0, 2].isnan()
