"""Moments, and BatchNorm with its activation, as Triton programs: held to the definition in float64."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

import dfqlab_kernels
from dfqlab_kernels import (
    backend,
    bn_activation_stats,
    channel_stats,
    layout,
    merge_moments,
    reference,
    tap_channel_stats,
)
from dfqlab_kernels.activation import _normalized, _normalized_backward
from dfqlab_kernels.statistics import _merge, _merge_backward, _moments, moments_backward

Per = Literal["batch", "sample"]
PERS: list[Per] = ["batch", "sample"]
ACTIVATIONS = ["none", "relu", "relu6"]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "sliced": lambda x: torch.stack([x, -x], -1)[..., 0],
    "expanded": lambda x: x[..., :1].expand(x.shape),
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ragged tiles in both loops, and several chunks of a channel, from a small tensor."""
    monkeypatch.setattr(layout, "TILE", 32)
    monkeypatch.setattr(layout, "PROGRAMS", 6)


@pytest.fixture
def random(generator: torch.Generator, device: torch.device) -> Callable[..., Tensor]:
    def draw(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
        return (mean + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)

    return draw


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("shape", [(3, 5, 5, 7), (40, 2, 2), (2, 3, 70), (7, 4), (1, 1, 1), (2, 130, 1, 1)])
def test_statistics_and_their_gradients_are_those_of_float64(
    shape: tuple[int, ...], per: Per, random: Callable[..., Tensor]
) -> None:
    results = []
    x = random(*shape, mean=10)
    to_mean, to_var = (random(*(shape[:2] if per == "sample" else shape[1:2]), dtype=torch.float64) for _ in range(2))
    for name, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaf = x.clone().to(dtype).detach().requires_grad_()
        with backend(name):  # type: ignore[arg-type]
            mean, var = channel_stats(leaf, per=per)
        ((mean * to_mean).sum() + (var * to_var).sum()).backward()
        results.append((mean, var, leaf.grad))
    for found, expected in zip(*results, strict=True):
        close(found, expected, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_type_is_accumulated_wide_enough(dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    x = random(6, 3, 9, 9, dtype=dtype, mean=50)
    mean, var = channel_stats(x)
    assert mean.dtype == var.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = x.double().var((0, 2, 3), correction=0)
    close(mean, x.double().mean((0, 2, 3)), min(dtype, torch.float32, key=lambda d: TOLERANCE[d]))
    close(var, expected, min(dtype, torch.float32, key=lambda d: TOLERANCE[d]))


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_strides_give_the_same_statistics(name: str, per: Per, random: Callable[..., Tensor]) -> None:
    x = LAYOUTS[name](random(3, 5, 4, 6))
    leaf = x.detach().requires_grad_()
    mean, var = channel_stats(leaf, per=per, correction=1)
    (mean + var).sum().backward()
    double = x.double().contiguous().requires_grad_()
    expected = reference.channel_stats(double, per == "sample", 1)
    sum(expected).sum().backward()  # type: ignore[union-attr]
    close(mean, expected[0], torch.float32)
    close(var, expected[1], torch.float32)
    assert leaf.grad is not None
    assert double.grad is not None
    close(leaf.grad, double.grad, torch.float32)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e4])
@pytest.mark.parametrize("name", ["contiguous", "channels_last"])
def test_a_constant_channel_has_variance_zero(value: float, name: str, device: torch.device) -> None:
    mean, var = channel_stats(LAYOUTS[name](torch.full((5, 3, 7, 7), value, device=device)))
    assert var.tolist() == [0, 0, 0]
    assert torch.equal(mean, torch.full((3,), value, device=device))


def test_a_variance_survives_a_mean_ten_thousand_times_its_root(random: Callable[..., Tensor]) -> None:
    x = random(8, 2, 9, 9, mean=3e4)
    torch.testing.assert_close(channel_stats(x)[1].double(), x.double().var((0, 2, 3), correction=0), rtol=2e-5, atol=0)


@pytest.mark.parametrize("per", PERS)
def test_the_tap_adds_the_gradient_of_the_statistics_to_the_one_that_passes(
    per: Per, random: Callable[..., Tensor]
) -> None:
    x, passing = random(4, 3, 5, 5), random(4, 3, 5, 5)
    x.requires_grad_()
    through, moments = tap_channel_stats(x, per=per)
    assert torch.equal(through, x)
    mean, var = merge_moments([moments], per=per)
    ((through * passing).sum() + (mean.square() + var).sum()).backward()
    other = x.detach().double().requires_grad_()
    mean, var = reference.channel_stats(other, per == "sample", 0)
    ((other * passing.double()).sum() + (mean.square() + var).sum()).backward()
    assert x.grad is not None
    assert other.grad is not None
    close(x.grad, other.grad, torch.float32)


@pytest.mark.parametrize("reads", ["through", "moments"])
def test_the_tap_takes_either_gradient_alone(reads: str, random: Callable[..., Tensor]) -> None:
    x = random(4, 3, 5, 5).requires_grad_()
    through, moments = tap_channel_stats(x)
    (2 * through if reads == "through" else moments[1]).sum().backward()
    assert x.grad is not None
    if reads == "through":
        assert torch.equal(x.grad, torch.full_like(x, 2))
    else:  # the sum of the means of the parts
        counts = moments[0].flatten()
        assert x.grad.unique().numel() <= len(counts.unique())
        torch.testing.assert_close(x.grad.sum(), torch.tensor(float(len(counts)), device=x.device))


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["contiguous", "channels_last"])
def test_the_fused_layer_is_batch_norm_activation_and_hooks(
    name: str, activation: str, with_residual: bool, per: Per, random: Callable[..., Tensor]
) -> None:
    x, residual, dy = (LAYOUTS[name](random(3, 5, 4, 5)) for _ in range(3))
    scale, shift = random(5), random(5)
    results = []
    for fused in (True, False):
        leaf, other = (t.detach().to(torch.float32 if fused else torch.float64).requires_grad_() for t in (x, residual))
        added = other if with_residual else None
        if fused:
            y, moments = bn_activation_stats(leaf, scale, shift, activation=activation, residual=added, per=per)  # type: ignore[arg-type]
            mean, var = merge_moments([moments], per=per)
        else:
            zero, rest = torch.zeros_like(scale).double(), torch.full_like(scale, 0.5).double()
            y = torch.nn.functional.batch_norm(leaf, zero, rest, scale.double(), shift.double(), eps=0.5)
            y = y if added is None else y + added
            y = {"none": lambda t: t, "relu": torch.relu, "relu6": torch.nn.functional.relu6}[activation](y)
            dims = (2, 3) if per == "sample" else (0, 2, 3)
            mean, var = leaf.mean(dims), leaf.var(dims, correction=0)
        ((y * dy).sum() + (mean.square() + var).sum()).backward()
        results.append([y, mean, var, leaf.grad, *([other.grad] if with_residual else [])])
    for found, expected in zip(*results, strict=True):
        close(found, expected, torch.float32)
    assert results[0][0].is_contiguous(
        memory_format=torch.channels_last if name == "channels_last" else torch.contiguous_format
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_fused_layer_keeps_the_type_of_its_input(dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    x = random(3, 5, 4, 5, dtype=dtype).requires_grad_()
    scale, shift = random(5, dtype=torch.float64), random(5, dtype=torch.float64)
    y, moments = bn_activation_stats(x, scale, shift, activation="relu")
    mean, var = merge_moments([moments])
    (y.sum() + mean.sum() + var.sum()).backward()
    with backend("reference"):
        other = x.detach().double().requires_grad_()
        expected, moments = bn_activation_stats(other, scale, shift, activation="relu")
        of_mean, of_var = merge_moments([moments])
        (expected.sum() + of_mean.sum() + of_var.sum()).backward()
    assert y.dtype == dtype
    assert x.grad is not None
    assert other.grad is not None
    assert x.grad.dtype == dtype
    close(y, expected, dtype)
    close(x.grad, other.grad, dtype)
    close(mean, of_mean, dtype)


@pytest.mark.parametrize("reads", ["y", "moments", "nothing"])
def test_either_result_may_go_unused(reads: str, random: Callable[..., Tensor]) -> None:
    x, one, gradients = random(2, 3, 4, 4), torch.ones_like(random(3)), []
    for name in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        with backend(name):  # type: ignore[arg-type]
            y, moments = bn_activation_stats(leaf, one, one, activation="relu", residual=leaf if reads == "y" else None)
            mean, _ = merge_moments([moments])
            loss = {"y": y.square().sum(), "moments": mean.square().sum(), "nothing": leaf.sum()}[reads]
            gradients.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*gradients)


def test_only_the_gradients_that_are_asked_for_are_computed(random: Callable[..., Tensor]) -> None:
    x, residual, scale = random(2, 3, 4, 4), random(2, 3, 4, 4).requires_grad_(), random(3).requires_grad_()
    y, _ = bn_activation_stats(x, scale, scale.detach(), activation="relu", residual=residual)
    y.sum().backward()
    assert x.grad is None
    assert scale.grad is None  # BatchNorm is frozen
    assert residual.grad is not None
    assert torch.equal(residual.grad, (y > 0).float())


def test_scale_and_shift_may_have_any_strides_and_get_no_gradient(random: Callable[..., Tensor]) -> None:
    x, scale, shift = random(2, 4, 3, 3), random(8)[::2].requires_grad_(), random(1).expand(4)
    results = []
    for name in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        with backend(name):  # type: ignore[arg-type]
            y, moments = bn_activation_stats(leaf, scale, shift, activation="relu")
        (y.sum() + moments.sum()).backward()
        results.append((y, leaf.grad))
        assert scale.grad is None
    torch.testing.assert_close(*(y for y, _ in results))


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, at inf - inf
def test_an_infinite_element_spoils_its_own_gradient_only(device: torch.device) -> None:
    x = torch.tensor([-1.0, torch.inf, 1.0, 2.0], device=device).reshape(1, 1, 2, 2).requires_grad_()
    one = torch.ones(1, device=device)
    bn_activation_stats(x, one, 0 * one, activation="relu6")[0].sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("splits", [1, 31, 70])
def test_any_number_of_parts_merges(splits: int, random: Callable[..., Tensor]) -> None:
    x = random(2 * splits, 40, 3, mean=5)
    parts = [reference.channel_moments(part, False) for part in x.split(2)]
    mean, var = merge_moments([torch.cat(parts, 2)])
    close(mean, x.double().mean((0, 2)), torch.float32)
    close(var, x.double().var((0, 2), correction=0), torch.float32)


@pytest.mark.parametrize("per", PERS)
def test_moments_of_all_layers_are_merged_side_by_side(per: Per, random: Callable[..., Tensor]) -> None:
    shapes = [(4, 5, 6, 6), (4, 130, 2, 2), (4, 1, 9, 9), (4, 3)]
    leaves = [random(*shape, mean=k).requires_grad_() for k, shape in enumerate(shapes)]
    mean, var = merge_moments([tap_channel_stats(x, per=per)[1] for x in leaves], per=per)
    weights = random(*mean.shape)
    ((mean + var) * weights).sum().backward()
    others = [x.detach().double().requires_grad_() for x in leaves]
    expected = [reference.channel_stats(x, per == "sample", 0) for x in others]
    means, variances = (torch.cat(parts, -1) for parts in zip(*expected, strict=True))
    ((means + variances) * weights.double()).sum().backward()
    close(mean, means, torch.float32)
    close(var, variances, torch.float32)
    for x, other in zip(leaves, others, strict=True):
        assert x.grad is not None
        assert other.grad is not None
        close(x.grad, other.grad, torch.float32)


def test_merging_has_the_gradient_that_finite_differences_have(random: Callable[..., Tensor]) -> None:
    moments = random(3, 2, 4, 3, dtype=torch.float64)
    count = torch.tensor([3.0, 5, 2, 1], dtype=torch.float64, device=moments.device)[:, None].expand(2, 4, 3)
    moments[2].abs_()

    def merged(values: Tensor) -> tuple[Tensor, Tensor]:
        return merge_moments([torch.cat([count[None], values])], per="sample", correction=1)

    assert torch.autograd.gradcheck(merged, moments[1:].requires_grad_())


def test_the_same_input_gives_the_same_bits_every_time(random: Callable[..., Tensor]) -> None:
    x, scale = random(9, 3, 8, 8).requires_grad_(), random(3)

    def run() -> list[Tensor]:
        x.grad = None
        y, moments = bn_activation_stats(x, scale, scale, activation="relu6", per="batch")
        mean, var = merge_moments([moments])
        (y.sum() + (mean * var).sum()).backward()
        assert x.grad is not None
        return [y, mean, var, x.grad]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_a_channel_is_split_the_same_way_whatever_the_machine(random: Callable[..., Tensor]) -> None:
    _, moments = tap_channel_stats(random(9, 3, 8, 8))
    assert moments.shape == (3, 1, 3, 3)  # six programs, two blocks of channels: three parts of each
    assert moments[0].sum((0, 1)).tolist() == [576, 576, 576]


OPS: dict[str, Callable[[Callable[..., Tensor]], tuple[Callable[..., object], tuple[object, ...]]]] = {
    "moments": lambda r: (_moments, (r(3, 5, 4, 4), False)),
    "moments of samples": lambda r: (_moments, (LAYOUTS["channels_last"](r(3, 5, 4, 4)), True)),
    "moments backward": lambda r: (
        moments_backward,
        (r(2, 3, 4, 4), _moments(x := r(2, 3, 4, 4), False), torch.ones_like(_moments(x, False)), None, False),
    ),
    "merge": lambda r: (_merge, ([r(3, 2, 4, 5).abs().requires_grad_(), r(3, 2, 1, 7).abs()], 0)),
    "merge backward": lambda r: (_merge_backward, (r(2, 5), r(2, 5), r(3 * 2 * 4 * 5).abs(), r(2, 5), [4, 5], 0)),
    "fused": lambda r: (_normalized, (r(2, 3, 4, 4).requires_grad_(), r(3), r(3), None, "relu", False)),
    "fused with residual": lambda r: (
        _normalized,
        (r(2, 3, 4, 4).requires_grad_(), r(3), r(3), r(2, 3, 4, 4).requires_grad_(), "relu6", True),
    ),
    "fused backward": lambda r: (
        _normalized_backward,
        (r(2, 3, 4, 4), r(3, 1, 2, 3), r(2, 3, 4, 4), r(3), r(3), None, r(3, 1, 2, 3), "relu", True, False),
    ),
}


@pytest.mark.traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("name", OPS)
def test_torch_finds_the_op_well_registered(name: str, random: Callable[..., Tensor]) -> None:
    op, arguments = OPS[name](random)
    torch.library.opcheck(op, arguments)  # type: ignore[arg-type]


@pytest.mark.traces
def test_a_compiler_sees_no_break_and_does_not_compile_again(random: Callable[..., Tensor]) -> None:
    scale = random(3)
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(x: Tensor) -> Tensor:
        x, first = tap_channel_stats(x)
        y, second = bn_activation_stats(x, scale, scale, activation="relu", residual=x)
        mean, var = merge_moments([first, second])
        return y.sum() + mean.sum() + var.sum()

    compiled = torch.compile(loss, backend=compilations, fullgraph=True, dynamic=False)
    for _ in range(2):
        x = random(4, 3, 5, 5).requires_grad_()
        compiled(x).backward()
        other = x.detach().requires_grad_()
        loss(other).backward()
        assert x.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(x.grad, other.grad)
    assert compilations.frame_count == 1
    torch._dynamo.reset()


def test_backward_keeps_x_and_little_more(random: Callable[..., Tensor]) -> None:
    kept: list[Tensor] = []
    x = random(4, 3, 16, 16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        bn_activation_stats(x, random(3), random(3), activation="relu")
    others = {t.data_ptr(): t.nbytes for t in kept if t.data_ptr() != x.data_ptr()}
    assert any(t.data_ptr() == x.data_ptr() for t in kept)
    assert sum(others.values()) < 0.05 * x.nbytes


def test_shapes_that_do_not_fit_are_refused_before_anything_is_launched(random: Callable[..., Tensor]) -> None:
    with pytest.raises(dfqlab_kernels.ShapeError, match="expected more than 0"):
        channel_stats(random(0, 3, 4, 4))
