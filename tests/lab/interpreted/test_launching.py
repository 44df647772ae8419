"""A launch runs the kernel, records every access, and harms nobody, whatever the kernel does."""

import math

import pytest
import torch
import triton
import triton.language as tl

from dfqlab.errors import ConfigurationError
from dfqlab.lab.launching import first_outside, launch, launch_watched
from dfqlab.lab.widgets.tiles import launched, modelled
from dfqlab_kernels.trace import Trace


@triton.jit
def triple(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, 3 * tl.load(x_ptr + offsets, mask=offsets < n), mask=offsets < n)


@triton.jit
def careless(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, 3 * tl.load(x_ptr + offsets))


@triton.jit
def far_away(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * 10_000_000 + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets, mask=offsets < n))


@triton.jit
def row_means(x_ptr, mean_ptr, c, hw, stride_n, stride_c, stride_i, n, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    total = 0.0
    for image in range(n):
        for start in range(0, hw, BLOCK):
            i = start + tl.arange(0, BLOCK)
            offsets = image * stride_n + channel * stride_c + i * stride_i
            total += tl.sum(tl.load(x_ptr + offsets, mask=i < hw, other=0.0))
    tl.store(mean_ptr + channel, total / (n * hw))


@triton.jit
def unfinished(x_ptr):
    raise NotImplementedError


@triton.jit
def atomic(x_ptr):
    tl.atomic_add(x_ptr, 1.0)


def pairs(trace: Trace) -> list[tuple[object, ...]]:
    return [(a.program, a.direction, a.tensor, a.elements, a.lanes) for a in trace.accesses]


def test_a_launch_computes_and_records_every_access() -> None:
    x, y = torch.arange(20.0), torch.zeros(20)
    trace = launch(triple, 3, x, y, 20, BLOCK=8)
    assert torch.equal(y, 3 * x)
    assert list(trace.tensors) == ["x", "y"]
    assert trace.of("x", "load") == trace.of("y", "store") == dict.fromkeys(range(20), 1)
    assert [access.lanes - len(access.elements) for access in trace.accesses] == [0, 0, 0, 0, 4, 4]
    assert first_outside(trace) == ""


def test_a_model_is_what_a_real_kernel_does() -> None:
    for block in (2, 4, 8, 16):
        trace = launch(triple, math.ceil(20 / block), torch.zeros(20), torch.zeros(20), 20, BLOCK=block)
        assert pairs(trace) == pairs(modelled("vector", block))
        x = torch.zeros(2, 4, 6)
        trace = launch(row_means, 4, x, torch.zeros(4), 4, 6, *x.stride(), 2, BLOCK=block)
        assert pairs(trace) == pairs(modelled("NCHW, a channel each", block))


def test_elements_are_counted_in_memory_also_where_it_is_channels_last() -> None:
    x = torch.arange(48.0).reshape(2, 4, 2, 3).contiguous(memory_format=torch.channels_last)
    mean = torch.zeros(4)
    trace = launch(row_means, 4, x, mean, 4, 6, x.stride(0), x.stride(1), x.stride(3), 2, BLOCK=8)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    assert sorted(trace.of("x", "load")) == list(range(48))
    first = [element for access in trace.accesses[:2] for element in access.elements]
    assert first == list(range(0, 48, 4))


def test_reaching_past_the_end_is_recorded_and_harms_nobody() -> None:
    memory = torch.arange(60.0)
    x, y = memory[:20], memory[20:40]
    trace = launch(careless, 3, x, y, 20, BLOCK=8)
    assert torch.equal(y, 3 * x)
    assert torch.equal(memory[40:], torch.arange(40.0, 60.0)), "a neighbour in memory was written over"
    assert first_outside(trace) == "Program 2 reads x 20 to 23, outside the tensor: x has 20 elements, 0 to 19."
    assert "Wrong: program 2 reads x 20 to 23" in launched(trace).drawing(program=0).sentence


def test_what_lies_past_the_end_is_no_number() -> None:
    seen = torch.zeros(24)
    launch(careless, 3, torch.ones(20), seen, 20, BLOCK=8)
    assert seen[:20].eq(3).all()
    assert seen[20:].isnan().all()


def test_an_access_far_from_every_tensor_is_not_let_through(capsys: pytest.CaptureFixture[str]) -> None:
    y = torch.zeros(8)
    launch(far_away, 2, torch.ones(8), y, 8, BLOCK=8)
    assert y.eq(1).all()
    said = "Program 1 writes 8 elements far from every tensor; nothing was let through."
    assert capsys.readouterr().out.strip() == said
    assert launch_watched(far_away, 2, torch.ones(8), y, 8, BLOCK=8).outside == said


def test_arguments_may_be_named_and_keep_their_type_and_gradient() -> None:
    for dtype in (torch.float16, torch.float64, torch.int32):
        x, y = torch.arange(9).to(dtype), torch.zeros(9, dtype=dtype)
        launch(triple, 2, y_ptr=y, x_ptr=x, n=9, BLOCK=8)
        assert torch.equal(y, 3 * x)
    x = torch.ones(9, requires_grad=True)
    y = torch.zeros(9)
    launch(triple, 2, x, y, 9, BLOCK=8)
    assert torch.equal(y, torch.full((9,), 3.0))


def test_a_stub_is_said_to_be_unwritten_and_leaves_an_empty_trace(capsys: pytest.CaptureFixture[str]) -> None:
    trace = launch(unfinished, 1, torch.zeros(4))
    assert trace.accesses == []
    assert capsys.readouterr().out == "Not yet: unfinished is still to be written.\n"
    assert launched(trace).drawing().sentence == "No program has run yet."


def test_what_a_kernel_raises_is_raised_as_itself() -> None:
    with pytest.raises(TypeError):
        launch(triple, 1, torch.zeros(4))
    with pytest.raises(ConfigurationError, match="not atomics"):
        launch(atomic, 1, torch.zeros(4))


def test_a_watch_that_was_left_behind_does_not_disturb_the_next() -> None:
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    vars(builder)["create_masked_load"] = vars(builder)["create_masked_store"] = None
    y = torch.zeros(9)
    launch(triple, 2, torch.ones(9), y, 9, BLOCK=8)
    assert y.eq(3).all()
    for name in ("create_masked_load", "create_masked_store", "create_atomic_rmw"):
        assert getattr(builder, name).__func__ is getattr(type(builder), name)
