"""What images are worth to a network: its accuracy after they set its ranges, executed by onnxruntime."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import dfqlab
from dfqlab.deployment import OnnxModel
from dfqlab.images import ImageSource
from dfqlab.measures import paired_difference, wilson

Width = tuple[int, int]

RULES = ("minmax", "mse")  # where ranges come from; which rule matters as much as which images
WIDTHS: tuple[Width, ...] = ((4, 4), (8, 3), (4, 3), (3, 3))  # weights, activations: bits


def right(model: OnnxModel | dfqlab.CompressedModel | dfqlab.Teacher, test: dfqlab.LabelledImages) -> Tensor:
    """1.0 for each image whose class the model names."""
    return dfqlab.evaluate(model, test).correct.double()


def quantized(
    teacher: dfqlab.Teacher, images: ImageSource, width: Width, rule: str, **more: Any
) -> dfqlab.CompressedModel:
    """The teacher, with ranges from images; further settings are those of `dfqlab.quantize`."""
    return dfqlab.quantize(teacher, images, weights=width[0], activations=width[1], calibration=rule, **more)


def quantized_right(
    teacher: dfqlab.Teacher,
    images: ImageSource,
    width: Width,
    test: dfqlab.LabelledImages,
    rule: str = "mse",
    **more: Any,
) -> Tensor:
    """`right` of it, executed on as many threads as torch has: others may be at work beside it."""
    model = quantized(teacher, images, width, rule, **more)
    return right(OnnxModel.of(model, threads=torch.get_num_threads()), test)


def separating_width(accuracy: Callable[[str, Width], float], floor: float) -> Width:
    """The width at which real images are worth most beside clipped noise, of those where they keep some accuracy.

    No synthetic images are asked, so that the choice favours none of them.

    Args:
        accuracy: of "real" or "clipped noise" at a width, with a seed that nothing is reported of.
        floor: the least accuracy of real images at a width that may be chosen; W4A4 if there is none.
    """

    def gain(width: Width) -> float:
        real = accuracy("real", width)
        return real - accuracy("clipped noise", width) if real >= floor else -2.0

    return max(WIDTHS, key=gain)


def summary(by_seed: Sequence[Tensor]) -> dict[str, Any]:
    """Accuracy of each seed, and the mean with the interval of the images; Wilson's where there is one seed."""
    if len(by_seed) == 1:
        return {"by_seed": [float(by_seed[0].mean())], **vars(wilson(int(by_seed[0].sum()), len(by_seed[0])))}
    mean = difference(torch.stack(list(by_seed)).mean(0), torch.zeros_like(by_seed[0]))
    return {"by_seed": [float(r.mean()) for r in by_seed], **mean}


def difference(a: Tensor, b: Tensor) -> dict[str, float]:
    """The mean of a - b over images, with its interval."""
    return vars(paired_difference(a, b))


def mean_difference(right_of: Mapping[str, Sequence[Tensor]], a: str, b: str) -> dict[str, float]:
    """`difference` of two sources, each averaged over its seeds first."""
    return difference(torch.stack(list(right_of[a])).mean(0), torch.stack(list(right_of[b])).mean(0))


def label(width: Width) -> str:
    """W4A4."""
    return "W{}A{}".format(*width)
