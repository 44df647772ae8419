"""The main job: from a teacher alone to a model that runs, and a report that says how well."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dfqlab.checkpoints import write_bytes
from dfqlab.compression.insertion import prepare
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.deployment import OnnxModel, certify
from dfqlab.deployment.export import to_onnx
from dfqlab.errors import DataError
from dfqlab.evaluation import LabelledBatches, compare, evaluate, latency
from dfqlab.images import ImageSource, Noise, StoredImages, SyntheticSet
from dfqlab.measures import (
    Interval,
    batch_norm_distance,
    gaussian_distance,
    recognition,
    similarity_index,
    statistics_variance,
    wilson,
)
from dfqlab.progress import Cancelled, OnStep, Step, ignore
from dfqlab.recipes import synthesize
from dfqlab.report import CertificateSummary, Diversity, ImagesMade, Pictures, RunReport, Sizes, SourceRow, write_report
from dfqlab.statistics import ObservedTeacher, remembered
from dfqlab.synthesis.checkpointing import IMAGES_FILE, Checkpoint
from dfqlab.synthesis.plan import BATCH_SIZE, Plan
from dfqlab.teachers import Teacher

ONNX_FILE = "model.onnx"
_SHOWN = 24
_WATCHED = 6
_SNAPSHOTS = (1, 10, 30, 100, 250)
_HELD_OUT = 64


@runtime_checkable
class NamedData(LabelledBatches, Protocol):
    """Real images that know what they are called."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Job:
    """What to make of a teacher.

    Attributes:
        teacher: what to start from.
        spec: bits, calibration, equalization, rounding.
        recipe: how images are made.
        count: how many.
        seed: of the images.
        settings: of the recipe, where they differ from the paper's.
        images: a set made before, used instead of a new one.
        command: what reproduces the run, for the report.
        zoo: more networks to make images from, after the teacher.
    """

    teacher: Teacher
    spec: QuantizationSpec
    recipe: str
    count: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: SyntheticSet | None = None
    command: str = ""
    zoo: tuple[Teacher, ...] = ()


def run(
    job: Job,
    out: Path,
    *,
    judge: NamedData | None = None,
    real: ImageSource | None = None,
    checkpoint: Checkpoint | None = None,
    on_step: OnStep = ignore,
) -> RunReport:
    """Synthesize, quantize, export, certify, judge, report.

    Writes `images.safetensors`, `model.safetensors`, `model.onnx`, `report.html` and `report.json` into `out`.

    Args:
        job: what to do.
        out: a directory.
        judge: real images to measure accuracy on; without them the report shows agreement instead.
        real: real images to calibrate the "real" row with; judged as the others are, never used for the model.
        checkpoint: where the synthesis of a run that was stopped goes on; if None, images are written at the end.
        on_step: called after every step of the long parts.

    Raises:
        Cancelled: stopped by `on_step`; the images made so far are in `out`, marked partial.
        DfqlabError: as the parts do.
    """
    prepare(job.teacher, job.spec)  # what cannot be placed is refused before hours of work
    teacher, recorder = job.teacher, _Recorder(on_step, batches=-(-job.count // BATCH_SIZE))
    images = job.images or _synthesize(job, job.seed, job.count, recorder, checkpoint)
    teacher.check_size(images.images)
    if job.images is not None or checkpoint is None:
        images.save(out / IMAGES_FILE)
    if images.partial and job.images is None:
        raise Cancelled
    sources = _sources(teacher, images, real, job.seed)
    models = {name: _quantize(job, source, on_step) for name, source in sources.items()}
    model = models[images.recipe]
    model.save(out)
    exported = {name: to_onnx(model) for name, model in models.items()}
    write_bytes(out / ONNX_FILE, exported[images.recipe].SerializeToString(deterministic=True))
    held_out = None if judge else _held_out(job, on_step)
    original, quantized = (OnnxModel(proto, threads=1) for proto in (to_onnx(teacher), exported[images.recipe]))
    rows = []
    for index, (name, proto) in enumerate(exported.items(), 1):
        rows.append(_judge(name, OnnxModel(proto), teacher, judge, held_out))
        on_step(Step("judge", index, len(exported)))
    report = RunReport(
        **_about(job),
        judged_on=f"{len(judge):,} {judge.name}" if judge else None,
        judged_images=len(judge or held_out or ()),
        teacher_accuracy=evaluate(teacher, judge).accuracy_interval if judge else None,
        rows=tuple(rows),
        used=images.recipe,
        sizes=Sizes(original.bytes, quantized.bytes, model.packed_bytes),
        latency=latency(original, quantized, images.images[:1].clamp(0, 1)),
        certificate=CertificateSummary.of(certify(model, images, exported=exported[images.recipe])),
        images=replace(
            recorder.summary(images),
            recognised=_recognised((teacher, *job.zoo), images),
            zoo=tuple(other.name for other in job.zoo if other.fingerprint in images.teachers),
        ),
        pictures=_pictures(teacher, images, recorder, sources),
        placement=model.table,
        warnings=(*_warnings(teacher, images), *_widths(job.spec)),
        diversity=_diversity(teacher, sources),
        diversity_layer=_middle(teacher),
    )
    write_report(report, out)
    return report


def _sources(teacher: Teacher, images: SyntheticSet, real: ImageSource | None, seed: int) -> dict[str, ImageSource]:
    """What the table's rows are calibrated on: as much noise as there are images, the images, real ones if given."""
    sources: dict[str, ImageSource] = {
        "noise": Noise(teacher.input, len(images), seed),
        "clipped noise": Noise(teacher.input, len(images), seed, clipped=True),
        images.recipe: images,
    }
    return sources if real is None else {**sources, "real": real}


def _held_out(job: Job, on_step: OnStep) -> StoredImages:
    """Images that no model was calibrated with, from another seed, as valid pixels.

    A quantized network's input knows valid pixels alone; on others it would be blamed for what it is not asked to do.
    """
    images = _synthesize(job, job.seed + 1, min(job.count, _HELD_OUT), on_step)
    if images.partial:
        raise Cancelled
    return StoredImages(images.images.clamp(0, 1))


def _warnings(teacher: Teacher, images: SyntheticSet) -> tuple[str, ...]:
    if teacher.fingerprint in images.teachers:
        return ()
    return ("the images were made from another network than the one that was quantized",)


def _widths(spec: QuantizationSpec) -> tuple[str, ...]:
    """What the label does not say of the bits."""
    notes = []
    if spec.mean_bits is not None:
        notes.append(f"each layer has a width of its own: {spec.mean_bits:g} bits a weight on average at most")
    if spec.ends is not None:
        notes.append(f"the first and the last layer have {spec.ends} bits")
    if spec.layers:
        notes.append(f"other widths were asked for {', '.join(spec.layers)}")
    return tuple(notes)


def _synthesize(job: Job, seed: int, count: int, on_step: OnStep, checkpoint: Checkpoint | None = None) -> SyntheticSet:
    return synthesize(
        [job.teacher, *job.zoo],
        job.recipe,
        count=count,
        seed=seed,
        checkpoint=checkpoint,
        on_step=on_step,
        **job.settings,
    )


def _quantize(job: Job, source: ImageSource, on_step: OnStep) -> CompressedModel:
    return quantize(job.teacher, source, on_step=on_step, **vars(job.spec))


def _judge(
    name: str, runtime: OnnxModel, teacher: Teacher, judge: NamedData | None, held_out: StoredImages | None
) -> SourceRow:
    """One calibration source's model, executed by onnxruntime."""
    kind = name if name in ("noise", "clipped noise", "real") else "synthetic"
    if judge is not None:
        result = evaluate(runtime, judge, teacher=teacher)
        return SourceRow(name, kind, result.accuracy_interval, result.agreement_interval, result.sqnr)  # type: ignore[arg-type]
    if held_out is None:
        raise DataError("nothing to judge on: neither real images nor a held-out synthetic set")
    agreement, ratio = compare(runtime, teacher, held_out)
    return SourceRow(name, kind, None, agreement, ratio)  # type: ignore[arg-type]


def _pictures(
    teacher: Teacher, images: SyntheticSet, recorder: "_Recorder", sources: Mapping[str, ImageSource]
) -> Pictures:
    shown = images.images[:_SHOWN].clamp(0, 1)
    with torch.no_grad():
        named = teacher(shown.to(teacher.device)).argmax(1).tolist()
        distances = _distances(teacher, sources) if teacher.batch_norms else {}
    return Pictures(
        images=shown,
        captions=tuple(f"taken for {teacher.classes[index]}" for index in named),
        snapshots=recorder.snapshots_until(images),
        bn_layers=teacher.batch_norms,
        bn_distances=distances,
    )


def _distances(teacher: Teacher, sources: Mapping[str, ImageSource]) -> dict[str, tuple[float, ...]]:
    """How far each source moves the BatchNorm layers from what they remember."""
    observed, memory = ObservedTeacher(teacher), remembered(teacher)
    batches = {name: next(source.batches(BATCH_SIZE)).images.to(teacher.device) for name, source in sources.items()}
    return {
        name: tuple(batch_norm_distance(observed(batch).statistics, memory).values()) for name, batch in batches.items()
    }


def _diversity(teacher: Teacher, sources: Mapping[str, ImageSource]) -> tuple[Diversity, ...]:
    """How diverse a batch of each source is inside the teacher."""
    if not teacher.batch_norms:
        return ()
    found = []
    for name, source in sources.items():
        images = next(source.batches(BATCH_SIZE)).images
        spread = statistics_variance(teacher, images).values()
        distance = gaussian_distance(teacher, images, [_middle(teacher)])
        similarity = similarity_index(teacher.input.normalize(images)) if len(images) > 1 else 1.0
        means, stds = (fmean(getattr(s, f"{of}_variance") for s in spread) for of in ("mean", "std"))
        found.append(Diversity(name, distance[_middle(teacher)], means, stds, similarity))
    return tuple(found)


def _middle(teacher: Teacher) -> str:
    """One BatchNorm layer to speak for the network."""
    return teacher.batch_norms[len(teacher.batch_norms) // 2] if teacher.batch_norms else ""


def _recognised(zoo: Sequence[Teacher], images: SyntheticSet) -> dict[str, Interval]:
    """Who takes the images for the class that they were made for; networks of another input size are not asked."""
    if images.labels is None:
        return {}
    asked = {teacher.name: teacher for teacher in reversed(zoo) if teacher.input.size == images.images.shape[1:]}
    found = recognition(list(asked.values())[::-1], images)
    return {name: wilson(round(share * found.count), found.count) for name, share in found.accuracy.items()}


def _about(job: Job) -> dict[str, Any]:
    teacher, spec = job.teacher, job.spec
    packages = ("dfqlab", "torch", "onnx", "onnxruntime", "numpy")
    return {
        "teacher": teacher.name,
        "fingerprint": teacher.fingerprint,
        "parameters": sum(p.numel() for p in teacher.module.parameters()),
        "input_size": teacher.input.size,
        "classes": len(teacher.classes),
        "label": spec.label,
        "weights": spec.weights,
        "activations": spec.activations,
        "calibration": spec.calibration,
        "equalization": spec.equalization,
        "rounding": spec.rounding,
        "command": job.command,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
    }


class _Recorder:
    """Passes steps on, and keeps what the report shows of them: losses, and the first batch as it comes to life."""

    def __init__(self, on_step: OnStep, batches: int) -> None:
        self.on_step = on_step
        self.batches = batches
        self.losses: list[tuple[int, float]] = []
        self.snapshots: list[tuple[int, Tensor]] = []
        self.seconds = 0.0
        self.started = time.perf_counter()

    def __call__(self, step: Step) -> None:
        self.seconds = time.perf_counter() - self.started
        steps = step.total // self.batches
        if "loss" in step.values and step.index <= steps:
            self.losses.append((step.index, step.values["loss"]))
        if step.index in _SNAPSHOTS and step.index < steps and step.images is not None:
            self.snapshots.append((step.index, step.images()[:_WATCHED]))
        self.on_step(step)

    def snapshots_until(self, images: SyntheticSet) -> tuple[tuple[int, Tensor], ...]:
        """The first few images on their way, and as they ended."""
        if not self.snapshots:
            return ()
        return *self.snapshots, (int(images.settings["steps"]), images.images[:_WATCHED])

    def summary(self, images: SyntheticSet) -> ImagesMade:
        """What the report says of how the images were made; a set made before tells no losses."""
        every = max(1, len(self.losses) // 500)
        return ImagesMade(
            recipe=images.recipe,
            count=len(images),
            seed=images.seed,
            steps=int(images.settings.get("steps", 0)),
            seconds=self.seconds,
            partial=images.partial,
            plan=_plan_in_words(images.plan),
            first_loss=self.losses[0][1] if self.losses and self.losses[0][0] == 1 else None,  # else it was resumed
            last_loss=self.losses[-1][1] if self.losses else None,
            loss_curve=tuple(self.losses[::every]),
        )


def _plan_in_words(plan: Mapping[str, Any]) -> str:
    """The plan of a set as a line; one that another version wrote, as it stands."""
    try:
        return Plan.from_dict(plan).sentence
    except (KeyError, TypeError):
        return ", ".join(f"{name} {value}" for name, value in plan.items() if value != "")
