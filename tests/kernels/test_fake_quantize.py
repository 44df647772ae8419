"""`fake_quantize`: torch's own op bit for bit, and better where that one is silent or wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import DeviceError, ShapeError, fake_quantize

GRIDS = [(0, 255), (-128, 127), (0, 15), (-8, 7), (-2, 1), (0, 3), (3, 200)]
LAYOUTS = ["contiguous", "channels_last", "every second", "expanded", "transposed", "offset"]


def random(*shape: int, seed: int = 0, factor: float = 20.0) -> Tensor:
    return factor * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def laid_out(layout: str) -> Tensor:
    """(4, 6, 5, 3) in memory as the name says."""
    match layout:
        case "contiguous":
            return random(4, 6, 5, 3)
        case "channels_last":
            return random(4, 6, 5, 3).to(memory_format=torch.channels_last)
        case "every second":
            return random(4, 12, 5, 3)[:, ::2]
        case "expanded":
            return random(4, 6, 1, 3).expand(4, 6, 5, 3)
        case "transposed":
            return random(4, 6, 3, 5).transpose(2, 3)
        case _:
            return random(4 * 6 * 5 * 3 + 7)[7:].reshape(4, 6, 5, 3)


def float64_reference(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """The definition with a true division, for one scale."""
    codes = torch.round(x.double() / scale.double()) + zero_point.double()
    return (codes.clamp(low, high) - zero_point.double()) * scale.double()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("quant_min", "quant_max"), GRIDS)
def test_per_tensor_equals_torch_bit_for_bit(quant_min: int, quant_max: int, layout: str) -> None:
    x = laid_out(layout)
    for scale in (0.1, 0.37, 3.0, 1e-3):
        for zero_point in (quant_min, quant_max, (quant_min + quant_max) // 2):
            s, z = torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)
            expected = torch.fake_quantize_per_tensor_affine(x, s, z, quant_min, quant_max)
            assert torch.equal(fake_quantize(x, s, z, quant_min=quant_min, quant_max=quant_max), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
@pytest.mark.parametrize(("quant_min", "quant_max"), [(0, 255), (-8, 7), (0, 3)])
def test_per_channel_equals_torch_bit_for_bit(quant_min: int, quant_max: int, axis: int, layout: str) -> None:
    x = laid_out(layout)
    generator = torch.Generator().manual_seed(1)
    scale = 0.01 + torch.rand(x.shape[axis], generator=generator)
    zero_point = torch.randint(quant_min, quant_max + 1, scale.shape, generator=generator, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis % 4, quant_min, quant_max)
    found = fake_quantize(x, scale, zero_point, quant_min=quant_min, quant_max=quant_max, axis=axis)
    assert torch.equal(found, expected)


def test_the_first_axis_of_a_vector_has_a_scale_for_each_element() -> None:
    x, scale = random(7), torch.linspace(0.1, 2, 7)
    found = fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=0)
    expected = torch.stack([fake_quantize(v, s, quant_min=-8, quant_max=7) for v, s in zip(x, scale, strict=True)])
    assert torch.equal(found, expected)


def test_equal_scales_per_channel_are_one_scale_per_tensor() -> None:
    x = random(3, 5, 4)
    one = fake_quantize(x, torch.tensor(0.3), torch.tensor(2), quant_min=0, quant_max=15)
    each = fake_quantize(x, torch.full((5,), 0.3), torch.full((5,), 2), quant_min=0, quant_max=15, axis=1)
    assert torch.equal(one, each)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)])
@pytest.mark.parametrize("qparam_shape", [(), (1,)])
def test_scalars_and_empty_tensors_keep_their_shape(shape: tuple[int, ...], qparam_shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 0.8)
    y = fake_quantize(x, torch.full(qparam_shape, 0.5), quant_min=-8, quant_max=7)
    assert y.shape == x.shape
    assert torch.equal(y, torch.full(shape, 1.0))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_memory_format_stays(layout: str, axis: int | None) -> None:
    x = laid_out(layout)
    scale = torch.tensor(0.5) if axis is None else torch.full((x.shape[axis],), 0.5)
    assert fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=axis).stride() == x.stride()


def test_ties_go_to_the_even_code() -> None:
    ties = torch.arange(-100, 100) + 0.5  # exact in float32, and so is their product with 1 / 0.5
    found = fake_quantize(ties * 0.5, torch.tensor(0.5), quant_min=-128, quant_max=127)
    lower = torch.arange(-100, 100)
    expected = torch.where(lower % 2 == 0, lower, lower + 1) * 0.5
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", [0.1, 0.37, 1 / 3, 7.7, 1e-3])
def test_beside_a_tie_torch_decides_the_same(scale: float) -> None:
    """There the last bit decides: x / s and x * (1 / s) differ."""
    s, z = torch.tensor(scale), torch.tensor(0, dtype=torch.int32)
    ties = (torch.arange(-128, 127) + 0.5) * s
    beside = [torch.nextafter(ties, torch.tensor(end)) for end in (torch.inf, -torch.inf)]
    x = torch.cat([ties, *beside])
    assert not torch.equal(torch.round(x / s), torch.round(x * (1 / s)))
    expected = torch.fake_quantize_per_tensor_affine(x, s, z, -128, 127)
    assert torch.equal(fake_quantize(x, s, quant_min=-128, quant_max=127), expected)


def test_a_zero_point_moves_ties_by_no_more_than_itself() -> None:
    ties = torch.arange(0, 20) + 0.5  # the zero point is added after rounding, so an odd one does not turn ties around
    odd = fake_quantize(ties, torch.tensor(1.0), torch.tensor(3), quant_min=0, quant_max=255)
    assert torch.equal(odd, fake_quantize(ties, torch.tensor(1.0), quant_min=0, quant_max=255))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [None, 0])
def test_nan_stays_nan_and_the_infinite_and_the_huge_clip_to_their_own_end(
    axis: int | None, dtype: torch.dtype
) -> None:
    huge = 1e30 if dtype != torch.float16 else 6e4
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, huge, -huge, 0.0], dtype=dtype)
    scale = torch.tensor(0.5) if axis is None else torch.full((6,), 0.5)
    zero_point = torch.full_like(scale, 3)
    y = fake_quantize(x, scale, zero_point, quant_min=0, quant_max=15, axis=axis)
    assert y[0].isnan()
    assert y[1:].tolist() == [6.0, -1.5, 6.0, -1.5, 0.0]


def test_a_code_too_large_for_float32_clips_to_its_own_end() -> None:
    y = fake_quantize(torch.tensor([3e38, -3e38]), torch.tensor(1e-8), quant_min=-128, quant_max=127)
    torch.testing.assert_close(y, torch.tensor([127e-8, -128e-8]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axis", [None, 1])
def test_sixteen_bits_are_computed_in_thirty_two(dtype: torch.dtype, axis: int | None) -> None:
    x = random(64, 9).to(dtype)
    scale = torch.tensor(0.123) if axis is None else torch.linspace(0.05, 0.4, 9)
    exact = fake_quantize(x.float(), scale, quant_min=-128, quant_max=127, axis=axis)
    found = fake_quantize(x, scale, quant_min=-128, quant_max=127, axis=axis)
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))


def test_half_precision_equals_torch_at_both_ends_of_its_range() -> None:
    x = torch.tensor([2.0**15, 2.0**-24, 65504.0, -65504.0, 1.0], dtype=torch.float16)
    for scale in (2.0**-24, 0.1, 1e4):
        s, z = torch.tensor(scale), torch.tensor(0, dtype=torch.int32)
        expected = torch.fake_quantize_per_tensor_affine(x, s, z, -128, 127)
        assert torch.equal(fake_quantize(x, s, quant_min=-128, quant_max=127), expected)


def test_float64_is_computed_in_float64() -> None:
    x, scale = random(1000).double(), torch.tensor(0.1, dtype=torch.float64)
    y = fake_quantize(x, scale, torch.tensor(7), quant_min=0, quant_max=255)
    assert y.dtype == torch.float64
    torch.testing.assert_close(
        y, float64_reference(x, scale, torch.tensor(7), 0, 255), rtol=0, atol=1e-13
    )  # float32 would be off by 1e-6
    assert (y / scale - torch.round(y / scale)).abs().max() < 1e-12


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_output_is_on_the_grid_and_no_code_is_nearer(bits: int) -> None:
    x, scale, low, high = random(4000), torch.tensor(0.37), -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    y = fake_quantize(x, scale, quant_min=low, quant_max=high)
    codes = torch.arange(low, high + 1) * scale
    assert set(y.tolist()) <= set(codes.tolist())
    nearest = (x[:, None] - codes).abs().min(1).values
    torch.testing.assert_close((x - y).abs(), nearest)


@pytest.mark.parametrize("scale", [0.1, 0.37, 1 / 3, 1e-8, 123.0])
@pytest.mark.parametrize("zero_point", [0, 3, 255])
def test_quantizing_again_changes_nothing(scale: float, zero_point: int) -> None:
    s, z = torch.tensor(scale), torch.tensor(zero_point)
    once = fake_quantize(random(5000, factor=100 * scale), s, z, quant_min=0, quant_max=255)
    assert torch.equal(fake_quantize(once, s, z, quant_min=0, quant_max=255), once)


def test_the_order_of_values_stays() -> None:
    x = random(5000).sort().values
    y = fake_quantize(x, torch.tensor(0.3), torch.tensor(100), quant_min=0, quant_max=255)
    assert (y.diff() >= 0).all()


def test_no_zero_point_is_zero_and_its_dtype_does_not_matter() -> None:
    x, scale = random(3, 4), torch.tensor([0.1, 0.2, 0.3, 0.4])
    arguments: dict[str, Any] = {"quant_min": 0, "quant_max": 255, "axis": 1}
    assert torch.equal(
        fake_quantize(x, scale, **arguments), fake_quantize(x, scale, torch.zeros(4, dtype=torch.uint8), **arguments)
    )
    point = torch.tensor([0, 17, 200, 255])
    expected = fake_quantize(x, scale, point, **arguments)
    for dtype in (torch.uint8, torch.int32, torch.float32):
        assert torch.equal(fake_quantize(x, scale, point.to(dtype), **arguments), expected)


def test_the_same_call_gives_the_same_bits() -> None:
    x, scale = random(4, 6, 5, 3), torch.rand(6, generator=torch.Generator().manual_seed(2)) + 0.1
    first = fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=1)
    assert all(torch.equal(fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=1), first) for _ in range(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("clip_gradient", [True, False])
@pytest.mark.parametrize("axis", [None, 1])
def test_the_gradient_passes_where_it_should_and_is_unchanged_there(
    axis: int | None, clip_gradient: bool, dtype: torch.dtype
) -> None:
    x = random(50, 4, factor=10).to(dtype).requires_grad_()
    scale = torch.tensor(1.0) if axis is None else torch.ones(4)
    zero_point = torch.full_like(scale, 2)
    upstream = random(50, 4, seed=1).to(dtype)
    y = fake_quantize(x, scale, zero_point, quant_min=0, quant_max=15, axis=axis, clip_gradient=clip_gradient)
    y.backward(upstream)
    inside = (torch.round(x.detach()) >= -2) & (torch.round(x.detach()) <= 13)
    assert inside.any()
    assert not inside.all()
    expected = torch.where(inside, upstream, 0) if clip_gradient else upstream
    assert x.grad is not None
    assert torch.equal(x.grad, expected)
    assert x.grad.dtype == dtype


def test_the_clipped_gradient_equals_torch_at_the_very_edge() -> None:
    scale, zero_point = torch.tensor(0.5), torch.tensor(0, dtype=torch.int32)
    edges = torch.tensor([-2.5, -2.25, 7.0, 7.5, 7.75, 8.0]) * 0.5
    around = torch.cat(
        [edges, torch.nextafter(edges, torch.tensor(torch.inf)), torch.nextafter(edges, torch.tensor(0.0))]
    )
    ours, torchs = around.clone().requires_grad_(), around.clone().requires_grad_()
    fake_quantize(ours, scale, quant_min=-2, quant_max=7).sum().backward()
    torch.fake_quantize_per_tensor_affine(torchs, scale, zero_point, -2, 7).sum().backward()
    assert ours.grad is not None
    assert torchs.grad is not None
    assert torch.equal(ours.grad, torchs.grad)


@pytest.mark.parametrize(("clip_gradient", "expected"), [(True, [0.0, 0.0, 0.0]), (False, [1.0, 1.0, 1.0])])
def test_nan_and_infinity_count_as_clipped(clip_gradient: bool, expected: list[float]) -> None:
    """A value on no code of the grid is not inside: with the mask it gets no gradient, so one NaN stays one NaN."""
    x = torch.tensor([torch.nan, torch.inf, -torch.inf], requires_grad=True)
    y = fake_quantize(x, torch.tensor(1.0), quant_min=-8, quant_max=7, clip_gradient=clip_gradient)
    y.backward(torch.ones(3))
    assert x.grad is not None
    assert x.grad.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("clip_gradient", [True, False])
@pytest.mark.parametrize("axis", [None, 1])
def test_the_gradient_does_not_depend_on_what_is_saved_for_it(
    axis: int | None, clip_gradient: bool, dtype: torch.dtype
) -> None:
    scale = torch.tensor(0.37) if axis is None else torch.tensor([0.37, 0.5, 1.0, 2.0])
    gradients = []
    for save in ("mask", "input"):
        x = random(50, 4, factor=3).to(dtype).requires_grad_()
        y = fake_quantize(
            x, scale, torch.full_like(scale, 2), quant_min=0, quant_max=15, axis=axis,
            clip_gradient=clip_gradient, save=save,  # type: ignore[arg-type]
        )  # fmt: skip
        y.backward(random(50, 4, seed=1).to(dtype))
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert (gradients[0] == 0).any() == clip_gradient


def test_a_byte_an_element_is_saved_or_x_itself_or_nothing() -> None:
    x, scale, saved = random(50, 4).requires_grad_(), torch.tensor(0.5), list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    def run(**choice: Any) -> list[Tensor]:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            fake_quantize(x, scale, quant_min=-8, quant_max=7, **choice)
        return saved

    assert sum(t.nbytes for t in run()) == x.numel()
    assert sum(t.nbytes for t in run(save="input")) == x.nbytes + 4  # and the scale
    assert saved[0].data_ptr() == x.data_ptr()  # no copy
    assert run(clip_gradient=False) == run(clip_gradient=False, save="input") == []


def test_the_gradient_follows_a_strided_input() -> None:
    base = random(6, 8, factor=5).requires_grad_()
    fake_quantize(base[:, ::2].t(), torch.tensor(1.0), quant_min=-100, quant_max=100).sum().backward()
    expected = torch.zeros(6, 8)
    expected[:, ::2] = 1
    assert base.grad is not None
    assert torch.equal(base.grad, expected)


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis", "said"),
    [
        (torch.ones(4), None, None, r"per tensor expects one scale, got shape \(4,\); set axis="),
        (torch.ones(0), None, None, r"expects one scale, got shape \(0,\)"),
        (torch.ones(3), None, 1, r"axis=1.*scale of shape \(4,\) for x of shape \(3, 4\), got \(3,\)"),
        (torch.ones(1), None, 1, r"scale of shape \(4,\)"),
        (torch.ones(4, 1), None, 1, r"scale of shape \(4,\).*got \(4, 1\)"),
        (torch.ones(4), torch.zeros(3), 1, r"zero_point of shape \(4,\).*got \(3,\)"),
        (torch.ones(()), torch.zeros(2), None, r"expects one zero_point, got shape \(2,\)"),
        (torch.ones(4), None, 2, r"axis=2 is not a dimension of shape \(3, 4\)"),
        (torch.ones(4), None, -3, "axis=-3 is not a dimension"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    scale: Tensor, zero_point: Tensor | None, axis: int | None, said: str
) -> None:
    with pytest.raises(ShapeError, match=said):
        fake_quantize(random(3, 4), scale, zero_point, quant_min=0, quant_max=3, axis=axis)


@pytest.mark.parametrize("name", ["scale", "zero_point"])
def test_a_scale_elsewhere_is_refused(name: str) -> None:
    given = {"scale": torch.ones(1), "zero_point": torch.ones(1)}
    given[name] = given[name].to("meta")
    with pytest.raises(DeviceError, match=rf"fake_quantize: x is on cpu and {name} on meta"):
        fake_quantize(random(3, 4), **given, quant_min=0, quant_max=3)


def test_a_scalar_has_no_axis() -> None:
    with pytest.raises(ShapeError, match="axis=0 is not a dimension"):
        fake_quantize(torch.tensor(1.0), torch.ones(1), quant_min=0, quant_max=3, axis=0)


@pytest.mark.traces
@pytest.mark.parametrize("axis", [None, 1])
def test_compilers_see_it_whole_forward_and_backward(axis: int | None) -> None:
    scale = torch.tensor(0.5) if axis is None else torch.full((4,), 0.5)

    def loss(x: Tensor) -> Tensor:
        return fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=axis).square().sum()

    gradients = []
    for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = random(3, 4).requires_grad_()
        f(x).backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)
