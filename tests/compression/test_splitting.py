"""Channel splitting: the network computes what it did, outliers reach half as far, and all that follows goes on."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dfqlab
from dfqlab.compression.halves import outliers, split_inputs
from dfqlab.compression.insertion import prepare
from dfqlab.compression.model import load_model
from dfqlab.compression.prepared import ChainRow
from dfqlab.compression.quantization import ROUNDINGS, quantize
from dfqlab.compression.spec import QuantizationSpec, Reconstruction, Widths
from dfqlab.compression.weight_ranges import layer_scale
from dfqlab.deployment import certify
from dfqlab.errors import ConfigurationError
from dfqlab.measures import sqnr
from dfqlab.teachers import Teacher
from dfqlab.teachers.cifar_networks import CIFAR10_NETWORKS
from dfqlab.teachers.names import DIGITS_NAMES

MakeTeacher = Callable[..., Teacher]

pytestmark = pytest.mark.traces  # the zoo's own modules are annotated


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_channels_to_split_leave_smaller_outliers(seed: int, count: int) -> None:
    """Against every way to split so many channels one after the other."""
    weight = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(seed)) ** 3

    def largest(parents: tuple[int, ...]) -> float:
        return float(split_inputs(weight, parents, torch.zeros(3)).abs().max())

    every = itertools.product(*(range(4 + done) for done in range(count)))
    assert largest(outliers(weight, count)) == min(map(largest, every))


def test_an_outlier_that_still_leads_is_split_again() -> None:
    assert outliers(torch.tensor([[[1.0], [9.0], [2.0]]]), 3) == (1, 1, 3)  # 4.5 and 4.5; then both


@pytest.mark.parametrize("count", [1, 4])
def test_halves_add_up_and_are_rounded_to_what_the_whole_is(count: int) -> None:
    weight = 3 * torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(0)).double()
    step = torch.tensor([0.1, 0.5, 1.0, 2.0, 0.03]).double()
    parents = outliers(weight, count)
    halves = split_inputs(weight, parents, step)
    origin = list(range(6))
    for parent in parents:
        origin.append(origin[parent])
    index = torch.tensor(origin)
    whole = torch.zeros_like(weight).index_add(1, index, halves)
    assert torch.allclose(whole, weight, rtol=0, atol=1e-12)
    steps = step[:, None, None]
    codes = torch.zeros_like(weight).index_add(1, index, torch.round(halves / steps))
    assert torch.equal(codes, torch.round(weight / steps))


@pytest.mark.parametrize("rule", ["minmax", "mse"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_nearest_rounds_halves_to_is_what_it_rounds_the_whole_to(rule: Any, bits: int) -> None:
    """On the grid of the layer itself, wherever no half is clipped."""
    spec = QuantizationSpec(weights=bits, calibration="bn", weight_calibration=rule, split_channels=0.2)
    prepared = prepare(dfqlab.load_teacher("digits/vgg"), spec)
    assert prepared.splits
    for path, split in prepared.splits.items():
        scale = layer_scale(prepared, path, prepared.grids[path])
        codes = prepared.weights[path].weight.reshape(split.halves().shape) / scale[:, None, None]
        index = torch.tensor(split.origin)
        inside = torch.ones_like(split.whole, dtype=torch.bool)
        clipped = codes.abs() > prepared.grids[path].quant_max + 0.5
        for at, origin in enumerate(index.tolist()):
            inside[:, origin] &= ~clipped[:, at]
        sums = torch.zeros_like(split.whole).index_add(1, index, codes.round())
        expected = (split.whole / scale[:, None, None]).round()
        assert torch.equal(sums[inside], expected[inside])
        assert inside.float().mean() > 0.5


class Sized(nn.Module):
    """The second layer reads what the first puts out, by a root of how many channels that has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        z = self.b(y).relu() / y.shape[1] ** 0.5
        return self.head(z.mean((2, 3)))


def test_channels_whose_number_is_asked_for_stay(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(Sized())
    split = prepare(teacher, QuantizationSpec(split_channels=0.5))
    (row,) = (row for row in split.chains if row.layer == "a")
    assert (row.reader, row.split) == ("b", 0)
    assert row.skipped == "something asks for the size of what is between them, which would grow"
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(split.graph(x), teacher.module(x), rtol=0, atol=1e-5)


def zoo_teacher(name: str, make_teacher: MakeTeacher) -> Teacher:
    if name in CIFAR10_NETWORKS:
        with torch.random.fork_rng(devices=[]):
            module = CIFAR10_NETWORKS[name]()
        return make_teacher(module, size=(3, 32, 32), classes=10)
    return dfqlab.load_teacher(f"digits/{name}")


@pytest.mark.parametrize("equalization", ["none", "dfq"])
@pytest.mark.parametrize("name", [*DIGITS_NAMES, *CIFAR10_NETWORKS])
def test_every_network_computes_what_it_did(make_teacher: MakeTeacher, name: str, equalization: Any) -> None:
    teacher = zoo_teacher(name, make_teacher)
    images = torch.rand(4, *teacher.input.size, generator=torch.Generator().manual_seed(0))
    x = teacher.input.normalize(images)
    whole = prepare(teacher, QuantizationSpec(equalization=equalization))
    split = prepare(teacher, QuantizationSpec(equalization=equalization, split_channels=0.1))
    with torch.no_grad():
        expected, found = whole.graph(x), split.graph(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    grouped = {path for path, layer in whole.weights.items() if isinstance(layer, nn.Conv2d) and layer.groups > 1}
    assert {row.layer for row in split.chains} == set(whole.weights)
    for row in split.chains:
        channels = len(whole.weights[row.layer].weight)
        assert len(split.weights[row.layer].weight) == channels + row.split
        if row.skipped:
            assert row.split == 0
        else:
            assert row.split == math.ceil(0.1 * channels)
            assert not {row.layer, row.reader} & grouped
            assert split.weights[row.reader].weight[0].numel() > whole.weights[row.reader].weight[0].numel()
        assert row.equalized == (equalization == "dfq" and row.reader != "")
    assert any(row.split for row in split.chains)


def flattened() -> nn.Module:
    """A map flattened behind its ReLU6: each channel is a block of what the linear layer reads."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6),
        nn.ReLU6(), nn.Flatten(), nn.Linear(54, 7), nn.ReLU(), nn.Linear(7, 5),
    )  # fmt: skip


def test_gaussians_and_the_caps_of_a_relu6_are_doubled_with_their_channel(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(flattened())
    split = prepare(teacher, QuantizationSpec(equalization="dfq", split_channels=0.3))
    rows = [(row.layer, row.reader, row.split) for row in split.chains if row.split]
    assert rows == [("0", "4", 3), ("4", "8", 2), ("8", "10", 3)]
    whole = prepare(teacher, QuantizationSpec(equalization="dfq"))
    x = 4 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = whole.graph(x), split.graph(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    mean, doubled = whole.gaussians["0"].mean, split.gaussians["0"].mean
    assert torch.equal(doubled[:8], mean)
    assert set(doubled[8:].tolist()) <= set(mean.tolist())
    bias = split.weights["0"].bias
    assert bias is not None
    assert all(bias[8 + k] == bias[doubled[:8].tolist().index(float(doubled[8 + k]))] for k in range(3))


def with_outlier(make_teacher: MakeTeacher) -> Teacher:
    """One input channel of the second layer has weights far above the others', and its ReLU passes little."""
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    )  # fmt: skip
    make_teacher(module)  # which settles it
    with torch.no_grad():
        module[0].weight[3] /= 4
        module[0].bias[3] /= 4
        module[2].weight[:, 3] *= 4
    return make_teacher(module, settled=False)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_with_a_planted_outlier_split_few_bits_lose_less(
    make_teacher: MakeTeacher, images: Tensor, granularity: str
) -> None:
    teacher = with_outlier(make_teacher)

    def ratio(share: float) -> float:
        model = quantize(
            teacher, images, weight_calibration="minmax", granularity=granularity, layers={"2": Widths(weights=4)},
            split_channels=share,
        )  # fmt: skip
        return sqnr(teacher(images), model(images))

    assert ratio(1 / 16) > ratio(0.0) + 3  # dB; half the step is worth 6


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_it_goes_with_equalization_and_every_rounding_into_a_file_and_a_runtime(
    make_teacher: MakeTeacher, images: Tensor, rounding: str, tmp_path: Path
) -> None:
    teacher = make_teacher(flattened())
    model = quantize(
        teacher, images, weights=6, activations=8, equalization="dfq", rounding=rounding, split_channels=0.1,
        bias_correction="analytic", reconstruction=Reconstruction(iterations=20, batch=8),
    )  # fmt: skip
    assert {path: layer.codes.shape[:2] for path, layer in model.layers.items()} == {
        "0": (9, 3), "4": (7, 9), "8": (8, 63), "10": (5, 8),
    }  # fmt: skip
    assert sqnr(teacher(images), model(images)) > 15
    assert certify(model, images).holds
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(images), model(images))
    assert loaded.chains == model.chains
    assert loaded.spec == model.spec


def test_what_was_skipped_says_why(make_teacher: MakeTeacher) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    first, second, third, last = prepare(make_teacher(module), QuantizationSpec(split_channels=0.02)).chains
    assert (first.layer, first.reader, first.split) == ("0", "2", 0)
    assert first.skipped == "the layer that reads them has 4 groups, and they could not grow by one channel alone"
    assert second.skipped == "the layer that makes them has 4 groups, and they could not grow by one channel alone"
    assert third == ChainRow("4", "8", equalized=False, split=1, skipped="")
    assert last == ChainRow("8", "", equalized=False, split=0, skipped="the network's output")


def test_nobody_asked_nothing_is_listed(make_teacher: MakeTeacher, images: Tensor) -> None:
    assert quantize(make_teacher(flattened()), images).chains == ()


@pytest.mark.parametrize("share", [-0.1, 1.5, "0.1", None])
def test_a_share_outside_0_to_1_is_refused(share: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected a share of the channels, from 0 to 1"):
        QuantizationSpec(split_channels=share)
