"""One batch on its way from noise to images, and how it goes."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.objective import Objective
from dfqlab.synthesis.augmentation import Augmentation
from dfqlab.synthesis.mixing import DataMixing, draw_teachers
from dfqlab.synthesis.schedules import Schedule
from dfqlab.synthesis.zoo import Zoo

Clip = Literal["never", "each step", "at the end"]
_FARTHEST = math.log(100)  # how far a learned weight may go from the given one


@dataclass(frozen=True)
class Descent:
    """How pixels are optimised, with Adam.

    Attributes:
        steps: for each batch.
        learning_rate: in normalised space.
        schedule: of the learning rate.
        betas: of Adam.
        coarse_steps: so many of the steps come first and see the images at half resolution, two by two pixels averaged;
            then Adam and the schedule start over (DeepInversion's code).
        augmentation: what happens to the images before the teachers see them.
        mixing: of images and labels, or None (MixMix).
        teachers_per_batch: how many of the zoo are drawn for each batch; None takes all (MixMix's m').
        clip: to the range of valid pixels: after each step (DeepInversion, MixMix), once at the end, or never (ZeroQ).
        learned_weights: let each term's weight move with the descent, up to a hundredfold from the objective's.
    """

    steps: int
    learning_rate: float
    schedule: Schedule
    betas: tuple[float, float] = (0.9, 0.999)
    coarse_steps: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixing: DataMixing | None = None
    teachers_per_batch: int | None = None
    clip: Clip = "never"
    learned_weights: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigurationError(f"steps={self.steps!r}: expected an integer of at least 1")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ConfigurationError(f"learning_rate={self.learning_rate}: expected a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigurationError(f"betas={self.betas}: expected two numbers in [0, 1)")
        if not isinstance(self.coarse_steps, int) or not 0 <= self.coarse_steps < self.steps:
            raise ConfigurationError(f"coarse_steps={self.coarse_steps}: expected fewer than the {self.steps} steps")
        if self.clip not in ("never", "each step", "at the end"):
            raise ConfigurationError(f"clip={self.clip!r}: choose 'never', 'each step' or 'at the end'")


class NotFinite(Exception):
    """The loss or the images are no numbers any more."""


class LearnedWeights:
    """Weights of terms that move with the descent: `sum over terms i of exp(-s_i) w_i L_i + s_i`, s learned.

    Where `exp(s_i) = w_i L_i` nothing is gained by another weight (Kendall et al. 2018, eq. 7): a weight falls while
    its term is large, and `+ s_i` keeps it from falling to zero, where descent on a bare factor would take it.
    `s = log(100) tanh(t)`: no weight goes farther than a hundredfold from what it was given.
    """

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.objective = objective
        self.t = torch.zeros(len(objective.weights), device=device).requires_grad_()

    def total(self, values: dict[str, Tensor]) -> Tensor:
        s = _FARTHEST * torch.tanh(self.t)
        given = torch.stack([self.objective.weights[name] * values[name] for name in self.objective.weights])
        return ((-s).exp() * given + s).sum()


class BatchDescent:
    """One batch on its way from noise to images: state, a step, and what a checkpoint must hold of it."""

    def __init__(
        self, zoo: Zoo, objective: Objective, how: Descent, labels: Tensor | None, size: int, generator: torch.Generator
    ) -> None:
        first = zoo.teachers[0]
        self.zoo, self.objective, self.how, self.generator = zoo, objective, how, generator
        self.spec, self.classes = first.input, len(first.classes)
        self.labels = None if labels is None else labels.to(first.device)
        self.x = torch.randn(size, *self.spec.size, generator=generator).to(first.device).requires_grad_()
        self.learned = LearnedWeights(objective, first.device) if how.learned_weights else None
        self.teachers = draw_teachers(len(zoo.teachers), how.teachers_per_batch, generator)
        self.bounds = [(self.spec.normalize(torch.full_like(self.x[:1, :, :1, :1], end))).detach() for end in (0, 1)]
        self.index = 0
        self.clipped = False
        self._last_finite = self.x.detach().clone()
        self._start_stage()

    def step(self) -> dict[str, float]:
        """One step of Adam; returns the loss and its terms before the step.

        Raises:
            NotFinite: the loss, or what a step makes of the images, is no number.
        """
        if self.index and self.index == self.how.coarse_steps:
            self._start_stage()
        self.optimizer.zero_grad(set_to_none=True)
        values = self._values()
        loss = self.objective.total(values) if self.learned is None else self.learned.total(values)
        read = torch.stack([loss, *values.values()]).tolist()  # one wait for the device
        told = dict(zip(("loss", *values), read, strict=True))
        if not math.isfinite(told["loss"]):
            term = next((name for name in values if not math.isfinite(told[name])), "loss")
            raise NotFinite(f"the loss became {told[term]}, through term {term!r}")
        self._last_finite = self.x.detach().clone()
        loss.backward()
        self.optimizer.step()
        if not bool(torch.isfinite(self.x).all()):
            raise NotFinite("the images became NaN or infinite: the loss is a number, its gradient is none")
        if self.how.clip == "each step":
            self._clip()
        self.rate.step(told["loss"])
        self.index += 1
        if self.index == self.how.steps and self.how.clip == "at the end":
            self._clip()
        return told

    def images(self) -> Tensor:
        """A copy of the images as they are now, in pixel units."""
        return self._pixels(self.x.detach())

    def last_finite(self) -> Tensor:
        """The images of the last step that began with a loss that was a number."""
        return self._pixels(self._last_finite)

    def _pixels(self, x: Tensor) -> Tensor:
        images = self.spec.denormalize(x).cpu()
        return images.clamp(0, 1) if self.clipped else images  # what the way back to pixels has rounded past their ends

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts from which a run of the same job goes on as if it had never stopped."""
        tensors = {"x": self.x.detach(), "generator": self.generator.get_state()}
        if self.learned is not None:
            tensors["learned"] = self.learned.t.detach()
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in values.items()}
        return tensors, {"index": self.index, "clipped": self.clipped, "rate": self.rate.state()}

    def resume(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from a state."""
        self.index, self.clipped = int(facts["index"]), bool(facts["clipped"])
        self.generator.set_state(tensors["generator"])
        with torch.no_grad():
            self.x.copy_(tensors["x"])
            if self.learned is not None:
                self.learned.t.copy_(tensors["learned"])
        self._start_stage()
        adam = self.optimizer.state_dict()
        for key, tensor in tensors.items():
            if key.startswith("adam."):
                _, number, name = key.split(".", 2)
                adam["state"].setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict(adam)
        self.rate.resume(facts["rate"])
        self._last_finite = self.x.detach().clone()

    def _start_stage(self) -> None:
        coarse = self.index < self.how.coarse_steps
        steps = self.how.coarse_steps if coarse else self.how.steps - self.how.coarse_steps
        learned = [] if self.learned is None else [self.learned.t]
        self.optimizer = torch.optim.Adam([self.x, *learned], lr=self.how.learning_rate, betas=self.how.betas)
        self.rate = self.how.schedule.start(self.optimizer, steps)

    def _values(self) -> dict[str, Tensor]:
        """Every term: teachers see the images augmented and mixed, priors see them as they are."""
        images = self.spec.denormalize(self.x)
        shown = self.how.augmentation(images, self.generator)
        if self.index < self.how.coarse_steps:
            shown = F.avg_pool2d(shown, 2)
        labels = self.labels
        if self.how.mixing is not None:
            shown, labels = self.how.mixing(shown, labels, self.classes, self.generator)
        return {**self.zoo(shown, labels, self.teachers), **self.objective.of_images(self.x)}

    def _clip(self) -> None:
        with torch.no_grad():
            self.x.clamp_(*self.bounds)
        self.clipped = True
