"""Ranges over an activation: numbers against a histogram of its own, controls one by one."""

import gc
import re
import weakref

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import dfqlab.lab.widgets.ranges as ranges
from dfqlab.compression.calibration import calibrate
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.errors import DataError
from dfqlab.images import StoredImages
from dfqlab.lab.panels import Explorer
from dfqlab.lab.widgets import range_rules
from dfqlab.teachers import Teacher


def batch(seed: int, width: float) -> Tensor:
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * width


IMAGES = {"zeroq": batch(0, 0.6), "<real>": batch(1, 1.0)}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4),
    )  # fmt: skip
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.5, generator=generator)
    return Teacher.from_module(module, size=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3, classes=4)


@pytest.fixture(scope="module")
def explorer(teacher: Teacher) -> Explorer:
    return range_rules(teacher, IMAGES)


class Kept:
    """Stands in for the figure and keeps what it was asked to draw."""

    def __call__(self, values: Tensor, quantized: Tensor, clipped: Tensor, marks: Tensor, *, of: str) -> Figure:
        self.values, self.quantized, self.clipped, self.marks, self.of = values, quantized, clipped, marks, of
        return Figure(figsize=(0.1, 0.1))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept()
    monkeypatch.setattr(ranges, "clipped_values", kept)
    return kept


def told(sentence: str) -> tuple[float, float, float, float]:
    numbers = re.search(r"range (-?[\d.]+) to ([\d.]+); .* ([\d.]+) % .* (-?[\d.]+) dB", sentence)
    assert numbers is not None
    low, high, share, decibels = map(float, numbers.groups())
    return low, high, share, decibels


def first_layer(teacher: Teacher, images: Tensor) -> Tensor:
    with torch.no_grad():
        seen: Tensor = teacher.module[:3](teacher.input.normalize(images))  # type: ignore[index]
    return seen.flatten()


@pytest.mark.parametrize("name", ["layer", "bits", "rule", "shown"])
def test_every_value_of_every_control_is_drawn(name: str, explorer: Explorer) -> None:
    view = explorer.view()
    for position in explorer.controls[name].positions:
        view.controls[name].value = position
        assert view.error is None
        assert str(position).strip("<>") in view.page.value
    assert "<real>" not in view.page.value


def test_only_layers_whose_range_a_rule_decides_are_offered(explorer: Explorer) -> None:
    assert explorer.controls["layer"].positions == ("0", "3")  # neither the input nor the average


def test_minmax_of_the_first_source_ends_where_its_values_do(teacher: Teacher, explorer: Explorer, drawn: Kept) -> None:
    highest = float(first_layer(teacher, IMAGES["zeroq"]).max())
    low, high, share, _ = told(explorer.drawing(layer="0", bits=8, rule="minmax").sentence)
    assert (low, share) == (0.0, 0.0)
    assert high == pytest.approx(highest, abs=0.006)
    assert float(drawn.marks[-1]) == pytest.approx(highest, rel=1e-5)
    assert drawn.of == "output of 0"


def test_what_is_shown_is_the_other_source_on_the_ranges_of_the_first(
    teacher: Teacher, explorer: Explorer, drawn: Kept
) -> None:
    own = told(explorer.drawing(layer="0", bits=4, rule="minmax").sentence)
    other = told(explorer.drawing(layer="0", bits=4, rule="minmax", shown="<real>").sentence)
    assert other[:2] == own[:2]
    torch.testing.assert_close(drawn.values, first_layer(teacher, IMAGES["<real>"]))
    step = own[1] / 15
    beyond = 100 * float((drawn.values > own[1] + step / 2).double().mean())
    assert other[2] == pytest.approx(beyond, abs=0.1)
    assert beyond > 1
    assert bool(drawn.clipped.any())


def test_the_numbers_are_those_of_torchs_own_op(explorer: Explorer, drawn: Kept) -> None:
    decibels = told(explorer.drawing(layer="3", bits=3, rule="mse").sentence)[3]
    step = float(drawn.marks.diff().mean())
    expected = torch.fake_quantize_per_tensor_affine(drawn.values, step, round(float(-drawn.marks[0]) / step), 0, 7)
    torch.testing.assert_close(drawn.quantized, expected, atol=1e-5, rtol=1e-5)
    x, error = drawn.values.double(), (drawn.quantized - drawn.values).double()
    assert decibels == pytest.approx(10 * float((x.square().sum() / error.square().sum()).log10()), abs=0.051)


def test_mse_loses_no_more_than_any_other_rule_on_its_own_images(explorer: Explorer) -> None:
    for layer in explorer.controls["layer"].positions:
        ratios = {
            rule: told(explorer.drawing(layer=layer, bits=3, rule=rule).sentence)[3]
            for rule in explorer.controls["rule"].positions
        }
        assert ratios["mse"] > max(ratios.values()) - 0.2, ratios  # it reads a histogram, not the values


def test_a_network_without_a_range_to_decide_is_refused() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    alone = Teacher.from_module(module, size=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3, classes=4)
    with pytest.raises(DataError, match="no activation whose range a rule decides"):
        range_rules(alone, IMAGES)


def test_two_settings_are_compared_with_one_look_each_and_older_ones_are_let_go(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, drawn: Kept
) -> None:
    networks: list[weakref.ref[PreparedNetwork]] = []

    def watched(prepared: PreparedNetwork, source: StoredImages) -> None:
        networks.append(weakref.ref(prepared))
        calibrate(prepared, source)

    monkeypatch.setattr(ranges, "calibrate", watched)
    explorer = range_rules(teacher, IMAGES)
    for bits in (3, 4, 3, 4):
        explorer.drawing(bits=bits)
    assert len(networks) == 2
    for bits in (5, 6):
        explorer.drawing(bits=bits)
    gc.collect()
    assert [network() is None for network in networks] == [True, True, False, False]


def test_no_source_and_images_of_another_size_are_refused(teacher: Teacher) -> None:
    with pytest.raises(DataError, match="one source or more"):
        range_rules(teacher, {})
    with pytest.raises(DataError, match=r"takes images \(n, 3, 8, 8\)"):
        range_rules(teacher, {"zeroq": torch.rand(2, 3, 4, 4)})
