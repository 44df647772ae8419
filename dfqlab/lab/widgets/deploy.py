"""The honest table, a row more with every run: quantized, exported, certified, judged while one watches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import Reconstruction
from dfqlab.errors import ConfigurationError
from dfqlab.evaluation import LabelledBatches, evaluate
from dfqlab.figures import DeployedRow, deployed_table
from dfqlab.images import ImageSource
from dfqlab.lab.controls import Choice
from dfqlab.lab.deployed import deployed
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Experiment
from dfqlab.measures import wilson
from dfqlab.progress import OnStep, Step
from dfqlab.teachers import Teacher

WIDTHS = {"W8A8": (8, 8), "W6A6": (6, 6), "W4A8": (4, 8), "W4A4": (4, 4), "W3A3": (3, 3)}
ROUNDINGS = ("nearest", "squant", "adaround")

_MADE = 6  # rows that are kept of what was made


def honest_table(
    teacher: Teacher,
    sources: Mapping[str, ImageSource],
    judge: LabelledBatches,
    images: ImageSource,
    *,
    rows: Mapping[str, DeployedRow] | None = None,
    iterations: int = 100,
) -> Experiment:
    """Choose width, source and rounding; the model is made, exported, certified and judged, and gets its row.

    Rows of earlier runs stay, the last six of them; a cancelled run leaves none.

    Args:
        teacher: what is quantized.
        sources: what ranges are calibrated on, and roundings learn from, by name.
        judge: labelled images that no model has seen.
        images: what certificates run on.
        rows: models that the table begins with, at most six, by name.
        iterations: of "adaround", for each layer; so few show what it is about, not all that it can do.

    Raises:
        ConfigurationError: more rows to begin with.
    """
    first = dict(rows or {})
    if len(first) > _MADE:
        raise ConfigurationError(f"{len(first)} rows to begin with: expected {_MADE} or fewer")
    teacher_accuracy = evaluate(teacher, judge).accuracy_interval
    made: list[Step] = []

    def run(width: str, source: str, rounding: str, on_step: OnStep) -> DeployedRow:
        weights, activations = WIDTHS[width]
        model = quantize(
            teacher, sources[source], weights=weights, activations=activations, rounding=rounding,
            reconstruction=Reconstruction(iterations=iterations),
            on_step=lambda step: on_step(replace(step, note=f"quantize, {step.job}")),
        )  # fmt: skip
        found = deployed(
            model, teacher, judge, images, on_step=lambda step: on_step(replace(step, total=4, note=step.job))
        )
        name = f"{source} {width}" + ("" if rounding == "nearest" else f" {rounding}")
        assert found.result.agrees is not None
        values = {
            "right": float(found.result.correct.sum()),
            "agrees": float(found.result.agrees.sum()),
            "images": float(len(judge)),
            "bytes": float(found.packed_bytes),
            "holds": float(found.certificate.holds),
        }
        last = Step(name, 4, 4, values)
        made[:] = [*(step for step in made if step.job != name), last][-_MADE:]
        on_step(last)
        return found.row

    def draw(steps: Sequence[Step]) -> Drawing:
        new = [step for step in steps if "bytes" in step.values]
        table = first | {step.job: _row(step) for step in (*made, *new)}
        measure = f"accuracy on {len(judge):,} held-out images"
        sentence = _told(new[-1].job, _row(new[-1])) if new else f"Models in the table: {len(table)}; Run adds one."
        return Drawing(deployed_table(table, teacher_accuracy, measure=measure), sentence)

    return Experiment(
        run,
        draw,
        width=Choice("W4A4", tuple(WIDTHS)),
        source=Choice(next(iter(sources)), tuple(sources)),
        rounding=Choice("nearest", ROUNDINGS),
    )


def _row(step: Step) -> DeployedRow:
    right, agrees, images = (int(step.values[name]) for name in ("right", "agrees", "images"))
    return DeployedRow(
        wilson(right, images), wilson(agrees, images), int(step.values["bytes"]), bool(step.values["holds"])
    )


def _told(name: str, row: DeployedRow) -> str:
    verdict = "its certificate holds" if row.holds else "its certificate does not hold"
    return (
        f"{name}: accuracy {row.accuracy}, agreement with the teacher {row.agreement}, {row.bytes:,} bytes packed; "
        f"{verdict}."
    )
