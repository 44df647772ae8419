"""Codes of weights: errors that cancel, held to the best of all roundings; and the bits that each layer really has."""

import json
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from dfqlab.compression.calibration import calibrate
from dfqlab.compression.insertion import prepare
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantization import quantize
from dfqlab.compression.rounding import cancelling_codes, nearest, round_to_grid, squant, weight_scales
from dfqlab.compression.spec import Granularity, Grid, QuantizationSpec, Widths
from dfqlab.compression.weight_ranges import weight_scale
from dfqlab.errors import ConfigurationError, QuantizationError
from dfqlab.images import StoredImages
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]

SHAPES = {
    "linear": (16, 40),
    "1x1": (16, 12, 1, 1),
    "depthwise": (16, 1, 3, 3),
    "3x3": (16, 12, 3, 3),
    "1x7": (8, 5, 1, 7),
}


def symmetric(bits: int, granularity: Granularity = "per_channel") -> Grid:
    return Grid(bits, symmetric=True, granularity=granularity)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def errors(weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Of each weight in steps, (out, kernel, weight), in float64."""
    steps = weight.double() / scale.double().reshape(-1, *[1] * (weight.dim() - 1))
    return (codes.double() - steps).reshape(len(weight), weight.shape[1], -1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", SHAPES)
def test_errors_cancel_in_every_channel_and_kernel_and_no_code_moves_by_more_than_one(kind: str, bits: int) -> None:
    grid = symmetric(bits)
    for seed in range(5):
        weight = drawn(*SHAPES[kind], seed=seed)
        scale = weight_scale(weight, grid, "minmax")  # clips nothing
        codes, plain = cancelling_codes(weight, scale, grid), round_to_grid(weight, scale, grid)
        assert codes.shape == weight.shape
        assert torch.equal(codes, codes.round())
        assert codes.min() >= grid.quant_min
        assert codes.max() <= grid.quant_max
        assert (codes - plain).abs().max() == 1
        found = errors(weight, codes, scale)
        assert found.abs().max() < 1 + 1e-4
        assert found.sum((1, 2)).abs().max() <= 0.5 + 1e-4
        assert found.sum(2).abs().max() <= 1 + 1e-4
        assert (found.sum(2).abs() > 0.5).double().mean() < 0.2  # those that a channel asked to give way
        assert errors(weight, plain, scale).sum((1, 2)).abs().max() > 0.5 + 1e-4 or kind == "depthwise"


@pytest.mark.parametrize("count", range(1, 7))
def test_one_kernel_is_rounded_as_the_best_of_all_roundings_that_moves_the_nearest(count: int) -> None:
    grid, one = symmetric(8), torch.ones(1)
    for seed in range(40):
        weight = 5 * drawn(1, 1, 1, count, seed=seed)
        codes = cancelling_codes(weight, one, grid).flatten().double()
        w = weight.flatten().double()
        all_codes = torch.tensor(list(product((0, 1), repeat=count))) + w.floor()
        sums = (all_codes - w).sum(1).square()
        least = float(sums.min())
        assert float((codes - w).sum() ** 2) == pytest.approx(least, abs=1e-6)
        best = all_codes[(sums - least).abs() < 1e-6]
        squares = (best - w).square().sum(1)  # the weights nearest to the other side cost least to move
        assert torch.equal(codes, best[squares.argmin()])


def test_clipped_weights_stay_where_they_are() -> None:
    grid = symmetric(3)
    weight = 2 * drawn(32, 4, 3, 3)
    weight[0] = 50  # nothing is left to move
    scale = torch.ones(32)
    clipped = (weight > grid.quant_max + 0.5) | (weight < grid.quant_min - 0.5)
    codes, plain = (codes_of(weight, scale, grid) for codes_of in (cancelling_codes, round_to_grid))
    assert 0.02 < clipped[1:].double().mean() < 0.4
    assert torch.equal(codes[clipped], plain[clipped])
    assert not torch.equal(codes, plain)
    sums = [errors(weight, c, scale).sum((1, 2)).abs().mean() for c in (codes, plain)]
    assert sums[0] < sums[1]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU6(), nn.Conv2d(4, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def calibrated(teacher: Teacher, images: Tensor, **settings: object) -> PreparedNetwork:
    prepared = prepare(teacher, QuantizationSpec(**{"calibration": "minmax", "weights": 4, **settings}))  # type: ignore[arg-type]
    calibrate(prepared, StoredImages(images))
    return prepared


def test_every_layer_is_rounded_on_its_own_grid(make_teacher: MakeTeacher, images: Tensor) -> None:
    prepared = calibrated(make_teacher(network()), images, layers={"3": Widths(weights=2)})
    scales = weight_scales(prepared)
    for rounding, codes_of in ((nearest, round_to_grid), (squant, cancelling_codes)):
        rounded = rounding(prepared)
        assert list(rounded) == ["0", "3", "5", "8"]
        for path, found in rounded.items():
            weight, grid = prepared.weights[path].weight, symmetric(2 if path == "3" else 4)
            assert torch.equal(found.scale, scales[path])
            assert torch.equal(found.codes, codes_of(weight, found.scale, grid))
            scale = found.scale.reshape(-1, *[1] * (weight.dim() - 1))
            assert ((found.weight - weight).abs() <= scale * (1 + 1e-5)).all()


def test_a_huge_bias_widens_the_step_of_its_channel_until_it_fits(make_teacher: MakeTeacher, images: Tensor) -> None:
    teacher = make_teacher(network())
    before = weight_scales(calibrated(teacher, images))["5"]
    teacher.module.get_parameter("5.bias").data[2] = 1e12
    prepared = calibrated(teacher, images)
    after = weight_scales(prepared)["5"]
    assert after[[0, 1, 3]].tolist() == before[[0, 1, 3]].tolist()
    assert 1e12 / float(after[2] * prepared.input_scale("5")) == pytest.approx(2**30)


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse", "aciq"])
@pytest.mark.parametrize("bias", [0.1, 1e12])
def test_per_tensor_weights_have_one_scale(make_teacher: MakeTeacher, images: Tensor, rule: str, bias: float) -> None:
    teacher = make_teacher(network())
    teacher.module.get_parameter("5.bias").data[2] = bias
    prepared = calibrated(teacher, images, granularity="per_tensor", weight_calibration=rule)
    for path, scale in weight_scales(prepared).items():
        assert scale.shape == (len(prepared.weights[path].weight),)
        assert len(scale.unique()) == 1
    whole = prepared.weights["3"].weight.reshape(1, -1)
    assert weight_scales(prepared)["3"][0] == weight_scale(whole, symmetric(4), rule)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["5.weight", "5.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    make_teacher: MakeTeacher, images: Tensor, name: str, value: float
) -> None:
    prepared = calibrated(make_teacher(network()), images)
    prepared.graph.get_parameter(name).data.view(-1)[1] = value
    with pytest.raises(QuantizationError, match="layer '5' has weights that are not finite"):
        weight_scales(prepared)


BITS = {  # of each layer's weights, of each tensor: input 0 3 5 6, the layer "8" puts out logits
    (): ([4, 4, 4, 4], [8, 5, 5, 5, 5]),
    ("ends",): ([8, 4, 4, 8], [8, 8, 5, 5, 8]),
    ("layers",): ([4, 2, 4, 6], [8, 5, 5, 3, 7]),
    ("ends", "layers"): ([8, 2, 4, 6], [8, 8, 5, 3, 7]),
}


@pytest.mark.parametrize("given", BITS, ids="+".join)
def test_bits_of_the_ends_and_of_single_layers_are_what_the_model_has(
    make_teacher: MakeTeacher, images: Tensor, given: tuple[str, ...]
) -> None:
    settings = {
        "ends": 8,
        "layers": {
            "3": Widths(weights=2),
            "5": Widths(activations=3),
            "6": Widths(activations=7),
            "8": Widths(weights=6),
        },
    }
    model = quantize(
        make_teacher(network()),
        images,
        weights=4,
        activations=5,
        calibration="minmax",
        **{k: settings[k] for k in given},
    )
    weights, activations = BITS[given]
    assert [layer.bits for layer in model.layers.values()] == weights
    for layer, bits in zip(model.layers.values(), weights, strict=True):
        assert -(2 ** (bits - 1)) <= int(layer.codes.min()) < -(2 ** (bits - 2))
    quantizers = {m.name: m for m in model.graph.modules() if hasattr(m, "zero_point")}
    assert [quantizers[name].quant_max for name in ("input", "0", "5", "6")] == [
        2**bits - 1 for name, bits in zip(("input", "0", "3", "5", "6"), activations, strict=True) if name != "3"
    ]
    assert 2 ** (activations[2] - 1) <= quantizers["3"].quant_max < 2 ** activations[2]  # it ends at the code of 6
    shown = {row.name: row.bits for row in model.table}
    expected = dict(zip(("input", "0", "3", "5", "6"), map(str, activations), strict=True)) | {"8": "float"}
    for path, bits in zip(model.layers, weights, strict=True):
        expected[path] = f"{bits} / {expected[path]}"
    assert shown == expected


def test_a_layer_that_does_not_exist_gets_a_near_name(make_teacher: MakeTeacher) -> None:
    net = nn.Sequential()
    net.add_module("features", network())
    with pytest.raises(ConfigurationError, match=r"nothing is called 'feature\.3'; did you mean 'features\.3'"):
        prepare(make_teacher(net), QuantizationSpec(layers={"feature.3": Widths(weights=2)}))


def test_a_specification_comes_back_from_json() -> None:
    layers = {"a.0": Widths(weights=2), "b": Widths(activations=7), "c": Widths(3, 4)}
    spec = QuantizationSpec(
        3, 5, "aciq", "squant", "dfq", ends=8, percentile=99.0, layers=layers, weight_calibration="mse",
        bias_correction="empirical", granularity="per_tensor",
    )  # fmt: skip
    assert QuantizationSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert QuantizationSpec.from_dict(json.loads(json.dumps(QuantizationSpec().as_dict()))) == QuantizationSpec()
