"""The grid under a weight tensor: its numbers against torch's own op, its controls one by one."""

import importlib
import itertools
import re
from collections.abc import Sequence

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dfqlab.lab.panels import Explorer
from dfqlab.lab.widgets import integer_grid


def weight(seed: int = 0) -> Tensor:
    """Six filters, each ten times as wide as the one before in all but the last."""
    x = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([0.01, 0.03, 0.1, 0.3, 1, 1]).reshape(-1, 1, 1, 1)


class Stairs:
    """Stands in for the figure and keeps what it was asked to draw."""

    def __call__(
        self, values: Tensor, quantized: Tensor, clipped: Tensor, stairs: Sequence[tuple[Tensor, Tensor]]
    ) -> Figure:
        self.values, self.quantized, self.clipped, self.stairs = values, quantized, clipped, stairs
        return Figure(figsize=(0.1, 0.1))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Stairs:
    stairs = Stairs()
    module = importlib.import_module("dfqlab.lab.widgets.integer_grid")  # its name in the package is the function
    monkeypatch.setattr(module, "staircase", stairs)
    return stairs


def decibels(sentence: str) -> float:
    found = re.search(r"([\d.]+) dB", sentence)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("name", ["bits", "symmetry", "clip", "granularity"])
def test_every_value_of_every_control_is_drawn(name: str) -> None:
    explorer = integer_grid(weight())
    view = explorer.view()
    for position in explorer.controls[name].positions[:: 4 if name == "clip" else 1]:
        view.controls[name].value = position
        assert view.error is None
        assert str(position).split("_")[0] in view.page.value


def test_every_combination_has_a_picture_to_draw(drawn: Stairs) -> None:
    explorer = integer_grid(weight())
    thinned = {name: control.positions[:: 3 if name == "bits" else 1] for name, control in explorer.controls.items()}
    for values in itertools.product(*thinned.values()):
        chosen = dict(zip(explorer.controls, values, strict=True))
        drawing = explorer.drawing(**chosen)
        assert drawn.quantized.isfinite().all()
        levels = {float(value) for _, stair in drawn.stairs for value in stair.unique()}
        assert len(drawn.stairs) == (6 if chosen["granularity"] == "per channel" else 1)
        assert len(levels) <= 2 ** chosen["bits"] * len(drawn.stairs)
        assert decibels(drawing.sentence) >= 0
    assert drawn.values.shape == drawn.quantized.shape == drawn.clipped.shape == (108,)


def test_per_channel_and_symmetric_is_torchs_own_op(drawn: Stairs) -> None:
    integer_grid(weight()).drawing(bits=4, granularity="per channel")
    rows = weight().flatten(1)
    scale = torch.maximum(rows.amax(1) / 7, -rows.amin(1) / 8)
    expected = torch.fake_quantize_per_channel_affine(rows, scale, torch.zeros(6, dtype=torch.int32), 0, -8, 7)
    torch.testing.assert_close(drawn.quantized, expected.flatten())
    assert not drawn.clipped.any()


@pytest.mark.parametrize("clip", [100, 60])
def test_per_tensor_and_affine_is_torchs_own_op(drawn: Stairs, clip: int) -> None:
    integer_grid(weight()).drawing(bits=3, symmetry="affine", clip=clip)
    low, high = float(weight().min()) * clip / 100, float(weight().max()) * clip / 100
    scale = (high - low) / 7
    expected = torch.fake_quantize_per_tensor_affine(weight().flatten(), scale, round(-low / scale), 0, 7)
    torch.testing.assert_close(drawn.quantized, expected)


def test_the_sentence_says_what_the_picture_shows(drawn: Stairs) -> None:
    sentence = integer_grid(weight()).drawing(bits=3, clip=40).sentence
    x, y = drawn.values.double(), drawn.quantized.double()
    assert decibels(sentence) == pytest.approx(10 * float(((x**2).sum() / ((y - x) ** 2).sum()).log10()), abs=0.051)
    lost = 100 * float(drawn.clipped.double().mean())
    assert lost > 1
    assert f"{lost:.1f} %" in sentence
    assert "3 bits, symmetric, per tensor" in sentence


def test_what_is_called_clipped_is_what_ended_at_an_end_of_the_grid(drawn: Stairs) -> None:
    integer_grid(weight()).drawing(bits=4, clip=50)
    outside = drawn.clipped
    step = drawn.quantized.unique().diff().min()
    assert outside.any()
    assert set(drawn.quantized[outside].unique().tolist()) <= {
        float(drawn.quantized.min()),
        float(drawn.quantized.max()),
    }
    assert (drawn.quantized - drawn.values)[~outside].abs().max() <= step / 2 * (1 + 1e-5)
    assert (drawn.quantized - drawn.values)[outside].abs().min() >= step / 2 * (1 - 1e-5)


def test_a_stair_leads_through_the_weights_of_its_channel(drawn: Stairs) -> None:
    integer_grid(weight()).drawing(bits=2, granularity="per channel")
    for (_, stair), row in zip(drawn.stairs, drawn.quantized.reshape(6, -1), strict=True):
        assert max(float((stair - value).abs().min()) for value in row) < 1e-6


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(torch.zeros(3, 4), id="all zero"),
        pytest.param(torch.full((3, 4), 0.5), id="all one value"),
        pytest.param(-torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), id="all negative"),
        pytest.param(torch.ones(1, 1), id="a single weight"),
        pytest.param(
            torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(), id="with gradient"
        ),
    ],
)
def test_odd_weights_are_drawn_too(odd: Tensor) -> None:
    explorer = integer_grid(odd)
    assert isinstance(explorer, Explorer)
    for symmetry, granularity in itertools.product(("symmetric", "affine"), ("per tensor", "per channel")):
        assert explorer.drawing(symmetry=symmetry, granularity=granularity).sentence


def test_a_scale_for_each_channel_loses_less_and_more_bits_do_too() -> None:
    explorer = integer_grid(weight())
    assert decibels(explorer.drawing(granularity="per channel").sentence) > decibels(explorer.drawing().sentence)
    told = [decibels(explorer.drawing(bits=bits).sentence) for bits in range(2, 9)]
    assert told == sorted(told)
