"""A network as JSON and back: what a file may name is a closed list, and nothing in it becomes code."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dfqlab import checkpoints
from dfqlab.compression import serialization
from dfqlab.compression.model import FILE_NAME, load_model
from dfqlab.compression.quantization import quantize
from dfqlab.compression.serialization import graph_from_json, graph_to_json
from dfqlab.errors import CheckpointError, QuantizationError
from dfqlab.teachers import Teacher


def there_and_back(graph_module: fx.GraphModule) -> fx.GraphModule:
    content = json.loads(json.dumps(graph_to_json(graph_module), allow_nan=False, sort_keys=True))
    found = graph_from_json(content, {})
    found.load_state_dict(graph_module.state_dict())
    return found.eval()


def test_every_network_of_the_zoo_comes_back_bit_for_bit(compressed: Any) -> None:
    model, x = compressed.model, compressed.teacher.input.normalize(compressed.images)
    assert torch.equal(there_and_back(model.graph)(x), model.graph(x))


def test_a_float_graph_comes_back_too(compressed: Any) -> None:
    if compressed.name not in ("efficientnet_b0", "shufflenet_v2_x0_5"):
        return  # two that between them hold every float module of the zoo, slices, chunks and shapes
    graph = copy.deepcopy(compressed.prepared.graph)
    for path in compressed.prepared.activations:
        graph.set_submodule(path, nn.Identity())
    x = compressed.teacher.input.normalize(compressed.images)
    assert torch.equal(there_and_back(graph)(x), graph(x))


class Everything(nn.Module):
    """Every kind of argument that a node may have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular", bias=False)
        self.deeper = nn.ModuleDict({"a-b": nn.GroupNorm(2, 4, eps=0.1), "pool": nn.LPPool2d(2.0, 2, ceil_mode=True)})
        self.table = nn.Parameter(torch.arange(4.0).reshape(1, 4, 1, 1))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.deeper["pool"](self.deeper["a-b"](self.conv(x))) + self.table
        x = x[..., 1::2, :] * 2.5 - (x.shape[0] + 0) ** 0
        x = torch.where(self.mask.reshape(1, 4, 1, 1), x, x.to(dtype=torch.float64).float())
        parts = x.split([1, 3], dim=1)
        x = torch.cat([parts[0], torch.stack([parts[1], -(parts[1] ** 2)]).sum(0).clamp(min=-1.0)], 1)
        return F.pad(x, (1, 0), mode="constant", value=0.5).mean((2, 3))


def test_slices_types_nested_lists_parameters_and_buffers_come_back() -> None:
    module = Everything()
    for name, parameter in module.named_parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    graph = fx.symbolic_trace(module).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = there_and_back(graph)
    assert torch.equal(found(x), graph(x))
    assert found.state_dict().keys() == graph.state_dict().keys()


def test_what_a_file_cannot_name_is_refused_when_it_is_written() -> None:
    def strange(x: Tensor) -> Tensor:
        graph_break: Tensor = torch.compiler.disable(lambda y: y)(x)
        return graph_break

    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(strange, (x,)))
    with pytest.raises(QuantizationError, match=r"the network calls 'strange', which a file cannot name.*as a leaf"):
        graph_to_json(fx.GraphModule(nn.Module(), graph))
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.add, (x, complex(1, 2))))
    with pytest.raises(QuantizationError, match="cannot hold an argument of type complex"):
        graph_to_json(fx.GraphModule(nn.Module(), graph))


def test_a_module_path_that_is_no_name_is_refused_when_it_is_written() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a b": nn.ReLU()})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["a b"](x)  # type: ignore[no-any-return]

    with pytest.raises(QuantizationError, match=r"module path 'parts\.a b'; use letters, digits, - and _"):
        graph_to_json(fx.symbolic_trace(Strange()))


NOTHING: dict[str, Any] = {"tuple": []}
X = {"name": "x", "op": "placeholder", "target": "x", "args": NOTHING, "kwargs": {"dict": {}}}


def node(op: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"name": "y", "op": op, "target": target, "args": {"tuple": list(args)}, "kwargs": {"dict": kwargs}}


def graph_of(*nodes: dict[str, Any], modules: dict[str, Any] | None = None, attributes: Any = None) -> dict[str, Any]:
    output = {
        "name": "output",
        "op": "output",
        "target": "output",
        "args": {"tuple": [{"node": "y"}]},
        "kwargs": {"dict": {}},
    }
    return {"nodes": [*nodes, output], "modules": modules or {}, "attributes": attributes or {}}


TOUCH = '__import__("os").system("touch OPENED")'
SPLIT = 'getattr(__import__("os"), "system")("touch OPENED")'  # without a dot, at which torch.fx splits paths
TENSOR = {"node": "x"}
Z = node("call_module", "z", TENSOR)
RELU = {"type": "ReLU", "arguments": {"dict": {}}}

EVIL: dict[str, dict[str, Any]] = {
    "os.system": graph_of(X, node("call_function", "os.system", "touch OPENED")),
    "posix.system": graph_of(X, node("call_function", "posix.system", "touch OPENED")),
    "torch.load": graph_of(X, node("call_function", "torch.load", "OPENED")),
    "torch.save": graph_of(X, node("call_function", "torch.save", TENSOR, "OPENED")),
    "torch.from_file": graph_of(X, node("call_function", "torch.from_file", "OPENED", True, 4)),
    "torch.hub.load": graph_of(X, node("call_function", "torch.hub.load", "a", "b")),
    "builtins.eval": graph_of(X, node("call_function", "builtins.eval", TOUCH)),
    "builtins.__import__": graph_of(X, node("call_function", "builtins.__import__", "os")),
    "operator.attrgetter": graph_of(X, node("call_function", "operator.attrgetter", "__class__")),
    "a method outside the vocabulary": graph_of(X, node("call_method", "__reduce_ex__", TENSOR, 2)),
    "a method that calls back": graph_of(X, node("call_method", "register_hook", TENSOR, TENSOR)),
    "a method that applies": graph_of(X, node("call_method", "apply_", TENSOR, TENSOR)),
    "a method that is code": graph_of(X, node("call_method", f"relu().__class__ or {TOUCH} or x.relu", TENSOR)),
    "an attribute": graph_of(X, node("call_function", "builtins.getattr", TENSOR, "__class__")),
    "an attribute computed": graph_of(X, node("call_function", "builtins.getattr", TENSOR, TENSOR)),
    "an attribute missing": graph_of(X, node("call_function", "builtins.getattr", TENSOR)),
    "an input that is code": graph_of({**X, "target": f"x={TOUCH}"}, node("call_function", "torch.relu", TENSOR)),
    "a keyword that is code": graph_of(X, node("call_function", "torch.relu", TENSOR, **{f"a={TOUCH}, b": 1})),
    "a keyword of a method that is code": graph_of(X, node("call_method", "relu", TENSOR, **{f"a={TOUCH}, b": 1})),
    "a module path that is code": graph_of(
        X, node("call_module", f'y") or {SPLIT} or getattr(self, "y', TENSOR),
        modules={f'y") or {SPLIT} or getattr(self, "y': RELU},
    ),
    "a parameter path that is code": graph_of(
        X, node("get_attr", f'y") or {SPLIT} or getattr(self, "y'),
        attributes={f'y") or {SPLIT} or getattr(self, "y': {"shape": [1], "dtype": "float32"}},
    ),
    "a module that is not there": graph_of(X, Z),
    "a module that is none": graph_of(X, Z, modules={"z": {**RELU, "type": "Parameter"}}),
    "a module outside torch.nn": graph_of(X, Z, modules={"z": {**RELU, "type": "os.system"}}),
    "a function for a type": graph_of(
        X, Z,
        modules={
            "z": {
                "type": "TripletMarginWithDistanceLoss",
                "arguments": {"dict": {"distance_function": {"dtype": "load"}}},
            }
        },
    ),
    "a type that is a function": graph_of(X, node("call_method", "to", TENSOR, {"dtype": "load"})),
    "a type of a parameter": graph_of(X, node("get_attr", "z"), attributes={"z": {"shape": [1], "dtype": "load"}}),
    "an unknown operation": graph_of(X, node("exec", "x", TENSOR)),
    "an unknown argument": graph_of(X, node("call_function", "torch.relu", {"pickle": "gASV"})),
}  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_a_file_that_names_anything_else_is_refused_and_nothing_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        graph_from_json(EVIL[name], {})
    assert not (tmp_path / "OPENED").exists()


@pytest.mark.parametrize(
    "text", [f"'+{TOUCH}+'", f"\\'+{TOUCH}+\\'", f"\n{TOUCH}\n", f"{{{TOUCH}}}", f'"""+{TOUCH}+"""', f"#\n{TOUCH}"]
)
def test_a_string_stays_a_string_wherever_it_stands(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for nodes in (
        (X, node("call_function", "torch.einsum", text, TENSOR)),
        (X, {**node("call_function", "torch.relu", TENSOR), "name": "y"}, node("call_method", "view", TENSOR, text)),
        (X, node("call_function", "torch.relu", TENSOR, {"dict": {text: 1}})),
        ({**X, "args": {"tuple": [text]}}, node("call_function", "torch.relu", TENSOR)),
    ):
        with contextlib.suppress(Exception):  # what it computes, if anything, is not the question
            graph_from_json(graph_of(*nodes), {})(torch.zeros(1))
        assert not (tmp_path / "OPENED").exists()
    odd = {**X, "name": f"x\n    {TOUCH}\n    x"}
    content = graph_of(odd, node("call_function", "torch.relu", {"node": odd["name"]}))
    assert torch.equal(graph_from_json(content, {})(-torch.ones(1)), torch.zeros(1))
    assert not (tmp_path / "OPENED").exists()


@pytest.mark.parametrize("name", ["an input that is code", "a keyword that is code", "os.system"])
def test_load_model_refuses_such_a_file(
    make_teacher: Any, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher: Teacher = make_teacher(net)
    quantize(teacher, images, calibration="minmax").save(tmp_path)
    tensors, facts = checkpoints.load(tmp_path / FILE_NAME, kind="compressed model")
    checkpoints.save(tmp_path / FILE_NAME, tensors, kind="compressed model", facts={**facts, "graph": EVIL[name]})
    with pytest.raises(CheckpointError):
        load_model(tmp_path)
    assert not (tmp_path / "OPENED").exists()


def test_no_word_of_the_vocabulary_reaches_files_or_code() -> None:
    banned = {
        "load", "save", "from_file", "compile", "eval", "exec", "open", "system", "apply_", "map_", "map2_",
        "import_module", "register_hook", "register_post_accumulate_grad_hook", "__reduce__", "__reduce_ex__",
        "__class__", "__dict__",
    }  # fmt: skip
    words = {name for functions in serialization._VOCABULARIES.values() for name in functions}
    assert not banned & (words | serialization._TENSOR_METHODS | serialization._ATTRIBUTES)
    assert not any(name.startswith("_") for name in words | serialization._TENSOR_METHODS)
    for functions in serialization._VOCABULARIES.values():
        for function in functions.values():
            assert not isinstance(function, type)
            assert (getattr(function, "__module__", None) or "torch").startswith(("torch", "_operator", "builtins"))
