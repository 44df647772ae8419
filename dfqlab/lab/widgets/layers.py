"""Pick a BatchNorm layer: what it remembers, and what images of several sources do to it."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.figures import layer_statistics
from dfqlab.lab.controls import Choice
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Explorer
from dfqlab.measures import batch_norm_distance
from dfqlab.statistics import ObservedTeacher, remembered
from dfqlab.teachers import Teacher


def layer_memory(teacher: Teacher, images: Mapping[str, Float[Tensor, "_ c h w"]]) -> Explorer:
    """What each layer remembers beside what each source's images do to it; the control picks the layer.

    Args:
        teacher: a network with BatchNorm layers.
        images: in pixel units, by source.

    Raises:
        TeacherError: the teacher has no BatchNorm layer, or takes images of another size.
    """
    for batch in images.values():
        teacher.check_size(batch)
    memory, observed = remembered(teacher), ObservedTeacher(teacher)
    with torch.no_grad():
        found = {source: observed(batch).statistics for source, batch in images.items()}
    distances = {source: batch_norm_distance(statistics, memory) for source, statistics in found.items()}
    paths = {f"{number}. {path}": path for number, path in enumerate(teacher.batch_norms, 1)}

    def draw(layer: str) -> Drawing:
        path = paths[layer]
        mean, var = memory.of(path)
        of = {source: statistics.of(path) for source, statistics in found.items()}
        words = ", ".join(f"{source} {distances[source][path]:.2f}" for source in found)
        sentence = f"Layer {layer}: distance from what it remembers, in remembered standard deviations: {words}."
        spread = {source: (m, v.sqrt()) for source, (m, v) in of.items()}
        return Drawing(layer_statistics(mean, var.sqrt(), spread, layer=path), sentence)

    options = tuple(paths)
    return Explorer(draw, layer=Choice(options[len(options) // 2], options))
