"""A program's picture shows every element that it touches, every lane that it does not use, and what is wrong."""

import itertools
from collections import Counter

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfqlab.errors import DataError
from dfqlab.figures import tile_step, to_png
from dfqlab.figures.style import CLIPPING, MUTED, ROUNDING
from dfqlab.figures.tiles import programs_of, sectors
from dfqlab_kernels.trace import Access, Trace

FETCHED, EARLIER = "#b5dde2", "#e3e3e7"


def vector(block: int = 8, count: int = 20, masked: bool = True) -> Trace:
    """A copy of a vector, tile by tile; without a mask it reaches past the end."""
    accesses = []
    for program in range(-(-count // block)):
        lanes = range(program * block, (program + 1) * block)
        elements = tuple(lane for lane in lanes if lane < count or not masked)
        accesses += [
            Access((program, 0, 0), way, name, elements, block) for way, name in (("load", "x"), ("store", "y"))
        ]
    return Trace({"x": torch.zeros(count), "y": torch.zeros(count)}, accesses)


def channel_mean(layout: torch.memory_format) -> Trace:
    x = torch.zeros(2, 4, 2, 3).contiguous(memory_format=layout)
    at = x.new_zeros(x.shape).contiguous(memory_format=layout)
    at.as_strided((48,), (1,)).copy_(torch.arange(48.0))
    accesses = []
    for channel in range(4):
        elements = tuple(int(e) for e in at[:, channel].flatten())
        accesses.append(Access((channel, 0, 0), "load", "x", elements[:8], 8))
        accesses.append(Access((channel, 0, 0), "load", "x", elements[8:], 8))
        accesses.append(Access((channel, 0, 0), "store", "mean", (channel,), 1))
    return Trace({"x": x, "mean": torch.zeros(4)}, accesses)


def cells(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if patch.get_height() > 0.25]


def colors(figure: Figure) -> Counter[str]:
    return Counter(to_hex(cell.get_facecolor()) for cell in cells(figure) if not cell.get_hatch())


def hatched(figure: Figure, color: str) -> int:
    return sum(bool(cell.get_hatch()) and to_hex(cell.get_edgecolor()) == color for cell in cells(figure))


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_every_cell_is_drawn_once_and_those_of_the_program_are_strong() -> None:
    figure = tile_step(vector(), 1)
    assert len(cells(figure)) == 20 + 8 + 20
    assert colors(figure) == {ROUNDING: 8 + 8 + 8, EARLIER: 8 + 8, "#ffffff": 4 + 4}
    assert hatched(figure, MUTED) == 0


def test_masked_lanes_are_hatched_and_belong_to_no_element() -> None:
    figure = tile_step(vector(), 2)
    assert hatched(figure, MUTED) == 4
    assert hatched(figure, CLIPPING) == 0
    assert colors(figure)[ROUNDING] == 4 * 3


def test_what_lies_outside_is_crossed_out_in_the_tensor_and_in_the_tile() -> None:
    figure = tile_step(vector(masked=False), 2)
    assert figure.get_suptitle() == "Program 2 reaches past the end of x"
    assert hatched(figure, CLIPPING) == 4 * 3
    assert [words(figure).count(str(n)) for n in (20, 23)] == [3, 3]


def test_many_elements_outside_end_in_an_ellipsis_inside_the_picture() -> None:
    figure = tile_step(vector(block=64, masked=False), 0)
    figure.draw_without_rendering()
    assert "…" in words(figure)
    assert max(cell.get_window_extent().x1 for cell in cells(figure)) <= figure.bbox.x1


def test_the_numbers_of_what_a_program_touches_are_written_as_those_of_each_sector() -> None:
    told = words(tile_step(vector(), 1))
    assert all(str(element) in told for element in (0, 8, 9, 15, 16))
    assert "5" not in told


def test_the_rest_of_a_sector_comes_with_it() -> None:
    figure = tile_step(channel_mean(torch.channels_last), 1)
    assert colors(figure)[FETCHED] == 36, "every sector has an element of every channel"
    near = tile_step(channel_mean(torch.contiguous_format), 1)
    assert colors(near)[FETCHED] == 4 * 8 - 12
    assert colors(tile_step(channel_mean(torch.contiguous_format), 0))[FETCHED] == 2 + 2


def test_rows_are_channels_or_pixels_and_samples_stand_side_by_side() -> None:
    told = words(tile_step(channel_mean(torch.contiguous_format), 0))
    assert {"n0 c0", "n1 c3"} <= set(told)
    assert "shape (2, 4, 2, 3)" in told
    last = words(tile_step(channel_mean(torch.channels_last), 0))
    assert {"n0 px0", "n1 px5"} <= set(last)
    assert "shape (2, 4, 2, 3), channels_last" in last


def test_a_program_with_several_tiles_shows_them_in_turn() -> None:
    figure = tile_step(channel_mean(torch.contiguous_format), 2)
    assert "2 tiles of 8 lanes" in words(figure)
    assert hatched(figure, MUTED) == 4
    assert figure.get_suptitle() == "Program 2 reads 12 of 48 elements with 16 lanes, 4 masked"


def test_programs_before_leave_a_line_under_what_they_touched() -> None:
    def marks(program: int) -> int:
        lines = tile_step(vector(), program).axes[0].lines
        return sum(to_hex(line.get_color()) == MUTED for line in lines)

    assert [marks(program) for program in range(3)] == [0, 16, 32]


def test_without_any_program_there_are_the_tensors_alone() -> None:
    figure = tile_step(Trace({"x": torch.zeros(20), "y": torch.zeros(20)}), 0)
    assert figure.get_suptitle() == "No program has run yet"
    assert colors(figure) == {"#ffffff": 40}
    assert "no program yet" in words(figure)


def test_one_element_tensors_are_left_out_beside_larger_ones() -> None:
    trace = vector()
    trace.tensors["scale"] = torch.ones(1)
    trace.accesses.insert(0, Access((0, 0, 0), "load", "scale", (0,), 1))
    told = words(tile_step(trace, 0))
    assert "8 lanes" in told
    assert not any("scale" in word for word in told)


def test_programs_of_a_grid_of_three_dimensions_stand_in_order() -> None:
    ids = [(1, 0, 0), (0, 1, 0), (0, 0, 0)]
    trace = Trace({"x": torch.zeros(4)}, [Access(id, "load", "x", (0,), 1) for id in ids])
    assert programs_of(trace) == sorted(ids)


def test_sectors_are_pieces_of_32_bytes() -> None:
    assert sectors(range(8), 4) == {0}
    assert sectors(range(4, 12), 4) == {0, 1}
    assert sectors(range(16), 2) == {0}
    assert len(sectors(range(0, 64, 8), 4)) == 8


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("program", [0, 3])
def test_nothing_leaves_the_picture_or_stands_on_other_words(layout: torch.memory_format, program: int) -> None:
    figure = tile_step(channel_mean(layout), program)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert "\n" not in figure.get_suptitle()


def test_a_slider_moves_nothing_but_the_colours() -> None:
    first, last = (tile_step(vector(), program) for program in (0, 2))
    assert first.get_size_inches().tolist() == last.get_size_inches().tolist()
    assert [c.get_xy() for c in cells(first)] == [c.get_xy() for c in cells(last)]
    assert to_png(first) != to_png(last)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match="at most 96 elements"):
        tile_step(Trace({"x": torch.zeros(97)}), 0)
    with pytest.raises(DataError, match="expected one or more"):
        tile_step(Trace({}), 0)
    with pytest.raises(DataError, match="expected 0 to 2"):
        tile_step(vector(), 3)
