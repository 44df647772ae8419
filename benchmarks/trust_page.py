"""How estimates without data rank ways to quantize, as Markdown, and what a report says of them."""

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

from benchmarks.markdown import listed, table
from benchmarks.paper_pages import Page, Result

MEASURES = {"agreement": "agreement with the teacher", "sqnr": "SQNR of logits", "layers": "mean SQNR of layers"}
_REPORTED = ("zeroq", "agreement")  # what a report without real data says first
_LEAST = 12  # points
_Z95 = NormalDist().inv_cdf(0.975)
BELIEFS = Path(__file__).parent.parent / "dfqlab" / "trust.json"


def ranking(result: Result) -> str:
    """Rank correlations with accuracy on real images, by network, judge and measure."""
    sources = listed(dict.fromkeys(row["source"] for row in result["rows"]))
    text = [
        f"{result['width']}, ranges and roundings of {_axes(result)}, calibrated on {sources}. Spearman's correlation "
        f"of what a judge says with accuracy on {result['test_images']:,} real images, with its 95 % interval "
        f"(Fisher's z, standard error of Bonett and Wright 2000). Each judge has {result['judging_images']} images, "
        "none of which calibrated anything; BatchNorm's Gaussians have none. A report without real data leads with "
        "the agreement on zeroq's images of another seed: the first number here."
    ]
    for target in _targets(result):
        rows = _rows(result, target)
        found = [row["accuracy"]["value"] for row in rows]
        body = [
            [judge, *(_shown(_correlation(rows, judge, measure)) for measure in MEASURES)]
            for judge in rows[0]["judges"]
        ]
        text.append(
            f"{target}: {len(rows)} ways, {100 * min(found):.1f} to {100 * max(found):.1f} %, "
            f"{100 * result['float'][target]:.1f} in float.\n\n{table(['judge', *MEASURES.values()], body)}"
        )
    return "\n\n".join(text)


def beliefs(folder: Path) -> list[dict[str, Any]]:
    """Of every network with enough rows, what `dfqlab.trust.Belief` holds."""
    found = []
    for path in sorted(folder.glob("trust_ranking_*_cpu.json")):
        result = json.loads(path.read_text())
        for target in _targets(result):
            rows = _rows(result, target)
            correlation = _correlation(rows, *_REPORTED)
            if correlation is None:
                continue
            value, low, high = correlation
            found.append(
                {
                    "teacher": f"{result['zoo']}/{target}",
                    "width": result["width"],
                    "points": len(rows),
                    "correlation": {"value": value, "low": low, "high": high},
                    "images": result["test_images"],
                }
            )
    return found


def spearman(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Spearman's rank correlation, -1..1, and the ends of its 95 % interval."""
    from scipy.stats import spearmanr

    value = float(spearmanr(a, b).statistic)
    half = _Z95 * math.sqrt((1 + value**2 / 2) / (len(a) - 3))
    z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, value)))
    return value, math.tanh(z - half), math.tanh(z + half)


def _correlation(rows: list[Result], judge: str, measure: str) -> tuple[float, float, float] | None:
    """None where a judge says nothing, or the same of all."""
    said = [row["judges"][judge][measure] for row in rows]
    return None if None in said or len(set(said)) == 1 else spearman(said, [row["accuracy"]["value"] for row in rows])


def _shown(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def _axes(result: Result) -> str:
    return ", ".join("/".join(dict.fromkeys(row[axis] for row in result["rows"])) for axis in ("rule", "rounding"))


def _targets(result: Result) -> list[str]:
    """Networks with enough rows to be ranked."""
    return [name for name in result["float"] if len(_rows(result, name)) >= _LEAST]


def _rows(result: Result, target: str) -> list[Result]:
    return [row for row in result["rows"] if row["target"] == target]


PAGES = (Page("trust", "ranking", "What an estimate without data is worth", ranking),)
