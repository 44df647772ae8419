"""Lesson 02's exercises, as learners write them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lab.exercises.memory import update_running_mean, widen

UPDATE, WIDEN = "02.update_running_mean", "02.widen"
WEIGHT, CHANNELS, OLD = (hint.text for hint in EXERCISES[UPDATE].hints)
FURTHER, APART, BOTH = (hint.text for hint in EXERCISES[WIDEN].hints)


def test_update_running_mean_is_the_weighted_sum_in_float64() -> None:
    for mean, x, momentum in EXERCISES[UPDATE].cases:
        batch = x.double().mean((0, 2, 3))
        expected = mean.double() * (1 - momentum) + batch * momentum
        assert update_running_mean(mean, x, momentum).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_update_running_mean_remembers_what_torchs_layer_remembers_after_many_batches() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.3).train()
    mean = torch.zeros(3)
    for seed in range(5):
        x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
        norm(x)
        mean = update_running_mean(mean, x, 0.3)
    assert norm.running_mean is not None
    torch.testing.assert_close(mean, norm.running_mean)


def test_widen_holds_what_was_seen_and_what_came() -> None:
    for seen, x in EXERCISES[WIDEN].cases:
        values = [*seen.tolist(), *x.flatten().tolist()]
        assert widen(seen, x).tolist() == [min(values), max(values)]


def mean_by_formula(running_mean, x, momentum):
    return (1 - momentum) * running_mean + momentum * x.mean(dim=(0, 2, 3))


def mean_by_lerp(running_mean, x, momentum):
    return torch.lerp(running_mean, x.transpose(0, 1).flatten(1).mean(1), momentum)


def mean_by_step(running_mean, x, momentum):
    return running_mean + momentum * (x.mean(0).mean(1).mean(1) - running_mean)


def mean_by_loop(running_mean, x, momentum):
    new = []
    for channel in range(x.shape[1]):
        values = x[:, channel].flatten().tolist()
        new.append((1 - momentum) * running_mean[channel].item() + momentum * sum(values) / len(values))
    return torch.tensor(new)


def mean_by_torch(running_mean, x, momentum):
    mean = running_mean.clone()
    nn.functional.batch_norm(x, mean, torch.ones_like(mean), training=True, momentum=momentum)
    return mean


@pytest.mark.parametrize("yours", [mean_by_formula, mean_by_lerp, mean_by_step, mean_by_loop, mean_by_torch])
def test_update_running_mean_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(UPDATE, yours)
    assert verdict.outcome == "passed", verdict


def swaps_the_weights(running_mean, x, momentum):
    return torch.lerp(x.mean((0, 2, 3)), running_mean, momentum)


def averages_images_only(running_mean, x, momentum):
    old = running_mean.numpy().reshape(-1, 1, 1)
    return torch.from_numpy((1 - np.float32(momentum)) * old + np.float32(momentum) * x.numpy().mean(0))


def forgets_the_old(running_mean, x, momentum):
    return torch.stack([x[:, channel].mean() for channel in range(len(running_mean))])


@pytest.mark.parametrize(
    ("yours", "hint"), [(swaps_the_weights, WEIGHT), (averages_images_only, CHANNELS), (forgets_the_old, OLD)]
)
def test_update_running_mean_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(UPDATE, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_the_layer_that_updates_the_mean_it_was_given_is_told_so() -> None:
    def in_place(running_mean, x, momentum):
        running_mean.mul_(1 - momentum).add_(momentum * x.mean((0, 2, 3)))
        return running_mean

    verdict = check(UPDATE, in_place)
    assert verdict.outcome == "wrong"
    assert "'running_mean' in place" in verdict.sentence


def range_by_stack(seen, x):
    return torch.stack([torch.minimum(seen[0], x.min()), torch.maximum(seen[1], x.max())])


def range_by_numbers(seen, x):
    return torch.tensor([min(seen[0].item(), x.min().item()), max(seen[1].item(), x.max().item())])


def range_by_cat(seen, x):
    return torch.stack(torch.aminmax(torch.cat([seen, x.flatten()])))


def range_by_loop(seen, x):
    low, high = seen
    for value in x.flatten():
        low = value if value < low else low
        high = value if value > high else high
    return torch.tensor([low, high])


@pytest.mark.parametrize("yours", [range_by_stack, range_by_numbers, range_by_cat, range_by_loop])
def test_widen_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(WIDEN, yours)
    assert verdict.outcome == "passed", verdict


def sees_the_last_batch_only(seen, x):
    values = sorted(x.flatten().tolist())
    return torch.tensor([values[0], values[-1]])


def reaches_both_ways(seen, x):
    end = np.abs(np.concatenate([seen.numpy(), x.numpy().ravel()])).max()
    return torch.tensor([-end, end])


def keeps_what_both_hold(seen, x):
    return torch.tensor([max(seen[0].item(), x.min().item()), min(seen[1].item(), x.max().item())])


@pytest.mark.parametrize(
    ("yours", "hint"), [(sees_the_last_batch_only, FURTHER), (reaches_both_ways, APART), (keeps_what_both_hold, BOTH)]
)
def test_widen_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(WIDEN, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_a_pair_is_told_to_become_a_tensor() -> None:
    verdict = check(WIDEN, lambda seen, x: (min(seen[0], x.min()), max(seen[1], x.max())))
    assert verdict.outcome == "wrong"
    assert "tuple; expected a tensor" in verdict.sentence
    assert "torch.stack" in verdict.sentence
