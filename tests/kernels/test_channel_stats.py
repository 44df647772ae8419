"""`channel_stats`: held to float64, to constants, and to finite differences."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from dfqlab_kernels import ShapeError, channel_stats

Per = Literal["batch", "sample"]
SHAPES = [(8, 3, 7, 5), (1, 4, 9, 9), (2, 1, 56, 56), (5, 63, 1, 1), (300, 2, 3), (64, 5), (3, 2, 4, 3, 2)]


def random(*shape: int, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """In float64, for both sides to start from."""
    return mean + std * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_numpy(x: Tensor, per: Per, correction: int = 0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    values = x.double().numpy()
    axes = tuple(d for d in range(x.dim()) if d != 1 and not (per == "sample" and d == 0))
    if not axes:
        return values, np.zeros_like(values)
    return values.mean(axes), values.var(axes, ddof=correction)


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ratio", [0.0, 1.0, 100.0, 1e4])
def test_float32_agrees_with_float64_however_far_the_mean_is_from_zero(
    shape: tuple[int, ...], per: Per, ratio: float
) -> None:
    x = random(*shape, mean=ratio).float()
    mean, var = channel_stats(x, per=per)
    expected_mean, expected_var = by_numpy(x, per)
    assert mean.shape == var.shape == expected_mean.shape
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(var.numpy(), expected_var, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_is_computed_in_float64(shape: tuple[int, ...], per: Per) -> None:
    x = random(*shape, mean=1e4)
    mean, var = channel_stats(x, per=per)
    assert mean.dtype == var.dtype == torch.float64
    expected_mean, expected_var = by_numpy(x, per)
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-14)
    np.testing.assert_allclose(var.numpy(), expected_var, rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_sixteen_bits_are_accumulated_in_thirty_two(per: Per, dtype: torch.dtype) -> None:
    x = random(16, 3, 40, 40, mean=10, std=3).to(dtype)  # 25,600 elements a channel: float16 would overflow
    mean, var = channel_stats(x, per=per)
    assert mean.dtype == var.dtype == torch.float32
    expected_mean, expected_var = by_numpy(x, per)
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-6)
    np.testing.assert_allclose(var.numpy(), expected_var, rtol=1e-5)


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 11, 13), (2, 2, 112, 112)])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -0.7, 7.7, 1e4 / 3, 1e-30])
def test_a_constant_channel_has_no_variance_at_all(shape: tuple[int, ...], per: Per, value: float) -> None:
    x = torch.full(shape, value)
    mean, var = channel_stats(x, per=per)
    assert torch.equal(var, torch.zeros_like(var))
    torch.testing.assert_close(mean, torch.full_like(mean, value), rtol=1e-7, atol=0)


@pytest.mark.parametrize("mean", [1.0, 1e4, 1e7])
def test_the_variance_is_never_negative(mean: float) -> None:
    for seed in range(20):
        x = random(4, 16, 5, 5, seed=seed, mean=mean, std=1e-4).float()  # of the order of the mean's last bit
        for per in ("batch", "sample"):
            assert (channel_stats(x, per=per)[1] >= 0).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("correction", [0, 1, 2])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_the_correction_is_taken_from_the_count(per: Per, correction: int) -> None:
    x = random(4, 3, 5, 2)
    mean, var = channel_stats(x, per=per, correction=correction)
    expected_mean, expected_var = by_numpy(x, per, correction)
    np.testing.assert_allclose(mean.numpy(), expected_mean)
    np.testing.assert_allclose(var.numpy(), expected_var)


def test_the_variance_is_the_one_that_batch_norm_normalises_with() -> None:
    x = random(6, 4, 5, 5, mean=2, std=3)
    mean, var = channel_stats(x)
    normalised = (x - mean.reshape(-1, 1, 1)) / torch.sqrt(var.reshape(-1, 1, 1) + 1e-5)
    expected = torch.nn.functional.batch_norm(x, None, None, training=True, eps=1e-5)
    torch.testing.assert_close(normalised, expected)


def test_one_value_a_sample_is_its_own_mean() -> None:
    x = random(4, 3)
    mean, var = channel_stats(x, per="sample")
    assert torch.equal(mean, x)
    assert torch.equal(var, torch.zeros(4, 3, dtype=torch.float64))
    assert mean.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("layout", ["channels_last", "every second", "expanded", "transposed"])
def test_the_layout_in_memory_does_not_matter(per: Per, layout: str) -> None:
    x = random(4, 12, 6, 6).float()
    x = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "every second": x[:, ::2],
        "expanded": x[:, :1].expand(4, 7, 6, 6),
        "transposed": x.transpose(0, 1),
    }[layout]
    assert not x.is_contiguous()
    for found, expected in zip(channel_stats(x, per=per), by_numpy(x, per), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_same_call_gives_the_same_bits() -> None:
    x = random(8, 16, 20, 20).float()
    first = torch.stack(channel_stats(x))
    assert all(torch.equal(torch.stack(channel_stats(x)), first) for _ in range(9))


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("shape", [(3, 2, 2, 3), (5, 2), (2, 3, 4), (1, 2, 3, 1)])
@pytest.mark.parametrize("of", ["mean", "var", "both"])
def test_gradients_agree_with_finite_differences(shape: tuple[int, ...], per: Per, correction: int, of: str) -> None:
    if len(shape) == 2 and per == "sample" and correction:
        correction = 0  # one element: refused, see below

    def f(x: Tensor) -> Tensor:
        mean, var = channel_stats(x, per=per, correction=correction)
        return {"mean": mean, "var": var, "both": mean * torch.sqrt(var + 0.1)}[of]

    x = random(*shape, mean=3).requires_grad_()
    if of == "var" and len(shape) == 2 and per == "sample":
        assert not f(x).requires_grad  # a constant zero
    else:
        assert torch.autograd.gradcheck(f, (x,))


def test_the_gradient_in_float32_is_the_closed_form() -> None:
    x = random(4, 3, 5, 5, mean=1e3).float().requires_grad_()
    mean, var = channel_stats(x)
    (2 * mean + 3 * var).sum().backward()
    exact = x.detach().double()
    expected = (2 + 3 * 2 * (exact - exact.mean((0, 2, 3), keepdim=True))) / 100
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5)


def test_a_constant_channel_has_a_finite_gradient_through_its_standard_deviation() -> None:
    x = torch.full((2, 3, 4, 4), 0.1, requires_grad=True)
    torch.sqrt(channel_stats(x)[1] + 1e-6).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(
    ("shape", "per", "correction", "said"),
    [
        ((), "batch", 0, r"at least \(n, c\), got shape \(\)"),
        ((3,), "batch", 0, r"at least \(n, c\), got shape \(3,\)"),
        ((0, 3, 2, 2), "batch", 0, r"0 element\(s\) a channel in shape \(0, 3, 2, 2\); expected more than 0"),
        ((2, 3, 0, 2), "sample", 0, r"0 element\(s\)"),
        ((1, 3, 1, 1), "batch", 1, r"correction=1.*1 element\(s\).*expected more than 1"),
        ((4, 3), "sample", 1, r"per='sample', correction=1.*1 element\(s\)"),
    ],
)
@pytest.mark.traces  # a shape check would catch what has no channels before we answer
def test_what_has_nothing_to_average_over_is_refused(
    shape: tuple[int, ...], per: Per, correction: int, said: str
) -> None:
    with pytest.raises(ShapeError, match=said):
        channel_stats(torch.ones(shape), per=per, correction=correction)


def test_no_sample_and_no_channel_are_no_mistake_where_nothing_is_averaged_over_them() -> None:
    assert channel_stats(torch.ones(0, 3, 2, 2), per="sample")[0].shape == (0, 3)
    assert channel_stats(torch.ones(2, 0, 2, 2))[1].shape == (0,)
