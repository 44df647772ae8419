"""The table of what was made: accuracy and agreement with their intervals, bytes, and whether the certificate holds."""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dfqlab.errors import DataError
from dfqlab.figures.labels import wide
from dfqlab.figures.style import INK, MUTED, WIDTH, color_of, place, printable, sheet, style
from dfqlab.measures import Interval

_ROW, _HEAD, _FOOT = 0.36, 0.42, 0.52  # inches
_LONGEST_NAME = 27
_POINTS = 10.5  # of names and numbers
_COLUMNS = {"accuracy": 1.38, "agreement": 2.66, "kB": 3.12, "holds": 3.6}  # where each ends, in inches
_NUMBERS = max(_COLUMNS.values())
_MOST = 12


@dataclass(frozen=True)
class DeployedRow:
    """One model of the table.

    Attributes:
        accuracy: on labelled images.
        agreement: with the teacher, on the same images.
        bytes: of the parameters, packed.
        holds: whether its certificate does.
    """

    accuracy: Interval
    agreement: Interval
    bytes: int
    holds: bool


@style()
def deployed_table(
    rows: Mapping[str, DeployedRow],
    teacher_accuracy: Interval,
    *,
    measure: str = "accuracy",
    title: str | None = None,
) -> Figure:
    """A row for each model: its accuracy as a dot with its interval, and in numbers all that is to be said of it.

    Its places are fixed and nothing is solved, so that it can be drawn again with each row that comes in.

    Args:
        rows: at most 12 models, by what they were made with; none yet is a table to come.
        teacher_accuracy: a dashed line, and its interval behind it.
        measure: what the shares are, with what they were measured on: "accuracy on 599 held-out digits".
        title: a sentence that says what to see; tells how many intervals overlap that of the best row if None.

    Raises:
        DataError: more rows than can be read.
    """
    if len(rows) > _MOST:
        raise DataError(f"{len(rows)} rows: expected {_MOST} or fewer, try the last ones")
    names = {name: printable(name, _LONGEST_NAME) for name in rows}
    left = 0.16 + max(1.0, 1.05 * max((wide(name, _POINTS) for name in names.values()), default=0) / 72)
    body = _ROW * max(1, len(rows))
    figure = sheet(title or _within_reach(rows), _HEAD + body + _FOOT)
    axes = place(figure, left, _FOOT, WIDTH - left - _NUMBERS, body)
    axes.set(ylim=(max(1, len(rows)) - 0.5, -0.5), xlim=_limits(rows, teacher_accuracy))
    axes.axvspan(100 * teacher_accuracy.low, 100 * teacher_accuracy.high, color=MUTED, alpha=0.12, linewidth=0)
    axes.axvline(100 * teacher_accuracy.value, color=INK, linestyle="--", linewidth=1.6)
    for at, (name, row) in enumerate(rows.items()):
        color, share = color_of(name), row.accuracy
        # The ends stand out above and below the dot, which would cover a short interval.
        axes.plot([100 * share.low, 100 * share.high], [at, at], color=color, linewidth=1.5, marker="|", markersize=10)
        axes.plot([100 * share.value], [at], color=color, marker="o", markersize=4)
    axes.set_yticks(range(len(rows)), list(names.values()), fontsize=_POINTS, fontweight="bold")
    for label, name in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(color_of(name))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    axes.tick_params(axis="x", labelsize=11)
    below = f"{printable(measure, 44)} (%); dashed: teacher {100 * teacher_accuracy.value:.1f}"
    begins = min(left, WIDTH - 0.1 - wide(below, 11) / 72)
    axes.set_xlabel(below, fontsize=11, horizontalalignment="left")
    axes.xaxis.set_label_coords((begins - left) / (WIDTH - left - _NUMBERS), -0.34 / body)
    _columns(place(figure, WIDTH - _NUMBERS - 0.04, _FOOT, _NUMBERS, _HEAD + body), rows, body)
    return figure


def _columns(axes: Axes, rows: Mapping[str, DeployedRow], body: float) -> None:
    """Numbers, a line for each row, under the names of the columns."""
    axes.set_axis_off()
    axes.set(xlim=(0, _NUMBERS), ylim=(0, _HEAD + body))
    for name, end in _COLUMNS.items():
        axes.text(end, body + 0.08, name, color=MUTED, fontsize=_POINTS, ha="right", va="bottom")
    for at, row in enumerate(rows.values()):
        size = f"{row.bytes / 1000:.1f}" if row.bytes < 100_000 else f"{row.bytes / 1000:,.0f}"
        told = (_told(row.accuracy), _told(row.agreement), size, "yes" if row.holds else "no")
        for end, words in zip(_COLUMNS.values(), told, strict=True):
            middle = body - _ROW * (at + 0.5)
            axes.text(end, middle, words, fontsize=_POINTS, ha="right", va="center_baseline")


def _told(share: Interval) -> str:
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _limits(rows: Mapping[str, DeployedRow], teacher: Interval) -> tuple[float, float]:
    shares = [teacher, *(row.accuracy for row in rows.values())]
    low, high = 100 * min(share.low for share in shares), 100 * max(share.high for share in shares)
    room = 0.06 * max(2.0, high - low)
    return low - room, high + room


def _within_reach(rows: Mapping[str, DeployedRow]) -> str:
    if not rows:
        return "No model was made yet"
    best = max(rows, key=lambda name: rows[name].accuracy.value)
    if len(rows) == 1:
        return f"{printable(best, 40)}, the only row so far"
    near = [name for name, row in rows.items() if name != best and row.accuracy.high >= rows[best].accuracy.low]
    others = f"{len(near)} of {len(rows) - 1} other intervals" if near else "No other interval"
    return f"{others} overlap{'s' * (len(near) < 2)} that of the best, {printable(best, 40)}"
