"""Dots with their intervals: what each source of calibration images gives."""

import textwrap
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dfqlab.errors import DataError
from dfqlab.figures.style import INK, MUTED, canvas, color_of, printable, set_title, settle, style
from dfqlab.measures import Interval


@style()
def accuracy_by_source(
    rows: Mapping[str, Interval],
    teacher_accuracy: Interval | None = None,
    *,
    measure: str = "accuracy",
    title: str | None = None,
) -> Figure:
    """A share for each source of calibration images, with its interval, beside the teacher's.

    Args:
        rows: a share with its interval by source, from top to bottom.
        teacher_accuracy: the teacher's, a dashed line and its interval behind it; none where agreement is shown.
        measure: what the shares are, with what they were measured on: "accuracy on 599 held-out digits".
        title: a sentence that says what to see; tells the best and the worst source if None.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("nothing to draw: no rows")
    figure, axes = canvas(1.65 + 0.44 * len(rows))
    set_title(figure, title or _best_and_worst(rows, measure))
    for height, (source, share) in enumerate(rows.items()):
        value, low, high = _percent(share)
        color = color_of(source)
        axes.plot([low, high], [height, height], color=color, linewidth=3, alpha=0.45)
        axes.plot([value], [height], color=color, marker="o", markersize=9)
        axes.annotate(
            f"{value:.1f} [{low:.1f}, {high:.1f}]",
            xy=(1.02, height),
            xycoords=("axes fraction", "data"),
            verticalalignment="center_baseline",
        )
    axes.set_yticks(range(len(rows)), [printable(source, 32) for source in rows])
    for label, source in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(color=color_of(source), fontweight="bold")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    everything = [number for share in rows.values() for number in _percent(share)]
    if teacher_accuracy is not None:
        value, low, high = _percent(teacher_accuracy)
        everything += [value, low, high]
        axes.axvspan(low, high, color=MUTED, alpha=0.12, linewidth=0)
        axes.axvline(value, color=INK, linestyle="--", linewidth=1.6)
        axes.annotate(
            f"teacher {value:.1f}",
            xy=(value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="bottom",
        )
    room = 0.06 * max(2.0, max(everything) - min(everything))
    axes.set_xlim(min(everything) - room, max(everything) + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], prune=None))
    axes.set_xlabel("\n".join(textwrap.wrap(f"{printable(measure, 80)} (%)", 54)))
    settle(figure)
    return figure


def _best_and_worst(rows: Mapping[str, Interval], measure: str) -> str:
    name = measure.split(" on ")[0]
    best, worst = max(rows, key=lambda row: rows[row].value), min(rows, key=lambda row: rows[row].value)
    sentence = f"Calibrated on {best}: {name} {100 * rows[best].value:.1f} %"
    return sentence if best == worst else f"{sentence}; on {worst}: {100 * rows[worst].value:.1f} %"


def _percent(share: Interval) -> tuple[float, float, float]:
    return 100 * share.value, 100 * share.low, 100 * share.high
