"""What each verb does: load, call the library, print a table. Real data enters here and nowhere below."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from dfqlab.checkpoints import write_bytes
from dfqlab.cli import options
from dfqlab.cli.terminal import console
from dfqlab.compression.model import load_model
from dfqlab.compression.spec import QuantizationSpec, Reconstruction, Widths
from dfqlab.data import LabelledImages, load_data
from dfqlab.deployment import OnnxModel, export_onnx
from dfqlab.deployment.runtime import saturation_warning
from dfqlab.errors import ConfigurationError, DataError, OutputError, did_you_mean
from dfqlab.evaluation import evaluate
from dfqlab.images import StoredImages, SyntheticSet
from dfqlab.pipeline import Job, run
from dfqlab.progress import Cancelled, terminal_progress
from dfqlab.recipes import synthesize
from dfqlab.recipes.dfq import DFQ
from dfqlab.recipes.names import RECIPES, WITHOUT_IMAGES
from dfqlab.report import RunReport
from dfqlab.synthesis.checkpointing import IMAGES_FILE, Checkpoint
from dfqlab.synthesis.plan import missing_for_compile
from dfqlab.teachers import Teacher, load_teacher
from dfqlab_kernels import explain_backend


def quantize(chosen: options.Quantize, command: str) -> None:
    """Teacher to model, ONNX file and report."""
    _known_recipe(chosen.recipe, RECIPES | WITHOUT_IMAGES)
    spec = _spec(chosen)
    checkpoint = _checkpoint(chosen)
    out, teacher = checkpoint.folder, _teacher(chosen)
    images = SyntheticSet.load(chosen.images) if chosen.images else None
    judge, real = _real_data(chosen, teacher, chosen.count if images is None else len(images))
    settings = {} if chosen.steps is None else {"steps": chosen.steps}
    job = Job(
        teacher,
        spec,
        chosen.recipe,
        count=chosen.count,
        seed=chosen.seed,
        settings=settings,
        images=images,
        command=command,
        zoo=_zoo(chosen),
        held_out=chosen.held_out,
        any_images=chosen.any_images,
    )
    if chosen.overwrite:
        checkpoint.clear()  # when everything that is needed has been read
    try:
        with terminal_progress() as on_step:
            report = run(job, out, judge=judge, real=real, checkpoint=checkpoint, on_step=on_step)
    except Cancelled:
        if (out / IMAGES_FILE).exists():
            kept = len(SyntheticSet.load(out / IMAGES_FILE))
            console.print(
                f"Stopped. {kept} images as they were then are in {out / IMAGES_FILE}; to go on: {_resuming(command)}\n"
                f"to quantize with them as they are: {command} --images {out / IMAGES_FILE} --out NEW",
                soft_wrap=True,
            )
        raise
    _show(report)
    console.print(f"\nmodel, ONNX file and report: {out}/\nopen {out / 'report.html'}", soft_wrap=True)


def synthesize_(chosen: options.Synthesize, command: str) -> None:
    """Teacher to images."""
    _known_recipe(chosen.recipe, RECIPES)
    checkpoint = _checkpoint(chosen)
    zoo = [_teacher(chosen), *_zoo(chosen)]
    settings: dict[str, Any] = {} if chosen.steps is None else {"steps": chosen.steps}
    if chosen.overwrite:
        checkpoint.clear()
    with terminal_progress() as on_step:
        images = synthesize(
            zoo, chosen.recipe, count=chosen.count, seed=chosen.seed, checkpoint=checkpoint, on_step=on_step, **settings
        )
    console.print(f"{len(images)} images{' (partial)' if images.partial else ''}: {checkpoint.folder / IMAGES_FILE}")
    if images.partial:
        console.print(f"to go on: {_resuming(command)}", soft_wrap=True)
        raise Cancelled


def evaluate_(chosen: options.Evaluate, command: str) -> None:
    """Accuracy of a model on real images."""
    path = Path(chosen.model)
    if path.suffix == ".onnx":
        model = OnnxModel(path)
        data = load_data(chosen.eval, size=model.size)
    else:
        compressed = load_model(path)
        data = load_data(chosen.eval, size=compressed.input.size)
        model = OnnxModel.of(compressed)
    result = evaluate(model, data)
    console.print(f"{path}: {result.accuracy_interval} of {len(data):,} {data.name}, executed by onnxruntime")


def export(chosen: options.Export, command: str) -> None:
    """Model directory to ONNX file."""
    out = Path(chosen.out)
    if out.exists() and not chosen.overwrite:
        raise OutputError(f"{out} exists; choose another --out, or --overwrite it")
    export_onnx(load_model(chosen.model), out, small=chosen.small)
    console.print(f"{out}: {out.stat().st_size:,} bytes")


def train_teacher(chosen: options.TrainTeacher, command: str) -> None:
    """Train an embedded network on its digits."""
    from dfqlab.teachers import digits_networks as digits
    from dfqlab.teachers.training import TrainingSettings, train

    family, _, name = chosen.teacher.partition("/")
    if family != "digits" or name not in digits.DIGITS_NETWORKS:
        known = [f"digits/{n}" for n in digits.DIGITS_NETWORKS]
        raise ConfigurationError(f"cannot train {chosen.teacher!r}; {did_you_mean(chosen.teacher, known)}")
    out = Path(chosen.out)
    if out.exists() and not chosen.overwrite:
        raise OutputError(f"{out} exists; choose another --out, or --overwrite it")
    data = load_data("digits", split="train")
    seed = digits.DIGITS_SEEDS[name] if chosen.seed is None else chosen.seed
    with terminal_progress() as on_step:
        module = train(
            digits.DIGITS_NETWORKS[name](), digits.DIGITS_INPUT, data.images, data.labels,
            settings=TrainingSettings(), seed=seed, on_step=on_step,
        )  # fmt: skip
    from safetensors.torch import save as to_bytes

    write_bytes(out, to_bytes({k: v.contiguous() for k, v in module.state_dict().items()}))
    result = evaluate(load_teacher(chosen.teacher, checkpoint=out), load_data("digits"))
    console.print(f"{out}: {result.accuracy_interval} of the held-out digits (seed {seed})")


def doctor(chosen: options.Doctor, command: str) -> None:
    """What is here and what is missing."""
    from importlib import metadata

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    runtimes = ("onnx", "onnxscript", "onnxruntime", "openvino")
    for package in ("dfqlab", "torch", "torchvision", "timm", "triton", *runtimes):
        table.add_row(package, version(package))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none; work runs on the CPU"
    table.add_row("GPU", gpu)
    table.add_row("kernels", explain_backend())
    table.add_row("torch.compile", missing_for_compile() or "ready")
    inexact = saturation_warning()
    asked = inexact and f"{inexact}; dfqlab asks onnxruntime for exact ones, which take longer"
    table.add_row("integer products", asked or "exact")
    data = os.environ.get("DFQLAB_DATA")
    table.add_row("DFQLAB_DATA", data or "not set: tests and benchmarks on CIFAR-10 are skipped")
    console.print(table)


def _teacher(chosen: options.TeacherOptions) -> Teacher:
    return load_teacher(chosen.teacher, checkpoint=chosen.checkpoint, leaves=chosen.leaves, device=_device(chosen))


def _zoo(chosen: options.Quantize | options.Synthesize) -> tuple[Teacher, ...]:
    """The networks beside the teacher, each NAME or NAME=CHECKPOINT."""
    named = [entry.strip().partition("=") for entry in chosen.zoo.split(",") if entry.strip()]
    return tuple(load_teacher(name, checkpoint=path or None, device=_device(chosen)) for name, _, path in named)


def _spec(chosen: options.Quantize) -> QuantizationSpec:
    """What the options say; where they say nothing, a recipe without images says its own."""
    asked: dict[str, Any] = {
        "calibration": chosen.calibration,
        "equalization": chosen.equalization,
        "rounding": chosen.rounding,
    }
    if chosen.recipe in WITHOUT_IMAGES and chosen.images is None:
        asked = {name: value for name, value in asked.items() if value != getattr(options.Quantize, name)}
        asked = DFQ().quantization | asked
    return QuantizationSpec(
        weights=chosen.weights,
        activations=chosen.activations,
        split_channels=chosen.split_channels,
        layers=_layers(chosen.layers),
        ends=chosen.ends,
        mean_bits=chosen.mean_bits,
        percentile=chosen.percentile,
        reconstruction=Reconstruction(iterations=chosen.iterations, seed=chosen.seed),
        **asked,
    )


def _layers(asked: str) -> dict[str, Widths]:
    """NAME=WEIGHTS/ACTIVATIONS, NAME=WEIGHTS or NAME=/ACTIVATIONS, with commas between."""
    found = {}
    for entry in filter(None, map(str.strip, asked.split(","))):
        name, _, bits = entry.partition("=")
        weights, _, activations = bits.partition("/")
        if not name or not (weights or activations) or not (weights + activations).isdigit():
            raise ConfigurationError(f"layers: {entry!r} is not NAME=WEIGHTS/ACTIVATIONS, as in 'conv1=8/4' or 'fc=8'")
        found[name] = Widths(int(weights) if weights else None, int(activations) if activations else None)
    return found


def _device(chosen: options.TeacherOptions) -> str:
    if chosen.device != "auto":
        return chosen.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _checkpoint(chosen: options.Quantize | options.Synthesize) -> Checkpoint:
    """The directory of a run, ready to be written into: empty, to be resumed, or to be overwritten."""
    if chosen.overwrite and chosen.resume:
        raise ConfigurationError("--overwrite starts over and --resume goes on: choose one")
    checkpoint = Checkpoint(Path(chosen.out), any_plan=chosen.any_plan)
    _check_directory(checkpoint.folder, may_hold_something=chosen.overwrite or chosen.resume)
    return checkpoint


def _resuming(command: str) -> str:
    """The command that goes on with a run that this one began."""
    words = [word for word in command.split(" ") if word not in ("--overwrite", "--resume")]
    return " ".join([*words, "--resume"])


def _real_data(
    chosen: options.Quantize, teacher: Teacher, count: int
) -> tuple[LabelledImages | None, StoredImages | None]:
    """What judges, and what the row of real images is calibrated with; the embedded digits have both."""
    embedded = "digits" if chosen.teacher.startswith("digits/") else None
    wanted = chosen.eval or embedded
    judge = load_data(wanted, size=teacher.input.size) if wanted else None
    if judge is not None and int(judge.labels.max()) >= len(teacher.classes):
        raise DataError(
            f"{judge.name} has a label {int(judge.labels.max())}, and {teacher.name!r} knows classes 0 to "
            f"{len(teacher.classes) - 1}; is this the data for this teacher?"
        )
    if chosen.real and chosen.real == chosen.eval:
        raise ConfigurationError("--real and --eval name the same images: what calibrates a row must not judge it")
    if chosen.real or embedded:
        data = load_data(chosen.real or "digits", split="train", size=teacher.input.size)
        return judge, StoredImages(data.sample(count, seed=chosen.seed))
    return judge, None


def _known_recipe(name: str, recipes: Mapping[str, object]) -> None:
    if name not in recipes:
        raise ConfigurationError(f"unknown recipe {name!r}; {did_you_mean(name, recipes)}")


def _check_directory(out: Path, *, may_hold_something: bool) -> None:
    """Raise an OutputError, before hours of work, unless a directory can be written and holds nobody's results."""
    try:
        results = out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir())
        if results and not may_hold_something:
            raise OutputError(
                f"{out} holds the results of another run; choose another --out, --resume it, or --overwrite them"
            )
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror or error}; choose another --out") from error


def _show(report: RunReport) -> None:
    console.print(f"\n[bold]{report.sentence}[/bold]\n", markup=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("calibrated on", "accuracy", "agrees with the teacher", "SQNR, dB"):
        table.add_column(column, justify="left" if column == "calibrated on" else "right")
    for row in report.rows:
        table.add_row(
            row.source + (" (used)" if row.source == report.used else ""),
            str(row.accuracy or "-"),
            str(row.agreement or "-"),
            "-" if row.sqnr is None else f"{row.sqnr:.1f}",
        )
    if report.teacher_accuracy is not None:
        table.add_row("the teacher, in float", str(report.teacher_accuracy), "", "")
    console.print(table)
    said: set[str] = set()
    second = None if report.openvino is None else report.openvino.certificate
    for certificate in (report.certificate, second):
        if certificate is not None:
            console.print(f"\n{certificate.sentence}")
            for warning in certificate.warnings:
                if warning not in said:
                    console.print(f"Note: {warning}.")
                said.add(warning)


COMMANDS: dict[str, Callable[[Any, str], None]] = {
    "quantize": quantize,
    "synthesize": synthesize_,
    "evaluate": evaluate_,
    "export": export,
    "train-teacher": train_teacher,
    "doctor": doctor,
}
