"""Accuracy over bit widths, by what the ranges were calibrated on: measured point by point, while one watches."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from dfqlab.compression.quantization import quantize
from dfqlab.evaluation import LabelledBatches, evaluate
from dfqlab.figures import accuracy_by_bits
from dfqlab.images import ImageSource
from dfqlab.lab.controls import Choice, Slider
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Experiment
from dfqlab.measures import Interval
from dfqlab.progress import OnStep, Step
from dfqlab.teachers import Teacher

Ranges = Literal["minmax", "mse"]

WIDTHS = (8, 6, 5, 4, 3, 2)


def accuracy_by_width(teacher: Teacher, sources: Mapping[str, ImageSource], judge: LabelledBatches) -> Experiment:
    """How accurate the network is at each width of its activations, by source of calibration images.

    Args:
        teacher: what is quantized.
        sources: what ranges are calibrated on, by name.
        judge: labelled images that no range has seen.
    """
    teacher_accuracy = evaluate(teacher, judge).accuracy_interval

    def run(weights: int, ranges: Ranges, on_step: OnStep) -> None:
        points = [(bits, source) for bits in WIDTHS for source in sources]
        for index, (bits, source) in enumerate(points, 1):
            model = quantize(teacher, sources[source], weights=weights, activations=bits, calibration=ranges)
            share = evaluate(model, judge).accuracy_interval
            values = {"weights": weights, "bits": bits, "value": share.value, "low": share.low, "high": share.high}
            note = f"{source}, {bits} bits: {100 * share.value:.1f} %"
            on_step(Step(source, index, len(points), values, note))

    def draw(steps: Sequence[Step]) -> Drawing:
        shares = {(step.job, int(step.values["bits"])): _interval(step) for step in steps}
        rows = {source: [shares.get((source, bits)) for bits in WIDTHS] for source in sources}
        measure = f"accuracy on {len(judge):,} held-out images"
        sentence, title = "Nothing measured yet.", None
        if steps:
            weights, bits = (int(steps[-1].values[name]) for name in ("weights", "bits"))
            told = ", ".join(f"{s} {100 * shares[s, bits].value:.1f} %" for s in sources if (s, bits) in shares)
            sentence, title = f"Weights at {weights} bits, activations at {bits}: {told}.", f"W{weights}A{bits}: {told}"
        figure = accuracy_by_bits(WIDTHS, rows, teacher_accuracy=teacher_accuracy, measure=measure, title=title)
        return Drawing(figure, sentence)

    return Experiment(run, draw, weights=Slider(8, 2, 8, unit="bits"), ranges=Choice("mse", get_args(Ranges)))


def _interval(step: Step) -> Interval:
    return Interval(step.values["value"], step.values["low"], step.values["high"])
