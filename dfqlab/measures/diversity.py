"""How diverse images are inside a network: at the level of distributions, and from sample to sample (DSG, section 3.2).

Homogeneous images are those whose every channel has just the Gaussian that BatchNorm remembers, and whose every sample
has just its mean and std. Real images have neither.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.images import ImageSource
from dfqlab.measures.activations import layer_inputs, sample_statistics
from dfqlab.statistics import remembered
from dfqlab.teachers import Teacher

_VALUES_AN_IMAGE = 64  # of each channel: 4,096 a batch
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class StatisticsVariance:
    """How much the statistics of single images differ from image to image, in one layer.

    Attributes:
        mean_variance: population variance over images of a channel's mean, in units of the variance that BatchNorm
            remembers, averaged over channels; 0 where all images have one mean.
        std_variance: the same of a channel's std.
    """

    mean_variance: float
    std_variance: float


def wasserstein_to_gaussian(
    values: Float[Tensor, "*channels n"], mean: Float[Tensor, "*channels"], std: Float[Tensor, "*channels"]
) -> Float[Tensor, "*channels"]:
    """The 1-Wasserstein distance of values from N(mean, std^2), in units of std (DSG, section 3.2.1).

    That is the area between both quantile functions, `∫ |F⁻¹(u) - Φ⁻¹(u)| du` over u in 0..1 of the standardised
    values, in closed form: F⁻¹ is a staircase and `∫ Φ⁻¹(u) du = -φ(Φ⁻¹(u))`, so nothing is sampled. In float64.

    0 is never reached: n values drawn from the Gaussian itself are about 1 / sqrt(n) away, so compare sets of one size.
    A channel that always has its mean is `sqrt(2 / π)`, 0.798, away.

    Raises:
        DataError: no values, values or means that are not finite, or a std that is not positive.

    >>> wasserstein_to_gaussian(torch.zeros(10), torch.tensor(0.0), torch.tensor(1.0)).item()
    0.79788...
    >>> wasserstein_to_gaussian(torch.full((10,), 50.0), torch.tensor(0.0), torch.tensor(5.0)).item()
    10.0...
    """
    if values.shape[-1] == 0:
        raise DataError("no values: a distribution needs at least one")
    if not (torch.isfinite(values).all() and torch.isfinite(mean).all()):
        raise DataError("values and means must be finite, got NaN or infinity")
    if not ((std > 0) & torch.isfinite(std)).all():
        raise DataError("a std must be positive and finite, try sqrt(running_var + eps), which BatchNorm divides by")
    z = ((values.double() - mean.double()[..., None]) / std.double()[..., None]).sort(-1).values
    edges = torch.arange(z.shape[-1] + 1, dtype=torch.float64, device=z.device) / z.shape[-1]
    low, high = edges[:-1], edges[1:]
    crossing = torch.special.ndtr(z).clamp(low, high)  # left of it the Gaussian is below the step, right of it above
    area: Tensor = z * (2 * crossing - low - high) + _below(low) + _below(high) - 2 * _below(crossing)
    return area.sum(-1)


def gaussian_distance(
    teacher: Teacher, images: ImageSource | Float[Tensor, "n c h w"], layers: Sequence[str] | None = None
) -> dict[str, float]:
    """How far each BatchNorm layer's input is from the Gaussian that it remembers: the mean over channels of the
    1-Wasserstein distance, in remembered std, by layer (DSG, section 3.2.1).

    A remembered variance below the layer's eps counts as eps: BatchNorm divides by nothing smaller. Exact where a layer
    has at most 64 positions; of a larger one, each batch gives of each channel as many of its sorted values, at even
    strides, as make 64 an image.

    Args:
        layers: module paths of BatchNorm layers; all if None.

    Raises:
        DataError: no images, pixels that are not finite, or images that make the network overflow.
        TeacherError: no such BatchNorm layer, none at all, or images of another size.
    """
    memory, least = remembered(teacher), _guarded_variance(teacher)
    layers = teacher.batch_norms if layers is None else tuple(layers)
    batches = list(layer_inputs(teacher, layers, images, _thinned))
    found = {}
    for layer in layers:
        part = memory.layout.slice_of(layer)
        values = torch.cat([batch[layer] for batch in batches], dim=-1)
        if not torch.isfinite(values).all():
            raise DataError(f"the images make {teacher.name!r} overflow before {layer!r}, try images.clamp(0, 1)")
        distances = wasserstein_to_gaussian(values, memory.mean[part], least[part].sqrt())
        found[layer] = float(distances.mean())
    return found


def statistics_variance(
    teacher: Teacher, images: ImageSource | Float[Tensor, "n c h w"]
) -> dict[str, StatisticsVariance]:
    """How much the mean and the std of single images vary in each BatchNorm layer's input (DSG, section 3.2.2, Fig. 6).

    Of one image both are 0. A remembered variance below the layer's eps counts as eps.

    Raises:
        DataError: no images, pixels that are not finite, or images that make the network overflow.
        TeacherError: no BatchNorm layer, or images of another size.
    """
    found, unit = sample_statistics(teacher, images), _guarded_variance(teacher)
    of_mean = found.mean.var(0, correction=0) / unit
    of_std = found.var.clamp(min=0).sqrt().var(0, correction=0) / unit
    parts = {layer: found.layout.slice_of(layer) for layer in found.layout.names}
    return {
        layer: StatisticsVariance(float(of_mean[part].mean()), float(of_std[part].mean()))
        for layer, part in parts.items()
    }


def similarity_index(features: Float[Tensor, "n *rest"]) -> float:
    """The mean cosine between two different samples, -1 / (n - 1)..1: 1 where all point one way, 0 where independent.

    DSG's index s (section 4.3.1, Fig. 7) sums the kernel K of all pairs, a sample with itself among them, so it grows
    with n. This is the mean over the pairs i ≠ j, which does not: `(s - trace K) / (n (n - 1))`. A sample of zeros has
    no direction and is similar to none.

    Args:
        features: a row a sample, flattened: images, or what a teacher makes of them.

    Raises:
        DataError: fewer than two samples, or features that are not finite.

    >>> similarity_index(torch.tensor([[1.0, 0], [0, 3], [0, 1]]))
    0.333...
    """
    if len(features) < 2:
        raise DataError(f"{len(features)} samples make no pair, expected at least two")
    rows = _directions(features)
    count = len(rows)
    return float(rows.sum(0).square().sum() - rows.square().sum()) / (count * (count - 1))


def similarity_sum(features: Float[Tensor, "n *rest"]) -> float:
    """DSG's own index, `s = sum over i, j of K_ij` with the kernel K of cosines (section 4.3.1, Fig. 7), 0..n².

    Raises:
        DataError: no samples, or features that are not finite.

    >>> similarity_sum(torch.tensor([[1.0, 0], [0, 3], [0, 1]]))
    5.0...
    """
    if len(features) == 0:
        raise DataError("no samples")
    return float(_directions(features).sum(0).square().sum())


def _below(share: Tensor) -> Tensor:
    """`∫ Φ⁻¹` from 0 to a share: -φ(Φ⁻¹(share))."""
    return -torch.exp(-0.5 * torch.special.ndtri(share).square()) / math.sqrt(2 * math.pi)


def _thinned(x: Tensor) -> Tensor:
    """(n, channels, positions) to (channels, values): all, or sorted and at even strides, 64 an image."""
    count, channels, positions = x.shape
    values = x.transpose(0, 1).reshape(channels, -1)
    kept = count * min(positions, _VALUES_AN_IMAGE)
    if kept == values.shape[1]:
        return values.clone()
    chosen = (2 * torch.arange(kept, device=x.device) + 1) * values.shape[1] // (2 * kept)
    return values.sort(-1).values[:, chosen]


def _guarded_variance(teacher: Teacher) -> Tensor:
    memory = remembered(teacher)
    least = [float(getattr(teacher.module.get_submodule(name), "eps", 0.0)) for name in memory.layout.names]
    floors = [torch.full((n,), max(eps, _LEAST_VARIANCE)) for n, eps in zip(memory.layout.channels, least, strict=True)]
    return torch.maximum(memory.var.double(), torch.cat(floors).to(memory.var.device, torch.float64))


def _directions(features: Tensor) -> Tensor:
    rows = features.detach().flatten(1).double() if features.dim() > 1 else features.detach().double()[:, None]
    if not torch.isfinite(rows).all():
        raise DataError("features must be finite, got NaN or infinity")
    length = rows.norm(dim=1, keepdim=True)
    return torch.where(length > 0, rows / length.where(length > 0, 1.0), 0.0)
