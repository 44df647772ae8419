"""What BatchNorm's Gaussians say of a network: moments against scipy, whole networks against samples."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import Tensor, fx, nn

from dfqlab.compression.calibration import calibrate
from dfqlab.compression.gaussians import ClippedNormal, expected_inputs, expected_values
from dfqlab.compression.insertion import prepare
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantization import quantize
from dfqlab.compression.ranges import BINS
from dfqlab.compression.spec import Equalization, QuantizationSpec
from dfqlab.errors import DataError, QuantizationError
from dfqlab.images import Batch
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]

RELU, RELU6, NONE, NEGATIVE = (0.0, math.inf), (0.0, 6.0), (-math.inf, math.inf), (-math.inf, -1.0)


def normal(mean: list[float], std: list[float], low: float, high: float) -> ClippedNormal:
    means, stds = (torch.tensor([values], dtype=torch.float64) for values in (mean, std))
    return ClippedNormal.unclipped(means, stds).clipped(low, high)


@pytest.mark.parametrize(("low", "high"), [RELU, RELU6, NONE, NEGATIVE])
def test_moments_are_those_of_scipy_by_parts_and_by_integration(low: float, high: float) -> None:
    means, stds = [-30.0, -2.0, 0.0, 0.3, 5.0, 40.0], [0.01, 0.5, 1.0, 3.0]
    for mean in means:
        for std in stds:
            found_mean, found_variance = (float(m) for m in normal([mean], [std], low, high).moments())
            a, b = (low - mean) / std, (high - mean) / std
            inside = stats.norm.cdf(b) - stats.norm.cdf(a)
            parts = [(stats.norm.cdf(a), low), (stats.norm.sf(b), high)]
            if inside > 1e-12:
                truncated = stats.truncnorm(a, b, loc=mean, scale=std)
                parts += [(inside, truncated.mean())]
            expected = sum(share * value for share, value in parts if share > 0)
            assert found_mean == pytest.approx(expected, rel=1e-6, abs=1e-9)

            def square(z: float, mean: float = mean, std: float = std, around: float = expected) -> float:
                return float((np.clip(mean + std * z, low, high) - around) ** 2 * stats.norm.pdf(z))

            kinks = [z for z in (a, b) if abs(z) < 12]
            variance, _ = integrate.quad(square, -12, 12, points=[*kinks, 0], limit=200)
            assert found_variance == pytest.approx(variance, rel=1e-5, abs=1e-9)


def test_behind_a_relu_the_mean_is_equation_19_of_dfq() -> None:
    beta, gamma = np.array([-1.0, 0.0, 0.7, 3.0]), np.array([0.5, 1.0, 2.0, 0.4])
    expected = gamma * stats.norm.pdf(-beta / gamma) + beta * (1 - stats.norm.cdf(-beta / gamma))
    mean, _ = normal(beta.tolist(), gamma.tolist(), *RELU).moments()
    assert np.allclose(mean.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("low", "high"), [RELU, RELU6, NONE])
def test_what_would_be_seen_is_every_channel_between_six_deviations(low: float, high: float) -> None:
    mean, std = [-0.5, 1.0, 2.0], [1.0, 0.3, 2.0]
    values = normal(mean, std, low, high)
    seen = values.seen()
    expected = [max(low, -10.0), min(high, 14.0)]
    assert seen.extremes == pytest.approx((expected[0], expected[1]))
    assert float(seen.histogram.sum()) == pytest.approx(3)
    width = (expected[1] - expected[0]) / BINS
    edges = expected[0] + width * np.arange(BINS + 1)
    share = sum(stats.norm.cdf(edges[1:-1], m, s) for m, s in zip(mean, std, strict=True))
    assert np.allclose(seen.histogram.cumsum(0)[:-1].numpy(), share, atol=1e-6)
    centres = torch.from_numpy((edges[:-1] + edges[1:]) / 2)
    moments = [m.mean() for m in values.moments()]
    assert float((seen.histogram * centres).sum() / 3) == pytest.approx(float(moments[0]), abs=width)


def test_channels_that_are_constant_are_seen_where_they_are() -> None:
    constant = normal([2.0, 2.0], [0.0, 0.0], *RELU).seen()
    assert constant.extremes == pytest.approx((2, 2))
    dead = normal([-3.0, -4.0], [0.1, 0.1], *RELU).seen()
    assert dead.extremes == (0, 0)
    mixed = normal([2.0, -4.0], [0.0, 0.1], *RELU).seen()
    assert mixed.extremes == pytest.approx((0, 2))
    assert (float(mixed.histogram[0]), float(mixed.histogram[-1])) == pytest.approx((1, 1))


class Branches(nn.Module):
    """To the next layer through an addition, a concatenation, a padded layer without BatchNorm, and flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.right = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU6())
        self.third = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.plain = nn.Conv2d(10, 4, 3, padding=1, groups=2)
        self.last = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.hidden, self.head = nn.Linear(4 * 4 * 4, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([self.left(x) + self.right(x), self.third(x)], 1)
        y = self.last(self.plain(y))
        return self.head(self.hidden(y.view(y.size(0), -1)))  # type: ignore[no-any-return]


def pools() -> nn.Module:
    """Poolings, which see planes whose values are alike."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 4, 1),
        nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


class Sampler(fx.Interpreter):
    """Runs the folded network with what each BatchNorm promises, drawn anew, in place of what its layer puts out."""

    def __init__(self, prepared: PreparedNetwork, alike: bool) -> None:
        super().__init__(prepared.graph, garbage_collect_values=False)
        self.prepared, self.alike = prepared, alike
        self.generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> object:
        out = super().run_node(n)
        if str(n.target) not in self.prepared.gaussians:
            return out
        assert isinstance(out, Tensor)
        known = self.prepared.gaussians[str(n.target)]
        shape = (*out.shape[:2], 1, 1) if self.alike else out.shape
        drawn = torch.randn(shape, generator=self.generator)
        return (known.mean[:, None, None] + known.std[:, None, None] * drawn).expand(out.shape).contiguous()


@pytest.mark.traces
@pytest.mark.parametrize("equalization", ["none", "dfq"])
@pytest.mark.parametrize(("network", "alike"), [(Branches, False), (pools, True)])
def test_expected_values_are_the_moments_of_samples(
    make_teacher: MakeTeacher, network: Callable[[], nn.Module], alike: bool, equalization: Equalization
) -> None:
    teacher = make_teacher(network(), size=(3, 4, 4))
    for module in teacher.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= 4  # well beyond a ReLU6
    prepared = prepare(teacher, QuantizationSpec(calibration="bn", equalization=equalization))
    sampler = Sampler(prepared, alike)
    low, high = prepared.teacher.input.valid_range
    x = torch.randn(4000, 3, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(low, high)
    with torch.no_grad():
        sampler.run(x)
    drawn = {str(node.target): (node, value) for node, value in sampler.env.items()}
    expected = expected_values(prepared)
    assert expected.keys() == prepared.activations.keys()
    for path, values in expected.items():
        mean, variance = (m[0] for m in values.moments())
        sample = drawn[path][1].double()
        assert ((sample.mean(0) - mean).abs() <= 0.1 * variance.sqrt()).all(), path
        assert (sample.var(0) - variance).abs().max() <= 0.2 * variance.max(), path
    inputs = expected_inputs(prepared)
    assert inputs.keys() == prepared.weights.keys()
    for path, mean in inputs.items():
        sample = sampler.env[drawn[path][0].args[0]].double()
        assert ((sample.mean(0) - mean[0]).abs() <= 0.1 * sample.std(0) + 1e-9).all(), path


class Squeezes(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.head, self.how = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5), how

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(F.adaptive_avg_pool2d(self.norm(self.conv(x)).relu(), 1)))  # type: ignore[no-any-return]


def test_squeezing_is_flattening_as_it_is_with_images(make_teacher: MakeTeacher) -> None:
    ways: list[Callable[[Tensor], Tensor]] = [lambda x: x.squeeze(), lambda x: x.flatten(1)]
    squeezed, flattened = (prepare(make_teacher(Squeezes(how)), QuantizationSpec(calibration="bn")) for how in ways)
    inputs = [expected_inputs(prepared) for prepared in (squeezed, flattened)]
    assert inputs[0]["head"].shape == (1, 4)
    assert torch.equal(inputs[0]["head"], inputs[1]["head"])
    for prepared in (squeezed, flattened):
        calibrate(prepared, None)
    assert squeezed.input_scale("head") == flattened.input_scale("head")


def test_an_operation_that_nobody_can_follow_is_named(make_teacher: MakeTeacher) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    teacher = make_teacher(net)
    prepared = prepare(teacher, QuantizationSpec())
    with pytest.raises(QuantizationError, match="the quantizer of '2' is not known from BatchNorm alone"):
        expected_values(prepared)
    assert list(expected_inputs(prepared)) == ["0", "8"]  # behind the next BatchNorm all is known again


class NoImages:
    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        raise AssertionError("somebody looks at images")


@pytest.mark.parametrize("source", [None, NoImages()])
@pytest.mark.parametrize("equalization", ["none", "dfq"])
def test_bn_calibration_looks_at_no_image(
    make_teacher: MakeTeacher, images: Tensor, source: NoImages | None, equalization: str
) -> None:
    teacher = make_teacher(Branches(), size=(3, 4, 4))
    model = quantize(teacher, source, calibration="bn", equalization=equalization)
    assert model.provenance["images"] == {"kind": "none" if source is None else "NoImages"}
    assert torch.isfinite(model(images[:, :, :4, :4])).all()


def test_bn_ranges_hold_what_samples_do_and_hardly_more(make_teacher: MakeTeacher) -> None:
    prepared = prepare(make_teacher(Branches(), size=(3, 4, 4)), QuantizationSpec(calibration="bn"))
    calibrate(prepared, None)
    for quantizer in prepared.activations.values():
        path = quantizer.name
        if path not in prepared.gaussians:
            continue
        known = prepared.gaussians[path]
        low, high = quantizer.quantization.range
        top = float((known.mean + 6 * known.std).max())
        assert 0.4 * top < high <= 1.01 * min(top, quantizer.upper or math.inf), path
        assert (low == 0) == (quantizer.lower == 0), path


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "ema", "image_mean", "mse", "kl", "aciq"])
def test_every_other_calibration_needs_images(make_teacher: MakeTeacher, calibration: str) -> None:
    with pytest.raises(DataError, match=f"calibration='{calibration}' needs images; 'bn' is the one that needs none"):
        quantize(make_teacher(pools(), size=(3, 4, 4)), None, calibration=calibration)
