"""What calibration images are worth: noise, clipped noise, synthetic, real.

    python -m benchmarks.calibration_sources digits     # the embedded networks; three seeds, the width from another
    python -m benchmarks.calibration_sources cifar10    # needs $DFQLAB_DATA/cifar10; one seed

Writes benchmarks/results/calibration_sources_*.json and renders benchmarks/README.md.
"""

import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dfqlab
from benchmarks.accuracy import WIDTHS, difference, quantized_right, right, summary
from benchmarks.render import render
from dfqlab.checkpoints import write_json
from dfqlab.images import ImageSource, Noise, StoredImages
from dfqlab.measures import wilson
from dfqlab.teachers.names import DIGITS_NAMES

RESULTS = Path(__file__).parent / "results"
COUNT = 128
CHOOSING_SEED, SEEDS = 100, (0, 1, 2)
SOURCES = ("noise", "clipped noise", "zeroq", "real")


def main() -> None:
    """Measure one table."""
    known = {"digits": digits, "cifar10": cifar10}
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        sys.exit(f"usage: python -m benchmarks.calibration_sources {'|'.join(known)}")
    started = time.process_time()
    result = known[sys.argv[1]]()
    machine = {"machine": platform.machine(), "torch": torch.__version__, "date": date.today().isoformat()}
    write_json(
        RESULTS / f"calibration_sources_{sys.argv[1]}.json",
        {**result, **machine, "cpu_seconds": round(time.process_time() - started)},
    )
    render()


def digits() -> dict[str, Any]:
    """The embedded networks, at the width at which seed 100 separates clipped noise and ZeroQ most."""
    test, train = dfqlab.load_data("digits"), dfqlab.load_data("digits", split="train")
    rows = []
    for name in DIGITS_NAMES:
        teacher = dfqlab.load_teacher(f"digits/{name}")
        chosen = _choose_width(teacher, train.images, test)
        reference = right(teacher, test)
        found: dict[str, dict[str, list[Tensor]]] = {"chosen": {}, "W4A4": {}, "W8A8": {}}
        for seed in SEEDS:
            sources = _sources(teacher, train.images, seed)
            for label, width in (("chosen", chosen), ("W4A4", (4, 4)), ("W8A8", (8, 8))):
                for source, images in sources.items():
                    found[label].setdefault(source, []).append(quantized_right(teacher, images, width, test))
        means = {label: {s: torch.stack(r).mean(0) for s, r in by.items()} for label, by in found.items()}
        rows.append(
            {
                "teacher": teacher.name,
                "teacher_accuracy": float(reference.mean()),
                "width": "W{}A{}".format(*chosen),
                "accuracy": {label: {s: summary(r) for s, r in by.items()} for label, by in found.items()},
                "zeroq_minus_clipped": difference(means["chosen"]["zeroq"], means["chosen"]["clipped noise"]),
                "zeroq_minus_real": difference(means["chosen"]["zeroq"], means["chosen"]["real"]),
                "w8a8_minus_teacher": difference(means["W8A8"]["zeroq"], reference),
            }
        )
        print(rows[-1], flush=True)
    return {
        "images": len(test),
        "calibration_images": COUNT,
        "choosing_seed": CHOOSING_SEED,
        "seeds": SEEDS,
        "rows": rows,
    }


def cifar10() -> dict[str, Any]:
    """ResNet-20 on recompressed CIFAR-10: its own 5,000 test images, 8 and 4 bits, one seed."""
    if "DFQLAB_DATA" not in os.environ:
        sys.exit("DFQLAB_DATA is not set: it names the folder that holds cifar10/")
    folder = Path(os.environ["DFQLAB_DATA"]) / "cifar10"
    teacher = dfqlab.load_teacher("cifar10/resnet20", checkpoint=folder / "resnet20.safetensors")
    test = dfqlab.load_data(folder / "test.npz")
    train = next(dfqlab.load_data(folder / "train-5000.npz").batches(COUNT))[0]
    reference = right(teacher, test)
    sources = _sources(teacher, train, SEEDS[0])
    rows = []
    for width in ((8, 8), (4, 4)):
        found = {source: quantized_right(teacher, images, width, test) for source, images in sources.items()}
        rows.append(
            {
                "width": "W{}A{}".format(*width),
                "accuracy": {s: vars(wilson(int(r.sum()), len(r))) for s, r in found.items()},
                "minus_teacher": {s: difference(r, reference) for s, r in found.items()},
            }
        )
        print(rows[-1], flush=True)
    return {
        "images": len(test),
        "calibration_images": COUNT,
        "seeds": SEEDS[:1],
        "teacher": teacher.name,
        "teacher_accuracy": float(reference.mean()),
        "rows": rows,
    }


def _choose_width(teacher: dfqlab.Teacher, train: Tensor, test: dfqlab.LabelledImages) -> tuple[int, int]:
    sources = _sources(teacher, train, CHOOSING_SEED)

    def gain(width: tuple[int, int]) -> float:
        found = {
            s: quantized_right(teacher, sources[s], width, test).mean() for s in ("zeroq", "clipped noise", "real")
        }
        near_real = found["zeroq"] >= found["real"] - 0.02
        return float(found["zeroq"] - found["clipped noise"]) if near_real else -1.0

    return max(WIDTHS, key=gain)


def _sources(teacher: dfqlab.Teacher, train: Tensor, seed: int) -> dict[str, ImageSource]:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return {
        "noise": Noise(teacher.input, COUNT, seed),
        "clipped noise": Noise(teacher.input, COUNT, seed, clipped=True),
        "zeroq": dfqlab.synthesize(teacher, "zeroq", count=COUNT, seed=seed),
        "real": StoredImages(train[order[:COUNT]]),
    }


if __name__ == "__main__":
    main()
