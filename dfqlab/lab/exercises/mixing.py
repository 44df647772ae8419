"""Lesson 04: an image in another's box, the loss towards both their classes, and what a zoo makes of it (MixMix)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfqlab.lab.checks import Exercise, Hint
from dfqlab.synthesis.mixing import Box, mix_images, mix_labels


def paste(first: Tensor, second: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
    """The first image with the whole second one, made smaller, in a box (eqs. 7 and 8)."""
    mixed, _ = mix_images(first[None], second[None], Box(left, top, width, height))
    return mixed[0]


def mixed_loss(logits: Tensor, first: Tensor, second: Tensor, beta: float) -> Tensor:
    """Cross-entropy towards both classes of each mixed image, `beta` of it towards the second (eq. 9)."""
    return F.cross_entropy(logits, mix_labels(first, second, beta, logits.shape[1]), reduction="none")


def zoo_loss(losses: Tensor, drawn: Tensor) -> Tensor:
    """Each term of the loss, averaged over the networks that were drawn for this batch (eq. 6)."""
    return losses[drawn].mean(0)


def _cut(first: Tensor, second: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
    mixed, _ = mix_images(first[None], second[None], Box(left, top, width, height), "cut")
    return mixed[0]


def _top_left_corner(first: Tensor, second: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
    return _placed(first, second[:, :height, :width], left, top)


def _nearest(first: Tensor, second: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
    return _placed(first, F.interpolate(second[None], (height, width))[0], left, top)


def _width_for_height(first: Tensor, second: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
    return paste(first, second, left, top, height, width)


def _added(first: Tensor, second: Tensor, left: int, top: int, width: int, height: int) -> Tensor:
    return first + paste(torch.zeros_like(first), second, left, top, width, height)


def _placed(first: Tensor, small: Tensor, left: int, top: int) -> Tensor:
    mixed = first.clone()
    mixed[:, top : top + small.shape[1], left : left + small.shape[2]] = small
    return mixed


def _weights_swapped(logits: Tensor, first: Tensor, second: Tensor, beta: float) -> Tensor:
    return mixed_loss(logits, second, first, beta)


def _half_and_half(logits: Tensor, first: Tensor, second: Tensor, beta: float) -> Tensor:
    return mixed_loss(logits, first, second, 0.5)


def _of_mixed_probabilities(logits: Tensor, first: Tensor, second: Tensor, beta: float) -> Tensor:
    return -(logits.softmax(1) * mix_labels(first, second, beta, logits.shape[1])).sum(1).log()


def _over_images_too(logits: Tensor, first: Tensor, second: Tensor, beta: float) -> Tensor:
    return mixed_loss(logits, first, second, beta).mean()


def _summed(losses: Tensor, drawn: Tensor) -> Tensor:
    return losses[drawn].sum(0)


def _over_all(losses: Tensor, drawn: Tensor) -> Tensor:
    return losses.mean(0)


def _divided_by_all(losses: Tensor, drawn: Tensor) -> Tensor:
    return losses[drawn].sum(0) / len(losses)


def _over_terms_too(losses: Tensor, drawn: Tensor) -> Tensor:
    return losses[drawn].mean()


_IMAGE = torch.arange(1.0, 9.0).reshape(1, 2, 4)
_COLOURED = (torch.arange(24.0) * 5 % 13).reshape(2, 3, 4)

EXERCISES = (
    Exercise(
        id="04.paste",
        answer=paste,
        cases=(
            (_IMAGE, 10 * _IMAGE, 1, 0, 2, 1),
            (_COLOURED, _COLOURED.square() - 20, 2, 1, 2, 1),
            (_COLOURED, _COLOURED.flip(2) + 30, 1, 0, 2, 3),
        ),
        drawn=("first", "second"),
        hints=(
            Hint(
                "The box shows the whole second image, made smaller; this shows the part of it that lies there.", _cut
            ),
            Hint("Before it goes into the box, the second image is made as small as the box.", _top_left_corner),
            Hint("F.interpolate takes the nearest pixel unless told otherwise: mode='bilinear'.", _nearest),
            Hint("Rows come first: a box is `height` rows by `width` columns.", _width_for_height),
            Hint("Inside the box nothing is left of the first image: replace its pixels, add nothing.", _added),
        ),
        library="dfqlab.synthesis.mixing.mix_images",
    ),
    Exercise(
        id="04.mixed_loss",
        answer=mixed_loss,
        cases=(
            (torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 1]), torch.tensor([1, 2]), 0.25),
            (
                torch.tensor([[0.5, -1.0, 2.0, 0.0], [1.0, 1.5, 0.0, -2.0], [0.0, 0.0, 4.0, 1.0]]),
                torch.tensor([3, 0, 2]),
                torch.tensor([1, 1, 2]),
                0.7,
            ),
        ),
        drawn=("first", "second"),
        hints=(
            Hint(
                "The box belongs to the second image, so its share, beta, goes to the second class.", _weights_swapped
            ),
            Hint("A class counts as much as its image covers: 1 - beta and beta, not a half each.", _half_and_half),
            Hint("Mix the two losses, not the two probabilities under the logarithm.", _of_mixed_probabilities),
            Hint("One loss for each image, not averaged yet: reduction='none' keeps them apart.", _over_images_too),
        ),
        library="dfqlab.synthesis.mixing.mix_labels",
    ),
    Exercise(
        id="04.zoo_loss",
        answer=zoo_loss,
        cases=(
            (torch.tensor([[2.0, 1.0], [8.0, 3.0], [4.0, 2.0], [6.0, 10.0]]), torch.tensor([0, 2])),
            (
                torch.tensor([[1.0, 0.5, 3.0], [4.0, 2.5, 0.0], [7.0, 1.5, 9.0], [0.0, 8.5, 2.0]]),
                torch.tensor([3, 0, 1]),
            ),
        ),
        drawn=(),
        hints=(
            Hint("A sum grows with the number of networks, and so would the step: take the mean.", _summed),
            Hint("Only the networks that were drawn have seen this batch: leave out the others.", _over_all),
            Hint("Divide by how many were drawn, not by how many there are.", _divided_by_all),
            Hint("Average over networks alone, dimension 0: each term keeps a mean of its own.", _over_terms_too),
        ),
        library="dfqlab.synthesis.zoo.Zoo",
    ),
)
