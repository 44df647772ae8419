"""Lesson 12's exercises, as learners write them: kernels that pass, and mistakes that are told their hint."""

from collections.abc import Callable
from typing import Any

import pytest
import triton
import triton.language as tl

from dfqlab.lab.checks import examine
from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lab.exercises.kernels import MASK, RESULT_ONLY

TILE, MEAN = "12.fake_quantize_tile", "12.channel_mean"
CLAMP, EVEN, NEAREST, BACK, WHICH_TILE = (hint.text for hint in EXERCISES[TILE].hints)
COUNT, ZEROS, LONGER, APART, WHICH_CHANNEL = (hint.text for hint in EXERCISES[MEAN].hints)


def fake_quantize_tile(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    raise NotImplementedError


def channel_mean(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    raise NotImplementedError


@pytest.mark.parametrize("stub", [fake_quantize_tile, channel_mean])
@pytest.mark.parametrize("decorate", [lambda stub: stub, triton.jit], ids=["plain", "jit"])
def test_a_stub_is_not_yet_written(stub: Callable[..., Any], decorate: Callable[..., Any]) -> None:
    verdict = check(f"12.{stub.__name__}", decorate(stub))
    assert verdict.outcome == "not yet"
    assert stub.__name__ in verdict.sentence
    assert "still to be written" in verdict.sentence


def by_the_trick(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    code = tl.load(x_ptr + offsets, mask=mask) / scale
    code = tl.minimum(tl.maximum(code, quant_min), quant_max)
    tl.store(y_ptr + offsets, ((code + 12582912.0) - 12582912.0) * scale, mask=mask)


def by_floor(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    start = tl.program_id(axis=0) * BLOCK
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + start + lane, mask=start + lane < n, other=0.0)
    v = x * (1.0 / scale)
    down = tl.floor(v)
    rest = v - down
    odd = down - 2.0 * tl.floor(down / 2.0)
    up = (rest > 0.5) | ((rest == 0.5) & (odd == 1.0))
    code = tl.where(up, down + 1.0, down)
    code = tl.where(code < quant_min, quant_min, code)
    code = tl.where(code > quant_max, quant_max, code)
    tl.store(y_ptr + start + lane, code * scale, mask=start + lane < n)


@triton.jit
def decorated(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = (tl.load(x_ptr + offsets, mask=offsets < n) / scale + 12582912.0) - 12582912.0
    code = tl.maximum(tl.minimum(code, quant_max), quant_min)
    tl.store(y_ptr + offsets, code * scale, mask=offsets < n)


@pytest.mark.parametrize("yours", [by_the_trick, by_floor, decorated], ids=["trick", "floor", "jit"])
def test_fake_quantize_as_learners_write_it_passes(yours: Any) -> None:
    verdict = check(TILE, yours)
    assert verdict.outcome == "passed", verdict


def nothing_clamped(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = (tl.load(x_ptr + offsets, mask=offsets < n) / scale + 12582912.0) - 12582912.0
    tl.store(y_ptr + offsets, code * scale, mask=offsets < n)


def halves_up(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = tl.floor(tl.load(x_ptr + offsets, mask=offsets < n) / scale + 0.5)
    tl.store(y_ptr + offsets, tl.minimum(tl.maximum(code, quant_min), quant_max) * scale, mask=offsets < n)


def casts(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = (tl.load(x_ptr + offsets, mask=offsets < n) / scale).to(tl.int32)
    tl.store(y_ptr + offsets, tl.minimum(tl.maximum(code, quant_min), quant_max) * scale, mask=offsets < n)


def stores_codes(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = (tl.load(x_ptr + offsets, mask=offsets < n) / scale + 12582912.0) - 12582912.0
    tl.store(y_ptr + offsets, tl.minimum(tl.maximum(code, quant_min), quant_max), mask=offsets < n)


def without_program_id(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    code = (tl.load(x_ptr + offsets, mask=offsets < n) / scale + 12582912.0) - 12582912.0
    tl.store(y_ptr + offsets, tl.minimum(tl.maximum(code, quant_min), quant_max) * scale, mask=offsets < n)


def without_any_mask(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = (tl.load(x_ptr + offsets) / scale + 12582912.0) - 12582912.0
    tl.store(y_ptr + offsets, tl.minimum(tl.maximum(code, quant_min), quant_max) * scale)


def without_a_mask_to_load(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = (tl.load(x_ptr + offsets) / scale + 12582912.0) - 12582912.0
    tl.store(y_ptr + offsets, tl.minimum(tl.maximum(code, quant_min), quant_max) * scale, mask=offsets < n)


def without_a_mask_to_store(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = (tl.load(x_ptr + offsets, mask=offsets < n) / scale + 12582912.0) - 12582912.0
    tl.store(y_ptr + offsets, tl.minimum(tl.maximum(code, quant_min), quant_max) * scale)


def off_by_a_million(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = (tl.program_id(0) + 1) * BLOCK * 1000000 + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets))


def writes_its_input(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offsets, 1.0, mask=offsets < n)


@pytest.mark.parametrize(
    ("yours", "hint"),
    [
        (nothing_clamped, CLAMP),
        (halves_up, EVEN),
        (casts, NEAREST),
        (stores_codes, BACK),
        (without_program_id, WHICH_TILE),
        (without_any_mask, MASK),
        (without_a_mask_to_load, MASK),
        (without_a_mask_to_store, MASK),
        (off_by_a_million, MASK),
        (writes_its_input, RESULT_ONLY),
    ],
)
def test_fake_quantize_written_wrong_is_told_why(yours: Callable[..., Any], hint: str) -> None:
    verdict = check(TILE, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint), verdict
    assert verdict.rows


def test_an_access_outside_is_named_with_its_program_and_element() -> None:
    assert (
        check(TILE, without_any_mask).sentence == "Program 1 reads x 7, outside the tensor: x has 7 elements, 0 to 6."
    )
    assert check(TILE, without_a_mask_to_store).sentence.startswith("Program 1 writes y 7, outside")


def rows_then_tiles(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    total = 0.0
    for image in range(n):
        for start in range(0, hw, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            total += tl.sum(tl.load(x_ptr + (image * c + channel) * hw + pixel, mask=pixel < hw, other=0.0))
    tl.store(mean_ptr + channel, total / (n * hw))


def one_loop_over_both(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, n * hw, BLOCK):
        i = start + tl.arange(0, BLOCK)
        offsets = (i // hw) * c * hw + channel * hw + i % hw
        sums += tl.load(x_ptr + offsets, mask=i < n * hw, other=0.0)
    tl.store(mean_ptr + channel, tl.sum(sums) / (n * hw))


@pytest.mark.parametrize("yours", [rows_then_tiles, one_loop_over_both, triton.jit(one_loop_over_both)])
def test_channel_mean_as_learners_write_it_passes(yours: Any) -> None:
    verdict = check(MEAN, yours)
    assert verdict.outcome == "passed", verdict


def over_the_block(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    total = 0.0
    for image in range(n):
        for start in range(0, hw, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            total += tl.sum(tl.load(x_ptr + (image * c + channel) * hw + pixel, mask=pixel < hw, other=0.0))
    tl.store(mean_ptr + channel, total / BLOCK)


def counts_lanes_of_rows(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    total = 0.0
    lanes = 0
    for image in range(n):
        for start in range(0, hw, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            total += tl.sum(tl.load(x_ptr + (image * c + channel) * hw + pixel, mask=pixel < hw, other=0.0))
            lanes += BLOCK
    tl.store(mean_ptr + channel, total / lanes)


def counts_lanes_of_channels(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    total = 0.0
    lanes = 0
    for start in range(0, n * hw, BLOCK):
        i = start + tl.arange(0, BLOCK)
        offsets = (i // hw) * c * hw + channel * hw + i % hw
        total += tl.sum(tl.load(x_ptr + offsets, mask=i < n * hw, other=0.0))
        lanes += BLOCK
    tl.store(mean_ptr + channel, total / lanes)


def one_tile_a_row(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    total = 0.0
    for image in range(n):
        pixel = tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x_ptr + (image * c + channel) * hw + pixel, mask=pixel < hw, other=0.0))
    tl.store(mean_ptr + channel, total / (n * hw))


def in_one_piece(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    total = 0.0
    for start in range(0, n * hw, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x_ptr + channel * n * hw + i, mask=i < n * hw, other=0.0))
    tl.store(mean_ptr + channel, total / (n * hw))


def always_channel_zero(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    total = 0.0
    for image in range(n):
        for start in range(0, hw, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            total += tl.sum(tl.load(x_ptr + image * c * hw + pixel, mask=pixel < hw, other=0.0))
    tl.store(mean_ptr, total / (n * hw))


def unmasked_mean(x_ptr, mean_ptr, n, c, hw, BLOCK: tl.constexpr):
    channel = tl.program_id(0)
    total = 0.0
    for image in range(n):
        for start in range(0, hw, BLOCK):
            total += tl.sum(tl.load(x_ptr + (image * c + channel) * hw + start + tl.arange(0, BLOCK)))
    tl.store(mean_ptr + channel, total / (n * hw))


@pytest.mark.parametrize(
    ("yours", "hint"),
    [
        (over_the_block, COUNT),
        (counts_lanes_of_rows, ZEROS),
        (counts_lanes_of_channels, ZEROS),
        (one_tile_a_row, LONGER),
        (in_one_piece, APART),
        (always_channel_zero, WHICH_CHANNEL),
        (unmasked_mean, MASK),
    ],
)
def test_channel_mean_written_wrong_is_told_why(yours: Callable[..., Any], hint: str) -> None:
    verdict = check(MEAN, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint), verdict


def misspelled(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.lode(x_ptr + offsets))


def without_constexpr(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK):
    tl.store(y_ptr + tl.arange(0, BLOCK), 1.0)


def with_an_atomic(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    tl.atomic_add(y_ptr, 1.0)


def writes_nothing(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    pass


@pytest.mark.parametrize(
    ("yours", "said"),
    [
        (misspelled, "AttributeError: module 'triton.language' has no attribute 'lode', at “tl.store"),
        (without_constexpr, "constexpr, at “tl.store"),
        (with_an_atomic, "not atomics"),
        (writes_nothing, "element 0 is 99"),
        (lambda x: x, "Your function takes (x); expected (x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK)."),
        (3, "Expected a function, got an object of type int"),
    ],
)
def test_a_kernel_that_does_not_run_or_does_nothing_is_told_so(yours: Any, said: str) -> None:
    verdict = check(TILE, yours)
    assert verdict.outcome == "wrong"
    assert said in verdict.sentence


def endless(x_ptr, y_ptr, scale, quant_min, quant_max, n, BLOCK: tl.constexpr):
    while True:
        pass


def test_a_loop_without_end_is_stopped_and_the_next_kernel_is_checked_as_ever() -> None:
    verdict = examine(EXERCISES[TILE], endless, time_limit=0.3)
    assert "was not back after 0.3 s, and was stopped" in verdict.sentence
    assert check(TILE, by_the_trick).outcome == "passed"
