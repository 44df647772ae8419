"""Rounding that is learned: held to every way to round where there are few, and to nearest where there are many."""

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqlab.compression.calibration import calibrate
from dfqlab.compression.insertion import prepare
from dfqlab.compression.learning import Rows, SoftRounding, drawn, squared_error
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantization import ROUNDINGS, quantize
from dfqlab.compression.rounding import weight_scales
from dfqlab.compression.spec import QuantizationSpec, Reconstruction, Widths
from dfqlab.errors import ConfigurationError, DataError
from dfqlab.images import StoredImages
from dfqlab.progress import Cancelled, Step
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]
LEARNED = ("adaround", "brecq", "qdrop")
SHORT = Reconstruction(iterations=120, batch=8)


class Network(nn.Module):
    """A stem, a residual block, a bottleneck with ReLU6, a linear layer behind the average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.deep = nn.Sequential(nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12), nn.ReLU6())
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (self.second(self.first(x)) + x).relu()
        return self.head(self.deep(x).mean((2, 3)))


@pytest.fixture
def teacher(make_teacher: MakeTeacher) -> Teacher:
    return make_teacher(Network())


@pytest.fixture(scope="session")
def many() -> Tensor:
    return torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def ready(teacher: Teacher, images: Tensor, rounding: str = "qdrop", **more: Any) -> PreparedNetwork:
    more = {"weights": 3, "activations": 4, "reconstruction": SHORT} | more
    prepared = prepare(teacher, QuantizationSpec(rounding=rounding, **more))  # type: ignore[arg-type]
    calibrate(prepared, StoredImages(images))
    return prepared


def test_soft_weights_begin_where_the_weights_are_and_end_up_or_down(teacher: Teacher, many: Tensor) -> None:
    prepared = ready(teacher, many, weight_calibration="minmax", layers={"head": Widths(weights=6)})
    scales = weight_scales(prepared)
    rounding = SoftRounding(prepared, list(prepared.weights), scales)
    assert len(rounding.logits) == 2  # one for each grid
    weights, penalty = rounding.soft(2.0)
    assert float(penalty.detach()) > 0
    for path, layer in prepared.weights.items():
        steps = scales[path].reshape(-1, *[1] * (layer.weight.dim() - 1))
        assert ((weights[path] - layer.weight).abs() <= 1e-3 * steps).all(), path
    for path, rounded in rounding.hard().items():
        steps = prepared.weights[path].weight / scales[path].reshape(-1, *[1] * (rounded.codes.dim() - 1))
        grid = prepared.grids[path]
        down = torch.floor(steps + 1e-4).clamp(grid.quant_min, grid.quant_max)
        assert torch.equal(rounded.codes, rounded.codes.round())
        assert (((rounded.codes - down) == 0) | ((rounded.codes - down) == 1)).all()
        assert grid.quant_min <= rounded.codes.min()
        assert rounded.codes.max() <= grid.quant_max


@pytest.mark.parametrize("rounding", LEARNED)
def test_of_few_weights_it_comes_near_the_best_of_all_ways_up_or_down(make_teacher: MakeTeacher, rounding: str) -> None:
    """Rows of six weights on correlated inputs, where to round each to nearest is far from the best of 64 ways."""
    gaps = [gaps_of_a_layer(make_teacher, rounding, seed) for seed in range(4)]
    found, near = (sum(gap[which] for gap in gaps) for which in (0, 1))
    assert min(min(gap) for gap in gaps) >= -1e-9  # nothing is better than the best
    assert found <= 0.5 * near


def gaps_of_a_layer(make_teacher: MakeTeacher, rounding: str, seed: int) -> tuple[float, float]:
    """How much more a layer loses than with the best rounding there is: as it was learned, and to nearest."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(6, 2, bias=False)
    layer.weight.data.normal_(0, 0.5, generator=generator)
    module = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), layer)
    teacher = make_teacher(module, size=(3, 4, 4), classes=2, settled=False)
    base = torch.rand(64, 1, 1, 1, generator=generator)
    images = (base + 0.1 * torch.rand(64, 3, 4, 4, generator=generator)).clamp(0, 1)
    prepared = ready(
        teacher, images, rounding, weights=3, activations=8, weight_calibration="minmax",
        reconstruction=Reconstruction(iterations=600, batch=64),
    )  # fmt: skip
    learned, near = (ROUNDINGS[name](prepared, StoredImages(images))["2"] for name in (rounding, "nearest"))
    x = teacher.input.normalize(images).reshape(64, 3, 1, 4, 2, 2).mean((3, 5)).flatten(1).double()
    weight, scale, grid = layer.weight.detach().double(), near.scale.double(), prepared.grids["2"]

    def loss(codes: Tensor, row: int) -> float:
        return float((x @ (codes.double() * scale[row] - weight[row])).square().mean())

    best = 0.0
    for row in range(2):
        down = torch.floor(weight[row] / scale[row])
        ways = (down + torch.tensor(up, dtype=torch.float64) for up in itertools.product((0, 1), repeat=6))
        best += min(loss(way.clamp(grid.quant_min, grid.quant_max), row) for way in ways)
    found, nearest_ = (sum(loss(rounded.codes[row], row) for row in range(2)) for rounded in (learned, near))
    return found - best, nearest_ - best


@pytest.mark.parametrize("rounding", LEARNED)
def test_the_network_answers_more_as_before_than_rounded_to_nearest(
    teacher: Teacher, many: Tensor, images: Tensor, rounding: str
) -> None:
    def error(**asked: Any) -> float:
        model = quantize(teacher, many, weights=2, activations=4, **asked)
        return float((model(images) - teacher(images)).square().mean())

    assert error(rounding=rounding, reconstruction=SHORT) < 0.7 * error(rounding="nearest")


@pytest.mark.parametrize("rounding", LEARNED)
def test_the_same_seed_gives_the_same_codes_and_another_one_others(
    teacher: Teacher, many: Tensor, rounding: str
) -> None:
    def codes(seed: int) -> list[Tensor]:
        settings = Reconstruction(iterations=20, batch=8, seed=seed)
        model = quantize(teacher, many, weights=3, activations=4, rounding=rounding, reconstruction=settings)
        return [layer.codes for layer in model.layers.values()] + [layer.bias_scale for layer in model.layers.values()]

    first, again, other = codes(0), codes(0), codes(1)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_adaround_leaves_the_steps_of_activations_and_the_others_move_them(teacher: Teacher, many: Tensor) -> None:
    for rounding in LEARNED:
        prepared = ready(teacher, many, rounding)
        before = {path: float(q.quantization.scale) for path, q in prepared.activations.items()}
        ROUNDINGS[rounding](prepared, StoredImages(many))
        moved = {path for path, q in prepared.activations.items() if float(q.quantization.scale) != before[path]}
        names = {prepared.activations[path].name for path in moved}
        if rounding == "adaround":
            assert not names
        else:
            assert {"stem.0", "first.0", "deep.0"} <= names
            assert "input" not in names


def test_what_follows_a_moved_step_moves_with_it(teacher: Teacher, many: Tensor) -> None:
    """The average takes the grid of what it averages, and the code of 6 ends a ReLU6's grid."""
    settings = Reconstruction(iterations=40, batch=8, step_rate=0.02)
    prepared = ready(teacher, many, activations=8, reconstruction=settings)
    ROUNDINGS["qdrop"](prepared, StoredImages(many))
    by_name = {quantizer.name: quantizer for quantizer in prepared.activations.values()}
    average = next(q for q in prepared.activations.values() if q.averages is not None)
    assert average.quantization.range == pytest.approx(by_name["deep.0"].quantization.range)
    capped = by_name["deep.0"].quantization
    assert capped.quant_max <= round(6 / float(capped.scale)) + capped.zero_point


def test_the_teacher_and_the_prepared_weights_stay_as_they_are(teacher: Teacher, many: Tensor) -> None:
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    prepared = ready(teacher, many)
    own = {path: layer.weight.clone() for path, layer in prepared.weights.items()}
    ROUNDINGS["qdrop"](prepared, StoredImages(many))
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())
    assert all(torch.equal(layer.weight, own[path]) for path, layer in prepared.weights.items())


@pytest.mark.parametrize("rounding", LEARNED)
def test_steps_are_told_block_by_block_and_may_cancel(teacher: Teacher, many: Tensor, rounding: str) -> None:
    told: list[Step] = []
    settings = Reconstruction(iterations=12, batch=8)
    quantize(teacher, many, rounding=rounding, reconstruction=settings, on_step=told.append)
    rounds = [step for step in told if step.job.startswith("round")]
    units = 5 if rounding == "adaround" else 4
    assert [step.index for step in rounds] == list(range(1, 12 * units + 1))
    assert {step.total for step in rounds} == {12 * units}
    assert all(step.values["error"] >= 0 for step in rounds)
    steps = [step for step in told if step.job.startswith("steps")]
    assert bool(steps) == (rounding == "brecq")

    def stop(step: Step) -> None:
        if step.job.startswith("round"):
            raise Cancelled

    with pytest.raises(Cancelled):
        quantize(teacher, many, rounding=rounding, reconstruction=settings, on_step=stop)


@pytest.mark.parametrize("rounding", LEARNED)
def test_without_images_there_is_nothing_to_learn_from(teacher: Teacher, rounding: str) -> None:
    with pytest.raises(DataError, match=f"rounding='{rounding}' learns from images"):
        quantize(teacher, None, calibration="bn", rounding=rounding)


@pytest.mark.parametrize("rounding", LEARNED)
def test_it_goes_with_equalization_other_widths_and_ends(teacher: Teacher, many: Tensor, rounding: str) -> None:
    model = quantize(
        teacher, many, weights=4, activations=4, equalization="dfq", rounding=rounding, ends=8,
        layers={"first.0": Widths(weights=2)}, reconstruction=Reconstruction(iterations=12, batch=8),
    )  # fmt: skip
    assert {path: layer.bits for path, layer in model.layers.items()} == {
        "stem.0": 8, "first.0": 2, "second.0": 4, "deep.0": 4, "head": 8,
    }  # fmt: skip
    assert torch.isfinite(model(many)).all()


@pytest.mark.parametrize("rounding", LEARNED)
def test_a_source_without_images_is_refused_where_ranges_need_none(teacher: Teacher, rounding: str) -> None:
    with pytest.raises(DataError, match="the image source gives no image"):
        quantize(teacher, StoredImages(torch.zeros(0, 3, 8, 8)), calibration="bn", rounding=rounding)


@pytest.mark.parametrize("rounding", ["brecq", "qdrop"])
def test_steps_far_below_the_learning_rate_stay_positive(
    make_teacher: MakeTeacher, many: Tensor, rounding: str
) -> None:
    """A network whose activations are tiny is quantized as well as one whose activations are not."""
    network = Network()
    small = make_teacher(network, name="small")
    for norm in (network.stem[1], network.first[1], network.second[1]):
        norm.weight.data.mul_(1e-4)
        norm.bias.data.mul_(1e-4)
    prepared = ready(small, many, rounding, weights=8, activations=8)
    before = {path: float(q.quantization.scale) for path, q in prepared.activations.items()}
    ROUNDINGS[rounding](prepared, StoredImages(many))
    for path, quantizer in prepared.activations.items():
        assert 0.5 < float(quantizer.quantization.scale) / before[path] < 2, quantizer.name


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"batch": 0}, {"warm_up": 1.0}, {"warm_up": -0.1}, {"drop": 1.5}])
def test_settings_that_cannot_learn_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=f"{name}="):
        Reconstruction(**wrong)


def test_a_rounding_that_learns_has_seen_to_the_mean_itself() -> None:
    assert QuantizationSpec(equalization="dfq").corrects == "analytic"
    assert {QuantizationSpec(equalization="dfq", rounding=r).corrects for r in LEARNED} == {"none"}  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(40, 6, 31, 33), (700, 61)])
def test_as_many_values_are_dropped_as_a_share_says(share: float, shape: tuple[int, ...]) -> None:
    like = torch.zeros(shape)
    like = like.contiguous(memory_format=torch.channels_last) if like.dim() == 4 else like
    found = drawn(like, share, torch.Generator().manual_seed(5))
    again = drawn(like, share, torch.Generator().manual_seed(5))
    assert torch.equal(found, again)
    assert found.stride() == like.stride()
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    deviation = (share * (1 - share) / found.numel()) ** 0.5
    assert abs(float(found.mean()) - share) <= 5 * deviation
    along = found.mean(tuple(range(1, found.dim())))
    assert (along - share).abs().max() <= 6 * (share * (1 - share) / found[0].numel()) ** 0.5


@pytest.mark.parametrize(("shape", "channels"), [((4, 3, 5, 6), 1), ((4, 7, 3), -1), ((4, 3), -1)])
def test_errors_are_summed_over_channels_and_averaged_over_all_else(shape: tuple[int, ...], channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    found, target = (torch.randn(shape, generator=generator) for _ in range(2))
    expected = (found - target).square().double().sum(channels).mean()
    assert float(squared_error(found, target)) == pytest.approx(float(expected), rel=1e-5)


class Viewed(nn.Module):
    """Its `view` wants channels first in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.head(x.view(x.size(0), -1))


@pytest.mark.parametrize("rounding", LEARNED)
def test_a_view_that_wants_channels_first_has_them(rounding: str, make_teacher: MakeTeacher, many: Tensor) -> None:
    prepared = ready(make_teacher(Viewed()), many, rounding, reconstruction=Reconstruction(iterations=2, batch=4))
    assert ROUNDINGS[rounding](prepared, StoredImages(many)).keys() == {"conv", "head"}


def test_rows_are_those_of_the_whole_tensor() -> None:
    whole = torch.rand(10, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    whole = whole.contiguous(memory_format=torch.channels_last)
    chosen = torch.tensor([9, 0, 4, 4, 3])
    rows = Rows(list(whole.split(4)))
    assert len(rows) == 10
    assert torch.equal(rows[chosen], whole[chosen])
    assert rows[chosen].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("rounding", "tensors"), [("adaround", 2), ("brecq", 2), ("qdrop", 3)])
def test_no_more_tensors_of_all_images_are_kept_than_are_read(
    make_teacher: MakeTeacher, rounding: str, tensors: int
) -> None:
    """What enters a unit and what leaves it; with what enters in float, where it is mixed in."""
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(7, 7, 1), nn.ReLU())]
    module = nn.Sequential(
        nn.Conv2d(3, 7, 1), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5)
    )
    settings = Reconstruction(iterations=4, batch=2)
    images = torch.rand(128, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prepared = ready(make_teacher(module), images, rounding, reconstruction=settings)
    most = 0

    def look(step: Step) -> None:
        nonlocal most
        alive = [x for x in gc.get_objects() if type(x) is Tensor and x.shape == (64, 7, 8, 8)]
        most = max(most, sum({x.data_ptr(): x.nbytes for x in alive}.values()))

    ROUNDINGS[rounding](prepared, StoredImages(images), on_step=look)
    assert most == tensors * 128 * 7 * 8 * 8 * 4
