"""MixMix's tables on our networks.

    python -m benchmarks.mixmix_tables table1            # what a network finds in images that were made from another
    python -m benchmarks.mixmix_tables table2            # whether networks name the classes of images
    python -m benchmarks.mixmix_tables table3            # what images are worth to roundings that learn from them
    python -m benchmarks.mixmix_tables table6            # what images are worth to a network that is quantized
    python -m benchmarks.mixmix_tables table8            # how many networks a batch sees, and mixing, on and off
    python -m benchmarks.mixmix_tables table1 --zoo cifar10    # needs $DFQLAB_DATA/cifar10; one seed
    python -m benchmarks.mixmix_tables table1 --size full      # the paper's number of images and steps; for a GPU

Writes benchmarks/results/mixmix_*.json after every row, goes on where it was stopped, and renders benchmarks/README.md.
"""

from collections.abc import Mapping

from benchmarks.accuracy import RULES, label, mean_difference, right, summary
from benchmarks.mixmix_pages import made_from
from benchmarks.paper_table import PaperTable, Row, Run, make
from benchmarks.sources import CHOOSING_SEED, Source, chosen_width, learned, made, references, right_by_seed
from benchmarks.zoo import drawn
from dfqlab.measures import alignment_of, inception_score_of, recognition, wilson

OLDER = ("zeroq", "deepinversion")
LABELLED = ("knowledge_within", "deepinversion")  # they give a class to each image


def table1(run: Run) -> None:
    """The BatchNorm loss (eq. 2) of networks on real images and on those of each of them alone."""
    names = tuple(run.zoo.networks) if run.size.every else run.zoo.pair
    sources = _singles(run, OLDER, names) | {n: s for n, s in references(run).items() if n != "noise"}

    def losses(judge: str) -> Row:
        teacher = run.zoo.networks[judge]
        return {
            "loss": {
                name: [alignment_of(teacher, source(s)) for s in run.zoo.seeds] for name, source in sources.items()
            }
        }

    for judge in names:
        run.row({"judge": judge}, lambda judge=judge: losses(judge))


def table2(run: Run) -> None:
    """How many of the images each network names, and their Inception Scores."""
    held_out = {out: run.zoo.without(out) for out in run.zoo.held_out}
    run.facts(held_out=held_out)
    run.row({"source": "real"}, lambda: _recognised(run, lambda seed: drawn(run.zoo.test, run.size.count, seed)))
    for zoo in held_out.values():
        for name, source in (_singles(run, LABELLED, zoo) | _mixed(run, zoo)).items():
            run.row({"source": name}, lambda source=source: _recognised(run, source))


def table3(run: Run) -> None:
    """BRECQ by what it learns from; nearest rounding beside it, and QDrop for the two that matter most."""
    zoo = run.zoo.without(run.zoo.held_out[-1])
    run.facts(
        zoo_of_mixmix=zoo, float={name: float(right(run.zoo.networks[name], run.zoo.test).mean()) for name in zoo}
    )
    known = references(run)
    for target in dict.fromkeys((run.zoo.pair[0], run.zoo.targets[0])):
        sources: Mapping[str, Source] = {
            "clipped noise": known["clipped noise"],
            **{recipe: made(run, recipe, (target,)) for recipe in ("zeroq", "knowledge_within")},
            "mixmix": made(run, "mixmix", zoo),
            "real": known["real"],
        }
        for width in ((4, 4), (2, 4)):
            for name, source in sources.items():
                roundings = ("nearest", "brecq", "qdrop") if name in ("mixmix", "real") else ("nearest", "brecq")
                run.row(
                    {"target": target, "width": label(width), "source": name},
                    lambda t=target, w=width, s=source, r=roundings: {"accuracy": learned(run, t, w, s, r)},
                )


def table6(run: Run) -> None:
    """Accuracy of quantized networks, by what the images that set their ranges were made from."""
    recipes = LABELLED if run.size.every or run.zoo.name == "digits" else LABELLED[:1]
    zoos = [run.zoo.without(out) for out in run.zoo.held_out]
    singles = _singles(run, recipes, tuple(run.zoo.networks))
    mixed = {name: source for zoo in zoos for name, source in _mixed(run, zoo).items()}
    run.facts(choosing_seed=CHOOSING_SEED)
    for target in tuple(run.zoo.networks) if run.size.every else run.zoo.targets:
        for rule in RULES:
            run.row(
                {"target": target, "rule": rule},
                lambda target=target, rule=rule: _transferred(run, target, rule, singles, mixed),
            )


def table8(run: Run) -> None:
    """Networks that a batch sees (m' of section 4.1), with and without data mixing."""
    out = run.zoo.held_out[0]
    zoo = run.zoo.without(out)
    run.facts(held_out={out: zoo}, choosing_seed=CHOOSING_SEED)
    for count in range(1, len(zoo) + 1) if run.size.every else (1, len(zoo)):
        for mixing in (False, True):
            source = made(run, "mixmix", zoo, teachers_per_batch=count, mixing=mixing)
            run.row(
                {"teachers_per_batch": str(count), "mixing": "on" if mixing else "off"},
                lambda source=source: _recognised(run, source) | _quantized(run, out, source),
            )
    run.row({"teachers_per_batch": "real", "mixing": ""}, lambda: _quantized(run, out, references(run)["real"]))


def _singles(run: Run, recipes: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Source]:
    return {_name(recipe, (name,)): made(run, recipe, (name,)) for recipe in recipes for name in names}


def _mixed(run: Run, zoo: tuple[str, ...]) -> dict[str, Source]:
    return {_name("mixmix", zoo): made(run, "mixmix", zoo)}


def _name(recipe: str, names: tuple[str, ...]) -> str:
    return f"{recipe}: {', '.join(names)}"


def _recognised(run: Run, source: Source) -> Row:
    """By network: the share of images that it names, of all seeds together and of each; its Inception Score of each."""
    networks = run.zoo.networks
    sets = [source(seed) for seed in run.zoo.seeds]
    found = [recognition(list(networks.values()), images) for images in sets]
    count = sum(of_seed.count for of_seed in found)

    def accuracy(name: str) -> Row:
        by_seed = [of_seed.accuracy[networks[name].name] for of_seed in found]
        named = sum(round(share * of_seed.count) for share, of_seed in zip(by_seed, found, strict=True))
        return {"by_seed": by_seed, **vars(wilson(named, count))}

    return {
        "images": count,
        "accuracy": {name: accuracy(name) for name in networks},
        "inception_score": {n: [inception_score_of(t, images) for images in sets] for n, t in networks.items()},
    }


def _quantized(run: Run, target: str, source: Source) -> Row:
    widths = {rule: chosen_width(run, target, rule) for rule in RULES}
    found = {rule: summary(right_by_seed(run, target, rule, widths[rule], source)) for rule in RULES}
    return {"quantized": {rule: {"width": label(widths[rule]), **found[rule]} for rule in RULES}}


def _transferred(run: Run, target: str, rule: str, singles: Mapping[str, Source], mixed: Mapping[str, Source]) -> Row:
    width = chosen_width(run, target, rule)
    sources = {**references(run), **singles, **mixed}
    found = {name: right_by_seed(run, target, rule, width, source) for name, source in sources.items()}
    accuracy = {name: summary(of) for name, of in found.items()}
    order = sorted(singles, key=lambda name: accuracy[name]["value"], reverse=True)
    of_same = {name: next(one for one in order if set(made_from(one)) <= set(made_from(name))) for name in mixed}
    return {
        "float": float(right(run.zoo.networks[target], run.zoo.test).mean()),
        "width": label(width),
        "accuracy": accuracy,
        "best_single": order[0],
        "best_of_same": of_same,
        "minus": {
            name: {
                "best": mean_difference(found, name, order[0]),
                "best of same": mean_difference(found, name, of_same[name]),
                "real": mean_difference(found, name, "real"),
                "clipped noise": mean_difference(found, name, "clipped noise"),
            }
            for name in mixed
        },
    }


TABLES = {
    "table1": PaperTable(table1, OLDER),
    "table2": PaperTable(table2, (*LABELLED, "mixmix")),
    "table3": PaperTable(table3, ("zeroq", "knowledge_within", "mixmix"), learns=True),
    "table6": PaperTable(table6, (*LABELLED, "mixmix")),
    "table8": PaperTable(table8, ("mixmix",)),
}

if __name__ == "__main__":
    make("mixmix", TABLES)
