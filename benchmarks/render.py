"""benchmarks/README.md from the results files: no number in it is typed by hand."""

import json
from pathlib import Path
from typing import Any

from benchmarks import (
    dsg_pages,
    inversion_table,
    mixmix_pages,
    ptq_pages,
    quantization_pages,
    reconstruction_table,
    runtime_table,
    trust_page,
)
from benchmarks.markdown import points, share, table
from benchmarks.paper_pages import executed
from dfqlab.checkpoints import write_bytes, write_json

FOLDER = Path(__file__).parent
PAPERS = (*mixmix_pages.PAGES, *dsg_pages.PAGES, *ptq_pages.PAGES, *quantization_pages.PAGES, *trust_page.PAGES)
SOURCES = ("noise", "clipped noise", "zeroq", "real")

_BEGIN, _END = "<!-- from benchmarks/results, by `python -m benchmarks.render` -->", "<!-- end -->"
_HEAD = """# Benchmarks

Every table is rewritten by the command above it; `python -m benchmarks.render` makes this page from `results/*.json`.
Quantized models are executed by onnxruntime, unless a table says otherwise. Accuracies are in per cent, with 95 %
intervals over the test images.
"""


def render() -> None:
    """Rewrite the page, the summary in the project's README, and what reports say of their estimates."""
    write_json(trust_page.BELIEFS, trust_page.beliefs(FOLDER / "results"))
    write_bytes(FOLDER / "README.md", page().encode())
    readme = FOLDER.parent / "README.md"
    write_bytes(readme, with_summary(readme.read_text()).encode())


def with_summary(readme: str) -> str:
    """The project's README with its summary made anew."""
    head, rest = readme.split(_BEGIN)
    _, tail = rest.split(_END)
    return f"{head}{_BEGIN}\n{_summary()}\n{_END}{tail}"


def _summary() -> str:
    """What the embedded networks show, in one sentence and a table."""
    path = FOLDER / "results" / "calibration_sources_digits.json"
    if not path.exists():
        return "not measured"
    result = json.loads(path.read_text())
    rows = [
        [row["teacher"], f"{100 * row['teacher_accuracy']:.1f}", *(share(row["accuracy"]["W4A4"][s]) for s in SOURCES)]
        for row in result["rows"]
    ]
    return (
        "Accuracy of the embedded networks at 4 bits, executed by onnxruntime, by what their ranges were calibrated "
        f"on: means over seeds {', '.join(map(str, result['seeds']))}, in per cent, with 95 % intervals over "
        f"{result['images']} held-out digits.\n\n{table(['teacher', 'float', *SOURCES], rows)}"
    )


def page() -> str:
    """The page, with "not measured" where there is no results file."""
    sections = [
        _section("What calibration images are worth: embedded digits", "calibration_sources digits", _digits),
        _section("The same on CIFAR-10, ResNet-20", "calibration_sources cifar10", _cifar10),
        *(page.section(FOLDER / "results") for page in PAPERS),
        inversion_table.section(FOLDER / "results"),
        reconstruction_table.section(FOLDER / "results"),
        runtime_table.section(FOLDER / "results"),
    ]
    return "\n".join([_HEAD, *sections])


def _section(title: str, command: str, body: Any) -> str:
    path = FOLDER / "results" / f"{command.replace(' ', '_')}.json"
    text = body(json.loads(path.read_text())) if path.exists() else "not measured"
    return f"## {title}\n\n    python -m benchmarks.{command}\n\n{text}\n"


def _digits(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        widths = {"chosen": row["width"]} | ({} if row["width"] == "W4A4" else {"W4A4": "W4A4"})
        for label, width in widths.items():
            gains = ("zeroq_minus_clipped", "zeroq_minus_real", "w8a8_minus_teacher")
            differences = [points(row[gain]) for gain in gains] if label == "chosen" else [""] * 3
            shares = [share(row["accuracy"][label][source]) for source in SOURCES]
            rows.append([row["teacher"], f"{100 * row['teacher_accuracy']:.1f}", width, *shares, *differences])
    header = ["teacher", "float", "width", *SOURCES, "zeroq - clipped noise", "zeroq - real", "W8A8 zeroq - float"]
    return (
        f"{result['calibration_images']} calibration images, MSE ranges, nearest rounding. Each network's width is "
        f"the one that seed {result['choosing_seed']} chose: the largest gain of ZeroQ over clipped noise among those "
        "where ZeroQ comes within two points of real images. Figures are means over seeds "
        f"{', '.join(map(str, result['seeds']))}, on {result['images']} held-out digits; differences are in points, "
        f"paired over the images.{executed(result)}\n\n{table(header, rows)}"
    )


def _cifar10(result: dict[str, Any]) -> str:
    shares = [[row["width"], *(share(row["accuracy"][s]) for s in SOURCES)] for row in result["rows"]]
    losses = [[row["width"], *(points(row["minus_teacher"][s]) for s in SOURCES)] for row in result["rows"]]
    return (
        f"{result['teacher']}, {100 * result['teacher_accuracy']:.2f} in float. {result['calibration_images']} "
        f"calibration images, MSE ranges, nearest rounding, one seed, {result['images']:,} recompressed test "
        "images (published accuracies do not apply). All layers at the width of the row, the input at 8 bits, "
        f"BatchNorm folded.{executed(result)}\n\n"
        f"{table(['width', *SOURCES], shares)}\n\n"
        f"Difference to the float teacher, in points, paired over the images:\n\n{table(['width', *SOURCES], losses)}"
    )


if __name__ == "__main__":
    render()
