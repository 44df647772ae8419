"""The numpy reference: by hand on one small case, and against torch in float64 on many."""

import ast
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dfqlab.deployment import reference
from dfqlab.deployment.reference import Affine, Window


def affine(scale: Any, zero_point: int = 0, dtype: Any = np.uint8) -> Affine:
    return Affine(np.array(scale, dtype=np.float32), np.array(zero_point, dtype=dtype))


def weight_grid(scale: Any, zero_point: int = 0) -> Affine:
    return affine(scale, zero_point, np.int8)


# One convolution by hand. Codes less their zero point 3:
#      0  2 -3
#     -2  6  1
#     -1  0  4
X_GRID = affine(0.5, 3)
X = np.array([[[[3, 5, 0], [1, 9, 4], [2, 3, 7]]]], dtype=np.uint8)
KERNEL = [[1, -2, 0], [3, 4, -1], [0, 2, -3]]
# Sums of products under the kernel, padded with nothing; products with 0 left out:
SUMS = [
    [-2 - 4 - 18, 8 + 3 + 12 - 3, 6 - 12 + 2],  # -24  20  -4
    [-8 - 6 - 2, -4 - 6 + 24 - 1 - 12, 2 + 6 + 18 + 4 + 8],  # -16   1  38
    [4 - 4, -2 - 12 - 3 - 4, 6 - 2 + 16],  #   0 -21  20
]


def test_a_convolution_by_hand() -> None:
    weight = np.array([[KERNEL], [KERNEL], [KERNEL]], dtype=np.int8)
    bias = np.array([0, -8, 0], dtype=np.int32)
    # Multipliers: 0.5 * 0.25 / 1 = 1/8, twice; 0.5 * 32 / 1 = 16.
    found = reference.conv(
        X, X_GRID, weight, weight_grid([0.25, 0.25, 32]), affine(1.0, 10), bias, Window((3, 3), pads=(1, 1, 1, 1))
    )
    assert found.dtype == np.uint8
    assert found[0].tolist() == [
        # SUMS / 8 = -3 2.5 -0.5, -2 0.125 4.75, 0 -2.625 2.5: halves go to the even neighbour, 2 and 0. Then + 10.
        [[7, 12, 10], [8, 10, 15], [10, 7, 12]],
        # (SUMS - 8) / 8 = -4 1.5 -1.5, -3 -0.875 3.75, -1 -3.625 1.5: halves to 2 and -2, away from zero this time.
        [[6, 12, 8], [7, 9, 14], [9, 6, 12]],
        # SUMS * 16 + 10 = -374 330 -54, -246 26 618, 10 -326 330: saturated at 0 and at 255.
        [[0, 255, 0], [0, 26, 255], [10, 0, 255]],
    ]


def test_the_sums_of_the_hand_case_are_what_torch_sums() -> None:
    x = torch.from_numpy(X.astype(np.float64)) - 3
    assert F.conv2d(x, torch.tensor([[KERNEL]], dtype=torch.float64), padding=1)[0, 0].tolist() == SUMS


def test_padding_adds_nothing_whatever_the_zero_point() -> None:
    x = np.full((1, 1, 2, 2), 200, dtype=np.uint8)
    weight = np.ones((1, 1, 3, 3), dtype=np.int8)
    for zero_point in (0, 100, 200):
        grid = affine(1.0, zero_point)
        found = reference.conv(
            x, grid, weight, weight_grid([1.0]), affine(8.0), None, Window((3, 3), pads=(1, 1, 1, 1))
        )
        # Every output sees all four pixels and five pads.
        assert (found == round(4 * (200 - zero_point) / 8)).all()


CONVOLUTIONS = [
    # channels, out, kernel, groups, strides, pads (top, left, bottom, right), dilations
    (1, 1, (1, 1), 1, (1, 1), (0, 0, 0, 0), (1, 1)),
    (3, 5, (3, 3), 1, (1, 1), (1, 1, 1, 1), (1, 1)),
    (3, 4, (3, 3), 1, (2, 2), (0, 0, 1, 1), (1, 1)),
    (4, 6, (5, 3), 2, (1, 2), (2, 0, 1, 3), (1, 1)),
    (4, 4, (3, 3), 4, (1, 1), (1, 1, 1, 1), (1, 1)),  # depthwise
    (4, 8, (3, 3), 4, (2, 1), (1, 1, 1, 1), (1, 1)),  # depthwise, two outputs a channel
    (4, 4, (3, 3), 1, (1, 1), (2, 2, 2, 2), (2, 2)),
    (6, 3, (2, 3), 3, (3, 2), (0, 1, 2, 0), (2, 3)),
    (2, 3, (1, 7), 1, (1, 1), (0, 3, 0, 3), (1, 1)),
    (2, 2, (7, 8), 1, (1, 1), (0, 0, 0, 0), (1, 1)),  # the whole plane
]


def random_convolution(case: int) -> tuple[dict[str, Any], Tensor]:
    """Arguments of `reference.conv`, and torch's sums in float64."""
    channels, out, kernel, groups, strides, pads, dilations = CONVOLUTIONS[case]
    random = np.random.default_rng(case)
    x_zero, w_zero = int(random.integers(0, 256)), int(random.integers(-2, 3))
    arguments = {
        "x": random.integers(0, 256, (3, channels, 7, 8), dtype=np.uint8),
        "x_grid": affine(random.uniform(0.01, 0.1), x_zero),
        "weight": random.integers(-128, 128, (out, channels // groups, *kernel), dtype=np.int8),
        "weight_grid": weight_grid(random.uniform(0.001, 0.01, out), w_zero),
        "y_grid": affine(random.uniform(0.5, 1), int(random.integers(0, 256))),
        "bias": random.integers(-9999, 9999, out, dtype=np.int32) if case % 2 else None,
        "window": Window(kernel, strides, pads, dilations),
        "groups": groups,
    }
    x = torch.from_numpy(arguments["x"].astype(np.float64)) - x_zero
    weight = torch.from_numpy(arguments["weight"].astype(np.float64)) - w_zero
    top, left, bottom, right = pads
    sums = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, strides, 0, dilations, groups)
    if arguments["bias"] is not None:
        sums += torch.from_numpy(arguments["bias"]).reshape(-1, 1, 1)
    return arguments, sums


@pytest.mark.parametrize("case", range(len(CONVOLUTIONS)))
def test_convolutions_sum_what_torch_sums_in_float64(case: int) -> None:
    arguments, sums = random_convolution(case)
    multiplier = arguments["x_grid"].scale * arguments["weight_grid"].scale / arguments["y_grid"].scale
    scaled = sums.float() * torch.from_numpy(multiplier).reshape(-1, 1, 1)
    expected = (scaled.round() + int(arguments["y_grid"].zero_point)).clamp(0, 255)
    found = reference.conv(**arguments)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected.numpy())
    assert len(np.unique(found)) > 2  # not all saturated


def test_going_in_chunks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in range(len(CONVOLUTIONS)):
        arguments, _ = random_convolution(case)
        at_once = reference.conv(**arguments)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "_CHUNK_BYTES", 1)  # one image at a time
            assert np.array_equal(reference.conv(**arguments), at_once)


def test_sums_are_exact_where_float32_would_not_be() -> None:
    # 2^16 products of 255 * 127 and one more of 1 * 1: 2,122,383,361 is odd and far above 2^24.
    count = 2**16
    x = np.full((1, count + 1), 255, dtype=np.uint8)
    weight = np.full((1, count + 1), 127, dtype=np.int8)
    x[0, -1] = weight[0, -1] = 1
    total = reference.gemm_accumulator(x, affine(1.0), weight, weight_grid([1.0]), None)
    assert total.tolist() == [[count * 255 * 127 + 1]]


@pytest.mark.parametrize("bias", [None, np.array([7, -900, 12345, 0, 1], dtype=np.int32)])
def test_a_linear_layer_sums_what_torch_sums_in_float64(bias: np.ndarray | None) -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (4, 33), dtype=np.uint8)
    weight = random.integers(-128, 128, (5, 33), dtype=np.int8)
    found = reference.gemm_accumulator(x, affine(0.5, 77), weight, weight_grid([1.0] * 5, -3), bias)
    expected = F.linear(
        torch.from_numpy(x.astype(np.float64)) - 77,
        torch.from_numpy(weight.astype(np.float64)) + 3,
        None if bias is None else torch.from_numpy(bias).double(),
    )
    assert found.dtype == np.int64
    assert found.tolist() == expected.tolist()


def requantized(accumulators: list[int], multiplier: float, zero_point: int = 0, dtype: Any = np.uint8) -> list[int]:
    grid = np.array(zero_point, dtype=dtype)
    found = reference.requantize(np.array(accumulators, dtype=np.int64), np.array(multiplier, np.float32), grid)
    assert found.dtype == dtype
    codes: list[int] = found.tolist()
    return codes


def test_requantize_rounds_halves_to_even_before_the_zero_point() -> None:
    assert requantized([-5, -3, -1, 1, 3, 5], 0.5, 100) == [98, 98, 100, 100, 102, 102]
    # An odd zero point added first would turn each of these around.
    assert requantized([-5, -3, -1, 1, 3, 5], 0.5, 101) == [99, 99, 101, 101, 103, 103]


def test_requantize_saturates_at_both_ends_of_its_container() -> None:
    assert requantized([-(2**31), -11, -10, 245, 246, 2**31 - 1], 1.0, 10) == [0, 0, 0, 255, 255, 255]
    assert requantized([-(2**31), -129, -128, 127, 128, 2**31 - 1], 1.0, 0, np.int8) == [
        -128,
        -128,
        -128,
        127,
        127,
        127,
    ]


def test_requantize_multiplies_in_float32() -> None:
    # float32(0.1) is 0.100000001490116: five times that is above a half in float64, and a half in float32.
    assert requantized([5], 0.1) == [0]
    # 2^24 + 1 is no float32: the accumulator becomes 2^24, and 2^24 / 2^25 is a half.
    assert requantized([2**24 + 1], 2**-25) == [0]


def through_onnxruntime(codes: np.ndarray, grid: Affine, new: Affine) -> np.ndarray:
    """DequantizeLinear, then QuantizeLinear, one after the other."""
    make, kind = onnx.helper.make_node, onnx.TensorProto.UINT8
    graph = onnx.helper.make_graph(
        [make("DequantizeLinear", ["x", "s", "z"], ["r"]), make("QuantizeLinear", ["r", "t", "w"], ["y"])],
        "grids",
        [onnx.helper.make_tensor_value_info("x", kind, [None])],
        [onnx.helper.make_tensor_value_info("y", kind, [None])],
        [
            onnx.numpy_helper.from_array(value, name)
            for name, value in (("s", grid.scale), ("z", grid.zero_point), ("t", new.scale), ("w", new.zero_point))
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": codes})
    moved: np.ndarray = y
    return moved


def test_codes_change_grid_as_onnx_defines_it() -> None:
    codes = np.arange(256, dtype=np.uint8)
    random = np.random.default_rng(0)
    for case in range(20):
        scale = random.uniform(0.01, 0.1)
        # Every third pair of grids is one to two, where half of the codes are ties.
        new_scale = 2 * scale if case % 3 == 0 else scale * random.uniform(0.5, 2)
        grid, new = affine(scale, int(random.integers(256))), affine(new_scale, int(random.integers(256)))
        assert np.array_equal(reference.change_grid(codes, grid, new), through_onnxruntime(codes, grid, new))


def test_codes_change_grid_by_hand() -> None:
    codes = np.array([3, 4, 5, 6, 7, 8, 0, 255], dtype=np.uint8)
    # Less 3, halved: 0 0.5 1 1.5 2 2.5 -1.5 126; halves to even, plus 1, and -2 + 1 saturates.
    assert reference.change_grid(codes, affine(0.25, 3), affine(0.5, 1)).tolist() == [1, 1, 2, 3, 3, 3, 0, 127]


POOLS = [
    # kernel, strides, pads of height and width
    ((2, 2), (2, 2), (0, 0)),
    ((3, 3), (2, 2), (1, 1)),
    ((3, 2), (1, 2), (1, 0)),
    ((3, 3), (2, 2), (0, 0)),
    ((4, 4), (3, 3), (2, 1)),
]


@pytest.mark.parametrize(("pool", "count_pads", "ceil"), list(product(POOLS, [False, True], [False, True])))
def test_average_pooling_is_torchs(pool: Any, count_pads: bool, ceil: bool) -> None:
    kernel, strides, (high, wide) = pool
    random = np.random.default_rng(0)
    for size in ((7, 8), (9, 6), (8, 10)):
        x = random.integers(0, 256, (2, 3, *size), dtype=np.uint8)
        window = Window(kernel, strides, (high, wide, high, wide), ceil=ceil)
        found = reference.average_pool(x, affine(0.25, 50), affine(0.5, 9), window, count_pads)
        reals = (torch.from_numpy(x.astype(np.float64)) - 50) * 0.25
        means = F.avg_pool2d(reals, kernel, strides, (high, wide), ceil, count_pads)
        expected = ((means / 0.5).round() + 9).clamp(0, 255)
        assert found.shape == expected.shape
        assert np.array_equal(found, expected.numpy())


def test_average_pooling_without_a_window_takes_the_plane() -> None:
    x = np.array([[[[0, 1], [2, 3]], [[10, 10], [10, 12]]]], dtype=np.uint8)
    # Means 1.5 and 10.5: halves to even, 2 and 10.
    assert reference.average_pool(x, affine(1.0), affine(1.0), None).tolist() == [[[[2]], [[10]]]]


def test_quantize_and_dequantize_are_inverse_on_the_grid_and_saturate_beyond() -> None:
    codes = np.arange(256, dtype=np.uint8)
    grid = affine(0.037, 91)
    assert np.array_equal(reference.quantize(reference.dequantize(codes, grid), grid), codes)
    assert reference.quantize(np.array([-1e9, 1e9]), grid).tolist() == [0, 255]


def test_the_reference_knows_neither_torch_nor_a_runtime() -> None:
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy"}
