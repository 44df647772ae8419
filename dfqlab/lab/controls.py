"""What a learner can turn: each control has a visible name, a visible value, and works from the keyboard."""

from dataclasses import dataclass
from typing import Any

from dfqlab.errors import ConfigurationError


@dataclass(frozen=True)
class Slider:
    """A whole number between two ends.

    Attributes:
        value: where it stands first.
        low, high: its ends, inclusive.
        step: from one position to the next.
        unit: written behind the number.
    """

    value: int
    low: int
    high: int
    step: int = 1
    unit: str = ""

    def __post_init__(self) -> None:
        if self.step < 1 or self.high not in self.positions:
            raise ConfigurationError(f"a slider from {self.low} cannot end at {self.high} in steps of {self.step}")
        if self.value not in self.positions:
            raise ConfigurationError(
                f"a slider from {self.low} to {self.high} in steps of {self.step} cannot stand at {self.value}"
            )

    @property
    def positions(self) -> tuple[int, ...]:
        """Every value that it can take."""
        return tuple(range(self.low, self.high + 1, self.step))

    def widget(self, name: str) -> Any:
        """The slider in a notebook; moves with the arrow keys, or by typing into its number."""
        import ipywidgets

        slider = ipywidgets.IntSlider(
            value=self.value,
            min=self.low,
            max=self.high,
            step=self.step,
            description=f"{name}, {self.unit}" if self.unit else name,
            continuous_update=False,
            tooltip="The arrow keys move it; its number can be typed.",  # without one, the page says "null"
            style={"description_width": _NAME_WIDTH},
            layout={"width": _WIDTH},
        )

        def settle(change: dict[str, Any]) -> None:
            slider.value = min(self.positions, key=lambda position: abs(position - change["new"]))

        slider.observe(settle, names="value")  # whoever types may type a number between two positions
        return slider


@dataclass(frozen=True)
class Notches:
    """One of a few numbers on a slider, such as powers of ten.

    Attributes:
        value: where it stands first.
        positions: all of them, ascending.
    """

    value: float
    positions: tuple[float, ...]

    def __post_init__(self) -> None:
        if list(self.positions) != sorted(set(self.positions)):
            raise ConfigurationError(f"the notches of a slider ascend, and these do not: {self.positions}")
        if self.value not in self.positions:
            raise ConfigurationError(f"{self.value!r} is none of the notches {', '.join(map(str, self.positions))}")

    def widget(self, name: str) -> Any:
        """The slider in a notebook; moves with the arrow keys."""
        import ipywidgets

        return ipywidgets.SelectionSlider(
            options=[(f"{position:g}", position) for position in self.positions],
            value=self.value,
            description=name,
            continuous_update=False,
            tooltip="The arrow keys move it.",
            style={"description_width": _NAME_WIDTH},
            layout={"width": _WIDTH},
        )


@dataclass(frozen=True)
class Choice:
    """One of a few names.

    Attributes:
        value: the first choice.
        options: all of them, in order.
    """

    value: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.value not in self.options:
            raise ConfigurationError(f"{self.value!r} is none of the options {', '.join(map(repr, self.options))}")

    @property
    def positions(self) -> tuple[str, ...]:
        """Every value that it can take."""
        return self.options

    def widget(self, name: str) -> Any:
        """The menu in a notebook; the space bar opens it, since JupyterLab keeps the arrow keys of a closed one."""
        import ipywidgets

        return ipywidgets.Dropdown(
            options=self.options,
            value=self.value,
            description=name,
            style={"description_width": _NAME_WIDTH},
            layout={"width": _WIDTH},
        )


Control = Slider | Notches | Choice

INDENT = "118px"  # where controls begin, behind their names
_NAME_WIDTH = "110px"
_WIDTH = "420px"
