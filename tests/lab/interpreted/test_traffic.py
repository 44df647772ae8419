"""What kernels move is counted by what they load and store."""

import pytest
import torch
import triton
import triton.language as tl

import dfqlab_kernels
from dfqlab.lab.traffic import backward_traffic, forward_traffic


@triton.jit
def every_other(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(y_ptr + lane, tl.load(x_ptr + 2 * lane, mask=lane < n), mask=lane < n)


def test_a_launched_kernel_moves_the_elements_that_its_masks_show() -> None:
    def halved(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(5)
        every_other[(1,)](x, y, 5, BLOCK=8)
        return 2 * y

    (kernel, product) = forward_traffic(halved, torch.arange(10.0)).operations
    assert (kernel.name, kernel.read, kernel.written) == ("a Triton kernel", 20, 20)
    assert (product.name, product.read, product.written) == ("mul", 20, 20)


def test_a_kernel_behind_an_op_is_counted_once_and_in_its_place() -> None:
    def around(x: torch.Tensor) -> torch.Tensor:
        return dfqlab_kernels.fake_quantize(x * 2, torch.tensor([0.3]), quant_min=-8, quant_max=7) + 1

    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    with dfqlab_kernels.backend("triton"):
        counted = forward_traffic(around, x)
    assert [step.name for step in counted.operations if step.read > 4] == ["mul", "a Triton kernel", "add"]
    assert counted.per(x) == pytest.approx(2 + 2 + 1 / 32 + 2, abs=0.01)


def test_the_kernel_reads_x_once_and_writes_the_result_and_a_bit_each() -> None:
    x = torch.randn(8192, generator=torch.Generator().manual_seed(0))

    def quantize(x: torch.Tensor) -> torch.Tensor:
        return dfqlab_kernels.fake_quantize(x, torch.tensor([0.3]), quant_min=-4, quant_max=3)

    with dfqlab_kernels.backend("triton"):
        forward, backward = forward_traffic(quantize, x), backward_traffic(quantize, x)
    assert forward.written == 4 * 8192 + 8192 // 8
    assert forward.read == pytest.approx(4 * 8192, rel=0.01)
    assert backward.per(x) < 2.1


def test_nothing_is_watched_any_more_afterwards() -> None:
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    forward_traffic(torch.relu, torch.zeros(4))
    assert builder.create_masked_load.__func__ is type(builder).create_masked_load
    assert builder.create_masked_store.__func__ is type(builder).create_masked_store
