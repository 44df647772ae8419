"""The ONNX file: its structure, what it says of itself, and that it computes what torch computes."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from onnx import numpy_helper
from torch import Tensor, nn

from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.deployment import OnnxModel, export_onnx
from dfqlab.deployment.export import METADATA_KEY, to_onnx
from dfqlab.errors import DeploymentError, OutputError
from dfqlab.images import Noise
from dfqlab.measures import sqnr
from dfqlab.teachers import Teacher, load_teacher

MakeTeacher = Callable[..., Teacher]
Models = dict[int, CompressedModel]


def compressed(teacher: Teacher, weights: int, activations: int) -> CompressedModel:
    noise = Noise(teacher.input, 32)
    return quantize(teacher, noise, weights=weights, activations=activations, calibration="minmax")


@pytest.fixture(scope="module")
def models(mixed: Teacher) -> Models:
    """By their bits: W4A4 and W8A8."""
    return {bits: compressed(mixed, bits, bits) for bits in (4, 8)}


@pytest.fixture(scope="module")
def exported(models: Models) -> dict[int, "Graph"]:
    return {bits: Graph(to_onnx(model)) for bits, model in models.items()}


class Graph:
    """An ONNX model, and ways to walk through it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.nodes = list(proto.graph.node)
        self.values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.writer = {name: node for node in self.nodes for name in node.output}
        for node in self.nodes:
            if node.op_type == "Constant":
                self.values[node.output[0]] = numpy_helper.to_array(onnx.helper.get_attribute_value(node.attribute[0]))

    def of(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def weight_of(self, node: onnx.NodeProto) -> onnx.NodeProto:
        return self.writer[node.input[1]]


@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_standard_operators_of_opset_21_are_used(exported: dict[int, Graph], bits: int) -> None:
    proto = exported[bits].proto
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 21)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions


def test_activations_are_quantized_clipped_dequantized_in_this_order(exported: dict[int, Graph]) -> None:
    graph = exported[4]
    first, *others = graph.of("QuantizeLinear")
    assert graph.readers(first.output[0])[0].op_type == "DequantizeLinear"  # the input: 8 bits
    assert len(others) >= 10
    for node in others:
        (clip,) = graph.readers(node.output[0])
        assert clip.op_type == "Clip"
        low, high = (graph.values[name] for name in clip.input[1:])
        assert low.dtype == high.dtype == np.uint8
        assert low == 0
        assert 0 < high <= 15
        readers = graph.readers(clip.output[0])
        assert readers
        for back in readers:
            assert back.op_type == "DequantizeLinear"
            assert list(back.input[1:]) == list(node.input[1:])  # the same scale and zero point
    for node in [first, *others]:
        scale, zero_point = (graph.values[name] for name in node.input[1:])
        assert scale.dtype == np.float32
        assert zero_point.dtype == np.uint8


def test_at_8_bits_nothing_is_clipped_but_by_the_container(exported: dict[int, Graph]) -> None:
    assert exported[8].of("QuantizeLinear")
    assert not exported[8].of("Clip")


@pytest.mark.parametrize("bits", [4, 8])
def test_no_activation_function_is_left_in_float(exported: dict[int, Graph], bits: int) -> None:
    graph = exported[bits]
    assert not graph.of("Relu")
    assert {graph.writer[clip.input[0]].op_type for clip in graph.of("Clip")} <= {"QuantizeLinear"}


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (8, -128, 127)])
def test_weights_are_int8_and_biases_int32_with_zero_points_spelled_out(
    exported: dict[int, Graph], models: Models, bits: int, low: int, high: int
) -> None:
    graph, layers = exported[bits], list(models[bits].layers.values())
    weighted = graph.of("Conv", "Gemm", "MatMul")
    assert len(weighted) == len(layers) == 10
    for node, layer in zip(weighted, layers, strict=True):
        x, weight, bias = (graph.writer[name] for name in node.input)
        assert [n.op_type for n in (x, weight, bias)] == ["DequantizeLinear"] * 3
        codes, w_scale, w_zero = (graph.values[name] for name in weight.input)
        assert codes.dtype == w_zero.dtype == np.int8
        assert np.array_equal(codes, layer.codes.numpy())
        assert low <= codes.min() < 0 < codes.max() <= high
        assert w_scale.shape == w_zero.shape == (len(codes),)
        assert not w_zero.any()
        bias_codes, bias_scale, bias_zero = (graph.values[name] for name in bias.input)
        assert bias_codes.dtype == bias_zero.dtype == np.int32
        assert not bias_zero.any()
        x_scale = graph.values[x.input[1]]
        assert np.array_equal(bias_scale, x_scale * w_scale)  # the grid of the sum: integers add up


@pytest.mark.parametrize("bits", [4, 8])
def test_metadata_tells_input_classes_and_origin(exported: dict[int, Graph], mixed: Teacher, bits: int) -> None:
    (entry,) = exported[bits].proto.metadata_props
    assert entry.key == METADATA_KEY
    facts = json.loads(entry.value)
    assert facts["input"]["size"] == [3, 16, 16]
    assert facts["input"]["mean"] == list(mixed.input.mean)
    assert facts["input"]["std"] == list(mixed.input.std)
    assert facts["input"]["range"] == [0.0, 1.0]
    assert facts["classes"] == ["0", "1", "2", "3", "4"]
    assert (facts["spec"]["weights"], facts["spec"]["activations"]) == (bits, bits)
    assert facts["provenance"]["fingerprint"] == mixed.fingerprint


@pytest.mark.parametrize("bits", [4, 8])
def test_pixels_go_in_as_they_are(models: Models, pixels: Tensor, bits: int) -> None:
    model = models[bits]
    run = OnnxModel.of(model)
    expected = model(pixels)
    usual = expected.mean(0)  # what this network says of any image tells nothing
    assert sqnr(expected - usual, run(pixels) - usual) > 40
    assert sqnr(expected - usual, run(model.input.normalize(pixels)) - usual) < 5  # normalised twice


def test_a_float_teacher_is_exported_as_it_is(mixed: Teacher, pixels: Tensor) -> None:
    proto = to_onnx(mixed)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in proto.graph.node}
    expected = mixed(pixels)
    assert torch.allclose(OnnxModel(proto)(pixels), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert "spec" not in json.loads(proto.metadata_props[0].value)


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet", "digits/vgg"])
def test_the_embedded_teachers_are_exported_as_they_are(name: str) -> None:
    teacher = load_teacher(name)
    images = next(Noise(teacher.input, 16, 3, clipped=True).batches(16)).images
    expected = teacher(images)
    assert torch.allclose(OnnxModel.of(teacher)(images), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_any_number_of_images_goes_in_and_each_is_judged_alone(exported: dict[int, Graph], pixels: Tensor) -> None:
    run = OnnxModel(exported[4].proto)
    together = run(pixels)
    assert together.shape == (7, 5)
    for count in (1, 2):
        assert torch.equal(run(pixels[:count]), together[:count])


def test_the_same_model_gives_the_same_bytes_and_no_trace_of_the_machine(models: Models, tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b" / "c.onnx"
    assert export_onnx(models[4], first) == first
    export_onnx(models[4], second)
    content = first.read_bytes()
    assert second.read_bytes() == content
    for trace in (str(Path.home()), str(Path(__file__).parents[2]), str(tmp_path), "site-packages", ".py", "forward("):
        assert trace.encode() not in content


def test_a_file_is_what_the_model_in_memory_is(mixed: Teacher, tmp_path: Path) -> None:
    path = export_onnx(mixed, tmp_path / "teacher.onnx")
    assert path.read_bytes() == to_onnx(mixed).SerializeToString(deterministic=True)


def test_a_place_that_cannot_be_written_is_an_error(mixed: Teacher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(mixed, tmp_path / "file" / "model.onnx")


class Opaque(nn.Module):
    """Nothing that torch.fx can follow: it asks for the type of what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is torch.fx.Proxy:
            raise TypeError("not to be traced")
        y: Tensor = self.inner(x) * torch.sigmoid(x)
        return y


def test_an_opaque_leaf_stays_float_and_runs(make_teacher: MakeTeacher, pixels: Tensor) -> None:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Opaque(), nn.Conv2d(8, 8, 3), *head)
    model = compressed(make_teacher(module, leaves=("2",)), 8, 8)
    graph = Graph(to_onnx(model))
    kinds = [graph.writer[node.input[1]].op_type if node.input[1] in graph.writer else "" for node in graph.of("Conv")]
    assert Counter(kinds) == {"DequantizeLinear": 2, "": 1}  # the leaf's own weights are plain numbers
    assert sqnr(model(pixels), OnnxModel(graph.proto)(pixels)) > 30


def test_squeeze_and_excitation_and_hard_swish_are_exported_and_run(make_teacher: MakeTeacher) -> None:
    module = torchvision.models.mobilenet_v3_small(num_classes=5, width_mult=0.5)
    teacher = make_teacher(module, size=(3, 32, 32))
    model = compressed(teacher, 8, 8)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    run = OnnxModel.of(model)
    assert sqnr(model(images), run(images)) > 20
    assert torch.equal(run(images[:1]), run(images)[:1])


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_torch_cannot_export_is_an_error(make_teacher: MakeTeacher) -> None:
    module = nn.Sequential(Undecided(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    with pytest.raises(DeploymentError, match=r"torch cannot export this network to ONNX: .+"):
        to_onnx(make_teacher(module, leaves=("0",)))


def test_a_pooling_with_a_divisor_of_its_own_is_refused(make_teacher: MakeTeacher) -> None:
    # torch's exporter drops the divisor without a word.
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(196, 5))
    with pytest.raises(DeploymentError, match="divisor_override=3"):
        to_onnx(make_teacher(module))


class Pooled(nn.Module):
    """A pooling whose last windows reach over the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.avg_pool2d(F.relu(self.conv(x)), 3, 2, ceil_mode=True).flatten(1))
        return logits


def test_a_pooling_over_the_edge_averages_what_is_there(make_teacher: MakeTeacher, pixels: Tensor) -> None:
    # onnxruntime's integer kernel would divide by nine at the edge too, did the file not say that pads do not count.
    model = compressed(make_teacher(Pooled()), 8, 8)
    assert sqnr(model(pixels), OnnxModel.of(model)(pixels)) > 45
