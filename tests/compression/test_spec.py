"""What may be asked for, and how numbers are laid out."""

from typing import Any

import numpy as np
import pytest

from dfqlab.compression.spec import INPUT_BITS, Grid, QuantizationSpec
from dfqlab.errors import ConfigurationError, QuantizationError

pytestmark = pytest.mark.traces  # a shape check would catch most of what is refused here before we answer


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_from_2_to_8_has_its_grids(bits: int) -> None:
    spec = QuantizationSpec(weights=bits, activations=10 - bits)
    weights, activations = spec.weight_grid, spec.activation_grid
    assert (weights.quant_min, weights.quant_max) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (activations.quant_min, activations.quant_max) == (0, 2 ** (10 - bits) - 1)
    assert (weights.bits, weights.symmetric, weights.granularity) == (bits, True, "per_channel")
    assert (activations.bits, activations.symmetric, activations.granularity) == (10 - bits, False, "per_tensor")
    assert weights.quant_max - weights.quant_min + 1 == 2**bits
    assert spec.label == f"W{bits}A{10 - bits}"


@pytest.mark.parametrize("bits", [0, 1, 9, -4, 16, 4.5, 4.0, True, False, "4", None, np.int64(4), float("nan")])
@pytest.mark.parametrize("which", ["weights", "activations"])
def test_any_other_width_is_refused(which: str, bits: Any) -> None:
    with pytest.raises(QuantizationError, match=f"{which}=.*: bits are an integer from 2 to 8"):
        QuantizationSpec(**{which: bits})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calibration": "mes"}, "calibration='mes': did you mean 'mse'"),
        ({"calibration": "MinMax"}, "did you mean 'minmax'"),
        ({"rounding": "adaround"}, "rounding='adaround': .*nearest"),
        ({"placement": "deploy"}, "placement='deploy': did you mean 'deployable'"),
        ({"calibration": None}, "calibration=None: known: minmax, mse"),
    ],
)
def test_an_unknown_choice_gets_the_near_ones(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        QuantizationSpec(**changes)


def test_a_spec_comes_back_from_its_dictionary() -> None:
    spec = QuantizationSpec(weights=3, activations=5, calibration="minmax")
    assert QuantizationSpec(**spec.as_dict()) == spec


def test_the_default_is_eight_bits_everywhere() -> None:
    assert QuantizationSpec().label == "W8A8"
    assert INPUT_BITS == 8
    assert Grid(8, symmetric=False, granularity="per_tensor").quant_max == 255
