"""ResNet-18 at 224 in two runtimes: float, W8A8, W4A4, and W4A4 as a small file.

    python -m benchmarks.runtime_speed

One image, one thread, all models in turn within each round. The network is torchvision's with random weights, since a
model's time does not depend on them, and BatchNorm statistics of noise; it needs the extras zoo, deploy and openvino.
Writes benchmarks/results/runtime_speed.json, or that file in the folder that $DFQLAB_BENCH_RESULTS names; one entry for
each device.
"""

import json
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dfqlab
from benchmarks.markdown import table
from dfqlab.checkpoints import write_json
from dfqlab.deployment import ExportedModel, OnnxModel, OpenVinoModel, packed
from dfqlab.deployment.export import to_onnx
from dfqlab.evaluation import interleaved
from dfqlab.images import Noise
from dfqlab_kernels.bench.machine import results_folder, this_machine
from dfqlab_kernels.bench.timing import quiet, summary

RESULTS = Path(__file__).parent / "results"
FLOAT, EIGHT, FOUR, SMALL = "float", "W8A8", "W4A4", "W4A4, small file"
RUNTIMES: tuple[type[ExportedModel], ...] = (OnnxModel, OpenVinoModel)
SIZE = (3, 224, 224)
RUNS = 100


def main() -> None:
    """Measure on this machine."""
    quiet()
    machine = this_machine()
    path = results_folder(RESULTS) / "runtime_speed.json"
    known = json.loads(path.read_text())["devices"] if path.exists() else {}
    versions = machine.versions | {name: metadata.version(name) for name in ("onnxruntime", "openvino")}
    entry = {"device": machine.as_dict(), "versions": versions, "date": date.today().isoformat()}
    entry |= measure(resnet18(), RUNS)
    write_json(path, {"devices": known | {machine.slug: entry}})
    print(table(["", *HEADER], rows(entry)))
    print("python -m benchmarks.render rewrites benchmarks/README.md")


def resnet18() -> dfqlab.Teacher:
    """torchvision's network, its BatchNorm layers remembering what noise did to them."""
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = resnet18(weights=None)
    spec: dict[str, Any] = {"size": SIZE, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    teacher = dfqlab.Teacher.from_module(module, **spec, classes=1000, name="untrained resnet18")
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over batches
            layer.reset_running_stats()
    module.train()
    with torch.no_grad():
        for batch in Noise(teacher.input, 32, seed=0, clipped=True).batches(8):
            module(teacher.input.normalize(batch.images))
    return dfqlab.Teacher.from_module(module.eval(), **spec, classes=1000, name=teacher.name)


def measure(teacher: dfqlab.Teacher, runs: int) -> dict[str, Any]:
    """Of each model in each runtime: milliseconds, and how often the runtime's float and W8A8 models take as long.

    Ratios are taken round by round. And the bytes of each file.
    """
    noise = Noise(teacher.input, 8, seed=1, clipped=True)
    files = {FLOAT: to_onnx(teacher)}
    for label, bits in ((EIGHT, 8), (FOUR, 4)):
        model = dfqlab.quantize(teacher, noise, weights=bits, activations=bits, calibration="minmax")
        files[label] = to_onnx(model)
    files[SMALL] = packed(files[FOUR])
    loaded = {(runtime, label): runtime(file, threads=1) for runtime in RUNTIMES for label, file in files.items()}
    taken = dict(zip(loaded, interleaved(list(loaded.values()), next(noise.batches(1)).images, runs=runs), strict=True))
    times: dict[str, dict[str, Any]] = {runtime.runtime: {} for runtime in RUNTIMES}
    for (runtime, label), times_of in taken.items():
        ratios = {
            other: summary([theirs / mine for theirs, mine in zip(taken[runtime, other], times_of, strict=True)])
            for other in (FLOAT, EIGHT)
        }
        times[runtime.runtime][label] = {"milliseconds": summary(times_of), "times as fast as": ratios}
    return {"runtimes": times, "bytes": {label: file.ByteSize() for label, file in files.items()}}


HEADER = ["MB", *(column for runtime in RUNTIMES for column in (f"{runtime.runtime}, ms", "times as fast as float"))]


def rows(entry: dict[str, Any]) -> list[list[str]]:
    """A line for each file."""
    return [
        [label, f"{size / 1e6:.1f}", *(cell for found in entry["runtimes"].values() for cell in _cells(found[label]))]
        for label, size in entry["bytes"].items()
    ]


def _cells(found: dict[str, Any]) -> tuple[str, str]:
    milliseconds, ratio = found["milliseconds"], found["times as fast as"][FLOAT]
    return f"{milliseconds['median']:.1f}", f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


if __name__ == "__main__":
    main()
