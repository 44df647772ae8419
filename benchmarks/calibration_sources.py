"""What calibration images are worth: noise, clipped noise, synthetic, real; executed by onnxruntime.

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
from benchmarks.render import render
from dfqlab.checkpoints import write_json
from dfqlab.deployment import OnnxModel
from dfqlab.images import ImageSource, Noise, StoredImages
from dfqlab.measures import paired_difference, wilson
from dfqlab.teachers.names import DIGITS_NAMES

RESULTS = Path(__file__).parent / "results"
COUNT = 128
CHOOSING_SEED, SEEDS = 100, (0, 1, 2)
WIDTHS = ((4, 4), (8, 3), (4, 3), (3, 3))
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
        reference = _right(teacher, test)
        right: dict[str, dict[str, list[Tensor]]] = {"chosen": {}, "W4A4": {}, "W8A8": {}}
        for seed in SEEDS:
            sources = _sources(teacher, train.images, seed)
            for label, width in (("chosen", chosen), ("W4A4", (4, 4)), ("W8A8", (8, 8))):
                for source, images in sources.items():
                    right[label].setdefault(source, []).append(_quantized_right(teacher, images, width, test))
        means = {label: {s: torch.stack(r).mean(0) for s, r in by.items()} for label, by in right.items()}
        rows.append(
            {
                "teacher": teacher.name,
                "teacher_accuracy": float(reference.mean()),
                "width": "W{}A{}".format(*chosen),
                "accuracy": {label: {s: _summary(r) for s, r in by.items()} for label, by in right.items()},
                "zeroq_minus_clipped": _difference(means["chosen"]["zeroq"], means["chosen"]["clipped noise"]),
                "zeroq_minus_real": _difference(means["chosen"]["zeroq"], means["chosen"]["real"]),
                "w8a8_minus_teacher": _difference(means["W8A8"]["zeroq"], reference),
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
    reference = _right(teacher, test)
    sources = _sources(teacher, train, SEEDS[0])
    rows = []
    for width in ((8, 8), (4, 4)):
        right = {source: _quantized_right(teacher, images, width, test) for source, images in sources.items()}
        rows.append(
            {
                "width": "W{}A{}".format(*width),
                "accuracy": {s: vars(wilson(int(r.sum()), len(r))) for s, r in right.items()},
                "minus_teacher": {s: _difference(r, reference) for s, r in right.items()},
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
        right = {
            s: _quantized_right(teacher, sources[s], width, test).mean() for s in ("zeroq", "clipped noise", "real")
        }
        near_real = right["zeroq"] >= right["real"] - 0.02
        return float(right["zeroq"] - right["clipped noise"]) if near_real else -1.0

    return max(WIDTHS, key=gain)


def _sources(teacher: dfqlab.Teacher, train: Tensor, seed: int) -> dict[str, ImageSource]:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return {
        "noise": Noise(teacher.input, COUNT, seed),
        "clipped noise": Noise(teacher.input, COUNT, seed, clipped=True),
        "zeroq": dfqlab.synthesize(teacher, "zeroq", count=COUNT, seed=seed),
        "real": StoredImages(train[order[:COUNT]]),
    }


def _quantized_right(
    teacher: dfqlab.Teacher, images: ImageSource, width: tuple[int, int], test: dfqlab.LabelledImages
) -> Tensor:
    model = dfqlab.quantize(teacher, images, weights=width[0], activations=width[1])
    return _right(OnnxModel.of(model), test)


def _right(model: OnnxModel | dfqlab.Teacher, test: dfqlab.LabelledImages) -> Tensor:
    """1.0 for each image whose class the model names."""
    return dfqlab.evaluate(model, test).correct.double()


def _summary(right: list[Tensor]) -> dict[str, Any]:
    """Accuracy of each seed, and the mean with the interval of the images."""
    mean = _difference(torch.stack(right).mean(0), torch.zeros_like(right[0]))
    return {"by_seed": [float(r.mean()) for r in right], **mean}


def _difference(a: Tensor, b: Tensor) -> dict[str, float]:
    return vars(paired_difference(a, b))


if __name__ == "__main__":
    main()
