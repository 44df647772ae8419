"""Ranges: the true extremes, or those that lose least, held to a search in float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from dfqlab.compression import calibration
from dfqlab.compression.calibration import calibrate, quantizer_inputs
from dfqlab.compression.insertion import prepare
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantizers import SMALLEST_SCALE, affine_parameters
from dfqlab.compression.ranges import least_squared_error_range
from dfqlab.compression.rounding import round_to_grid
from dfqlab.compression.spec import Grid, QuantizationSpec
from dfqlab.errors import DataError, QuantizationError
from dfqlab.images import Batch, ImageSource, Noise, StoredImages, SyntheticSet
from dfqlab.progress import Cancelled, Step
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


@pytest.fixture
def teacher(make_teacher: MakeTeacher) -> Teacher:
    return make_teacher(network())


def prepared_for(teacher: Teacher, method: str, bits: int = 8) -> PreparedNetwork:
    return prepare(teacher, QuantizationSpec(activations=bits, calibration=method))  # type: ignore[arg-type]


def seen_by(prepared: PreparedNetwork, images: Tensor) -> dict[str, Tensor]:
    """What passes each quantizer, by the name of its layer."""
    seen: dict[str, Tensor] = {}
    for quantizer in prepared.activations.values():
        quantizer.observer = lambda x, name=quantizer.name: seen.update({name: x})  # type: ignore[misc]
    with torch.no_grad():
        prepared.graph(prepared.teacher.input.normalize(images))
    for quantizer in prepared.activations.values():
        quantizer.observer = None
    return seen


def ends(prepared: PreparedNetwork) -> dict[str, tuple[float, float]]:
    """The reals that the first and the last code stand for."""
    found = {}
    for quantizer in prepared.activations.values():
        p = quantizer.quantization
        found[quantizer.name] = tuple((code - p.zero_point) * float(p.scale) for code in (0, quantizer.grid.quant_max))
    return found  # type: ignore[return-value]


def error_of(values: Tensor, low: float, high: float, grid: Grid) -> float:
    """Squared error of quantizing these very values, in float64."""
    p = affine_parameters(low, high, grid)
    scale = p.scale.double()
    codes = (torch.round(values.double() / scale) + p.zero_point).clamp(p.quant_min, p.quant_max)
    return float((values.double() - (codes - p.zero_point) * scale).square().sum())


def best_range(values: Tensor, lows: Tensor, highs: Tensor, grid: Grid) -> tuple[float, float, float]:
    """The least squared error over all pairs of ends, and those ends: a search of its own, in float64."""
    values, levels = values.double(), grid.quant_max - grid.quant_min
    found = []
    for low in lows.unique().clamp(max=0):
        ends = highs.unique().clamp(min=0)[:, None]
        scale = ((ends - low) / levels).clamp(min=1e-8)
        zero = torch.round(-low / scale)
        quantized = ((torch.round(values / scale) + zero).clamp(0, levels) - zero) * scale
        errors = (values - quantized).square().sum(1)
        least = int(errors.argmin())
        found.append((float(errors[least]), float(low), float(ends[least])))
    return min(found)


def affine(bits: int) -> Grid:
    return Grid(bits, symmetric=False, granularity="per_tensor")


def histogram(values: Tensor) -> tuple[Tensor, float, float]:
    low, high = float(values.min()), float(values.max())
    return torch.histc(values, 2048, low, high), low, high


def sample(kind: str, count: int = 4_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator)
    match kind:
        case "normal":
            return x
        case "heavy tails":
            return x / torch.randn(count, generator=generator).abs().clamp(min=0.02)  # nearly Cauchy
        case "behind a relu":
            return x.relu()
        case "all positive":
            return (x * 2).exp()
        case "all negative":
            return -(x * 2).exp()
        case "cubed":
            return x**3
        case "cubed, behind a relu":
            return x.relu() ** 3
        case "cubed and negative":
            return -(x.relu() ** 3)
        case "skewed":
            return torch.where(x > 0, 10 * x, x)
        case "one outlier":
            return torch.cat([x, torch.tensor([300.0])])
        case _:
            return x + 7  # away from zero


KINDS = [
    "normal", "heavy tails", "behind a relu", "all positive", "all negative", "cubed", "skewed", "one outlier", "far",
]  # fmt: skip


@pytest.mark.parametrize("size", [3, 16, 64])
def test_minmax_takes_the_true_extremes_whatever_the_batches(
    teacher: Teacher, images: Tensor, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(calibration, "BATCH_SIZE", size)
    prepared = prepared_for(teacher, "minmax")
    calibrate(prepared, StoredImages(images))
    seen, found = seen_by(prepared, images), ends(prepared)
    assert set(found) == {"input", "0", "3", "5", "6"}
    for name in ("0", "3", "5"):
        low, high = min(float(seen[name].min()), 0), max(float(seen[name].max()), 0)
        half_a_step = (high - low) / 255 / 2 * 1.001
        assert found[name] == (pytest.approx(low, abs=half_a_step), pytest.approx(high, abs=half_a_step))
        quantizer = next(q for q in prepared.activations.values() if q.name == name)
        assert float(quantizer.quantization.scale) == pytest.approx((high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("bits", [3, 8])
def test_an_average_has_the_range_of_what_it_averages(teacher: Teacher, images: Tensor, method: str, bits: int) -> None:
    prepared = prepared_for(teacher, method, bits)
    calibrate(prepared, StoredImages(images))
    averaged, average = (q.quantization for q in prepared.activations.values() if q.name in ("5", "6"))
    assert float(average.scale) == pytest.approx(float(averaged.scale), rel=1e-6)
    assert (average.zero_point, average.quant_max) == (averaged.zero_point, averaged.quant_max)
    assert average.range == pytest.approx(averaged.range, rel=1e-6)


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_every_range_holds_zero(teacher: Teacher, images: Tensor, method: str) -> None:
    for bits in (2, 4, 8):
        prepared = prepared_for(teacher, method, bits)
        calibrate(prepared, StoredImages(images))
        for quantizer in prepared.activations.values():
            assert 0 <= quantizer.quantization.zero_point <= quantizer.grid.quant_max
            assert float(quantizer.quantization.scale) > 0


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("images", [0.5 * torch.ones(4, 3, 8, 8), 50 * torch.ones(4, 3, 8, 8)], ids=["grey", "huge"])
def test_the_inputs_range_is_that_of_valid_pixels_whatever_the_images(
    teacher: Teacher, method: str, images: Tensor
) -> None:
    prepared = prepared_for(teacher, method, bits=4)
    calibrate(prepared, StoredImages(images))
    quantizer = next(q for q in prepared.activations.values() if q.name == "input")
    assert quantizer.grid.bits == 8
    low, high = -0.5 / 0.25, (1 - 0.4) / 0.2  # over mean (.4, .5, .6), std (.2, .25, .3)
    assert (low, high) == pytest.approx(teacher.input.valid_range)
    assert float(quantizer.quantization.scale) == pytest.approx((high - low) / 255, rel=1e-6)
    assert quantizer.quantization.zero_point == round(-low / (high - low) * 255)


def test_a_layer_called_input_is_calibrated_as_any_other(make_teacher: MakeTeacher, images: Tensor) -> None:
    class NamedInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.Conv2d(3, 4, 1)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.input(x).mean((2, 3)))  # type: ignore[no-any-return]

    prepared = prepared_for(make_teacher(NamedInput()), "minmax")
    calibrate(prepared, StoredImages(images))
    of_the_network, of_the_layer, _ = prepared.activations.values()
    assert of_the_network.name == of_the_layer.name == "input"
    with torch.no_grad():
        out = prepared.graph.get_submodule("input")(prepared.teacher.input.normalize(images))
    low, high = min(float(out.min()), 0), max(float(out.max()), 0)
    assert float(of_the_layer.quantization.scale) == pytest.approx((high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mse_range_is_near_the_best_of_a_search_in_float64(kind: str, bits: int) -> None:
    values, grid = sample(kind), affine(bits)
    counts, low, high = histogram(values)
    found = least_squared_error_range(counts, low, high, grid)
    assert low <= found[0] <= found[1] <= high
    error = error_of(values, *found, grid)
    assert error <= error_of(values, low, high, grid) * (1 + 1e-3)  # never worse than the extremes
    below, above = min(low, 0.0), max(high, 0.0)
    fractions = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    best, low_there, high_there = best_range(values, below * fractions, above * fractions, grid)
    around = torch.linspace(-0.05, 0.05, 9, dtype=torch.float64)
    finer, _, _ = best_range(values, low_there + below * around, high_there + above * around, grid)
    best = min(best, finer)
    assert error <= 1.12 * best


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("kind", ["heavy tails", "cubed", "cubed, behind a relu", "cubed and negative"])
def test_the_mse_range_beats_the_extremes_where_tails_are_heavy(kind: str, bits: int) -> None:
    values, grid = sample(kind), affine(bits)
    counts, low, high = histogram(values)
    found = least_squared_error_range(counts, low, high, grid)
    assert error_of(values, *found, grid) < 0.9 * error_of(values, low, high, grid)


def test_mse_keeps_all_of_a_range_that_is_evenly_filled() -> None:
    values = torch.linspace(-1, 1, 20_001)
    assert least_squared_error_range(*histogram(values), affine(8)) == pytest.approx((-1, 1), abs=0.07)


def test_two_signs_are_searched_on_either_side() -> None:
    values = torch.cat([sample("normal"), torch.tensor([-40.0])])
    low, high = least_squared_error_range(*histogram(values), affine(4))
    assert low > -0.5 * 40
    assert high > 0.6 * float(values.max())


def test_mse_calibration_loses_less_than_minmax_on_the_activations_themselves(teacher: Teacher, images: Tensor) -> None:
    errors: dict[str, dict[str, float]] = {}
    for method in ("minmax", "mse"):
        prepared = prepared_for(teacher, method, bits=3)
        calibrate(prepared, StoredImages(images))
        seen = seen_by(prepared, images)
        errors[method] = {}
        for quantizer in prepared.activations.values():
            p = quantizer.quantization
            x = seen[quantizer.name].double()
            codes = (torch.round(x / p.scale.double()) + p.zero_point).clamp(p.quant_min, p.quant_max)
            errors[method][quantizer.name] = float((x - (codes - p.zero_point) * p.scale.double()).square().sum())
    assert errors["mse"]["input"] == errors["minmax"]["input"]
    for name in ("0", "3", "5"):
        assert errors["mse"][name] <= errors["minmax"][name] * 1.01
    assert sum(errors["mse"].values()) < 0.9 * sum(errors["minmax"].values())


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_constant_activations_are_kept_exactly_enough(
    make_teacher: MakeTeacher, images: Tensor, method: str, value: float
) -> None:
    net = network()
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.data.zero_()
            layer.bias.data.fill_(value)  # type: ignore[union-attr]
    prepared = prepared_for(make_teacher(net, settled=False), method)
    calibrate(prepared, StoredImages(images))
    quantizer = next(q for q in prepared.activations.values() if q.name == "5")
    low, high = ends(prepared)["5"]
    assert (low, high) == pytest.approx((min(value, 0), max(value, 0)), abs=1e-5)
    assert float(quantizer.quantization.scale) >= SMALLEST_SCALE * 0.999


def test_codes_are_rounded_half_to_even_and_clipped() -> None:
    grid = QuantizationSpec(weights=3).weight_grid
    rows = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 9.0, -9.0]])
    assert round_to_grid(rows, torch.ones(1), grid).tolist() == [[0, 2, 2, 0, -2, 3, -4]]


class Nothing:
    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        return iter(())


class EmptyBatches:
    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        yield Batch(torch.zeros(0, 3, 8, 8))


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(
    "source", [Nothing(), EmptyBatches(), StoredImages(torch.zeros(0, 3, 8, 8)), SyntheticSet(torch.zeros(0, 3, 8, 8))]
)
def test_an_empty_source_is_refused(teacher: Teacher, source: ImageSource, method: str) -> None:
    with pytest.raises(DataError, match="nothing to calibrate with: the image source gives no image"):
        calibrate(prepared_for(teacher, method), source)


def test_images_of_another_size_are_refused(teacher: Teacher) -> None:
    with pytest.raises(DataError, match=r"takes images \(n, 3, 8, 8\), got \(2, 3, 9, 9\)"):
        calibrate(prepared_for(teacher, "minmax"), StoredImages(torch.zeros(2, 3, 9, 9)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(teacher: Teacher, images: Tensor, value: float) -> None:
    broken = images.clone()
    broken[3, 0, 0, 0] = value
    with pytest.raises(DataError, match="'input' gives NaN or infinity; expected finite images"):
        calibrate(prepared_for(teacher, "mse"), StoredImages(broken))


def test_a_network_that_overflows_names_the_layer(make_teacher: MakeTeacher, images: Tensor) -> None:
    net = network()
    net[5].weight.data.fill_(3e38)  # type: ignore[union-attr, operator]
    net[3].bias.data.fill_(100)  # type: ignore[union-attr, operator]
    with pytest.raises(DataError, match="'5' gives NaN or infinity"):
        calibrate(prepared_for(make_teacher(net, settled=False), "minmax"), StoredImages(images))


def test_every_batch_is_told(teacher: Teacher, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "BATCH_SIZE", 5)
    steps: list[Step] = []
    calibrate(prepared_for(teacher, "mse"), StoredImages(images), on_step=steps.append)
    assert [(s.job, s.index, s.total) for s in steps] == [
        (job, index, 4) for job in ("ranges", "histograms") for index in (1, 2, 3, 4)
    ]


def test_a_cancelled_calibration_leaves_no_observer_and_no_range(teacher: Teacher, images: Tensor) -> None:
    def stop(step: Step) -> None:
        raise Cancelled

    prepared = prepared_for(teacher, "mse")
    with pytest.raises(Cancelled):
        calibrate(prepared, StoredImages(images), on_step=stop)
    for quantizer in prepared.activations.values():
        assert quantizer.observer is None
        with pytest.raises(QuantizationError, match="calibrate first"):
            _ = quantizer.quantization


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_the_same_images_give_the_same_ranges_in_any_order(teacher: Teacher, images: Tensor, method: str) -> None:
    found = []
    for source in (StoredImages(images), StoredImages(images), StoredImages(images.flip(0))):
        prepared = prepared_for(teacher, method, bits=4)
        calibrate(prepared, source)
        found.append([float(q.quantization.scale) for q in prepared.activations.values()])
    assert found[0] == found[1]
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_noise_is_a_source_as_any_other(teacher: Teacher) -> None:
    prepared = prepared_for(teacher, "minmax")
    calibrate(prepared, Noise(teacher.input, 8))
    assert all(q.quantization for q in prepared.activations.values())


def test_the_float_network_stays_as_it_is(teacher: Teacher, images: Tensor) -> None:
    prepared = prepared_for(teacher, "mse")
    x = teacher.input.normalize(images)
    before = prepared.graph(x)
    calibrate(prepared, StoredImages(images))
    assert torch.equal(prepared.graph(x), before)


def test_inputs_of_quantizers_are_what_the_teacher_computes_there(teacher: Teacher, images: Tensor) -> None:
    prepared = prepared_for(teacher, "minmax")
    found = quantizer_inputs(prepared, images)
    assert list(found) == list(prepared.activations)
    layers = list(teacher.module)  # type: ignore[call-overload]
    with torch.no_grad():
        x = teacher.input.normalize(images)
        expected = {"quantizer_input": x, "quantizer_0": nn.Sequential(*layers[:3])(x)}
        expected["quantizer_3"] = nn.Sequential(*layers[3:5])(expected["quantizer_0"])
    for path, values in expected.items():
        torch.testing.assert_close(found[path], values, atol=1e-5, rtol=1e-5)
    assert all(quantizer.observer is None for quantizer in prepared.activations.values())
    with pytest.raises(DataError, match="takes images"):
        quantizer_inputs(prepared, images[:, :, :4])
