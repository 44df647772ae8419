"""How good a compressed model is: accuracy with an interval, agreement with its teacher, size, latency."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dfqlab.compression.model import CompressedModel
from dfqlab.deployment import ExportedModel, OnnxModel, OpenVinoModel
from dfqlab.errors import ConfigurationError, DataError, did_you_mean
from dfqlab.images import ImageSource
from dfqlab.measures import Interval, sqnr, wilson
from dfqlab.teachers import Teacher

Runtime = Literal["torch", "onnxruntime", "openvino"]

BATCH_SIZE = 128
_EXPORTED: dict[str, type[ExportedModel]] = {"onnxruntime": OnnxModel, "openvino": OpenVinoModel}


@runtime_checkable
class Classifier(Protocol):
    """Anything that gives logits for images in pixel units (0..1)."""

    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class LabelledBatches(Protocol):
    """Real images with their labels, to judge with."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images in pixel units (0..1) and their labels, in order."""
        ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model did on labelled images.

    Attributes:
        correct: for each image, whether the model named its class.
        agrees: for each image, whether the model named the teacher's class; None where no teacher was at hand.
        sqnr: of the logits against the teacher's, in dB; None likewise.
    """

    correct: Bool[Tensor, "n"]
    agrees: Bool[Tensor, "n"] | None
    sqnr: float | None

    @property
    def accuracy(self) -> float:
        """The share of images whose class the model named, 0..1."""
        return self.accuracy_interval.value

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return self.accuracy_interval.low, self.accuracy_interval.high

    @property
    def agreement(self) -> float | None:
        """The share of images on which model and teacher name the same class, 0..1."""
        return None if self.agreement_interval is None else self.agreement_interval.value

    @property
    def accuracy_interval(self) -> Interval:
        """Accuracy and its interval in one."""
        return wilson(int(self.correct.sum()), len(self.correct))

    @property
    def agreement_interval(self) -> Interval | None:
        """Agreement and its interval in one."""
        return None if self.agrees is None else wilson(int(self.agrees.sum()), len(self.agrees))


def evaluate(
    model: CompressedModel | ExportedModel | Teacher,
    data: LabelledBatches,
    *,
    teacher: Teacher | None = None,
    runtime: Runtime = "torch",
) -> Evaluation:
    """Run a model on labelled images.

    Args:
        model: a compressed model, an exported model, or a teacher.
        data: e.g. `load_data("digits")`.
        teacher: whom agreement is measured with; the one that the model was made from, if None.
        runtime: what executes a compressed model: torch, or its ONNX export in another runtime.

    Raises:
        DataError: no images, images of another size than a compressed or ONNX model takes, or labels that the model has
            no class for.
        TeacherError: images of another size than the teacher takes.
        ConfigurationError: an unknown runtime, or one that is not installed.
    """
    if not isinstance(data, LabelledBatches):
        raise DataError(
            f"expected labelled images with batches(size), as load_data gives them, got {type(data).__name__}"
        )
    if runtime not in get_args(Runtime):
        raise ConfigurationError(f"no runtime {runtime!r}; {did_you_mean(runtime, get_args(Runtime))}")
    if teacher is None and isinstance(model, CompressedModel):
        teacher = model.teacher
    classifier: Classifier = (
        model if runtime == "torch" or isinstance(model, ExportedModel) else _EXPORTED[runtime].of(model)
    )
    correct, agrees, logits, references = [], [], [], []
    for images, labels in data.batches(BATCH_SIZE):
        found = _logits(classifier, images)
        _check_labels(labels, found.shape[1])
        correct.append(found.argmax(1) == labels)
        if teacher is not None:
            reference = _logits(teacher, images)
            agrees.append(found.argmax(1) == reference.argmax(1))
            logits.append(found)
            references.append(reference)
    if not correct:
        raise DataError("no images to evaluate on")
    if teacher is None:
        return Evaluation(torch.cat(correct), None, None)
    return Evaluation(torch.cat(correct), torch.cat(agrees), sqnr(torch.cat(references), torch.cat(logits)))


def compare(model: Classifier, teacher: Teacher, images: ImageSource) -> tuple[Interval, float]:
    """Agreement with the teacher, and the SQNR of the logits in dB, on images without labels. This is not accuracy.

    Raises:
        DataError: no images.
    """
    agree = count = 0
    logits, references = [], []
    for batch in images.batches(BATCH_SIZE):
        found, reference = _logits(model, batch.images), _logits(teacher, batch.images)
        agree += int((found.argmax(1) == reference.argmax(1)).sum())
        count += len(found)
        logits.append(found)
        references.append(reference)
    if count == 0:
        raise DataError("no images to compare on")
    return wilson(agree, count), sqnr(torch.cat(references), torch.cat(logits))


@dataclass(frozen=True)
class Latency:
    """Time of one batch, float against quantized, measured in turn.

    Attributes:
        float_ms, quantized_ms: medians, in milliseconds.
        ratio, ratio_low, ratio_high: float over quantized, pair by pair: median, 20 % and 80 % quantile.
        batch, threads, runs: images in the batch, threads of the runtime (None: its own choice), pairs measured.
    """

    float_ms: float
    quantized_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    batch: int
    threads: int | None
    runs: int


def latency(
    original: ExportedModel, quantized: ExportedModel, images: Float[Tensor, "n c h w"], *, runs: int = 100
) -> Latency:
    """Time two models on one batch, in turn, so that a busy machine slows both.

    Args:
        original, quantized: made with the same number of threads.
        images: the batch, in pixel units.
        runs: pairs of runs, after five that do not count.
    """
    (found,) = latencies([(original, quantized)], images, runs=runs)
    return found


def latencies(
    pairs: Sequence[tuple[ExportedModel, ExportedModel]], images: Float[Tensor, "n c h w"], *, runs: int = 100
) -> list[Latency]:
    """`latency` of several pairs, e.g. one of each runtime, all in turn in one run."""
    times = interleaved([model for pair in pairs for model in pair], images, runs=runs)
    return [
        _latency(original, quantized, len(images), pair[1].threads)
        for pair, original, quantized in zip(pairs, times[::2], times[1::2], strict=True)
    ]


def interleaved(
    models: Sequence[ExportedModel], images: Float[Tensor, "n c h w"], *, runs: int = 100
) -> list[list[float]]:
    """Milliseconds of each run of each model on one batch, the models in turn, after five rounds that do not count."""
    for model in [*models] * 5:
        model(images)
    times: list[list[float]] = [[] for _ in models]
    for _ in range(runs):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            model(images)
            taken.append(1000 * (time.perf_counter() - start))
    return times


def _latency(original: list[float], quantized: list[float], batch: int, threads: int | None) -> Latency:
    runs = len(original)
    ratios = sorted(f / q for f, q in zip(original, quantized, strict=True))
    return Latency(
        statistics.median(original),
        statistics.median(quantized),
        statistics.median(ratios),
        ratios[int(0.2 * (runs - 1))],
        ratios[int(0.8 * (runs - 1))],
        batch,
        threads,
        runs,
    )


def _logits(model: Classifier, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
    device = model.device if isinstance(model, (Teacher, CompressedModel)) else torch.device("cpu")
    with torch.no_grad():
        return model(images.to(device)).cpu()


def _check_labels(labels: Tensor, classes: int) -> None:
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < classes:
            raise DataError(f"the data has a label {label}, and the model knows classes 0 to {classes - 1}")
