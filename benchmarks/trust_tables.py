"""What an estimate without data is worth: does it rank ways to quantize as real images do?

    python -m benchmarks.trust_tables ranking
    python -m benchmarks.trust_tables ranking --zoo cifar10    # needs $DFQLAB_DATA/cifar10

Writes benchmarks/results/trust_ranking_*.json after every row, goes on where it was stopped, and renders
benchmarks/README.md and what a report says of its own estimate.
"""

from dataclasses import replace
from statistics import fmean

import torch

from benchmarks.accuracy import label, quantized, right, summary
from benchmarks.image_sets import ImageSets
from benchmarks.paper_table import PaperTable, Row, Run, make
from benchmarks.sources import Source, made, references
from dfqlab.deployment import OnnxModel
from dfqlab.images import ImageSource
from dfqlab.trust import HELD_OUT, Kind, judge

WIDTH = (4, 4)
RULES = ("minmax", "percentile", "mse", "aciq")
ROUNDINGS = ("nearest", "squant")
JUDGING_SEED = 1000  # of no set that calibrates


def ranking(run: Run) -> None:
    """Every way to quantize each of two networks: its accuracy on real images, and what judges without them say."""
    run.facts(width=label(WIDTH), judging_images=HELD_OUT, float=_floats(run))
    for target in run.zoo.pair:
        for name, source in _sources(run, target).items():
            for rule in RULES:
                for rounding in ROUNDINGS:
                    run.row(
                        {"target": target, "source": name, "rule": rule, "rounding": rounding},
                        lambda t=target, s=source, c=rule, r=rounding: _judged(run, t, s, c, r),
                    )


def _floats(run: Run) -> dict[str, float]:
    return {name: float(right(run.zoo.networks[name], run.zoo.test).mean()) for name in run.zoo.pair}


def _sources(run: Run, target: str) -> dict[str, Source]:
    sets = {recipe: made(run, recipe, (target,)) for recipe in ("zeroq", "dsg")}
    return {"clipped noise": references(run)["clipped noise"], **sets}


def _judged(run: Run, target: str, source: Source, rule: str, rounding: str) -> Row:
    teacher = run.zoo.networks[target]
    model = quantized(teacher, source(run.zoo.seeds[0]), WIDTH, rule, rounding=rounding)
    runtime = OnnxModel.of(model, threads=torch.get_num_threads())
    judgements = judge(model, teacher, _judges(run, target), runtime=runtime)
    return {
        "accuracy": summary([right(runtime, run.zoo.test)]),
        "judges": {
            j.judge: {
                "agreement": None if j.agreement is None else j.agreement.value,
                "sqnr": j.sqnr,
                "layers": fmean(j.layers.values()),
            }
            for j in judgements
        },
    }


def _judges(run: Run, target: str) -> dict[str, tuple[Kind, ImageSource]]:
    """As many images as judge in a report, as valid pixels."""
    sets = ImageSets(replace(run.size, count=HELD_OUT), run.sets.folder)
    zoo = run.zoo.of((target,))
    made_ones: dict[str, tuple[Kind, ImageSource]] = {
        "zeroq": ("held out", sets.get("zeroq", zoo, JUDGING_SEED).clamped),
        "dsg": ("held out", sets.get("dsg", zoo, JUDGING_SEED).clamped),
    }
    return {**made_ones, "clipped noise": ("clipped noise", run.zoo.noise(HELD_OUT, JUDGING_SEED, clipped=True))}


TABLES = {"ranking": PaperTable(ranking, ("zeroq", "dsg"), one_seed=True)}

if __name__ == "__main__":
    make("trust", TABLES)
