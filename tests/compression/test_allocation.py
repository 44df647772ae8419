"""Widths by layer: the best of all assignments where there are few, within the size, and the smallest size told."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dfqlab.compression.allocation import WIDTHS, allocate, frontier, one_width, sensitivities
from dfqlab.compression.insertion import prepare
from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import QuantizationSpec, Widths
from dfqlab.errors import DataError, QuantizationError
from dfqlab.images import StoredImages
from dfqlab.progress import Step
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


@pytest.fixture
def teacher(make_teacher: MakeTeacher) -> Teacher:
    return make_teacher(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    )  # fmt: skip


def drawn(seed: int) -> tuple[dict[str, dict[int, float]], dict[str, int]]:
    """What four layers lose at three widths, and how large they are."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: int(torch.randint(1, 400, (), generator=generator)) for name in "abcd"}
    losses = {
        name: {bits: float(torch.rand((), generator=generator)) / 4**bits for bits in (2, 4, 8)} for name in sizes
    }
    return losses, sizes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean_bits", [2.0, 2.5, 3.9, 6.0, 8.0])
def test_no_other_assignment_that_fits_loses_less(seed: int, mean_bits: float) -> None:
    losses, sizes = drawn(seed)
    room = mean_bits * sum(sizes.values())

    def needed(bits: dict[str, int]) -> int:
        return sum(sizes[name] * width for name, width in bits.items())

    every = (dict(zip(sizes, widths, strict=True)) for widths in itertools.product((2, 4, 8), repeat=4))
    best = min(sum(losses[n][b] for n, b in bits.items()) for bits in every if needed(bits) <= room)
    found = allocate(losses, sizes, mean_bits)
    assert needed(found) <= room
    assert sum(losses[name][bits] for name, bits in found.items()) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mean_bits", [3.0, 5.5, 7.5])
def test_losses_far_below_the_largest_count_too(seed: int, mean_bits: float) -> None:
    """Against dynamic programming over sizes, with losses that lie ten orders of magnitude apart."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {f"{k}": int(torch.randint(1, 40, (), generator=generator)) for k in range(12)}
    losses = {
        name: {bits: float(10 ** (-12 * torch.rand((), generator=generator))) / 10**bits for bits in WIDTHS}
        for name in sizes
    }
    least = {0: 0.0}
    for name, size in sizes.items():
        larger: dict[int, float] = {}
        for used, loss in least.items():
            for bits, more in losses[name].items():
                at = used + size * bits
                larger[at] = min(larger.get(at, torch.inf), loss + more)
        least = larger
    best = min(loss for used, loss in least.items() if used <= mean_bits * sum(sizes.values()))
    found = allocate(losses, sizes, mean_bits)
    assert sum(losses[name][bits] for name, bits in found.items()) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_lies_below_the_frontier(seed: int) -> None:
    """Against every assignment of three widths to four layers: none is as small and loses less."""
    losses, sizes = drawn(seed)
    budgets = [2.0, 2.6, 3.3, 4.0, 5.1, 6.7, 8.0]
    points = frontier(losses, sizes, budgets)
    ways = [dict(zip(sizes, widths, strict=True)) for widths in itertools.product((2, 4, 8), repeat=4)]
    weight = sum(sizes.values())
    means = [sum(sizes[n] * b for n, b in way.items()) / weight for way in ways]
    lost = [sum(losses[n][b] for n, b in way.items()) for way in ways]
    for budget, point in zip(budgets, points, strict=True):
        best = min(loss for loss, mean in zip(lost, means, strict=True) if mean <= budget + 1e-9)
        assert point.loss == pytest.approx(best, rel=1e-6)
        at = ways.index(dict(point.widths))
        assert (point.mean_bits, point.loss) == (pytest.approx(means[at]), pytest.approx(lost[at]))
        assert point.mean_bits <= budget + 1e-9
    assert [point.loss for point in points] == sorted((point.loss for point in points), reverse=True)
    alike = one_width(losses, sizes)
    assert [set(point.widths.values()) for point in alike] == [{2}, {4}, {8}]
    assert [point.mean_bits for point in alike] == [2, 4, 8]
    assert points[0] == alike[0]
    assert points[3].loss <= alike[1].loss


def test_one_width_is_one_that_every_layer_may_have() -> None:
    losses = {"a": {2: 3.0, 4: 2.0, 8: 1.0}, "b": {4: 0.5, 8: 0.1}}
    assert [point.mean_bits for point in one_width(losses, {"a": 3, "b": 4})] == [4, 8]


def test_below_the_smallest_width_the_smallest_possible_is_said() -> None:
    with pytest.raises(QuantizationError, match=r"mean_bits=1.5: the smallest possible here is 2,"):
        allocate({"a": {2: 0.5, 3: 0.1}}, {"a": 7}, mean_bits=1.5)
    with pytest.raises(QuantizationError, match=r"the smallest possible here is 5,"):
        allocate({"a": {8: 0.1}, "b": {2: 0.5}}, {"a": 5, "b": 5}, mean_bits=4)


def test_sensitivity_is_the_divergence_when_one_layer_alone_is_rounded(teacher: Teacher, images: Tensor) -> None:
    """Against the network itself, a layer's weights exchanged for those that its integers stand for."""
    spec = QuantizationSpec(weights=3, activations=8)
    found = sensitivities(prepare(teacher, spec), StoredImages(images))
    layers = quantize(teacher, images, weights=3, activations=8).layers
    prepared = prepare(teacher, spec)
    x = teacher.input.normalize(images)
    answers = prepared.graph(x).double().log_softmax(1)
    for path, layer in prepared.weights.items():
        own = layer.weight.detach().clone()
        layer.weight.data.copy_(layers[path].weight)
        changed = prepared.graph(x).double().log_softmax(1)
        layer.weight.data.copy_(own)
        expected = torch.nn.functional.kl_div(changed, answers, reduction="batchmean", log_target=True)
        assert found[path][3] == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-9)
    assert all(tuple(by_bits) == WIDTHS for by_bits in found.values())
    assert all(by_bits[2] > by_bits[8] for by_bits in found.values())


@pytest.mark.parametrize("mean_bits", [2.2, 3.0, 4.5])
def test_a_model_keeps_within_the_bits_and_beats_one_width_of_that_size(
    teacher: Teacher, images: Tensor, mean_bits: float
) -> None:
    told: list[Step] = []
    model = quantize(teacher, images, activations=8, mean_bits=mean_bits, on_step=told.append)
    bits = sum(layer.bits * layer.codes.numel() for layer in model.layers.values())
    assert bits <= mean_bits * sum(layer.codes.numel() for layer in model.layers.values())
    one_width = quantize(teacher, images, activations=8, weights=int(mean_bits))
    errors = [float((m(images) - teacher(images)).square().mean()) for m in (model, one_width)]
    assert errors[0] <= errors[1]
    assert [step.index for step in told if step.job == "sensitivity"] == list(range(1, 4 * len(WIDTHS) + 1))


def test_layers_that_are_named_and_the_ends_keep_their_widths(teacher: Teacher, images: Tensor) -> None:
    asked = {"3": Widths(weights=5), "6": Widths(activations=3)}
    model = quantize(teacher, images, activations=4, mean_bits=6.5, ends=8, layers=asked)
    bits = {path: layer.bits for path, layer in model.layers.items()}
    assert (bits["0"], bits["3"], bits["9"]) == (8, 5, 8)
    rows = {row.name: row.bits for row in model.table if row.operation.startswith("conv2d")}
    assert rows["6"] == f"{bits['6']} / 3"
    assert rows["0"] == "8 / 8"


def test_without_images_nothing_can_be_measured(teacher: Teacher) -> None:
    with pytest.raises(DataError, match="which layers need more bits is measured on images"):
        quantize(teacher, None, calibration="bn", mean_bits=4)
    with pytest.raises(DataError, match="and the source gives none"):
        sensitivities(prepare(teacher, QuantizationSpec()), StoredImages(torch.zeros(0, 3, 8, 8)))


def test_split_channels_are_measured_as_they_will_be_rounded(teacher: Teacher, images: Tensor) -> None:
    """Halves stand a part of a step apart, and the step hangs on the width: what a network of that width loses."""
    asked = QuantizationSpec(split_channels=0.3)
    found = sensitivities(prepare(teacher, asked), StoredImages(images))
    x = teacher.input.normalize(images)
    for bits in (2, 4):
        prepared = prepare(teacher, QuantizationSpec(weights=bits, split_channels=0.3))
        answers = prepared.graph(x).double().log_softmax(1)
        layer, path = prepared.weights["3"], "3"
        codes = quantize(teacher, images, weights=bits, split_channels=0.3).layers[path].weight
        layer.weight.data.copy_(codes)
        changed = prepared.graph(x).double().log_softmax(1)
        expected = torch.nn.functional.kl_div(changed, answers, reduction="batchmean", log_target=True)
        assert found[path][bits] == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-9)
