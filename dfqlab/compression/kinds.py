"""What each node of a traced network does, as far as quantization is concerned."""

import operator
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Kind = Literal[
    "input", "output", "weighted", "batch_norm", "relu", "relu6", "add", "cat", "average_pool", "transparent",
    "identity", "softmax", "host", "float",
]  # fmt: skip

OPAQUE = "dfqlab_opaque"
"""Key in a node's meta: one of the teacher's leaves, whatever module it is."""


class CappedReLU(nn.Module):
    """A ReLU6 whose channels were scaled: each has a cap of its own, (c,)."""

    caps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("caps", torch.full((channels,), 6.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(x.relu(), self.caps.reshape(-1, *[1] * (x.dim() - 2)))


_MODULES: dict[type[nn.Module], Kind] = {
    nn.Conv2d: "weighted",
    nn.Linear: "weighted",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    CappedReLU: "relu6",
    nn.AvgPool2d: "average_pool",
    nn.AdaptiveAvgPool2d: "average_pool",
    nn.MaxPool2d: "transparent",
    nn.AdaptiveMaxPool2d: "transparent",
    nn.Flatten: "transparent",
    nn.ChannelShuffle: "transparent",
    nn.PixelShuffle: "transparent",
    nn.ZeroPad2d: "transparent",
    nn.Identity: "identity",
    nn.Dropout: "identity",
    nn.Dropout2d: "identity",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "softmax",
}

_FUNCTIONS: dict[Callable[..., Any], Kind] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    torch.cat: "cat",
    torch.concat: "cat",
    F.avg_pool2d: "average_pool",
    F.adaptive_avg_pool2d: "average_pool",
    F.max_pool2d: "transparent",
    F.adaptive_max_pool2d: "transparent",
    F.channel_shuffle: "transparent",
    F.pixel_shuffle: "transparent",
    torch.flatten: "transparent",
    torch.reshape: "transparent",
    torch.transpose: "transparent",
    torch.permute: "transparent",
    torch.squeeze: "transparent",
    torch.unsqueeze: "transparent",
    torch.chunk: "transparent",
    torch.split: "transparent",
    torch.narrow: "transparent",
    operator.getitem: "transparent",
    F.softmax: "softmax",
    F.log_softmax: "softmax",
    torch.softmax: "softmax",
    torch.log_softmax: "softmax",
}

_METHODS: dict[str, Kind] = {
    "relu": "relu",
    "relu_": "relu",
    "add": "add",
    "add_": "add",
    "softmax": "softmax",
    "log_softmax": "softmax",
    **dict.fromkeys(
        (
            "contiguous",
            "flatten",
            "view",
            "reshape",
            "transpose",
            "permute",
            "squeeze",
            "unsqueeze",
            "chunk",
            "split",
            "narrow",
        ),
        "transparent",
    ),
}


def kind_of(node: fx.Node, graph_module: fx.GraphModule) -> Kind:
    """What the node does. Needs `tensor_meta` on every tensor node (torch.fx.passes.shape_prop).

    "transparent" nodes move values and never change them, so whatever grid their input stands on holds for their
    output; "softmax" turns logits into shares; "host" nodes hold sizes, not tensors; "float" is everything that no
    integer kernel is known for, and what a teacher's leaves are.
    """
    if node.op == "output":
        return "output"
    if "tensor_meta" not in node.meta and node.op != "get_attr":
        return "host"
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr" or node.meta.get(OPAQUE) or _takes_tensors_by_keyword(node):
        return "float"
    kind: Kind = "float"
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        kind = _MODULES.get(type(module), "float")
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            kind = "float"
    elif node.op == "call_function":
        kind = _FUNCTIONS.get(node.target, "float")  # type: ignore[arg-type]
        if node.target is F.pad and _pads_with_zero(node):
            kind = "transparent"
        if node.target in (F.dropout, F.dropout2d) and not _drops(node):
            kind = "identity"
        if getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision's; nothing in eval mode
            kind = "identity"
        if node.target is torch.mean and _averages_the_plane(node):
            kind = "average_pool"
    elif node.op == "call_method":
        kind = _METHODS.get(str(node.target), "float")
        if node.target == "mean" and _averages_the_plane(node):
            kind = "average_pool"
    if kind == "add" and not _adds_two_tensors(node):
        return "float"
    return kind


def _takes_tensors_by_keyword(node: fx.Node) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(node.kwargs, lambda n: found.append(n) if "tensor_meta" in n.meta else None)
    return bool(found)


def _drops(node: fx.Node) -> bool:
    """F.dropout(x) without `training=self.training` drops in eval mode too."""
    return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def _adds_two_tensors(node: fx.Node) -> bool:
    return (
        len(node.args) == 2
        and not node.kwargs
        and all(isinstance(a, fx.Node) and "tensor_meta" in a.meta for a in node.args)
    )


def _pads_with_zero(node: fx.Node) -> bool:
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else 0)
    return bool(mode == "constant" and value in (None, 0, 0.0))


def _averages_the_plane(node: fx.Node) -> bool:
    """Whether a mean runs over the height and width of a (n, c, h, w) tensor and nothing else."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    source = node.args[0]
    if not isinstance(source, fx.Node) or not isinstance(dims, (tuple, list)):
        return False
    shape = source.meta["tensor_meta"].shape
    return len(shape) == 4 and sorted(int(d) % 4 for d in dims) == [2, 3]
