"""Train a teacher from images and labels that somebody hands in: here is where real data ends."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dfqlab.progress import OnStep, Step, ignore
from dfqlab.teachers.teacher import InputSpec


@dataclass(frozen=True)
class TrainingSettings:
    """How a teacher is trained: SGD with momentum, one cycle of cosine, small shifts of the images.

    Attributes:
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: the largest, reached after a tenth of the steps.
        weight_decay: of every parameter.
        shift: images move by up to so many pixels, filled with black.
        label_smoothing: share of each label spread over all classes.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    shift: int = 1
    label_smoothing: float = 0.0


def train(
    module: nn.Module,
    spec: InputSpec,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    *,
    settings: TrainingSettings,
    seed: int,
    on_step: OnStep = ignore,
) -> nn.Module:
    """Initialise and train the module in place, and return it in eval mode. The same seed gives the same weights.

    Args:
        module: takes normalised images, returns logits.
        spec: normalisation of the images.
        images, labels: pixel units 0..1, class indices.
        settings: see TrainingSettings.
        seed: of initialisation, order and shifts.
        on_step: called after every epoch with its mean loss.
    """
    generator = torch.Generator().manual_seed(seed)
    _initialise(module, generator)
    steps = settings.epochs * math.ceil(len(images) / settings.batch_size)
    optimizer = torch.optim.SGD(
        module.parameters(), settings.learning_rate, 0.9, weight_decay=settings.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step / steps))
    module.train()
    for epoch in range(settings.epochs):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(settings.batch_size):
            batch = spec.normalize(_shifted(images[chosen], settings.shift, generator))
            loss = F.cross_entropy(module(batch), labels[chosen], label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        on_step(Step("train", epoch + 1, settings.epochs, {"loss": total / len(images)}))
    return module.eval()


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """He initialisation from one generator, so that nothing depends on the global one."""
    for child in module.modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d):
            child.reset_parameters()


def _one_cycle(progress: float) -> float:
    return progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def _shifted(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    if shift == 0:
        return images
    height, width = images.shape[2:]
    padded = F.pad(images, (shift,) * 4)
    corners = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)])
