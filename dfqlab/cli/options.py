"""What each verb takes. Help needs these and no torch."""

from dataclasses import dataclass, field
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Calibration = Literal["minmax", "percentile", "ema", "image_mean", "mse", "kl", "aciq", "bn"]
Equalization = Literal["none", "dfq"]
Rounding = Literal["nearest", "squant", "adaround", "brecq", "qdrop"]


@dataclass(frozen=True)
class TeacherOptions:
    """Which network to start from.

    Attributes:
        teacher: FAMILY/NETWORK: digits/resnet, digits/mobilenet, digits/vgg, cifar10/NAME, torchvision/NAME, timm/NAME.
        checkpoint: its state dict, safetensors; needed for cifar10/NAME, replaces a download for the others.
        leaves: submodules that stay float and opaque, where the network cannot be traced as a whole.
        device: where to work; auto takes a GPU where there is one.
    """

    teacher: str = "digits/mobilenet"
    checkpoint: str | None = None
    leaves: tuple[str, ...] = ()
    device: Device = "auto"


@dataclass(frozen=True)
class Quantize(TeacherOptions):
    """Quantize a teacher without its data; write the model, an ONNX file and a report.

    Attributes:
        recipe: how images are made: zeroq, knowledge_within, deepinversion, mixmix, dsg; dfq needs none.
        zoo: more networks to make images from, NAME or NAME=CHECKPOINT with commas between; mixmix mixes them.
        count: how many images.
        steps: of the recipe; its own, if not given.
        weights: bits of weights, 2 to 8.
        activations: bits of activations, 2 to 8.
        calibration: where ranges of activations come from; bn looks at no image.
        equalization: dfq scales channels of neighbouring layers against each other first, and corrects biases.
        split_channels: share of channels to split in two, those with the largest weights; 0.02 adds two per cent.
        rounding: how weights are rounded; adaround, brecq and qdrop learn it from the images, which takes minutes.
        ends: bits of the first layer and what it puts out, and of the last layer and what it reads.
        mean_bits: bits that a weight may take on average; each layer then gets as many as it needs most.
        layers: bits of single layers, NAME=WEIGHTS/ACTIVATIONS with commas between; a side left empty is as of others.
        percentile: of calibration percentile, in per cent.
        iterations: of a rounding that learns, for each layer or block.
        images: a set of images made before (images.safetensors), instead of new ones.
        any_images: that set may be one of another network or image size.
        held_out: synthetic images of each set that judges and calibrates nothing, from another seed and another recipe;
            0 makes none and leaves that section of the report out.
        eval: real images to judge with, never to learn from: digits, a folder, or an .npz with images and labels.
        real: real images to calibrate one row of the table with, for comparison; digits has its own.
        seed: of everything random.
        out: directory for the results.
        overwrite: replace the results of an earlier run in that directory.
        resume: go on with a run that was stopped in that directory.
        any_plan: resume under another plan or torch version too, for other bytes.
    """

    recipe: str = "zeroq"
    zoo: str = ""
    count: int = 128
    steps: int | None = None
    weights: int = 4
    activations: int = 4
    calibration: Calibration = "mse"
    equalization: Equalization = "none"
    split_channels: float = 0.0
    rounding: Rounding = "nearest"
    ends: int | None = None
    mean_bits: float | None = None
    layers: str = ""
    percentile: float = 99.99
    iterations: int = 2000
    images: str | None = None
    any_images: bool = False
    held_out: int = 64
    eval: str | None = None
    real: str | None = None
    seed: int = 0
    out: str = "runs/quantize"
    overwrite: bool = False
    resume: bool = False
    any_plan: bool = False


@dataclass(frozen=True)
class Synthesize(TeacherOptions):
    """Make images from a teacher alone.

    Attributes:
        recipe: how images are made: zeroq, knowledge_within, deepinversion, mixmix, dsg.
        zoo: more networks to make images from, NAME or NAME=CHECKPOINT with commas between; mixmix mixes them.
        count: how many images.
        steps: of the recipe; its own, if not given.
        seed: the same seed gives the same bytes.
        out: directory for images.safetensors.
        overwrite: replace the results of an earlier run in that directory.
        resume: go on with a run that was stopped in that directory.
        any_plan: resume under another plan or torch version too, for other bytes.
    """

    recipe: str = "zeroq"
    zoo: str = ""
    count: int = 128
    steps: int | None = None
    seed: int = 0
    out: str = "runs/synthesize"
    overwrite: bool = False
    resume: bool = False
    any_plan: bool = False


@dataclass(frozen=True)
class Evaluate:
    """Measure a quantized model on real images, in onnxruntime.

    Attributes:
        model: the directory of a run, or an .onnx file.
        eval: digits, a folder, or an .npz with images and labels.
    """

    model: str = "runs/quantize"
    eval: str = "digits"


@dataclass(frozen=True)
class Export:
    """Write a quantized model as ONNX.

    Attributes:
        model: the directory of a run.
        out: the file to write.
        small: weights of at most 4 bits take half a byte each; for storage and download, not for speed.
        overwrite: replace the file.
    """

    model: str = "runs/quantize"
    out: str = "model.onnx"
    small: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class TrainTeacher:
    """Train one of the embedded networks on its digits, as the shipped weights were.

    Attributes:
        teacher: digits/resnet, digits/mobilenet or digits/vgg.
        seed: of initialisation, order and shifts; the shipped network's, if not given.
        out: the file of weights to write, safetensors.
        overwrite: replace the file.
    """

    teacher: str = "digits/mobilenet"
    seed: int | None = None
    out: str = "teacher.safetensors"
    overwrite: bool = False


@dataclass(frozen=True)
class Lesson:
    """Open a lesson in JupyterLab, as a copy that you may write into; without a lesson, list them.

    Attributes:
        lesson: its number or its name.
        folder: where your copies are; what you edited there is never overwritten.
        port: where JupyterLab listens; it takes the next free one by itself.
        copy_only: copy the lessons and do not open JupyterLab.
    """

    lesson: str | None = field(default=None, metadata={"positional": True})
    folder: str = "lessons"
    port: int = 8888
    copy_only: bool = False


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, what this machine can do, and what is missing."""


VERBS = {
    "quantize": Quantize,
    "synthesize": Synthesize,
    "evaluate": Evaluate,
    "export": Export,
    "train-teacher": TrainTeacher,
    "lesson": Lesson,
    "doctor": Doctor,
}
