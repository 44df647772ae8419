"""Tables of papers on ranges and roundings as Markdown: a source of images a row, a way to quantize a column."""

from collections.abc import Callable, Iterable

from benchmarks.markdown import listed, share, table
from benchmarks.mixmix_pages import RULE_NAMES
from benchmarks.paper_pages import Page, Result

_OURS = (
    "Quantizers are placed as an integer runtime executes them, first and last layer have 8 bits: not comparable with "
    "published rows. Accuracy in per cent."
)


def mixmix_table3(result: Result) -> str:
    """Nearest, BRECQ and QDrop of each network and width, by the images they learn from."""
    floats = listed(f"{name} {100 * accuracy:.1f}" for name, accuracy in result["float"].items())
    return (
        f"{_OURS} {result['iterations']:,} iterations for each block, MSE ranges. mixmix is made from "
        f"{listed(result['zoo_of_mixmix'])}, the others from the network itself. In float: {floats}.\n\n"
        + _by_rounding(result, lambda row: f"{row['target']} {row['width']}")
    )


def dsg_table5(result: Result) -> str:
    """Range rules."""
    return f"{_OURS} {result['rows'][0]['target']}, W4A4, nearest rounding.\n\n" + _crossed(
        result, lambda row: [(RULE_NAMES.get(row["rule"], row["rule"]), row["accuracy"])]
    )


def dsg_table6(result: Result) -> str:
    """Equalization and bias correction."""
    return (
        f"{_OURS} {result['rows'][0]['target']}, min/max ranges, one scale for all weights of a layer, nearest "
        "rounding. The bias correction is the one that looks at images.\n\n"
        + _crossed(result, lambda row: [(f"{row['width']}, {row['way']}", row["accuracy"])])
    )


def dsg_table7(result: Result) -> str:
    """AdaRound."""
    return (
        f"{_OURS} {result['rows'][0]['target']}; {result['iterations']:,} iterations for each layer. The paper leaves "
        f"activations in float, here they have 8 bits. Labels weigh {result['label_weight']:g}, the prior, total "
        f"variation, {result['prior_weight']:g}.\n\n" + _by_rounding(result, lambda row: row["width"])
    )


def _by_rounding(result: Result, what: Callable[[Result], str]) -> str:
    return _crossed(result, lambda row: [(f"{what(row)}, {name}", found) for name, found in row["accuracy"].items()])


def _crossed(result: Result, columns_of: Callable[[Result], Iterable[tuple[str, Result]]]) -> str:
    """Sources down, columns across, as they come in the results; nothing where a source was not asked."""
    cells = {(row["source"], column): found for row in result["rows"] for column, found in columns_of(row)}
    columns = list(dict.fromkeys(column for _, column in cells))
    sources = dict.fromkeys(row["source"] for row in result["rows"])
    body = [[s, *(share(cells[s, c]) if (s, c) in cells else "" for c in columns)] for s in sources]
    return table(["images", *columns], body)


PAGES = (
    Page("mixmix", "table3", "MixMix, Table 3: roundings that learn, by what they learn from", mixmix_table3),
    Page("dsg", "table5", "DSG, Table 5: where ranges come from", dsg_table5),
    Page("dsg", "table6", "DSG, Table 6: equalization and bias correction", dsg_table6),
    Page("dsg", "table7", "DSG, Table 7: AdaRound, with classes and an image prior", dsg_table7),
)
