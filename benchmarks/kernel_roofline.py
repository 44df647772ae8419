"""A picture for each device of the kernels' results: how much of what its memory allows each op reaches.

python -m benchmarks.kernel_roofline
"""

import json
from pathlib import Path
from typing import Any

from dfqlab.figures.roofline import RooflinePoint, roofline
from dfqlab_kernels.bench.cases import OURS
from dfqlab_kernels.bench.machine import FOLDER

RESULTS = Path(__file__).parents[1] / FOLDER
SHOWN = {
    "fake_quantize": "fake_quantize",
    "learned_step_quantize": "learned_step_quantize",
    "channel_stats": "channel_stats",
    "statistics_loss_resnet18": "statistics, ResNet-18",
    "fused_layer_resnet18": "fused layer, ResNet-18",
}


def main() -> None:
    """Draw a picture beside every results file."""
    for path in device_files():
        result = json.loads(path.read_text())
        points = points_of(result)
        if points:
            bandwidth = result["rates"][-1]["copy"]
            figure = roofline(
                points,
                bandwidth=float(f"{bandwidth:.3g}"),
                peak=None,
                machine=result["device"]["name"],
                title=title_of(points, bandwidth),
            )
            figure.savefig(picture_of(path))


def device_files() -> list[Path]:
    """The results files, one for each device."""
    return sorted(RESULTS.glob("*.json"))


def picture_of(path: Path) -> Path:
    """Where the picture of a results file is."""
    return path.with_name(f"roofline-{path.stem}.png")


def points_of(result: dict[str, Any]) -> list[RooflinePoint]:
    """The largest float32 tensor of every op, forward and backward."""
    points = []
    for op, name in SHOWN.items():
        rows = _measured(result, op)
        if rows:
            row = max(rows, key=lambda row: row["elements"])
            achieved = row["operations"] / row["times"][OURS]["median"]
            points.append(RooflinePoint(name, row["operations"] / row["floor_bytes"], achieved))
    return points


def title_of(points: list[RooflinePoint], bandwidth: float) -> str:
    """What the median op reaches; the op is named where it is the only one.

    >>> title_of([RooflinePoint("tap", 0.5, 0.5e12)], bandwidth=2e12)
    'tap reaches 50 % of what memory allows'
    """
    shares = sorted(p.achieved / (p.intensity * bandwidth) for p in points if p.achieved)
    op = "The median op" if len(points) > 1 else points[0].name
    return f"{op} reaches {100 * shares[len(shares) // 2]:.0f} % of what memory allows"


def _measured(result: dict[str, Any], op: str) -> list[dict[str, Any]]:
    about = (op, "float32", "both")
    return [r for r in result["rows"] if (r["op"], r["dtype"], r["direction"]) == about and OURS in r["times"]]


if __name__ == "__main__":
    main()
