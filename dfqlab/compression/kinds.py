"""What each node of a traced network does, as far as quantization is concerned."""

import operator
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

Kind = Literal[
    "input", "output", "weighted", "batch_norm", "relu", "relu6", "add", "cat", "average_pool", "transparent",
    "identity", "host", "float",
]  # fmt: skip

_MODULES: dict[type[nn.Module], Kind] = {
    nn.Conv2d: "weighted",
    nn.Linear: "weighted",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
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
    F.dropout: "identity",
    F.dropout2d: "identity",
}

_METHODS: dict[str, Kind] = {
    "relu": "relu",
    "relu_": "relu",
    "add": "add",
    "add_": "add",
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
    output; "host" nodes hold sizes, not tensors; "float" is everything that no integer kernel is known for.
    """
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    if node.op == "get_attr":
        return "float"
    if "tensor_meta" not in node.meta:
        return "host"
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
