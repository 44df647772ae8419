"""Whom images speak to: how many networks name their class, and whether each finds in them what it remembers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

import dfqlab_kernels
from dfqlab.errors import ConfigurationError, DataError
from dfqlab.images import Batch, ImageSource
from dfqlab.measures.activations import checked_batches, sample_statistics
from dfqlab.statistics import remembered
from dfqlab.teachers import Teacher


@dataclass(frozen=True)
class Recognition:
    """What each network of a zoo makes of one set of labelled images.

    Attributes:
        accuracy: the share of images whose class a network names, 0..1, by its name.
        count: how many images.
    """

    accuracy: Mapping[str, float]
    count: int

    @property
    def mean(self) -> float:
        """Of the accuracies, 0..1."""
        return statistics.fmean(self.accuracy.values())

    @property
    def std(self) -> float:
        """Population standard deviation of the accuracies over the zoo, 0..0.5: 0 of one network."""
        return statistics.pstdev(self.accuracy.values())

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f} %"


def recognition(teachers: Sequence[Teacher], images: ImageSource) -> Recognition:
    """How many of the images each teacher takes for what their label says (MixMix, Table 2).

    Images that only the network they were made from recognises have learned that network, not the class. Every image
    counts once, whatever its weight.

    Args:
        teachers: a zoo; those that the images were not made from say most.
        images: with class numbers as labels.

    Raises:
        DataError: no images, pixels that are not finite, no labels, shares of classes in their place, or labels that a
            teacher has no class for.
        ConfigurationError: no teachers, or two of one name.
        TeacherError: images of another size than a teacher takes.
    """
    names = [teacher.name for teacher in teachers]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"teachers {names}: expected one or more, each by a name of its own")
    right = dict.fromkeys(names, 0)
    count = 0
    for batch in checked_batches(images):
        labels = _class_numbers(batch)
        for teacher in teachers:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(teacher.classes):
                raise DataError(f"labels {low} to {high}, but {teacher.name!r} has {len(teacher.classes)} classes")
            right[teacher.name] += int((_logits(teacher, batch.images).argmax(1).cpu() == labels).sum())
        count += len(labels)
    return Recognition({name: number / count for name, number in right.items()}, count)


def inception_score(logits: Float[Tensor, "n classes"], splits: int = 1) -> float:
    """`exp(mean over x of KL(p(y|x) ‖ p(y)))`, 1..classes (Salimans et al. 2016, section 4; MixMix, Table 2).

    High where the network is sure of each image and all classes are there; 1 where it says the same of all. It is the
    opinion of one network: the score of another, or of Inception on ImageNet, is another scale. In float64.

    Args:
        logits: of one network, a row an image.
        splits: in how many runs of neighbours to score; the result is their mean. Images sorted by class would have a
            run hold few classes: leave it at 1, or mix them first.

    Raises:
        DataError: fewer images than splits, or logits that are not finite.
        ConfigurationError: fewer than one split.

    >>> inception_score(100 * torch.eye(4)), inception_score(torch.ones(4, 10))
    (4.0, 1.0)
    """
    if splits < 1:
        raise ConfigurationError(f"splits={splits}: expected one or more")
    if len(logits) < splits:
        raise DataError(f"{len(logits)} images in {splits} splits: expected at least one in each")
    if not torch.isfinite(logits).all():
        raise DataError("logits hold NaN or infinity")
    scores = []
    for part in F.log_softmax(logits.detach().double(), dim=1).tensor_split(splits):
        marginal = part.logsumexp(0) - math.log(len(part))
        scores.append(float((part.exp() * (part - marginal)).sum(1).mean().exp()))
    return statistics.fmean(scores)


def inception_score_of(teacher: Teacher, images: ImageSource | Float[Tensor, "n c h w"], splits: int = 1) -> float:
    """`inception_score` of what a teacher says of images.

    Raises:
        DataError: no images, fewer than splits, pixels that are not finite, or images that make the network overflow.
        ConfigurationError: fewer than one split.
        TeacherError: images of another size.
    """
    return inception_score(torch.cat([_logits(teacher, batch.images) for batch in checked_batches(images)]), splits)


def alignment_of(teacher: Teacher, images: ImageSource | Float[Tensor, "n c h w"]) -> float:
    """MixMix's BatchNorm loss of a set as a whole (eq. 2, Table 1), from 0 up; in the units of the network's layers.

    The sum over layers of `||mean - running_mean||_2 + ||var - running_var||_2`, norms not squared, statistics over
    all images of the set. Compare sets at one teacher, not teachers at one set.

    Raises:
        DataError: no images, pixels that are not finite, or images that make the network overflow.
        TeacherError: no BatchNorm layer, or images of another size.
    """
    found, memory = sample_statistics(teacher, images).over_batch(), remembered(teacher)
    return float(
        dfqlab_kernels.bn_alignment(
            found.mean,
            found.var,
            memory.mean.double(),
            memory.var.double(),
            channels=memory.layout.channels,
            distance="l2",
            spread="var",
        )
    )


def alignment_matrix(teachers: Sequence[Teacher], sets: Mapping[str, ImageSource]) -> dict[str, dict[str, float]]:
    """`alignment_of` each set at each teacher: {teacher: {set: value}} (MixMix, Table 1).

    Raises:
        DataError: as `alignment_of`.
        ConfigurationError: no teachers or no sets, or two teachers of one name.
        TeacherError: as `alignment_of`.
    """
    names = [teacher.name for teacher in teachers]
    if not names or not sets or len(set(names)) < len(names):
        raise ConfigurationError(f"teachers {names} and sets {list(sets)}: expected some of both, names each once")
    return {t.name: {name: alignment_of(t, images) for name, images in sets.items()} for t in teachers}


def _class_numbers(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise DataError("images without labels cannot be recognised: ask a recipe that gives labels, or label them")
    if batch.labels.dim() != 1:
        raise DataError(
            f"labels of shape {tuple(batch.labels.shape)} are shares of classes: measure images before they are mixed"
        )
    return batch.labels.cpu()


def _logits(teacher: Teacher, images: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher(images.to(teacher.device))
