"""Cross-layer equalization: the network computes what it did, neighbours reach equally far, and nothing else moves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import dfqlab
from dfqlab.compression import equalization
from dfqlab.compression.calibration import calibrate
from dfqlab.compression.correction import corrected_biases
from dfqlab.compression.equalization import Chain, equalize
from dfqlab.compression.execution import applied
from dfqlab.compression.folding import FoldedNetwork, Gaussian, fold
from dfqlab.compression.insertion import prepare
from dfqlab.compression.integers import CapChannels
from dfqlab.compression.kinds import CappedReLU, kind_of
from dfqlab.compression.model import load_model
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantization import freeze
from dfqlab.compression.rounding import Rounded, nearest
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.deployment import OnnxModel
from dfqlab.images import StoredImages
from dfqlab.measures import sqnr
from dfqlab.teachers import Teacher
from dfqlab.teachers.cifar_networks import CIFAR10_NETWORKS
from dfqlab.teachers.names import DIGITS_NAMES

MakeTeacher = Callable[..., Teacher]
Weighted = nn.Conv2d | nn.Linear

pytestmark = pytest.mark.traces  # the zoo's own modules are annotated


@pytest.fixture
def no_absorption(monkeypatch: pytest.MonkeyPatch) -> None:
    """What absorption changes is right only where activations are high enough; it is tested apart."""
    monkeypatch.setattr(equalization, "_absorb", lambda chain, known, graph: known)


def exactly(teacher: Teacher) -> FoldedNetwork:
    """The folded network in float64."""
    folded = fold(teacher)
    gaussians = {path: Gaussian(known.mean.double(), known.std.double()) for path, known in folded.gaussians.items()}
    return FoldedNetwork(folded.graph.double(), gaussians)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers_of(folded: FoldedNetwork, chain: Chain) -> tuple[Weighted, Weighted]:
    return tuple(folded.graph.get_submodule(path) for path in (chain.first, chain.second))  # type: ignore[return-value]


def reaches(first: Weighted, second: Weighted) -> tuple[Tensor, Tensor]:
    """The largest weight that makes, and that reads, each channel."""
    channels = len(first.weight)
    if isinstance(second, nn.Linear):
        read = [part.abs().max() for part in second.weight.split(second.in_features // channels, dim=1)]
    else:
        of_a_group = channels // second.groups
        outputs = second.weight.split(second.out_channels // second.groups)
        read = [outputs[c // of_a_group][:, c % of_a_group].abs().max() for c in range(channels)]
    return torch.stack([row.abs().max() for row in first.weight]), torch.stack(read)


class Tallest(fx.Interpreter):
    """The largest value that any ReLU6 is given."""

    behind_relu6 = 0.0

    def run_node(self, n: fx.Node) -> object:
        if kind_of(n, self.module) == "relu6":
            self.behind_relu6 = max(self.behind_relu6, float(self.env[n.args[0]].max()))
        return super().run_node(n)


def zoo_teacher(name: str, make_teacher: MakeTeacher) -> Teacher:
    if name.startswith("digits/"):
        return dfqlab.load_teacher(name)
    with torch.random.fork_rng(devices=[]):
        module = CIFAR10_NETWORKS[name]()
    return make_teacher(module, size=(3, 32, 32), classes=10)


ZOO = [  # and how many chains each network has, counted by hand
    ("digits/resnet", 3), ("digits/mobilenet", 11), ("digits/vgg", 4),
    ("resnet20", 9), ("vgg11_bn", 8), ("mobilenet_v2", 37), ("shufflenet_v2", 36),
]  # fmt: skip


def test_the_zoo_is_whole() -> None:
    assert [name for name, _ in ZOO] == [*(f"digits/{name}" for name in DIGITS_NAMES), *CIFAR10_NETWORKS]


@pytest.mark.parametrize(("name", "count"), ZOO)
@pytest.mark.usefixtures("no_absorption")
def test_every_network_computes_what_it_did_and_neighbours_reach_equally_far(
    make_teacher: MakeTeacher, name: str, count: int
) -> None:
    teacher = zoo_teacher(name, make_teacher)
    folded = exactly(teacher)
    x = 4 * normal(2, *teacher.input.size)
    tallest = Tallest(folded.graph)
    expected = tallest.run(x)
    assert tallest.behind_relu6 > 6 or "mobilenet" not in name
    equalized, chains = equalize(folded)
    torch.testing.assert_close(equalized.graph(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert sum(not chain.reason for chain in chains) == count
    for chain in chains:
        if not chain.reason:
            made, read = reaches(*layers_of(equalized, chain))
            assert (made / read - 1).abs().max() < 1e-3, chain


def conv(inputs: int, outputs: int, kernel: int = 1, **more: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, **more), nn.BatchNorm2d(outputs)]


def ended(*layers: nn.Module, features: int = 8) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 5))


class LastDimension(nn.Module):
    """Linear layers along the last dimension of four, channels last."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem, self.activation = nn.Conv2d(3, 8, 1), activation
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.activation(self.up(self.stem(x).permute(0, 2, 3, 1))))
        return self.head(x.mean((1, 2)))  # type: ignore[no-any-return]


def tied() -> nn.Module:
    net = ended(nn.Conv2d(3, 8, 8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
    net[4].weight = net[2].weight
    return net


POOL = nn.AdaptiveAvgPool2d(1)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, str]]]] = {
    "grouped": (
        lambda: ended(*conv(3, 8), nn.ReLU(), *conv(8, 8, 3, groups=2), nn.ReLU6(), POOL), [("0", "3"), ("3", "8")]
    ),
    "depthwise": (
        lambda: ended(*conv(3, 4), nn.ReLU6(), *conv(4, 8, 3, groups=4), nn.ReLU(), POOL), [("0", "3"), ("3", "8")]
    ),
    "flattened map": (lambda: ended(*conv(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), features=72), [("0", "5")]),
    "averaged map": (lambda: ended(*conv(3, 8, 3), nn.ReLU6(), nn.AvgPool2d(3, padding=1), features=32), [("0", "5")]),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU6(), nn.Linear(8, 5)), [("1", "3")]),
    "no activation": (lambda: ended(nn.Conv2d(3, 8, 8, bias=False), nn.Conv2d(8, 8, 1)), [("0", "1"), ("1", "3")]),
    "flattened before its ReLU6": (lambda: ended(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.ReLU6(), features=288), []),
    "half flattened": (
        lambda: ended(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(1, 2), nn.Linear(8, 8), features=512), []
    ),
    "linear on a map": (lambda: ended(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(8, 8), POOL), []),
    "channels last": (lambda: LastDimension(nn.ReLU6()), []),
    "tied weights": (tied, []),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("no_absorption")
def test_chains_are_found_where_a_factor_passes_and_nowhere_else(make_teacher: MakeTeacher, name: str) -> None:
    network, expected_chains = NETWORKS[name]
    folded = exactly(make_teacher(network()))
    x = 4 * normal(4, 3, 8, 8)
    expected = folded.graph(x)
    equalized, chains = equalize(folded)
    torch.testing.assert_close(equalized.graph(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    found = [(chain.first, chain.second) for chain in chains if not chain.reason]
    assert set(expected_chains) <= set(found)
    for chain in chains:
        assert bool(chain.reason) != bool(chain.second)
    for made, read in (reaches(*layers_of(equalized, c)) for c in chains if (c.first, c.second) in expected_chains):
        assert torch.allclose(made, read, rtol=1e-3)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.gate, self.twice, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.sigmoid(self.gate(self.left(x) + F.relu(self.right(x))))
        return self.head(F.relu6(F.relu6(self.twice(x)).mean((2, 3))))  # type: ignore[no-any-return]


def test_what_no_factor_passes_is_listed_with_the_reason_and_left_alone(make_teacher: MakeTeacher) -> None:
    folded = fold(make_teacher(Branching()))
    before = {name: tensor.clone() for name, tensor in folded.graph.state_dict().items()}
    equalized, chains = equalize(folded)
    assert {chain.first: chain.reason for chain in chains} == {
        "stem": "2 operations read what it puts out",
        "left": "add stands behind it",
        "right": "add stands behind it",
        "gate": "sigmoid stands behind it",
        "twice": "two activation functions stand behind it",
        "head": "the network's output",
    }
    after = equalized.graph.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.usefixtures("no_absorption")
def test_dead_channels_keep_the_factor_one_and_gammas_may_be_zero_or_negative(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(ended(*conv(3, 8), nn.ReLU6(), *conv(8, 8, 3), nn.ReLU(), POOL))
    first, norm, _, second = list(teacher.module)[:4]  # type: ignore[call-overload]
    first.weight.data[0], norm.weight.data[1], second.weight.data[:, 2] = 0, 0, 0
    norm.weight.data[3:6] = -3 * norm.weight.data[3:6].abs()
    second.weight.data[:, 4] *= 1e-12
    folded = exactly(teacher)
    made = folded.graph.get_submodule("0").weight[:3].clone()
    x = 4 * normal(4, 3, 8, 8)
    expected = folded.graph(x)
    equalized, _ = equalize(folded)
    assert torch.equal(equalized.graph.get_submodule("0").weight[:3], made)
    (caps,) = (m.caps for m in equalized.graph.modules() if isinstance(m, CappedReLU))
    assert caps[:3].tolist() == [6, 6, 6]
    assert all(torch.isfinite(tensor).all() for tensor in equalized.graph.state_dict().values())
    torch.testing.assert_close(equalized.graph(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.usefixtures("no_absorption")
def test_gaussians_are_scaled_as_the_outputs_are(make_teacher: MakeTeacher) -> None:
    folded = exactly(make_teacher(ended(*conv(3, 8, 3), nn.ReLU(), *conv(8, 8, 3), nn.ReLU6(), POOL)))
    before, x = folded.gaussians, normal(64, 3, 8, 8)

    def of_the_first_layer() -> Gaussian:
        y = folded.graph.get_submodule("0")(x)
        return Gaussian(y.mean((0, 2, 3)), y.std((0, 2, 3)))

    seen_before = of_the_first_layer()
    after, seen = equalize(folded)[0].gaussians, of_the_first_layer()
    assert (seen.std / seen_before.std - 1).abs().max() > 0.1
    assert torch.allclose(after["0"].mean / before["0"].mean, seen.mean / seen_before.mean)
    assert torch.allclose(after["0"].std / before["0"].std, seen.std / seen_before.std)


BETWEEN: dict[str, list[nn.Module]] = {
    "nothing": [],
    "maximum": [nn.MaxPool2d(3, 1, 1)],
    "average": [nn.AvgPool2d(3, 2)],
    "average of what is there": [nn.AvgPool2d(3, 1, 1, count_include_pad=False)],
    "average with zeros": [nn.AvgPool2d(3, 1, 1)],
    "a share of the sum": [nn.AvgPool2d(2, divisor_override=3)],
}


def high_biases(make_teacher: MakeTeacher, between: list[nn.Module], **second: int) -> FoldedNetwork:
    """A first layer whose output stands seven deviations above zero and more, in three of four channels."""
    teacher = make_teacher(nn.Sequential(*conv(3, 4), nn.ReLU(), *between, *conv(4, 4, **second), nn.ReLU(), POOL,
                                         nn.Flatten(), nn.Linear(4, 5)))  # fmt: skip
    norm = teacher.module.get_submodule("1")
    norm.weight.data, norm.bias.data = torch.full((4,), 0.3), torch.tensor([2.0, 3.0, 4.0, 0.5])  # type: ignore[union-attr]
    return exactly(teacher)


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_absorption_changes_nothing_where_no_activation_is_below_the_constant(
    make_teacher: MakeTeacher, name: str, groups: int
) -> None:
    folded = high_biases(make_teacher, BETWEEN[name], kernel=2, groups=groups)
    before, x = folded.gaussians["0"], 0.1 * normal(8, 3, 8, 8)
    constant = (before.mean - 3 * before.std).clamp(min=0)
    assert (folded.graph.get_submodule("0")(x).amin((0, 2, 3)) > constant)[:3].all()
    expected = folded.graph(x)
    equalized, (chain, *_) = equalize(folded)
    assert (chain.first, chain.reason) == ("0", "")
    torch.testing.assert_close(equalized.graph(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    after = equalized.gaussians["0"]
    factors = before.std / after.std
    if name in ("nothing", "maximum"):  # an average may have zeros in it
        assert torch.allclose(after.mean * factors, before.mean - constant)
        assert constant.tolist() == pytest.approx([1.1, 2.1, 3.1, 0])


def test_absorption_leaves_a_layer_that_pads_alone(make_teacher: MakeTeacher) -> None:
    folded = high_biases(make_teacher, [], kernel=3, padding=1)
    before, x = folded.gaussians["0"], 4 * normal(8, 3, 8, 8)
    expected = folded.graph(x)
    equalized, _ = equalize(folded)
    torch.testing.assert_close(equalized.graph(x), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    after = equalized.gaussians["0"]
    assert torch.allclose(after.mean / after.std, before.mean / before.std)


class Simulated(fx.Interpreter):
    """The prepared network with every tensor rounded to its grid, and activation functions as torch has them."""

    def __init__(self, prepared: PreparedNetwork, rounded: Rounded, biases: dict[str, Tensor]) -> None:
        super().__init__(prepared.graph)
        self.prepared, self.rounded, self.biases = prepared, rounded, biases

    def run_node(self, n: fx.Node) -> object:
        path = str(n.target)
        if path in self.prepared.activations:
            p, x = self.prepared.activations[path].quantization, self.env[n.args[0]]
            return torch.fake_quantize_per_tensor_affine(x, float(p.scale), p.zero_point, p.quant_min, p.quant_max)
        if path in self.prepared.weights:
            layer, rounded = self.prepared.weights[path], self.rounded[path]
            step = self.prepared.input_scale(path) * rounded.scale
            bias = torch.round(self.biases.get(path, layer.bias) / step) * step
            return applied(layer, self.env[n.args[0]], rounded.weight, bias)
        return super().run_node(n)


CAPPED = {
    "convolutions": lambda: ended(
        *conv(3, 8), nn.ReLU6(), *conv(8, 8, 3, groups=8), nn.ReLU6(), *conv(8, 8), features=288
    ),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU6(), nn.Linear(8, 5)),
    "behind a pooling": lambda: ended(*conv(3, 8, 3), nn.MaxPool2d(2), nn.ReLU6(), *conv(8, 8), features=72),
}  # fmt: skip


@pytest.mark.parametrize("name", CAPPED)
def test_caps_of_channels_survive_in_integers_in_a_file_and_in_onnxruntime(
    make_teacher: MakeTeacher, tmp_path: Path, name: str
) -> None:
    teacher = make_teacher(CAPPED[name]())
    for module in teacher.module.modules():
        if isinstance(module, (nn.Linear, nn.BatchNorm2d)):
            module.weight.data *= 4  # well beyond 6
    images = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prepared = prepare(teacher, QuantizationSpec(weights=7, equalization="dfq", calibration="minmax"))
    calibrate(prepared, StoredImages(images))
    rounded = nearest(prepared)
    biases = corrected_biases(prepared, rounded, None)
    model = freeze(prepared, rounded=rounded, biases=biases, provenance={})
    kinds = {type(m) for m in model.graph.modules()} & {CapChannels, CappedReLU}
    assert kinds == ({CappedReLU} if name == "behind a pooling" else {CapChannels})
    found = model(images)
    with torch.no_grad():
        simulated = Simulated(prepared, rounded, biases).run(teacher.input.normalize(images))
    assert found.shape == simulated.shape
    assert sqnr(simulated, found) > 80
    assert sqnr(teacher(images), found) > 20
    model.save(tmp_path)
    assert torch.equal(load_model(tmp_path)(images), found)
    assert sqnr(found, OnnxModel.of(model)(images)) > 40
