"""A compressed model: integers inside their grids, the same logits after a file, and refusals that say why."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from dfqlab import checkpoints
from dfqlab.compression.calibration import calibrate
from dfqlab.compression.insertion import prepare
from dfqlab.compression.integers import IntegerConv2d, IntegerLinear, Requantize
from dfqlab.compression.model import FILE_NAME, CompressedModel, load_model
from dfqlab.compression.quantization import freeze, quantize
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.errors import CheckpointError, ConfigurationError, DataError, OutputError, QuantizationError, TeacherError
from dfqlab.images import Noise, StoredImages, SyntheticSet
from dfqlab.measures import sqnr
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


class Gate(nn.Module):
    """What torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if bool(x.sum() > 0) else x  # type: ignore[no-any-return]


class Net(nn.Module):
    """A bit of everything: residual, ReLU6, depthwise, concatenation, pooling, a float activation."""

    def __init__(self, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6))
        self.gate = gate or nn.Identity()
        self.mix = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.depthwise(x) + x)
        y = torch.cat([F.max_pool2d(self.gate(y), 2), F.avg_pool2d(x, 2)], 1)
        return self.head(F.silu(self.mix(y)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def teacher(make_teacher: MakeTeacher) -> Teacher:
    return make_teacher(Net())


@pytest.fixture(scope="module")
def model(teacher: Teacher, images: Tensor) -> CompressedModel:
    return fast(teacher, images)


def fast(teacher: Teacher, images: Tensor | StoredImages | Noise, **changes: Any) -> CompressedModel:
    """Quantized by the extremes: the search for ranges is tested where it stands."""
    return quantize(teacher, images, **{"calibration": "minmax", **changes})


def requantizers(model: CompressedModel) -> list[Requantize]:
    return [m for m in model.graph.modules() if isinstance(m, Requantize)]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("calibration", ["minmax", "mse"])
def test_codes_are_int8_inside_their_grid_and_use_it(
    teacher: Teacher, images: Tensor, bits: int, calibration: str
) -> None:
    model = quantize(teacher, images, weights=bits, activations=10 - bits, calibration=calibration)
    assert list(model.layers) == ["stem.0", "depthwise.0", "mix", "head"]
    for layer in model.layers.values():
        assert layer.codes.dtype == torch.int8
        assert layer.bits == bits
        assert -(2 ** (bits - 1)) <= int(layer.codes.min())
        assert int(layer.codes.max()) <= 2 ** (bits - 1) - 1
        ends = (int(layer.codes.min()), int(layer.codes.max()))
        assert ends[0] == -(2 ** (bits - 1)) or ends[1] == 2 ** (bits - 1) - 1
        assert layer.scale.dtype == torch.float32
        assert layer.bias_codes is not None
        assert layer.bias_codes.dtype == torch.int32
    for quantizer in requantizers(model):
        wide = 255 if quantizer.name == "input" else 2 ** (10 - bits) - 1
        assert quantizer.zero_point.dtype == torch.uint8
        assert quantizer.quant_min == 0
        assert quantizer.quant_max <= wide
        assert int(quantizer.zero_point) <= quantizer.quant_max


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_the_rounded_folded_weights(teacher: Teacher, images: Tensor, bits: int) -> None:
    prepared = prepare(teacher, QuantizationSpec(weights=bits, calibration="minmax"))
    model = quantize(teacher, images, weights=bits, calibration="minmax")
    for path, layer in model.layers.items():
        weight = prepared.weights[path].weight
        scale = layer.scale.reshape(-1, *[1] * (weight.dim() - 1))
        assert ((layer.weight - weight).abs() <= scale / 2 * (1 + 1e-5)).all()
        torch.testing.assert_close(layer.weight, layer.codes.float() * scale)


def test_biases_stand_on_the_accumulators_grid(teacher: Teacher, images: Tensor, model: CompressedModel) -> None:
    prepared = prepare(teacher, model.spec)
    calibrate(prepared, StoredImages(images))
    reads = {"stem.0": "input", "depthwise.0": "stem.0", "mix": "cat", "head": "adaptive_avg_pool2d"}
    scales = {q.name: q.scale for q in requantizers(model)}
    for path, layer in model.layers.items():
        assert layer.bias_codes is not None
        assert torch.equal(layer.bias_scale, scales[reads[path]] * layer.scale)
        bias = prepared.weights[path].bias
        assert bias is not None
        error = (layer.bias_codes.double() * layer.bias_scale.double() - bias.double()).abs()
        assert (error <= layer.bias_scale.double() / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("bits", [2, 8])
def test_no_bias_saturates_however_large_it_is(
    make_teacher: MakeTeacher, images: Tensor, size: float, bits: int
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    generator = torch.Generator().manual_seed(0)
    for tensor in net.parameters():
        tensor.data.normal_(0, 1e-4, generator=generator)
    for layer in (net[0], net[3]):
        layer.bias.data.normal_(0, size, generator=generator)  # type: ignore[union-attr, operator]
    model = fast(make_teacher(net, settled=False), images, weights=bits)
    for path, layer in model.layers.items():
        bias = net.get_submodule(path).bias
        assert isinstance(bias, Tensor)
        assert layer.bias_codes is not None
        assert int(layer.bias_codes.abs().max()) <= 2**30 + 2**10
        found = layer.bias_codes.double() * layer.bias_scale.double()
        torch.testing.assert_close(found, bias.double(), rtol=1e-6, atol=float(layer.bias_scale.max()))


def test_a_layer_whose_input_was_always_zero_still_freezes(make_teacher: MakeTeacher, images: Tensor) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    teacher = make_teacher(net)
    teacher.module.get_parameter("0.bias").fill_(-1e3)
    model = fast(teacher, images, weights=4, activations=4)
    for layer in model.layers.values():
        assert layer.bias_codes is not None
        assert int(layer.bias_codes.abs().max()) <= 2**30 + 2**10
    torch.testing.assert_close(model(images), teacher(images), rtol=0.3, atol=0.1)


def test_behind_relu6_the_quantizer_ends_at_the_code_of_six(teacher: Teacher, images: Tensor) -> None:
    prepared = prepare(teacher, QuantizationSpec(calibration="minmax"))
    calibrate(prepared, StoredImages(images))
    stem = next(q for q in prepared.activations.values() if q.name == "stem.0")
    stem.set_range(0.0, 10.0)
    model = freeze(prepared, provenance={})
    frozen = next(q for q in requantizers(model) if q.name == "stem.0")
    scale = 10 / 255
    assert frozen.quant_max == round(6 / scale) == 153
    found = frozen(torch.tensor([5.0, 6.0, 7.0, 100.0, -3.0]))
    torch.testing.assert_close(found, torch.tensor([128, 153, 153, 153, 0]) * scale)
    assert not any(isinstance(m, (nn.ReLU, nn.ReLU6)) for m in model.graph.modules())


def test_relu_is_done_by_its_quantizer_exactly(teacher: Teacher, images: Tensor) -> None:
    """Nothing is left of an activation function whose quantizer clips where it would, and nothing is missed."""
    prepared = prepare(teacher, QuantizationSpec(calibration="minmax"))
    calibrate(prepared, StoredImages(images))
    model = freeze(prepared, provenance={})
    targets = [getattr(node.target, "__name__", node.target) for node in model.graph.graph.nodes]
    assert "relu" not in targets
    seen: list[Tensor] = []
    add = next(m for m in requantizers(model) if m.name == "add")
    add.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))
    model(images)
    assert seen[0].min() < 0
    assert seen[1].min() == 0


def test_a_relu_that_its_quantizer_does_not_do_stays(make_teacher: MakeTeacher, images: Tensor) -> None:
    """Behind an average the quantizer has the range of what is averaged, which reaches below zero."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    )  # fmt: skip
    teacher = make_teacher(net)
    model = fast(teacher, images)
    assert [row.operation for row in model.table][2] == "average_pool + relu"
    assert isinstance(model.graph.get_submodule("2"), nn.ReLU)
    assert sqnr(teacher(images), model(images)) > 25


@pytest.mark.parametrize("calibration", ["minmax", "mse"])
def test_eight_bits_stay_close_to_the_teacher_and_fewer_are_further(
    teacher: Teacher, images: Tensor, calibration: str
) -> None:
    other = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    distance = [
        sqnr(teacher(other), quantize(teacher, images, weights=b, activations=b, calibration=calibration)(other))
        for b in (8, 6, 4, 2)
    ]
    assert distance[0] > 30
    assert distance == sorted(distance, reverse=True)
    assert distance[3] < 15


def test_quantizing_twice_gives_the_same_bytes(teacher: Teacher, images: Tensor, tmp_path: Path) -> None:
    for name in ("one", "other"):
        fast(teacher, images, weights=4, activations=4).save(tmp_path / name)
    assert (tmp_path / "one" / FILE_NAME).read_bytes() == (tmp_path / "other" / FILE_NAME).read_bytes()


def test_teacher_and_prepared_network_stay_as_they_are(teacher: Teacher, images: Tensor) -> None:
    before = copy.deepcopy(teacher.module.state_dict())
    prepared = prepare(teacher, QuantizationSpec(weights=2, activations=2, calibration="minmax"))
    calibrate(prepared, StoredImages(images))
    code, state = prepared.graph.code, copy.deepcopy(prepared.graph.state_dict())
    first = freeze(prepared, provenance={})
    assert prepared.graph.code == code
    assert all(torch.equal(tensor, state[key]) for key, tensor in prepared.graph.state_dict().items())
    x = teacher.input.normalize(images)
    torch.testing.assert_close(prepared.graph(x), teacher(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(freeze(prepared, provenance={})(images), first(images))
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.module.state_dict().items())


def test_a_network_that_is_not_calibrated_is_refused(teacher: Teacher) -> None:
    with pytest.raises(QuantizationError, match="has no range yet; calibrate first"):
        freeze(prepare(teacher, QuantizationSpec()), provenance={})


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_loaded_model_gives_the_same_logits_bit_for_bit(
    teacher: Teacher, images: Tensor, tmp_path: Path, bits: int
) -> None:
    model = fast(teacher, images, weights=bits, activations=bits)
    model.save(tmp_path / "m")
    found = load_model(tmp_path / "m")
    assert torch.equal(found(images), model(images))
    for name in ("input", "classes", "spec", "table", "packed_bytes"):
        assert getattr(found, name) == getattr(model, name)
    assert dict(found.provenance) == dict(model.provenance)
    assert found.teacher is None
    assert list(found.layers) == list(model.layers)
    for tensor, other in zip(found.graph.state_dict().items(), model.graph.state_dict().items(), strict=True):
        assert tensor[0] == other[0]
        assert tensor[1].dtype == other[1].dtype
        assert torch.equal(tensor[1], other[1])
    assert not any(p.requires_grad for p in found.graph.parameters())


def test_saving_what_was_loaded_gives_the_same_bytes(model: CompressedModel, tmp_path: Path) -> None:
    model.save(tmp_path / "one")
    load_model(tmp_path / "one").save(tmp_path / "other")
    assert (tmp_path / "one" / FILE_NAME).read_bytes() == (tmp_path / "other" / FILE_NAME).read_bytes()


def test_loading_leaves_the_global_generator_alone(make_teacher: MakeTeacher, images: Tensor, tmp_path: Path) -> None:
    fast(make_teacher(Net(), leaves=["mix"]), images).save(tmp_path)
    before = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_lie_in_the_file_as_integers(model: CompressedModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    with safe_open(tmp_path / FILE_NAME, framework="pt") as file:
        kinds = {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert kinds["stem.0.codes"] == torch.int8
    assert kinds["stem.0.bias_codes"] == torch.int32
    assert kinds["quantizer_stem_0.zero_point"] == torch.uint8
    assert not any(key.endswith(".weight") for key in kinds)


def test_a_model_with_a_leaf_asks_for_it_and_fills_it(
    make_teacher: MakeTeacher, images: Tensor, tmp_path: Path
) -> None:
    teacher = make_teacher(Net(Gate()), leaves=["gate"])
    model = fast(teacher, images, weights=4, activations=4)
    model.save(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"'gate' \(Gate\) is opaque.*load_model\(\.\.\., leaves=\{'gate': module\}\)"
    ):
        load_model(tmp_path)
    fresh = Gate()
    before = copy.deepcopy(fresh.state_dict())
    found = load_model(tmp_path, leaves={"gate": fresh})
    assert torch.equal(found(images), model(images))
    assert all(torch.equal(tensor, before[key]) for key, tensor in fresh.state_dict().items())
    with pytest.raises(CheckpointError, match="not a complete compressed model"):
        load_model(tmp_path, leaves={"gate": nn.Conv2d(3, 3, 1)})


@pytest.mark.parametrize(
    "leaf",
    [
        nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 1)),
        nn.Sequential(nn.Hardtanh(-0.1, 0.1)),
        nn.Softplus(beta=3, threshold=1),
        nn.GroupNorm(3, 6, eps=0.3),
        nn.PReLU(6),
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_a_leaf_of_torchs_own_is_in_the_file_or_asked_for_but_never_lost(
    make_teacher: MakeTeacher, images: Tensor, tmp_path: Path, leaf: nn.Module
) -> None:
    model = fast(make_teacher(Net(leaf), leaves=["gate"]), images)
    model.save(tmp_path)
    leaves = {}
    if isinstance(leaf, nn.Sequential):
        with pytest.raises(CheckpointError, match=r"'gate' \(Sequential\) is opaque"):
            load_model(tmp_path)
        leaves = {"gate": copy.deepcopy(leaf)}
    assert torch.equal(load_model(tmp_path, leaves=leaves)(images), model(images))


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8), (3, 8, 8)])
@pytest.mark.traces  # a shape check would catch the last of them before we answer
def test_images_of_another_size_are_refused(model: CompressedModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"the model takes images \(n, 3, 8, 8\), got"):
        model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"weights": 1}, QuantizationError, "weights=1: bits are an integer from 2 to 8"),
        ({"activations": 9}, QuantizationError, "activations=9"),
        ({"weights": 4.5}, QuantizationError, r"weights=4\.5"),
        ({"calibration": "entropy"}, ConfigurationError, "calibration='entropy'"),
        ({"rounding": "up"}, ConfigurationError, "rounding='up'"),
    ],
)
@pytest.mark.traces  # some of these a shape check would catch before we answer
def test_what_cannot_be_asked_for_is_refused(
    teacher: Teacher, images: Tensor, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        fast(teacher, images, **changes)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (torch.zeros(0, 3, 8, 8), "no images"),
        (torch.full((2, 3, 8, 8), 1.5), r"must lie in 0\.\.1"),
        (torch.full((2, 3, 8, 8), torch.nan), "NaN"),
        (torch.zeros(2, 3, 9, 9), r"must be \(n, 3, 8, 8\)"),
        (StoredImages(torch.zeros(0, 3, 8, 8)), "gives no image"),
        (StoredImages(torch.zeros(2, 3, 9, 9)), r"takes images \(n, 3, 8, 8\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(teacher: Teacher, source: Tensor | StoredImages, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fast(teacher, source)


def test_a_teacher_that_does_not_trace_is_told_the_way_out(make_teacher: MakeTeacher, images: Tensor) -> None:
    with pytest.raises(TeacherError, match=r"`return self\.conv\(x\) if bool\(x\.sum\(\) > 0\).*leaves=\['gate'\]"):
        fast(make_teacher(Net(Gate())), images)


def test_weights_that_are_not_finite_are_refused(make_teacher: MakeTeacher, images: Tensor) -> None:
    teacher = make_teacher(Net())
    prepared = prepare(teacher, QuantizationSpec(calibration="minmax"))
    calibrate(prepared, StoredImages(images))
    prepared.weights["mix"].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(QuantizationError, match="layer 'mix' has weights that are not finite"):
        freeze(prepared, provenance={})


def test_provenance_says_where_teacher_and_images_come_from(teacher: Teacher, images: Tensor) -> None:
    made = SyntheticSet(images, recipe="zeroq", seed=4, partial=True)
    assert fast(teacher, made).provenance == {
        "teacher": "Net",
        "fingerprint": teacher.fingerprint,
        "images": {"kind": "SyntheticSet", "count": 16, "recipe": "zeroq", "seed": 4, "partial": True},
    }
    assert fast(teacher, Noise(teacher.input, 4)).provenance["images"] == {"kind": "Noise", "count": 4}


def test_packed_bytes_by_hand(make_teacher: MakeTeacher, images: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    model = fast(make_teacher(net), images, weights=3)
    convolution = -(-81 * 3 // 8) + 3 * 4 + 3 * 4  # codes, scales, biases
    linear = -(-15 * 3 // 8) + 5 * 4 + 5 * 4
    quantizers = 3 * 5  # of the input, the convolution and the pooling: a scale and a zero point
    assert model.packed_bytes == convolution + linear + quantizers


def test_what_stays_float_counts_as_float(make_teacher: MakeTeacher, images: Tensor) -> None:
    teacher = make_teacher(Net())
    whole, part = fast(teacher, images), fast(make_teacher(Net(), leaves=["mix"]), images)
    in_float, in_integers = (12 * 8 + 8) * 4, 12 * 8 + 8 * 4 + 8 * 4
    assert part.packed_bytes - whole.packed_bytes == in_float - in_integers - 5  # nor is its output quantized


@pytest.mark.parametrize("change", ["missing", "kind", "no graph", "no node list", "spec"])
def test_a_damaged_file_is_refused(model: CompressedModel, tmp_path: Path, change: str) -> None:
    path = tmp_path / FILE_NAME
    model.save(tmp_path)
    tensors, facts = checkpoints.load(path, kind="compressed model")
    match change:
        case "missing":
            path.unlink()
        case "kind":
            checkpoints.save(path, tensors, kind="synthetic set", facts=facts)
        case "no graph":
            checkpoints.save(path, tensors, kind="compressed model", facts={**facts, "graph": {}})
        case "no node list":
            checkpoints.save(
                path, tensors, kind="compressed model", facts={**facts, "graph": {**facts["graph"], "nodes": 3}}
            )
        case "spec":
            checkpoints.save(path, tensors, kind="compressed model", facts={**facts, "spec": {"weights": 9}})
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def test_tensors_that_are_missing_or_of_another_shape_are_refused(model: CompressedModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    tensors, facts = checkpoints.load(tmp_path / FILE_NAME, kind="compressed model")
    for key, tensor in (("stem.0.codes", tensors["stem.0.codes"][:2]), ("head.scale", None)):
        changed = {**tensors, key: tensor} if tensor is not None else {k: t for k, t in tensors.items() if k != key}
        checkpoints.save(tmp_path / FILE_NAME, changed, kind="compressed model", facts=facts)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match="not a complete compressed model"):
            load_model(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(model: CompressedModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        model.save(tmp_path / "file" / "model")


def test_layers_run_as_their_reals_would(model: CompressedModel, images: Tensor) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    layer = model.layers["stem.0"]
    assert isinstance(layer, IntegerConv2d)
    assert layer.bias is not None
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    head = model.layers["head"]
    assert isinstance(head, IntegerLinear)
    assert torch.equal(head(x[:, 0]), F.linear(x[:, 0], head.weight, head.bias))


def test_the_model_is_where_its_teacher_is(teacher: Teacher, model: CompressedModel) -> None:
    assert model.device == teacher.device
    assert {tensor.device for tensor in model.graph.state_dict().values()} == {teacher.device}
