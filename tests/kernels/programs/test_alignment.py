"""The loss of all layers as one launch: held to the definition in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import backend, bn_alignment
from dfqlab_kernels.alignment import _align, _align_backward

CHANNELS = [5, 300, 1, 130]
TOTAL = sum(CHANNELS)


@pytest.fixture
def draw(generator: torch.Generator, device: torch.device) -> Callable[..., Tensor]:
    def uniform(*shape: int) -> Tensor:
        return (0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)).to(device)

    return uniform


def both(draw: Callable[..., Tensor], samples: int | None, **options: Any) -> None:
    """Triton in float32 against the definition in float64: the loss and its gradients."""
    shape = (TOTAL,) if samples is None else (samples, TOTAL)
    tensors = [draw(*shape), draw(*shape), draw(TOTAL), draw(TOTAL)]
    results = []
    for name, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        mean, var, *targets = (t.to(dtype) for t in tensors)
        given = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in options.items()}
        mean.requires_grad_()
        var.requires_grad_()
        with backend(name):  # type: ignore[arg-type]
            loss = bn_alignment(mean, var, *targets, channels=CHANNELS, **given)
        (3 * loss).backward()
        results.append((loss, mean.grad, var.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("samples", [None, 1, 3])
@pytest.mark.parametrize("spread", ["var", "std"])
@pytest.mark.parametrize("distance", ["squared", "l2", "kl"])
def test_every_distance(distance: str, spread: str, samples: int | None, draw: Callable[..., Tensor]) -> None:
    both(draw, samples, distance=distance, spread=spread, epsilon=1e-3)


@pytest.mark.parametrize("distance", ["squared", "l2"])
def test_slack_and_weights(distance: str, draw: Callable[..., Tensor]) -> None:
    margins = {"mean_margin": 0.3 * draw(TOTAL), "spread_margin": 0.3 * draw(TOTAL)}
    both(draw, 3, distance=distance, spread="std", epsilon=1e-6, weights=draw(3, len(CHANNELS)), **margins)
    both(draw, None, distance=distance, weights=draw(1, len(CHANNELS)), **margins)
    both(draw, 3, distance=distance, weights=draw(3, 1))


@pytest.mark.parametrize("distance", ["squared", "l2", "kl"])
def test_at_the_memory_itself_loss_and_gradient_are_zero(distance: str, draw: Callable[..., Tensor]) -> None:
    mean, var = draw(TOTAL).float().requires_grad_(), draw(TOTAL).float().requires_grad_()
    loss = bn_alignment(mean, var, mean.detach(), var.detach(), channels=CHANNELS, distance=distance)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0
    assert mean.grad is not None
    assert var.grad is not None
    assert not mean.grad.any()
    assert not var.grad.any()


def test_a_difference_inside_its_margin_has_no_gradient_and_one_outside_has(draw: Callable[..., Tensor]) -> None:
    mean, var = draw(TOTAL).float(), draw(TOTAL).float()
    margin = torch.full_like(mean, 0.1)
    moved = mean.clone()
    moved[::2] += 0.05
    moved[1::2] -= 0.3
    moved.requires_grad_()
    bn_alignment(moved, var, mean, var, channels=CHANNELS, mean_margin=margin, spread_margin=margin).backward()
    assert moved.grad is not None
    assert not moved.grad[::2].any()
    torch.testing.assert_close(moved.grad[1::2], torch.full_like(mean[1::2], -0.4))


@pytest.mark.traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_torch_finds_the_ops_well_registered(draw: Callable[..., Tensor]) -> None:
    mean, var, *rest = (draw(*s).float() for s in ((2, 8), (2, 8), (8,), (8,), (8,), (8,)))
    options = ([3, 5], "l2", "std", 1e-3)
    torch.library.opcheck(_align, (mean.clone().requires_grad_(), var.clone().requires_grad_(), *rest, *options))
    norms = _align(mean, var, *rest, *options)[1]
    torch.library.opcheck(_align_backward, (draw(2, 2).float(), norms, mean, var, *rest, *options))


@pytest.mark.traces
def test_a_compiler_sees_it_whole(draw: Callable[..., Tensor]) -> None:
    mean, var, to_mean, to_var = (draw(8).float() for _ in range(4))
    loss = torch.compile(
        lambda m: bn_alignment(m, var, to_mean, to_var, channels=[3, 5]), backend="aot_eager", fullgraph=True
    )
    compiled, eager = mean.clone().requires_grad_(), mean.clone().requires_grad_()
    loss(compiled).backward()
    bn_alignment(eager, var, to_mean, to_var, channels=[3, 5]).backward()
    assert compiled.grad is not None
    assert torch.equal(compiled.grad, eager.grad)  # type: ignore[arg-type]
    torch._dynamo.reset()


def test_targets_and_margins_may_have_any_strides_and_types(draw: Callable[..., Tensor]) -> None:
    mean, var = draw(3, 8).float(), draw(3, 8).float()
    wide = draw(8, 4)
    target_mean, target_var, mean_margin, spread_margin = (0.3 * wide).unbind(1)
    for dtype in (torch.float64, torch.float32):
        given = [t.to(dtype) if dtype != t.dtype else t for t in (target_mean, target_var, mean_margin, spread_margin)]
        losses = []
        for name in ("triton", "reference"):
            with backend(name):  # type: ignore[arg-type]
                losses.append(
                    bn_alignment(
                        mean[:, 2:], var[:, 2:], given[0][2:], given[1][2:], channels=[4, 2],
                        spread="std", epsilon=1e-3, mean_margin=given[2][2:], spread_margin=given[3][2:],
                    )
                )  # fmt: skip
        torch.testing.assert_close(losses[0], losses[1].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", ["squared", "l2"])
def test_statistics_that_are_not_numbers_are_not_hidden_by_a_margin(distance: str, draw: Callable[..., Tensor]) -> None:
    mean, var, margin = draw(4).float(), draw(4).float(), draw(4).float()
    moved = (mean + torch.tensor([0.0, torch.nan, 0.0, 0.0], device=mean.device)).requires_grad_()
    loss = bn_alignment(
        moved,
        var,
        mean,
        var,
        channels=[2, 2],
        distance=distance,
        mean_margin=margin,
        spread_margin=margin,  # type: ignore[arg-type]
    )
    loss.backward()
    assert loss.isnan()
    assert moved.grad is not None
    assert moved.grad[1].isnan()


def test_float64_keeps_its_digits_down_to_epsilon(draw: Callable[..., Tensor]) -> None:
    tensors = [draw(4) for _ in range(4)]
    options = {"channels": [4], "spread": "std", "epsilon": 0.1}
    found = bn_alignment(*tensors, **options)  # type: ignore[arg-type]
    with backend("reference"):
        torch.testing.assert_close(found, bn_alignment(*tensors, **options), rtol=1e-14, atol=0)  # type: ignore[arg-type]


def test_no_gradient_reaches_what_is_remembered(draw: Callable[..., Tensor]) -> None:
    mean, var, to_mean, to_var = (draw(4).float().requires_grad_() for _ in range(4))
    for name in ("triton", "reference"):
        with backend(name):  # type: ignore[arg-type]
            bn_alignment(mean, var, to_mean, to_var, channels=[4]).backward()
        assert to_mean.grad is None
        assert to_var.grad is None
