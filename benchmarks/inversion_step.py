"""One step of an inversion: dfqlab's, next to the same step with forward hooks, mean() and var().

    python -m benchmarks.inversion_step        # ResNet-20, 128 images, float32; on the GPU where there is one

All compute the same loss (ZeroQ, eq. 2) from the same images, in turn within each round. With $DFQLAB_DATA the teacher
is the trained one, else an untrained one: a step costs the same. Writes benchmarks/results/inversion_step.json, or
inversion_step.json in the folder that $DFQLAB_BENCH_RESULTS names; one entry for each device.
"""

import copy
import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dfqlab
import dfqlab_kernels
from dfqlab.checkpoints import write_json
from dfqlab.objective import Objective
from dfqlab.statistics import ObservedTeacher
from dfqlab.synthesis import inversion
from dfqlab.synthesis.plan import generator_for, plan_for
from dfqlab.synthesis.terms import Alignment
from dfqlab.teachers.cifar_networks import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_SIZE, CIFAR10_STD, resnet20
from dfqlab_kernels.bench.machine import results_folder, this_machine
from dfqlab_kernels.bench.timing import Stopwatch, captured, launches, quiet

RESULTS = Path(__file__).parent / "results"
BATCH, STEPS, LEARNING_RATE = 128, 500, 0.1  # STEPS decides whether dfqlab compiles; a few of them are measured
HOOKS, OURS = "hooks", "dfqlab"
EPSILON = Alignment().epsilon

LossOf = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure the steps on this machine."""
    quiet()
    machine = this_machine()
    path = results_folder(RESULTS) / "inversion_step.json"
    known = json.loads(path.read_text())["devices"] if path.exists() else {}
    rounds = Stopwatch(machine.kind, rounds=40, fewest=15, seconds=60)
    result = measure(resnet20_teacher(machine.kind), BATCH, rounds)
    facts = {"device": machine.as_dict(), "versions": machine.versions, "code": machine.code}
    known[machine.slug] = {**facts, **result, "date": date.today().isoformat()}
    write_json(path, {"devices": known})
    for name, time in result["times"].items():
        ratio = result["times"][HOOKS]["median"] / time["median"]
        print(f"{name:<44}{1e3 * time['median']:>9.1f} ms  {ratio:>5.2f} times as fast as {HOOKS}")


def resnet20_teacher(device: str) -> dfqlab.Teacher:
    """ResNet-20 on CIFAR-10, trained where there are weights."""
    if folder := os.environ.get("DFQLAB_DATA"):
        checkpoint = Path(folder) / "cifar10" / "resnet20.safetensors"
        return dfqlab.load_teacher("cifar10/resnet20", checkpoint=checkpoint, device=device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = resnet20().to(device)
    return dfqlab.Teacher.from_module(
        module,
        size=CIFAR10_SIZE,
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        classes=CIFAR10_CLASSES,
        name="untrained resnet20",
    )


def measure(teacher: dfqlab.Teacher, batch: int, stopwatch: Stopwatch) -> dict[str, Any]:
    """The time of every step that works, and the loss that each begins with."""
    steps = steps_of(teacher, batch)
    gpu = stopwatch.kind == "cuda"
    losses = {name: step() for name, step in steps.items()}
    measured = stopwatch.measure(steps, "wall")
    result = {"teacher": teacher.name, "batch": batch, "losses": losses}
    result |= {"times": measured.times, "failed": measured.failed}
    if gpu:
        result["launches"] = {name: launches(steps[name]) for name in measured.times}
        gradient = gradient_of(teacher, batch)
        result["captured gradient"] = stopwatch.measure({"replayed": captured(gradient), "launched": gradient}).times
    return result


def steps_of(teacher: dfqlab.Teacher, batch: int) -> dict[str, Callable[[], float]]:
    """One step of Adam by each way of writing it; returns the loss before the step."""
    with dfqlab_kernels.backend("reference"):
        definition = _ours(teacher, batch, compiled=True)
    steps = {
        HOOKS: _Direct(teacher, batch, Hooked(teacher)).step,
        "hooks, parameters frozen": _Direct(teacher, batch, Hooked(teacher, frozen=True)).step,
        "hooks, parameters frozen, torch.compile": _Direct(
            teacher, batch, torch.compile(Hooked(teacher, frozen=True), dynamic=False)
        ).step,
        "dfqlab without torch.compile": _ours(teacher, batch, compiled=False),
        OURS: _ours(teacher, batch, compiled=plan_for([teacher], steps=STEPS).compiled),
    }
    if teacher.device.type == "cuda":
        steps["dfqlab, torch.compile"] = _ours(teacher, batch, compiled=True)
        steps["dfqlab's definitions, torch.compile"] = _with_definitions(definition)
    return steps


class Hooked(nn.Module):
    """The loss as scripts write it: hooks on BatchNorm, mean() and var(), and parameters that want gradients too."""

    def __init__(self, teacher: dfqlab.Teacher, *, frozen: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(teacher.module).eval().requires_grad_(not frozen)
        self.found: list[tuple[Tensor, Tensor]] = []
        self.norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.register_forward_hook(self._observe)

    def _observe(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.found.append((args[0].mean([0, 2, 3]), args[0].var([0, 2, 3], unbiased=False)))

    def forward(self, x: Tensor) -> Tensor:
        """ZeroQ, eq. 2, on normalised images, which shall have mean 0 and variance 1 themselves."""
        self.found.clear()
        self.network(x)
        loss = self._distance(x.mean([0, 2, 3]), x.var([0, 2, 3], unbiased=False), x.new_tensor(0.0), x.new_tensor(1.0))
        for (mean, var), norm in zip(self.found, self.norms, strict=True):
            loss = loss + self._distance(mean, var, norm.running_mean, norm.running_var)
        return loss

    def _distance(self, mean: Tensor, var: Tensor, target_mean: Tensor, target_var: Tensor) -> Tensor:
        off = torch.sqrt(var + EPSILON) - torch.sqrt(target_var + EPSILON)
        return (mean - target_mean).square().sum() + off.square().sum()


class _Direct:
    """The loop around it."""

    def __init__(self, teacher: dfqlab.Teacher, batch: int, loss_of: nn.Module) -> None:
        x = torch.randn(batch, *teacher.input.size, generator=generator_for(0, 0))
        self.loss_of, self.x = loss_of, x.to(teacher.device).requires_grad_()
        self.optimizer = torch.optim.Adam([self.x], lr=LEARNING_RATE)

    def step(self) -> float:
        self.optimizer.zero_grad()
        self.loss_of.zero_grad()
        loss = self.loss_of(self.x)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def _ours(teacher: dfqlab.Teacher, batch: int, *, compiled: bool) -> Callable[[], float]:
    """What `dfqlab.synthesis.inversion.invert` does at every step."""
    loss_of: Any = inversion._Loss(
        [ObservedTeacher(teacher)], [Objective(alignment=Alignment()).prepare(teacher, seed=0)]
    )
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)
    run = inversion._BatchRun(teacher, batch, LEARNING_RATE, inversion.Plateau(), generator_for(0, 0))
    return lambda: run.step(loss_of)["loss"]


def _with_definitions(step: Callable[[], float]) -> Callable[[], float]:
    def with_definitions() -> float:
        with dfqlab_kernels.backend("reference"):
            return step()

    return with_definitions


def gradient_of(teacher: dfqlab.Teacher, batch: int) -> Callable[[], Tensor]:
    """The gradient of the loss alone, which a CUDA graph can hold."""
    observed, objective = ObservedTeacher(teacher), Objective(alignment=Alignment()).prepare(teacher, seed=0)
    loss_of = inversion._Loss([observed], [objective])
    x = torch.randn(batch, *teacher.input.size, generator=generator_for(0, 0)).to(teacher.device).requires_grad_()
    return lambda: torch.autograd.grad(loss_of(teacher.input.denormalize(x))[0], x)[0]


if __name__ == "__main__":
    main()
