"""How far a batch moves BatchNorm layers from what they remember: the loss that all five papers build on."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.images import Batch
from dfqlab.objective import PreparedTerm
from dfqlab.statistics import ObservedTeacher, Per, Statistics, TeacherOutputs, remembered
from dfqlab.synthesis.plan import generator_for
from dfqlab.teachers import Teacher
from dfqlab_kernels import bn_alignment
from dfqlab_kernels.reference.alignment import Distance, Spread

Emphasis = Callable[[int, int], Float[Tensor, "n layers"]]
"""How much each BatchNorm layer counts for each sample, given how many there are of both."""

_AT_ONCE = 128


def one_layer_per_sample(n: int, layers: int) -> Float[Tensor, "n layers"]:
    """Layerwise sample enhancement: sample i counts layer `i modulo layers` twice (DSG, eqs. 7 and 8).

    >>> one_layer_per_sample(3, 2).tolist()
    [[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]]
    """
    return 1.0 + F.one_hot(torch.arange(n) % layers, layers)


@dataclass(frozen=True)
class Alignment:
    """Distance between what a batch does to BatchNorm layers and what they remember.

    With "squared" and "std" this is ZeroQ's (eq. 2) and DSG's (eq. 4): `sum over layers and channels of
    (mean - running_mean)^2 + (std - running_std)^2`. With "l2" and "var" it is MixMix's (eq. 2) and DeepInversion's
    (eq. 4): the sum over layers of `||mean - running_mean||_2 + ||var - running_var||_2`. With "kl" it is The Knowledge
    Within's: the sum over layers and channels of KL(batch || memory) between two Gaussians. All are averaged over
    samples where `per="sample"`: there every single image is asked to have the statistics of the whole training set.
    Variances are biased, `std = sqrt(var + epsilon)` on both sides.

    Attributes:
        per: statistics of the whole batch or of each sample.
        distance: "squared", "l2" (norms of differences, a layer at a time) or "kl".
        spread: what is compared beside means: "std" or "var". "kl" takes both as variances.
        match_input: also ask the normalised input for mean 0 and variance 1.
        first_layer: how often the first BatchNorm layer counts (DeepInversion's code: 10).
        emphasis: how much each layer counts for each sample, such as `one_layer_per_sample`; needs `per="sample"`.
        epsilon: added to variances under a root, a logarithm or a fraction line: gradients stay finite, also where a
            layer remembers no variance at all.
    """

    per: Per = "batch"
    distance: Distance = "squared"
    spread: Spread = "std"
    match_input: bool = True
    first_layer: float = 1.0
    emphasis: Emphasis | None = None
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _check_emphasis(self.per, self.emphasis)

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        """The alignment to this teacher's running statistics.

        Raises:
            TeacherError: no BatchNorm layer.
        """
        teacher.require_batch_norm("alignment compares with BatchNorm statistics")
        return _aligned_to(remembered(teacher), self)


@dataclass(frozen=True)
class SlackAlignment:
    """Slack distribution alignment: a distance below a layer's margin costs nothing and pulls at nothing (DSG, eq. 5).

    `sum over layers and channels of max(|mean - running_mean| - delta, 0)^2 + max(|std - running_std| - gamma, 0)^2`,
    averaged over samples where `per="sample"`. A layer's margins delta and gamma are the `percentile` over its channels
    of the distance at which Gaussian images leave it (DSG, eq. 6): `gaussian_images` of them, N(0, 1) in normalised
    space, statistics over all of them. Emphasis adds layerwise sample enhancement (eqs. 7, 8 and 10).

    Attributes:
        percentile: epsilon of eq. 6, in (0, 1].
        per, match_input, emphasis, epsilon: as in `Alignment`; the input has no margin.
        gaussian_images: how many measure the margins.
    """

    percentile: float = 0.9
    per: Per = "sample"
    match_input: bool = True
    emphasis: Emphasis | None = None
    gaussian_images: int = 1024
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ConfigurationError(f"percentile={self.percentile}: expected a share in (0, 1]; DSG takes 0.9")
        if self.gaussian_images < 1:
            raise ConfigurationError(f"gaussian_images={self.gaussian_images}: margins need at least one image")
        _check_emphasis(self.per, self.emphasis)

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        """Measure this teacher's margins; what comes back is the slack alignment to its running statistics.

        Raises:
            TeacherError: no BatchNorm layer.
        """
        teacher.require_batch_norm("slack alignment compares with BatchNorm statistics")
        plain = Alignment(self.per, match_input=self.match_input, emphasis=self.emphasis, epsilon=self.epsilon)
        return _aligned_to(remembered(teacher), plain, self.margins(teacher, seed=seed))

    def margins(self, teacher: Teacher, *, seed: int) -> tuple[Float[Tensor, " total"], Float[Tensor, " total"]]:
        """Delta and gamma of eq. 6, each repeated for all channels of its layer, packed as `remembered` is."""
        target = remembered(teacher)
        found = _statistics_of_noise(teacher, self.gaussian_images, seed)
        gaps = (
            (found.mean - target.mean).abs(),
            ((found.var + self.epsilon).sqrt() - (target.var + self.epsilon).sqrt()).abs(),
        )
        channels = list(target.layout.channels)
        delta, gamma = (
            torch.cat([torch.quantile(part, self.percentile).expand(len(part)) for part in gap.split(channels)])
            for gap in gaps
        )
        return delta, gamma


def _aligned_to(target: Statistics, how: Alignment, margins: tuple[Tensor, Tensor] | None = None) -> PreparedTerm:
    layers = target.layout.channels
    mean_margin, spread_margin = margins or (None, None)
    plain = how.first_layer == 1.0 and how.emphasis is None

    def alignment(batch: Batch, outputs: TeacherOutputs) -> Tensor:
        found = outputs.statistics if how.per == "sample" else outputs.statistics.over_batch()
        loss = bn_alignment(
            found.mean,
            found.var,
            target.mean,
            target.var,
            channels=layers,
            distance=how.distance,
            spread=how.spread,
            mean_margin=mean_margin,
            spread_margin=spread_margin,
            weights=None if plain else _weights(how, found.mean, len(layers)),
            epsilon=how.epsilon,
        )
        if not how.match_input:
            return loss
        pairs = found.input_mean, found.input_var, target.input_mean, target.input_var
        colours = target.input_mean.shape
        return loss + bn_alignment(
            *pairs, channels=colours, distance=how.distance, spread=how.spread, epsilon=how.epsilon
        )

    return alignment


def _weights(how: Alignment, mean: Tensor, layers: int) -> Tensor:
    """The weights of `bn_alignment`, (samples, layers). They hold the mean over samples."""
    n = len(mean) if mean.dim() == 2 else 1
    with mean.device if mean.is_cuda else nullcontext():  # made there: a copy would make the host wait at every step
        first = F.one_hot(torch.zeros(1, dtype=torch.long), layers) * (how.first_layer - 1)
        emphasis = torch.ones(n, layers) if how.emphasis is None else how.emphasis(n, layers)
    return ((1 + first) * emphasis / n).to(mean)


def _statistics_of_noise(teacher: Teacher, count: int, seed: int) -> Statistics:
    """The statistics of every BatchNorm's input over `count` images of N(0, 1), a part of them at a time."""
    observed = ObservedTeacher(teacher, "sample")
    generator = generator_for(seed, -1)  # a stream that no batch of a job has
    parts = []
    with torch.no_grad():
        for start in range(0, count, _AT_ONCE):
            x = torch.randn(min(_AT_ONCE, count - start), *teacher.input.size, generator=generator)
            parts.append(observed(teacher.input.denormalize(x.to(teacher.device))).statistics)
    mean, var, input_mean, input_var = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "var", "input_mean", "input_var")
    )
    return Statistics(mean, var, observed.layout, input_mean, input_var).over_batch()


def _check_emphasis(per: Per, emphasis: Emphasis | None) -> None:
    if emphasis is not None and per != "sample":
        raise ConfigurationError("emphasis tells samples apart, and the statistics are the batch's: use per='sample'")
