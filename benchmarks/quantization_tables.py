"""What parts of post-training quantization do on our networks.

    python -m benchmarks.quantization_tables rescaled       # equalization, where channels differ in scale
    python -m benchmarks.quantization_tables frontier       # a width for each layer beside one for all
    python -m benchmarks.quantization_tables certificate    # five widths, held to integers in two runtimes
    python -m benchmarks.quantization_tables frontier --zoo cifar10    # needs $DFQLAB_DATA/cifar10

Writes benchmarks/results/quantization_*.json after every row, goes on where it was stopped, and renders
benchmarks/README.md. The frontier needs the extra search, certificates need deploy and openvino.
"""

from typing import Any

import dfqlab
from benchmarks.accuracy import difference, label, right, summary
from benchmarks.paper_table import PaperTable, Row, Run, make
from benchmarks.rescaling import rescaled, with_relu
from benchmarks.sources import made
from dfqlab.compression.allocation import Allocation, frontier, one_width, sensitivities, sizes_of
from dfqlab.compression.insertion import prepare
from dfqlab.compression.spec import QuantizationSpec, Widths
from dfqlab.deployment import certify
from dfqlab.deployment.certificate import EXACT, NEAR, CertifiedRuntime
from dfqlab.deployment.export import to_onnx

A_LAYER: dict[str, Any] = {"granularity": "per_tensor", "weight_calibration": "minmax", "calibration": "bn"}
WAYS: dict[str, dict[str, Any]] = {
    "one scale a layer": A_LAYER,
    "equalized": {**A_LAYER, "equalization": "dfq", "bias_correction": "none"},
    "equalized, biases corrected": {**A_LAYER, "equalization": "dfq"},
    "one scale a channel": {**A_LAYER, "granularity": "per_channel"},
}
BUDGETS = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
MIXED, UNIFORM = "a width for each layer", "one width for all"
CERTIFIED = ((8, 8), (6, 6), (4, 8), (4, 4), (3, 3))
RUNTIMES: tuple[CertifiedRuntime, ...] = ("onnxruntime", "openvino")


def rescaled_table(run: Run) -> None:
    """MobileNetV2 at W8A8 as it was trained, and with its channels rescaled; no image is looked at."""
    target = run.zoo.targets[0] if run.zoo.name == "cifar10" else run.zoo.targets[1]
    trained = run.zoo.networks[target]
    plain = with_relu(trained)
    networks = {"as trained": trained, "ReLU for ReLU6": plain, "its channels rescaled": rescaled(plain)}
    run.facts(target=target)
    for name, teacher in networks.items():
        for way, how in WAYS.items():
            run.row(
                {"network": name, "way": way},
                lambda t=teacher, h=how: {
                    "float": float(right(t, run.zoo.test).mean()),
                    "accuracy": summary([right(dfqlab.quantize(t, None, weights=8, activations=8, **h), run.zoo.test)]),
                },
            )


def frontier_table(run: Run) -> None:
    """Accuracy at some sizes of weights: of the widths that lose least (ZeroQ), and of one width for all layers."""
    run.facts(float={name: float(right(run.zoo.networks[name], run.zoo.test).mean()) for name in run.zoo.pair})
    for target in run.zoo.pair:
        run.row({"target": target}, lambda target=target: _frontier(run, target))


def certificate_table(run: Run) -> None:
    """Codes of both runtimes that differ from the integer reference, of every network at every width."""
    for name, teacher in run.zoo.networks.items():
        for width in CERTIFIED:
            run.row(
                {"target": name, "width": label(width)},
                lambda t=teacher, w=width: {"runtimes": _certified(run, t, w)},
            )


def _frontier(run: Run, target: str) -> Row:
    teacher = run.zoo.networks[target]
    images = made(run, "zeroq", (target,))(run.zoo.seeds[0])
    prepared = prepare(teacher, QuantizationSpec())
    losses, sizes = sensitivities(prepared, images), sizes_of(prepared)
    found = {MIXED: frontier(losses, sizes, BUDGETS), UNIFORM: one_width(losses, sizes)}

    def correct(allocation: Allocation) -> Any:
        layers = {path: Widths(weights=bits) for path, bits in allocation.widths.items()}
        return right(dfqlab.quantize(teacher, images, layers=layers), run.zoo.test)

    answers = {way: [correct(allocation) for allocation in allocations] for way, allocations in found.items()}
    points = {
        way: [vars(allocation) | {"accuracy": summary([hits])} for allocation, hits in zip(found[way], of, strict=True)]
        for way, of in answers.items()
    }
    uniform = {round(a.mean_bits): hits for a, hits in zip(found[UNIFORM], answers[UNIFORM], strict=True)}
    for budget, point, hits in zip(BUDGETS, points[MIXED], answers[MIXED], strict=True):
        point["budget"] = budget
        if budget in uniform:
            point["minus_one_width"] = difference(hits, uniform[int(budget)])
    return {"weights": sum(sizes.values()), "points": points}


def _certified(run: Run, teacher: dfqlab.Teacher, width: tuple[int, int]) -> Row:
    images = run.zoo.noise(run.size.count, run.zoo.seeds[0], clipped=True)
    model = dfqlab.quantize(teacher, images, weights=width[0], activations=width[1])
    exported = to_onnx(model)
    found = {}
    for runtime in RUNTIMES:
        certificate = certify(model, images, runtime=runtime, exported=exported)
        found[runtime] = {
            "holds": certificate.holds,
            "why not": list(certificate.failures),
            "convolutions": [certificate.integer_convolutions, certificate.convolutions],
            **{
                kind: {
                    "codes": sum(check.codes for check in checks),
                    "differences": sum(check.differences for check in checks),
                    "worst": max((check.worst for check in checks), default=0),
                }
                for kind, checks in (
                    ("exact", [check for check in certificate.checks if check.operator in EXACT]),
                    ("near", [check for check in certificate.checks if check.operator in NEAR]),
                )
            },
            "agreement": certificate.top1_agreement,
            "sqnr": certificate.sqnr,
            "warnings": list(certificate.warnings),
        }
    return found


TABLES = {
    "rescaled": PaperTable(rescaled_table, (), one_seed=True),
    "frontier": PaperTable(frontier_table, ("zeroq",), one_seed=True),
    "certificate": PaperTable(certificate_table, (), one_seed=True),
}

if __name__ == "__main__":
    make("quantization", TABLES)
