"""Lesson 04's exercises, as learners write them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dfqlab.lab.checks import examine
from dfqlab.lab.exercises import EXERCISES, check
from dfqlab.lab.exercises.mixing import mixed_loss, paste, zoo_loss

PASTE, LOSS, ZOO = "04.paste", "04.mixed_loss", "04.zoo_loss"
WHOLE, SMALL, BILINEAR, ROWS, REPLACE = (hint.text for hint in EXERCISES[PASTE].hints)
SHARE, NOT_HALF, LOGARITHM, EACH = (hint.text for hint in EXERCISES[LOSS].hints)
MEAN, DRAWN_ALONE, HOW_MANY, TERMS = (hint.text for hint in EXERCISES[ZOO].hints)


def at(values: np.ndarray, place: float, axis: int) -> np.ndarray:
    """Between the two pixels whose middles lie around a place, those at the edge beyond the edge."""
    place = min(max(place, 0.0), values.shape[axis] - 1.0)
    low = int(place)
    high = min(low + 1, values.shape[axis] - 1)
    share = place - low
    return (1 - share) * values.take(low, axis) + share * values.take(high, axis)


def test_paste_reads_the_second_image_at_the_middle_of_every_pixel_of_the_box() -> None:
    for first, second, left, top, width, height in EXERCISES[PASTE].cases:
        expected = first.double().numpy().copy()
        source = second.double().numpy()
        for row in range(height):
            for column in range(width):
                line = at(source, (row + 0.5) * source.shape[1] / height - 0.5, 1)
                expected[:, top + row, left + column] = at(line, (column + 0.5) * source.shape[2] / width - 0.5, 1)
        np.testing.assert_allclose(paste(first, second, left, top, width, height).numpy(), expected, rtol=1e-5)


def test_mixed_loss_is_minus_the_weighted_logarithms_in_float64() -> None:
    for logits, first, second, beta in EXERCISES[LOSS].cases:
        expected = []
        for row, one, other in zip(logits.double().numpy(), first.tolist(), second.tolist(), strict=True):
            probabilities = np.exp(row) / np.exp(row).sum()
            expected.append(-(1 - beta) * np.log(probabilities[one]) - beta * np.log(probabilities[other]))
        assert mixed_loss(logits, first, second, beta).tolist() == pytest.approx(expected, rel=1e-5)


def test_zoo_loss_is_the_mean_of_every_term_over_those_drawn() -> None:
    for losses, drawn in EXERCISES[ZOO].cases:
        rows = [losses.tolist()[j] for j in drawn.tolist()]
        assert zoo_loss(losses, drawn).tolist() == pytest.approx(
            [sum(term) / len(rows) for term in zip(*rows, strict=True)]
        )


def small(second, width, height):
    return F.interpolate(second[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def paste_by_slices(first, second, left, top, width, height):
    mixed = first.clone()
    mixed[:, top : top + height, left : left + width] = small(second, width, height)
    return mixed


def paste_by_mask(first, second, left, top, width, height):
    mask = torch.zeros(first.shape[1:])
    mask[top : top + height, left : left + width] = 1
    around = (left, first.shape[2] - left - width, top, first.shape[1] - top - height)
    return (1 - mask) * first + mask * F.pad(small(second, width, height), around)


def paste_by_where(first, second, left, top, width, height):
    rows, columns = torch.arange(first.shape[1])[:, None], torch.arange(first.shape[2])
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    placed = torch.zeros_like(first)
    placed[:, inside] = small(second, width, height).flatten(1)
    return torch.where(inside, placed, first)


@pytest.mark.parametrize("yours", [paste_by_slices, paste_by_mask, paste_by_where])
def test_paste_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(PASTE, yours)
    assert verdict.outcome == "passed", verdict


def cuts(first, second, left, top, width, height):
    mixed = first.clone()
    box = slice(None), slice(top, top + height), slice(left, left + width)
    mixed[box] = second[box]
    return mixed


def keeps_the_corner(first, second, left, top, width, height):
    mixed = first.clone()
    mixed[:, top : top + height, left : left + width] = second[:, :height, :width]
    return mixed


def takes_the_nearest(first, second, left, top, width, height):
    mixed = first.clone()
    mixed[:, top : top + height, left : left + width] = F.interpolate(second.unsqueeze(0), (height, width)).squeeze(0)
    return mixed


def swaps_sides(first, second, left, top, width, height):
    mixed = first.clone()
    mixed[:, top : top + width, left : left + height] = small(second, height, width)
    return mixed


def adds(first, second, left, top, width, height):
    mixed = first.clone()
    mixed[:, top : top + height, left : left + width] += small(second, width, height)
    return mixed


@pytest.mark.parametrize(
    ("yours", "hint"),
    [(cuts, WHOLE), (keeps_the_corner, SMALL), (takes_the_nearest, BILINEAR), (swaps_sides, ROWS), (adds, REPLACE)],
)
def test_paste_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(PASTE, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_who_pastes_into_the_first_image_itself_is_told_so() -> None:
    def in_place(first, second, left, top, width, height):
        first[:, top : top + height, left : left + width] = small(second, width, height)
        return first

    assert "'first' in place" in check(PASTE, in_place).sentence


def loss_by_two(logits, first, second, beta):
    one = F.cross_entropy(logits, first, reduction="none")
    return (1 - beta) * one + beta * F.cross_entropy(logits, second, reduction="none")


def loss_by_shares(logits, first, second, beta):
    classes = logits.shape[1]
    label = (1 - beta) * F.one_hot(first, classes) + beta * F.one_hot(second, classes)
    return -(label * logits.log_softmax(1)).sum(1)


def loss_by_loop(logits, first, second, beta):
    losses = []
    for row, one, other in zip(logits, first, second, strict=True):
        total = torch.logsumexp(row, 0)
        losses.append((1 - beta) * (total - row[one]) + beta * (total - row[other]))
    return torch.stack(losses)


@pytest.mark.parametrize("yours", [loss_by_two, loss_by_shares, loss_by_loop])
def test_mixed_loss_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(LOSS, yours)
    assert verdict.outcome == "passed", verdict


def swaps_shares(logits, first, second, beta):
    return beta * F.cross_entropy(logits, first, reduction="none") + (1 - beta) * F.cross_entropy(
        logits, second, reduction="none"
    )


def halves(logits, first, second, beta):
    return (F.cross_entropy(logits, first, reduction="none") + F.cross_entropy(logits, second, reduction="none")) / 2


def mixes_probabilities(logits, first, second, beta):
    shares = logits.softmax(1)
    image = torch.arange(len(logits))
    return -torch.log((1 - beta) * shares[image, first] + beta * shares[image, second])


def averages(logits, first, second, beta):
    return (1 - beta) * F.cross_entropy(logits, first) + beta * F.cross_entropy(logits, second)


@pytest.mark.parametrize(
    ("yours", "hint"), [(swaps_shares, SHARE), (halves, NOT_HALF), (mixes_probabilities, LOGARITHM), (averages, EACH)]
)
def test_mixed_loss_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(LOSS, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_a_loss_summed_over_images_is_told_the_shape() -> None:
    assert "shape (); expected (2,)" in check(LOSS, lambda *case: loss_by_two(*case).sum()).sentence


def zoo_by_index(losses, drawn):
    return losses[drawn].mean(dim=0)


def zoo_by_mask(losses, drawn):
    counted = torch.zeros(len(losses))
    counted[drawn] = 1
    return counted @ losses / counted.sum()


def zoo_by_loop(losses, drawn):
    total = torch.zeros(losses.shape[1])
    for j in drawn:
        total = total + losses[j]
    return total / len(drawn)


@pytest.mark.parametrize("yours", [zoo_by_index, zoo_by_mask, zoo_by_loop])
def test_zoo_loss_as_learners_write_it_passes(yours: Callable[..., Tensor]) -> None:
    verdict = check(ZOO, yours)
    assert verdict.outcome == "passed", verdict


def sums(losses, drawn):
    return sum(losses[j] for j in drawn.tolist())


def forgets_who_was_drawn(losses, drawn):
    return losses.sum(0) / losses.shape[0]


def divides_by_the_zoo(losses, drawn):
    return sum(losses[j] / len(losses) for j in drawn)


def makes_one_number(losses, drawn):
    return losses.index_select(0, drawn).mean()


@pytest.mark.parametrize(
    ("yours", "hint"),
    [(sums, MEAN), (forgets_who_was_drawn, DRAWN_ALONE), (divides_by_the_zoo, HOW_MANY), (makes_one_number, TERMS)],
)
def test_zoo_loss_written_wrong_is_told_why(yours: Callable[..., Tensor], hint: str) -> None:
    verdict = check(ZOO, yours)
    assert (verdict.outcome, verdict.hint) == ("wrong", hint)


def test_the_first_case_of_each_is_drawn_with_numbers_that_can_be_worked_out() -> None:
    rows = {id: examine(EXERCISES[id], EXERCISES[id].answer).rows for id in (PASTE, LOSS, ZOO)}
    assert [row[2] for row in rows[PASTE][1:]] == ["1", "35", "55", "4", "5", "6", "7", "8"]
    assert [row[:2] for row in rows[LOSS]] == [("first", "second"), ("0", "1"), ("1", "2")]
    assert [row[0] for row in rows[ZOO][1:]] == ["3", "1.5"]
