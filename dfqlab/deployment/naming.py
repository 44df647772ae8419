"""Which layer of the teacher an operation of the runtime's graph is."""

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


class LayerNames:
    """Finds layers by the integers and scales that they hold, since a runtime keeps these and gives names of its own.

    Ask in order of execution: among layers that hold the same, it names the first that it has not named yet.
    """

    def __init__(self, model: CompressedModel) -> None:
        self._weights = [(path, layer.codes.cpu().numpy()) for path, layer in model.layers.items()]
        scales = {m.name: m.scale.item() for m in model.graph.modules() if isinstance(m, Requantize)}
        self._outputs = [
            (row.name, row.operation.partition(" ")[0], scales[row.name]) for row in model.table if row.name in scales
        ]

    def of(self, node: Node) -> str:
        """The module path of the layer; of an addition, pooling or concatenation that no layer fits, the output's name.

        Raises:
            DeploymentError: a convolution or linear layer with weights that the model does not hold.
        """
        if node.operator in EXACT:
            for index, (path, codes) in enumerate(self._weights):
                if np.array_equal(codes, node.weight):
                    del self._weights[index]
                    return path
            raise DeploymentError(
                f"{node.operator} {node.output} has weights that no layer of the model has: this is not its export"
            )
        for index, (name, operation, scale) in enumerate(self._outputs):
            if operation == _OPERATIONS[node.operator] and scale == node.output_scale:
                del self._outputs[index]
                return name
        return node.output
