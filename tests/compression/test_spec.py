"""What may be asked for, and how numbers are laid out."""

import json
from typing import Any, get_args

import numpy as np
import pytest

from dfqlab.compression.spec import INPUT_BITS, Calibration, Grid, QuantizationSpec, Reconstruction, Widths
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
        ({"rounding": "neares"}, "rounding='neares': .*nearest"),
        ({"placement": "deploy"}, "placement='deploy': did you mean 'deployable'"),
        ({"calibration": None}, "calibration=None: known: aciq, bn, ema, image_mean, kl, minmax, mse, percentile"),
    ],
)
def test_an_unknown_choice_gets_the_near_ones(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        QuantizationSpec(**changes)


def test_a_spec_comes_back_from_its_dictionary() -> None:
    spec = QuantizationSpec(
        weights=3, activations=5, calibration="minmax", rounding="qdrop", ends=8, mean_bits=3.5,
        layers={"conv1": Widths(weights=4), "fc": Widths(2, 3)}, reconstruction=Reconstruction(iterations=7),
    )  # fmt: skip
    assert QuantizationSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


def test_a_rule_that_has_no_word_for_weights_leaves_them_to_mse() -> None:
    rules = {name: QuantizationSpec(calibration=name).weight_rule for name in get_args(Calibration)}
    assert rules == {
        "minmax": "minmax", "percentile": "percentile", "mse": "mse", "aciq": "aciq",
        "ema": "mse", "image_mean": "mse", "kl": "mse", "bn": "mse",
    }  # fmt: skip
    assert QuantizationSpec(calibration="bn", weight_calibration="minmax").weight_rule == "minmax"


def test_equalization_brings_its_bias_correction_unless_told_otherwise() -> None:
    assert QuantizationSpec().corrects == "none"
    assert QuantizationSpec(equalization="dfq").corrects == "analytic"
    assert QuantizationSpec(equalization="dfq", bias_correction="none").corrects == "none"
    assert QuantizationSpec(bias_correction="empirical").corrects == "empirical"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"percentile": 50}, ConfigurationError, "expected more than 50"),
        ({"percentile": 100.5}, ConfigurationError, "at most 100"),
        ({"mean_bits": 1.9}, QuantizationError, "mean_bits=1.9: a weight takes from 2 to 8 bits"),
        ({"ends": 9}, QuantizationError, "ends=9: bits are"),
        ({"equalization": "cle"}, ConfigurationError, "equalization='cle'"),
        ({"bias_correction": "analytical"}, ConfigurationError, "did you mean 'analytic'"),
        ({"granularity": None}, ConfigurationError, "granularity=None"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        QuantizationSpec(**changes)


@pytest.mark.parametrize("bits", [1, 9, 2.5, True])
@pytest.mark.parametrize("which", ["weights", "activations"])
def test_widths_of_a_layer_are_widths(which: str, bits: Any) -> None:
    with pytest.raises(QuantizationError, match=f"{which}="):
        Widths(**{which: bits})


def test_the_default_is_eight_bits_everywhere() -> None:
    assert QuantizationSpec().label == "W8A8"
    assert INPUT_BITS == 8
    assert Grid(8, symmetric=False, granularity="per_tensor").quant_max == 255


def test_an_unknown_loss_gets_the_near_one() -> None:
    with pytest.raises(ConfigurationError, match="loss='fischer': did you mean 'fisher'"):
        Reconstruction(loss="fischer")  # type: ignore[arg-type]
