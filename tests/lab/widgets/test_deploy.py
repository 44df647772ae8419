"""The honest table: a row is what quantize, export, certificate and judge give by themselves."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import dfqlab.lab.widgets.deploy as widget
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import Reconstruction
from dfqlab.data import LabelledImages
from dfqlab.deployment import OnnxModel, certify
from dfqlab.deployment.export import to_onnx
from dfqlab.errors import ConfigurationError, DeploymentError
from dfqlab.evaluation import evaluate
from dfqlab.figures import DeployedRow
from dfqlab.images import Noise, StoredImages
from dfqlab.lab.deployed import Deployed, deployed
from dfqlab.lab.panels import Experiment
from dfqlab.measures import Interval
from dfqlab.progress import Cancelled, OnStep, Step
from dfqlab.teachers import Teacher

pytestmark = pytest.mark.traces

ITERATIONS = 5
FIRST = {"zeroq W4A4": DeployedRow(Interval(0.9, 0.8, 0.95), Interval(0.9, 0.8, 0.95), 1234, holds=True)}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3, generator=generator)
    return Teacher.from_module(module, size=(3, 16, 16), mean=[0.5] * 3, std=[0.25] * 3, classes=4)


@pytest.fixture(scope="module")
def images() -> StoredImages:
    return StoredImages(torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def experiment(teacher: Teacher, judge: LabelledImages, images: StoredImages) -> Experiment:
    sources = {"zeroq": images, "clipped noise": Noise(teacher.input, 32, clipped=True)}
    return widget.honest_table(teacher, sources, judge, images, rows=FIRST, iterations=ITERATIONS)


@pytest.fixture(scope="module")
def found(teacher: Teacher, judge: LabelledImages, images: StoredImages) -> Deployed:
    """One model, deployed."""
    return deployed(quantize(teacher, images, weights=4, activations=4), teacher, judge, images)


@pytest.fixture
def quick(found: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deploys in no time: every model comes out as the first, but for its bytes."""

    def deploy(model: CompressedModel, *_: Any, on_step: OnStep) -> Deployed:
        for index, job in enumerate(("export", "certify", "judge"), 1):
            on_step(Step(job, index, 3))
        return replace(found, packed_bytes=model.packed_bytes)

    monkeypatch.setattr(widget, "deployed", deploy)


def rows_of(experiment: Experiment, steps: list[Step] | tuple[()] = ()) -> list[str]:
    axes = experiment.draw(steps).figure.axes[0]
    return [label.get_text() for label in axes.get_yticklabels()]


def test_what_is_deployed_is_what_its_parts_give(
    found: Deployed, teacher: Teacher, judge: LabelledImages, images: StoredImages
) -> None:
    model = quantize(teacher, images, weights=4, activations=4)
    exported = to_onnx(model)
    assert found.exported.SerializeToString(deterministic=True) == exported.SerializeToString(deterministic=True)
    assert found.certificate == certify(model, images, exported=exported)
    result = evaluate(OnnxModel(exported), judge, teacher=teacher)
    assert found.result.correct.equal(result.correct)
    assert found.row == DeployedRow(
        result.accuracy_interval, result.agreement_interval, model.packed_bytes, found.certificate.holds
    )


def test_an_export_at_hand_is_what_is_deployed(teacher: Teacher, judge: LabelledImages, images: StoredImages) -> None:
    model = quantize(teacher, images, weights=4, activations=4)
    exported = to_onnx(model)
    assert deployed(model, teacher, judge, images, exported=exported).exported is exported
    with pytest.raises(DeploymentError, match="not its export"):
        deployed(quantize(teacher, images, weights=3, activations=3), teacher, judge, images, exported=exported)


def test_deploying_tells_its_parts_and_can_be_stopped_between_them(
    teacher: Teacher, judge: LabelledImages, images: StoredImages
) -> None:
    told: list[tuple[str, int, int]] = []

    def stop_before_judging(step: Step) -> None:
        told.append((step.job, step.index, step.total))
        if step.job == "certify":
            raise Cancelled

    with pytest.raises(Cancelled):
        deployed(quantize(teacher, images), teacher, judge, images, on_step=stop_before_judging)
    assert told == [("export", 1, 3), ("certify", 2, 3)]


def test_a_run_adds_the_row_of_its_own_choices(
    experiment: Experiment, teacher: Teacher, judge: LabelledImages, images: StoredImages
) -> None:
    steps = experiment.steps(width="W3A3", source="clipped noise", rounding="adaround")
    source = Noise(teacher.input, 32, clipped=True)
    model = quantize(
        teacher, source, weights=3, activations=3, rounding="adaround",
        reconstruction=Reconstruction(iterations=ITERATIONS),
    )  # fmt: skip
    row = deployed(model, teacher, judge, images).row
    assert experiment.draw(steps).sentence == (
        f"clipped noise W3A3 adaround: accuracy {row.accuracy}, agreement with the teacher {row.agreement}, "
        f"{row.bytes:,} bytes packed; its certificate holds."
    )
    assert rows_of(experiment, steps) == ["zeroq W4A4", "clipped noise W3A3 adaround"]


@pytest.mark.usefixtures("quick")
def test_rows_stay_from_run_to_run_and_the_same_choice_is_one_row(experiment: Experiment) -> None:
    assert rows_of(experiment) == ["zeroq W4A4"]
    assert experiment.draw(()).sentence == "Models in the table: 1; Run adds one."
    experiment.steps(width="W8A8", source="clipped noise")
    experiment.steps(width="W6A6", source="clipped noise")
    experiment.steps(width="W8A8", source="clipped noise")
    assert rows_of(experiment) == ["zeroq W4A4", "clipped noise W6A6", "clipped noise W8A8"]
    # The model of the first row, made again, takes its place.
    steps = experiment.steps(width="W4A4", source="zeroq")
    assert rows_of(experiment, steps) == ["zeroq W4A4", "clipped noise W6A6", "clipped noise W8A8"]
    assert "1.2" not in [text.get_text() for text in experiment.draw(steps).figure.axes[1].texts]


@pytest.mark.usefixtures("quick")
def test_the_last_rows_are_kept(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widget, "_MADE", 2)
    for width in ("W8A8", "W6A6", "W3A3"):
        experiment.steps(width=width, source="clipped noise")
    assert rows_of(experiment) == ["zeroq W4A4", "clipped noise W6A6", "clipped noise W3A3"]


@pytest.mark.usefixtures("quick")
def test_a_cancelled_run_leaves_no_row(experiment: Experiment) -> None:
    for job in ("export", "certify"):

        def stop(step: Step, job: str = job) -> None:
            if step.job == job:
                raise Cancelled

        with pytest.raises(Cancelled):
            experiment.work({"source": "clipped noise"}, [])(stop)
    assert rows_of(experiment) == ["zeroq W4A4"]


@pytest.mark.usefixtures("quick")
def test_steps_say_what_is_done(experiment: Experiment) -> None:
    notes = [step.note for step in experiment.steps(rounding="adaround")]
    assert [note for note in notes if not note.startswith("quantize, ")] == ["export", "certify", "judge", ""]
    assert any(re.fullmatch(r"quantize, round \S+", note) for note in notes)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "position"),
    [*(("width", width) for width in widget.WIDTHS), *(("rounding", r) for r in widget.ROUNDINGS),
     ("source", "zeroq"), ("source", "clipped noise")],
)  # fmt: skip
def test_the_controls_run_and_are_seen_in_the_network(
    name: str, position: str, experiment: Experiment, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    def note(teacher: Teacher, source: Any, **options: Any) -> Any:
        asked.append((source, options))
        return quantize(teacher, source, **options)

    monkeypatch.setattr(widget, "quantize", note)
    view = experiment.view()
    view.controls[name].value = position
    view.run.click()
    assert view.job is not None
    assert view.job.join(60)
    assert view.error is None
    assert view.job.sentence == "done: 4 of 4 steps"
    ((source, options),) = asked
    found = {
        "width": f"W{options['weights']}A{options['activations']}",
        "rounding": options["rounding"],
        "source": "clipped noise" if isinstance(source, Noise) else "zeroq",
    }
    assert found[name] == position
    assert "its certificate" in view.page.value


def test_more_rows_than_leave_room_are_refused(teacher: Teacher, judge: LabelledImages, images: StoredImages) -> None:
    rows = {f"row {n}": FIRST["zeroq W4A4"] for n in range(7)}
    with pytest.raises(ConfigurationError, match="7 rows to begin with: expected 6 or fewer"):
        widget.honest_table(teacher, {"zeroq": images}, judge, images, rows=rows)
