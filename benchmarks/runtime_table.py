"""What `benchmarks.runtime_speed` measured, as a section of benchmarks/README.md."""

import json
from pathlib import Path
from typing import Any

from benchmarks.inversion_table import MISSING, StepGoal
from benchmarks.markdown import table
from benchmarks.runtime_speed import EIGHT, FLOAT, FOUR, HEADER, rows


def _faster(entry: dict[str, Any], other: str) -> float:
    return float(entry["runtimes"]["onnxruntime"][FOUR]["times as fast as"][other]["median"])


GOALS = [
    StepGoal("onnxruntime: W4A4, times as fast as float", 2, lambda entry: _faster(entry, FLOAT)),
    StepGoal("onnxruntime: time of W4A4 over that of W8A8", 1.1, lambda entry: 1 / _faster(entry, EIGHT), most=True),
]


def section(results: Path) -> str:
    """The section, with "not measured" where there is no results file."""
    head = "## Runtimes\n\n    python -m benchmarks.runtime_speed"
    path = results / "runtime_speed.json"
    if not path.exists():
        return f"{head}\n\n{MISSING}\n"
    entries = json.loads(path.read_text())["devices"].values()
    names = [entry["device"]["name"] for entry in entries]
    goals = [[goal.what, goal.wish, *(goal.verdict(entry) for entry in entries)] for goal in GOALS]
    return "\n\n".join([head, table(["", "goal", *names], goals), *(_files(entry) for entry in entries)]) + "\n"


def _files(entry: dict[str, Any]) -> str:
    versions = entry["versions"]
    return (
        f"{entry['device']['name']}, onnxruntime {versions['onnxruntime']}, OpenVINO {versions['openvino']}, "
        f"{entry['date']}: ResNet-18 at 224, one image, one thread, all in turn. Medians; ratios round by round, with "
        "20 % and 80 % quantiles. OpenVINO keeps the rounding in front of additions, which by itself it leaves out. "
        "Without VNNI onnxruntime multiplies weights of 8 bits exactly, in a kernel that takes longer. "
        f"A small file is for storage: runtimes execute it in float.\n\n{table(['', *HEADER], rows(entry))}"
    )
