"""What only a GPU can show of the statistics: launches, graphs, one order for every sum, billions of elements.

Not collected where programs are interpreted.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dfqlab_kernels import backend, bn_activation_stats, bn_alignment, channel_stats, merge_moments, tap_channel_stats

RESNET_20 = [(16, 32)] * 7 + [(32, 16)] * 6 + [(64, 8)] * 6  # channels and side of each BatchNorm's input


class Layers:
    """BatchNorm inputs of a network, and the loss that an inversion takes of them."""

    def __init__(self, device: torch.device, batch: int = 64, memory_format: torch.memory_format = torch.channels_last):
        draw = torch.Generator().manual_seed(0)
        self.inputs = [
            torch.randn(batch, c, side, side, generator=draw).to(device).contiguous(memory_format=memory_format)
            for c, side in RESNET_20
        ]
        self.channels = [c for c, _ in RESNET_20]
        total = sum(self.channels)
        self.mean, self.var = torch.zeros(total, device=device), torch.ones(total, device=device)
        self.affine = [(torch.ones(c, device=device), torch.zeros(c, device=device)) for c in self.channels]

    def loss(self, leaves: list[Tensor], *, fused: bool) -> Tensor:
        moments = []
        for x, (scale, shift) in zip(leaves, self.affine, strict=True):
            found = bn_activation_stats(x, scale, shift, activation="relu") if fused else tap_channel_stats(x)
            moments.append(found[1])
        mean, var = merge_moments(moments)
        return bn_alignment(mean, var, self.mean, self.var, channels=self.channels, spread="std", epsilon=1e-6)

    def step(self, *, fused: bool = True) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        loss = self.loss(leaves, fused=fused)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.fixture
def layers(device: torch.device) -> Layers:
    return Layers(device)


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "tap"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_all_layers_agree_with_the_definition(
    memory_format: torch.memory_format, fused: bool, device: torch.device
) -> None:
    layers = Layers(device, memory_format=memory_format)
    found = layers.step(fused=fused)
    with backend("reference"):
        expected = layers.step(fused=fused)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "tap"])
def test_resnet_20_takes_at_most_45_launches_forward_and_backward(layers: Layers, fused: bool) -> None:
    layers.step(fused=fused)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        layers.step(fused=fused)
        torch.cuda.synchronize()
    launched = [e.name for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert 2 * len(layers.inputs) < len(launched) <= 45, launched


@pytest.mark.usefixtures("_no_waiting")
def test_the_host_never_waits_for_the_device(layers: Layers) -> None:
    layers.step()
    torch.cuda.set_sync_debug_mode("error")
    layers.step()


def test_a_graph_replays_the_whole_loss_with_other_numbers(layers: Layers) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            layers.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layers.step()
    for factor in (2.0, -0.5):
        for x in layers.inputs:
            x.mul_(factor)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, layers.step(), strict=True))


def test_every_sum_has_one_order(layers: Layers) -> None:
    first = layers.step()
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(first, layers.step(), strict=True))


@pytest.mark.traces
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the latter captures graphs of its own
def test_inductor_compiles_the_loss_whole(mode: str, layers: Layers) -> None:
    layers.step()  # its tables stay; made inside a graph's memory they could not
    compiled = torch.compile(lambda leaves: layers.loss(leaves, fused=True), fullgraph=True, dynamic=False, mode=mode)
    for _ in range(3):
        leaves = [x.detach().requires_grad_() for x in layers.inputs]
        compiled(leaves).backward()
        for leaf, expected in zip(leaves, layers.step()[1:], strict=True):
            torch.testing.assert_close(leaf.grad, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_more_than_two_to_the_31_elements(memory_format: torch.memory_format, device: torch.device) -> None:
    shape = (2**21 + 3, 4, 16, 16)
    if torch.cuda.mem_get_info(device)[0] < 2.5 * 2 * 4 * shape[0] * 256:
        pytest.skip("not enough memory on the GPU for two billion elements")
    x = torch.empty(shape, device=device, dtype=torch.bfloat16, memory_format=memory_format).zero_()
    x[-1] = 64.0  # the last elements count
    mean, var = channel_stats(x, per="batch")
    expected = 64.0 / shape[0]
    torch.testing.assert_close(mean, torch.full_like(mean, expected), rtol=1e-4, atol=0)
    torch.testing.assert_close(var, torch.full_like(var, 64.0 * expected - expected**2), rtol=1e-4, atol=0)
