"""How the learning rate falls."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from dfqlab.errors import ConfigurationError


@dataclass(frozen=True)
class Plateau:
    """The rate falls tenfold when the loss has not fallen for `patience` steps, down to `smallest` (ZeroQ's code)."""

    patience: int = 100
    smallest: float = 1e-4

    def start(self, optimizer: torch.optim.Optimizer, steps: int) -> "Rate":
        """Take over the rate of an optimizer for a run."""
        return Rate(ReduceLROnPlateau(optimizer, patience=self.patience, min_lr=self.smallest))


@dataclass(frozen=True)
class Cosine:
    """The rate rises over `warm_up` steps, then falls as half a cosine to zero (MixMix; DeepInversion, with 100)."""

    warm_up: int = 0

    def __post_init__(self) -> None:
        if self.warm_up < 0:
            raise ConfigurationError(f"warm_up={self.warm_up}: expected a number of steps")

    def start(self, optimizer: torch.optim.Optimizer, steps: int) -> "Rate":
        """Take over the rate of an optimizer for a run of `steps`."""

        def share(step: int) -> float:
            if step < self.warm_up:
                return (step + 1) / (self.warm_up + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - self.warm_up) / max(1, steps - self.warm_up)))

        return Rate(LambdaLR(optimizer, share))


@dataclass(frozen=True)
class Constant:
    """The rate stays (DeepInversion on CIFAR-10)."""

    def start(self, optimizer: torch.optim.Optimizer, steps: int) -> "Rate":
        """Leave the rate of an optimizer as it is."""
        return Rate(LambdaLR(optimizer, lambda step: 1.0))


Schedule = Plateau | Cosine | Constant


class Rate:
    """The learning rate of a run on its way."""

    def __init__(self, scheduler: ReduceLROnPlateau | LambdaLR) -> None:
        self.scheduler = scheduler

    def step(self, loss: float) -> None:
        """Set the rate of the next step, after a step that began with this loss."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        else:
            self.scheduler.step()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON can hold it."""
        state = {k: v for k, v in self.scheduler.state_dict().items() if isinstance(v, int | float | list)}
        infinite = {k: repr(v) for k, v in state.items() if isinstance(v, float) and not math.isfinite(v)}
        return {"values": {k: v for k, v in state.items() if k not in infinite}, "infinite": infinite}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        values = state["values"] | {k: float(v) for k, v in state["infinite"].items()}
        self.scheduler.load_state_dict(self.scheduler.state_dict() | values)
        for group, rate in zip(self.scheduler.optimizer.param_groups, values["_last_lr"], strict=True):
            group["lr"] = rate
