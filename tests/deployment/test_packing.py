"""The small file: half the bytes of its weights, the same logits, and the fast file again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import Widths
from dfqlab.deployment import OnnxModel, certify, export_onnx, packed, unpacked
from dfqlab.deployment.export import to_onnx
from dfqlab.images import Noise
from dfqlab.measures import sqnr
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


@pytest.fixture(scope="module")
def model(mixed: Teacher) -> CompressedModel:
    """Four bits, but for one layer of eight that has as many channels as its neighbours, and one of two."""
    layers = {"first.0": Widths(weights=6), "second.0": Widths(weights=2)}
    return quantize(mixed, Noise(mixed.input, 32), weights=4, activations=4, calibration="minmax", layers=layers)


@pytest.fixture(scope="module")
def exported(model: CompressedModel) -> onnx.ModelProto:
    return to_onnx(model)


def test_weights_of_at_most_four_bits_take_half_a_byte_each(exported: onnx.ModelProto, model: CompressedModel) -> None:
    stored = {tensor.name: tensor for tensor in packed(exported).graph.initializer}
    for path, layer in model.layers.items():
        tensor = stored[f"network.{path}.codes"]
        four = path != "first.0"
        assert tensor.data_type == (TensorProto.INT4 if four else TensorProto.INT8)
        assert len(tensor.raw_data) == (-(-layer.codes.numel() // 2) if four else layer.codes.numel())
        # Read by onnx's own code, which shares nothing with ours.
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), layer.codes.numpy())


def test_it_is_a_valid_model_of_the_standard_operators(exported: onnx.ModelProto) -> None:
    small = packed(exported)
    onnx.checker.check_model(small, full_check=True)
    assert [node.op_type for node in small.graph.node] == [node.op_type for node in exported.graph.node]


def test_unpacked_it_is_the_ordinary_export_byte_for_byte(exported: onnx.ModelProto) -> None:
    before = exported.SerializeToString(deterministic=True)
    assert unpacked(packed(exported)).SerializeToString(deterministic=True) == before
    assert exported.SerializeToString(deterministic=True) == before  # what was given is left as it was
    assert unpacked(exported).SerializeToString(deterministic=True) == before


def test_onnxruntime_runs_it_with_the_same_logits(
    exported: onnx.ModelProto, model: CompressedModel, pixels: Tensor
) -> None:
    # In float, as torch computes: what rounds another way in integers does so in both.
    assert sqnr(model(pixels), OnnxModel(packed(exported))(pixels)) > 40


def test_the_file_becomes_smaller_by_what_the_weights_save(model: CompressedModel, tmp_path: Path) -> None:
    plain, small = (export_onnx(model, tmp_path / f"{name}.onnx", small=name == "small") for name in ("plain", "small"))
    saved = sum(
        layer.codes.numel() // 2 + len(layer.codes) // 2  # weights, and a zero point for each channel
        for path, layer in model.layers.items()
        if path != "first.0"
    )
    lengths = 2 * len(model.layers)  # numbers of bytes, written before them, may take a byte less
    assert plain.stat().st_size - saved - lengths <= small.stat().st_size < plain.stat().st_size - 0.5 * saved


def test_what_is_unpacked_is_certified(model: CompressedModel, exported: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(packed(exported), tmp_path / "small.onnx")
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert certify(model, images, exported=unpacked(onnx.load(tmp_path / "small.onnx"))).holds


class Shared(nn.Module):
    """A convolution that is called twice, each time in front of a BatchNorm layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.conv(self.stem(x) if norm is self.norms[0] else x)).relu()
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def test_codes_that_several_layers_read_are_packed_once(make_teacher: MakeTeacher, pixels: Tensor) -> None:
    model = quantize(make_teacher(Shared()), pixels, weights=4, activations=4, calibration="minmax")
    exported = to_onnx(model)
    readers = [node.input[0] for node in exported.graph.node if node.op_type == "DequantizeLinear"]
    assert any(readers.count(t.name) == 2 for t in exported.graph.initializer)  # else this tests nothing
    small = packed(exported)
    onnx.checker.check_model(small, full_check=True)
    assert sqnr(model(pixels), OnnxModel(small)(pixels)) > 40
    assert unpacked(small).SerializeToString(deterministic=True) == exported.SerializeToString(deterministic=True)


def test_a_teacher_has_nothing_to_pack(mixed: Teacher, tmp_path: Path) -> None:
    plain, small = (export_onnx(mixed, tmp_path / f"{small}.onnx", small=small) for small in (False, True))
    assert small.read_bytes() == plain.read_bytes()
