"""One program of a kernel at work: the cells of small tensors that it reads and writes, and its idle lanes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures.style import CLIPPING, DPI, INK, MUTED, ROUNDING, RULE, WIDTH, place, printable, sheet, style
from dfqlab_kernels.trace import Access, Direction, Trace

SECTOR = 32  # bytes that a GPU's memory delivers at least

_HERE, _FETCHED, _EARLIER, _OUTSIDE = ROUNDING, "#b5dde2", "#e3e3e7", CLIPPING
_MOST = 96
_COLUMNS = 16  # of a tensor without rows of its own
# In inches that are whole pixels, so that lines are sharp.
_CELL, _ROW, _HEAD, _GAP, _LABEL, _EDGE = 40 / DPI, 30 / DPI, 33 / DPI, 18 / DPI, 68 / DPI, 9 / DPI
_ACROSS = WIDTH - 2 * _EDGE
_LEAST_HEIGHT = 352 / DPI
_VERBS: dict[Direction, str] = {"load": "read", "store": "written"}


@dataclass(frozen=True)
class _Block:
    """Rows of cells under one another: a name and the elements of each."""

    rows: tuple[tuple[str, range], ...]

    @property
    def columns(self) -> int:
        return max((len(elements) for _, elements in self.rows), default=0)


@style()
def tile_step(trace: Trace, program: int, *, title: str | None = None) -> Figure:
    """What one program of a launch loads and stores, element by element, and what programs before it did.

    A tensor stands as it lies in memory: along a row its last dimension, or its channels where it is channels_last.
    Its places follow from the tensors alone, so that a slider may walk through the programs.

    Args:
        trace: of `dfqlab_kernels.trace`, recorded or made up; its tensors are small, 96 elements or fewer.
        program: a place in `programs_of(trace)`; ignored where the trace has none.
        title: a sentence that says what to see; tells the counts of elements and lanes if None.

    Raises:
        DataError: no tensors, one too large to draw, or no such program.
    """
    shown = _shown(trace)
    if not shown or max(trace.tensors[name].numel() for name, _ in shown) > _MOST:
        sizes = {name: tensor.numel() for name, tensor in trace.tensors.items()}
        raise DataError(f"tensors of {sizes} elements: expected one or more, and at most {_MOST} elements in each")
    ids = programs_of(trace)
    if ids and not 0 <= program < len(ids):
        raise DataError(f"program {program}: expected 0 to {len(ids) - 1}")
    now = [access for access in trace.accesses if ids and access.program == ids[program]]
    before = [access for access in trace.accesses if access.program in ids[:program]]
    tiles = [access for access in now if access.direction == "load"] or now
    tiles = [access for access in tiles if access.tensor == shown[0][0]] or tiles
    blocks = {name: _blocks(trace.tensors[name]) for name, _ in shown}
    heights = [_HEAD + _GAP + _ROW * max(len(block.rows) for block in blocks[name]) for name, _ in shown]
    height = max(_LEAST_HEIGHT, sum(heights) + _HEAD + _ROW + _GAP + 46 / DPI)
    figure = sheet(title or _sentence(trace, program, now, tiles), height)
    axes = place(figure, _EDGE, 0, _ACROSS, height)
    axes.set_axis_off()
    axes.set(xlim=(0, _ACROSS), ylim=(0, height))
    top = height
    for (name, direction), tall in zip(shown, heights, strict=True):
        cells = _Cells(
            here=_touched(now, name, direction),
            earlier=_touched(before, name, direction),
            sector=SECTOR // trace.tensors[name].element_size(),
            fetches=direction == "load",
            count=trace.tensors[name].numel(),
        )
        _tensor(axes, top, f"{name}, {_VERBS[direction]}" if now else name, trace.tensors[name], blocks[name], cells)
        top -= tall
        if (name, direction) == shown[0]:
            _lanes(axes, top, program, tiles, cells)
            top -= _HEAD + _ROW + _GAP
    _key(axes)
    return figure


def programs_of(trace: Trace) -> list[tuple[int, int, int]]:
    """The ids of all programs that touched a watched tensor, in order."""
    return sorted({access.program for access in trace.accesses})


def sectors(elements: Iterable[int], element_size: int) -> set[int]:
    """Which pieces of 32 bytes these elements lie in, counted from the tensor's first.

    >>> sectors([0, 1, 8], element_size=4), len(sectors(range(0, 64, 8), element_size=4))
    ({0, 1}, 8)
    """
    return {element * element_size // SECTOR for element in elements}


@dataclass(frozen=True)
class _Cells:
    here: frozenset[int]
    earlier: frozenset[int]
    sector: int
    fetches: bool
    count: int

    def color(self, element: int) -> str:
        if element in self.here:
            return _HERE if 0 <= element < self.count else _OUTSIDE
        if self.fetches and element // self.sector in {near // self.sector for near in self.here}:
            return _FETCHED
        return _EARLIER if element in self.earlier else "white"

    @property
    def outside(self) -> list[int]:
        return sorted(element for element in self.here if not 0 <= element < self.count)


def _shown(trace: Trace) -> list[tuple[str, Direction]]:
    """Tensors of more than one element that are read, then those that are written; all, where nothing is."""
    pairs: list[tuple[str, Direction]] = []
    for direction in _VERBS:
        touched = {access.tensor for access in trace.accesses if access.direction == direction}
        pairs += [(name, direction) for name in trace.tensors if name in touched]
    large = [(name, way) for name, way in pairs if trace.tensors[name].numel() > 1]
    return (large or pairs)[:3] if pairs else [(name, "load") for name in trace.tensors][:2]


def _touched(accesses: Iterable[Access], name: str, direction: Direction) -> frozenset[int]:
    chosen = (access for access in accesses if (access.tensor, access.direction) == (name, direction))
    return frozenset(element for access in chosen for element in access.elements)


def _sentence(trace: Trace, program: int, now: Sequence[Access], tiles: Sequence[Access]) -> str:
    if not now:
        return "No program has run yet"
    strays = [access.tensor for access in now if not _inside(access, trace)]
    if strays:
        return f"Program {program} reaches past the end of {strays[0]}"
    name = tiles[0].tensor
    count = len({element for access in tiles for element in access.elements})
    masked = sum(access.lanes - len(access.elements) for access in tiles)
    lanes = sum(access.lanes for access in tiles)
    verb = "reads" if tiles[0].direction == "load" else "writes"
    of = trace.tensors[name].numel()
    return f"Program {program} {verb} {count} of {of} elements with {lanes} lanes, {masked or 'none'} masked"


def _inside(access: Access, trace: Trace) -> bool:
    return all(0 <= element < trace.tensors[access.tensor].numel() for element in access.elements)


def _blocks(x: Tensor) -> list[_Block]:
    """A tensor in the order of its memory: a block for each sample, in it a row for each channel, or for each pixel."""
    if x.dim() <= 1:
        starts = range(0, max(x.numel(), 1), _COLUMNS)
        rows = tuple((f"{start}", range(start, min(start + _COLUMNS, x.numel()))) for start in starts)
        return [_Block(rows)]
    if x.dim() == 2:
        down, across = x.shape
        return [_Block(tuple((f"row {row}", range(row * across, (row + 1) * across)) for row in range(down)))]
    samples, channels = x.shape[:2]
    inner = x.numel() // max(samples * channels, 1)
    letter, rows_each, columns = ("px", inner, channels) if _channels_last(x) else ("c", channels, inner)
    begins = [[(n * rows_each + row) * columns for row in range(rows_each)] for n in range(samples)]
    return [
        _Block(tuple((f"n{n} {letter}{row}", range(at, at + columns)) for row, at in enumerate(block)))
        for n, block in enumerate(begins)
    ]


def _channels_last(x: Tensor) -> bool:
    return x.dim() > 2 and x.shape[1] > 1 and x.stride(1) == 1 and x.shape[:2].numel() < x.numel()


def _tensor(axes: Axes, top: float, name: str, x: Tensor, blocks: Sequence[_Block], cells: _Cells) -> None:
    shape = f"shape ({', '.join(map(str, x.shape))}{',' if x.dim() == 1 else ''})"
    order = ", channels_last" if _channels_last(x) else ""
    axes.text(0, top - _HEAD / 2, printable(name, 28), fontweight="bold", va="center")
    axes.text(2.1, top - _HEAD / 2, f"{shape}{order}", color=MUTED, va="center")
    columns = sum(block.columns for block in blocks)
    if cells.outside:  # drawn behind the last row
        columns = max(columns, columns - blocks[-1].columns + len(blocks[-1].rows[-1][1]) + min(len(cells.outside), 4))
    width = min(_CELL, (_ACROSS - _LABEL * len(blocks)) / max(columns, 1))
    left = 0.0
    for block in blocks:
        for row, (label, elements) in enumerate(block.rows):
            y = top - _HEAD - _ROW * (row + 1)
            axes.text(left + _LABEL - 0.07, y + _ROW / 2, label, color=MUTED, fontsize=10.5, ha="right", va="center")
            for column, element in enumerate(elements):
                numbered = column == 0 or element % cells.sector == 0
                _cell(axes, left + _LABEL + column * width, y, width, element, cells, numbered=numbered)
        left += _LABEL + width * block.columns + 0.06
    _strays(axes, left, top - _HEAD, width, blocks, cells)


def _strays(axes: Axes, left: float, top: float, width: float, blocks: Sequence[_Block], cells: _Cells) -> None:
    """Elements past the end that this program touches, drawn where memory goes on."""
    if not cells.outside:
        return
    last = blocks[-1].rows[-1][1]
    x = left - 0.06 if len(blocks) > 1 or len(last) == blocks[-1].columns else _LABEL + width * len(last)
    y = top - _ROW * max(len(block.rows) for block in blocks)
    room = int((_ACROSS - x) / width)
    fit = cells.outside if len(cells.outside) <= room else cells.outside[: max(room - 1, 0)]
    for place_, element in enumerate(fit):
        _cell(axes, x + place_ * width, y, width, element, cells)
    if len(fit) < len(cells.outside):
        axes.text(x + (len(fit) + 0.5) * width, y + _ROW / 2, "…", color=_OUTSIDE, ha="center", va="center")


def _cell(axes: Axes, x: float, y: float, width: float, element: int, cells: _Cells, *, numbered: bool = False) -> None:
    color = cells.color(element)
    edge = RULE if color == "white" else "white"
    hatch: dict[str, Any] = {"facecolor": "white", "edgecolor": color, "hatch": "xxx"} if color == _OUTSIDE else {}
    look: dict[str, Any] = {"facecolor": color, "edgecolor": edge, "linewidth": 0.8} | hatch
    axes.add_patch(Rectangle((x, y), width, _ROW, **look))
    if element in cells.earlier and color != _OUTSIDE:
        axes.plot([x + 0.05, x + width - 0.05], [y + 0.035, y + 0.035], color=MUTED, linewidth=1.6)
    if element % cells.sector == 0:
        axes.plot([x, x], [y - 0.01, y + _ROW + 0.01], color=INK, linewidth=1.5, solid_capstyle="butt")
    ink, weight = ("white", "bold") if color == _HERE else (_OUTSIDE, "bold") if color == _OUTSIDE else (INK, "normal")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6} if color == _OUTSIDE else None
    if width < 0.17 or not (numbered or element in cells.here):
        return
    points = 10.5 if width > 0.27 else 8
    axes.text(
        x + width / 2, y + _ROW / 2, str(element), color=ink, fontweight=weight, fontsize=points, ha="center",
        va="center_baseline", bbox=box,
    )  # fmt: skip


def _lanes(axes: Axes, top: float, program: int, tiles: Sequence[Access], cells: _Cells) -> None:
    """The program's tiles, lane by lane, with the element that each loads; masked lanes are hatched."""
    lanes = sum(access.lanes for access in tiles)
    what = f"{len(tiles)} tiles of {tiles[0].lanes} lanes" if len(tiles) > 1 else f"{lanes} lanes"
    axes.text(0, top - _HEAD / 2, f"program {program}" if tiles else "no program yet", fontweight="bold", va="center")
    if not tiles:
        return
    axes.text(2.1, top - _HEAD / 2, what, color=MUTED, va="center")
    width = min(_CELL, (_ACROSS - _LABEL - 0.12 * len(tiles)) / max(lanes, 1))
    x, y = _LABEL, top - _HEAD - _ROW
    for access in tiles:
        for lane in range(access.lanes):
            if width < 0.05:
                break
            if lane < len(access.elements):
                _cell(axes, x, y, width, access.elements[lane], cells)
            else:
                axes.add_patch(Rectangle((x, y), width, _ROW, facecolor="white", edgecolor=MUTED, hatch="////", lw=0.8))
            x += width
        x += 0.12


def _key(axes: Axes) -> None:
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("this program", {"facecolor": _HERE}),
        ("fetched too", {"facecolor": _FETCHED}),
        ("earlier", {"facecolor": _EARLIER}),
        ("masked", {"facecolor": "white", "edgecolor": MUTED, "hatch": "////"}),
        ("outside", {"facecolor": "white", "edgecolor": _OUTSIDE, "hatch": "xxx"}),
    )
    x = 0.0
    for name, look in kinds:
        drawn: dict[str, Any] = {"linewidth": 0.8, "edgecolor": "white"} | look
        axes.add_patch(Rectangle((x, 0.1), 0.26, 0.2, **drawn))
        axes.text(x + 0.33, 0.2, name, color=MUTED, fontsize=10.5, va="center")
        x += 0.48 + 0.083 * len(name)
    axes.plot([x + 0.06, x + 0.06], [0.08, 0.32], color=INK, linewidth=1.5)
    axes.text(x + 0.15, 0.2, f"{SECTOR} bytes", color=MUTED, fontsize=10.5, va="center")
