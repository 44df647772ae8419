"""One style sheet: a thing keeps its colour, every eye tells colours apart, and the same figure is the same bytes."""

import itertools
import struct
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from dfqlab.figures import accuracy_by_source, batch_norm_view, color_of, image_grid, loss_curve, to_png
from dfqlab.figures.style import COLORS, OTHER, WIDTH
from dfqlab.measures import Interval

SOURCES = ("noise", "clipped noise", "zeroq", "real digits")

# Machado, Oliveira, Fernandes 2009, table 1, severity 1.0; they act on linear RGB.
EYES = {
    "all cones": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _linear(color: str) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _bars() -> Figure:
    shares = {source: Interval(0.9 + 0.01 * i, 0.88, 0.95) for i, source in enumerate(SOURCES)}
    return accuracy_by_source(shares, Interval(0.98, 0.97, 0.99))


def _lines() -> Figure:
    return batch_norm_view(["bn1", "bn2"], {source: (1.0 + i, 2.0 + i) for i, source in enumerate(SOURCES)})


@pytest.mark.parametrize("eye", EYES)
def test_every_eye_tells_any_two_sources_apart(eye: str) -> None:
    seen = {name: _lab(np.array(EYES[eye]) @ _linear(color)) for name, color in COLORS.items()}
    distance = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(COLORS, 2)}
    nearest = min(distance, key=distance.__getitem__)
    assert distance[nearest] >= 10, nearest


@pytest.mark.parametrize("color", [*COLORS.values(), OTHER])
def test_every_colour_stands_out_from_white(color: str) -> None:
    luminance = TO_XYZ[1] @ _linear(color)
    assert 1.05 / (luminance + 0.05) >= 3


def test_a_source_has_one_colour_in_every_figure() -> None:
    lines, bars = _lines().axes[0], _bars().axes[0]
    curve = loss_curve([1, 2], {"loss": [2.0, 1.0]}, source="zeroq").axes[0]
    for index, source in enumerate(SOURCES):
        dots = [line for line in bars.lines if line.get_marker() == "o"]
        names = {text.get_text(): to_hex(text.get_color()) for text in lines.texts}
        ticks = {label.get_text(): to_hex(label.get_color()) for label in bars.get_yticklabels()}
        assert to_hex(lines.lines[index].get_color()) == color_of(source)
        assert to_hex(dots[index].get_color()) == color_of(source)
        assert names[source] == ticks[source] == color_of(source)
    assert to_hex(curve.lines[0].get_color()) == color_of("zeroq")


def test_the_colour_goes_with_words_not_with_letters() -> None:
    assert color_of("real") == color_of("real CIFAR-10") == "#000000"
    assert color_of("clipped noise") != color_of("noise")
    assert color_of("ZeroQ") == color_of("zeroq, seed 3") == COLORS["zeroq"]
    assert color_of("surreal") == color_of("zeroqish") == OTHER


def test_the_same_figure_is_the_same_bytes_whatever_the_user_has_set() -> None:
    expected = [to_png(_lines()), to_png(_bars())]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        figure = _bars()
        assert [to_png(_lines()), to_png(figure)] == expected
        assert to_png(figure) == expected[1], "drawing it once changed it"
        assert dict(matplotlib.rcParams) == before


def test_a_png_has_110_dpi_and_names_no_software() -> None:
    png = to_png(_bars())
    per_metre = struct.unpack(">I", png[png.index(b"pHYs") + 4 :][:4])[0]
    width = struct.unpack(">I", png[16:20])[0]
    assert round(per_metre * 0.0254) == 110
    assert width == round(WIDTH * 110)
    assert b"tEXt" not in png


def test_no_figure_needs_pyplot() -> None:
    code = (
        "import sys; from dfqlab.figures import loss_curve, to_png;"
        "to_png(loss_curve([1, 2], {'loss': [2.0, 1.0]})); print('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("name", ["$\\frac{", "猫 \ud800 \x00", "line\nbreak", "", "w" * 500])
def test_names_from_outside_are_drawn_as_they_are(name: str) -> None:
    to_png(batch_norm_view([name, "b"], {name: (1.0, 2.0)}, title=name))
    to_png(accuracy_by_source({name: Interval(0.9, 0.8, 1.0)}, measure=name))
    to_png(image_grid(torch.zeros(1, 1, 4, 4), [name], title=name))
    to_png(loss_curve([1, 2], {name: [1.0, 2.0]}))


def test_a_long_title_stays_inside() -> None:
    figure = loss_curve([1, 2], {"loss": [2.0, 1.0]}, title="What the network remembers comes out of noise, " * 4)
    figure.draw_without_rendering()
    assert figure._suptitle.get_window_extent().x1 < figure.bbox.x1
