"""Lesson 03's exercises, as learners write them."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfqlab.lab.checks import examine
from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lab.exercises.inversion import PARTLY, STAY, bn_loss, descend, total_variation
from dfqlab.synthesis.terms import TotalVariation

LOSS, STEP, SMOOTH = "03.bn_loss", "03.descend", "03.total_variation"
BIASED, ROOTS, BATCH, SQUARES = (hint.text for hint in EXERCISES[LOSS].hints)
DOWN, RATE, BOTH, BIASED_TOO = (hint.text for hint in EXERCISES[STEP].hints)
RIGHT, SIGNS, EDGE, PIXELS = (hint.text for hint in EXERCISES[SMOOTH].hints)
ALL = (0, 2, 3)


def test_bn_loss_is_equation_2_in_float64() -> None:
    for x, mean, var in EXERCISES[LOSS].cases:
        channels = x.double().transpose(0, 1).flatten(1)
        expected = [
            float((values.mean() - m) ** 2 + (((values - values.mean()) ** 2).mean().sqrt() - v.sqrt()) ** 2)
            for values, m, v in zip(channels, mean.double(), var.double(), strict=True)
        ]
        assert bn_loss(x, mean, var).tolist() == pytest.approx(expected, rel=1e-5)


def test_descend_ends_where_the_statistics_are_those_asked_for() -> None:
    pixels = torch.tensor([2.0, 3.0, 3.0, 4.0, 6.0])
    for _ in range(400):
        pixels = descend(pixels, 0.5, 2.0, 0.3)
    assert [float(pixels.mean()), float(pixels.std(correction=0))] == pytest.approx([0.5, 2.0], abs=1e-3)


def test_total_variation_of_images_is_on_average_that_of_the_term() -> None:
    (x,) = EXERCISES[SMOOTH].cases[1]
    torch.testing.assert_close(total_variation(x).mean(), TotalVariation("l1").of_images(x))


def loss_by_formula(x, running_mean, running_var):
    mean, var = x.mean(ALL), x.var(ALL, correction=0)
    return (mean - running_mean) ** 2 + (var.sqrt() - running_var.sqrt()) ** 2


def loss_by_moments(x, running_mean, running_var):
    mean = x.mean(ALL)
    std = ((x**2).mean(ALL) - mean**2) ** 0.5
    return (mean - running_mean).square() + (std - running_var**0.5).square()


def loss_by_loop(x, running_mean, running_var):
    losses = []
    for channel in range(x.shape[1]):
        values = x[:, channel]
        std = values.std(unbiased=False)
        losses.append((values.mean() - running_mean[channel]) ** 2 + (std - running_var[channel].sqrt()) ** 2)
    return torch.stack(losses)


@pytest.mark.parametrize("yours", [loss_by_formula, loss_by_moments, loss_by_loop])
def test_bn_loss_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(LOSS, yours)
    assert verdict.outcome == "passed", verdict


def divides_by_one_less(x, running_mean, running_var):
    return (x.mean(ALL) - running_mean) ** 2 + (x.std(ALL) - running_var.sqrt()) ** 2


def compares_variances(x, running_mean, running_var):
    return torch.square(x.mean(ALL) - running_mean) + torch.square(x.var(ALL, correction=0) - running_var)


def image_by_image(x, running_mean, running_var):
    mean, std = x.mean((2, 3)), x.std((2, 3), correction=0)
    return ((mean - running_mean) ** 2 + (std - running_var.sqrt()) ** 2).mean(0)


def adds_distances(x, running_mean, running_var):
    return abs(x.mean(ALL) - running_mean) + abs(x.std(ALL, correction=0) - running_var.sqrt())


@pytest.mark.parametrize(
    ("yours", "hint"),
    [(divides_by_one_less, BIASED), (compares_variances, ROOTS), (image_by_image, BATCH), (adds_distances, SQUARES)],
)
def test_bn_loss_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(LOSS, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def from_detached(x, running_mean, running_var):
    return loss_by_formula(x.detach(), running_mean, running_var)


def from_data(x, running_mean, running_var):
    return loss_by_formula(x.data, running_mean, running_var)


def without_grad(x, running_mean, running_var):
    with torch.no_grad():
        return loss_by_formula(x, running_mean, running_var)


def of_items(x, running_mean, running_var):
    return torch.tensor([loss.item() for loss in loss_by_formula(x, running_mean, running_var)])


def of_floats(x, running_mean, running_var):
    return loss_by_formula(x, running_mean, running_var).tolist()


@pytest.mark.parametrize("yours", [from_detached, from_data, without_grad, of_items, of_floats])
def test_a_loss_without_a_gradient_is_told_so(yours: Callable[..., Tensor]) -> None:
    verdict = check(LOSS, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", STAY)
    assert "no gradient" in verdict.sentence
    assert verdict.rows


def mean_is_cut_off(x, running_mean, running_var):
    mean = x.mean(ALL).detach()
    return (mean - running_mean) ** 2 + (x.std(ALL, correction=0) - running_var.sqrt()) ** 2


def std_is_cut_off(x, running_mean, running_var):
    std = x.data.std(ALL, correction=0)
    return (x.mean(ALL) - running_mean) ** 2 + (std - running_var.sqrt()) ** 2


@pytest.mark.parametrize("yours", [mean_is_cut_off, std_is_cut_off])
def test_a_loss_with_half_a_gradient_is_told_where_it_is_wrong(yours: Callable[..., Tensor]) -> None:
    verdict = check(LOSS, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", PARTLY)
    assert re.search(r"gradient at x\[0, 0, 0, 0\] is -?[\d.]+, but .* -?[\d.]+ times", verdict.sentence)


def test_the_gradient_of_a_loss_is_held_to_that_loss_and_not_to_the_right_one() -> None:
    verdict = check(LOSS, lambda x, running_mean, running_var: bn_loss(x, running_mean, running_var) ** 2)
    assert verdict.outcome == "wrong"
    assert "gradient" not in verdict.sentence


def test_a_loss_that_moves_its_batch_is_told_so() -> None:
    def in_place(x, running_mean, running_var):
        x -= running_mean[:, None, None]
        return x.mean(ALL).square() + (x.std(ALL, correction=0) - running_var.sqrt()).square()

    assert "'x' in place" in check(LOSS, in_place).sentence


def test_a_loss_of_one_number_is_told_the_shape() -> None:
    verdict = check(LOSS, lambda *case: bn_loss(*case).sum())
    assert "shape (); expected (3,)" in verdict.sentence


def step_by_autograd(pixels, mean, std, rate):
    x = pixels.clone().requires_grad_(True)
    loss = (x.mean() - mean) ** 2 + (x.std(correction=0) - std) ** 2
    loss.backward()
    return x.detach() - rate * x.grad


def step_by_hand(pixels, mean, std, rate):
    n, m, s = len(pixels), pixels.mean(), pixels.std(correction=0)
    gradient = 2 * (m - mean) / n + 2 * (s - std) * (pixels - m) / (n * s)
    return pixels - rate * gradient


def step_by_optimizer(pixels, mean, std, rate):
    x = pixels.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=rate)
    ((x.mean() - mean) ** 2 + (x.std(unbiased=False) - std) ** 2).backward()
    optimizer.step()
    return x


@pytest.mark.parametrize("yours", [step_by_autograd, step_by_hand, step_by_optimizer])
def test_descend_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(STEP, yours)
    assert verdict.outcome == "passed", verdict


def goes_up(pixels, mean, std, rate):
    return 2 * pixels - step_by_hand(pixels, mean, std, rate)


def takes_it_all(pixels, mean, std, rate):
    return step_by_hand(pixels, mean, std, 1)


def moves_the_mean(pixels, mean, std, rate):
    x = pixels.clone().requires_grad_()
    ((x.mean() - mean) ** 2).backward()
    return pixels - rate * x.grad


def takes_torchs_std(pixels, mean, std, rate):
    x = pixels.clone().requires_grad_()
    ((x.mean() - mean) ** 2 + (torch.std(x) - std) ** 2).backward()
    return pixels - rate * x.grad


@pytest.mark.parametrize(
    ("yours", "hint"), [(goes_up, DOWN), (takes_it_all, RATE), (moves_the_mean, BOTH), (takes_torchs_std, BIASED_TOO)]
)
def test_descend_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(STEP, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def variation_by_diff(x):
    down, right = x.diff(dim=2).abs(), x.diff(dim=3).abs()
    return (down.flatten(1).sum(1) + right.flatten(1).sum(1)) / (x.shape[2] * x.shape[3])


def variation_by_loop(x):
    found = []
    for image in x:
        total = 0.0
        for colour in image:
            for i in range(colour.shape[0]):
                for j in range(colour.shape[1]):
                    if i > 0:
                        total += abs(colour[i, j] - colour[i - 1, j]).item()
                    if j > 0:
                        total += abs(colour[i, j] - colour[i, j - 1]).item()
        found.append(total / (x.shape[2] * x.shape[3]))
    return torch.tensor(found)


@pytest.mark.parametrize("yours", [variation_by_diff, variation_by_loop])
def test_total_variation_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(SMOOTH, yours)
    assert verdict.outcome == "passed", verdict


def looks_down(x):
    return x.diff(dim=2).abs().sum((1, 2, 3)) / x[0, 0].numel()


def squares(x):
    return (x.diff(dim=2).pow(2).sum((1, 2, 3)) + x.diff(dim=3).pow(2).sum((1, 2, 3))) / x[0, 0].numel()


def rolls(x):
    steps = [x - torch.roll(x, 1, dim) for dim in (2, 3)]
    return sum(step.abs().sum((1, 2, 3)) for step in steps) / x[0, 0].numel()


def averages_each(x):
    return sum(x.diff(dim=dim).abs().sum(1).mean((1, 2)) for dim in (2, 3))


@pytest.mark.parametrize(
    ("yours", "hint"), [(looks_down, RIGHT), (squares, SIGNS), (rolls, EDGE), (averages_each, PIXELS)]
)
def test_total_variation_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(SMOOTH, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_the_first_case_of_each_is_drawn_for_the_stub() -> None:
    for id in (LOSS, STEP, SMOOTH):
        verdict = examine(EXERCISES[id], EXERCISES[id].answer)
        assert verdict.outcome == "passed", verdict
