"""Watch noise become images: an inversion as it runs, its terms weighed by whoever watches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.figures import inversion_progress
from dfqlab.images import StoredImages, SyntheticSet
from dfqlab.lab.controls import Choice, Notches, Slider
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Experiment
from dfqlab.measures import recognition
from dfqlab.objective import Objective, Weighted
from dfqlab.progress import OnStep, Step
from dfqlab.statistics import Per
from dfqlab.synthesis.augmentation import Augmentation
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import invert
from dfqlab.synthesis.schedules import Cosine
from dfqlab.synthesis.terms import Alignment, BlurPrior, CrossEntropy, TotalVariation
from dfqlab.teachers import Teacher

_ROWS, _COLUMNS = 3, 7
_WEIGHTS = (0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def live_inversion(teacher: Teacher, judge: Teacher, *, count: int = 32, steps: int = 60) -> Experiment:
    """Invert a teacher under weights of one's own choice, and see whether another network agrees with what comes out.

    The weights of four terms (0 leaves one out), the learning rate, how far images are rolled before the teacher sees
    them, and whether statistics are those of the batch or of each image. Cancelled, it keeps the images as they are.

    Args:
        teacher: what images are made from, a class an image, in turn.
        judge: another network with the same classes and size of images.
        count: how many images, at least three; all of them are one batch.
        steps: how many.

    Raises:
        ConfigurationError: fewer images than are shown, or networks of different classes.
    """
    if count < _ROWS:
        raise ConfigurationError(f"count={count}: {_ROWS} images are shown, so make as many at least")
    if len(judge.classes) != len(teacher.classes):
        raise ConfigurationError(
            f"{teacher.name!r} knows {len(teacher.classes)} classes and {judge.name!r} {len(judge.classes)}: "
            "they cannot agree"
        )
    labels = torch.arange(count) % len(teacher.classes)
    marks = [1 + round((steps - 1) * (place / (_COLUMNS - 1)) ** 2) for place in range(_COLUMNS)]

    def run(
        alignment: float, label: float, variation: float, blur: float, jitter: int, statistics: Per, rate: float,
        on_step: OnStep,
    ) -> SyntheticSet:  # fmt: skip
        objective = Objective(
            alignment=Weighted(alignment, Alignment(per=statistics)),
            label=Weighted(label, CrossEntropy()),
            variation=Weighted(variation, TotalVariation()),
            blur=Weighted(blur, BlurPrior()),
        )
        weights = {"loss": 1.0, **objective.weights}

        def tell(step: Step) -> None:
            counted = {name: weights[name] * value for name, value in step.values.items()}
            left = "" if step.seconds_left is None else f", {step.seconds_left:.0f} s left"
            now = step.images() if step.images is not None else None  # as they are at this step, to be drawn later
            on_step(replace(step, values=counted, note=f"loss {counted['loss']:.3g}{left}", images=lambda: now))

        descent = Descent(steps, rate, Cosine(), augmentation=Augmentation(jitter=jitter), clip="each step")
        return invert(
            [teacher], objective, descent, recipe="lesson 03", settings={}, count=count, seed=0, labels=labels,
            on_step=tell,
        )  # fmt: skip

    def draw(done: Sequence[Step]) -> Drawing:
        shown = [step for step in done if step.index in marks or step is done[-1]]
        snapshots = [(step.index, _images(step)[:_ROWS]) for step in shown]
        captions: list[str] = []
        sentence, title = "Nothing inverted yet.", "What will come out of the noise?"
        if done:
            last, images = done[-1], _images(done[-1])
            captions = _captions(teacher, judge, images[:_ROWS], labels)
            of = recognition([teacher, judge], StoredImages(images, labels)).accuracy
            own, other = (round(count * of[network.name]) for network in (teacher, judge))
            title = f"Step {last.index}: of {count} images {own} are recognised, {other} by the other"
            sentence = (
                f"Step {last.index} of {steps}: of {count} images {teacher.name} takes {own} for their label, "
                f"{judge.name} {other}; {_terms(last.values)}."
            )
        figure = inversion_progress(
            snapshots, [step.index for step in done], _curves(done), total=steps, rows=_ROWS, columns=_COLUMNS,
            captions=captions, title=title,
        )  # fmt: skip
        return Drawing(figure, sentence)

    return Experiment(
        run,
        draw,
        alignment=Notches(0.1, _WEIGHTS),
        label=Notches(1.0, _WEIGHTS),
        variation=Notches(0.0, _WEIGHTS),
        blur=Notches(0.0, _WEIGHTS),
        jitter=Slider(0, 0, 4, unit="pixels"),
        statistics=Choice("batch", get_args(Per)),
        rate=Notches(0.2, (0.01, 0.03, 0.1, 0.2, 0.5, 1.0)),
    )


def _images(step: Step) -> Tensor:
    assert step.images is not None
    images: Tensor = step.images()
    return images


def _curves(done: Sequence[Step]) -> dict[str, list[float]]:
    names = done[-1].values if done else ()
    return {name: [step.values[name] for step in done] for name in names}


def _captions(teacher: Teacher, judge: Teacher, images: Tensor, labels: Tensor) -> list[str]:
    """For each image what it is asked to be, and what both networks take it for."""
    with torch.no_grad():
        opinions = [network(images).argmax(1).tolist() for network in (teacher, judge)]
    rows = zip(labels.tolist(), *opinions, strict=False)
    name = teacher.classes.__getitem__
    return [f"label: {name(own)}\nteacher: {name(first)}\nother: {name(other)}" for own, first, other in rows]


def _terms(values: Mapping[str, float]) -> str:
    """The loss as the sum of its terms, weighted."""
    parts = [f"{name} {value:.3g}" for name, value in values.items() if name != "loss"]
    return f"the loss of {values['loss']:.3g} is {' + '.join(parts)}"
