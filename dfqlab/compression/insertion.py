"""Where quantizers go: the `deployable` placement, what an integer runtime executes."""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dfqlab.compression.folding import FoldedNetwork, Gaussian, fold
from dfqlab.compression.kinds import Kind, kind_of
from dfqlab.compression.quantizers import ActivationQuantizer
from dfqlab.compression.spec import INPUT_BITS, Grid, QuantizationSpec
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
class PreparedNetwork:
    """A folded network with quantizers standing in it, not yet calibrated.

    Attributes:
        graph: takes normalised images; float until frozen.
        activations: quantizers by their module path in the graph.
        weights: weighted layers, by their module path.
        gaussians: the output Gaussian of weighted layers that a BatchNorm was folded into.
        grid_of: for each tensor node of the graph, the quantizer (path) whose grid its values stand on.
        table: what was placed where.
    """

    teacher: Teacher
    spec: QuantizationSpec
    graph: fx.GraphModule
    activations: dict[str, ActivationQuantizer]
    weights: dict[str, nn.Conv2d | nn.Linear]
    gaussians: dict[str, Gaussian]
    grid_of: dict[fx.Node, str]
    table: tuple[PlacementRow, ...]


def prepare(teacher: Teacher, spec: QuantizationSpec) -> PreparedNetwork:
    """Fold the teacher and place quantizers, each tensor quantized once:

    the network's input (8 bits); the output of every convolution and linear layer after its ReLU; of every addition,
    average pooling and concatenation, and every tensor that one of these reads. Operations that only move values
    (pooling by maximum, reshaping, slicing, zero padding) keep the grid of their input. Logits stay float.

    Raises:
        TeacherError: torch.fx cannot trace the network.
        QuantizationError: a specification that does not exist.
    """
    return _Inserter(teacher, spec, fold(teacher)).run()


_READS_INTEGERS: tuple[Kind, ...] = ("weighted", "add", "average_pool", "cat")


class _Inserter:
    """One walk over the graph, in order of execution."""

    def __init__(self, teacher: Teacher, spec: QuantizationSpec, folded: FoldedNetwork) -> None:
        self.teacher = teacher
        self.spec = spec
        self.folded = folded
        self.graph_module = folded.graph
        self.kinds = {node: kind_of(node, self.graph_module) for node in self.graph_module.graph.nodes}
        self.activations: dict[str, ActivationQuantizer] = {}
        self.grid_of: dict[fx.Node, str] = {}
        self.rows: list[PlacementRow] = []

    def run(self) -> PreparedNetwork:
        for node, kind in self.kinds.items():
            if kind == "input":
                self._quantize(node, Grid(INPUT_BITS, symmetric=False, granularity="per_tensor"))
            elif kind in _READS_INTEGERS:
                for source in _tensors(node.args):
                    self._require_grid(source)
                if not self._is_logits(node) and self._fused_activation(node) is None:
                    self._quantize(node)
                elif self._is_logits(node):
                    self._note(node, "float")
            elif kind in ("relu", "relu6"):
                self._activation(node, kind)
            elif kind == "transparent":
                self._move(node)
            elif kind in ("float", "batch_norm", "softmax") and node.op != "get_attr":
                self._note(node, "float")
        self.graph_module.recompile()
        weights = {}
        for node, kind in self.kinds.items():
            if kind == "weighted":
                layer = self.graph_module.get_submodule(str(node.target))
                assert isinstance(layer, (nn.Conv2d, nn.Linear))
                weights[str(node.target)] = layer
        return PreparedNetwork(
            self.teacher, self.spec, self.graph_module, self.activations, weights, self.folded.gaussians,
            self.grid_of, tuple(self.rows),
        )  # fmt: skip

    def _activation(self, node: fx.Node, kind: Kind) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if self.kinds.get(source) in _READS_INTEGERS and self._fused_activation(source) is node:
            if self._is_logits(node):
                self._note(node, "float")
            else:
                self._quantize(node, lower=0.0, upper=6.0 if kind == "relu6" else None, named_after=source)
        elif source in self.grid_of and kind == "relu":
            self.grid_of[node] = self.grid_of[source]  # max(code, zero_point) stays on the grid
        else:
            self._note(node, "float")

    def _move(self, node: fx.Node) -> None:
        grids = {self.grid_of.get(source) for source in _tensors(node.args[:1])}
        if len(grids) == 1 and None not in grids:
            self.grid_of[node] = grids.pop()  # type: ignore[assignment]

    def _fused_activation(self, node: fx.Node) -> fx.Node | None:
        """The ReLU or ReLU6 that is the only reader of this node."""
        users = [u for u in node.users if self.kinds.get(u) != "host"]
        return users[0] if len(users) == 1 and self.kinds.get(users[0]) in ("relu", "relu6") else None

    def _is_logits(self, node: fx.Node) -> bool:
        """Whether the value reaches the network's output with nothing but moves and a softmax in between."""
        return all(
            self.kinds.get(user) == "output"
            or (self.kinds.get(user) in ("transparent", "relu", "relu6", "softmax", "host") and self._is_logits(user))
            for user in node.users
        )

    def _require_grid(self, source: fx.Node) -> None:
        if source not in self.grid_of:
            self._quantize(source)

    def _quantize(
        self,
        node: fx.Node,
        grid: Grid | None = None,
        lower: float | None = None,
        upper: float | None = None,
        named_after: fx.Node | None = None,
    ) -> None:
        grid = grid or self.spec.activation_grid
        source = named_after or node
        name = self._layer_name(source)
        path = "quantizer_" + name.replace(".", "_")
        while hasattr(self.graph_module, path):
            path += "_"
        averages = self.grid_of[source.args[0]] if self.kinds[source] == "average_pool" else None  # type: ignore[index]
        quantizer = ActivationQuantizer(name, grid, lower, upper, averages)
        self.graph_module.add_submodule(path, quantizer)
        self.activations[path] = quantizer
        readers = list(node.users)
        with self.graph_module.graph.inserting_after(node):
            inserted = self.graph_module.graph.call_module(path, (node,))
        inserted.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, inserted)
        self.grid_of[node] = self.grid_of[inserted] = path
        self._note(source, str(grid.bits), activation=node if node is not source else None)

    def _note(self, node: fx.Node, bits: str, activation: fx.Node | None = None) -> None:
        kind = self.kinds[node]
        operation: str = kind
        if kind == "weighted":
            operation = type(self.graph_module.get_submodule(str(node.target))).__name__.lower()
            bits = f"{self.spec.weights} / {bits}"
        elif kind in ("float", "transparent", "softmax"):
            operation = _operation(node, self.graph_module)
        if activation is not None:
            operation += f" + {self.kinds[activation]}"
        grid = "" if bits.endswith("float") else "uint8, affine, per tensor"
        self.rows.append(PlacementRow(self._layer_name(node), operation, bits, grid))

    def _layer_name(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return "input"
        if node.op == "call_module":
            return str(node.target)
        scope = next(reversed(node.meta.get("nn_module_stack", {"": None})), "")
        return ".".join(filter(None, (scope, node.name)))


def _tensors(args: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(args, lambda node: found.append(node) if "tensor_meta" in node.meta else None)
    return found


def _operation(node: fx.Node, graph_module: fx.GraphModule) -> str:
    if node.op == "call_module":
        return type(graph_module.get_submodule(str(node.target))).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
