"""The models that are timed are those that the table names, and the page says what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest

import dfqlab
from benchmarks import runtime_speed, runtime_table

pytestmark = pytest.mark.traces


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Of a small network, which takes no time."""
    return runtime_speed.measure(dfqlab.load_teacher("digits/resnet"), runs=3)


def test_every_model_is_timed_in_every_runtime(measured: dict[str, Any]) -> None:
    for found in measured["runtimes"].values():
        assert list(found) == list(measured["bytes"]) == ["float", "W8A8", "W4A4", "W4A4, small file"]
        assert found["float"]["times as fast as"]["float"]["median"] == 1
        assert all(model["milliseconds"]["rounds"] == 3 for model in found.values())
    assert list(measured["runtimes"]) == ["onnxruntime", "OpenVINO"]
    assert measured["bytes"]["W4A4, small file"] < measured["bytes"]["W4A4"]


def test_batch_norms_remember_what_noise_did_to_them() -> None:
    teacher = runtime_speed.resnet18()
    variances = [float(layer.running_var.mean()) for name, layer in teacher.module.named_modules() if "bn1" in name]
    assert all(variance != 1 for variance in variances)
    assert not teacher.module.training


def test_the_page_says_what_was_measured_and_what_was_not(tmp_path: Path, measured: dict[str, Any]) -> None:
    assert "not measured" in runtime_table.section(tmp_path)
    ratios = measured["runtimes"]["onnxruntime"]["W4A4"]["times as fast as"]
    ratios["float"]["median"], ratios["W8A8"]["median"] = 2.0, 0.8
    about = {"device": {"name": "mine"}, "versions": {"onnxruntime": "1", "openvino": "2"}, "date": "today"}
    (tmp_path / "runtime_speed.json").write_text(json.dumps({"devices": {"mine": about | measured}}))
    page = runtime_table.section(tmp_path)
    assert "| at least 2 | 2, reached |" in page
    assert "| at most 1.1 | 1.25, missed |" in page
    assert page.count("\n| W") == 3
