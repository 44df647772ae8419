"""Alignment: each variant against a loop over layers and samples in float64, and against values worked out by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log, sqrt
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfqlab.errors import ConfigurationError, TeacherError
from dfqlab.images import Batch
from dfqlab.objective import Objective, Term
from dfqlab.statistics import ObservedTeacher, Per
from dfqlab.synthesis.plan import generator_for
from dfqlab.synthesis.terms import Alignment, SlackAlignment, one_layer_per_sample
from dfqlab.teachers import Teacher
from dfqlab_kernels.reference.alignment import Distance, Spread

EPSILON = 1e-6
WEIGHTED = 1e-7  # how near a sum of float64 is whose weights are float32
MakeTeacher = Callable[..., Teacher]
Moments = list[tuple[Tensor, Tensor]]
"""Mean and biased variance of the channels of each layer."""

each_variant = pytest.mark.parametrize(
    ("per", "distance", "spread"),
    [
        (per, distance, spread)
        for per in get_args(Per)
        for distance in get_args(Distance)
        for spread in get_args(Spread)
    ],
)


def value_of(term: Term, teacher: Teacher, images: Tensor, per: Per | None = None, seed: int = 0) -> Tensor:
    return term.prepare(teacher, seed=seed)(Batch(images), ObservedTeacher(teacher, per or term.per)(images))


# An independent account of what layers see and of what that costs: hooks, loops and torch.var.


def inputs_of_norms(teacher: Teacher, images: Tensor) -> list[Tensor]:
    """What reaches each BatchNorm of a sequence of modules, and before them the normalised images themselves."""
    mean, std = (
        torch.tensor(values, dtype=images.dtype)[:, None, None] for values in (teacher.input.mean, teacher.input.std)
    )
    x = (images - mean) / std
    found = [x]
    for module in teacher.module.children():
        if isinstance(module, nn.BatchNorm2d):
            found.append(x)
        x = module(x)
    return found


def moments_of(z: Tensor) -> tuple[Tensor, Tensor]:
    """Of images, channel by channel."""
    values = [z[:, c].flatten() for c in range(z.shape[1])]
    return torch.stack([v.mean() for v in values]), torch.stack([torch.var(v, unbiased=False) for v in values])


def memory_of(teacher: Teacher) -> Moments:
    norms = [m for m in teacher.module.modules() if isinstance(m, nn.BatchNorm2d)]
    return [(norm.get_buffer("running_mean"), norm.get_buffer("running_var")) for norm in norms]


def distance_by_hand(found: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], distance: str, spread: str) -> float:
    """Of one layer."""
    total, squares = 0.0, [0.0, 0.0]
    for m, v, mean, var in zip(*map(Tensor.tolist, found), *map(Tensor.tolist, kept), strict=True):
        if distance == "kl":
            total += log(sqrt(var + EPSILON) / sqrt(v + EPSILON)) - 0.5
            total += ((v + EPSILON) + (m - mean) ** 2) / (2 * (var + EPSILON))
            continue
        gap = sqrt(v + EPSILON) - sqrt(var + EPSILON) if spread == "std" else v - var
        squares[0] += (m - mean) ** 2
        squares[1] += gap**2
    return total + (sum(squares) if distance == "squared" else sqrt(squares[0]) + sqrt(squares[1]))


def distances_by_hand(
    teacher: Teacher, images: Tensor, per: str, distance: str, spread: str
) -> tuple[list[list[float]], list[float]]:
    """Of each group of images (one of all, or each image alone) and layer; and of each group's input."""
    groups = [[*range(len(images))]] if per == "batch" else [[i] for i in range(len(images))]
    of_input, *of_layers = inputs_of_norms(teacher, images)
    zero_one = (torch.zeros(images.shape[1]), torch.ones(images.shape[1]))
    layers = [
        [
            distance_by_hand(moments_of(z[group]), kept, distance, spread)
            for z, kept in zip(of_layers, memory_of(teacher), strict=True)
        ]
        for group in groups
    ]
    return layers, [distance_by_hand(moments_of(of_input[group]), zero_one, distance, spread) for group in groups]


@each_variant
def test_every_variant_is_the_sum_over_layers_averaged_over_samples(
    teacher: Teacher, images: Tensor, per: Per, distance: Distance, spread: Spread
) -> None:
    layers, of_input = distances_by_hand(teacher, images, per, distance, spread)
    term = Alignment(per, distance, spread, match_input=False)
    expected = sum(map(sum, layers)) / len(layers)
    assert float(value_of(term, teacher, images)) == pytest.approx(expected, rel=1e-9)
    with_input = expected + sum(of_input) / len(of_input)
    assert float(value_of(replace(term, match_input=True), teacher, images)) == pytest.approx(with_input, rel=1e-9)


@each_variant
def test_the_first_layer_counts_as_often_as_asked_and_the_input_once(
    teacher: Teacher, images: Tensor, per: Per, distance: Distance, spread: Spread
) -> None:
    layers, of_input = distances_by_hand(teacher, images, per, distance, spread)
    expected = sum(10 * first + sum(others) for first, *others in layers) / len(layers) + sum(of_input) / len(of_input)
    found = value_of(Alignment(per, distance, spread, first_layer=10), teacher, images)
    assert float(found) == pytest.approx(expected, rel=WEIGHTED)


@each_variant
def test_the_gradient_is_that_of_finite_differences(
    teacher: Teacher, images: Tensor, per: Per, distance: Distance, spread: Spread
) -> None:
    term = Alignment(per, distance, spread, first_layer=3, emphasis=one_layer_per_sample if per == "sample" else None)
    prepared, observed = term.prepare(teacher, seed=0), ObservedTeacher(teacher, per)
    x = images[:2].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: prepared(Batch(x), observed(x)), (x,), eps=1e-7, atol=1e-4, rtol=1e-5, fast_mode=True
    )


@each_variant
def test_a_layer_that_remembers_no_variance_leaves_loss_and_gradient_finite(
    make_teacher: MakeTeacher, images: Tensor, per: Per, distance: Distance, spread: Spread
) -> None:
    for dtype in (torch.float32, torch.float64):
        teacher = make_teacher(dtype=dtype)
        for name in teacher.batch_norms:
            teacher.module.get_buffer(f"{name}.running_var").zero_()
        shown = torch.cat([images, torch.full((1, 2, 6, 6), 0.4)]).to(dtype).requires_grad_()  # the last one is flat
        loss = value_of(Alignment(per, distance, spread), teacher, shown)
        (gradient,) = torch.autograd.grad(loss, shown)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


# DSG: layerwise sample enhancement


def test_with_as_many_samples_as_layers_emphasis_is_the_matrix_of_equation_8() -> None:
    for n in (1, 3, 7):
        expected = torch.ones(n, 1) @ torch.ones(1, n) + torch.stack([*torch.eye(n)], 1)
        assert torch.equal(one_layer_per_sample(n, n), expected)


def test_emphasis_on_copies_of_one_image_is_equation_10(teacher: Teacher, images: Tensor) -> None:
    """`(X l)^T 1`, of which ours is the mean over samples: the layers' losses l are the same for each copy."""
    (losses,), _ = distances_by_hand(teacher, images[:1], "sample", "squared", "std")
    matrix = np.ones((3, 3)) + np.eye(3)
    expected = (matrix @ np.array(losses)).T @ np.ones(3) / 3
    term = Alignment("sample", match_input=False, emphasis=one_layer_per_sample)
    assert float(value_of(term, teacher, images[:1].expand(3, -1, -1, -1))) == pytest.approx(expected, rel=WEIGHTED)


@each_variant
def test_emphasis_counts_a_layer_of_each_sample_twice_and_goes_round(
    teacher: Teacher, images: Tensor, per: Per, distance: Distance, spread: Spread
) -> None:
    """Equation 7 for every sample: five samples, three layers."""
    if per == "batch":
        with pytest.raises(ConfigurationError, match=r"emphasis tells samples apart.*per='sample'"):
            Alignment(per, distance, spread, emphasis=one_layer_per_sample)
        return
    layers, of_input = distances_by_hand(teacher, images, per, distance, spread)
    twice = [0, 1, 2, 0, 1]
    expected = sum(sum(row) + row[j] for row, j in zip(layers, twice, strict=True)) / 5 + sum(of_input) / 5
    found = value_of(Alignment(per, distance, spread, emphasis=one_layer_per_sample), teacher, images)
    assert float(found) == pytest.approx(expected, rel=WEIGHTED)


# DSG: slack


def margins_by_hand(teacher: Teacher, share: float, seed: int, count: int = 1024) -> list[tuple[float, float]]:
    """Equation 6 with the statistics of all Gaussian images as one batch."""
    noise = torch.randn(count, *teacher.input.size, generator=generator_for(seed, -1))
    noise = noise.to(next(teacher.module.parameters()))
    _, *of_layers = inputs_of_norms(teacher, teacher.input.denormalize(noise))
    margins = []
    for z, (mean, var) in zip(of_layers, memory_of(teacher), strict=True):
        m, v = moments_of(z.double())
        std_gap = np.sqrt(v.numpy() + EPSILON) - np.sqrt(var.double().numpy() + EPSILON)
        mean_gap = m.numpy() - mean.double().numpy()
        margins.append((np.quantile(np.abs(mean_gap), share), np.quantile(np.abs(std_gap), share)))
    return margins


def slack_of(
    term: SlackAlignment, make_teacher: MakeTeacher, images: Tensor, network: int = 0, seed: int = 0
) -> Tensor:
    """Margins are measured on float32 noise, by a float32 teacher; its twin in float64 says what images cost."""
    prepared = term.prepare(make_teacher(network, dtype=torch.float32), seed=seed)
    return prepared(Batch(images), ObservedTeacher(make_teacher(network), term.per)(images))


def hinge_by_hand(found: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], margin: Sequence[float]) -> float:
    """Equation 5, of one layer."""
    total = 0.0
    for m, v, mean, var in zip(*map(Tensor.tolist, found), *map(Tensor.tolist, kept), strict=True):
        std_gap = abs(sqrt(v + EPSILON) - sqrt(var + EPSILON))
        total += max(abs(m - mean) - margin[0], 0) ** 2 + max(std_gap - margin[1], 0) ** 2
    return total


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_margins_are_quantiles_over_the_channels_of_each_layer(make_teacher: MakeTeacher, share: float) -> None:
    teacher = make_teacher(dtype=torch.float32)
    delta, gamma = SlackAlignment(share).margins(teacher, seed=3)
    expected = margins_by_hand(teacher, share, seed=3)
    for found, kind in ((delta, 0), (gamma, 1)):
        spread_out = [
            margin[kind] for margin, channels in zip(expected, (3, 4, 2), strict=True) for _ in range(channels)
        ]
        assert found.tolist() == pytest.approx(spread_out, rel=1e-4)


def test_the_percentile_1_allows_the_largest_distance_of_noise(make_teacher: MakeTeacher) -> None:
    """Then the noise itself, taken as one batch, costs nothing at all; with any less it does."""
    teacher = make_teacher(dtype=torch.float32)
    noise = teacher.input.denormalize(torch.randn(1024, 2, 6, 6, generator=generator_for(0, -1)))
    whole = float(value_of(SlackAlignment(1.0, per="batch", match_input=False), teacher, noise))
    part = float(value_of(SlackAlignment(0.9, per="batch", match_input=False), teacher, noise))
    assert whole < 1e-9 < 1e-4 < part


def test_margins_come_from_as_many_images_as_asked_of_the_jobs_own_stream(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(dtype=torch.float32)
    before = torch.get_rng_state()
    first = SlackAlignment(gaussian_images=200).margins(teacher, seed=0)  # one part of 128 and one of 72
    assert torch.equal(torch.get_rng_state(), before)
    expected = margins_by_hand(teacher, 0.9, seed=0, count=200)
    assert first[0][:3].tolist() == pytest.approx([expected[0][0]] * 3, rel=1e-4)
    again, other = (SlackAlignment(gaussian_images=200).margins(teacher, seed=seed) for seed in (0, 1))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("per", get_args(Per))
def test_slack_is_the_hinge_of_equation_5_summed_over_layers(
    make_teacher: MakeTeacher, teacher: Teacher, images: Tensor, per: Per
) -> None:
    margins = margins_by_hand(teacher, 0.7, seed=2)
    groups = [[*range(5)]] if per == "batch" else [[i] for i in range(5)]
    _, *of_layers = inputs_of_norms(teacher, images)
    costs = [
        [
            hinge_by_hand(moments_of(z[group]), kept, margin)
            for z, kept, margin in zip(of_layers, memory_of(teacher), margins, strict=True)
        ]
        for group in groups
    ]
    expected = sum(map(sum, costs)) / len(costs)
    plain = float(value_of(Alignment(per, match_input=False), teacher, images))
    assert 0 < expected < plain
    found = slack_of(SlackAlignment(0.7, per=per, match_input=False), make_teacher, images, seed=2)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_slack_and_emphasis_together_are_equation_10(
    make_teacher: MakeTeacher, teacher: Teacher, images: Tensor
) -> None:
    """Three samples, three layers: the matrix of equation 8 times each sample's slack losses, and its mean."""
    margins = margins_by_hand(teacher, 0.5, seed=0)
    _, *of_layers = inputs_of_norms(teacher, images[:1])
    losses = [
        hinge_by_hand(moments_of(z), k, m) for z, k, m in zip(of_layers, memory_of(teacher), margins, strict=True)
    ]
    expected = ((np.ones((3, 3)) + np.eye(3)) @ np.array(losses)).sum() / 3
    term = SlackAlignment(0.5, match_input=False, emphasis=one_layer_per_sample)
    assert expected > 0
    assert float(slack_of(term, make_teacher, images[:1].expand(3, -1, -1, -1))) == pytest.approx(expected, rel=1e-5)


def test_slack_asks_the_input_for_mean_0_and_variance_1_without_a_margin(
    make_teacher: MakeTeacher, teacher: Teacher, images: Tensor
) -> None:
    _, of_input = distances_by_hand(teacher, images, "sample", "squared", "std")
    without, with_input = (float(slack_of(SlackAlignment(match_input=m), make_teacher, images)) for m in (False, True))
    assert with_input - without == pytest.approx(sum(of_input) / 5, rel=1e-6)


def gaps_of(teacher: Teacher, mean: float, std: float) -> Tensor:
    """One image of two pixels whose channel is so far from what its only BatchNorm remembers."""
    ((running_mean, running_var),) = memory_of(teacher)
    m, s = float(running_mean) + mean, float((running_var + EPSILON).sqrt()) + std
    s = sqrt(s**2 - EPSILON)
    return pixels([[m - s, m + s]])


@pytest.mark.parametrize(
    ("mean_share", "std_share"),
    [(0, 0), (0.5, 0.5), (-0.9, 0.9), (0.99, -0.3), (1.5, 0.5), (-2, 0.2), (0.5, -1.2), (3, 2)],
)
def test_slack_inside_the_margin_has_no_loss_and_no_gradient_and_outside_is_the_rest(
    mean_share: float, std_share: float
) -> None:
    """The slip max(| |gap| - margin |, 0) would cost most of all where there is no gap."""
    target = teacher_of_one([2.0], [9.0])  # noise leaves it by about 2 in the mean and 2 in the standard deviation
    delta, gamma = (float(margin) for margin in SlackAlignment().margins(target, seed=0))
    assert (delta, gamma) == (pytest.approx(2, abs=0.1), pytest.approx(2, abs=0.1))
    image = gaps_of(target, mean_share * delta, std_share * gamma).requires_grad_()
    found = value_of(SlackAlignment(match_input=False), target, image)
    (gradient,) = torch.autograd.grad(found, image)
    expected = (max(abs(mean_share) - 1, 0) * delta) ** 2 + (max(abs(std_share) - 1, 0) * gamma) ** 2
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert bool(gradient.abs().max() > 0) == (expected > 0)


def test_the_gradient_of_slack_is_that_of_finite_differences(
    make_teacher: MakeTeacher, teacher: Teacher, images: Tensor
) -> None:
    prepared = SlackAlignment(0.5).prepare(make_teacher(dtype=torch.float32), seed=0)
    observed = ObservedTeacher(teacher, "sample")
    x = images[:2].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: prepared(Batch(x), observed(x)), (x,), eps=1e-7, atol=1e-4, rtol=1e-5, fast_mode=True
    )


def test_each_teacher_of_a_zoo_has_margins_of_its_own(make_teacher: MakeTeacher, images: Tensor) -> None:
    objective = Objective(alignment=SlackAlignment(0.5, match_input=False))
    prepared = [objective.prepare(make_teacher(network, dtype=torch.float32), seed=0) for network in (0, 1)]
    for network, terms in enumerate(prepared):
        teacher = make_teacher(network)
        margins = margins_by_hand(teacher, 0.5, seed=0)
        _, *of_layers = inputs_of_norms(teacher, images)
        expected = sum(
            hinge_by_hand(moments_of(z[[i]]), kept, margin) / 5
            for z, kept, margin in zip(of_layers, memory_of(teacher), margins, strict=True)
            for i in range(5)
        )
        found = terms(Batch(images), ObservedTeacher(teacher, "sample")(images))["alignment"]
        assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.001])
def test_a_percentile_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"percentile={share}: expected a share in \(0, 1\]"):
        SlackAlignment(share)


def test_slack_without_noise_or_with_emphasis_on_a_batch_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="gaussian_images=0"):
        SlackAlignment(gaussian_images=0)
    with pytest.raises(ConfigurationError, match="emphasis tells samples apart"):
        SlackAlignment(per="batch", emphasis=one_layer_per_sample)


# By hand, on a single BatchNorm right behind the input


def teacher_of_one(mean: list[float], var: list[float]) -> Teacher:
    """One BatchNorm right behind the input: what it sees is what we give it."""
    channels = len(mean)
    norm = nn.BatchNorm2d(channels)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor(mean))
    norm.running_var.copy_(torch.tensor(var))
    module = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Teacher.from_module(
        module, size=(channels, 1, 2), mean=[0.5] * channels, std=[0.25] * channels, classes=channels
    )


def pixels(x: list[list[float]]) -> Tensor:
    """One channel, two pixels an image; what the network shall see, in pixel units."""
    return torch.tensor(x).reshape(-1, 1, 1, 2) * 0.25 + 0.5


def squared_gap(var: float, target_var: float) -> float:
    return (sqrt(var + EPSILON) - sqrt(target_var + EPSILON)) ** 2


IMAGES = pixels([[1, 3], [5, 7]])  # image means 2 and 6, variances 1 and 1; of the batch 4 and 5


@pytest.mark.parametrize("match_input", [True, False])
def test_equation_2_over_the_batch(match_input: bool) -> None:
    expected = (4 - 2) ** 2 + squared_gap(5, 4)
    if match_input:
        expected += 4**2 + squared_gap(5, 1)
    found = value_of(Alignment(match_input=match_input), teacher_of_one([2.0], [4.0]), IMAGES)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("match_input", [True, False])
def test_equation_2_per_sample_is_the_mean_over_images(match_input: bool) -> None:
    expected = ((2 - 2) ** 2 + (6 - 2) ** 2) / 2 + squared_gap(1, 4)
    if match_input:
        expected += (2**2 + 6**2) / 2 + squared_gap(1, 1)
    found = value_of(Alignment(per="sample", match_input=match_input), teacher_of_one([2.0], [4.0]), IMAGES)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_channels_and_layers_are_summed_not_averaged() -> None:
    one = value_of(Alignment(), teacher_of_one([2.0], [4.0]), IMAGES)
    three = value_of(Alignment(), teacher_of_one([2.0] * 3, [4.0] * 3), IMAGES.expand(-1, 3, -1, -1))
    assert float(three) == pytest.approx(3 * float(one), rel=1e-6)

    class TwoNorms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            single = teacher_of_one([2.0], [4.0]).module.get_submodule("0")
            self.norms = nn.ModuleList([single, teacher_of_one([2.0], [4.0]).module.get_submodule("0")])

        def forward(self, x: Tensor) -> Tensor:
            total: Tensor = self.norms[0](x) + self.norms[1](x)
            return total.mean((2, 3))

    two = Teacher.from_module(TwoNorms(), size=(1, 1, 2), mean=[0.5], std=[0.25], classes=1)
    term = Alignment(match_input=False)
    expected = 2 * float(value_of(term, teacher_of_one([2.0], [4.0]), IMAGES))
    assert float(value_of(term, two, IMAGES)) == pytest.approx(expected, rel=1e-6)


def test_a_perfect_match_costs_nothing_and_stays() -> None:
    images = pixels([[-1, 1], [-1, 1]]).requires_grad_()
    for per in ("batch", "sample"):
        found = value_of(Alignment(per=per), teacher_of_one([0.0], [1.0]), images)  # type: ignore[arg-type]
        assert float(found.detach()) == pytest.approx(0, abs=1e-12)
        (gradient,) = torch.autograd.grad(found, images)
        assert gradient.abs().max() < 1e-6


def test_a_batch_may_match_where_no_image_does() -> None:
    images, matched = pixels([[-1, -1], [1, 1]]), teacher_of_one([0.0], [1.0])
    assert float(value_of(Alignment(), matched, images)) == pytest.approx(0, abs=1e-12)
    assert float(value_of(Alignment(per="sample"), matched, images)) == pytest.approx(
        2 * (1 + squared_gap(0, 1)), rel=1e-5
    )


def test_a_term_on_the_batch_reads_statistics_of_samples_too() -> None:
    """Where another term of the objective asks for samples, one on the batch says the same as alone."""
    term, target = Alignment(per="batch"), teacher_of_one([2.0], [4.0])
    alone, beside = value_of(term, target, IMAGES), value_of(term, target, IMAGES, per="sample")
    assert float(beside) == pytest.approx(float(alone), rel=1e-6)


def test_the_gradient_is_finite_where_an_image_is_flat() -> None:
    images = pixels([[1, 1], [2, 2]]).requires_grad_()
    (gradient,) = torch.autograd.grad(value_of(Alignment(per="sample"), teacher_of_one([0.0], [1.0]), images), images)
    assert torch.isfinite(gradient).all()


def test_the_gradient_is_that_of_the_equation() -> None:
    images = IMAGES.double().requires_grad_()
    term, target = Alignment(per="sample"), teacher_of_one([2.0], [4.0])
    target.module.double()
    assert torch.autograd.gradcheck(lambda x: value_of(term, target, x), (images,))


def test_a_teacher_without_batch_norm_is_refused() -> None:
    plain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    without = Teacher.from_module(plain, size=(1, 1, 2), mean=[0.5], std=[0.25], classes=1)
    with pytest.raises(TeacherError, match=r"no BatchNorm layer.*alignment compares with BatchNorm statistics"):
        Alignment().prepare(without, seed=0)
    with pytest.raises(TeacherError, match="slack alignment compares with BatchNorm statistics"):
        SlackAlignment().prepare(without, seed=0)
