"""Turn up slack, emphasis and correlation, and see whether images begin to differ from one another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.figures import sample_statistics_scatter
from dfqlab.images import SyntheticSet
from dfqlab.lab.controls import Choice, Notches
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Experiment
from dfqlab.measures import gaussian_distance, sample_statistics, similarity_index, statistics_variance
from dfqlab.objective import Objective, Weighted
from dfqlab.progress import OnStep, Step
from dfqlab.statistics import ObservedTeacher, remembered
from dfqlab.synthesis.descent import Descent
from dfqlab.synthesis.inversion import invert
from dfqlab.synthesis.schedules import Cosine
from dfqlab.synthesis.terms import Alignment, SampleCorrelation, SlackAlignment, one_layer_per_sample
from dfqlab.teachers import Teacher

_YOURS = "yours"


def diverse_images(
    teacher: Teacher,
    beside: Mapping[str, Float[Tensor, "_ c h w"]],
    *,
    layer: str,
    channel: int,
    count: int = 32,
    steps: int = 60,
) -> Experiment:
    """Invert a teacher image by image, with slack, emphasis and correlation of one's own choice (DSG).

    The picture shows mean and std of each image in one channel; the sentence tells what all layers say. Cancelled, it
    keeps the images as they are.

    Args:
        teacher: what images are made from.
        beside: images to compare with, in pixel units, by name; at most five sets.
        layer, channel: which channel is shown: module path of a BatchNorm layer, and a number in it.
        count: how many images, at least two; all of them are one batch.
        steps: how many.

    Raises:
        ConfigurationError: fewer than two images, no such layer or channel, or a set that has the name of yours.
    """
    memory = remembered(teacher)
    if count < 2:
        raise ConfigurationError(f"count={count}: images differ from one another, so make two at least")
    if layer not in memory.layout.names or not 0 <= channel < memory.of(layer)[0].numel():
        raise ConfigurationError(f"layer={layer!r}, channel={channel}: {teacher.name!r} has no such channel")
    if _YOURS in beside:
        raise ConfigurationError(f"a set to compare with is called {_YOURS!r}, as that of the experiment is")
    mean, var = (float(part[channel]) for part in memory.of(layer))
    places = {name: _in_channel(teacher, images, layer, channel) for name, images in beside.items()}
    observed = ObservedTeacher(teacher)
    told = {name: _measures(observed, images) for name, images in beside.items()}

    def run(slack: float, emphasis: str, correlation: float, rate: float, on_step: OnStep) -> SyntheticSet:
        each = one_layer_per_sample if emphasis == "a layer an image" else None
        alignment: Alignment | SlackAlignment = Alignment("sample", emphasis=each)
        if slack:
            alignment = SlackAlignment(slack, emphasis=each)
        objective = Objective(alignment=alignment, correlation=Weighted(correlation, SampleCorrelation()))

        def tell(step: Step) -> None:
            now = step.images() if step.images is not None else None  # as they are at this step, to be drawn later
            on_step(replace(step, note=f"loss {step.values['loss']:.3g}", images=lambda: now))

        return invert(
            [teacher], objective, Descent(steps, rate, Cosine()), recipe="lesson 05", settings={}, count=count, seed=0,
            on_step=tell,
        )  # fmt: skip

    def draw(done: Sequence[Step]) -> Drawing:
        if not done or done[-1].images is None:
            sentence, shown, title = f"Nothing made yet. {_said(told)}", places, "What will your images do?"
        else:
            images = done[-1].images()
            yours = _measures(observed, images)
            shown = places | {_YOURS: _in_channel(teacher, images, layer, channel)}
            sentence = f"Step {done[-1].index} of {steps}. {_said(told | {_YOURS: yours})}"
            title = f"Step {done[-1].index}: the statistics of your images vary by {yours[0]:.3g} on average"
        return Drawing(
            sample_statistics_scatter(shown, mean, var**0.5, of=f"channel {channel} of {layer}", title=title), sentence
        )

    return Experiment(
        run,
        draw,
        slack=Notches(0.0, (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)),
        emphasis=Choice("none", ("none", "a layer an image")),
        correlation=Notches(0.0, (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)),
        rate=Notches(0.5, (0.05, 0.1, 0.2, 0.5, 1.0)),
    )


def _in_channel(teacher: Teacher, images: Tensor, layer: str, channel: int) -> tuple[Tensor, Tensor]:
    """Mean and std of each image in one channel."""
    mean, var = sample_statistics(teacher, images).of(layer)
    return mean[:, channel], var[:, channel].sqrt()


def _measures(observed: ObservedTeacher, images: Tensor) -> tuple[float, float, float]:
    """Variance of statistics and distance from the Gaussians, averaged over layers, and similarity of features."""
    variances = [both.mean_variance for both in statistics_variance(observed.teacher, images).values()]
    distances = list(gaussian_distance(observed.teacher, images).values())
    with torch.no_grad():
        outputs = observed(images)
    features = outputs.logits if outputs.features is None else outputs.features
    return sum(variances) / len(variances), sum(distances) / len(distances), similarity_index(features)


def _said(told: Mapping[str, tuple[float, float, float]]) -> str:
    """What all layers say, a set after the other."""
    rows = (f"{name} {a:.3g}, {b:.3g}, {c:.2f}" for name, (a, b, c) in told.items())
    return f"Variance of means, distance from the Gaussians, similarity of features: {'; '.join(rows)}."
