"""MixMix's tables as Markdown."""

from statistics import fmean, pstdev

from benchmarks.markdown import listed, points, share, spread, table
from benchmarks.paper_pages import Page, Result
from dfqlab.synthesis.plan import BATCH_SIZE

RULE_NAMES = {"minmax": "min/max", "mse": "MSE"}
CONTROLS = ("noise", "clipped noise")


def table1(result: Result) -> str:
    """Losses: a row a source, a column a network; its own images and real ones can be compared in a column only."""
    judges = [row["judge"] for row in result["rows"]]
    losses = {row["judge"]: row["loss"] for row in result["rows"]}
    sources = list(result["rows"][0]["loss"])
    rows = [[source, *(spread(losses[judge][source]) for judge in judges)] for source in sources]
    return (
        "The loss of eq. 2 over a whole set, in units of the network's layers: compare within a column. Mean over "
        f"seeds, with the least and the largest.\n\n{table(['images', *judges], rows)}"
    )


def table2(result: Result) -> str:
    """For each network that was held out: who names the classes of images that were made from the others."""
    by_source = {row["source"]: row for row in result["rows"]}
    parts = [
        "How many of the images a network takes for what their label says, in per cent, of all seeds' images together. "
        "Mean and standard deviation are over the networks that mixmix is made from; the held-out network has made "
        "none of the images. Its opinion also gives the Inception Score, at most the number of classes. Real images "
        "are test images."
    ]
    for out, zoo in result["held_out"].items():
        rows = []
        for source, row in by_source.items():
            names = made_from(source)
            if source == "real" or (set(names) <= set(zoo) and len(names) in (1, len(zoo))):
                of_zoo = [row["accuracy"][name]["value"] for name in zoo]
                each = [f"{100 * value:.1f}" for value in of_zoo]
                mean = f"{100 * fmean(of_zoo):.1f} ± {100 * pstdev(of_zoo):.1f}"
                held = row["accuracy"][out]
                rows.append([source, *each, mean, share(held), spread(row["inception_score"][out])])
        header = ["images", *zoo, f"mean of {listed(zoo)}", f"held out: {out}", "Inception Score"]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def table6(result: Result) -> str:
    """A matrix of sources and targets for each range rule, and what mixing gains."""
    parts = [
        f"Accuracy of quantized networks in per cent, nearest rounding. Widths are those at which seed "
        f"{result['choosing_seed']}'s real images gain most over clipped noise; no synthetic image has a say in it. "
        "A star: the network is not among those that the images were made from."
    ]
    gains = []
    for rule, rule_name in RULE_NAMES.items():
        rows = {row["target"]: row for row in result["rows"] if row["rule"] == rule}
        if not rows:
            continue
        sources = list(next(iter(rows.values()))["accuracy"])
        matrix = [[source, *(_starred(row, source, target) for target, row in rows.items())] for source in sources]
        matrix.append(["float", *(f"{100 * row['float']:.1f}" for row in rows.values())])
        columns = [f"{target}, {row['width']}" for target, row in rows.items()]
        parts.append(f"{rule_name} ranges:\n\n{table(['images', *columns], matrix)}")
        for target, row in rows.items():
            for source, minus in row["minus"].items():
                held = "held out" if target not in made_from(source) else "in the zoo"
                best, own = row["best_single"], row["best_of_same"][source]
                others = [f"{points(minus['best'])} ({best})", f"{points(minus['best of same'])} ({own})"]
                others += [points(minus["real"]), points(minus["clipped noise"])]
                gains.append([target, rule_name, source, held, *others])
    header = ["target", "ranges", "images", "target is", "minus best single", "minus best single of the same networks"]
    parts.append(
        "Differences in points, paired over the test images. The best single source is the one that turned out best on "
        "these images, the target's own among them: mixmix is held to more than one could have chosen.\n\n"
        + table([*header, "minus real", "minus clipped noise"], gains)
    )
    return "\n\n".join(parts)


def table8(result: Result) -> str:
    """Networks a batch and mixing: who names the images, and what they are worth to the held-out network."""
    ((out, zoo),) = result["held_out"].items()
    rows = []
    widths = {rule: row["width"] for rule, row in result["rows"][0]["quantized"].items()}
    for row in result["rows"]:
        quantized = [share(row["quantized"][rule]) for rule in RULE_NAMES]
        if "accuracy" not in row:
            rows.append(["real images", "", "", "", *quantized])
            continue
        of_zoo = [row["accuracy"][name]["value"] for name in zoo]
        mean = f"{100 * fmean(of_zoo):.1f} ± {100 * pstdev(of_zoo):.1f}"
        rows.append([row["teachers_per_batch"], row["mixing"], mean, share(row["accuracy"][out]), *quantized])
    columns = [f"{out} {widths[rule]}, {name}" for rule, name in RULE_NAMES.items()]
    batches = -(-result["calibration_images"] // BATCH_SIZE)
    return (
        f"MixMix from {listed(zoo)}; {out} is held out. Networks are drawn for each batch of at most {BATCH_SIZE} "
        f"images{', of which there is one: with m′ = 1 a single network makes a whole set' if batches == 1 else ''}. "
        "How many of the images the networks name, and the held-out network's accuracy when they set its ranges, in "
        "per cent; widths as in Table 6.\n\n"
        + table(["m′", "data mixing", "named by the zoo", f"named by {out}", *columns], rows)
    )


def made_from(source: str) -> tuple[str, ...]:
    """The networks that the name of a source tells."""
    return tuple(source.partition(": ")[2].split(", "))


def _starred(row: Result, source: str, target: str) -> str:
    made = source != "real" and source not in CONTROLS
    return share(row["accuracy"][source]) + ("\\*" if made and target not in made_from(source) else "")


PAGES = (
    Page("mixmix", "table1", "MixMix, Table 1: what a network finds in another's images", table1),
    Page("mixmix", "table2", "MixMix, Table 2: whether networks name the classes of images", table2),
    Page("mixmix", "table6", "MixMix, Table 6: what images are worth to a network that is quantized", table6),
    Page("mixmix", "table8", "MixMix, Table 8: networks in a batch, and mixing, on and off", table8),
)
