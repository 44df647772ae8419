"""One step of an inversion: dfqlab's, next to the same step as scripts write it.

    python -m benchmarks.inversion_step        # ResNet-20, 128 images; on the GPU where there is one
    python -m benchmarks.inversion_step jobs   # whole jobs, compilation included, and how soon a short one starts
    python -m benchmarks.inversion_step zoo    # 256 MixMix images of three CIFAR-10 networks; needs $DFQLAB_DATA

Two recipes, `zeroq` and `deepinversion`. All ways of writing one compute the same loss from the same images, in turn
within each round. With $DFQLAB_DATA the teacher is the trained one, else an untrained one: a step costs the same.
Writes benchmarks/results/inversion_step.json, or inversion_step.json in the folder that $DFQLAB_BENCH_RESULTS names;
one entry for each device.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dfqlab
import dfqlab_kernels
from benchmarks.direct_inversion import DIRECT, DirectLoss
from dfqlab.checkpoints import write_json
from dfqlab.recipes.deepinversion import DeepInversion
from dfqlab.recipes.zeroq import ZeroQ
from dfqlab.synthesis import plan as planning
from dfqlab.synthesis.descent import BatchDescent
from dfqlab.synthesis.plan import Execution, Plan, generator_for, plan_for
from dfqlab.synthesis.zoo import Zoo
from dfqlab.teachers.cifar_networks import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_SIZE, CIFAR10_STD, resnet20
from dfqlab_kernels.bench.machine import results_folder, this_machine
from dfqlab_kernels.bench.timing import Stopwatch, captured, launches, quiet

RESULTS = Path(__file__).parent / "results"
BATCH, STEPS = 128, 500
HOOKS, COMPILED_HOOKS = "hooks", "hooks, parameters frozen, torch.compile"
OURS, HALF, EAGER = "dfqlab, float32", "dfqlab, bfloat16", "dfqlab, float32, not compiled"
CAPTURED = "dfqlab, float32, a CUDA graph"
RECIPES: dict[str, ZeroQ | DeepInversion] = {"zeroq": ZeroQ(steps=STEPS), "deepinversion": DeepInversion(steps=STEPS)}
IMAGES_OF_A_ZOO, STEPS_OF_A_ZOO = 256, 1000
FEW, SHORT = 12, 40  # steps of a job that are timed after the first, and of a job that is too short to compile


def main() -> None:
    """Measure the steps, or whole jobs, on this machine."""
    quiet()
    machine = this_machine()
    path = results_folder(RESULTS) / "inversion_step.json"
    known = json.loads(path.read_text())["devices"] if path.exists() else {}
    origin = {"versions": machine.versions, "code": machine.code, "date": date.today().isoformat()}
    facts = {"device": machine.as_dict(), "batch": BATCH, **origin}
    entry = facts | known.get(machine.slug, {})  # each part says of itself when it was measured, and of what code

    def write() -> None:
        write_json(path, {"devices": known | {machine.slug: entry}})

    if sys.argv[1:] == ["zoo"]:
        entry["zoo"] = _in_a_process("zoo_job()") | origin
        print(json.dumps(entry["zoo"], indent=2))
    elif sys.argv[1:] == ["jobs"]:
        entry["jobs"] = {recipe: jobs(recipe) | origin for recipe in RECIPES}
        print(json.dumps(entry["jobs"], indent=2))
    else:
        entry |= facts | {"recipes": {}}
        teacher = resnet20_teacher(machine.kind)
        rounds = Stopwatch(machine.kind, rounds=40, fewest=15, seconds=90, flush=0, run_up=1)  # a step after one
        for recipe in RECIPES:
            entry["recipes"][recipe] = result = measure(recipe, teacher, BATCH, rounds)
            write()
            for name, taken in result["times"].items():
                ratio = result["times"][HOOKS]["median"] / taken["median"]
                print(f"{recipe:<14}{name:<44}{1e3 * taken['median']:>9.1f} ms  {ratio:>5.2f} times as fast as {HOOKS}")
    write()
    print("python -m benchmarks.render rewrites benchmarks/README.md")


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


def measure(recipe: str, teacher: dfqlab.Teacher, batch: int, stopwatch: Stopwatch) -> dict[str, Any]:
    """The time of every step that works, and the loss that each begins with."""
    steps = steps_of(recipe, teacher, batch)
    losses = {name: step() for name, step in steps.items()}
    measured = stopwatch.measure(steps, "wall")
    result = {"teacher": teacher.name, "losses": losses, "times": measured.times, "failed": measured.failed}
    if stopwatch.kind == "cuda":
        result["launches"] = {name: launches(steps[name]) for name in measured.times}
        gradient = gradient_of(recipe, teacher, batch)
        result["captured gradient"] = stopwatch.measure({"replayed": captured(gradient), "launched": gradient}).times
    return result


def steps_of(recipe: str, teacher: dfqlab.Teacher, batch: int) -> dict[str, Callable[[], float]]:
    """One step of Adam by each way of writing it; returns the loss before the step."""
    direct = DIRECT[recipe]
    plan = plan_for([teacher], steps=STEPS, count=batch)
    eager, compiled, half = (
        replace(plan, networks=(Execution(dtype, compiled),))
        for dtype, compiled in (("float32", False), ("float32", True), ("bfloat16", True))
    )
    steps = {
        HOOKS: _direct(recipe, teacher, batch, direct(teacher)),
        "hooks, parameters frozen": _direct(recipe, teacher, batch, direct(teacher, frozen=True)),
        EAGER: _ours(recipe, teacher, batch, eager),
    }
    if not planning.missing_for_compile():
        frozen = torch.compile(direct(teacher, frozen=True), dynamic=False)
        steps[COMPILED_HOOKS] = _direct(recipe, teacher, batch, frozen)
        steps[OURS] = _ours(recipe, teacher, batch, compiled)
        steps[HALF] = _ours(recipe, teacher, batch, half)
    if teacher.device.type == "cuda":
        replayed = replace(plan, networks=(Execution("float32", compiled=False, captured=True),))
        steps[CAPTURED] = _ours(recipe, teacher, batch, replayed)
        steps["dfqlab's definitions, torch.compile"] = _with_definitions(_ours(recipe, teacher, batch, compiled))
    return steps


def jobs(recipe: str) -> dict[str, Any]:
    """Seconds of a whole job by the clock, each in a process of its own, with nothing compiled before.

    "whole": imports aside, `dfqlab.synthesize` of 128 images in 500 steps as its plan says, compilation included.
    "direct": as many steps as scripts write them, from the time of a few. "short starts": until the first step of a job
    of 40 steps is done; "short" and "short direct": such a step.
    """
    found: dict[str, Any] = {}
    for kind in ("whole", "direct", "short"):
        found |= _in_a_process(f"one_job({recipe!r}, {kind!r})")
    return found


def _in_a_process(call: str) -> dict[str, Any]:
    """What a function of this module prints in a process of its own, in which nothing was compiled before."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
        command = [sys.executable, "-c", f"from benchmarks import inversion_step; inversion_step.{call}"]
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def one_job(recipe: str, kind: str) -> None:
    """What `jobs` runs in a process; prints seconds by name."""
    teacher = resnet20_teacher("cpu")
    if kind == "direct":
        step = _direct(recipe, teacher, BATCH, DIRECT[recipe](teacher))
        step()
        print(json.dumps({"direct": STEPS * _per_step(step), "short direct": _per_step(step)}))
        return
    steps = STEPS if kind == "whole" else SHORT
    ends: list[float] = []
    start = time.perf_counter()
    made = dfqlab.synthesize(
        teacher, recipe, count=BATCH, seed=0, steps=steps, on_step=lambda step: ends.append(time.perf_counter())
    )
    taken = time.perf_counter() - start
    if kind == "whole":
        (how,) = made.plan["networks"]
        print(json.dumps({"whole": taken, "compiled": how["compiled"], "dtype": how["dtype"]}))
    else:
        print(json.dumps({"short starts": ends[0] - start, "short": (ends[-1] - ends[0]) / (SHORT - 1)}))


def zoo_job() -> None:
    """256 MixMix images of three CIFAR-10 networks, compilation included; prints seconds, CPU seconds and memory."""
    from benchmarks import zoo  # late: it loads real images, which no other job here needs

    cifar10 = zoo.load("cifar10")
    names = cifar10.without(cifar10.held_out[0])
    start, before = time.perf_counter(), _used()[0]
    made = dfqlab.synthesize(cifar10.of(names), "mixmix", count=IMAGES_OF_A_ZOO, seed=0, steps=STEPS_OF_A_ZOO)
    cpu_seconds, peak = _used()
    found = {
        "networks": names,
        "executed": [Execution(**how).sentence for how in made.plan["networks"]],
        "seconds": time.perf_counter() - start,
        "cpu seconds": cpu_seconds - before,
        "peak GiB": peak,
    }
    print(json.dumps(found))


def _used() -> tuple[float, float]:
    """CPU seconds of this process and its compilers so far, and GiB at the peak of the largest of them."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in each), max(used.ru_maxrss for used in each) / 2**20


def _per_step(step: Callable[[], float]) -> float:
    start = time.perf_counter()
    for _ in range(FEW):
        step()
    return (time.perf_counter() - start) / FEW


def _labels(teacher: dfqlab.Teacher, batch: int) -> Tensor:
    return torch.arange(batch) % len(teacher.classes)


def _direct(recipe: str, teacher: dfqlab.Teacher, batch: int, loss_of: DirectLoss | Any) -> Callable[[], float]:
    """The loop that scripts write around a loss."""
    generator = generator_for(0, 0)
    x = torch.randn(batch, *teacher.input.size, generator=generator).to(teacher.device).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=RECIPES[recipe].learning_rate)
    labels = _labels(teacher, batch).to(teacher.device)

    def step() -> float:
        optimizer.zero_grad()
        loss_of.zero_grad()
        shown = RECIPES[recipe].descent.augmentation(x, generator)
        loss = loss_of(shown, labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def _ours(recipe: str, teacher: dfqlab.Teacher, batch: int, plan: Plan) -> Callable[[], float]:
    """What `dfqlab.synthesis.inversion.invert` does at every step."""
    objective, descent = RECIPES[recipe].objective, replace(RECIPES[recipe].descent, steps=10**9)
    zoo = Zoo([teacher], objective, plan, seed=0)
    run = BatchDescent(zoo, objective, descent, _labels(teacher, batch), batch, generator_for(0, 0))
    return lambda: run.step()["loss"]


def _with_definitions(step: Callable[[], float]) -> Callable[[], float]:
    def with_definitions() -> float:
        with dfqlab_kernels.backend("reference"):
            return step()

    return with_definitions


def gradient_of(recipe: str, teacher: dfqlab.Teacher, batch: int) -> Callable[[], Tensor]:
    """The gradient of the terms that read the teacher, which a CUDA graph can hold."""
    plan = plan_for([teacher], steps=1, count=batch)  # too short to be compiled
    objective = RECIPES[recipe].objective
    zoo = Zoo([teacher], objective, plan, seed=0)
    labels = _labels(teacher, batch).to(teacher.device)
    x = torch.randn(batch, *teacher.input.size, generator=generator_for(0, 0)).to(teacher.device).requires_grad_()
    return lambda: torch.autograd.grad(objective.total(zoo(teacher.input.denormalize(x), labels, (0,))), x)[0]


if __name__ == "__main__":
    main()
