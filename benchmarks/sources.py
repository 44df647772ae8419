"""Where a table's images come from, seed by seed, and what they are worth to a network that is quantized with them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.accuracy import (
    WIDTHS,
    Width,
    label,
    quantized,
    quantized_right,
    right,
    separating_width,
    summary,
)
from benchmarks.paper_table import Run
from benchmarks.zoo import drawn
from dfqlab.compression.spec import Reconstruction
from dfqlab.images import ImageSource

CHOOSING_SEED = 100

Source = Callable[[int], ImageSource]  # of a seed


def references(run: Run) -> dict[str, Source]:
    """What needs no method: noise, noise of valid pixels, and real images."""
    zoo, count = run.zoo, run.size.count
    return {
        "noise": lambda seed: zoo.noise(count, seed, clipped=False),
        "clipped noise": lambda seed: zoo.noise(count, seed, clipped=True),
        "real": lambda seed: drawn(zoo.train, count, seed),
    }


def made(run: Run, recipe: str, names: tuple[str, ...], **settings: Any) -> Source:
    """Images that a recipe makes from networks."""
    return lambda seed: run.sets.get(recipe, run.zoo.of(names), seed, **settings)


def right_by_seed(run: Run, target: str, rule: str, width: Width, source: Source, **more: Any) -> list[Tensor]:
    """For each seed, 1.0 for each test image that the target names after a source's images set its ranges.

    Further settings are those of `dfqlab.quantize`.
    """
    teacher = run.zoo.networks[target]
    return [quantized_right(teacher, source(seed), width, run.zoo.test, rule, **more) for seed in run.zoo.seeds]


def chosen_width(run: Run, target: str, rule: str) -> Width:
    """The width at which images separate, by what seed 100's real images and clipped noise say: no synthetic ones.

    Nothing is reported of it, so torch says how the quantized network answers: that needs no export.
    """
    teacher, known = run.zoo.networks[target], references(run)

    def accuracy(source: str, width: Width) -> float:
        images = known[source](CHOOSING_SEED)
        return float(right(quantized(teacher, images, width, rule), run.zoo.test).mean())

    def choose() -> str:
        return label(separating_width(accuracy, floor=0.5 * float(right(teacher, run.zoo.test).mean())))

    by_label = {label(width): width for width in WIDTHS}
    return by_label[run.width(target, rule, choose)]


def learned(run: Run, target: str, width: Width, source: Source, roundings: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy by rounding, the first and the last layer at 8 bits."""
    how = {"ends": 8, "reconstruction": Reconstruction(iterations=run.size.iterations)}
    return {
        rounding: summary(right_by_seed(run, target, "mse", width, source, rounding=rounding, **how))
        for rounding in roundings
    }
