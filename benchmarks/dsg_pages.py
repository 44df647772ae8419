"""DSG's tables as Markdown."""

from statistics import fmean

from benchmarks.markdown import points, share, short, spread, table
from benchmarks.mixmix_pages import RULE_NAMES
from benchmarks.paper_pages import Page, Result

MEASURES = {
    "gaussian": "W₁ to the Gaussian",
    "mean_variance": "variance of means",
    "std_variance": "variance of stds",
    "image_similarity": "similarity of images",
    "feature_similarity": "similarity of features",
}
VANILLA, WHOLE, REAL = "vanilla (ZeroQ)", "DSG", "real"


def table1(result: Result) -> str:
    """Accuracy of each part, measures of each part, and which of ZeroQ and DSG is nearer to real images."""
    rows = {row["source"]: row for row in result["rows"]}
    weight = result["parts"]["SCI"][1]["correlation"]
    parts = [
        f"{result['target']}, {100 * result['float']:.1f} in float. SDA: slack; LSE: emphasis on a layer a sample; "
        f"SCI: correlation of samples, weighted by {weight:g}; DSG for post-training quantization is SDA and LSE. W4A4 "
        f"is the paper's width, another that at which seed {result['choosing_seed']}'s real images gain most over "
        f"clipped noise. Accuracy in per cent, nearest rounding:\n\n{_accuracies(rows)}"
    ]
    header = ["images", *MEASURES.values()]
    body = [[name, *(spread(row["measures"][m]) for m in MEASURES)] for name, row in rows.items() if "measures" in row]
    parts.append(
        "How homogeneous the images are, averaged over layers: the distance of what reaches a BatchNorm layer from the "
        "Gaussian that it remembers, in its standard deviations; how much mean and standard deviation of single images "
        "vary, in its variances; the mean cosine of two normalised images, and of what they bring to the last layer. "
        f"Mean over seeds, with the least and the largest:\n\n{table(header, body)}"
    )
    if {VANILLA, WHOLE, REAL} <= rows.keys():
        percentile = result["recipes"]["dsg"]["slack_percentile"]
        parts.append(
            "How far each is from real images, and in how many seeds DSG is nearer than ZeroQ. DSG's slack is the "
            f"{percentile:g} percentile of eq. 6 where no other is named.\n\n{_nearer(rows)}"
        )
    return "\n\n".join(parts)


def _accuracies(rows: dict[str, Result]) -> str:
    columns = [(rule, width) for rule, by_width in next(iter(rows.values()))["accuracy"].items() for width in by_width]
    header = ["images", *(f"{width}, {RULE_NAMES[rule]}" for rule, width in columns)]
    body = [[name, *(share(row["accuracy"][rule][width]) for rule, width in columns)] for name, row in rows.items()]
    return table(header, body)


def _nearer(rows: dict[str, Result]) -> str:
    """Seed by seed: each has its own real images. ZeroQ beside DSG with each slack."""
    body = []
    compared = [VANILLA, *(name for name in rows if name.startswith(WHOLE))]
    for measure, name in MEASURES.items():
        real = rows[REAL]["measures"][measure]
        away = {of: [abs(v - r) for v, r in zip(rows[of]["measures"][measure], real, strict=True)] for of in compared}
        cells = [short(fmean(away[VANILLA]))]
        for of in compared[1:]:
            nearer = sum(theirs < zeroq for theirs, zeroq in zip(away[of], away[VANILLA], strict=True))
            cells.append(f"{short(fmean(away[of]))} (nearer in {nearer} of {len(real)})")
        body.append([name, *cells])
    return table(["distance from real images", *compared], body)


def table2(result: Result) -> str:
    """A row for each target, width and rule; what DSG gains over ZeroQ, clipped noise and real images."""
    sources = list(result["rows"][0]["accuracy"])
    others = list(result["rows"][0]["dsg_minus"])
    body = [
        [
            row["target"],
            f"{100 * row['float']:.1f}",
            row["width"],
            RULE_NAMES[row["rule"]],
            *(share(row["accuracy"][source]) for source in sources),
            *(points(row["dsg_minus"][other]) for other in others),
        ]
        for row in result["rows"]
    ]
    header = ["network", "float", "width", "ranges", *sources, *(f"dsg - {other}" for other in others)]
    return "Accuracy in per cent, nearest rounding; differences in points, paired over the test images.\n\n" + table(
        header, body
    )


PAGES = (
    Page("dsg", "table1", "DSG, Table 1: its parts, what they are worth and how homogeneous their images are", table1),
    Page("dsg", "table2", "DSG, Table 2: post-training quantization by width", table2),
)
