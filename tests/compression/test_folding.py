"""A folded network is the teacher's without BatchNorm: nothing in it is called twice or changed behind its back."""

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfqlab.compression.folding import fold
from dfqlab.errors import TeacherError
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


class Net(nn.Module):
    """A convolution, what happens to it, a mean over the plane and a classifier."""

    def __init__(self, *layers: nn.Module, width: int = 4, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 5)

    def body(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.body(x)).mean((2, 3)))  # type: ignore[no-any-return]


class NormFirst(Net):
    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return self.second(self.relu(self.second_norm(y + F.relu(y))))  # type: ignore[no-any-return]


class NormOnTheInput(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.norm(x)))


class TwoReaders(Net):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y  # type: ignore[no-any-return]


class SharedConvolution(Net):
    def body(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.second(self.conv(x))))
        return self.relu(self.second_norm(self.second(y)))  # type: ignore[no-any-return]


class SharedNorm(Net):
    def body(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.conv(x)))
        return self.relu(self.norm(self.second(y)))  # type: ignore[no-any-return]


class Functional(Net):
    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        y = torch.relu(self.second_norm(self.second(y)).relu_())
        return F.relu6(F.dropout(y, training=self.training))


class Linears(Net):
    def __init__(self) -> None:
        super().__init__(width=6)
        self.hidden = nn.Linear(4, 6, bias=False)
        self.hidden_norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden_norm(self.hidden(self.body(x).mean((2, 3))))
        return self.head(F.relu(y))  # type: ignore[no-any-return]


class LinearOverPositions(Net):
    """BatchNorm1d takes the second dimension, and that is not the one a linear layer makes."""

    def __init__(self) -> None:
        super().__init__(width=64)
        self.hidden = nn.Linear(16, 16)
        self.hidden_norm = nn.BatchNorm1d(4)
        self.square = nn.Linear(4, 4)
        self.square_norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)[:, :, ::2, ::2].flatten(2)
        y = self.hidden_norm(self.hidden(y)).reshape(y.size(0), 4, 4, 4)[:, :, 0]
        y = self.square_norm(self.square(y))
        return self.head(F.pad(y.flatten(1), (0, 48)))  # type: ignore[no-any-return]


class Statement(Net):
    """In-place operations whose result nobody takes: who reads the tensor afterwards means the changed one."""

    def __init__(self, how: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.how = how

    def body(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if self.how == 0:
            self.relu(y)
        elif self.how == 1:
            y.relu_()
        elif self.how == 2:
            F.relu(y, True)
        elif self.how == 3:
            F.relu(y, inplace=True)
        else:
            torch.relu_(y)
        return self.second(y) + y  # type: ignore[no-any-return]


class InPlaceBeforeTheShortcut(Net):
    """The shortcut leaves before the activation in the code, and after it in memory."""

    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.second(F.relu_(y))
        return z + y  # type: ignore[no-any-return]


class MeanBy(Net):
    def __init__(self, mean: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mean(self.body(x)).flatten(1))  # type: ignore[no-any-return]


def gammas() -> nn.Module:
    net = Net()
    net.norm.weight.data.copy_(torch.tensor([0.0, -0.7, 1e-30, 2.0]))
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolution, norm, relu": Net,
    "norm before the convolution": NormFirst,
    "norm on the input": NormOnTheInput,
    "norm whose convolution has another reader": TwoReaders,
    "convolution called twice": SharedConvolution,
    "norm called twice": SharedNorm,
    "functional": Functional,
    "norm behind a linear layer": Linears,
    "norm behind a linear layer over positions": LinearOverPositions,
    "norm without gamma and beta": lambda: Net(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)),
    "norm that forgets": lambda: Net(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
    "norm with a large epsilon": lambda: Net(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=0.8)),
    "reflected padding": lambda: Net(padding_mode="reflect"),
    "groups, stride, dilation": lambda: Net(nn.Conv2d(4, 4, 3, 2, "valid", 2, 2), nn.BatchNorm2d(4)),
    "padding by name": lambda: Net(nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4)),
    "nothing in eval mode": lambda: Net(nn.Dropout(0.5), nn.Identity(), nn.Dropout2d(0.5)),
    "mean by keyword": lambda: MeanBy(lambda x: x.mean(dim=(-1, -2), keepdim=True)),
    "mean of torch": lambda: MeanBy(lambda x: torch.mean(x, [2, 3])),
    "mean in two steps": lambda: MeanBy(lambda x: x.mean(3).mean(2)),
    "mean over all": lambda: MeanBy(lambda x: x.mean((2, 3)) + x.mean((1, 2, 3), keepdim=True).flatten(1)),
    **{f"statement {how}": (lambda how=how: Statement(how)) for how in range(5)},
    "in place before the shortcut": InPlaceBeforeTheShortcut,
}
if "bias" in inspect.signature(nn.BatchNorm2d).parameters:
    NETWORKS["norm without beta"] = lambda: Net(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, bias=False))


def examples(teacher: Teacher, count: int = 3) -> Tensor:
    return torch.randn(count, *teacher.input.size, generator=torch.Generator().manual_seed(5))


def norms_in(module: nn.Module) -> int:
    return sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in module.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_folded_network_is_the_teachers(make_teacher: MakeTeacher, name: str) -> None:
    teacher = make_teacher(NETWORKS[name]())
    x = examples(teacher)
    expected = teacher.module(x)
    found = fold(teacher).graph(x)
    assert (found - expected).abs().max() < 2e-6 * max(1, float(expected.abs().max()))
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    "name", sorted(set(NETWORKS) - {"norm that forgets", "norm behind a linear layer over positions"})
)
def test_no_norm_is_left_and_every_layer_is_called_once(make_teacher: MakeTeacher, name: str) -> None:
    graph = fold(make_teacher(NETWORKS[name]())).graph
    assert norms_in(graph) == 0
    layers = (nn.Conv2d, nn.Linear)
    called = [
        n.target
        for n in graph.graph.find_nodes(op="call_module")
        if isinstance(graph.get_submodule(n.target), layers)  # type: ignore[arg-type]
    ]
    assert len(called) == len(set(called))
    assert set(called) == {path for path, module in graph.named_modules() if isinstance(module, layers)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_teacher_stays_as_it_is(make_teacher: MakeTeacher, name: str) -> None:
    teacher = make_teacher(NETWORKS[name]())
    before, shape = copy.deepcopy(teacher.module.state_dict()), repr(teacher.module)
    graph = fold(teacher).graph
    for tensor in (*graph.parameters(), *graph.buffers()):
        tensor.zero_()
    assert repr(teacher.module) == shape
    after = teacher.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


def test_folding_draws_nothing_at_random(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(NormFirst())
    before = torch.get_rng_state()
    fold(teacher)
    assert torch.equal(torch.get_rng_state(), before)


def test_gamma_may_be_zero_tiny_or_negative(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(gammas(), settled=False)
    x = examples(teacher)
    torch.testing.assert_close(fold(teacher).graph(x), teacher.module(x), rtol=1e-5, atol=1e-6)
    gaussian = fold(teacher).gaussians["conv"]
    assert gaussian.std.tolist() == pytest.approx([0, 0.7, 1e-30, 2])


def test_the_folded_weight_and_bias_by_hand(make_teacher: MakeTeacher) -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.75), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    conv, norm = net[0], net[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    for tensor, value in (
        (conv.weight, 3.0), (conv.bias, 1.0), (norm.weight, -4.0), (norm.bias, 0.5),
        (norm.running_mean, 2.0), (norm.running_var, 3.25),
    ):  # fmt: skip
        assert tensor is not None
        tensor.data.fill_(value)
    folded = fold(make_teacher(net, settled=False, size=(1, 2, 2), mean=(0.5,), std=(0.5,), classes=1))
    layer = folded.graph.get_submodule("0")
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    # gain = -4 / sqrt(3.25 + 0.75) = -2: weight 3 * -2, bias (1 - 2) * -2 + 0.5
    assert (layer.weight.item(), layer.bias.item()) == (-6.0, 2.5)
    assert (folded.gaussians["0"].mean.item(), folded.gaussians["0"].std.item()) == (0.5, 4.0)


def test_the_gaussian_is_beta_and_the_size_of_gamma_under_the_layers_own_path(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(NormFirst())
    gaussians = fold(teacher).gaussians
    assert set(gaussians) == {"conv", "second_norm"}  # the second norm had no convolution: it became one
    for layer, norm in (("conv", "norm"), ("second_norm", "second_norm")):
        assert torch.equal(gaussians[layer].mean, teacher.module.get_parameter(f"{norm}.bias"))
        assert torch.equal(gaussians[layer].std, teacher.module.get_parameter(f"{norm}.weight").abs())


def test_the_gaussian_of_a_norm_without_gamma_and_beta_is_standard(make_teacher: MakeTeacher) -> None:
    gaussian = fold(make_teacher(NETWORKS["norm without gamma and beta"]())).gaussians["layers.0"]
    assert gaussian.mean.tolist() == [0] * 4
    assert gaussian.std.tolist() == [1] * 4


def test_a_norm_of_its_own_becomes_a_depthwise_convolution(make_teacher: MakeTeacher) -> None:
    graph = fold(make_teacher(NormFirst())).graph
    layer = graph.get_submodule("second_norm")
    assert isinstance(layer, nn.Conv2d)
    assert (layer.groups, layer.in_channels, layer.kernel_size) == (4, 4, (1, 1))


def test_each_call_of_a_shared_layer_gets_the_norm_behind_it(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(SharedConvolution())
    folded = fold(teacher)
    assert set(folded.gaussians) == {"second", "second_call2"}
    for path, norm in (("second", "norm"), ("second_call2", "second_norm")):
        assert torch.equal(folded.gaussians[path].mean, teacher.module.get_parameter(f"{norm}.bias"))
    first, second = (folded.graph.get_parameter(f"{path}.weight") for path in ("second", "second_call2"))
    assert not torch.equal(first, second)


def test_a_leaf_is_left_alone_whatever_it_is(make_teacher: MakeTeacher) -> None:
    net = Net(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    teacher = make_teacher(net, leaves=["norm", "layers.0", "head"])
    graph = fold(teacher).graph
    assert isinstance(graph.get_submodule("norm"), nn.BatchNorm2d)
    assert torch.equal(graph.get_parameter("layers.0.weight"), teacher.module.get_parameter("layers.0.weight"))
    assert isinstance(graph.get_submodule("layers.1"), nn.Conv2d)
    x = examples(teacher)
    torch.testing.assert_close(graph(x), teacher.module(x), rtol=1e-5, atol=1e-6)


def test_every_node_knows_its_shape(make_teacher: MakeTeacher) -> None:
    graph = fold(make_teacher(NormFirst())).graph
    assert all("tensor_meta" in node.meta for node in graph.graph.nodes)


class DropsInEval(Net):
    def body(self, x: Tensor) -> Tensor:
        return F.dropout(super().body(x))


class TwoNames(Net):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        same = y
        y += 1.0  # torch.fx records y = y + 1
        return same  # type: ignore[no-any-return]


class View(Net):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.flatten(1).relu_()
        return y  # type: ignore[no-any-return]


@pytest.mark.parametrize("network", [DropsInEval, TwoNames, View])
def test_what_a_graph_cannot_tell_is_refused_and_not_lost(make_teacher: MakeTeacher, network: type[Net]) -> None:
    said = f"graph that torch.fx makes of '{network.__name__}' computes something else.*leaves="
    with pytest.raises(TeacherError, match=said):
        fold(make_teacher(network()))


def test_a_network_that_does_not_trace_names_its_line(make_teacher: MakeTeacher) -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if bool(x.sum() > 0) else -x)

    with pytest.raises(TeacherError, match=r"x\.sum\(\) > 0"):
        fold(make_teacher(Branching()))
