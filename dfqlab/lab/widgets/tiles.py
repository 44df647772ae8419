"""Step through the programs of a kernel: which elements each reads and writes, and which of its lanes stay idle.

The kernels here are made up in plain Python, from offsets and masks; a recorded one is shown in the same picture.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dfqlab.errors import ConfigurationError
from dfqlab.figures.tiles import SECTOR, programs_of, sectors, tile_step
from dfqlab.lab.controls import Choice, Slider
from dfqlab.lab.display import Drawing
from dfqlab.lab.launching import first_outside
from dfqlab.lab.panels import Explorer, ExplorerView
from dfqlab_kernels.trace import Access, Direction, Trace

_FLAT, _ROWS, _COLUMNS = 20, 4, 6  # elements of a vector; channels and elements of each, of a matrix
_SHAPE = (2, 4, 6)  # n, c, h·w of a batch
_BLOCKS = ("2", "4", "8", "16")

_DIRECTIONS: tuple[Direction, Direction] = ("load", "store")

Tile = tuple[list[int], list[bool]]
"""The offsets of a tile's lanes, and which of them the mask shows."""


class TileStepper(Explorer):
    """Controls over launches, one of which is a slider that walks through the programs that there are.

    Args:
        launched: the launch to step through, for the value of each other control.
        controls: all but `program`.
    """

    def __init__(self, launched: Callable[..., Trace], **controls: Any) -> None:
        self._launched = launched
        defaults = {name: control.value for name, control in controls.items()}
        choices = [{**defaults, name: value} for name, control in controls.items() for value in control.positions]
        most = max(_programs(launched(**values)) for values in [defaults, *choices])
        super().__init__(self._drawn, **controls, program=Slider(0, 0, max(most - 1, 1)))

    def last_program(self, **values: Any) -> int:
        """The last program of the launch that these values describe."""
        return max(_programs(self._launched(**{n: v for n, v in values.items() if n != "program"})) - 1, 0)

    def drawing(self, **values: Any) -> Drawing:
        """What the widget shows with these values; the others stand as they stand first.

        Raises:
            ConfigurationError: a control that it does not have, a value that it cannot take, or no such program.
        """
        chosen = {name: control.value for name, control in self.controls.items()} | values
        known = all(value in self.controls[name].positions for name, value in values.items() if name in self.controls)
        if (
            known
            and values.keys() <= self.controls.keys()
            and chosen["program"] > (last := self.last_program(**chosen))
        ):
            raise ConfigurationError(f"program={chosen['program']}: the last program of this launch is {last}")
        return super().drawing(**values)

    def view(self) -> ExplorerView:
        """The widget, whose slider ends at the last program of the launch."""
        return _StepperView(self)

    def _drawn(self, program: int, **values: Any) -> Drawing:
        trace = self._launched(**values)
        return Drawing(tile_step(trace, program), step_sentence(trace, program))


class _StepperView(ExplorerView):
    def __init__(self, stepper: TileStepper) -> None:
        self._stepper = stepper
        super().__init__(stepper)

    def _redraw(self, change: Any = None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        slider, last = self.controls["program"], self._stepper.last_program(**values)
        slider.disabled = last == 0
        if values["program"] > last:
            slider.value = last  # comes back here, and is drawn then
            return
        slider.max = max(last, 1)
        super()._redraw(change)


def tiles() -> TileStepper:
    """Four kernels as offsets and masks: a vector, rows of a matrix, and the channel mean in both layouts of memory."""
    return TileStepper(
        lambda layout, block: modelled(layout, int(block)),
        layout=Choice("vector", tuple(_LAYOUTS)),
        block=Choice("8", _BLOCKS),
    )


def launched(trace: Trace) -> TileStepper:
    """A launch that `lab.launch` watched, in the same picture."""
    return TileStepper(lambda: trace)


def modelled(layout: str, block: int) -> Trace:
    """What a kernel of this layout loads and stores with tiles of `block` lanes, from its offsets and masks alone."""
    return _LAYOUTS[layout](block)


def step_sentence(trace: Trace, program: int) -> str:
    """What `tile_step` shows, in words."""
    ids = programs_of(trace)
    if not ids:
        return "No program has run yet."
    now = [access for access in trace.accesses if access.program == ids[program]]
    loads, stores = _by_tensor(now, "load"), _by_tensor(now, "store")
    parts = [f"{verb} {_told(n, e)}" for verb, found in (("reads", loads), ("writes", stores)) for n, e in found]
    main = [access for access in now if access.direction == "load"] or now
    main = [access for access in main if access.tensor == main[0].tensor]
    masked, lanes = sum(access.lanes - len(access.elements) for access in main), sum(access.lanes for access in main)
    idle = f"{masked or 'none'} of its {lanes} lanes {'is' if masked in (0, 1) else 'are'} masked"
    of = f"of 0 to {len(ids) - 1}" if len(ids) > 1 else "the only one"
    told = [f"Program {program} ({of}) {', '.join(parts)}; {idle}."]
    for name, elements in loads[:1]:
        size, count = trace.tensors[name].element_size(), trace.tensors[name].numel()
        useful, fetched = size * sum(0 <= e < count for e in elements), len(sectors(elements, size))
        told.append(
            f"{SECTOR}-byte sectors of {name} touched: {fetched}, useful bytes: {useful} of {SECTOR * fetched}."
        )
    return " ".join([*told, *_faults(trace)])


def _by_tensor(accesses: Sequence[Access], direction: Direction) -> list[tuple[str, list[int]]]:
    found: dict[str, set[int]] = {}
    for access in accesses:
        if access.direction == direction:
            found.setdefault(access.tensor, set()).update(access.elements)
    return [(name, sorted(elements)) for name, elements in found.items()]


def _told(name: str, elements: Sequence[int]) -> str:
    """Elements in as few words as say them all, or how many they are and how far they reach.

    >>> _told("x", [0, 1, 2, 3]), _told("x", [0, 4, 8, 12]), _told("y", [2])
    ('x 0..3', 'x 0, 4, .. 12', 'y 2')
    """
    if not elements:
        return f"nothing of {name}"
    runs: list[list[int]] = []
    for element in elements:
        if runs and element == runs[-1][-1] + 1:
            runs[-1].append(element)
        else:
            runs.append([element])
    if len(runs) <= 3:
        return f"{name} " + " and ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    step = elements[1] - elements[0]
    if list(elements) == list(range(elements[0], elements[-1] + 1, step)):
        return f"{name} {elements[0]}, {elements[1]}, .. {elements[-1]}"
    return f"{len(elements)} elements of {name} from {elements[0]} to {elements[-1]}"


def _faults(trace: Trace) -> Iterator[str]:
    """What is wrong with the launch as a whole."""
    if outside := first_outside(trace):
        yield f"Wrong: {outside[0].lower()}{outside[1:]}"
    for name in dict.fromkeys(access.tensor for access in trace.accesses if access.direction == "store"):
        written = trace.of(name, "store")
        missed = [element for element in range(trace.tensors[name].numel()) if element not in written]
        if missed:
            yield f"Wrong: no program writes {_told(name, missed)}."


def _programs(trace: Trace) -> int:
    return len(programs_of(trace))


def _vector(block: int) -> Trace:
    tiles = [_tile(start, 1, block, _FLAT - start) for start in range(0, _FLAT, block)]
    return _trace({"x": (_FLAT,), "y": (_FLAT,)}, [[tile] for tile in tiles], [[tile] for tile in tiles])


def _matrix_rows(block: int) -> Trace:
    tiles = [
        _tile(row * _COLUMNS + start, 1, block, _COLUMNS - start)
        for row in range(_ROWS)
        for start in range(0, _COLUMNS, block)
    ]
    shape = (_ROWS, _COLUMNS)
    return _trace({"x": shape, "y": shape}, [[tile] for tile in tiles], [[tile] for tile in tiles])


def _mean_contiguous(block: int) -> Trace:
    samples, channels, inner = _SHAPE
    tiles = [
        [
            _tile((sample * channels + channel) * inner + start, 1, block, inner - start)
            for sample in range(samples)
            for start in range(0, inner, block)
        ]
        for channel in range(channels)
    ]
    return _trace({"x": _SHAPE, "mean": (channels,)}, tiles, [[_tile(c, 1, 1, 1)] for c in range(channels)])


def _mean_channels_last(block: int) -> Trace:
    samples, channels, inner = _SHAPE
    pixels = samples * inner
    tiles = [
        [_tile(start * channels + channel, channels, block, pixels - start) for start in range(0, pixels, block)]
        for channel in range(channels)
    ]
    return _trace({"x": _SHAPE, "mean": (channels,)}, tiles, [[_tile(c, 1, 1, 1)] for c in range(channels)], last=True)


def _partials_channels_last(block: int) -> Trace:
    samples, channels, inner = _SHAPE
    numel = samples * channels * inner
    tiles = [_tile(start, 1, channels * block, numel - start) for start in range(0, numel, channels * block)]
    sums = [_tile(number * channels, 1, channels, channels) for number in range(len(tiles))]
    shapes = {"x": _SHAPE, "sums": (len(tiles), channels)}
    return _trace(shapes, [[tile] for tile in tiles], [[tile] for tile in sums], last=True)


_LAYOUTS: dict[str, Callable[[int], Trace]] = {
    "vector": _vector,
    "matrix, rows are channels": _matrix_rows,
    "NCHW, a channel each": _mean_contiguous,
    "channels_last, a channel each": _mean_channels_last,
    "channels_last, pixels each": _partials_channels_last,
}


def _tile(start: int, step: int, lanes: int, exist: int) -> Tile:
    """`start + step * arange(lanes)`, of which the first `exist` are shown."""
    return [start + step * lane for lane in range(lanes)], [lane < exist for lane in range(lanes)]


def _trace(
    shapes: dict[str, tuple[int, ...]],
    loads: Sequence[Sequence[Tile]],
    stores: Sequence[Sequence[Tile]],
    last: bool = False,
) -> Trace:
    """A launch whose programs load these tiles of the first tensor and store those of the second."""
    source, result = shapes
    x = torch.empty(shapes[source])
    tensors = {source: x.mT.contiguous().mT if last else x, result: torch.empty(shapes[result])}
    accesses = []
    for program, both in enumerate(zip(loads, stores, strict=True)):
        for direction, name, tiles in zip(_DIRECTIONS, shapes, both, strict=True):
            for offsets, shown in tiles:
                elements = tuple(offset for offset, shows in zip(offsets, shown, strict=True) if shows)
                accesses.append(Access((program, 0, 0), direction, name, elements, len(offsets)))
    return Trace(tensors, accesses)
