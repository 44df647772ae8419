"""Put one image into a box in another, and watch how much of each the networks of a zoo see (MixMix, section 4.2)."""

from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.figures import mixed_opinions
from dfqlab.lab.controls import Choice, Slider
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Explorer
from dfqlab.synthesis.mixing import Box, Paste, mix_images
from dfqlab.teachers import Teacher


def mixing_box(images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"], teachers: Sequence[Teacher]) -> Explorer:
    """Two images of classes of one's own choice, a box of one's own size and place, and what each teacher sees then.

    Args:
        images: in pixel units; the first of each class is shown.
        labels: the class of each.
        teachers: networks with the same classes, each with a name of its own.

    Raises:
        ConfigurationError: images of fewer than two of the classes, no teachers, two of one name, or of different
            numbers of classes.
        TeacherError: a teacher takes images of another size.
    """
    classes = _classes_of(teachers)
    for teacher in teachers:
        teacher.check_size(images)
    numbers = labels.unique().tolist()
    if len(numbers) < 2 or not 0 <= numbers[0] < numbers[-1] < len(classes):
        raise ConfigurationError(f"labels {numbers[:10]}: expected two or more of the classes 0 to {len(classes) - 1}")
    found = {classes[number]: number for number in numbers}
    examples = {name: images[labels == number][:1] for name, number in found.items()}
    high, wide = images.shape[2:]

    def draw(first: str, second: str, width: int, height: int, across: int, down: int, paste: Paste) -> Drawing:
        one, other = examples[first], examples[second]
        box = Box(round(across / 100 * (wide - width)), round(down / 100 * (high - height)), width, height)
        mask = torch.zeros(high, wide)
        mask[box.top : box.top + height, box.left : box.left + width] = 1
        opinions = {}
        with torch.no_grad():
            mixed, beta = mix_images(one, other, box, paste)
            for teacher in teachers:
                shares = teacher(mixed)[0].softmax(0)
                opinions[teacher.name] = float(shares[found[first]]), float(shares[found[second]])
        if first == second:
            opinions = {name: (share, 0.0) for name, (share, _) in opinions.items()}
        figure = mixed_opinions(one[0], other[0], mask, mixed[0], (first, second), opinions)
        return Drawing(figure, f"A box of {width} x {height} pixels: {_words(first, second, beta, opinions)}.")

    first, second, *_ = found
    return Explorer(
        draw,
        first=Choice(first, tuple(found)),
        second=Choice(second, tuple(found)),
        width=Slider((wide + 1) // 2, 1, wide, unit="pixels"),
        height=Slider((high + 1) // 2, 1, high, unit="pixels"),
        across=Slider(50, 0, 100, step=10, unit="%"),
        down=Slider(50, 0, 100, step=10, unit="%"),
        paste=Choice("resize", get_args(Paste)),
    )


def _classes_of(teachers: Sequence[Teacher]) -> tuple[str, ...]:
    if not teachers:
        raise ConfigurationError("no teachers: whom shall the mixed image be shown to?")
    names = [teacher.name for teacher in teachers]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"teachers {names}: give each a name of its own, Teacher.from_module(..., name=...)")
    counts = {teacher.name: len(teacher.classes) for teacher in teachers}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise ConfigurationError(
            f"teachers know different numbers of classes, {told}: they cannot be asked for the same"
        )
    return teachers[0].classes


def _words(first: str, second: str, beta: float, opinions: dict[str, tuple[float, float]]) -> str:
    """What the label says, and what each network does."""
    if first == second:
        told = ", ".join(f"{name} sees {_percent(share)} of it" for name, (share, _) in opinions.items())
        return f"all of the label is {first}; {told}"
    seen = ((name, _percent(one), _percent(other)) for name, (one, other) in opinions.items())
    told = ", ".join(f"{name} sees {one} of {first} and {other} of {second}" for name, one, other in seen)
    return f"{_percent(beta)} of the label is {second}, {_percent(1 - beta)} is {first}; {told}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
