"""OpenVINO computes the integers of the file, and its certificate tells where it does not."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.deployment import (
    Certificate,
    LayerCheck,
    OnnxModel,
    OpenVinoModel,
    certificate,
    certify,
    openvino,
    reference,
)
from dfqlab.deployment.export import to_onnx
from dfqlab.deployment.runtime import saturation_warning
from dfqlab.errors import ConfigurationError, DeploymentError
from dfqlab.images import Noise
from dfqlab.measures import sqnr
from dfqlab.teachers import Teacher, load_teacher

pytestmark = pytest.mark.traces

MakeTeacher = Callable[..., Teacher]


def compressed(teacher: Teacher, weights: int, activations: int) -> CompressedModel:
    if weights == 8 and saturation_warning():
        pytest.skip("no VNNI: products of 8-bit weights may saturate on this processor")
    noise = Noise(teacher.input, 32)
    return quantize(teacher, noise, weights=weights, activations=activations, calibration="minmax")


def fresh_noise(teacher: Teacher) -> Noise:
    """Valid pixels, other ones than those of the calibration."""
    return Noise(teacher.input, 160, seed=1, clipped=True)


@pytest.fixture(scope="module")
def resnet() -> CompressedModel:
    """Three bits: one rounding more or less in front of an addition is a large part of a code."""
    return compressed(load_teacher("digits/resnet"), 3, 3)


@pytest.fixture(scope="module")
def exported(resnet: CompressedModel) -> onnx.ModelProto:
    return to_onnx(resnet)


def images_for(model: CompressedModel, count: int) -> Tensor:
    return torch.rand(count, *model.input.size, generator=torch.Generator().manual_seed(0))


def certified(model: CompressedModel, exported: onnx.ModelProto) -> Certificate:
    assert model.teacher is not None
    return certify(model, fresh_noise(model.teacher), runtime="openvino", exported=exported)


# What it computes.


def test_additions_keep_the_rounding_of_what_they_add(
    resnet: CompressedModel, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_for(resnet, 32)
    expected = resnet(images)
    assert sqnr(expected, OpenVinoModel(exported)(images)) > 60
    monkeypatch.setattr(openvino, "_keep_roundings", lambda network: None)
    assert sqnr(expected, OpenVinoModel(exported)(images)) < 30  # else there is nothing to keep any more


def test_it_executes_integers_where_the_file_holds_them(resnet: CompressedModel, exported: onnx.ModelProto) -> None:
    layers = OpenVinoModel(exported).executed
    assert len(layers) == len(resnet.layers)
    assert all(layer.in_integers for layer in layers)
    assert resnet.teacher is not None
    assert not any(layer.in_integers for layer in OpenVinoModel.of(resnet.teacher).executed)


def test_the_thread_count_reaches_the_runtime(exported: onnx.ModelProto) -> None:
    for asked, threads in ((None, 1), (2, 2)):
        model = OpenVinoModel(exported, threads=asked)
        assert model.threads == model.compiled.get_property("INFERENCE_NUM_THREADS") == threads


def test_floats_are_computed_in_float32_on_every_processor(exported: onnx.ModelProto) -> None:
    assert OpenVinoModel(exported).compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_nothing_is_asked_of_a_network(exported: onnx.ModelProto, tmp_path: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(exported.SerializeToString())
    code = """
        import socket, sys
        def refuse(*arguments): raise SystemExit(f"asked for {arguments}")
        for name in ("connect", "connect_ex", "sendto"):
            setattr(socket.socket, name, refuse)
        socket.getaddrinfo = refuse
        import torch
        from dfqlab.deployment import OpenVinoModel
        print(OpenVinoModel(sys.argv[1])(torch.zeros(1, 1, 16, 16)).shape)
    """
    lines = "\n".join(line.strip() if "setattr" not in line else "    " + line.strip() for line in code.splitlines())
    command = [sys.executable, "-c", lines, str(tmp_path / "model.onnx")]
    assert subprocess.check_output(command, text=True).strip() == "torch.Size([1, 10])"


# The certificate.


@pytest.mark.parametrize("widths", [(8, 8), (6, 6), (4, 8), (4, 4), (3, 3)], ids=lambda w: f"W{w[0]}A{w[1]}")
@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_it_holds_for_embedded_teachers(name: str, widths: tuple[int, int]) -> None:
    teacher = load_teacher(f"digits/{name}")
    model = compressed(teacher, *widths)
    found = certify(model, fresh_noise(teacher), runtime="openvino")
    assert found.holds, found.sentence
    assert found.integer_convolutions == found.convolutions > 0
    assert {c.name for c in found.checks} >= set(model.layers)
    assert found.sqnr > 30
    assert found.sentence.startswith("Holds: OpenVINO executes ")


def test_a_rounding_that_is_left_out_is_found(
    resnet: CompressedModel, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_keep_roundings", lambda network: None)
    found = certified(resnet, exported)
    assert found.differences == 0  # in the graph that shows its codes
    assert not found.same_logits
    assert not found.holds
    assert "other logits than the one that runs" in found.sentence


def test_one_altered_weight_is_found_in_its_layer(
    resnet: CompressedModel, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Altered(openvino.ExposedOpenVino):
        """The runtime executes another graph than the reference is given."""

        def __init__(self, exported: onnx.ModelProto, tensors: Any) -> None:
            other = onnx.ModelProto()
            other.CopyFrom(exported)
            (weight,) = (t for t in other.graph.initializer if t.name == "network.4.body.0.codes")
            codes = onnx.numpy_helper.to_array(weight).copy()
            codes.flat[0] += 1 if codes.flat[0] < 3 else -1
            weight.CopyFrom(onnx.numpy_helper.from_array(codes, weight.name))
            super().__init__(other, tensors)

    monkeypatch.setattr(certificate, "ExposedOpenVino", Altered)
    found = certified(resnet, exported)
    assert {c.name for c in found.checks if c.differences} == {"4.body.0"}
    assert not found.holds


def test_a_convolution_that_rounds_another_way_is_found(
    resnet: CompressedModel, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(accumulator: Any, multiplier: Any, zero_point: Any) -> Any:
        scaled = np.floor(accumulator.astype(np.float32) * multiplier) + int(zero_point)
        return np.clip(scaled, 0, 255).astype(zero_point.dtype)

    monkeypatch.setattr(reference, "requantize", down)
    found = certified(resnet, exported)
    assert "more than 100 in a million codes of convolutions or linear layers differ" in found.failures


def test_a_convolution_that_stays_float_is_counted(
    resnet: CompressedModel, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = OpenVinoModel(exported).executed
    layers = (replace(first, in_integers=False), *others)
    monkeypatch.setattr(OpenVinoModel, "executed", property(lambda model: layers))
    found = certified(resnet, exported)
    assert found.integer_convolutions == found.convolutions - 1
    assert found.failures == ("a convolution stayed float",)
    assert "executed in float: 1 convolution or linear layer" in found.warnings


def test_a_network_whose_last_convolution_gives_logits_is_not_all_integer(make_teacher: MakeTeacher) -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    teacher = make_teacher(nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten()))
    found = certify(compressed(teacher, 4, 4), fresh_noise(teacher), runtime="openvino")
    assert found.differences == 0
    assert (found.integer_convolutions, found.convolutions) == (1, 2)


# The verdict, from counts alone.


def verdict(differences: int = 0, worst: int = 1, near: int = 0, **changes: Any) -> Certificate:
    checks = (
        LayerCheck("c", "QLinearConv", 1_000_000, differences, worst),
        LayerCheck("a", "QLinearAdd", 1_000, near, 1),
    )
    return replace(Certificate(checks, 1, 1, 64, 1.0, 60.0, (), "openvino"), **changes)


def test_convolutions_may_differ_by_one_code_on_a_hundred_in_a_million() -> None:
    assert verdict(differences=100).holds
    assert not verdict(differences=101).holds
    assert verdict(differences=1, worst=2).failures == ("a convolution or linear layer is off by 2 codes",)
    assert not replace(verdict(differences=100), runtime="onnxruntime").holds


def test_poolings_and_additions_may_differ_on_one_in_a_hundred() -> None:
    assert verdict(near=10).holds
    assert not verdict(near=11).holds


def test_other_logits_than_those_of_the_graph_that_runs_are_too_many() -> None:
    assert not verdict(same_logits=False).holds


# What is missing.


def test_an_unknown_runtime_is_an_error(resnet: CompressedModel) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'openvino'"):
        certify(resnet, images_for(resnet, 1), runtime="openvin")  # type: ignore[arg-type]


def test_without_the_extra_the_error_names_it(exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # `import` then says that there is none
    with pytest.raises(ConfigurationError, match=r'pip install "dfqlab\[openvino\]"'):
        OpenVinoModel(exported)


def test_a_tensor_that_it_does_not_know_is_an_error_of_ours(exported: onnx.ModelProto) -> None:
    with pytest.raises(DeploymentError, match="OpenVINO cannot load the model with its codes exposed"):
        openvino.ExposedOpenVino(exported, ["nothing"])


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_one_thread_is_an_error(exported: onnx.ModelProto, threads: int) -> None:
    for runtime in (OnnxModel, OpenVinoModel):
        with pytest.raises(ConfigurationError, match=f"threads={threads}: expected 1 or more"):
            runtime(exported, threads=threads)


def test_both_runtimes_give_the_same_logits_but_for_rounding(
    resnet: CompressedModel, exported: onnx.ModelProto
) -> None:
    images = images_for(resnet, 8)
    assert sqnr(OnnxModel(exported)(images), OpenVinoModel(exported)(images)) > 60
