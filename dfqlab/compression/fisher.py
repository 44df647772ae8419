"""How much each value behind a unit matters to the network's answers: the diagonal of its Fisher information."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dfqlab.compression.blocks import Unit
from dfqlab.compression.execution import Quantize, run
from dfqlab.compression.learning import Rows
from dfqlab.compression.prepared import PreparedNetwork

_NOISE = 4 * torch.finfo(torch.float32).eps  # of shares, which add up to 1


def squared_gradients(
    prepared: PreparedNetwork,
    unit: Unit,
    parts: Sequence[Mapping[fx.Node, Any]],
    answers: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    quantize: Quantize | None,
) -> Rows:
    """The squared gradient of the loss by each value that leaves a unit (BRECQ, eq. 10), divided by their mean.

    The paper's loss takes labels. As in its code, the divergence from the teacher's answers stands for it: those of
    the network whose layers are rounded up to this unit, and in float behind it. Divided by their mean, so that the
    penalty of a rounding that is learned weighs as much beside it; where the answers are the teacher's but for
    float32's own rounding, there is no gradient to speak of, and all values count alike.

    Args:
        parts: for each part of the images, the values there are in front of the unit; they stay.
        answers: the logarithms of the teacher's shares for each part, (n, classes).
        weights: the rounded ones, by module path, the unit's among them.
        quantize: what quantizers up to the unit make of their tensors; None passes them on.
    """
    nodes = list(prepared.graph.graph.nodes)
    (logits,) = nodes[-1].all_input_nodes
    behind = [node for node in nodes[nodes.index(unit.start) : -1] if node not in unit.nodes]
    own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
    squares, changed = [], 0.0
    for part, exact in zip(parts, answers, strict=True):
        values = dict(part)
        with torch.no_grad():
            run(prepared, unit.nodes, values, weights, quantize)
        leaving = values[unit.exit].requires_grad_()
        values[unit.exit] = leaving.clone()  # which an operation behind it may change in place
        run(prepared, behind, values, own, None)
        shares = values[logits].double().log_softmax(1)
        changed = max(changed, float((shares.detach().exp() - exact.exp()).abs().max()))
        loss = F.kl_div(shares, exact, reduction="sum", log_target=True)
        (gradient,) = torch.autograd.grad(loss, leaving)
        squares.append(gradient.square())
    mean = sum(float(square.double().sum()) for square in squares) / sum(square.numel() for square in squares)
    known = changed > _NOISE and mean > 0
    return Rows([square / mean if known else torch.ones_like(square) for square in squares])
