"""What is seen of a layer is what the graph has and what the runtime computes."""

import onnx
import pytest
import torch
from torch import Tensor, nn

from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.deployment.certificate import fuse
from dfqlab.deployment.export import to_onnx
from dfqlab.errors import ConfigurationError, DataError
from dfqlab.figures import Station
from dfqlab.lab.exported import executed_layer, layer_path
from dfqlab.teachers import Teacher

pytestmark = pytest.mark.traces

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Forked(nn.Module):
    """Two convolutions on one tensor, so that its codes have two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        logits: Tensor = self.head((self.left(x) + torch.relu(self.right(x))).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    module, generator = Forked(), torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return Teacher.from_module(module, size=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3, classes=3)


@pytest.fixture(scope="module")
def model(teacher: Teacher) -> CompressedModel:
    return quantize(teacher, IMAGES, weights=4, activations=5, calibration="minmax")


@pytest.fixture(scope="module")
def exported(model: CompressedModel) -> onnx.ModelProto:
    return to_onnx(model)


def test_the_way_in_the_file_goes_through_reals(exported: onnx.ModelProto) -> None:
    assert layer_path(exported, "right") == [
        Station("DequantizeLinear", "float32"),
        Station("Conv", "float32", ("int8 weights, 4x2x1x1", "int32 biases, 4")),
        Station("QuantizeLinear", "uint8"),
        Station("Clip", "uint8", ("0 to 31",)),
        Station("DequantizeLinear", "float32"),
    ]


def test_the_way_that_is_executed_stays_with_integers(exported: onnx.ModelProto) -> None:
    fused = fuse(exported)
    for layer in ("stem", "left", "right"):
        path = layer_path(fused, layer)
        assert [station.operation for station in path] == ["QLinearConv", "Clip"]
        assert {station.gives for station in path} == {"uint8"}
    assert layer_path(fused, "stem")[0].holds == ("int8 weights, 4x3x3x3", "int32 biases, 4")


def test_at_eight_bits_nothing_is_clipped(teacher: Teacher) -> None:
    eight = to_onnx(quantize(teacher, IMAGES, calibration="minmax"))
    assert [station.operation for station in layer_path(fuse(eight), "stem")] == ["QLinearConv"]


def test_a_layer_that_is_no_convolution_is_told_which_there_are(exported: onnx.ModelProto) -> None:
    with pytest.raises(ConfigurationError, match="no convolution 'lefd' in the graph; did you mean 'left'"):
        layer_path(exported, "lefd")


@pytest.mark.parametrize("layer", ["stem", "left", "right"])
def test_codes_are_those_of_the_integer_model(model: CompressedModel, exported: onnx.ModelProto, layer: str) -> None:
    """By the formula in float64: what the model's own integers make of what the runtime read."""
    codes, conv = executed_layer(model, exported, layer, IMAGES), model.layers[layer]
    x = (codes.x.double() - codes.x_zero_point) * codes.x_scale.double()
    weight = conv.codes.double() * codes.weight_scale.double().reshape(-1, 1, 1, 1)
    assert conv.bias_codes is not None
    step = codes.x_scale.double() * codes.weight_scale.double()
    y = torch.nn.functional.conv2d(x, weight, conv.bias_codes.double() * step, groups=x.shape[1] // weight.shape[1])
    expected = (torch.round(y / codes.y_scale.double()) + codes.y_zero_point).clamp(0, 255)
    assert expected.unique().numel() > 4
    assert codes.y.dtype == codes.x.dtype == torch.uint8
    assert (expected - codes.y.double()).abs().max() == 0


def test_the_first_convolution_reads_the_images(model: CompressedModel, exported: onnx.ModelProto) -> None:
    codes = executed_layer(model, exported, "stem", IMAGES)
    seen = (codes.x.double() - codes.x_zero_point) * codes.x_scale.double()
    difference = (seen - model.input.normalize(IMAGES).double()).abs().max()
    assert difference <= codes.x_scale.double() / 2 + 1e-6


def test_a_layer_that_is_not_executed_and_images_that_do_not_fit_are_refused(
    model: CompressedModel, exported: onnx.ModelProto
) -> None:
    with pytest.raises(ConfigurationError, match="no convolution 'head' is executed in integers"):
        executed_layer(model, exported, "head", IMAGES)
    for images in (IMAGES[:0], IMAGES[..., 1:]):
        with pytest.raises(DataError, match=r"expected images \(n, 3, 8, 8\)"):
            executed_layer(model, exported, "stem", images)


def test_the_graph_that_was_given_stays_as_it_is(model: CompressedModel, exported: onnx.ModelProto) -> None:
    before = exported.SerializeToString(deterministic=True)
    layer_path(exported, "stem")
    executed_layer(model, exported, "stem", IMAGES)
    assert exported.SerializeToString(deterministic=True) == before
