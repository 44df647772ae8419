"""Bytes are counted operation by operation: each tensor that goes in, each that comes out, and views for nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dfqlab.lab.traffic import Traffic, backward_traffic, bytes_of, forward_traffic

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
B = 4 * X.numel()


def names(traffic: Traffic) -> list[str]:
    return [step.name for step in traffic.operations]


@pytest.mark.parametrize(
    ("function", "read", "written"),
    [
        (lambda x: x + 1, B, B),
        (lambda x: x * x, B, B),
        (lambda x: torch.add(x, 2 * x), 3 * B, 2 * B),
        (lambda x: x.clone().add_(1), 2 * B, 2 * B),
        (lambda x: x > 0, B, B // 4),
        (lambda x: x.double(), B, 2 * B),
        (lambda x: x.sum(), B, 4),
        (lambda x: x.mean((0, 2, 3)), B, 12),
        (lambda x: torch.zeros_like(x), 0, B),
        (lambda x: x.permute(0, 2, 3, 1).contiguous(), B, B),
    ],
)
def test_an_operation_reads_its_inputs_and_writes_its_outputs(
    function: Callable[[Tensor], Tensor], read: int, written: int
) -> None:
    counted = forward_traffic(function, X)
    assert (counted.read, counted.written) == (read, written)
    assert counted.bytes == read + written


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(2, -1),
        lambda x: x.permute(3, 2, 1, 0),
        lambda x: x[:, 1],
        lambda x: x.expand(5, 2, 3, 4, 4),
        lambda x: x.detach(),
        lambda x: torch.empty_like(x),
    ],
)
def test_a_view_and_memory_that_is_only_reserved_move_nothing(view: Callable[[Tensor], Tensor]) -> None:
    assert forward_traffic(view, X).bytes == 0


def test_an_expanded_tensor_is_read_for_what_it_has_in_memory() -> None:
    scale = torch.ones(3, 1, 1).expand(2, 3, 4, 4)
    assert bytes_of(scale) == 12
    assert forward_traffic(torch.mul, X, scale).read == B + 12


def test_the_formula_of_fake_quantization_moves_twelve_times_x() -> None:
    def formula(x: Tensor) -> Tensor:
        return (torch.clamp(torch.round(x / 0.3) + 2, 0, 7) - 2) * 0.3

    counted = forward_traffic(formula, X)
    assert counted.per(X) == 12
    assert names(counted) == ["div", "round", "add", "clamp", "sub", "mul"]
    assert counted.flops == 6 * X.numel()


def test_torchs_own_fake_quantize_moves_a_byte_for_each_element_beside_x_and_y() -> None:
    def quantize(x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.3, 2, 0, 7)

    assert forward_traffic(quantize, X).per(X) == 2.25
    assert backward_traffic(quantize, X).per(X) == 2.25


def test_the_gradient_is_counted_alone_and_without_the_one_that_it_begins_with() -> None:
    counted = backward_traffic(torch.relu, X)
    assert names(counted) == ["threshold_backward"]
    assert (counted.read, counted.written) == (2 * B, B)
    assert backward_traffic(lambda x: (x.detach(), 2 * x), X).per(X) == 2


def test_the_gradient_of_several_outputs_and_inputs_is_counted() -> None:
    weight = torch.ones(3, 1, 1)
    counted = backward_traffic(lambda x, w: (x * w, x.sum()), X, weight)
    assert {"mul", "sum", "add"} <= set(names(counted))
    assert not X.requires_grad
    assert not weight.requires_grad


def test_a_network_is_counted_too_and_a_convolution_multiplies_and_adds() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    counted = forward_traffic(layer, X)
    (convolution,) = counted.operations
    weight, result = 4 * 5 * 3 * 9, 4 * 2 * 5 * 16
    assert (convolution.read, convolution.written) == (B + weight, result)
    assert convolution.flops == 2 * 3 * 9 * (2 * 5 * 16)


def test_moving_is_no_arithmetic() -> None:
    assert forward_traffic(lambda x: x.clone().to(torch.float64), X).flops == 0
