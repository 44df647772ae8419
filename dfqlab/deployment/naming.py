"""Which layer of the teacher an operation of the runtime's graph is."""

from collections.abc import Sequence

import numpy as np

from dfqlab.compression.integers import Requantize
from dfqlab.compression.model import CompressedModel
from dfqlab.deployment.operators import EXACT, Node
from dfqlab.errors import DeploymentError

_OPERATIONS = {
    "QLinearAdd": "add",
    "QLinearConcat": "cat",
    "QLinearAveragePool": "average_pool",
    "QLinearGlobalAveragePool": "average_pool",
}


def layer_names(nodes: Sequence[Node], model: CompressedModel) -> list[str]:
    """The module path of each operation's layer; the name of its output in the runtime's graph where no layer fits.

    Layers are found by the integers and scales that they hold, since a runtime keeps these and gives names of its own.
    Where several hold the same, the order of execution decides.

    Raises:
        DeploymentError: a layer that the graph holds with other weights.
    """
    weights = {path: layer.codes.cpu().numpy() for path, layer in model.layers.items()}
    scales = {m.name: m.scale.item() for m in model.graph.modules() if isinstance(m, Requantize)}
    outputs = {
        row.name: (row.operation.partition(" ")[0], scales[row.name]) for row in model.table if row.name in scales
    }
    names = []
    for node in nodes:
        if node.operator in EXACT:
            fitting = (path for path, codes in weights.items() if np.array_equal(codes, node.weight))
        else:
            wanted = (_OPERATIONS[node.operator], node.output_scale)
            fitting = (name for name, output in outputs.items() if output == wanted)
        name = next(fitting, node.output)
        weights.pop(name, None)
        outputs.pop(name, None)
        names.append(name)
    for node, name in zip(nodes, names, strict=True):
        if node.operator in EXACT and name not in model.layers:
            others = [path for path, codes in weights.items() if codes.shape == node.weight.shape]
            if others:
                raise DeploymentError(
                    f"{others[0]!r} has other weights in the graph than in the model: this is not its export"
                )
    return names
