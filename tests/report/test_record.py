"""`report.json`: the page's numbers, under keys that stay."""

import json
import math
from dataclasses import replace

import pytest

from dfqlab.report import RunReport
from dfqlab.report.record import record


def test_the_keys_are_these(content: RunReport) -> None:
    assert list(record(content)) == [
        "format", "sentence", "teacher", "fingerprint", "parameters", "input_size", "classes", "label", "weights",
        "activations", "calibration", "equalization", "rounding", "judged_on", "judged_images", "teacher_accuracy",
        "rows", "used", "sizes", "latency", "certificate", "images", "placement", "command", "versions", "warnings",
        "diversity", "diversity_layer", "judgements", "beliefs", "openvino", "chains", "batch_norms", "contradictions",
    ]  # fmt: skip


def test_values_stand_where_one_looks_for_them(content: RunReport) -> None:
    numbers = record(content)
    assert numbers["rows"][2]["agreement"] == {"value": 0.978, "low": 0.97, "high": 0.984}
    assert numbers["certificate"]["checks"][3] == {
        "name": "add", "operator": "QLinearAdd", "codes": 98_304, "differences": 7, "worst": 1,
    }  # fmt: skip
    assert numbers["images"]["loss_curve"] == [[1, 3.21], [2, 1.5], [503, 0.0421]]
    assert numbers["batch_norms"]["layers"] == list(content.pictures.bn_layers)
    assert numbers["batch_norms"]["distances"]["zeroq"] == [0.1, 0.2, 0.3]
    assert numbers["sentence"] == content.sentence


def test_what_was_not_measured_is_null(content: RunReport) -> None:
    numbers = record(replace(content, latency=None, certificate=None, judged_on=None, teacher_accuracy=None))
    assert [numbers[key] for key in ("latency", "certificate", "judged_on", "teacher_accuracy")] == [None] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null(content: RunReport, value: float) -> None:
    images = replace(content.images, last_loss=value, loss_curve=((1, value),))
    numbers = json.loads(json.dumps(record(replace(content, images=images)), allow_nan=False))
    assert numbers["images"]["last_loss"] is None
    assert numbers["images"]["loss_curve"] == [[1, None]]
    assert numbers["batch_norms"]["distances"]["digits"] == [0.2, None, 0.1]
