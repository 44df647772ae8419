"""Where quantizers stand, counted by hand on small networks; and that all that integers read is an integer."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfqlab.compression.insertion import prepare
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.prepared import PlacementRow, PreparedNetwork
from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import QuantizationSpec, Widths
from dfqlab.errors import ConfigurationError, QuantizationError, TeacherError
from dfqlab.measures import sqnr
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]
OnGrids = Callable[[CompressedModel, Tensor], int]

WEIGHTS, ACTIVATIONS = 3, 5
W, A = str(WEIGHTS), str(ACTIVATIONS)
INPUT = ("input", "input", "8")
HEAD = ("head", "linear", f"{W} / float")


def conv(name: str, activation: str = "") -> tuple[str, str, str]:
    return (name, "conv2d" + (f" + {activation}" if activation else ""), f"{W} / {A}")


class Net(nn.Module):
    """Parts for the networks below; each uses some."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.a_norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.b_norm = nn.BatchNorm2d(4)
        self.c = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 5)

    def classify(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(x), 1))  # type: ignore[no-any-return]


class Chain(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.a_norm(self.a(x))), 2)
        return self.classify(self.relu6(self.b_norm(self.b(x))))


class Residual(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a_norm(self.a(x)))
        y = self.b_norm(self.b(x))
        y += x
        return self.classify(self.relu(y))


class LinearBottleneck(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a_norm(self.a(x))
        return self.classify(x + self.c(self.relu6(self.b(x))))


class FunctionalEverything(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a_norm(self.a(x)))
        x = torch.add(F.relu6(self.b(x)), self.c(x)).relu()
        x = F.avg_pool2d(x, 2)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Concatenation(Net):
    """Both branches and the whole are quantized; the input is on its grid already, and reads of a part stay there."""

    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.a(x))
        return self.classify(self.d(torch.cat([y, self.c(y), x], 1)))


class ConcatenationThenNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.d = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.classify(self.d(self.relu(self.norm(torch.cat([y, self.b(y)], 1)))))


class Shared(Net):
    """One ReLU and one convolution, called twice: two places."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a_norm(self.a(x)))
        x = self.relu(self.b(x))
        return self.classify(self.relu(self.b(x)))


class ChunkAndShuffle(Net):
    def __init__(self) -> None:
        super().__init__()
        self.halved = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a_norm(self.a(x)))
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.relu(self.halved(right))), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.classify(self.c(x[:, :, ::2]))


class PoolBeforeTheActivation(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.b(self.relu(F.max_pool2d(self.a(x), 2))))


class PreActivation(Net):
    """In-place or not, the shortcut reads the sum after its activation, as torch does."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.c(x)
        return self.classify(self.b(self.relu(x)) + x)


class ActivationWithTwoSources(Net):
    """A tensor that is read with and without its ReLU is quantized as it is; the ReLU stays on that grid."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.classify(self.b(F.relu(x)) + x)


class Relu6OnAGrid(Net):
    """A ReLU6 that no layer of its own precedes is computed in float, then quantized."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.classify(self.b(self.relu6(x)) + x)


class Gated(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        return self.classify(x * torch.sigmoid(self.c(F.adaptive_avg_pool2d(x, 1))))


class Shares(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.classify(self.relu(self.a(x))), dim=1)


class PooledLogits(Net):
    """No linear layer: the last pooling gives the logits, and what it reads is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.relu(self.d(self.relu(self.a(x))))), 1)


class NamedInput(Net):
    """A layer called `input` is not the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.relu(self.input(x)))


class Keyword(Net):
    """Tensors given by keyword are not followed: the operation stays float, and the table says so."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.b(torch.cat(tensors=(self.relu(self.a(x)),), dim=1)))


class Optional(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.classify(self.relu(self.a(x)))


EXPECTED: dict[type[Net], list[tuple[str, str, str]]] = {
    Chain: [INPUT, conv("a", "relu"), conv("b", "relu6"), ("pool", "average_pool", A), HEAD],
    Residual: [INPUT, conv("a", "relu"), conv("b"), ("add", "add + relu", A), ("pool", "average_pool", A), HEAD],
    LinearBottleneck: [
        INPUT, conv("a"), conv("b", "relu6"), conv("c"), ("add", "add", A), ("pool", "average_pool", A), HEAD,
    ],
    FunctionalEverything: [
        INPUT, conv("a", "relu"), conv("b", "relu6"), conv("c"), ("add", "add + relu", A),
        ("avg_pool2d", "average_pool", A), ("adaptive_avg_pool2d", "average_pool", A), HEAD,
    ],
    Concatenation: [
        INPUT, conv("a", "relu"), conv("c"), ("cat", "cat", A), conv("d"), ("pool", "average_pool", A), HEAD,
    ],
    ConcatenationThenNorm: [
        INPUT, conv("a"), conv("b"), ("cat", "cat", A), conv("norm", "relu"), conv("d"),
        ("pool", "average_pool", A), HEAD,
    ],
    Shared: [
        INPUT, conv("a", "relu"), conv("b", "relu"), conv("b_call2", "relu"), ("pool", "average_pool", A), HEAD,
    ],
    ChunkAndShuffle: [
        INPUT, conv("a", "relu"), conv("halved", "relu"), ("cat", "cat", A), conv("c"), ("pool", "average_pool", A),
        HEAD,
    ],
    PoolBeforeTheActivation: [INPUT, conv("a"), conv("b"), ("pool", "average_pool", A), HEAD],
    PreActivation: [
        INPUT, conv("a"), conv("c"), ("add", "add + relu", A), conv("b"), ("add_1", "add", A),
        ("pool", "average_pool", A), HEAD,
    ],
    ActivationWithTwoSources: [INPUT, conv("a"), conv("b"), ("add", "add", A), ("pool", "average_pool", A), HEAD],
    Relu6OnAGrid: [
        INPUT, conv("a"), ("relu6", "relu6", "float"), ("relu6", "relu6", A), conv("b"), ("add", "add", A),
        ("pool", "average_pool", A), HEAD,
    ],
    Gated: [
        INPUT, conv("a"), ("silu", "silu", "float"), ("silu", "silu", A), ("adaptive_avg_pool2d", "average_pool", A),
        conv("c"), ("sigmoid", "sigmoid", "float"), ("mul", "mul", "float"), ("mul", "mul", A),
        ("pool", "average_pool", A), HEAD,
    ],
    Shares: [INPUT, conv("a", "relu"), ("pool", "average_pool", A), HEAD, ("log_softmax", "log_softmax", "float")],
    PooledLogits: [INPUT, conv("a", "relu"), conv("d", "relu"), ("pool", "average_pool", "float")],
    NamedInput: [INPUT, conv("input", "relu"), ("pool", "average_pool", A), HEAD],
    Keyword: [
        INPUT, conv("a", "relu"), ("cat", "cat", "float"), ("cat", "cat", A), conv("b"), ("pool", "average_pool", A),
        HEAD,
    ],
    Optional: [INPUT, conv("a", "relu"), ("pool", "average_pool", A), HEAD],
}  # fmt: skip


@pytest.fixture(scope="module", params=EXPECTED, ids=lambda network: network.__name__)
def network(request: pytest.FixtureRequest) -> type[Net]:
    kind: type[Net] = request.param
    return kind


@pytest.fixture(scope="module")
def prepared(make_teacher: MakeTeacher, network: type[Net]) -> PreparedNetwork:
    return prepare(make_teacher(network()), QuantizationSpec(WEIGHTS, ACTIVATIONS))


def rows(table: tuple[PlacementRow, ...]) -> list[tuple[str, str, str]]:
    return [(row.name, row.operation, row.bits) for row in table]


def test_the_table_tells_every_place_in_order(prepared: PreparedNetwork, network: type[Net]) -> None:
    assert rows(prepared.table) == EXPECTED[network]


def test_there_is_a_quantizer_for_each_row_that_is_not_float_and_no_other(
    prepared: PreparedNetwork, network: type[Net]
) -> None:
    expected = [(name, int(bits.split(" / ")[-1])) for name, _, bits in EXPECTED[network] if not bits.endswith("float")]
    assert [(q.name, q.grid.bits) for q in prepared.activations.values()] == expected
    assert not any(q.grid.symmetric for q in prepared.activations.values())
    called = [node.target for node in prepared.graph.graph.find_nodes(op="call_module")]
    assert all(called.count(path) == 1 for path in prepared.activations)


def test_before_it_is_frozen_the_network_is_the_teachers(prepared: PreparedNetwork, images: Tensor) -> None:
    expected = prepared.teacher(images)
    found = prepared.graph(prepared.teacher.input.normalize(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 8])
def test_what_integer_operations_read_is_on_a_grid(
    make_teacher: MakeTeacher, network: type[Net], images: Tensor, inputs_on_grids: OnGrids, bits: int
) -> None:
    model = quantize(make_teacher(network()), images, weights=bits, activations=bits, calibration="minmax")
    layers = sum(" / " in row.bits for row in model.table)
    assert inputs_on_grids(model, images) >= layers
    if bits == 8:
        assert sqnr(model.teacher(images), model(images)) > 20  # type: ignore[misc]


def test_logits_are_float_and_weights_of_the_last_layer_are_not(prepared: PreparedNetwork) -> None:
    (output,) = prepared.graph.graph.find_nodes(op="output")
    node = output.args[0]
    while node.op != "call_module" or isinstance(prepared.graph.get_submodule(node.target), nn.Flatten):
        node = node.args[0]
    assert node.target not in prepared.activations


def test_only_relu_and_relu6_bound_a_range(make_teacher: MakeTeacher) -> None:
    prepared = prepare(make_teacher(LinearBottleneck()), QuantizationSpec())
    bounds = {q.name: (q.lower, q.upper) for q in prepared.activations.values()}
    assert bounds == {
        "input": (None, None), "a": (None, None), "b": (0.0, 6.0), "c": (None, None), "add": (None, None),
        "pool": (None, None),
    }  # fmt: skip
    assert {q.name: (q.lower, q.upper) for q in prepare(
        make_teacher(Chain()), QuantizationSpec()
    ).activations.values()}["a"] == (0.0, None)  # fmt: skip


def test_weights_are_those_of_all_layers_and_gaussians_of_the_folded_ones(make_teacher: MakeTeacher) -> None:
    prepared = prepare(make_teacher(Residual()), QuantizationSpec())
    assert list(prepared.weights) == ["a", "b", "head"]
    assert list(prepared.gaussians) == ["a", "b"]


class Gate(nn.Module):
    """Its path through the code depends on what it sees: torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if bool(x.sum() > 0) else x  # type: ignore[no-any-return]


class WithGate(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.b(self.gate(self.relu(self.a(x)))))


def test_a_leaf_is_opaque_and_the_table_says_so(
    make_teacher: MakeTeacher, images: Tensor, inputs_on_grids: OnGrids
) -> None:
    with pytest.raises(TeacherError, match=r"leaves=\['gate'\]"):
        prepare(make_teacher(WithGate()), QuantizationSpec())
    teacher = make_teacher(WithGate(), leaves=["gate"])
    prepared = prepare(teacher, QuantizationSpec(WEIGHTS, ACTIVATIONS))
    assert rows(prepared.table) == [
        INPUT, conv("a", "relu"), ("gate", "Gate", "float"), ("gate", "Gate", A), conv("b"),
        ("pool", "average_pool", A), HEAD,
    ]  # fmt: skip
    model = quantize(teacher, images, calibration="minmax")
    assert list(model.layers) == ["a", "b", "head"]
    assert inputs_on_grids(model, images) == 4


@pytest.mark.parametrize("leaf", ["a", "b", "head", "relu", "a_norm", "pool"])
def test_any_layer_named_as_a_leaf_stays_float(make_teacher: MakeTeacher, images: Tensor, leaf: str) -> None:
    teacher = make_teacher(Chain(), leaves=[leaf])
    model = quantize(teacher, images, calibration="minmax")
    assert leaf not in model.layers
    kind = type(teacher.module.get_submodule(leaf))
    assert (leaf, kind.__name__, "float") in rows(model.table)
    assert isinstance(model.graph.get_submodule(leaf), kind)


def test_layers_of_submodules_are_named_by_their_paths(make_teacher: MakeTeacher) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.conv(x))

    net = nn.Sequential(Block(), nn.Sequential(Block()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    names = [row.name for row in prepare(make_teacher(net), QuantizationSpec()).table]
    assert names == ["input", "0.conv", "0.add", "1.0.conv", "1.0.add_1", "2", "4"]


@pytest.mark.parametrize(
    ("name", "widths", "said"),
    [
        ("input", Widths(activations=4), "what 'input' puts out is the network's input, which has 8 bits"),
        ("2", Widths(weights=4), "'2' .average_pool. has no weights"),
        ("4", Widths(activations=4), "what '4' puts out is float, as logits are"),
    ],
)
def test_bits_that_a_row_of_the_table_does_not_have_are_refused(
    make_teacher: MakeTeacher, name: str, widths: Widths, said: str
) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(ConfigurationError, match=said):
        prepare(make_teacher(module), QuantizationSpec(layers={name: widths}))


class EarlySize(nn.Module):
    """Flattens by the size of its input: no block of it can be computed by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().view(x.size(0), -1))  # type: ignore[no-any-return]


def plain(*behind: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), *behind, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


INFEASIBLE: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "blocks": (EarlySize, {"rounding": "brecq"}, "reads the size of"),
    "no BatchNorm": (plain, {"calibration": "bn"}, "has no BatchNorm layer that remembers"),
    "unknown to BatchNorm": (
        lambda: plain(nn.BatchNorm2d(4), nn.Sigmoid()), {"calibration": "bn"}, "not known from BatchNorm alone"
    ),
    "a budget": (plain, {"mean_bits": 3.0, "ends": 6}, "mean_bits=3: the smallest possible here is 6"),
}  # fmt: skip


@pytest.mark.parametrize("what", INFEASIBLE)
def test_what_no_images_would_help_is_refused_before_there_are_any(make_teacher: MakeTeacher, what: str) -> None:
    network, asked, said = INFEASIBLE[what]
    teacher = make_teacher(network())
    prepare(teacher, QuantizationSpec())
    with pytest.raises(QuantizationError, match=said):
        prepare(teacher, QuantizationSpec(**asked))


def test_mixed_precision_without_scipy_is_refused_before_there_are_images(
    make_teacher: MakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigurationError, match=r"pip install \"dfqlab\[search\]\""):
        prepare(make_teacher(plain()), QuantizationSpec(mean_bits=4))
