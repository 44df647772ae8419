"""`bn_activation_stats`, the tap and the merge as they are defined: torch's BatchNorm, and statistics of float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dfqlab_kernels import ShapeError, bn_activation_stats, channel_stats, merge_moments, tap_channel_stats


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.traces
def test_it_is_batch_norm_activation_and_statistics(
    compiled: bool, activation: str, with_residual: bool, per: str
) -> None:
    """Compiled too: its gradient is written another way then, whatever the compiler."""
    torch.compiler.reset()
    of = torch.compile(bn_activation_stats, backend="aot_eager", fullgraph=True) if compiled else bn_activation_stats
    x, residual, dy, scale, shift = (
        draw(4, 3, 5, 5),
        draw(4, 3, 5, 5, seed=1),
        draw(4, 3, 5, 5, seed=2),
        draw(3),
        draw(3, seed=3),
    )
    results = []
    for ours in (True, False):
        leaf, other = x.clone().requires_grad_(), residual.clone().requires_grad_()
        added = other if with_residual else None
        if ours:
            y, moments = of(leaf, scale, shift, activation=activation, residual=added, per=per)  # type: ignore[arg-type]
            mean, var = merge_moments([moments], per=per)  # type: ignore[arg-type]
        else:
            y = F.batch_norm(leaf, draw(3) * 0, draw(3) * 0 + 1, scale, shift, eps=0)
            y = y if added is None else y + added
            y = {"none": lambda t: t, "relu": torch.relu, "relu6": F.relu6}[activation](y)
            dims = (2, 3) if per == "sample" else (0, 2, 3)
            mean, var = leaf.mean(dims), leaf.var(dims, correction=0)
        ((y * dy).sum() + (mean.square() + var).sum()).backward()
        results.append([y, mean, var, leaf.grad, *([other.grad] if with_residual else [])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_merged_layers_are_each_layers_statistics_side_by_side() -> None:
    x, other = draw(4, 3, 5, 5), draw(4, 2, 3, 3, seed=1)
    through, first = tap_channel_stats(x, per="sample")
    assert through is x
    _, second = tap_channel_stats(other, per="sample")
    mean, var = merge_moments([first, second], per="sample", correction=1)
    for found, k in ((mean, 0), (var, 1)):
        expected = [channel_stats(t, per="sample", correction=1)[k] for t in (x, other)]
        torch.testing.assert_close(found, torch.cat(expected, -1))


def test_parts_of_a_channel_merge_to_the_whole() -> None:
    x = draw(10, 3, 4, 4) + 1e3
    parts = [tap_channel_stats(part)[1] for part in x.split([1, 6, 3])]
    mean, var = merge_moments([torch.cat(parts, 2)])
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=0), rtol=1e-10, atol=0)


def test_merging_has_the_gradient_of_finite_differences() -> None:
    count = torch.tensor([3.0, 5, 2], dtype=torch.float64)[:, None].expand(1, 1, 3, 2)

    def merged(values: Tensor) -> tuple[Tensor, Tensor]:
        return merge_moments([torch.cat([count, values])])

    assert torch.autograd.gradcheck(merged, draw(2, 1, 3, 2).abs().requires_grad_())


@pytest.mark.traces  # the ops' own checks, not those of their annotations
def test_what_does_not_fit_is_refused() -> None:
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"activation='gelu': choose one of none, relu, relu6"):
        bn_activation_stats(x, x[0, :, 0, 0], x[0, :, 0, 0], activation="gelu")  # type: ignore[arg-type]
    moments = [tap_channel_stats(torch.ones(n, 3, 4, 4), per="sample")[1] for n in (2, 3)]
    with pytest.raises(ShapeError, match="one number of groups"):
        merge_moments(moments, per="sample")
