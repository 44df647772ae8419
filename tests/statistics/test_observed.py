"""What a teacher is seen to do: the same by hooks and by rewriting, and the same as BatchNorm itself would see."""

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dfqlab.errors import TeacherError
from dfqlab.statistics import Layout, ObservedTeacher, Statistics, layout_of, remembered
from dfqlab.teachers import Teacher

Per = Literal["batch", "sample"]
PERS: list[Per] = ["batch", "sample"]
SIZE = (3, 9, 9)
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # the rewritten network rounds in other places


def settled(module: nn.Module) -> nn.Module:
    """Weights and running statistics drawn from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data.normal_(0, 0.5, generator=generator)
    for norm in module.modules():
        if isinstance(norm, BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    return module.eval()


class Net(nn.Module):
    """Convolutions, a residual branch, a BatchNorm on vectors: modules in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.last_norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)
        self.norm2 = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.hidden = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv(x)), inplace=True)
        y = F.relu(y + self.norm2(self.conv2(y)))
        y = self.last_norm(self.hidden(y.mean((2, 3))))
        logits: Tensor = self.head(F.relu(y))
        return logits


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > -1e9) else -x


class Untraceable(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if bool(x.sum() > -1e9) else -x)


def make(module: nn.Module, **changes: object) -> Teacher:
    arguments = {"size": SIZE, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "classes": 5, **changes}
    return Teacher.from_module(module, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def net() -> nn.Module:
    return settled(Net())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(7, *SIZE, generator=torch.Generator().manual_seed(1))


def untraceable(net: nn.Module) -> nn.Module:
    other = Untraceable()
    other.load_state_dict(net.state_dict())
    return other.eval()


def hooks_on(module: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


@pytest.mark.parametrize("per", PERS)
def test_hooks_and_the_rewritten_graph_see_the_same(net: nn.Module, images: Tensor, per: Per) -> None:
    graph, hooks = ObservedTeacher(make(net), per), ObservedTeacher(make(untraceable(net)), per)
    assert graph.rewritten is not None
    assert hooks.rewritten is None
    one, other = graph(images), hooks(images)
    assert one.statistics.layout == other.statistics.layout == Layout(("norm1", "norm2", "last_norm"), (4, 4, 6))
    for name in ("mean", "var", "input_mean", "input_var"):
        torch.testing.assert_close(getattr(one.statistics, name), getattr(other.statistics, name), **ROUNDING)
    torch.testing.assert_close(one.logits, other.logits, **ROUNDING)
    torch.testing.assert_close(one.features, other.features, **ROUNDING)


@pytest.mark.parametrize("per", PERS)
def test_observing_does_not_change_the_logits(net: nn.Module, images: Tensor, per: Per) -> None:
    teacher = make(net)
    torch.testing.assert_close(ObservedTeacher(teacher, per)(images).logits, teacher(images), **ROUNDING)


@pytest.mark.parametrize("variant", [lambda net: net, untraceable], ids=["graph", "hooks"])
def test_they_are_what_batch_norm_would_remember_of_the_batch(
    net: nn.Module, images: Tensor, variant: Callable[[nn.Module], nn.Module]
) -> None:
    statistics = ObservedTeacher(make(variant(net)))(images).statistics
    for name in statistics.layout.names:
        # This one layer in training mode with momentum 1, all layers before it as they are.
        watched = copy.deepcopy(net)
        norm = watched.get_submodule(name).train()
        assert isinstance(norm, BatchNorm)
        norm.momentum = 1.0
        count = []
        norm.register_forward_pre_hook(lambda _, args, count=count: count.append(args[0].numel() // args[0].shape[1]))
        watched(make(net).input.normalize(images))
        mean, var = statistics.of(name)
        torch.testing.assert_close(mean, norm.running_mean, rtol=1e-5, atol=1e-6)
        unbiased = var * count[0] / (count[0] - 1)
        torch.testing.assert_close(unbiased, norm.running_var, rtol=1e-5, atol=1e-6)


def test_the_packed_buffer_holds_the_layers_in_forward_order(net: nn.Module) -> None:
    teacher = make(net)
    packed = remembered(teacher)
    expected = [teacher.module.get_submodule(name) for name in ("norm1", "norm2", "last_norm")]
    assert torch.equal(packed.mean, torch.cat([norm.running_mean for norm in expected]))  # type: ignore[misc]
    assert torch.equal(packed.var, torch.cat([norm.running_var for norm in expected]))  # type: ignore[misc]
    assert packed.layout == layout_of(teacher)
    assert packed.layout.total == 14
    assert packed.layout.slice_of("last_norm") == slice(8, 14)
    assert torch.equal(packed.of("norm2")[0], expected[1].running_mean)  # type: ignore[arg-type]
    assert packed.input_mean.tolist() == [0, 0, 0]
    assert packed.input_var.tolist() == [1, 1, 1]


def test_statistics_of_samples_lie_beside_each_other_in_the_same_layout(net: nn.Module, images: Tensor) -> None:
    observed = ObservedTeacher(make(net), "sample")
    statistics = observed(images).statistics
    assert statistics.mean.shape == statistics.var.shape == (7, 14)
    assert statistics.input_mean.shape == (7, 3)
    alone = observed(images[3:4]).statistics
    torch.testing.assert_close(statistics.mean[3:4], alone.mean)
    torch.testing.assert_close(statistics.var[3:4], alone.var)
    assert statistics.of("norm2")[1].shape == (7, 4)


def test_those_of_the_batch_follow_from_those_of_its_samples(net: nn.Module, images: Tensor) -> None:
    teacher = make(net)
    direct = ObservedTeacher(teacher, "batch")(images).statistics
    pooled = ObservedTeacher(teacher, "sample")(images).statistics.over_batch()
    assert pooled.layout == direct.layout
    for name in ("mean", "var", "input_mean", "input_var"):
        torch.testing.assert_close(getattr(pooled, name), getattr(direct, name), rtol=1e-5, atol=1e-6)
    assert direct.over_batch() is direct


def test_pooling_one_sample_and_two_by_hand() -> None:
    layout = Layout(("a",), (1,))
    one = torch.tensor([[3.0]])
    alone = Statistics(one, one, layout, one, one).over_batch()
    assert (alone.mean.item(), alone.var.item()) == (3.0, 3.0)
    mean, var = torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [4.0]])
    both = Statistics(mean, var, layout, mean, var).over_batch()
    assert (both.mean.item(), both.var.item()) == (3.0, 3.0 + 4.0)  # mean of variances, variance of means


def test_the_input_is_measured_after_normalisation(net: nn.Module, images: Tensor) -> None:
    statistics = ObservedTeacher(make(net))(images).statistics
    x = (images.double() - torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).reshape(
        3, 1, 1
    )
    torch.testing.assert_close(statistics.input_mean.double(), x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics.input_var.double(), x.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", [lambda net: net, untraceable], ids=["graph", "hooks"])
def test_features_are_what_the_last_linear_layer_reads(
    net: nn.Module, images: Tensor, variant: Callable[[nn.Module], nn.Module]
) -> None:
    outputs = ObservedTeacher(make(variant(net)))(images)
    assert outputs.features is not None
    assert outputs.features.shape == (7, 6)
    head = net.get_submodule("head")
    torch.testing.assert_close(head(outputs.features), outputs.logits)


def test_features_are_found_inside_a_leaf_too(images: Tensor) -> None:
    head = nn.Sequential(Branching(), nn.Linear(4, 5))
    net = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))
    outputs = ObservedTeacher(make(net, leaves=["4"]))(images)
    assert outputs.features is not None
    torch.testing.assert_close(head[1](outputs.features), outputs.logits)


def test_a_network_without_a_linear_layer_has_no_features(images: Tensor) -> None:
    net = settled(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert ObservedTeacher(make(net))(images).features is None
    hooked = settled(nn.Sequential(Branching(), *net))
    assert ObservedTeacher(make(hooked))(images).features is None


@pytest.mark.parametrize("variant", [lambda net: net, untraceable], ids=["graph", "hooks"])
@pytest.mark.parametrize("per", PERS)
def test_a_gradient_reaches_the_images(
    net: nn.Module, images: Tensor, per: Per, variant: Callable[[nn.Module], nn.Module]
) -> None:
    observed = ObservedTeacher(make(variant(net)), per)
    for name in observed.layout.names:
        for which in (0, 1):
            if per == "sample" and name == "last_norm" and which == 1:
                continue  # one value a sample: its variance is the constant 0
            x = images.clone().requires_grad_()
            observed(x).statistics.of(name)[which].square().sum().backward()
            assert x.grad is not None
            assert torch.isfinite(x.grad).all()
            assert x.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(p.requires_grad for p in observed.parameters())


def test_hooks_stand_only_while_the_network_runs(net: nn.Module, images: Tensor) -> None:
    teacher = make(untraceable(net))
    observed = ObservedTeacher(teacher)
    assert hooks_on(teacher.module) == 0
    seen: list[int] = []
    handle = teacher.module.get_submodule("conv2").register_forward_hook(
        lambda *_: seen.append(hooks_on(teacher.module))
    )
    observed(images)
    handle.remove()
    assert seen == [1 + 3 + 2]  # this one, three BatchNorm layers, two linear layers
    assert hooks_on(teacher.module) == 0


def test_hooks_are_removed_where_the_network_raises(net: nn.Module, images: Tensor) -> None:
    teacher = make(untraceable(net))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    handle = teacher.module.get_submodule("norm2").register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        ObservedTeacher(teacher)(images)
    handle.remove()
    assert hooks_on(teacher.module) == 0


def test_a_batch_norm_hidden_inside_a_leaf_is_observed(images: Tensor) -> None:
    def build(stem: nn.Module) -> nn.Module:
        return settled(
            nn.Sequential(
                nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), stem),
                nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
            )
        )  # fmt: skip

    plain = ObservedTeacher(make(build(nn.Identity())))
    opaque = ObservedTeacher(make(build(Branching()), leaves=["0"]))
    assert plain.rewritten is not None
    assert opaque.rewritten is None
    assert opaque.layout.names == ("0.1", "2")
    torch.testing.assert_close(opaque(images).statistics.mean, plain(images).statistics.mean, **ROUNDING)


@pytest.mark.parametrize("obstacle", [nn.Identity, Branching], ids=["graph", "hooks"])
def test_of_a_batch_norm_called_twice_the_first_call_counts(images: Tensor, obstacle: type[nn.Module]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 5)
            self.obstacle = obstacle()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.norm(self.norm(self.obstacle(x)) ** 2 + 7).mean((2, 3)))
            return y

    teacher = make(settled(Twice()))
    observed = ObservedTeacher(teacher)
    assert (observed.rewritten is None) == (obstacle is Branching)
    statistics = observed(images).statistics
    assert statistics.layout == Layout(("norm",), (3,))
    torch.testing.assert_close(statistics.mean, statistics.input_mean)
    torch.testing.assert_close(statistics.var, statistics.input_var)


def test_a_batch_norm_that_forgets_is_not_asked(images: Tensor) -> None:
    net = settled(
        nn.Sequential(
            nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, affine=False),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5),
        )
    )  # fmt: skip
    assert ObservedTeacher(make(net))(images).statistics.layout.names == ("1",)


def test_a_teacher_without_batch_norm_is_told_what_it_has_instead() -> None:
    grouped = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4),
        nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    teacher = make(grouped, name="resnet18_gn")
    for ask in (remembered, ObservedTeacher):
        with pytest.raises(
            TeacherError, match=r"'resnet18_gn' has no BatchNorm layer.*2 GroupNorm layers.*See lesson 02"
        ):
            ask(teacher)


def test_observing_leaves_the_teacher_as_it_was(net: nn.Module, images: Tensor) -> None:
    teacher = make(net)
    before = copy.deepcopy(teacher.module.state_dict())
    ObservedTeacher(teacher)(images)
    assert type(teacher.module) is Net
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.module.state_dict().items())


@pytest.mark.traces
def test_compilers_see_the_rewritten_network_whole(net: nn.Module, images: Tensor) -> None:
    teacher = make(net)
    rewritten = ObservedTeacher(teacher).rewritten
    assert rewritten is not None
    x = teacher.input.normalize(images)
    logits, moments, _ = torch.compile(rewritten, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(logits, teacher(images), **ROUNDING)
    assert torch.equal(moments[1], rewritten(x)[1][1])
