"""Blocks: every layer in one of them, and one tensor in, one tensor out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dfqlab.compression.blocks import find_units
from dfqlab.compression.execution import run
from dfqlab.compression.insertion import prepare
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.reconstruction import units_of
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.errors import QuantizationError
from dfqlab.images import StoredImages
from dfqlab.teachers import Teacher, load_teacher
from dfqlab.teachers.cifar_networks import CIFAR10_MEAN, CIFAR10_NETWORKS, CIFAR10_SIZE, CIFAR10_STD

pytestmark = pytest.mark.traces

MakeTeacher = Callable[..., Teacher]
NETWORKS = [f"digits/{name}" for name in ("resnet", "mobilenet", "vgg")] + [f"cifar10/{n}" for n in CIFAR10_NETWORKS]


@pytest.fixture(params=NETWORKS)
def prepared(request: pytest.FixtureRequest, make_teacher: MakeTeacher) -> PreparedNetwork:
    """Every network of both zoos; those of CIFAR-10 with weights drawn at random."""
    family, _, name = request.param.partition("/")
    if family == "digits":
        return prepare(load_teacher(request.param), QuantizationSpec())
    module = CIFAR10_NETWORKS[name]()
    teacher = make_teacher(module, size=CIFAR10_SIZE, mean=CIFAR10_MEAN, std=CIFAR10_STD, classes=10)
    return prepare(teacher, QuantizationSpec())


def images_for(teacher: Teacher, count: int = 3) -> Tensor:
    return torch.rand(count, *teacher.input.size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("by", ["layer", "block"])
def test_every_layer_is_in_one_unit_in_forward_order(prepared: PreparedNetwork, by: Any) -> None:
    found = [layer for unit in find_units(prepared, by) for layer in unit.layers]
    assert found == list(prepared.weights)


def test_one_tensor_after_the_other_is_the_network(prepared: PreparedNetwork) -> None:
    """Block by block, with nothing kept but what leaves the block before: so nothing goes around a block."""
    images = images_for(prepared.teacher)
    weights = {path: layer.weight for path, layer in prepared.weights.items()}
    units = {unit.nodes[0]: unit for unit in find_units(prepared, "block")}
    inside = {node for unit in units.values() for node in unit.nodes}
    with torch.no_grad():
        expected = prepared.graph(prepared.teacher.input.normalize(images))
        value: Tensor = prepared.teacher.input.normalize(images)
        for node in prepared.graph.graph.nodes:
            if node in units:
                unit = units[node]
                values: dict[fx.Node, Any] = {unit.entry: value}
                run(prepared, unit.nodes, values, weights, None)
                value = values[unit.exit]
            elif node not in inside and node.op not in ("placeholder", "output"):
                (source,) = node.all_input_nodes
                values = {source: value}
                run(prepared, [node], values, weights, None)
                value = values[node]
    assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()


class Residual(nn.Module):
    def __init__(self, *, around: bool) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.second(self.first(x).relu())
        y = (y + x).relu() if self.around else y.relu()
        return self.head(y.mean((2, 3)))


def test_a_residual_branch_is_one_block_with_its_activation_function(make_teacher: MakeTeacher) -> None:
    units = find_units(prepare(make_teacher(Residual(around=True)), QuantizationSpec()), "block")
    assert [unit.layers for unit in units] == [("stem",), ("first", "second"), ("head",)]
    assert str(units[1].exit.target).startswith("quantizer_")
    assert any(node.target == "relu" for node in units[1].nodes[-2:])


def test_a_layer_that_nothing_goes_around_is_a_block_by_itself(make_teacher: MakeTeacher) -> None:
    units = find_units(prepare(make_teacher(Residual(around=False)), QuantizationSpec()), "block")
    assert [unit.name for unit in units] == ["stem", "first", "second", "head"]


def test_a_block_is_called_by_the_module_that_holds_it() -> None:
    units = find_units(prepare(load_teacher("digits/resnet"), QuantizationSpec()), "block")
    assert [unit.name for unit in units] == ["0", "3.body", "4", "5", "8"]


class Flattens(nn.Module):
    """Asks the images how many they are when it flattens."""

    def __init__(self, *, early: bool) -> None:
        super().__init__()
        self.conv, self.head, self.early = nn.Conv2d(3, 4, 3), nn.Linear(144, 5), early

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return self.head(y.view((x if self.early else y).shape[0], -1))


def test_sizes_are_taken_from_inside_the_block_or_refused(make_teacher: MakeTeacher) -> None:
    late = prepare(make_teacher(Flattens(early=False)), QuantizationSpec())
    assert [unit.name for unit in find_units(late, "block")] == ["conv", "head"]
    early = prepare(make_teacher(Flattens(early=True)), QuantizationSpec())
    with pytest.raises(QuantizationError, match="reads the size of"):
        find_units(early, "block")


class Shares(nn.Module):
    """Two residual blocks read one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 1.5]).reshape(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.first(x * self.gain).relu()
        x = x + self.second(x * self.gain).relu()
        return self.head(x.mean((2, 3)))


class AsksInBetween(Residual):
    """Wants to know how many images there are between a layer and its activation function, and uses it far behind."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        count = y.shape[0]
        y = self.second(self.first(y.relu()).relu()).relu()
        return self.head(y.mean((2, 3)).view(count, -1))


@pytest.mark.parametrize(
    ("module", "by"), [(Shares(), "layer"), (Shares(), "block"), (AsksInBetween(around=False), "layer")]
)
def test_a_constant_or_a_size_of_several_units_is_there_for_each(
    module: nn.Module, by: Any, make_teacher: MakeTeacher
) -> None:
    """What leaves the last unit of the walk is what the network answers."""
    prepared = prepare(make_teacher(module), QuantizationSpec())
    images = images_for(prepared.teacher, 70)  # more than go through together
    *_, last = units_of(prepared, StoredImages(images), by)
    with torch.no_grad():
        expected = prepared.teacher(images)
    assert (torch.cat(last.target.parts) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_size_used_behind_a_block_that_makes_it_is_refused(make_teacher: MakeTeacher) -> None:
    with pytest.raises(QuantizationError, match="take sizes from what the block itself reads"):
        find_units(prepare(make_teacher(AsksInBetween(around=False)), QuantizationSpec()), "block")
