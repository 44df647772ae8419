"""A network between folding and integers: quantizers stand in it, and nothing is rounded yet."""

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, fx, nn

from dfqlab.compression.folding import Gaussian
from dfqlab.compression.halves import SplitInputs
from dfqlab.compression.quantizers import ActivationQuantizer
from dfqlab.compression.spec import Grid, QuantizationSpec
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class PlacementRow:
    """One line of the table of what was placed where.

    Attributes:
        name: module path of the layer, or of the module that the operation stands in.
        operation: what it is: "input", "weighted", "add", "average_pool", "cat", ..., or the name of a float operation.
        bits: "8", "4 / 8" (weights / output) or "float".
        grid: how the output's integers are laid out.
    """

    name: str
    operation: str
    bits: str
    grid: str


@dataclass(frozen=True)
class ChainRow:
    """One line of the table of neighbouring layers, between which channels may be scaled or split.

    Attributes:
        layer: module path.
        reader: of the layer that alone reads it, with nothing between them that minds; empty where there is none.
        equalized: whether their channels were scaled against each other.
        split: how many of them were split in two.
        skipped: why something that was asked for was not done.
    """

    layer: str
    reader: str
    equalized: bool
    split: int
    skipped: str


@dataclass(frozen=True)
class PreparedNetwork:
    """A folded network with quantizers standing in it, not yet calibrated.

    Attributes:
        graph: takes normalised images; float until frozen.
        activations: quantizers by their module path in the graph.
        weights: weighted layers, by their module path.
        grids: the grids of their weights.
        gaussians: the output Gaussian of weighted layers that a BatchNorm was folded into.
        grid_of: for each tensor node of the graph, the quantizer (path) whose grid its values stand on.
        table: what was placed where.
        ends: module paths of the first layer and of the last ones.
        chains: what equalization and splitting made of each layer; empty where nobody asked for either.
        splits: layers that read channels which were split in two, by module path.
    """

    teacher: Teacher
    spec: QuantizationSpec
    graph: fx.GraphModule
    activations: dict[str, ActivationQuantizer]
    weights: dict[str, nn.Conv2d | nn.Linear]
    grids: dict[str, Grid]
    gaussians: dict[str, Gaussian]
    grid_of: dict[fx.Node, str]
    table: tuple[PlacementRow, ...]
    ends: tuple[str, ...]
    chains: tuple[ChainRow, ...] = ()
    splits: dict[str, SplitInputs] = field(default_factory=dict)

    def input_scale(self, path: str) -> Tensor:
        """The step of what a weighted layer reads.

        Raises:
            QuantizationError: not calibrated yet.
        """
        (node,) = (n for n in self.graph.graph.nodes if n.op == "call_module" and n.target == path)
        return self.activations[self.grid_of[node.args[0]]].quantization.scale

    @cached_property
    def read_last(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        """For each node, what no node behind it reads any more."""
        readers = {source: node for node in self.graph.graph.nodes for source in node.all_input_nodes}
        return {node: tuple(s for s in node.all_input_nodes if readers[s] is node) for node in self.graph.graph.nodes}
