"""What a report holds: plain values, and the sentence that matters first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from dfqlab.compression.prepared import ChainRow, PlacementRow
from dfqlab.deployment.certificate import Certificate, LayerCheck
from dfqlab.evaluation import Latency
from dfqlab.measures import Interval
from dfqlab.trust import Belief, Judgement, disagreements

__all__ = [
    "Belief",
    "CertificateSummary",
    "ChainRow",
    "Diversity",
    "ImagesMade",
    "Interval",
    "Judgement",
    "Latency",
    "LayerCheck",
    "Pictures",
    "PlacementRow",
    "RunReport",
    "SecondRuntime",
    "Sizes",
    "SourceRow",
]


@dataclass(frozen=True)
class SourceRow:
    """What one source of calibration images gives.

    Attributes:
        source: its name: a recipe's, "noise", "real digits".
        kind: what it is; it decides the colour.
        accuracy, agreement: shares with their 95 % intervals, None where not measured.
        sqnr: of the logits against the teacher's, in dB.
    """

    source: str
    kind: Literal["noise", "clipped noise", "synthetic", "real"]
    accuracy: Interval | None
    agreement: Interval | None
    sqnr: float | None

    @property
    def label(self) -> str:
        """The name, with the kind before it where the name does not tell it."""
        return self.source if self.kind == "synthetic" or self.kind in self.source else f"{self.kind}: {self.source}"


@dataclass(frozen=True)
class Diversity:
    """How diverse the images of one source are, beside other sources (DSG, section 3.2).

    Attributes:
        source: by the name that it has in the rows.
        gaussian_distance: of one BatchNorm layer's channels from the Gaussians that they remember, in remembered std.
        mean_variance, std_variance: how much means and stds of single images vary, in units of the remembered variance,
            averaged over layers.
        similarity: the mean cosine between two images, -1..1.
    """

    source: str
    gaussian_distance: float
    mean_variance: float
    std_variance: float
    similarity: float


@dataclass(frozen=True)
class Sizes:
    """Bytes: of the float and the quantized ONNX file, and of the weights at their own bit width with all else."""

    float_onnx: int
    quantized_onnx: int
    packed: int

    @property
    def phrase(self) -> str:
        """How the ONNX files compare.

        >>> Sizes(3100, 1000, 700).phrase, Sizes(1000, 1040, 700).phrase
        ('3.1x smaller', '1.04x larger')
        """
        return _compared(self.float_onnx / self.quantized_onnx, "smaller", "larger", "no smaller")


@dataclass(frozen=True)
class CertificateSummary:
    """What the certificate found: see `dfqlab.deployment.Certificate`, whose properties these are."""

    holds: bool
    sentence: str
    checks: tuple[LayerCheck, ...]
    codes: int
    differences: int
    near_codes: int
    near_differences: int
    convolutions: int
    integer_convolutions: int
    top1_agreement: float
    sqnr: float
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, certificate: Certificate) -> "CertificateSummary":
        """The summary of a certificate."""
        return cls(**{name: getattr(certificate, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class SecondRuntime:
    """The same of OpenVINO, on one thread; and why there is none, where there is none."""

    certificate: CertificateSummary | None
    latency: Latency | None
    missing: str = ""


@dataclass(frozen=True)
class ImagesMade:
    """How the calibration images were made.

    Attributes:
        recipe, count, seed, steps, seconds: of the job.
        partial: whether it was stopped before its last step.
        plan: its execution plan in words.
        first_loss, last_loss: None where it has none.
        loss_curve: (step, loss) pairs.
        recognised: the share of images that a network takes for the class they were made for, by its name; empty where
            they were made for none.
        zoo: networks beside the teacher that they were made from.
    """

    recipe: str
    count: int
    seed: int
    steps: int
    seconds: float
    partial: bool
    plan: str
    first_loss: float | None
    last_loss: float | None
    loss_curve: tuple[tuple[int, float], ...]
    recognised: Mapping[str, Interval] = field(default_factory=dict)
    zoo: tuple[str, ...] = ()

    def made_from(self, teacher: str) -> str:
        """The networks that they were made from, as the end of a sentence."""
        return f"{teacher} alone" if not self.zoo else f"{teacher} and {', '.join(self.zoo)}"


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is drawn. Of this, only the distances stand in the JSON.

    Attributes:
        images: in pixel units.
        captions: one for each image, e.g. "teacher: 3".
        snapshots: (step, the first few of the images at that step).
        bn_layers: module paths of the BatchNorm layers in forward order.
        bn_distances: for each source, by the name that it has in the rows, how far it is from what each of the layers
            remembers, in remembered standard deviations.
    """

    images: Float[Tensor, "n c h w"]
    captions: tuple[str, ...]
    snapshots: tuple[tuple[int, Tensor], ...]
    bn_layers: tuple[str, ...]
    bn_distances: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class RunReport:
    """Everything that the page shows.

    Attributes:
        teacher, fingerprint, parameters, input_size, classes: the network that was compressed.
        label: "W4A4"; weights and activations are the bits behind it.
        calibration, equalization, rounding: how ranges were found, layers made ready and weights rounded.
        judged_on: the real data that judged, e.g. "599 held-out digits"; None: synthetic images that the model was not
            calibrated with.
        judged_images: how many.
        teacher_accuracy: None without real data.
        rows: one for each source of calibration images.
        used: the source, by its name in the rows, that the model on the disk was calibrated with.
        sizes, latency, certificate, images, pictures, placement: the page's sections; no images where the recipe looks
            at none.
        command: reproduces the run.
        versions: of the software, by name.
        warnings: what a reader should know of this run.
        diversity: one for each source of calibration images; empty where the network has no BatchNorm layer.
        diversity_layer: the BatchNorm layer of their `gaussian_distance`.
        judgements: what judges without real data say of the model on the disk.
        beliefs: what such judgements were worth on networks whose data is known.
        openvino: what a second runtime makes of the same file; None where nobody asked.
        chains: what equalization and splitting made of neighbouring layers; empty where nobody asked for either.
    """

    teacher: str
    fingerprint: str
    parameters: int
    input_size: tuple[int, int, int]
    classes: int
    label: str
    weights: int
    activations: int
    calibration: str
    equalization: str
    rounding: str
    judged_on: str | None
    judged_images: int
    teacher_accuracy: Interval | None
    rows: tuple[SourceRow, ...]
    used: str
    sizes: Sizes
    latency: Latency | None
    certificate: CertificateSummary | None
    images: ImagesMade | None
    pictures: Pictures
    placement: tuple[PlacementRow, ...]
    command: str
    versions: Mapping[str, str]
    warnings: tuple[str, ...]
    diversity: tuple[Diversity, ...] = ()
    diversity_layer: str = ""
    judgements: tuple[Judgement, ...] = ()
    beliefs: tuple[Belief, ...] = ()
    openvino: SecondRuntime | None = None
    chains: tuple[ChainRow, ...] = ()

    @property
    def shipped(self) -> SourceRow | None:
        """The row of the model on the disk."""
        return next((row for row in self.rows if row.source == self.used), None)

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Where the judges contradict each other."""
        return disagreements(self.judgements)

    @property
    def sentence(self) -> str:
        """The sentence that matters first: size, speed and agreement, each as it is, or that it was not measured."""
        return self.headline + (f" ({self.caveat})" if self.caveat else "")

    @property
    def headline(self) -> str:
        """The sentence without its caveat."""
        row = self.shipped
        source = "" if row is None or row.kind == "synthetic" else f" calibrated on {row.label}"
        speed = "speed not measured" if self.latency is None else speed_phrase(self.latency)
        agreement = "agreement with the teacher not measured"
        if row is not None and row.agreement is not None:
            judge = self.judged_on or f"{self.judged_images:,} synthetic images"
            agreement = f"agrees with the teacher on {row.agreement} of {judge}"
        return f"{self.label}{source}, {self.sizes.phrase}, {speed}, {agreement}"

    @property
    def caveat(self) -> str:
        """What agreement without real data is not; empty with real data, or where none was measured."""
        if self.judged_on or self.shipped is None or self.shipped.agreement is None:
            return ""
        return "not the ones it was calibrated with; no real data was at hand, so this is not accuracy"


def speed_phrase(latency: Latency) -> str:
    """How the quantized model's time compares with the float model's, and whether the spread of the pairs says so."""
    if latency.ratio_low <= 1 <= latency.ratio_high:
        return "as fast as the float model within this machine's noise"
    return _compared(latency.ratio, "faster", "slower on this machine", "no faster")


def _compared(ratio: float, more: str, less: str, same: str) -> str:
    factor = max(ratio, 1 / ratio)
    if factor < 1.005:
        return same
    return f"{factor:.{2 if factor < 1.095 else 1}f}x {more if ratio > 1 else less}"
