"""What a report shows of images: pictures, how far they are from what BatchNorm remembers, how diverse they are."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from dfqlab.images import ImageSource, SyntheticSet
from dfqlab.measures import (
    Interval,
    batch_norm_distance,
    gaussian_distance,
    recognition,
    similarity_index,
    statistics_variance,
    wilson,
)
from dfqlab.pipeline.recorder import Recorder
from dfqlab.report import Diversity, Pictures
from dfqlab.statistics import ObservedTeacher, remembered
from dfqlab.synthesis.plan import BATCH_SIZE
from dfqlab.teachers import Teacher

_SHOWN = 24


def pictures(
    teacher: Teacher, images: SyntheticSet | None, recorder: Recorder, sources: Mapping[str, ImageSource]
) -> Pictures:
    if images is None:
        return Pictures(torch.zeros(0, *teacher.input.size), (), (), teacher.batch_norms, {})
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


def diversity(teacher: Teacher, sources: Mapping[str, ImageSource]) -> tuple[Diversity, ...]:
    """How diverse a batch of each source is inside the teacher."""
    if not teacher.batch_norms:
        return ()
    found = []
    for name, source in sources.items():
        images = next(source.batches(BATCH_SIZE)).images
        spread = statistics_variance(teacher, images).values()
        distance = gaussian_distance(teacher, images, [middle(teacher)])
        similarity = similarity_index(teacher.input.normalize(images)) if len(images) > 1 else 1.0
        means, stds = (fmean(getattr(s, f"{of}_variance") for s in spread) for of in ("mean", "std"))
        found.append(Diversity(name, distance[middle(teacher)], means, stds, similarity))
    return tuple(found)


def middle(teacher: Teacher) -> str:
    """One BatchNorm layer to speak for the network."""
    return teacher.batch_norms[len(teacher.batch_norms) // 2] if teacher.batch_norms else ""


def recognition_by_network(zoo: Sequence[Teacher], images: SyntheticSet) -> dict[str, Interval]:
    """Who takes the images for the class that they were made for; networks of another input size are not asked."""
    if images.labels is None:
        return {}
    asked = {teacher.name: teacher for teacher in reversed(zoo) if teacher.input.size == images.images.shape[1:]}
    found = recognition(list(asked.values())[::-1], images)
    return {name: wilson(round(share * found.count), found.count) for name, share in found.accuracy.items()}
