"""`report.html`, one page that needs nothing else, and `report.json`."""

import base64
import os
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from dfqlab import figures
from dfqlab.checkpoints import write_bytes, write_json
from dfqlab.report import wording
from dfqlab.report.content import RunReport, SourceRow, speed_phrase
from dfqlab.report.record import record

_SHOWN = 24  # images in the grid: four rows
_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Shown:
    """A figure on the page: its bytes in base64, and what it shows for those who do not see it."""

    png: str
    alternative: str


def write_report(content: RunReport, directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` and `report.json` into a folder, each whole or not at all; the same content, the same bytes.

    Returns:
        The path of the page.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    page, directory = render(content), Path(directory)
    write_json(directory / "report.json", record(content))
    write_bytes(directory / "report.html", page.encode("utf-8", errors="replace"))
    return directory / "report.html"


def render(content: RunReport) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(wording, name)
        for name in ("percent", "interval", "size", "milliseconds", "seconds", "decibels", "loss", "unbroken")
    }
    environment.filters |= {"color": figures.color_of, "count": lambda number: f"{number:,}"}
    return environment.get_template(_TEMPLATE).render(
        report=content,
        speed=speed_phrase(content.latency) if content.latency else None,
        speed_phrase=speed_phrase,
        shown=_figures(content),
        missing=wording.MISSING,
    )


def _figures(content: RunReport) -> dict[str, Shown]:
    """The figures that there is something for, by name."""
    return _of_images(content) | _of_layers(content) | _dots(content)


def _of_images(content: RunReport) -> dict[str, Shown]:
    """The images, and how they came about."""
    images, pictures = content.images, content.pictures
    shown: dict[str, Shown] = {}
    if images is None:
        return shown
    recipe = images.recipe
    if pictures.snapshots:
        rows, last = len(pictures.snapshots[0][1]), pictures.snapshots[-1][0]
        title = f"{recipe} makes images out of noise, in {last:,} steps"
        figure = figures.coming_to_life(pictures.snapshots, pictures.captions[:rows], title=title)
        shown["life"] = _shown(figure, f"{rows} images at {len(pictures.snapshots)} steps: {title}.")
    if len(pictures.images):
        few = min(_SHOWN, len(pictures.images))
        origin = images.made_from(content.teacher)
        title = f"{few} of the {images.count:,} images that {recipe} made from {origin}"
        figure = figures.image_grid(pictures.images[:few], pictures.captions[:few], title=title)
        shown["grid"] = _shown(figure, f"{title}. Captions: {', '.join(pictures.captions[:few])}.")
    if len(images.loss_curve) > 1:
        steps, losses = zip(*images.loss_curve, strict=True)
        figure = figures.loss_curve(steps, {"loss": losses}, source=recipe)
        shown["loss"] = _shown(
            figure, f"The loss by step, from {wording.loss(losses[0])} to {wording.loss(losses[-1])}."
        )
    return shown


def _of_layers(content: RunReport) -> dict[str, Shown]:
    """What BatchNorm layers saw of each source, and what each layer loses by what judges say."""
    pictures, shown = content.pictures, dict[str, Shown]()
    if pictures.bn_layers and pictures.bn_distances:
        names = {row.source: row.label for row in content.rows}
        distances = {names.get(source, source): line for source, line in pictures.bn_distances.items()}
        figure = figures.batch_norm_view(pictures.bn_layers, distances)
        shown["batch_norms"] = _shown(
            figure, f"Distances from what {len(pictures.bn_layers)} BatchNorm layers remember: {', '.join(distances)}."
        )
    judgements = {j.judge: j.layers for j in content.judgements if j.layers and j.kind != "calibrated on"}
    if judgements:
        figure = figures.layer_errors(judgements)
        worst = "; ".join(f"{j.judge}: {j.worst_layer}" for j in content.judgements if j.layers)
        shown["layers"] = _shown(figure, f"SQNR of each layer by judge. The worst layer by {worst}.")
    return shown


def _dots(content: RunReport) -> dict[str, Shown]:
    """Accuracy by source where real data judged, else agreement."""
    measure = "accuracy" if content.judged_on and any(row.accuracy for row in content.rows) else "agreement"
    shares = {row.label: share for row in content.rows if (share := getattr(row, measure)) is not None}
    if not shares:
        return {}
    on = content.judged_on or f"{content.judged_images:,} synthetic images"
    name = "accuracy" if measure == "accuracy" else "agreement with the teacher"
    teacher = content.teacher_accuracy if measure == "accuracy" else None
    title = None
    controls: list[SourceRow] = sorted((row for row in content.rows if "noise" in row.kind), key=lambda row: row.kind)
    row = content.shipped
    if row is not None and row.label in shares and controls and row not in controls and controls[0].label in shares:
        title = (
            f"{name.capitalize()} {wording.percent(shares[row.label].value)} calibrated on {row.label}, "
            f"{wording.percent(shares[controls[0].label].value)} on {controls[0].label}"
        )
    figure = figures.accuracy_by_source(shares, teacher, measure=f"{name} on {on}", title=title)
    listed = "; ".join(f"{source}: {share}" for source, share in shares.items())
    return {"dots": _shown(figure, f"{name} on {on} by calibration source. {listed}.")}


def _shown(figure: Figure, alternative: str) -> Shown:
    return Shown(base64.b64encode(figures.to_png(figure)).decode("ascii"), alternative)
