"""The main job: from a teacher alone to a model that runs, and a report that says how well."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch.nn.functional as F

from dfqlab.checkpoints import write_bytes
from dfqlab.compression.insertion import prepare
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.deployment import OnnxModel
from dfqlab.deployment.export import to_onnx
from dfqlab.errors import ConfigurationError, DataError
from dfqlab.evaluation import LabelledBatches, compare, evaluate
from dfqlab.images import ImageSource, Noise, StoredImages, SyntheticSet
from dfqlab.pipeline import looks
from dfqlab.pipeline.recorder import Recorder
from dfqlab.pipeline.runtimes import executed
from dfqlab.progress import Cancelled, OnStep, Step, ignore
from dfqlab.recipes import synthesize
from dfqlab.recipes.names import RECIPES, WITHOUT_IMAGES
from dfqlab.report import ImagesMade, RunReport, Sizes, SourceRow, write_report
from dfqlab.synthesis.checkpointing import IMAGES_FILE, Checkpoint
from dfqlab.synthesis.plan import BATCH_SIZE
from dfqlab.teachers import Teacher
from dfqlab.trust import HELD_OUT, Kind, beliefs
from dfqlab.trust import judge as ask

ONNX_FILE = "model.onnx"
_CONTROL: Literal["clipped noise"] = "clipped noise"


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
        held_out: images of each set that judges the model and calibrated none: of another seed, and of another recipe;
            0: none are made.
        any_images: whether a set may be one that was made for another network, or another size of image.
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
    held_out: int = HELD_OUT
    any_images: bool = False


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
    if judge is None and not job.held_out:
        raise ConfigurationError("nothing to judge with: neither real images nor, with held_out=0, synthetic ones")
    prepare(job.teacher, job.spec)  # what cannot be placed is refused before hours of work
    teacher, recorder = job.teacher, Recorder(on_step, batches=-(-job.count // BATCH_SIZE))
    images = _images(job, out, recorder, checkpoint)
    used = job.recipe if images is None else images.recipe
    sources = _sources(job, images, real)
    models = {name: _quantize(job, source, on_step) for name, source in sources.items()}
    model = models[used]
    model.save(out)
    exported = {name: to_onnx(model) for name, model in models.items()}
    write_bytes(out / ONNX_FILE, exported[used].SerializeToString(deterministic=True))
    judges = _judges(job, images, on_step)
    runtimes = {name: OnnxModel(proto) for name, proto in exported.items()}
    rows = []
    for index, (name, runtime) in enumerate(runtimes.items(), 1):
        rows.append(_judge(name, runtime, teacher, judge, judges))
        on_step(Step("judge", index, len(runtimes)))
    shown = images or judges[_CONTROL][1]
    seen = {name: source for name, source in sources.items() if source is not None}
    original = to_onnx(teacher)
    by_runtime = executed(model, shown, original, exported[used])
    report = RunReport(
        **_about(job),
        judged_on=f"{len(judge):,} {judge.name}" if judge else None,
        judged_images=len(judge) if judge else min(job.count, job.held_out),
        teacher_accuracy=evaluate(teacher, judge).accuracy_interval if judge else None,
        rows=tuple(rows),
        used=used,
        sizes=Sizes(original.ByteSize(), exported[used].ByteSize(), model.packed_bytes),
        latency=by_runtime.latency,
        certificate=by_runtime.certificate,
        openvino=by_runtime.openvino,
        images=None if images is None else _made(job, images, recorder),
        pictures=looks.pictures(teacher, images, recorder, seen),
        placement=model.table,
        chains=model.chains,
        warnings=(*_warnings(teacher, images), *_widths(job.spec), *_splits(model)),
        diversity=looks.diversity(teacher, seen),
        diversity_layer=looks.middle(teacher),
        judgements=ask(model, teacher, judges, runtime=runtimes[used]) if job.held_out else (),
        beliefs=beliefs(),
    )
    write_report(report, out)
    return report


def _images(job: Job, out: Path, recorder: Recorder, checkpoint: Checkpoint | None) -> SyntheticSet | None:
    """What calibrates: the set that was given, or one that is made now; None where the recipe looks at none.

    Raises:
        DataError: a set that was made for another network or size, unless that is allowed.
        Cancelled: stopped; the images are in `out` as they were then.
    """
    if job.images is not None:
        images = _fitting(job, job.images)
        images.save(out / IMAGES_FILE)
        return images
    if job.recipe in WITHOUT_IMAGES:
        return None
    images = _synthesize(job, job.recipe, job.seed, job.count, recorder, checkpoint)
    if checkpoint is None:
        images.save(out / IMAGES_FILE)
    if images.partial:
        raise Cancelled
    return images


def _fitting(job: Job, images: SyntheticSet) -> SyntheticSet:
    """A set that was made before, of the teacher's size."""
    teacher, size = job.teacher, tuple(images.images.shape[1:])
    other = f"the set was made by {images.recipe} from {_origin(images)}"
    allow = "make a set for this network, or allow it: any_images"
    if size[0] != teacher.input.size[0]:
        raise DataError(f"{other}, its images are {size}, and {teacher.name!r} takes {teacher.input.size}")
    if size != teacher.input.size and not job.any_images:
        raise DataError(f"{other}, its images are {size}, and {teacher.name!r} takes {teacher.input.size}: {allow}")
    if teacher.fingerprint not in images.teachers and not job.any_images:
        raise DataError(f"{other}, and {teacher.name!r} is {_short(teacher)}: {allow}")
    if size == teacher.input.size:
        return images
    resized = F.interpolate(images.images, teacher.input.size[1:], mode="bilinear", antialias=True)
    return replace(images, images=resized)


def _sources(job: Job, images: SyntheticSet | None, real: ImageSource | None) -> dict[str, ImageSource | None]:
    """What the table's rows are calibrated on: as much noise as there are images, the images, real ones if given.

    Where a rounding learns from them, which takes its time, noise that is no image is left out: the control is clipped.
    """
    if images is None:
        return {job.recipe: None}
    kinds = {"noise": False, _CONTROL: True}
    if job.spec.learns_rounding:
        del kinds["noise"]
    noise = {name: Noise(job.teacher.input, len(images), job.seed, clipped=clip) for name, clip in kinds.items()}
    sources: dict[str, ImageSource | None] = {**noise, images.recipe: images}
    return sources if real is None else {**sources, "real": real}


def _judges(job: Job, images: SyntheticSet | None, on_step: OnStep) -> dict[str, tuple[Kind, ImageSource]]:
    """Who judges without real data: images of another seed and of another recipe, and noise; beside what calibrated.

    All of them valid pixels.
    """
    found: dict[str, tuple[Kind, ImageSource]] = {}
    if job.held_out:
        own = next(name for name in (images.recipe if images else "", job.recipe, "zeroq") if name in RECIPES)
        seed = (images.seed if images else job.seed) + 1
        for recipe in (own, "dsg" if own == "zeroq" else "zeroq"):
            made = _synthesize(job, recipe, seed, min(job.count, job.held_out), on_step)
            if made.partial:
                raise Cancelled
            found[f"{recipe}, seed {seed}"] = ("held out", made.clamped)
        if images is not None:
            found[f"{images.recipe}, its own"] = ("calibrated on", StoredImages(images.images[: job.held_out]).clamped)
    return {**found, _CONTROL: (_CONTROL, Noise(job.teacher.input, HELD_OUT, job.seed + 1, clipped=True))}


def _warnings(teacher: Teacher, images: SyntheticSet | None) -> tuple[str, ...]:
    if images is None or teacher.fingerprint in images.teachers:
        return ()
    return (f"The images were made from another network ({_origin(images)}) than {teacher.name} ({_short(teacher)}).",)


def _origin(images: SyntheticSet) -> str:
    return " and ".join(fingerprint[:12] for fingerprint in images.teachers) or "nobody knows what"


def _short(teacher: Teacher) -> str:
    return teacher.fingerprint[:12]


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


def _splits(model: CompressedModel) -> tuple[str, ...]:
    """What splitting channels came to, where it was asked for."""
    if not model.spec.split_channels:
        return ()
    split = sum(row.split for row in model.chains)
    if not split:
        return ("no channel could be split: see the table of neighbouring layers",)
    return (f"{split} channels were split in two: the model is larger by their weights",)


def _synthesize(
    job: Job, recipe: str, seed: int, count: int, on_step: OnStep, checkpoint: Checkpoint | None = None
) -> SyntheticSet:
    """By the job's own recipe from its zoo; what another recipe makes to judge with, from the teacher alone."""
    steps = {name: value for name, value in job.settings.items() if name == "steps"}
    return synthesize(
        [job.teacher, *job.zoo] if recipe == job.recipe else job.teacher,
        recipe,
        count=count,
        seed=seed,
        checkpoint=checkpoint,
        on_step=on_step,
        **(job.settings if recipe == job.recipe else steps),
    )


def _quantize(job: Job, source: ImageSource | None, on_step: OnStep) -> CompressedModel:
    return quantize(job.teacher, source, on_step=on_step, **vars(job.spec))


def _judge(
    name: str,
    runtime: OnnxModel,
    teacher: Teacher,
    judge: NamedData | None,
    judges: Mapping[str, tuple[Kind, ImageSource]],
) -> SourceRow:
    """One calibration source's model, executed by onnxruntime; without real data, the first judge's word counts."""
    kind = name if name in ("noise", _CONTROL, "real") else "synthetic"
    if judge is not None:
        result = evaluate(runtime, judge, teacher=teacher)
        return SourceRow(name, kind, result.accuracy_interval, result.agreement_interval, result.sqnr)  # type: ignore[arg-type]
    _, held_out = next(iter(judges.values()))
    agreement, ratio = compare(runtime, teacher, held_out)
    return SourceRow(name, kind, None, agreement, ratio)  # type: ignore[arg-type]


def _made(job: Job, images: SyntheticSet, recorder: Recorder) -> ImagesMade:
    """What the report says of how the images were made."""
    return replace(
        recorder.summary(images),
        recognised=looks.recognition_by_network((job.teacher, *job.zoo), images),
        zoo=tuple(other.name for other in job.zoo if other.fingerprint in images.teachers),
    )


def _about(job: Job) -> dict[str, Any]:
    teacher, spec = job.teacher, job.spec
    packages = ("dfqlab", "torch", "onnx", "onnxruntime", "numpy", *(["openvino"] if find_spec("openvino") else []))
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
