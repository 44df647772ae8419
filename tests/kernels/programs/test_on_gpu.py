"""What only a GPU can show of the quantizing ops: graphs, streams, no waiting, two devices, tensors of billions.

Not collected where programs are interpreted.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import Packing, backend, fake_quantize, learned_step_quantize, soft_round_quantize

PACKING = Packing(((64, 3, 7, 7), (128, 64, 3, 3), (10, 512), (32, 1, 3, 3)))
Op = Callable[[Tensor], Tensor]


def quantize(x: Tensor) -> Tensor:
    return fake_quantize(x, torch.full((), 0.1, device=x.device), quant_min=-8, quant_max=7)


def quantize_rereading(x: Tensor) -> Tensor:
    scale = torch.full((x.shape[1],), 0.1, device=x.device)
    return fake_quantize(x, scale, quant_min=-8, quant_max=7, axis=1, save="input")


def learn(x: Tensor) -> Tensor:
    scale = (0 * x[0, :, 0, 0]).float() + 0.1  # wants a gradient, and gives x none
    return learned_step_quantize(x, scale, torch.zeros_like(scale), quant_min=-8, quant_max=7, axis=1)


def soften(x: Tensor) -> Tensor:
    logits = x.flatten()[: PACKING.total]
    weights = torch.linspace(-2, 2, PACKING.total, device=x.device)
    y, penalty = soft_round_quantize(
        weights, logits, scale_on(x.device), packing=PACKING, quant_min=-8, quant_max=7, beta=4.0
    )
    return y + penalty / PACKING.total


def scale_on(device: torch.device) -> Tensor:
    return torch.full((PACKING.rows,), 0.3, device=device)


OPS = [quantize, quantize_rereading, learn, soften]


def forward_and_backward(op: Op, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    y = op(leaf)
    (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    return y.detach(), dx


@pytest.fixture
def x(device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.randn(8, 64, 20, 20, generator=generator).to(device)


@pytest.mark.parametrize("op", OPS)
def test_compiled_programs_agree_with_the_definition(op: Op, x: Tensor) -> None:
    found = forward_and_backward(op, x)
    with backend("reference"):
        expected = forward_and_backward(op, x)
    for a, b in zip(found, expected, strict=True):
        if op is soften:  # exp and log are another library's
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_round_once(dtype: torch.dtype, x: Tensor) -> None:
    x = (4 * x).to(dtype)
    for op in (quantize, quantize_rereading, learn):
        found = forward_and_backward(op, x)
        with backend("reference"):
            assert all(torch.equal(a, b) for a, b in zip(found, forward_and_backward(op, x), strict=True))


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    """Reading a number off the GPU is an error from the second call on; the first one compiles, and copies a table."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("op", OPS)
def test_the_host_never_waits_for_the_device(op: Op, x: Tensor) -> None:
    forward_and_backward(op, x)
    torch.cuda.set_sync_debug_mode("error")
    forward_and_backward(op, x)


@pytest.mark.parametrize("op", OPS)
def test_a_graph_replays_both_directions_with_other_numbers(op: Op, x: Tensor) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward_and_backward(op, x)
    torch.cuda.current_stream().wait_stream(side)
    graph, static = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(op, static)
    for factor in (2.0, -3.0):
        static.copy_(factor * x)
        graph.replay()
        for a, b in zip(captured, forward_and_backward(op, factor * x), strict=True):
            assert torch.equal(a, b)


def test_a_graph_anneals_beta(device: torch.device, generator: torch.Generator) -> None:
    weights, logits = (torch.randn(PACKING.total, generator=generator).to(device) for _ in range(2))
    beta, scale = torch.full((), 20.0, device=device), scale_on(device)

    def penalty() -> Tensor:
        return soft_round_quantize(weights, logits, scale, packing=PACKING, quant_min=-8, quant_max=7, beta=beta)[1]

    penalty()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = penalty()
    for value in (20.0, 5.0, 2.0):
        beta.fill_(value)
        graph.replay()
        assert torch.equal(captured, penalty())


@pytest.mark.parametrize("op", OPS)
def test_a_launch_goes_to_the_current_stream(op: Op, x: Tensor) -> None:
    expected = forward_and_backward(op, x)
    side, late = torch.cuda.Stream(), torch.zeros_like(x)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)  # a launch on another stream would read zeros
        found = forward_and_backward(op, late)
    torch.cuda.current_stream().wait_stream(side)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_a_launch_goes_to_the_device_of_its_tensors(op: Op, x: Tensor) -> None:
    """On a machine with one GPU that is the current one, and there is nothing to mistake."""
    expected = forward_and_backward(op, x)
    for index in range(torch.cuda.device_count()):
        found = forward_and_backward(op, x.to(f"cuda:{index}"))
        assert torch.cuda.current_device() == 0
        for a, b in zip(found, expected, strict=True):
            assert a.device.index == index
            assert torch.equal(a.to(b.device), b)


@pytest.mark.parametrize("op", OPS)
def test_the_same_call_gives_the_same_bits(op: Op, x: Tensor) -> None:
    first = forward_and_backward(op, x)
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(first, forward_and_backward(op, x), strict=True))


def test_the_gradient_of_a_scale_has_one_order(x: Tensor) -> None:
    """Programs finish in any order; their partial sums are merged in one."""
    dy, gradients = torch.randn_like(x), []
    for _ in range(10):
        learned = [torch.full((1,), 0.1, device=x.device).requires_grad_() for _ in range(2)]
        y = learned_step_quantize(x, *learned, quant_min=-8, quant_max=7)
        gradients.append(torch.stack(torch.autograd.grad(y, learned, dy)))
    assert all(torch.equal(g, gradients[0]) for g in gradients)


@pytest.mark.traces
@pytest.mark.parametrize("op", OPS)
def test_inductor_compiles_it_whole(op: Any, x: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True)
    for a, b in zip(forward_and_backward(compiled, x), forward_and_backward(op, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["one channel", "channels outside", "channels last"])
def test_more_than_two_to_the_31_elements(layout: str, device: torch.device) -> None:
    """In bfloat16, 4.3 GB for each of x, y and two gradients; the last ones lie beyond what 32 bits can count."""
    n = 2**31 + 2048 + 5
    shape, axis = {
        "one channel": ((n,), None), "channels outside": ((3, n // 3), 0), "channels last": ((n // 3, 3), 1),
    }[layout]  # fmt: skip
    x = torch.ones(shape, dtype=torch.bfloat16, device=device)
    x[-1] = 100.0
    count = 1 if axis is None else shape[axis]
    scale = torch.full((count,), 0.5, device=device)
    y = fake_quantize(x.requires_grad_(), scale, quant_min=-8, quant_max=7, axis=axis)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    last = x.detach() == 100.0
    assert torch.equal(y.detach(), torch.where(last, 3.5, 1.0).bfloat16())
    assert torch.equal(dx, (~last).bfloat16())
    del y, dx

    learned = scale.clone().requires_grad_()
    y = learned_step_quantize(x, learned, quant_min=-8, quant_max=7, axis=axis)
    dx, ds = torch.autograd.grad(y, (x, learned), torch.ones_like(y))
    assert torch.equal(dx, (~last).bfloat16())
    others = [d for d in range(x.dim()) if d != axis]
    expected = (7.0 * last.sum(others, dtype=torch.float64)).reshape(count).float()  # inside, rounding changes nothing
    torch.testing.assert_close(ds, expected, rtol=1e-6, atol=0)


def asked_for() -> int:
    """Bytes on the GPU; `memory_allocated` counts what the allocator rounds up as well."""
    found: int = torch.cuda.memory_stats()["requested_bytes.all.current"]
    return found


def test_memory_is_what_was_promised(device: torch.device) -> None:
    """y, and a bit for every element."""
    x = torch.randn(64, 64, 56, 56, device=device).requires_grad_()
    quantize(x)
    torch.cuda.synchronize()
    before = asked_for()
    y = quantize(x)
    bits = asked_for() - before - y.nbytes
    assert x.numel() / 8 <= bits <= x.numel() / 8 + 4096
