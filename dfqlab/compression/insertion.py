"""Where quantizers go: the `deployable` placement, what an integer runtime executes."""

from dataclasses import replace
from typing import Any, Literal

from torch import fx, nn

from dfqlab.compression.allocation import check_budget
from dfqlab.compression.blocks import find_units
from dfqlab.compression.equalization import Chain, equalize, find_chains
from dfqlab.compression.folding import FoldedNetwork, fold
from dfqlab.compression.gaussians import expected_values
from dfqlab.compression.kinds import CappedReLU, Kind, kind_of
from dfqlab.compression.prepared import ChainRow, PlacementRow, PreparedNetwork
from dfqlab.compression.quantizers import ActivationQuantizer
from dfqlab.compression.spec import INPUT_BITS, Grid, QuantizationSpec, Widths
from dfqlab.compression.splitting import split_channels
from dfqlab.errors import ConfigurationError, did_you_mean
from dfqlab.teachers import Teacher


def prepare(teacher: Teacher, spec: QuantizationSpec) -> PreparedNetwork:
    """Fold the teacher, equalize it and split its channels where asked for, and place quantizers, a tensor one at most:

    the network's input (8 bits); the output of every convolution and linear layer after its ReLU; of every addition,
    average pooling and concatenation, and every tensor that one of these reads. Operations that only move values
    (pooling by maximum, reshaping, slicing, zero padding) keep the grid of their input. Logits stay float.

    Raises:
        TeacherError: torch.fx cannot trace the network.
        ConfigurationError: bits for a layer that does not exist, or `mean_bits` without scipy.
        QuantizationError: `mean_bits` below what is possible; a network that cannot be cut into blocks where these are
            reconstructed; one of which BatchNorm says too little where ranges come from there.
    """
    folded, chains = fold(teacher), tuple[Chain, ...]()
    if spec.equalization == "dfq":
        folded, chains = equalize(folded)
    elif spec.split_channels:
        chains = tuple(find_chains(folded.graph))
    equalized = spec.equalization == "dfq"
    rows = (ChainRow(c.first, c.second, equalized and not c.reason, split=0, skipped=c.reason) for c in chains)
    prepared = replace(_Inserter(teacher, spec, folded).run(), chains=tuple(rows))
    if spec.split_channels:
        prepared = split_channels(prepared)
    _require_feasible(prepared)
    return prepared


def _require_feasible(prepared: PreparedNetwork) -> None:
    """Whoever makes images prepares first: what would fail with any images fails here, before hours of work."""
    check_budget(prepared)
    if prepared.spec.calibration == "bn":
        expected_values(prepared)
    if prepared.spec.rounding in ("brecq", "qdrop"):
        find_units(prepared, "block")


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
        self.weighted = [node for node, kind in self.kinds.items() if kind == "weighted"]
        last = [node for node in self.weighted if self._is_logits(node)]
        self.first_and_last = list(dict.fromkeys([*self.weighted[:1], *last]))
        self.at_the_ends = {*self.first_and_last, *(self._made_by(node.args[0]) for node in last)}

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
        weights, grids = {}, {}
        for node in self.weighted:
            path = str(node.target)
            layer = self.graph_module.get_submodule(path)
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            weights[path] = layer
            grids[path] = replace(self.spec.weight_grid, bits=self._bits(node, "weights"))
        self._check_names()
        return PreparedNetwork(
            self.teacher, self.spec, self.graph_module, self.activations, weights, grids, self.folded.gaussians,
            self.grid_of, tuple(self.rows), tuple(str(node.target) for node in self.first_and_last),
        )  # fmt: skip

    def _check_names(self) -> None:
        rows = {row.name: row for row in self.rows}
        for name, widths in self.spec.layers.items():
            if name not in rows:
                raise ConfigurationError(f"layers: nothing is called {name!r}; {did_you_mean(name, rows)}")
            weights, _, activations = rows[name].bits.rpartition(" / ")
            if widths.weights is not None and not weights:
                raise ConfigurationError(f"layers: {name!r} ({rows[name].operation}) has no weights")
            if widths.activations is not None and (activations == "float" or rows[name].operation == "input"):
                what = "the network's input, which has 8 bits" if activations != "float" else "float, as logits are"
                raise ConfigurationError(f"layers: what {name!r} puts out is {what}")

    def _made_by(self, node: Any) -> fx.Node:
        """The operation behind whose activation function the quantizer of a tensor stands."""
        while self.kinds[node] in ("transparent", "relu", "relu6"):
            node = node.args[0]
        found: fx.Node = node
        return found

    def _bits(self, node: fx.Node, which: Literal["weights", "activations"]) -> int:
        """Of a layer's weights or of what an operation puts out: its own, those of the ends, or those of all."""
        widths = self.spec.layers.get(self._layer_name(node), Widths())
        own: int | None = getattr(widths, which)
        if own is None and node in (self.first_and_last if which == "weights" else self.at_the_ends):
            own = self.spec.ends
        default: int = getattr(self.spec, which)
        return own or default

    def _activation(self, node: fx.Node, kind: Kind) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if self.kinds.get(source) in _READS_INTEGERS and self._fused_activation(source) is node:
            if self._is_logits(node):
                self._note(node, "float")
            else:
                self._quantize(node, lower=0.0, upper=self._cap(node, kind), named_after=source)
        elif source in self.grid_of and kind == "relu":
            self.grid_of[node] = self.grid_of[source]  # max(code, zero_point) stays on the grid
        else:
            self._note(node, "float")

    def _cap(self, node: fx.Node, kind: Kind) -> float | None:
        """The cap that all channels share."""
        capped = node.op == "call_module" and isinstance(self.graph_module.get_submodule(str(node.target)), CappedReLU)
        return 6.0 if kind == "relu6" and not capped else None

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
        source = named_after or node
        grid = grid or replace(self.spec.activation_grid, bits=self._bits(source, "activations"))
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
            bits = f"{self._bits(node, 'weights')} / {bits}"
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
