"""Lesson 05: a loss that leaves slack, a layer for each image, and how alike images are."""

import torch
import torch.nn.functional as F
from torch import Tensor

import dfqlab_kernels
from dfqlab.lab.checks import Exercise, Hint
from dfqlab.measures import similarity_index
from dfqlab.synthesis.terms import one_layer_per_sample


def slack_loss(found: Tensor, remembered: Tensor, margin: float) -> Tensor:
    """DSG's eq. 5 for the means of one layer, each channel's share of it."""
    one, slack = torch.ones(1), torch.full((1,), margin)
    shares = [
        dfqlab_kernels.bn_alignment(a, one, b, one, channels=[1], mean_margin=slack, spread_margin=slack)
        for a, b in zip(found.split(1), remembered.split(1), strict=True)
    ]
    return torch.stack(shares)


def emphasis(images: int, layers: int) -> Tensor:
    """DSG's eqs. 7 and 8."""
    return one_layer_per_sample(images, layers)


def similarity(features: Tensor) -> Tensor:
    """Each image's mean cosine with the others; their mean is the library's index."""
    n = len(features)
    pairs = {(i, j): similarity_index(features[[i, j]]) for i in range(n) for j in range(n) if i != j}
    return torch.tensor([sum(pairs[i, j] for j in range(n) if j != i) / (n - 1) for i in range(n)])


def _without_slack(found: Tensor, remembered: Tensor, margin: float) -> Tensor:
    return (found - remembered).square()


def _all_of_it_beyond(found: Tensor, remembered: Tensor, margin: float) -> Tensor:
    distance = (found - remembered).abs()
    return distance.where(distance > margin, 0.0).square()


def _one_side(found: Tensor, remembered: Tensor, margin: float) -> Tensor:
    return (found - remembered - margin).clamp(min=0).square()


def _squared_first(found: Tensor, remembered: Tensor, margin: float) -> Tensor:
    return ((found - remembered).square() - margin).clamp(min=0)


def _only_one(images: int, layers: int) -> Tensor:
    return emphasis(images, layers) - 1


def _in_blocks(images: int, layers: int) -> Tensor:
    return 1.0 + F.one_hot(torch.arange(images) * layers // images, layers)


def _turned(images: int, layers: int) -> Tensor:
    return emphasis(images, layers).T


def _rows(features: Tensor) -> Tensor:
    return F.normalize(features.flatten(1), dim=1)


def _with_itself(features: Tensor) -> Tensor:
    return (_rows(features) @ _rows(features).T).mean(1)


def _by_length(features: Tensor) -> Tensor:
    rows, n = features.flatten(1), len(features)
    gram = rows @ rows.T
    return (gram.sum(1) - gram.diagonal()) / (n - 1)


def _of_all_pairs(features: Tensor) -> Tensor:
    gram, n = _rows(features) @ _rows(features).T, len(features)
    return (gram.sum(1) - gram.diagonal()) / n


def _without_sign(features: Tensor) -> Tensor:
    gram, n = (_rows(features) @ _rows(features).T).abs(), len(features)
    return (gram.sum(1) - gram.diagonal()) / (n - 1)


EXERCISES = (
    Exercise(
        id="05.slack_loss",
        answer=slack_loss,
        cases=(
            (torch.tensor([1.0, 2.5, -1.0]), torch.tensor([1.25, 1.0, 1.0]), 0.5),
            (torch.tensor([0.0, 3.0]), torch.tensor([0.5, 0.0]), 1.0),
            (torch.tensor([0.25, 0.5]), torch.tensor([0.0, 0.25]), 0.5),
        ),
        drawn=("found", "remembered"),
        hints=(
            Hint(
                "A distance within the margin costs nothing, and a longer one only what is beyond it.", _without_slack
            ),
            Hint("Take the margin off what is beyond it too: the loss has no step there.", _all_of_it_beyond),
            Hint("Too low is as bad as too high: take the absolute difference first.", _one_side),
            Hint("Take the margin off the distance, and square what is left.", _squared_first),
        ),
        library="dfqlab.synthesis.terms.SlackAlignment",
    ),
    Exercise(
        id="05.emphasis",
        answer=emphasis,
        cases=((4, 2), (5, 3), (2, 4)),
        drawn=(),
        hints=(
            Hint("Every layer counts once for every image; the image's own layer counts once more.", _only_one),
            Hint("Image by image in turn: the layer of image i is i % layers.", _in_blocks),
            Hint("A row an image, a column a layer.", _turned),
        ),
        library="dfqlab.synthesis.terms.one_layer_per_sample",
    ),
    Exercise(
        id="05.similarity",
        answer=similarity,
        cases=(
            (torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]),),
            (torch.tensor([[1.0, 2.0], [-1.0, 2.0], [2.0, 1.0], [0.5, -0.5]]),),
        ),
        drawn=(),
        hints=(
            Hint("An image is of course like itself: leave that pair out.", _with_itself),
            Hint("A cosine knows directions alone: divide each row by its length first.", _by_length),
            Hint("Without the image itself, n - 1 others are left to average over.", _of_all_pairs),
            Hint("Opposite directions are the contrary of alike: keep the sign.", _without_sign),
        ),
        library="dfqlab.measures.similarity_index",
    ),
)
