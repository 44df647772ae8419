"""Bias correction: the means that rounding took come back, as Gaussians promise them or as images show them."""

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor, fx, nn

from dfqlab.compression.calibration import calibrate
from dfqlab.compression.correction import corrected_biases
from dfqlab.compression.execution import applied
from dfqlab.compression.insertion import prepare
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantization import freeze, quantize
from dfqlab.compression.rounding import Rounded, RoundedWeight, nearest
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.errors import DataError
from dfqlab.images import Batch, StoredImages
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


def means(y: Tensor) -> Tensor:
    """Of each channel; a layer's channels are the first dimension behind the batch, the last of a linear layer."""
    return y.double().mean((0, 2, 3) if y.dim() == 4 else 0)


def prepared_for(teacher: Teacher, images: Tensor, **settings: object) -> tuple[PreparedNetwork, Rounded]:
    spec = QuantizationSpec(**{"calibration": "minmax", "weights": 3, **settings})  # type: ignore[arg-type]
    prepared = prepare(teacher, spec)
    calibrate(prepared, StoredImages(images))
    return prepared, nearest(prepared)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Identity()])
@pytest.mark.parametrize("second", [{"padding": 1}, {"groups": 4}, {"stride": 2, "dilation": 2}])
def test_analytic_correction_rights_the_mean_where_inputs_are_the_gaussians_that_batch_norm_keeps(
    make_teacher: MakeTeacher, images: Tensor, activation: nn.Module, second: dict[str, int]
) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 8, 3, **second), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    prepared, rounded = prepared_for(make_teacher(net), images, bias_correction="analytic")
    layer, known = prepared.weights["3"], prepared.gaussians["0"]
    noise = torch.randn(4000, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    x = activation(known.mean[:, None, None] + known.std[:, None, None] * noise)
    expected = means(layer(x))
    biases = corrected_biases(prepared, rounded, None)
    before, after = (
        (means(applied(layer, x, rounded["3"].weight, bias)) - expected).abs() for bias in (layer.bias, biases["3"])
    )
    assert after.max() < 0.02 * before.max()


class Net(nn.Module):
    """Layers with and without a bias, an addition, a linear layer behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6))
        self.plain = nn.Conv2d(6, 4, 3, stride=2, bias=False)
        self.hidden, self.head = nn.Linear(36, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.plain((self.depthwise(x) + x).relu()).relu()
        return self.head(self.hidden(x.flatten(1)).relu())  # type: ignore[no-any-return]


class Run(fx.Interpreter):
    """The means that every layer puts out: of the float network, or with everything on its grid and these biases."""

    def __init__(self, prepared: PreparedNetwork, rounded: Rounded, biases: Mapping[str, Tensor] | None) -> None:
        super().__init__(prepared.graph)
        self.prepared, self.rounded, self.biases = prepared, rounded, biases
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        path, out = str(n.target), super().run_node(n)
        if path in self.prepared.activations and self.biases is not None:
            return self.prepared.activations[path].simulate(self.env[n.args[0]])
        if path in self.prepared.weights:
            layer = self.prepared.weights[path]
            if self.biases is not None:
                bias = self.biases.get(path, layer.bias)
                out = applied(layer, self.env[n.args[0]], self.rounded[path].weight, bias)
            self.found[path] = means(out)  # type: ignore[arg-type]
        return out


@pytest.mark.traces
@pytest.mark.parametrize("equalization", ["none", "dfq"])
def test_empirical_correction_rights_the_mean_of_every_layer_on_these_images(
    make_teacher: MakeTeacher, images: Tensor, equalization: str
) -> None:
    teacher = make_teacher(Net())
    prepared, rounded = prepared_for(teacher, images, bias_correction="empirical", equalization=equalization)
    biases = corrected_biases(prepared, rounded, StoredImages(images))
    assert biases.keys() == prepared.weights.keys() - {"plain"}
    runs = [Run(prepared, rounded, given) for given in (None, {}, biases)]
    for run in runs:
        with torch.no_grad():
            run.run(teacher.input.normalize(images))
    exact, before, after = (run.found for run in runs)
    for path in biases:
        assert (after[path] - exact[path]).abs().max() < 1e-5 < 1e-2 < (before[path] - exact[path]).abs().max()


def test_no_correction_leaves_every_bias(make_teacher: MakeTeacher, images: Tensor) -> None:
    prepared, rounded = prepared_for(make_teacher(Net()), images, bias_correction="none", equalization="dfq")
    assert corrected_biases(prepared, rounded, StoredImages(images)) == {}


class Nothing:
    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        return iter(())


@pytest.mark.parametrize("source", [None, Nothing(), StoredImages(torch.zeros(0, 3, 8, 8))])
def test_empirical_correction_without_images_is_refused(
    make_teacher: MakeTeacher, source: Nothing | StoredImages | None
) -> None:
    with pytest.raises(DataError, match=r"bias_correction='empirical' needs images|gives no image"):
        quantize(make_teacher(Net()), source, calibration="bn", bias_correction="empirical")


@pytest.mark.parametrize("method", ["analytic", "empirical"])
def test_layers_along_the_last_of_four_dimensions_are_corrected_too(
    make_teacher: MakeTeacher, images: Tensor, method: str
) -> None:
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 6, 2), nn.BatchNorm2d(6)
            self.mix, self.head = nn.Linear(6, 9), nn.Linear(9, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.mix(self.norm(self.stem(x)).relu().permute(0, 2, 3, 1)).relu()
            return self.head(x.permute(0, 3, 1, 2).mean((2, 3)))  # type: ignore[no-any-return]

    teacher = make_teacher(ChannelsLast())
    prepared, rounded = prepared_for(teacher, images, bias_correction=method)
    found = corrected_biases(prepared, rounded, StoredImages(images))
    assert {path: len(bias) for path, bias in found.items()} == {"stem": 6, "mix": 9, "head": 5}


@pytest.mark.parametrize("method", ["analytic", "empirical"])
def test_a_corrected_bias_fits_int32(make_teacher: MakeTeacher, images: Tensor, method: str) -> None:
    prepared, rounded = prepared_for(make_teacher(Net()), images, bias_correction=method)
    # Rounding that goes far astray: what it takes is more than a bias can hold.
    astray = {path: RoundedWeight(w.codes + 1e12 * torch.sign(w.codes), w.scale) for path, w in rounded.items()}
    biases = corrected_biases(prepared, astray, StoredImages(images))
    model = freeze(prepared, rounded=rounded, biases=biases, provenance={})
    for path, bias in biases.items():
        layer = model.layers[path]
        assert layer.bias_codes is not None
        assert int(layer.bias_codes.abs().max()) == pytest.approx(2**30, rel=1e-6)
        error = (layer.bias_codes * layer.bias_scale.double() - bias.double()).abs()
        assert (error <= 1e-6 * bias.abs() + layer.bias_scale).all()
