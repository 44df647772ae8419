"""One layer, rounded up and down in many ways: how far each throws off what the layer puts out."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.style import INK, MUTED, WIDTH, place, printable, sheet, style

_ROW = 0.36


@style()
def random_roundings(
    errors: Float[Tensor, "_"], marked: Mapping[str, float], *, measure: str, title: str | None = None
) -> Figure:
    """The error of each of many random roundings, and below them those of roundings that have a name.

    Args:
        errors: of the random ones.
        marked: errors by name, from top to bottom; the first is the one that the random ones are compared with.
        measure: what the errors are, with their unit.
        title: a sentence that says what to see; tells how many beat the first name if None.

    Raises:
        DataError: no random rounding, no name, or an error that is negative or not finite.
    """
    everything = np.array([*errors.detach().cpu().double().tolist(), *marked.values()])
    if len(errors) == 0 or not marked or not np.isfinite(everything).all() or everything.min() < 0:
        raise DataError(
            f"{len(errors)} random roundings and {len(marked)} with a name: expected one of each or more, and errors "
            "that are finite and not negative"
        )
    first, bar = next(iter(marked.items()))
    better = int((everything[: len(errors)] < bar).sum())
    figure = sheet(
        title or f"{better} of {len(errors)} random roundings beat {first}", 0.72 + _ROW * (1.2 + len(marked))
    )
    axes = place(figure, 1.75, 0.6, WIDTH - 1.75 - 0.85, _ROW * (1.2 + len(marked)))
    axes.vlines(everything[: len(errors)], -0.42, 0.42, color=MUTED, linewidth=1.1, alpha=0.55)
    axes.axvline(bar, color=INK, linestyle="--", linewidth=1.2, zorder=0.9)
    for row, (_, error) in enumerate(marked.items(), 1):
        axes.plot([error], [row], color=INK, marker="o", markersize=9, linestyle="")
        axes.annotate(f"{error:.3f}", xy=(1.02, row), xycoords=("axes fraction", "data"), va="center_baseline")
    axes.set(xlim=(0, 1.04 * everything.max() or 1.0), ylim=(len(marked) + 0.5, -0.6))
    axes.set_yticks(range(len(marked) + 1), [f"{len(errors)} at random", *(printable(name, 16) for name in marked)])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(printable(measure, 60))
    return figure
