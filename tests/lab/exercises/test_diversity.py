"""Lesson 05's exercises, as learners write them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lab.exercises.diversity import emphasis, similarity, slack_loss
from dfqlab.measures import similarity_index

SLACK, LAYER, ALIKE = "05.slack_loss", "05.emphasis", "05.similarity"
WITHIN, BEYOND, SIDES, SQUARE = (hint.text for hint in EXERCISES[SLACK].hints)
ONCE, TURNS, ROWS = (hint.text for hint in EXERCISES[LAYER].hints)
ITSELF, LENGTH, PAIRS, SIGN = (hint.text for hint in EXERCISES[ALIKE].hints)


def test_slack_loss_is_equation_5_in_float64() -> None:
    for found, remembered, margin in EXERCISES[SLACK].cases:
        pairs = zip(found.tolist(), remembered.tolist(), strict=True)
        expected = [max(abs(a - b) - margin, 0.0) ** 2 for a, b in pairs]
        assert slack_loss(found, remembered, margin).tolist() == pytest.approx(expected)


def test_emphasis_goes_through_the_layers_in_turn() -> None:
    assert emphasis(4, 3).tolist() == [[2, 1, 1], [1, 2, 1], [1, 1, 2], [2, 1, 1]]


def test_similarity_is_the_mean_cosine_of_torch_over_pairs() -> None:
    for (features,) in EXERCISES[ALIKE].cases:
        n = len(features)
        for i, found in enumerate(similarity(features).tolist()):
            cosines = [F.cosine_similarity(features[i], features[j], dim=0) for j in range(n) if j != i]
            assert found == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-6)
        assert float(similarity(features).mean()) == pytest.approx(similarity_index(features), abs=1e-6)


def clamped(found, remembered, margin):
    return torch.clamp((found - remembered).abs() - margin, min=0).pow(2)


def with_relu(found, remembered, margin):
    return F.relu(abs(found - remembered) - margin).square()


def with_where(found, remembered, margin):
    beyond = torch.abs(found - remembered) - margin
    return torch.where(beyond > 0, beyond**2, torch.zeros_like(beyond))


def rows(images, layers):
    weights = torch.ones(images, layers)
    for image in range(images):
        weights[image, image % layers] += 1
    return weights


def from_identity(images, layers):
    return 1 + torch.eye(layers)[torch.arange(images) % layers]


def by_normalize(features):
    unit = F.normalize(features, dim=1)
    gram, n = unit @ unit.T, len(features)
    return (gram.sum(1) - 1) / (n - 1)


def by_loop(features):
    found = []
    for i, image in enumerate(features):
        others = torch.cat([features[:i], features[i + 1 :]])
        found.append(F.cosine_similarity(image[None], others).mean())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("exercise", "yours"),
    [
        (SLACK, clamped), (SLACK, with_relu), (SLACK, with_where), (LAYER, rows), (LAYER, from_identity),
        (ALIKE, by_normalize), (ALIKE, by_loop),
    ],
)  # fmt: skip
def test_as_learners_write_it_it_passes(exercise: str, yours: Callable[..., Tensor]) -> None:
    verdict = check(exercise, yours)
    assert verdict.outcome == "passed", verdict


def no_margin(found, remembered, margin):
    return (found - remembered) ** 2


def whole_distance(found, remembered, margin):
    distance = abs(found - remembered)
    return torch.where(distance > margin, distance**2, 0)


def too_high_alone(found, remembered, margin):
    return F.relu(found - remembered - margin).pow(2)


def squares_less_margin(found, remembered, margin):
    return F.relu((found - remembered) ** 2 - margin)


def one_hot(images, layers):
    return torch.eye(layers)[torch.arange(images) % layers]


def in_blocks(images, layers):
    return torch.stack([1 + torch.eye(layers)[image * layers // images] for image in range(images)])


def a_row_a_layer(images, layers):
    return rows(images, layers).T


def all_cosines(features):
    unit = F.normalize(features, dim=1)
    return (unit @ unit.T).mean(1)


def products(features):
    gram, n = features @ features.T, len(features)
    return (gram.sum(1) - gram.diagonal()) / (n - 1)


def by_all_pairs(features):
    return by_normalize(features) * (len(features) - 1) / len(features)


def absolute(features):
    unit = F.normalize(features, dim=1)
    gram, n = (unit @ unit.T).abs(), len(features)
    return (gram.sum(1) - 1) / (n - 1)


@pytest.mark.parametrize(
    ("exercise", "yours", "hint"),
    [
        (SLACK, no_margin, WITHIN), (SLACK, whole_distance, BEYOND), (SLACK, too_high_alone, SIDES),
        (SLACK, squares_less_margin, SQUARE), (LAYER, one_hot, ONCE),
        (LAYER, in_blocks, TURNS), (LAYER, a_row_a_layer, ROWS), (ALIKE, all_cosines, ITSELF),
        (ALIKE, products, LENGTH), (ALIKE, by_all_pairs, PAIRS), (ALIKE, absolute, SIGN),
    ],
)  # fmt: skip
def test_written_wrong_it_is_told_why(exercise: str, yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(exercise, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)
