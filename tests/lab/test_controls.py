"""Controls: every value that they can take, and what a learner sees and reaches with the keyboard."""

import re
from typing import Any

import ipywidgets
import pytest

from dfqlab.errors import ConfigurationError
from dfqlab.lab.controls import Choice, Control, Notches, Slider

CONTROLS = [
    Slider(4, 2, 8),
    Slider(100, 20, 100, step=5, unit="%"),
    Notches(0.1, (0.0, 0.01, 0.1, 1.0)),
    Choice("affine", ("symmetric", "affine")),
]


def test_a_slider_takes_every_step_between_its_ends_and_no_other() -> None:
    assert Slider(4, 2, 8).positions == (2, 3, 4, 5, 6, 7, 8)
    assert Slider(20, 10, 40, step=10).positions == (10, 20, 30, 40)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((9, 2, 8), "from 2 to 8 in steps of 1 cannot stand at 9"),
        ((3, 2, 8, 2), "from 2 to 8 in steps of 2 cannot stand at 3"),
        ((2, 2, 9, 2), "from 2 cannot end at 9 in steps of 2"),
        ((2, 8, 2), "from 8 cannot end at 2"),
        ((2, 2, 8, 0), "in steps of 0"),
    ],
)
def test_a_slider_that_could_not_be_turned_is_refused(arguments: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Slider(*arguments)


@pytest.mark.parametrize(
    ("value", "positions", "said"),
    [
        (2.0, (0.0, 1.0), "2.0 is none of the notches 0.0, 1.0"),
        (1.0, (1.0, 0.0), "ascend, and these do not"),
        (1.0, (0.0, 1.0, 1.0), "ascend, and these do not"),
    ],
)
def test_notches_that_could_not_be_turned_are_refused(value: float, positions: tuple[float, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Notches(value, positions)


def test_a_choice_that_is_none_of_the_options_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'c' is none of the options 'a', 'b'"):
        Choice("c", ("a", "b"))


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: type(control).__name__)
def test_a_control_has_a_visible_name_and_value_and_takes_the_keyboard(control: Control) -> None:
    widget = control.widget("clip")
    assert widget.description.startswith("clip")
    assert widget.value == control.value
    assert widget.disabled is False
    assert widget.tabbable is not False
    assert widget.layout.visibility != "hidden"
    assert widget.layout.display != "none"
    assert getattr(widget, "readout", True) is True


def test_a_unit_is_written_behind_the_name() -> None:
    assert Slider(100, 20, 100, step=5, unit="%").widget("clip").description == "clip, %"


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: type(control).__name__)
def test_the_widget_takes_exactly_the_positions(control: Control) -> None:
    widget = control.widget("it")
    for position in control.positions:
        widget.value = position
        assert widget.value == position
    if isinstance(control, Slider):
        assert (widget.min, widget.max, widget.step) == (control.low, control.high, control.step)
    elif isinstance(control, Notches):
        assert widget.options == (("0", 0.0), ("0.01", 0.01), ("0.1", 0.1), ("1", 1.0))
    else:
        assert widget.options == control.options


def test_a_number_typed_between_two_positions_becomes_the_nearer_one() -> None:
    widget = Slider(100, 20, 100, step=5).widget("clip")
    heard: list[Any] = []
    widget.observe(lambda change: heard.append(widget.value), names="value")
    for typed, taken in ((33, 35), (32, 30), (1000, 100), (-3, 20)):
        widget.value = typed
        assert widget.value == taken
    assert set(heard) == {20, 30, 35, 100}  # nobody behind it hears of a value that it cannot take


def test_a_slider_waits_until_it_is_let_go() -> None:
    whole, notched = Slider(4, 2, 8).widget("bits"), Notches(1, (0, 1)).widget("label")
    assert isinstance(whole, ipywidgets.IntSlider)
    assert isinstance(notched, ipywidgets.SelectionSlider)
    assert (whole.continuous_update, notched.continuous_update) == (False, False)
