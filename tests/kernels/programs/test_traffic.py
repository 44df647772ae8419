"""How often each element of a large tensor is read and written: the promise of a fused kernel, counted.

Not collected where programs are compiled: only the interpreter can be watched.
"""

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import bn_activation_stats, layout, merge_moments, tap_channel_stats
from dfqlab_kernels.activation import _normalized_backward
from dfqlab_kernels.statistics import moments_backward
from dfqlab_kernels.trace import Trace, traced

SHAPES = [(3, 5, 5, 7), (2, 3, 70, 1), (40, 2, 2, 2), (5, 9, 1, 1)]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "TILE", 32)
    monkeypatch.setattr(layout, "PROGRAMS", 6)


def once(trace: Trace, name: str, direction: str, tensor: Tensor) -> None:
    found = trace.of(name, direction)  # type: ignore[arg-type]
    assert sorted(found) == list(range(tensor.numel())), "elements are missing, or outside the tensor"
    assert set(found.values()) == {1}, "elements more than once"


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_reads_x_once_and_backward_reads_x_and_dy_once(
    shape: tuple[int, ...], memory_format: torch.memory_format, per: str, generator: torch.Generator
) -> None:
    x = torch.randn(shape, generator=generator).contiguous(memory_format=memory_format)
    scale = torch.ones(shape[1])
    with traced(x=x) as trace:
        _, moments = bn_activation_stats(x, scale, scale, activation="relu", per=per)  # type: ignore[arg-type]
    found = trace.of("x", "load")
    assert sorted(found) == list(range(x.numel()))
    first = moments[0].numel()  # the element that each part of a channel measures deviations from is looked up before
    assert sum(found.values()) == x.numel() + first
    assert max(found.values()) <= 2
    dy = torch.ones_like(x)
    with traced(x=x, dy=dy) as trace:
        _normalized_backward(dy, moments, x, scale, scale, None, moments, "relu", False, per == "sample")
    once(trace, "x", "load", x)
    once(trace, "dy", "load", dy)


def test_the_taps_backward_reads_no_more_than_x_and_what_passes(generator: torch.Generator) -> None:
    x, dx = torch.randn(3, 5, 5, 7, generator=generator), torch.ones(3, 5, 5, 7)
    _, moments = tap_channel_stats(x)
    with traced(x=x, dx=dx) as trace:
        moments_backward(x, moments, moments, dx, False)
    once(trace, "x", "load", x)
    once(trace, "dx", "load", dx)


def test_merging_reads_kilobytes(generator: torch.Generator) -> None:
    x = torch.randn(64, 4, 16, 16, generator=generator)
    _, moments = tap_channel_stats(x)
    with traced(x=x, moments=moments) as trace:
        merge_moments([moments])
    assert trace.bytes("x") == 0
    assert moments.nbytes < x.nbytes / 50
