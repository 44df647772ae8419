"""One channel's distribution over its Gaussian, statistics around what is remembered, sets over their densities."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from dfqlab.errors import DataError
from dfqlab.figures import activation_densities, color_of, projection_panels, sample_statistics_scatter, to_png
from dfqlab.figures.labels import short
from dfqlab.measures import (
    peak_density,
    principal_projection,
    shared_bandwidth,
    wasserstein_to_gaussian,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VALUES = {"zeroq": 2 * normal(4000) + 1, "dsg": 3 * normal(4000, seed=1), "real": 1.5 * normal(4000, seed=2) + 5}
STATISTICS = {source: (x.reshape(40, 100).mean(1), x.reshape(40, 100).std(1)) for source, x in VALUES.items()}
SETS = {"zeroq": normal(60, 1, 4, 4), "mixmix": 0.4 * normal(50, 1, 4, 4, seed=1) + 0.5, "real": normal(70, 1, 4, 4)}


def _words_stay_inside_and_apart(figure: Figure) -> None:
    figure.draw_without_rendering()
    words = list(figure.texts)
    for axes in figure.axes:
        words += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = [tick for tick in axis.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
            words += [tick.label1 for tick in ticks if tick.label1.get_visible()]
    boxes = [word.get_window_extent() for word in words if word.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    overlaps = [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert not overlaps


def test_every_density_holds_all_its_values_on_the_gaussian_s_own_scale() -> None:
    axes = activation_densities(VALUES, 1.0, 2.0, of="channel 3").axes[0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(dashed) == len(VALUES)
    for row, (source, line) in enumerate(zip(VALUES, dashed, strict=True)):
        filled = axes.patches[2 * row]
        assert to_hex(filled.get_facecolor()) == color_of(source)
        drawn, edges, baseline = filled.get_data()
        area = float(((baseline - np.asarray(drawn)) * np.diff(edges)).sum())
        gaussian = float(np.trapezoid(row - line.get_ydata(), line.get_xdata()))
        assert baseline == row
        assert area == pytest.approx(gaussian, rel=0.05)
        top = line.get_xdata()[np.argmin(line.get_ydata())]
        assert top == pytest.approx(1.0, abs=0.05)


def test_beside_every_density_stands_how_far_it_is_from_the_gaussian() -> None:
    figure = activation_densities(VALUES, 1.0, 2.0, of="channel 3")
    distances = [float(wasserstein_to_gaussian(x, torch.tensor(1.0), torch.tensor(2.0))) for x in VALUES.values()]
    assert [text.get_text() for text in figure.axes[0].texts] == [*(f"{short(d)} std" for d in distances), "W₁"]
    expected = f"zeroq is {short(distances[0])} std from BatchNorm's Gaussian, real {short(distances[2])}"
    assert figure.get_suptitle().replace("\n", " ") == expected


def test_a_spike_stays_in_its_row() -> None:
    axes = activation_densities({"zeroq": torch.zeros(500), "dsg": normal(500)}, 0.0, 1.0, of="channel 3").axes[0]
    heights = [baseline - np.asarray(drawn) for drawn, _, baseline in (patch.get_data() for patch in axes.patches)]
    assert 0.8 < max(height.max() for height in heights) < 0.9


def test_a_far_source_is_inside_the_frame() -> None:
    values = {"zeroq": torch.zeros(500), "noise": 3 * normal(500) - 90}
    figure = activation_densities(values, 0.0, 1.0, of="channel 3")
    axes = figure.axes[0]
    assert axes.get_xlim()[0] < -90
    assert axes.get_xlim()[1] > 3
    _words_stay_inside_and_apart(figure)


def test_every_image_is_a_point_and_what_is_remembered_is_where_dashes_cross() -> None:
    figure = sample_statistics_scatter(STATISTICS, 1.0, 2.0, of="channel 3")
    assert len(figure.axes) == 3
    for axes, (source, (mean, std)) in zip(figure.axes, STATISTICS.items(), strict=True):
        dots = next(line for line in axes.lines if line.get_marker() == "o")
        assert dots.get_color() == color_of(source)
        np.testing.assert_allclose(dots.get_xydata(), torch.stack([mean, std], 1).numpy(), rtol=1e-6)
        bn = next(line for line in axes.lines if line.get_marker() == "D")
        assert bn.get_xydata().tolist() == [[1.0, 2.0]]
        assert sum(line.get_linestyle() == "--" for line in axes.lines) == 2


def test_panels_share_their_axes_and_nothing_lies_outside() -> None:
    figure = sample_statistics_scatter({**STATISTICS, "noise": (normal(9) - 30, normal(9).abs())}, 1.0, 2.0, of="x")
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    assert len({tuple(np.round(axes.get_position().size, 9)) for axes in figure.axes}) == 1
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_marker() in ("o", "D"):
                points = line.get_xydata()
                (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
                assert ((points > (left, low)) & (points < (right, high))).all()


def test_the_variance_over_images_stands_over_its_panel_in_units_of_what_is_remembered() -> None:
    found = {"zeroq": (torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])), "real": (torch.tensor([-4.0, 4.0]),) * 2}
    figure = sample_statistics_scatter(found, 0.0, 2.0, of="x")
    words = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert words == [["zeroq", "var 0.25 and 0"], ["real", "var 4 and 4"]]
    assert figure.get_suptitle() == "The mean varies 16 times as much on real as on zeroq"


def test_points_density_and_peak_stand_in_the_plane_that_was_fitted() -> None:
    projection = principal_projection(SETS)
    figure = projection_panels(projection)
    bandwidth = shared_bandwidth(projection.points.values())
    shades = {}
    for axes, (name, points) in zip(figure.axes, projection.points.items(), strict=True):
        dots, cross = axes.lines
        np.testing.assert_allclose(dots.get_xydata(), points.numpy())
        peak = peak_density(points, bandwidth)
        assert cross.get_xydata()[0].tolist() == pytest.approx(peak.at)
        assert axes.texts[1].get_text() == f"peak density {short(peak.density)}"
        image = axes.images[0]
        shades[name] = float(np.max(image.get_array()))
        assert shades[name] == pytest.approx(peak.density, rel=0.02)
        row, column = np.unravel_index(np.argmax(image.get_array()), image.get_array().shape)
        left, right, low, high = image.get_extent()
        at = left + (right - left) * column / 89, low + (high - low) * row / 89
        assert at == pytest.approx(peak.at, abs=0.02 * (right - left))
    assert len({axes.images[0].norm.vmax for axes in figure.axes}) == 1
    assert max(shades, key=shades.__getitem__) == "mixmix"
    assert figure.get_suptitle().startswith("mixmix is ")


def test_components_say_what_they_explain() -> None:
    projection = principal_projection(SETS)
    first, second = (round(100 * share) for share in projection.explained)
    words = [text.get_text() for text in projection_panels(projection).texts]
    assert f"first component ({first} % of the variance)" in words
    assert f"second ({second} %)" in words


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_words_of_one_to_six_sources_stay_inside_and_apart(count: int) -> None:
    names = ["zeroq", "mixmix, 256 images", "dsg", "real digits", "noise", "clipped noise"][:count]
    values = {name: 1e-3 * (index + 1) * normal(300, seed=index) for index, name in enumerate(names)}
    _words_stay_inside_and_apart(activation_densities(values, -1e-3, 2e-3, of="features.3.bn, channel 12"))
    found = {name: (x[:150], x[150:].abs()) for name, x in values.items()}
    _words_stay_inside_and_apart(sample_statistics_scatter(found, -1e-3, 2e-3, of="features.3.bn, channel 12"))
    sets = {name: x[:60].reshape(20, 3) for name, x in values.items()}
    _words_stay_inside_and_apart(projection_panels(principal_projection(sets)))


def test_equal_images_are_drawn() -> None:
    same = {"zeroq": (torch.ones(5), torch.zeros(5)), "dsg": (torch.ones(1), torch.zeros(1))}
    to_png(sample_statistics_scatter(same, 1.0, 1.0, of="x"))
    to_png(activation_densities({"zeroq": torch.ones(5)}, 1.0, 1.0, of="x"))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match="0 sources: expected 1 to 6"):
        activation_densities({}, 0.0, 1.0, of="x")
    with pytest.raises(DataError, match="7 sources"):
        activation_densities({str(i): torch.ones(2) for i in range(7)}, 0.0, 1.0, of="x")
    with pytest.raises(DataError, match="'zeroq' has 1 values: expected some, all finite"):
        activation_densities({"zeroq": torch.tensor([math.nan])}, 0.0, 1.0, of="x")
    with pytest.raises(DataError, match="2 means and 1 stds"):
        sample_statistics_scatter({"zeroq": (torch.ones(2), torch.ones(1))}, 0.0, 1.0, of="x")
    for measure in (activation_densities, sample_statistics_scatter):
        found = {"zeroq": torch.ones(2) if measure is activation_densities else (torch.ones(2), torch.ones(2))}
        with pytest.raises(DataError, match=r"std.*positive"):
            measure(found, 0.0, 0.0, of="x")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="on one line"):
        projection_panels(principal_projection({"a": torch.linspace(0, 1, 9)[:, None] * torch.ones(3)}))
