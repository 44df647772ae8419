"""DSG's tables for post-training quantization, on our networks.

    python -m benchmarks.dsg_tables table1                  # its parts: accuracy, and how diverse the images are
    python -m benchmarks.dsg_tables table2                  # noise, ZeroQ, DSG and real images at 8, 6 and 4 bits
    python -m benchmarks.dsg_tables table5                  # where ranges come from
    python -m benchmarks.dsg_tables table6                  # with DFQ's equalization and correction, a scale a layer
    python -m benchmarks.dsg_tables table7                  # AdaRound, with classes and an image prior
    python -m benchmarks.dsg_tables table1 --zoo cifar10    # needs $DFQLAB_DATA/cifar10; one seed
    python -m benchmarks.dsg_tables table1 --size full      # 1,024 images; for a GPU

Writes benchmarks/results/dsg_*.json after every row, goes on where it was stopped, and renders benchmarks/README.md.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import dfqlab
from benchmarks.accuracy import RULES, label, mean_difference, right, summary
from benchmarks.paper_table import PaperTable, Row, Run, make
from benchmarks.sources import CHOOSING_SEED, Source, chosen_width, learned, made, references, right_by_seed
from dfqlab.images import ImageSource
from dfqlab.measures import gaussian_distance, similarity_index, statistics_variance
from dfqlab.measures.activations import checked_batches
from dfqlab.statistics import ObservedTeacher

PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vanilla (ZeroQ)": ("zeroq", {}),
    "SCI": ("dsg", {"slack": False, "emphasis": False, "correlation": 1.0}),  # ours: as much as alignment comes to
    "LSE": ("dsg", {"slack": False}),
    "SDA": ("dsg", {"emphasis": False}),
    "DSG": ("dsg", {}),
    "DSG, less slack: 0.7": ("dsg", {"slack_percentile": 0.7}),  # figure 5 does so with SDA alone
    "DSG, less slack: 0.5": ("dsg", {"slack_percentile": 0.5}),
}
MEASURES = ("gaussian", "mean_variance", "std_variance", "image_similarity", "feature_similarity")
WIDTHS = ((8, 8), (6, 6), (4, 4))


def table1(run: Run) -> None:
    """The parts of DSG: what their images are worth, and how homogeneous they are (section 3.2), beside real ones."""
    target = run.zoo.pair[0]
    teacher = run.zoo.networks[target]
    run.facts(parts=PARTS, choosing_seed=CHOOSING_SEED, target=target, float=float(right(teacher, run.zoo.test).mean()))
    sources = {name: made(run, recipe, (target,), **settings) for name, (recipe, settings) in PARTS.items()}
    for name, source in (sources | references(run)).items():
        run.row(
            {"source": name}, lambda source=source: _accuracy(run, target, source) | _diversity(run, teacher, source)
        )


def table2(run: Run) -> None:
    """Accuracy of quantized networks by width, source and range rule."""
    for target in tuple(run.zoo.networks) if run.size.every else run.zoo.pair:
        for width in WIDTHS:
            for rule in RULES:
                key = {"target": target, "width": label(width), "rule": rule}
                run.row(key, lambda target=target, width=width, rule=rule: _compared(run, target, width, rule))


def table5(run: Run) -> None:
    """Accuracy by range rule and images, at 4 bits."""
    for rule in ("minmax", "percentile", "ema", "mse"):
        for name, source in _three(run).items():
            run.row(
                {"target": run.zoo.pair[0], "rule": rule, "source": name},
                lambda rule=rule, source=source: _plain(run, (4, 4), source, rule),
            )


def table6(run: Run) -> None:
    """A scale a layer, with and without DFQ's equalization, and biases corrected by what images show."""
    ways: dict[str, dict[str, Any]] = {
        "neither": {},
        "bias correction": {"bias_correction": "empirical"},
        "equalization and bias correction": {"equalization": "dfq", "bias_correction": "empirical"},
    }
    for width in ((6, 6), (8, 8)):
        for way, how in ways.items():
            for name, source in _three(run).items():
                run.row(
                    {"target": run.zoo.pair[0], "width": label(width), "way": way, "source": name},
                    lambda w=width, s=source, h=how: _plain(run, w, s, "minmax", granularity="per_tensor", **h),
                )


def table7(run: Run) -> None:
    """AdaRound by what it learns from; the paper leaves activations in float, here they have 8 bits."""
    target = run.zoo.pair[0]
    labels, prior = {"label": 1.0}, {"total_variation": 0.01}
    sources = _three(run)
    sources |= {
        "dsg, labels": made(run, "dsg", (target,), **labels),
        "dsg, labels and prior": made(run, "dsg", (target,), **labels, **prior),
    }
    run.facts(label_weight=labels["label"], prior_weight=prior["total_variation"])
    for width in ((3, 8), (4, 8), (5, 8)):
        for name, source in sources.items():
            run.row(
                {"target": target, "width": label(width), "source": name},
                lambda w=width, s=source: {"accuracy": learned(run, target, w, s, ("nearest", "adaround"))},
            )


def _three(run: Run) -> dict[str, Source]:
    target = (run.zoo.pair[0],)
    return {"real": references(run)["real"], "zeroq": made(run, "zeroq", target), "dsg": made(run, "dsg", target)}


def _plain(run: Run, width: tuple[int, int], source: Source, rule: str, **how: Any) -> Row:
    return {"accuracy": summary(right_by_seed(run, run.zoo.pair[0], rule, width, source, ends=8, **how))}


def _accuracy(run: Run, target: str, source: Source) -> Row:
    """By range rule, at 4 bits as in the paper and at the chosen width."""
    found = {}
    for rule in RULES:
        widths = {label(width): width for width in ((4, 4), chosen_width(run, target, rule))}
        found[rule] = {n: summary(right_by_seed(run, target, rule, w, source)) for n, w in widths.items()}
    return {"accuracy": found}


def _diversity(run: Run, teacher: dfqlab.Teacher, source: Source) -> Row:
    """Each measure by seed; those of layers are averaged over layers."""
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for seed in run.zoo.seeds:
        images = source(seed)
        variances = statistics_variance(teacher, images).values()
        found["gaussian"].append(fmean(gaussian_distance(teacher, images).values()))
        found["mean_variance"].append(fmean(layer.mean_variance for layer in variances))
        found["std_variance"].append(fmean(layer.std_variance for layer in variances))
        shown, features = _seen(teacher, images)
        found["image_similarity"].append(similarity_index(shown))
        found["feature_similarity"].append(similarity_index(features))
    return {"measures": found}


def _seen(teacher: dfqlab.Teacher, images: ImageSource) -> tuple[Tensor, Tensor]:
    """The normalised images, and what reaches the last linear layer."""
    observed = ObservedTeacher(teacher)
    parts: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for batch in checked_batches(images):
            here = batch.images.to(teacher.device)
            parts.append((teacher.input.normalize(here), observed(here).features))
    shown, features = zip(*parts, strict=True)
    return torch.cat(shown), torch.cat(features)


def _compared(run: Run, target: str, width: tuple[int, int], rule: str) -> Row:
    known = references(run)
    sources: Mapping[str, Source] = {
        "noise": known["noise"],
        "clipped noise": known["clipped noise"],
        "zeroq": made(run, "zeroq", (target,)),
        "dsg": made(run, "dsg", (target,)),
        "real": known["real"],
    }
    found = {name: right_by_seed(run, target, rule, width, source) for name, source in sources.items()}
    return {
        "float": float(right(run.zoo.networks[target], run.zoo.test).mean()),
        "accuracy": {name: summary(of) for name, of in found.items()},
        "dsg_minus": {other: mean_difference(found, "dsg", other) for other in ("clipped noise", "zeroq", "real")},
    }


TABLES = {
    "table1": PaperTable(table1, ("zeroq", "dsg")),
    "table2": PaperTable(table2, ("zeroq", "dsg")),
    "table5": PaperTable(table5, ("zeroq", "dsg"), many=True),
    "table6": PaperTable(table6, ("zeroq", "dsg"), many=True),
    "table7": PaperTable(table7, ("zeroq", "dsg"), learns=True),
}

if __name__ == "__main__":
    make("dsg", TABLES)
