"""What a whole source of images does inside a teacher: the statistics of every image, and what reaches a layer."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfqlab.errors import DataError, TeacherError, did_you_mean
from dfqlab.images import Batch, ImageSource, StoredImages
from dfqlab.statistics import ObservedTeacher, Statistics
from dfqlab.teachers import Teacher

BATCH_SIZE = 64


def checked_batches(images: ImageSource | Float[Tensor, "n c h w"]) -> Iterator[Batch]:
    """The batches of a source, in its own order; a tensor is taken as it is, be it inside 0..1 or not.

    Raises:
        DataError: a source without images, one that gives something else than a `Batch`, or NaN or infinity in a pixel.
    """
    source = StoredImages(images) if isinstance(images, Tensor) else images
    count = 0
    for batch in source.batches(BATCH_SIZE):
        if not isinstance(batch, Batch):
            raise DataError(
                f"{type(source).__name__} gives {type(batch).__name__}, expected Batch: "
                "try StoredImages(data.images, data.labels)"
            )
        if not batch.images.is_floating_point():
            raise DataError(f"images must be floats in pixel units, got {batch.images.dtype}; divide bytes by 255")
        if not torch.isfinite(batch.images).all():
            raise DataError(f"images {count} to {count + len(batch.images) - 1} hold NaN or infinity")
        count += len(batch.images)
        if len(batch.images):
            yield batch
    if count == 0:
        raise DataError("no images to measure")


def sample_statistics(teacher: Teacher, images: ImageSource | Float[Tensor, "n c h w"]) -> Statistics:
    """Mean and biased variance of every BatchNorm layer's input, for each image of the source: (n, total), in float64.

    `over_batch()` of it is exact for the source as a whole, however many batches it came in: every image has as many
    elements as any other.

    Raises:
        DataError: no images, pixels that are not finite, or images that make the network overflow.
        TeacherError: no BatchNorm layer, or images of another size.
    """
    observed = ObservedTeacher(teacher, per="sample")
    found: list[Statistics] = []
    with torch.no_grad():
        for batch in checked_batches(images):
            teacher.check_size(batch.images)
            found.append(observed(batch.images.to(teacher.device)).statistics)
    mean, var, input_mean, input_var = (
        torch.cat([part.double() for part in parts])
        for parts in zip(*((s.mean, s.var, s.input_mean, s.input_var) for s in found), strict=True)
    )
    if not (torch.isfinite(mean).all() and torch.isfinite(var).all()):
        raise DataError(f"the images make {teacher.name!r} overflow: pixels lie in 0..1, try images.clamp(0, 1)")
    return Statistics(mean, var, observed.layout, input_mean, input_var)


def channel_activations(
    teacher: Teacher, layer: str, images: ImageSource | Float[Tensor, "n c h w"]
) -> Float[Tensor, "n channels positions"]:
    """Everything that reaches one BatchNorm layer, before it normalises: one row of positions a channel and image.

    Args:
        layer: module path of a BatchNorm layer, one of `teacher.batch_norms`. Of a layer that runs twice, the first.

    Raises:
        DataError: no images, or pixels that are not finite.
        TeacherError: no such BatchNorm layer, or images of another size.
    """
    return torch.cat([found[layer] for found in layer_inputs(teacher, [layer], images, torch.clone)])


def layer_inputs(
    teacher: Teacher,
    layers: Sequence[str],
    images: ImageSource | Float[Tensor, "n c h w"],
    keep: Callable[[Tensor], Tensor],
) -> Iterator[dict[str, Tensor]]:
    """For each batch, what `keep` makes of the input (n, channels, positions) of each layer, as soon as it is there.

    Raises:
        DataError: no images, or pixels that are not finite.
        TeacherError: no such BatchNorm layer, or images of another size.
    """
    for layer in layers:
        if layer not in teacher.batch_norms:
            raise TeacherError(
                f"{teacher.name!r} has no BatchNorm layer {layer!r}; {did_you_mean(layer, teacher.batch_norms)}"
            )
    for batch in checked_batches(images):
        yield _watched(teacher, layers, batch.images.to(teacher.device), keep)


def _watched(
    teacher: Teacher, layers: Sequence[str], images: Tensor, keep: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    handles = []
    try:
        for layer in layers:

            def watch(module: nn.Module, args: tuple[Tensor, ...], layer: str = layer) -> None:
                if layer not in seen:
                    seen[layer] = keep(args[0].reshape(*args[0].shape[:2], -1))

            handles.append(teacher.module.get_submodule(layer).register_forward_pre_hook(watch))
        with torch.no_grad():
            teacher(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen
