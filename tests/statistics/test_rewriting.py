"""BatchNorm, its residual and its activation become one op, exactly where nobody else reads what lies between them."""

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import dfqlab_kernels
from dfqlab.statistics.rewriting import rewrite
from dfqlab.teachers import Teacher

SIZE = (4, 6, 6)
After = Callable[[Tensor, Tensor], Tensor]  # what follows BatchNorm: of its output and its input


class Net(nn.Module):
    def __init__(self, after: After) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu6 = nn.ReLU6()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.after(self.norm(x), x).mean((2, 3))


def teacher_of(after: After) -> Teacher:
    net = Net(after)
    generator = torch.Generator().manual_seed(0)
    for tensor in (*net.parameters(), net.norm.running_mean):
        tensor.data.normal_(generator=generator)
    net.norm.running_var.uniform_(0.5, 2, generator=generator)
    return Teacher.from_module(net.eval(), size=SIZE, mean=(0.5,) * 4, std=(0.2,) * 4, classes=4)


def fused(graph_module: fx.GraphModule) -> list[fx.Node]:
    return graph_module.graph.find_nodes(op="call_function", target=dfqlab_kernels.bn_activation_stats)


def _into(other: Tensor, y: Tensor) -> Tensor:
    other.add_(y)
    return other


CASES: dict[str, tuple[After, str, bool]] = {
    "alone": (lambda y, x: y, "none", False),
    "relu": (lambda y, x: F.relu(y), "relu", False),
    "relu in place": (lambda y, x: F.relu(y, inplace=True), "relu", False),
    "method": (lambda y, x: y.relu(), "relu", False),
    "relu6": (lambda y, x: F.relu6(y), "relu6", False),
    "residual": (lambda y, x: y + x, "none", True),
    "residual first": (lambda y, x: x + y, "none", True),
    "residual and relu": (lambda y, x: torch.relu(x + y), "relu", True),
    "another activation": (lambda y, x: F.gelu(y), "none", False),
    "read twice": (lambda y, x: F.relu(y) + y, "none", False),
    "sum read twice": (lambda y, x: F.relu(y + x) * (y + x).sigmoid(), "none", False),
    "added to itself": (lambda y, x: F.relu(y + y), "none", False),
    "broadcast": (lambda y, x: F.relu(y + x.mean((2, 3), keepdim=True)), "none", False),
    "scaled residual": (lambda y, x: torch.add(y, x, alpha=2), "none", False),
    "a number": (lambda y, x: F.relu(y + 1), "none", False),
    "added in place": (lambda y, x: F.relu(operator.iadd(y, x)), "relu", True),
    "added into another": (lambda y, x: _into(x.sigmoid(), y), "none", False),
    "something changed in between": (lambda y, x: y + F.relu(x, inplace=True), "none", False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_follows_is_fused_where_nobody_else_reads_it_and_computes_the_same(name: str) -> None:
    after, activation, residual = CASES[name]
    teacher = teacher_of(after)
    graph_module = rewrite(teacher, "batch")
    assert graph_module is not None
    (node,) = fused(graph_module)
    assert node.kwargs["activation"] == activation
    assert (node.kwargs["residual"] is not None) == residual
    images = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1)) * 4
    logits, (moments,), _ = graph_module(images)
    torch.testing.assert_close(logits, teacher.module(images), rtol=1e-5, atol=1e-5)
    conv = teacher.module.get_submodule("conv")(images)
    mean, var = dfqlab_kernels.merge_moments([moments])
    torch.testing.assert_close(mean, conv.mean((0, 2, 3)))
    torch.testing.assert_close(var, conv.var((0, 2, 3), correction=0))


def test_names_of_buffers_meet_nobody_elses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.BatchNorm2d(4))
            self.a_0 = nn.BatchNorm2d(4)
            self.affine_0 = nn.Parameter(torch.full((1,), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a_0(input=self.a(x)) * self.affine_0).mean((2, 3))

    net = Twice().eval()
    net.a_0.running_mean = torch.arange(4.0)
    teacher = Teacher.from_module(net, size=SIZE, mean=(0.5,) * 4, std=(0.2,) * 4, classes=4)
    graph_module = rewrite(teacher, "batch")
    assert graph_module is not None
    images = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(graph_module(images)[0], net(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "with_residual"), [("resnet18", 8), ("mobilenet_v2", 10)])
def test_every_residual_of_a_known_network_is_fused(name: str, with_residual: int) -> None:
    import torchvision

    teacher = Teacher.from_module(
        torchvision.models.get_model(name).eval(), size=(3, 64, 64), mean=(0.5,) * 3, std=(0.2,) * 3, classes=1000
    )
    graph_module = rewrite(teacher, "batch")
    assert graph_module is not None
    assert sum(node.kwargs["residual"] is not None for node in fused(graph_module)) == with_residual
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(graph_module(images)[0], teacher.module(images), rtol=1e-4, atol=1e-4)


def test_a_network_in_half_precision_is_normalised_in_float32() -> None:
    teacher = teacher_of(CASES["alone"][0])
    teacher.module.bfloat16()
    graph_module = rewrite(teacher, "batch")
    assert graph_module is not None
    (node,) = fused(graph_module)
    assert all(graph_module.get_buffer(str(n.target)).dtype == torch.float32 for n in node.args[1:])


def test_no_batch_norm_is_left_in_the_graph() -> None:
    graph_module = rewrite(teacher_of(CASES["relu"][0]), "sample")
    assert graph_module is not None
    assert not list(graph_module.graph.find_nodes(op="call_module", target="norm"))


def test_a_batch_norm_without_weights_only_normalises() -> None:
    teacher = teacher_of(CASES["alone"][0])
    bare = nn.BatchNorm2d(4, affine=False, eps=0.1).eval()
    bare.running_mean, bare.running_var = torch.arange(4.0), torch.arange(1.0, 5.0)
    teacher.module.norm = bare
    graph_module = rewrite(teacher, "batch")
    assert graph_module is not None
    images = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(graph_module(images)[0], teacher.module(images), rtol=1e-5, atol=1e-5)


def test_the_teacher_keeps_its_own_module() -> None:
    teacher = teacher_of(CASES["relu"][0])
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    rewrite(teacher, "batch")
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())
    assert isinstance(teacher.module.get_submodule("norm"), nn.BatchNorm2d)
