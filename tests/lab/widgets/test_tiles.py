"""The stepper: every control through every value, models that cover every element once, and faults that are told."""

import importlib
import itertools
import re

import pytest
import torch
from matplotlib.figure import Figure

from dfqlab.errors import ConfigurationError
from dfqlab.figures.tiles import programs_of, sectors
from dfqlab.lab.panels import Explorer
from dfqlab.lab.widgets import launched, tiles
from dfqlab.lab.widgets.tiles import modelled, step_sentence
from dfqlab_kernels.trace import Access, Trace

LAYOUTS = tiles().controls["layout"].positions
BLOCKS = tiles().controls["block"].positions
every_launch = pytest.mark.parametrize(("layout", "block"), list(itertools.product(LAYOUTS, map(int, BLOCKS))))


@every_launch
def test_every_element_is_read_once_and_every_result_written_once(layout: str, block: int) -> None:
    trace = modelled(layout, block)
    source, result = trace.tensors
    assert trace.of(source, "load") == dict.fromkeys(range(trace.tensors[source].numel()), 1)
    assert trace.of(result, "store") == dict.fromkeys(range(trace.tensors[result].numel()), 1)


@every_launch
def test_the_lanes_of_all_tiles_are_elements_or_masked(layout: str, block: int) -> None:
    for access in modelled(layout, block).accesses:
        assert 0 < len(access.elements) <= access.lanes
        if access.direction == "load":
            assert access.lanes % block == 0


@pytest.mark.parametrize("layout", ["NCHW, a channel each", "channels_last, a channel each"])
@pytest.mark.parametrize("block", [2, 8, 16])
def test_a_program_that_owns_a_channel_reads_that_channel(layout: str, block: int) -> None:
    trace = modelled(layout, block)
    x = trace.tensors["x"]
    memory = torch.arange(x.numel()).as_strided(x.shape, x.stride())
    for channel in range(x.shape[1]):
        mine = [a for a in trace.accesses if a.program == (channel, 0, 0)]
        read = {element for a in mine if a.direction == "load" for element in a.elements}
        assert read == set(memory[:, channel].flatten().tolist())
        assert [a.elements for a in mine if a.direction == "store"] == [(channel,)]


def test_pixels_each_leaves_a_row_of_sums_for_each_program() -> None:
    trace = modelled("channels_last, pixels each", 4)
    assert trace.tensors["sums"].shape == (3, 4)
    stores = [access.elements for access in trace.accesses if access.direction == "store"]
    assert stores == [tuple(range(4 * program, 4 * program + 4)) for program in range(3)]


def test_a_stepper_is_an_explorer_with_controls_that_have_names() -> None:
    stepper = tiles()
    assert isinstance(stepper, Explorer)
    view = stepper.view()
    assert {name: control.description for name, control in view.controls.items()} == {
        name: name for name in ("layout", "block", "program")
    }
    assert view.words.startswith("Controls: layout, block, program.")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_value_of_every_control_is_drawn(layout: str) -> None:
    stepper = tiles()
    view = stepper.view()
    view.controls["layout"].value = layout
    for block in BLOCKS[1::2]:
        view.controls["block"].value = block
        for program in range(0, view.controls["program"].max + 1, 3):
            view.controls["program"].value = program
            assert view.error is None
            assert f"Program {view.controls['program'].value} (" in view.page.value


def test_the_slider_ends_at_the_last_program_of_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("dfqlab.lab.widgets.tiles")  # its name in the package is the function
    monkeypatch.setattr(module, "tile_step", lambda trace, program: Figure(figsize=(0.1, 0.1)))
    stepper = tiles()
    view = stepper.view()
    slider = view.controls["program"]
    for layout, block in itertools.product(LAYOUTS, BLOCKS):
        view.controls["layout"].value, view.controls["block"].value = layout, block
        last = len(programs_of(modelled(layout, int(block)))) - 1
        assert stepper.last_program(layout=layout, block=block) == last
        assert slider.max == max(last, 1)
        assert slider.disabled == (last == 0)


def test_a_program_that_a_larger_tile_leaves_without_work_becomes_the_last() -> None:
    view = tiles().view()
    view.controls["block"].value = "2"
    view.controls["program"].value = 9
    assert "Program 9 (of 0 to 9) reads x 18..19" in view.page.value
    view.controls["block"].value = "8"
    assert view.controls["program"].value == 2
    assert "Program 2 (of 0 to 2) reads x 16..19" in view.page.value
    assert view.error is None


def test_with_one_program_its_slider_cannot_leave_it() -> None:
    view = tiles().view()
    view.controls["layout"].value, view.controls["block"].value = "channels_last, pixels each", "16"
    view.controls["program"].value = 1
    assert view.controls["program"].value == 0
    assert "Program 0 (the only one) reads x 0..47" in view.page.value


def test_a_program_that_there_is_not_is_refused_and_so_is_any_other_odd_value() -> None:
    with pytest.raises(ConfigurationError, match="program=3: the last program of this launch is 2"):
        tiles().drawing(program=3)
    with pytest.raises(ConfigurationError, match="no control 'blocks'"):
        tiles().drawing(blocks="8")
    with pytest.raises(ConfigurationError, match="none of its values"):
        tiles().drawing(block="7")


@every_launch
def test_the_sentence_counts_lanes_sectors_and_useful_bytes(layout: str, block: int) -> None:
    trace = modelled(layout, block)
    said = step_sentence(trace, 0)
    loads = [a for a in trace.accesses if a.program == (0, 0, 0) and a.direction == "load"]
    elements = {element for access in loads for element in access.elements}
    lanes = sum(access.lanes for access in loads)
    found = re.search(r"(\w+) of its (\d+) lanes (?:is|are) masked", said)
    assert found is not None
    assert (found[1], int(found[2])) == (str(lanes - len(elements)) if lanes > len(elements) else "none", lanes)
    found = re.search(r"touched: (\d+), useful bytes: (\d+) of (\d+)\.", said)
    assert found is not None
    touched = len(sectors(elements, 4))
    assert tuple(map(int, found.groups())) == (touched, 4 * len(elements), 32 * touched)


def test_the_sentence_names_elements_in_few_words() -> None:
    said = step_sentence(modelled("NCHW, a channel each", 8), 1)
    assert said.startswith(
        "Program 1 (of 0 to 3) reads x 6..11 and 30..35, writes mean 1; 4 of its 16 lanes are masked."
    )
    assert "reads x 1, 5, .. 45, writes mean 1" in step_sentence(modelled("channels_last, a channel each", 8), 1)


def test_channels_last_costs_a_program_with_one_channel_every_sector() -> None:
    assert "touched: 6, useful bytes: 48 of 192" in tiles().drawing(layout="channels_last, a channel each").sentence
    assert (
        "touched: 2, useful bytes: 64 of 64" in tiles().drawing(layout="channels_last, pixels each", block="4").sentence
    )


def recording(elements: list[tuple[int, ...]], count: int = 6) -> Trace:
    tensors = {"x": torch.zeros(count), "y": torch.zeros(count)}
    accesses = [
        Access((program, 0, 0), way, name, tile, 4)
        for program, tile in enumerate(elements)
        for way, name in (("load", "x"), ("store", "y"))
    ]
    return Trace(tensors, accesses)


def test_a_recorded_launch_is_stepped_through_program_by_program() -> None:
    stepper = launched(recording([(0, 1, 2, 3), (4, 5)]))
    assert list(stepper.controls) == ["program"]
    assert stepper.last_program() == 1
    assert stepper.drawing(program=1).sentence.startswith(
        "Program 1 (of 0 to 1) reads x 4..5, writes y 4..5; 2 of its 4"
    )
    assert "Wrong" not in stepper.drawing().sentence


def test_a_mask_too_many_or_too_few_is_told_whatever_program_is_looked_at() -> None:
    beyond = launched(recording([(0, 1, 2, 3), (4, 5, 6, 7)]))
    for program in (0, 1):
        said = beyond.drawing(program=program).sentence
        assert "Wrong: program 1 reads x 6 to 7, outside the tensor: x has 6 elements, 0 to 5." in said
    assert "useful bytes: 8 of 32" in beyond.drawing(program=1).sentence
    short = launched(recording([(0, 1, 2, 3), (4,)]))
    assert "Wrong: no program writes y 5." in short.drawing(program=0).sentence


def test_a_launch_that_did_nothing_has_a_picture_too() -> None:
    stepper = launched(Trace({"x": torch.zeros(4), "y": torch.zeros(4)}))
    assert stepper.last_program() == 0
    assert stepper.drawing().sentence == "No program has run yet."
    assert stepper.view().error is None


def test_the_twin_is_what_the_widget_shows() -> None:
    stepper = tiles()
    assert stepper.drawing().html == stepper.view().page.value
