"""A budget of bits: shares of it against a search over all of them, and what the network made of it agrees with."""

import itertools
import re

import pytest
import torch
from torch import nn

from dfqlab.compression.allocation import sensitivities
from dfqlab.compression.insertion import prepare
from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import QuantizationSpec, Widths
from dfqlab.data import LabelledImages
from dfqlab.evaluation import evaluate
from dfqlab.images import StoredImages
from dfqlab.lab.panels import Explorer
from dfqlab.lab.widgets import bit_budget
from dfqlab.teachers import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.4, generator=generator)
    return Teacher.from_module(module, size=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3, classes=4)


@pytest.fixture(scope="module")
def images() -> StoredImages:
    return StoredImages(torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def explorer(teacher: Teacher, images: StoredImages, judge: LabelledImages) -> Explorer:
    return bit_budget(teacher, images, judge)


def test_every_budget_is_drawn(explorer: Explorer) -> None:
    view = explorer.view()
    for position in explorer.controls["budget"].positions:
        view.controls["budget"].value = position
        assert view.error is None
        assert f"{position:g} bits a weight allowed" in view.page.value


def test_budgets_go_from_two_bits_to_eight_in_quarters(explorer: Explorer) -> None:
    positions = explorer.controls["budget"].positions
    assert (positions[0], positions[-1]) == (2.0, 8.0)
    assert {b - a for a, b in itertools.pairwise(positions)} == {0.25}


@pytest.mark.parametrize("budget", [2.25, 3.5])
def test_the_sum_of_losses_is_the_least_of_all_shares_that_fit(
    teacher: Teacher, images: StoredImages, judge: LabelledImages, explorer: Explorer, budget: float
) -> None:
    network = prepare(teacher, QuantizationSpec())
    losses = sensitivities(network, images)
    sizes = [layer.weight.numel() for layer in network.weights.values()]
    fitting = {
        sum(by_bits[width] for by_bits, width in zip(losses.values(), widths, strict=True)): widths
        for widths in itertools.product(range(2, 9), repeat=len(sizes))
        if sum(size * width for size, width in zip(sizes, widths, strict=True)) <= budget * sum(sizes)
    }
    least = min(fitting)
    taken = sum(size * width for size, width in zip(sizes, fitting[least], strict=True)) / sum(sizes)
    drawing = explorer.drawing(budget=budget)
    layers = {path: Widths(weights=width) for path, width in zip(losses, fitting[least], strict=True)}
    model = quantize(teacher, images, layers=layers)
    agreement = evaluate(model, judge).agreement_interval
    assert drawing.sentence == (
        f"{budget:g} bits a weight allowed, {taken:.2f} taken: {model.packed_bytes:,} bytes, sum of losses "
        f"{least:.3g}, agreement with the teacher {agreement}."
    )
    bars = [round(bar.get_width()) for bar in drawing.figure.axes[0].patches]
    assert tuple(bars) == fitting[least]


def test_more_bits_never_lose_more(explorer: Explorer) -> None:
    losses = []
    for budget in (2.0, 2.5, 3.0, 4.0, 8.0):
        (found,) = re.findall(r"sum of losses ([\d.e+-]+),", explorer.drawing(budget=budget).sentence)
        losses.append(float(found))
    assert losses == sorted(losses, reverse=True)
