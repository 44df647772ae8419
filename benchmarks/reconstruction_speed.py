"""An iteration of BRECQ: dfqlab's, next to the same schedule as scripts write it; and a whole job.

    python -m benchmarks.reconstruction_speed        # an iteration of every block of ResNet-20, in turn
    python -m benchmarks.reconstruction_speed job    # 256 images, 2,000 iterations a block

With $DFQLAB_DATA the network is the trained one. Images are noise: an iteration costs the same. Writes
benchmarks/results/reconstruction_speed.json, or that file in the folder that $DFQLAB_BENCH_RESULTS names; one entry for
each device.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from benchmarks.direct_reconstruction import SoftConv, direct
from benchmarks.image_sets import cpu_seconds
from benchmarks.inversion_step import resnet20_teacher
from dfqlab.checkpoints import write_json
from dfqlab.compression.calibration import calibrate
from dfqlab.compression.execution import run
from dfqlab.compression.insertion import prepare
from dfqlab.compression.learning import Passing, SoftRounding, learn_rounding
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.reconstruction import brecq, units_of
from dfqlab.compression.rounding import weight_scales
from dfqlab.compression.spec import QuantizationSpec, Reconstruction
from dfqlab.images import Noise
from dfqlab_kernels.bench.machine import results_folder, this_machine
from dfqlab_kernels.bench.timing import Stopwatch, quiet

RESULTS = Path(__file__).parent / "results"
IMAGES, ITERATIONS = 256, 2000
OURS, DIRECT = "dfqlab", "written directly"


def main() -> None:
    """Measure iterations, or a job, on this machine."""
    quiet()
    machine = this_machine()
    path = results_folder(RESULTS) / "reconstruction_speed.json"
    known = json.loads(path.read_text())["devices"] if path.exists() else {}
    origin = {"versions": machine.versions, "code": machine.code, "date": date.today().isoformat()}
    entry = {"device": machine.as_dict(), **known.get(machine.slug, {})}
    prepared = ready(machine.kind)
    part = "job" if sys.argv[1:] == ["job"] else "iterations"
    measured = job(prepared) if part == "job" else iterations(prepared, machine.kind)
    entry[part] = measured | origin
    write_json(path, {"devices": known | {machine.slug: entry}})
    print(json.dumps(measured, indent=2))
    print("python -m benchmarks.render rewrites benchmarks/README.md")


def ready(kind: str, images: int = IMAGES) -> PreparedNetwork:
    """ResNet-20 at W4A4, calibrated."""
    settings = Reconstruction(iterations=ITERATIONS)
    prepared = prepare(
        resnet20_teacher(kind), QuantizationSpec(4, 4, rounding="brecq", ends=8, reconstruction=settings)
    )
    calibrate(prepared, noise(prepared, images))
    return prepared


def noise(prepared: PreparedNetwork, images: int = IMAGES) -> Noise:
    """Images that take no time to make."""
    return Noise(prepared.teacher.input, images, 0, clipped=True)


def iterations(prepared: PreparedNetwork, kind: Any, stopwatch: Stopwatch | None = None) -> dict[str, Any]:
    """Seconds of an iteration of each block, each way in turn, and of all blocks together."""
    stopwatch = stopwatch or Stopwatch(kind, rounds=60, fewest=20, seconds=20, flush=0, run_up=1)
    blocks = {}
    for passing in units_of(prepared, noise(prepared, min(IMAGES, 64))):
        ways = {OURS: _ours(prepared, passing), DIRECT: _direct(prepared, passing)}
        measured = stopwatch.measure(ways, "wall")
        assert not measured.failed, measured.failed
        blocks[passing.unit.name] = measured.times
    together = {way: sum(times[way]["median"] for times in blocks.values()) for way in (OURS, DIRECT)}
    return {"blocks": blocks, "together": together}


def job(prepared: PreparedNetwork) -> dict[str, Any]:
    """BRECQ from images to rounded weights and steps: seconds, CPU seconds."""
    before, start = cpu_seconds(), time.perf_counter()
    brecq(prepared, noise(prepared))
    return {"seconds": time.perf_counter() - start, "cpu seconds": cpu_seconds() - before, "iterations": ITERATIONS}


def _ours(prepared: PreparedNetwork, passing: Passing) -> Callable[[], dict[str, float]]:
    rounding = SoftRounding(prepared, passing.unit.layers, weight_scales(prepared))
    settings = Reconstruction(iterations=10**6, warm_up=0.0)
    learning: Iterator[dict[str, float]] = learn_rounding(
        prepared, passing, rounding, None, settings, torch.Generator().manual_seed(0)
    )
    return lambda: next(learning)


def _direct(prepared: PreparedNetwork, passing: Passing) -> Callable[[], float]:
    scales = weight_scales(prepared)
    layers = {
        path: SoftConv(
            prepared.weights[path], scales[path], prepared.grids[path].quant_min, prepared.grids[path].quant_max
        )
        for path in passing.unit.layers
    }

    def block(x: Tensor) -> Tensor:
        values: dict[fx.Node, Any] = {passing.unit.entry: x}
        for node in passing.unit.nodes:
            if str(node.target) in layers:
                values[node] = layers[str(node.target)](values[node.args[0]])  # type: ignore[index]
            else:
                run(prepared, [node], values, {}, None)
        found: Tensor = values[passing.unit.exit]
        return found

    entry, target = (torch.cat(rows.parts).contiguous() for rows in (passing.entry, passing.target))
    return direct(block, list(layers.values()), entry, target, Reconstruction(iterations=10**6, warm_up=0.0))


if __name__ == "__main__":
    main()
